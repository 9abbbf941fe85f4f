//! `pronto`: the user's commands, and the daemons as subcommands of the same binary.
//!
//! This crate knows every daemon and decides nothing for them: it parses, reads settings, talks to
//! the controller's API, and prints. [`exit`] lists what a command ends with; [`args`] the command
//! tree; [`commands`] what each command does.
//!
//! Invariants:
//! - Nothing starts a runtime or touches TLS before the arguments are parsed.
//! - What a script reads goes to stdout, everything else to stderr.
//! - Colours, progress bars and hints appear on a terminal only.

#[cfg(not(target_os = "linux"))]
compile_error!("pronto runs on Linux only: its launcher and its client use Linux's own interfaces");

mod args;
mod bench;
mod cert;
mod client;
mod commands;
mod daemon;
mod demo;
mod dev;
mod exit;
mod output;
mod run;
mod settings;
mod short_forms;
mod units;
mod workload_file;

fn main() -> std::process::ExitCode {
    match commands::main() {
        Ok(code) => std::process::ExitCode::from(code),
        Err(failure) => failure.report(),
    }
}
