//! What each command does, one module a family; here only who is called.
//!
//! Parsing comes first and needs no runtime. A client command runs on one thread; a daemon starts
//! its own runtime in [`crate::daemon`].

mod change;
mod explain;
pub(crate) use explain::hint;
mod list;
mod local;
mod nodes;
mod show;
pub(crate) mod simulate;
mod streams;

use crate::args::{Cli, ClientArgs, Command};
use crate::client::Client;
use crate::exit::{Exit, Failure, OK, Outcome};
use crate::output::stdout_failed;
use crate::settings::Settings;
use crate::{bench, cert, daemon, demo, dev, run};
use anyhow::Context;
use clap::Parser;
use std::future::Future;
use tokio::signal::unix::{SignalKind, signal};

/// The whole program.
pub(crate) fn main() -> Outcome {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == "launcher-shim")
    {
        return daemon::shim();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() {
                Exit::Usage.code()
            } else {
                OK
            };
            if let Err(error) = error.print() {
                stdout_failed(&error);
            }
            return Ok(code);
        }
    };
    dispatch(cli.command)
}

fn dispatch(command: Command) -> Outcome {
    match command {
        Command::Run(args) => block_on(async { run::run(connect(&args.client)?, &args).await }),
        Command::List { noun, client } => {
            block_on(async { list::run(connect(&client)?, noun, &client.output).await })
        }
        Command::Show { noun, client } => {
            block_on(async { show::run(connect(&client)?, noun, &client.output).await })
        }
        Command::Create { noun, client } => {
            block_on(async { change::create(connect(&client)?, noun, &client.output).await })
        }
        Command::Update { noun, client } => {
            block_on(async { change::update(connect(&client)?, noun, &client.output).await })
        }
        Command::Delete { noun, client } => {
            block_on(async { change::delete(connect(&client)?, noun).await })
        }
        Command::Stop { noun, client } => {
            block_on(async { change::stop(connect(&client)?, noun).await })
        }
        Command::Restart { noun, client } => {
            block_on(async { change::restart(connect(&client)?, noun).await })
        }
        Command::Logs(args) => {
            block_on(async { streams::logs(connect(&args.client)?, &args).await })
        }
        Command::Exec(args) => {
            block_on(async { streams::exec(connect(&args.client)?, &args).await })
        }
        Command::Cp(args) => block_on(async { streams::cp(connect(&args.client)?, &args).await }),
        Command::Explain(args) => {
            block_on(async { explain::run(connect(&args.client)?, &args).await })
        }
        Command::Drain(args) => {
            block_on(async { nodes::drain(connect(&args.client)?, &args).await })
        }
        Command::Restore(args) => {
            block_on(async { nodes::restore(connect(&args.client)?, &args).await })
        }
        Command::Cert { command, output } => cert::command::run(&command, output.format),
        Command::Dev(args) => dev::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench { command, output } => bench::run(&command, output.format),
        Command::Simulate(args) => simulate::run(&args),
        Command::Completion { shell } => local::completion(shell),
        Command::Man { dir } => local::man(dir.as_deref()),
        Command::Help { topic } => local::help(&topic),
        Command::Scheduler(args) => daemon::scheduler(&args),
        Command::Controller(args) => daemon::controller(&args),
        Command::Launcher(args) => daemon::launcher(&args),
    }
}

/// A client with the settings of these flags, the environment and the files.
fn connect(args: &ClientArgs) -> Result<Client, Failure> {
    let connection = args.connection.clone().or_environment()?;
    Client::new(Settings::resolve(&connection)?)
}

/// Runs a client's future on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")?
        .block_on(future)
}

/// Does the work, unless SIGINT or SIGTERM comes first: then it is dropped, with what it has begun.
pub(crate) async fn unless_interrupted<T>(
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let came = tokio::select! {
        done = work => return done,
        _ = interrupt.recv() => SignalKind::interrupt(),
        _ = terminate.recv() => SignalKind::terminate(),
    };
    Err(Failure::of_signal(came.as_raw_value()))
}
