//! Real commands over real files, with the scheduler and a launcher killed in their middle.
//!
//! Each workload appends one line to a file of evidence when it has done its work, with its
//! instance, its attempt and its result. What the controller says is held against that file: an
//! instance that succeeded has exactly one line, and its result is what we get ourselves.

use crate::client::{Client, path, query};
use crate::dev;
use crate::dev::layout::Layout;
use crate::dev::supervisor::{self, ChildRecord};
use crate::exit::{Exit, Failure};
use crate::output::terminal;
use crate::units;
use anyhow::Context;
use hyper::Method;
use pronto_controller::api::types as api;
use rustix::process::Signal;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use uuid::Uuid;

/// Files that are worked on at most: the whole stays under a minute on two cores.
const MOST_FILES: usize = 200;
/// Fewer workloads would be over before anybody could be killed.
const LEAST_WORKLOADS: usize = 240;
/// Larger files would make it a benchmark of gzip.
const MOST_FILE_BYTES: u64 = 4 << 20;
/// Connections that submit side by side.
const SUBMITTERS: usize = 8;
/// Done when the scheduler is killed, and when the launcher is; in percent. At least a fifth is
/// unfinished then.
const KILL_SCHEDULER_AT: usize = 25;
const KILL_LAUNCHER_AT: usize = 45;
const LEAST_UNFINISHED: usize = 20;
/// The launcher that is killed.
const VICTIM: &str = "launcher-2";
/// A batch that has not ended by then never will.
const LIMIT: Duration = Duration::from_secs(120);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// The API's own largest page.
const PAGE: u32 = 1000;
const LABEL: &str = "demo";

/// What each workload does: `$1` what, `$2` with which file, `$3` where to say so.
const SCRIPT: &str = r#"set -e
case "$1" in
count) result=$(wc -l < "$2") ;;
compress) result=$(gzip -c < "$2" | wc -c) ;;
hash) result=$(sha256sum < "$2") ;;
esac
echo "$PRONTO_INSTANCE $PRONTO_ATTEMPT $PRONTO_NODE $1 ${result%% *}" >> "$3"
"#;
const JOBS: [&str; 3] = ["count", "compress", "hash"];

/// What there is to work on.
#[derive(Debug)]
pub(super) struct Files {
    source: String,
    paths: Vec<PathBuf>,
}

/// The files of a directory, or those that git tracks where we stand.
pub(super) fn files(directory: Option<&Path>) -> Result<Files, Failure> {
    let (source, mut paths) = match directory {
        Some(directory) => {
            let mut paths = Vec::new();
            walk(directory, &mut paths)
                .with_context(|| format!("can't read {}", directory.display()))
                .map_err(|error| Failure::caused(Exit::Usage, error))?;
            (directory.display().to_string(), paths)
        }
        None => ("git ls-files".to_owned(), tracked()?),
    };
    let fits = |path: &PathBuf| {
        std::fs::metadata(path)
            .is_ok_and(|file| file.is_file() && (1..=MOST_FILE_BYTES).contains(&file.len()))
    };
    paths.retain(fits);
    paths.sort();
    if paths.is_empty() {
        return Err(
            Failure::usage(format!("there are no files to work on in {source}"))
                .hint("--input DIR names a directory with some"),
        );
    }
    // Every n-th, so that a large tree is represented by all of its parts.
    let step = paths.len().div_ceil(MOST_FILES);
    let paths = paths.into_iter().step_by(step).map(std::path::absolute);
    let paths = paths
        .collect::<Result<_, _>>()
        .context("can't find the current directory")?;
    Ok(Files { source, paths })
}

fn tracked() -> Result<Vec<PathBuf>, Failure> {
    let hint = "stand in a git checkout, or give --input DIR";
    let output = std::process::Command::new("git")
        .args(["ls-files", "-z"])
        .output()
        .context("can't run git")
        .map_err(|error| Failure::caused(Exit::Usage, error).hint(hint))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Failure::usage(format!("git ls-files: {said}")).hint(hint));
    }
    let names = output.stdout.split(|&byte| byte == 0);
    Ok(names
        .filter_map(|name| std::str::from_utf8(name).ok())
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .collect())
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(&entry.path(), found)?;
        } else if kind.is_file() && entry.path().to_str().is_some() {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// One workload.
#[derive(Clone, Debug)]
struct Job {
    what: &'static str,
    file: PathBuf,
}

/// What became of the batch.
#[derive(Debug, Serialize)]
pub(super) struct BatchReport {
    source: String,
    files: usize,
    workloads: usize,
    succeeded: usize,
    failed: usize,
    /// Acknowledged, and absent, not ended, or without evidence of having run.
    lost: usize,
    /// Instances with more than one line of evidence.
    run_twice: usize,
    /// Results that are not what we get ourselves.
    wrong_results: usize,
    checked_results: usize,
    kills: Vec<Kill>,
    took_ms: u64,
    #[serde(skip)]
    evidence: PathBuf,
}

/// One kill -9.
#[derive(Debug, Serialize)]
struct Kill {
    name: String,
    unfinished_percent: usize,
    back_after_ms: u64,
}

impl BatchReport {
    pub(super) fn is_sound(&self) -> bool {
        self.lost == 0
            && self.run_twice == 0
            && self.failed == 0
            && self.wrong_results == 0
            && self.succeeded == self.workloads
            && self
                .kills
                .iter()
                .all(|kill| kill.unfinished_percent >= LEAST_UNFINISHED)
    }

    /// Reads the evidence once more, some time after the end.
    pub(super) fn recount(&mut self) -> Result<(), Failure> {
        let lines = evidence(&self.evidence)?;
        self.run_twice = twice(&lines);
        Ok(())
    }
}

impl fmt::Display for BatchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = units::show_duration(Duration::from_millis(self.took_ms));
        writeln!(
            f,
            "batch: {} workloads over {} files ({}) in {took}",
            self.workloads, self.files, self.source
        )?;
        writeln!(
            f,
            "  {} succeeded, {} failed, {} lost, {} run twice",
            self.succeeded, self.failed, self.lost, self.run_twice
        )?;
        writeln!(
            f,
            "  {} of {} results are what we get ourselves",
            self.checked_results - self.wrong_results,
            self.checked_results
        )?;
        for kill in &self.kills {
            writeln!(
                f,
                "  kill -9 {} with {} % unfinished; it was back after {}",
                kill.name,
                kill.unfinished_percent,
                units::show_duration(Duration::from_millis(kill.back_after_ms))
            )?;
        }
        Ok(())
    }
}

/// Submits everything, kills two daemons, waits for the end, and counts.
pub(super) async fn run(layout: &Layout, files: &Files) -> Result<BatchReport, Failure> {
    let begun = Instant::now();
    let evidence_file = layout.directory().join("evidence");
    std::fs::write(&evidence_file, "").context("can't write the file of evidence")?;
    let jobs = Arc::new(jobs(files));
    let total = jobs.len();
    let submitting = tokio::spawn(submit_all(
        layout.clone(),
        jobs.clone(),
        evidence_file.clone(),
    ));
    let kills = watch(layout, &evidence_file, total, begun).await?;
    let admitted = submitting.await.context("a submitter ended badly")??;
    let took_ms = millis(begun.elapsed());
    let mut client = dev::admin(layout)?;
    let states = states(&mut client).await?;
    let lines = evidence(&evidence_file)?;
    let (mut succeeded, mut failed, mut lost) = (0, 0, 0);
    let (mut checked_results, mut wrong_results) = (0, 0);
    for (id, job) in &admitted {
        let line = lines.get(id).and_then(|lines| lines.first());
        match (states.get(id), line) {
            (Some(api::InstanceState::Succeeded), Some(line)) => {
                succeeded += 1;
                if let Some(own) = own_result(job)? {
                    checked_results += 1;
                    wrong_results += usize::from(own != line.result || line.what != job.what);
                }
            }
            (Some(state), _) if state.is_end() && *state != api::InstanceState::Succeeded => {
                failed += 1;
            }
            _ => lost += 1,
        }
    }
    Ok(BatchReport {
        source: files.source.clone(),
        files: files.paths.len(),
        workloads: total,
        succeeded,
        failed,
        lost: lost + (total - admitted.len()),
        run_twice: twice(&lines),
        wrong_results,
        checked_results,
        kills,
        took_ms,
        evidence: evidence_file,
    })
}

fn jobs(files: &Files) -> Vec<Job> {
    let rounds = LEAST_WORKLOADS
        .div_ceil(files.paths.len() * JOBS.len())
        .max(1);
    let mut jobs = Vec::new();
    for _ in 0..rounds {
        for file in &files.paths {
            jobs.extend(JOBS.map(|what| Job {
                what,
                file: file.clone(),
            }));
        }
    }
    jobs
}

/// Submits every job, several side by side; says which instance does which.
async fn submit_all(
    layout: Layout,
    jobs: Arc<Vec<Job>>,
    evidence: PathBuf,
) -> Result<Vec<(Uuid, Job)>, Failure> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut submitters = JoinSet::new();
    for _ in 0..SUBMITTERS {
        let (jobs, next, evidence) = (jobs.clone(), next.clone(), evidence.clone());
        // The controller is not killed here, but a moment's outage may pass all the same.
        let mut client = dev::admin(&layout)?.patient();
        submitters.spawn(async move {
            let mut admitted = Vec::new();
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let request = request(job, &evidence);
                let response: api::SubmitResponse = client
                    .send(Method::POST, &path(&["instances"]), &request)
                    .await?;
                admitted.extend(response.instances.iter().map(|&id| (id, job.clone())));
            }
            Ok::<_, Failure>(admitted)
        });
    }
    let mut admitted = Vec::new();
    while let Some(part) = submitters.join_next().await {
        admitted.extend(part.context("a submitter ended badly")??);
    }
    Ok(admitted)
}

fn request(job: &Job, evidence: &Path) -> api::SubmitRequest {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let command = ["sh", "-c", SCRIPT, "sh", job.what]
        .map(str::to_owned)
        .into_iter();
    let task = api::TaskSpec::Exec(api::ExecSpec {
        command: command.chain([text(&job.file), text(evidence)]).collect(),
        ..api::ExecSpec::default()
    });
    let mut spec = api::Spec::new(task);
    spec.labels.insert(LABEL.to_owned(), "batch".to_owned());
    api::SubmitRequest::ad_hoc(Uuid::now_v7(), spec)
}

/// Follows the evidence until the batch is done, and kills on the way.
async fn watch(
    layout: &Layout,
    evidence: &Path,
    total: usize,
    begun: Instant,
) -> Result<Vec<Kill>, Failure> {
    let bar = terminal::progress(total as u64, "batch");
    let mut client = dev::admin(layout)?.patient();
    let mut plan = vec![(VICTIM, KILL_LAUNCHER_AT), ("scheduler", KILL_SCHEDULER_AT)];
    let mut kills: Vec<Kill> = Vec::new();
    loop {
        let done = count_lines(evidence)?;
        bar.set_position(done as u64);
        if let Some(&(name, at)) = plan.last()
            && done * 100 >= total * at
        {
            plan.pop();
            let kill = kill(layout, name, evidence, total, &bar).await?;
            kills.push(kill);
            continue;
        }
        if done >= total && all_ended(&mut client).await? {
            bar.finish_and_clear();
            return Ok(kills);
        }
        if begun.elapsed() > LIMIT {
            bar.abandon();
            return Err(Failure::new(
                Exit::No,
                format!("{done} of {total} workloads have run after {LIMIT:?}: some are lost"),
            ));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Kills a daemon and waits until its supervisor has started it again.
async fn kill(
    layout: &Layout,
    name: &str,
    evidence: &Path,
    total: usize,
    bar: &indicatif::ProgressBar,
) -> Result<Kill, Failure> {
    let victim = child(layout, name)
        .with_context(|| format!("the cluster has no {name} that could be killed"))?;
    let unfinished = total.saturating_sub(count_lines(evidence)?) * 100 / total;
    victim.process.signal(Signal::KILL);
    let killed = Instant::now();
    bar.suspend(|| terminal::note(&format!("kill -9 {name} (pid {})", victim.process.pid)));
    loop {
        if let Some(again) = child(layout, name)
            && again.process != victim.process
        {
            let back_after_ms = millis(killed.elapsed());
            return Ok(Kill {
                name: name.to_owned(),
                unfinished_percent: unfinished,
                back_after_ms,
            });
        }
        if killed.elapsed() > LIMIT {
            let what = format!("{name} was not started again");
            return Err(Failure::new(Exit::No, what));
        }
        bar.set_position(count_lines(evidence)? as u64);
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn child(layout: &Layout, name: &str) -> Option<ChildRecord> {
    let record = supervisor::read_record(layout)?;
    record
        .children
        .into_iter()
        .find(|child| child.name == name && child.process.is_alive())
}

async fn all_ended(client: &mut Client) -> Result<bool, Failure> {
    let asked = api::ListInstances {
        label: Some(format!("{LABEL}=batch")),
        state: Some("live".to_owned()),
        limit: Some(1),
        ..api::ListInstances::default()
    };
    let list: api::InstanceList = client.get(&query(path(&["instances"]), &asked)?).await?;
    Ok(list.instances.is_empty())
}

/// Every instance of the batch and how it stands.
async fn states(client: &mut Client) -> Result<HashMap<Uuid, api::InstanceState>, Failure> {
    let mut states = HashMap::new();
    let mut asked = api::ListInstances {
        label: Some(format!("{LABEL}=batch")),
        limit: Some(PAGE),
        ..api::ListInstances::default()
    };
    loop {
        let page: api::InstanceList = client.get(&query(path(&["instances"]), &asked)?).await?;
        states.extend(
            page.instances
                .iter()
                .map(|instance| (instance.id, instance.state)),
        );
        match page.next {
            Some(next) => asked.after = Some(next),
            None => return Ok(states),
        }
    }
}

/// One line of evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    what: String,
    result: String,
}

fn count_lines(path: &Path) -> Result<usize, Failure> {
    let bytes = std::fs::read(path).context("can't read the file of evidence")?;
    Ok(bytes
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .count())
}

fn evidence(path: &Path) -> Result<BTreeMap<Uuid, Vec<Line>>, Failure> {
    let text = std::fs::read_to_string(path).context("can't read the file of evidence")?;
    let mut lines: BTreeMap<Uuid, Vec<Line>> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [id, _attempt, _node, what, result] = words[..] else {
            return Err(Failure::new(
                Exit::No,
                format!("evidence that makes no sense: {line}"),
            ));
        };
        let id = id
            .parse()
            .with_context(|| format!("evidence without an instance: {line}"))?;
        let line = Line {
            what: what.to_owned(),
            result: result.to_owned(),
        };
        lines.entry(id).or_default().push(line);
    }
    Ok(lines)
}

fn twice(lines: &BTreeMap<Uuid, Vec<Line>>) -> usize {
    lines.values().filter(|lines| lines.len() > 1).count()
}

/// The result of a job as we get it ourselves; a compressed size depends on gzip's version.
fn own_result(job: &Job) -> Result<Option<String>, Failure> {
    if job.what == "compress" {
        return Ok(None);
    }
    let bytes =
        std::fs::read(&job.file).with_context(|| format!("can't read {}", job.file.display()))?;
    Ok(Some(if job.what == "count" {
        bytes
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count()
            .to_string()
    } else {
        Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_counted_by_instance() {
        let path = std::env::temp_dir().join(format!("pronto-evidence-{}", std::process::id()));
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        std::fs::write(
            &path,
            format!("{one} 1 n count 3\n{two} 1 n hash ab\n{one} 2 m count 3\n"),
        )
        .unwrap();
        let lines = evidence(&path).unwrap();
        assert_eq!(
            (lines.len(), twice(&lines), count_lines(&path).unwrap()),
            (2, 1, 3)
        );
        std::fs::write(&path, "nonsense\n").unwrap();
        assert!(evidence(&path).is_err());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_few_files_are_worked_on_often_enough_to_be_interrupted() {
        let files = Files {
            source: "x".into(),
            paths: vec!["a".into(), "b".into()],
        };
        assert!(jobs(&files).len() >= LEAST_WORKLOADS);
    }

    #[test]
    fn the_script_gives_what_we_get_ourselves() {
        let directory = std::env::temp_dir().join(format!("pronto-script-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (file, said) = (directory.join("input"), directory.join("said"));
        std::fs::write(&file, "a\nb\n").unwrap();
        for what in JOBS {
            let status = std::process::Command::new("sh")
                .args(["-c", SCRIPT, "sh", what])
                .args([&file, &said])
                .env("PRONTO_INSTANCE", Uuid::from_u128(7).to_string())
                .env("PRONTO_ATTEMPT", "1")
                .env("PRONTO_NODE", "n")
                .status()
                .unwrap();
            assert!(status.success(), "{what}");
        }
        let lines = evidence(&said)
            .unwrap()
            .remove(&Uuid::from_u128(7))
            .unwrap();
        for (line, what) in lines.iter().zip(JOBS) {
            let own = own_result(&Job {
                what,
                file: file.clone(),
            })
            .unwrap();
            assert!(own.is_none_or(|own| own == line.result), "{what}: {line:?}");
        }
        std::fs::remove_dir_all(directory).unwrap();
    }
}
