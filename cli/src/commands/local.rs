//! What needs no cluster: completion, manual pages, help topics.

use crate::args::Cli;
use crate::exit::{self, Failure, OK, Outcome};
use crate::output::{say, write};
use crate::workload_file;
use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use std::path::Path;

/// Where a command's own page ends and the shared one is named.
const MAN_SECTION: &str = "1";

/// Prints a completion script.
pub(crate) fn completion(shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pronto", &mut script);
    write(format_args!("{}", String::from_utf8_lossy(&script)));
    Ok(OK)
}

/// Prints the manual page, or writes one for each command.
pub(crate) fn man(directory: Option<&Path>) -> Outcome {
    let mut root = Cli::command();
    root.build();
    let Some(directory) = directory else {
        write(format_args!("{}", page(&root)?));
        return Ok(OK);
    };
    std::fs::create_dir_all(directory)
        .with_context(|| format!("can't make {}", directory.display()))?;
    let mut left = vec![(root.get_name().to_owned(), root)];
    while let Some((name, command)) = left.pop() {
        let path = directory.join(format!("{name}.{MAN_SECTION}"));
        std::fs::write(&path, page(&command.clone().name(name.clone()))?)
            .with_context(|| format!("can't write {}", path.display()))?;
        for inner in command
            .get_subcommands()
            .filter(|inner| inner.get_name() != "help")
        {
            left.push((format!("{name}-{}", inner.get_name()), inner.clone()));
        }
    }
    Ok(OK)
}

fn page(command: &clap::Command) -> Result<String, Failure> {
    let mut page = Vec::new();
    let after = (command.get_name() == "pronto").then(exit::table);
    let mut command = command.clone();
    if let Some(after) = after {
        command = command.after_long_help(after);
    }
    clap_mangen::Man::new(command)
        .render(&mut page)
        .context("can't write the manual page")?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// Prints the help of a command, or a topic.
pub(crate) fn help(topic: &[String]) -> Outcome {
    match topic.first().map(String::as_str) {
        Some("exit-codes") => write(format_args!("{}", exit::table())),
        Some("workload-file") => write(format_args!("{}", workload_file::HELP)),
        _ => {
            let mut command = Cli::command();
            command.build();
            let mut found = &mut command;
            for word in topic {
                found = found.find_subcommand_mut(word).ok_or_else(|| {
                    Failure::usage(format!("there is no command '{}'", topic.join(" ")))
                        .hint("`pronto help` lists the commands; exit-codes and workload-file are topics too")
                })?;
            }
            say!("{}", found.render_long_help());
        }
    }
    Ok(OK)
}
