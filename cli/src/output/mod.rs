//! What goes to stdout: tables for people, JSON and YAML for scripts.
//!
//! JSON and YAML are the API's own documents, unchanged: their shape is the published one. Tables
//! are made of named columns; `--columns` takes those names or the dotted path of any field of the
//! JSON. Colours, progress and hints live in [`terminal`] and go to stderr.

pub(crate) mod terminal;

use crate::exit::{Failure, signal_code};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A table.
    #[default]
    Table,
    /// A table with more columns.
    Wide,
    /// The API's JSON.
    Json,
    /// The same as YAML.
    Yaml,
}

impl Format {
    /// Whether a script reads it.
    pub(crate) const fn is_machine(self) -> bool {
        matches!(self, Self::Json | Self::Yaml)
    }
}

/// Flags of every command that prints.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// How to print: a table, a wide table, JSON or YAML
    #[arg(
        short = 'o',
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = false
    )]
    pub(crate) format: Format,
    /// Columns of a table, by name or by path in the JSON: id,state,demand.cpu_millis
    #[arg(long, global = true, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) columns: Vec<String>,
    /// Leave a table's header out
    #[arg(long, global = true)]
    pub(crate) no_header: bool,
}

/// A column of a table of `T`s.
pub(crate) struct Column<T> {
    pub(crate) name: &'static str,
    /// Shown with `-o wide` only.
    pub(crate) wide: bool,
    pub(crate) show: fn(&T) -> String,
}

/// A column that is always shown.
pub(crate) const fn column<T>(name: &'static str, show: fn(&T) -> String) -> Column<T> {
    Column {
        name,
        wide: false,
        show,
    }
}

/// A column of wide tables.
pub(crate) const fn wide<T>(name: &'static str, show: fn(&T) -> String) -> Column<T> {
    Column {
        name,
        wide: true,
        show,
    }
}

/// Writes to stdout. A reader that went away (`| head`) ends the process as SIGPIPE would.
pub(crate) fn write(arguments: Arguments<'_>) {
    let written = std::io::stdout().lock().write_fmt(arguments);
    if let Err(error) = written {
        stdout_failed(&error);
    }
}

/// Ends the process: nothing that is left to say can be said.
pub(crate) fn stdout_failed(error: &std::io::Error) -> ! {
    if error.kind() != ErrorKind::BrokenPipe {
        tell!("pronto: can't write to stdout: {error}");
        std::process::exit(crate::exit::Exit::Failed.code().into());
    }
    std::process::exit(signal_code(crate::exit::SIGPIPE).into())
}

/// `println!` that survives a closed pipe.
macro_rules! say {
    ($($arguments:tt)*) => {
        $crate::output::write(format_args!("{}\n", format_args!($($arguments)*)))
    };
}
pub(crate) use say;

/// Writes to stderr, if anybody listens: what is said there is for people, and that a log's disk is
/// full or its reader gone must end no daemon, nor change what a command ends with.
pub(crate) fn tell_people(arguments: Arguments<'_>) {
    let _nobody_listens = std::io::stderr().lock().write_fmt(arguments);
}

/// `eprintln!` that survives a stderr that takes nothing.
macro_rules! tell {
    ($($arguments:tt)*) => {
        $crate::output::tell_people(format_args!("{}\n", format_args!($($arguments)*)))
    };
}
pub(crate) use tell;

/// Prints a document as JSON or YAML.
pub(crate) fn print_value(value: &impl Serialize, format: Format) -> Result<(), Failure> {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value)
            .map_err(|error| anyhow::anyhow!("can't write YAML: {error}"))?,
        _ => serde_json::to_string_pretty(value).map_err(anyhow::Error::from)? + "\n",
    };
    write(format_args!("{text}"));
    Ok(())
}

/// Prints a list: the whole document for scripts, its items as a table for people.
pub(crate) fn print_list<T: Serialize>(
    document: &impl Serialize,
    items: &[T],
    columns: &[Column<T>],
    args: &OutputArgs,
) -> Result<(), Failure> {
    if args.format.is_machine() {
        return print_value(document, args.format);
    }
    write(format_args!("{}", table(items, columns, args)?));
    Ok(())
}

fn table<T: Serialize>(
    items: &[T],
    columns: &[Column<T>],
    args: &OutputArgs,
) -> Result<String, Failure> {
    if args.columns.is_empty() {
        let shown: Vec<&Column<T>> = columns
            .iter()
            .filter(|column| !column.wide || args.format == Format::Wide)
            .collect();
        let header = shown
            .iter()
            .map(|column| column.name.to_uppercase())
            .collect();
        let rows = items
            .iter()
            .map(|item| shown.iter().map(|column| (column.show)(item)).collect());
        return Ok(layout(header, rows, args.no_header));
    }
    let documents: Vec<Value> = items
        .iter()
        .map(serde_json::to_value)
        .collect::<Result<_, _>>()
        .map_err(anyhow::Error::from)?;
    let mut cells: Vec<Vec<String>> = vec![Vec::new(); items.len()];
    for name in &args.columns {
        let known = columns
            .iter()
            .find(|column| column.name.eq_ignore_ascii_case(name));
        let has_path = documents
            .iter()
            .any(|document| at_path(document, name).is_some());
        if known.is_none() && !has_path && !documents.is_empty() {
            let mut accepted: Vec<&str> = columns.iter().map(|column| column.name).collect();
            accepted.push("a path in `-o json` such as demand.cpu_millis");
            let accepted = accepted.join(", ");
            return Err(Failure::usage(format!("there is no column '{name}'"))
                .hint(format!("accepted: {accepted}")));
        }
        for ((row, item), document) in cells.iter_mut().zip(items).zip(&documents) {
            row.push(match known {
                Some(column) => (column.show)(item),
                None => at_path(document, name).map(plain).unwrap_or_default(),
            });
        }
    }
    let header = args
        .columns
        .iter()
        .map(|name| name.to_uppercase())
        .collect();
    Ok(layout(header, cells.into_iter(), args.no_header))
}

fn at_path<'a>(document: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.')
        .try_fold(document, |value, key| match value {
            Value::Array(items) => items.get(key.parse::<usize>().ok()?),
            _ => value.get(key),
        })
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Aligned columns without lines, as `ps` and `kubectl` print them.
pub(crate) fn layout(
    header: Vec<String>,
    rows: impl Iterator<Item = Vec<String>>,
    no_header: bool,
) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    if !no_header {
        table.set_header(header);
    }
    for row in rows {
        // A cell of several lines would break what a script cuts by lines.
        table.add_row(row.into_iter().map(|cell| cell.replace(['\n', '\r'], " ")));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text: String = table
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect();
    if text == "\n" {
        text.clear();
    }
    text
}

/// A key and its value, aligned, for `show`.
pub(crate) fn fields<'a>(fields: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let fields: Vec<_> = fields
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .collect();
    let width = fields
        .iter()
        .map(|(key, _)| key.chars().count())
        .max()
        .unwrap_or(0);
    fields
        .iter()
        .map(|(key, value)| format!("{key:width$}  {value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Thing {
        name: String,
        size: Size,
    }

    #[derive(Serialize)]
    struct Size {
        mib: u32,
    }

    fn things() -> Vec<Thing> {
        vec![
            Thing {
                name: "a".into(),
                size: Size { mib: 64 },
            },
            Thing {
                name: "longer\nname".into(),
                size: Size { mib: 1 },
            },
        ]
    }

    const COLUMNS: &[Column<Thing>] = &[
        column("name", |thing| thing.name.clone()),
        wide("size", |thing| format!("{}M", thing.size.mib)),
    ];

    #[test]
    fn tables_are_aligned_and_wide_ones_show_more() {
        let mut args = OutputArgs::default();
        assert_eq!(
            table(&things(), COLUMNS, &args).unwrap(),
            "NAME\na\nlonger name\n"
        );
        args.format = Format::Wide;
        assert_eq!(
            table(&things(), COLUMNS, &args).unwrap(),
            "NAME         SIZE\na            64M\nlonger name  1M\n"
        );
    }

    #[test]
    fn columns_are_chosen_by_name_or_by_path() {
        let mut args = OutputArgs {
            columns: vec!["size.mib".into(), "NAME".into()],
            no_header: true,
            ..OutputArgs::default()
        };
        assert_eq!(
            table(&things(), COLUMNS, &args).unwrap(),
            "64  a\n1   longer name\n"
        );
        args.columns = vec!["colour".into()];
        let failure = table(&things(), COLUMNS, &args).unwrap_err().to_string();
        assert!(
            failure.contains("'colour'") && failure.contains("name, size"),
            "{failure}"
        );
    }

    #[test]
    fn an_empty_table_has_its_header_alone() {
        assert_eq!(
            table(&[], COLUMNS, &OutputArgs::default()).unwrap(),
            "NAME\n"
        );
    }
}
