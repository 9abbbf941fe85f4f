//! Cluster traces: what the nodes are, what arrives, and how both are read from CSV files.
//!
//! Two kinds of files are understood, told apart by their header lines:
//!
//! - openb (Alibaba, 2023): nodes `sn,cpu_milli,memory_mib,gpu,model`, pods
//!   `name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,…`. Its times are ignored, as in the
//!   experiments of the FGD paper; `gpu_spec` lists the allowed models, joined by `|`.
//! - our own: nodes `name,cpu_millis,memory_mib,disk_mib,gpus,labels`, work
//!   `arrival_s,duration_s,cpu_millis,memory_mib,disk_mib,gpus,gpu_millis,constraints`. Labels and
//!   constraints are `key=value`, joined by `;`. An absent column or an empty field is 0 or none;
//!   `cpu_millis` and `memory_mib` must be there, and for work the two times.

use pronto_payloads::codec::Payload;
use pronto_payloads::demand::{Capacity, Constraint, Demand, GPU_MILLIS};
use pronto_payloads::limits;
use pronto_payloads::node::Label;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A node of a trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceNode {
    pub name: String,
    pub capacity: Capacity,
    pub labels: Vec<Label>,
}

/// Something that arrives and wants a place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceTask {
    pub demand: Demand,
    pub constraints: Vec<Constraint>,
    /// When it arrives and how long it runs, in seconds; absent = the trace has no times.
    pub times: Option<TaskTimes>,
}

/// See [`TraceTask::times`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TaskTimes {
    pub arrival_s: f64,
    pub duration_s: f64,
}

/// Nodes and what is to be placed on them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    pub nodes: Vec<TraceNode>,
    pub tasks: Vec<TraceTask>,
}

/// A trace that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("can't read {}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{file}: no column {column}; the first line must name {accepted}")]
    NoColumn {
        file: String,
        column: &'static str,
        accepted: &'static str,
    },
    #[error("{file}, line {line}: {source}")]
    Csv {
        file: String,
        line: u64,
        source: csv::Error,
    },
    #[error("{file}, line {line}, column {column}: '{value}' is not {accepted}")]
    Field {
        file: String,
        line: u64,
        column: String,
        value: String,
        accepted: String,
    },
    #[error("{file}: no {what} in it")]
    Empty { file: String, what: &'static str },
}

const NODE_COLUMNS: &str = "cpu_millis,memory_mib and optionally name,disk_mib,gpus,labels (or \
                            openb's sn,cpu_milli,memory_mib,gpu,model)";
const TASK_COLUMNS: &str = "arrival_s,duration_s,cpu_millis,memory_mib and optionally \
                            disk_mib,gpus,gpu_millis,constraints (or openb's \
                            name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec)";

impl Trace {
    /// Reads a nodes file and a file of what arrives.
    ///
    /// # Errors
    /// When a file can't be read, lacks a column, or a field is malformed: the error names line,
    /// column and what is accepted.
    pub fn read(nodes: &Path, tasks: &Path) -> Result<Self, TraceError> {
        let text = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| TraceError::Read {
                path: path.to_owned(),
                source,
            })
        };
        let name = |path: &Path| path.display().to_string();
        Self::parse((&name(nodes), &text(nodes)?), (&name(tasks), &text(tasks)?))
    }

    /// As [`Self::read`], from (file name, text) pairs.
    ///
    /// # Errors
    /// See [`Self::read`].
    pub fn parse(nodes: (&str, &str), tasks: (&str, &str)) -> Result<Self, TraceError> {
        let (mut node_list, models) = parse_nodes(nodes.0, nodes.1)?;
        let (tasks, specs) = parse_tasks(tasks.0, tasks.1)?;
        // A demand that may run on several models: a label that says so on each node of one. Our
        // constraints must all hold, so this is how alternatives are expressed to the table.
        for spec in specs {
            for (node, model) in node_list.iter_mut().zip(&models) {
                if spec.split('|').any(|allowed| allowed == model) {
                    node.labels.push(model_label(&spec));
                }
            }
        }
        for node in &mut node_list {
            node.labels.sort();
            node.labels.dedup();
        }
        Ok(Self {
            nodes: node_list,
            tasks,
        })
    }
}

fn model_label(spec: &str) -> Label {
    Label {
        key: "gpu.model.of".to_owned(),
        value: spec.to_owned(),
    }
}

/// One record and where it stands.
struct Row<'a> {
    file: &'a str,
    line: u64,
    header: &'a csv::StringRecord,
    record: csv::StringRecord,
}

impl Row<'_> {
    fn text(&self, column: &str) -> &str {
        let at = self.header.iter().position(|name| name.trim() == column);
        at.and_then(|at| self.record.get(at)).unwrap_or("").trim()
    }

    fn wrong(&self, column: &str, accepted: &str) -> TraceError {
        TraceError::Field {
            file: self.file.to_owned(),
            line: self.line,
            column: column.to_owned(),
            value: self.text(column).to_owned(),
            accepted: accepted.to_owned(),
        }
    }

    fn number(&self, column: &str, most: u32) -> Result<u32, TraceError> {
        let text = self.text(column);
        let number = if text.is_empty() { Ok(0) } else { text.parse() };
        number
            .ok()
            .filter(|&number: &u32| number <= most)
            .ok_or_else(|| self.wrong(column, &format!("a whole number from 0 to {most}")))
    }

    fn small(&self, column: &str, most: u16) -> Result<u16, TraceError> {
        let number = self.number(column, most.into())?;
        Ok(u16::try_from(number).unwrap_or(most))
    }

    fn seconds(&self, column: &str) -> Result<f64, TraceError> {
        let number = self.text(column).parse().ok();
        number
            .filter(|seconds: &f64| seconds.is_finite() && *seconds >= 0.0)
            .ok_or_else(|| self.wrong(column, "seconds, such as 12 or 12.5, from 0"))
    }

    fn pairs(&self, column: &str) -> Result<Vec<(String, String)>, TraceError> {
        let parts = self.text(column).split(';').filter(|part| !part.is_empty());
        parts
            .map(|part| match part.split_once('=') {
                Some((key, value)) if !key.trim().is_empty() => {
                    Ok((key.trim().to_owned(), value.trim().to_owned()))
                }
                _ => Err(self.wrong(column, "key=value pairs joined by ';'")),
            })
            .collect()
    }
}

/// Reads each line after the header, which must have one of each pair of names.
fn rows<T>(
    file: &str,
    text: &str,
    required: &[[&'static str; 2]],
    accepted: &'static str,
    mut read: impl FnMut(&Row<'_>) -> Result<T, TraceError>,
) -> Result<Vec<T>, TraceError> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(true)
        .from_reader(text.as_bytes());
    let at = |source: csv::Error| TraceError::Csv {
        file: file.to_owned(),
        line: source.position().map_or(1, csv::Position::line),
        source,
    };
    let header = reader.headers().map_err(at)?.clone();
    for names in required {
        if !header.iter().any(|name| names.contains(&name.trim())) {
            return Err(TraceError::NoColumn {
                file: file.to_owned(),
                column: names[0],
                accepted,
            });
        }
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(at)?;
        rows.push(read(&Row {
            file,
            line: record.position().map_or(0, csv::Position::line),
            header: &header,
            record,
        })?);
    }
    Ok(rows)
}

/// The nodes, and the GPU model of each.
fn parse_nodes(file: &str, text: &str) -> Result<(Vec<TraceNode>, Vec<String>), TraceError> {
    let required = [["cpu_millis", "cpu_milli"], ["memory_mib", "memory_mib"]];
    let is_ours = is_ours(text);
    let most_gpus = u16::try_from(limits::GPUS).unwrap_or(u16::MAX);
    let nodes = rows(file, text, &required, NODE_COLUMNS, |row| {
        let (name, cpu, gpus) = if is_ours {
            ("name", "cpu_millis", "gpus")
        } else {
            ("sn", "cpu_milli", "gpu")
        };
        let devices = row.small(gpus, most_gpus)?;
        let model = row.text("model").to_owned();
        let mut labels: Vec<Label> = row
            .pairs("labels")?
            .into_iter()
            .map(|(key, value)| Label { key, value })
            .collect();
        if !model.is_empty() {
            labels.push(Label {
                key: "gpu.model".to_owned(),
                value: model.clone(),
            });
        }
        let name = match row.text(name) {
            "" => format!("line-{}", row.line),
            name => name.to_owned(),
        };
        let node = TraceNode {
            name,
            capacity: Capacity {
                cpu_millis: row.number(cpu, u32::MAX)?,
                memory_mib: row.number("memory_mib", u32::MAX)?,
                disk_mib: row.number("disk_mib", u32::MAX)?,
                gpu_millis: vec![GPU_MILLIS; usize::from(devices)],
                resources: Vec::new(),
            },
            labels,
        };
        Ok((node, model))
    })?;
    if nodes.is_empty() {
        return Err(TraceError::Empty {
            file: file.to_owned(),
            what: "node",
        });
    }
    Ok(nodes.into_iter().unzip())
}

/// What arrives, and the distinct lists of allowed GPU models.
fn parse_tasks(file: &str, text: &str) -> Result<(Vec<TraceTask>, BTreeSet<String>), TraceError> {
    let is_ours = is_ours(text);
    let mut specs = BTreeSet::new();
    let ours = [
        ["cpu_millis", "cpu_millis"],
        ["memory_mib", "memory_mib"],
        ["arrival_s", "arrival_s"],
        ["duration_s", "duration_s"],
    ];
    let openb = [["cpu_millis", "cpu_milli"], ["memory_mib", "memory_mib"]];
    let required: &[_] = if is_ours { &ours } else { &openb };
    let tasks = rows(file, text, required, TASK_COLUMNS, |row| {
        if is_ours {
            our_task(row)
        } else {
            openb_task(row, &mut specs)
        }
    })?;
    if tasks.is_empty() {
        return Err(TraceError::Empty {
            file: file.to_owned(),
            what: "line of work",
        });
    }
    Ok((tasks, specs))
}

fn is_ours(text: &str) -> bool {
    let header = text.lines().next().unwrap_or("");
    header.split(',').any(|name| name.trim() == "cpu_millis")
}

fn our_task(row: &Row<'_>) -> Result<TraceTask, TraceError> {
    let demand = Demand {
        cpu_millis: row.number("cpu_millis", u32::MAX)?,
        memory_mib: row.number("memory_mib", u32::MAX)?,
        disk_mib: row.number("disk_mib", u32::MAX)?,
        gpus: row.small("gpus", u16::MAX)?,
        gpu_millis: row.small("gpu_millis", GPU_MILLIS - 1)?,
        resources: Vec::new(),
    };
    if let Err(invalid) = demand.check() {
        return Err(row.wrong("gpus", &invalid.to_string()));
    }
    let constraints = row.pairs("constraints")?;
    Ok(TraceTask {
        demand,
        constraints: constraints
            .into_iter()
            .map(|(key, value)| match key.as_str() {
                "node" => Constraint::Node(value),
                _ => Constraint::Label { key, value },
            })
            .collect(),
        times: Some(TaskTimes {
            arrival_s: row.seconds("arrival_s")?,
            duration_s: row.seconds("duration_s")?,
        }),
    })
}

fn openb_task(row: &Row<'_>, specs: &mut BTreeSet<String>) -> Result<TraceTask, TraceError> {
    let devices = row.small("num_gpu", u16::try_from(limits::GPUS).unwrap_or(u16::MAX))?;
    let each = row.small("gpu_milli", GPU_MILLIS)?;
    let shared = devices == 1 && each < GPU_MILLIS;
    let spec = row.text("gpu_spec");
    let mut constraints = Vec::new();
    if !spec.is_empty() {
        specs.insert(spec.to_owned());
        let Label { key, value } = model_label(spec);
        constraints.push(Constraint::Label { key, value });
    }
    Ok(TraceTask {
        demand: Demand {
            cpu_millis: row.number("cpu_milli", u32::MAX)?,
            memory_mib: row.number("memory_mib", u32::MAX)?,
            disk_mib: 0,
            gpus: if shared { 0 } else { devices },
            gpu_millis: if shared { each } else { 0 },
            resources: Vec::new(),
        },
        constraints,
        times: None,
    })
}
