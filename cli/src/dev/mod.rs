//! `pronto dev`: a whole cluster on this machine, as real child processes.
//!
//! [`layout`] says what lies where and writes certificates and configurations; [`supervisor`] keeps
//! the children alive; [`mod@stop`] ends them with their workloads; [`process`] makes sure that a pid
//! is still the process that was meant. Everything is under one directory, which survives: a
//! cluster that is started again on it has its instances and its history.

pub(crate) mod layout;
mod ports;
pub(crate) mod process;
mod stop;
pub(crate) mod supervisor;

use crate::client::{Client, path};
use crate::exit::{Exit, Failure, OK, Outcome};
use crate::output::{say, terminal};
use crate::settings::{ConnectionArgs, Settings};
use anyhow::Context;
use clap::Args;
use layout::Layout;
use pronto_controller::api::types as api;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A cluster that is not ready after this long will not be.
const READY_LIMIT: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// More than a desk needs; each is a process with its own shims.
const MAX_LAUNCHERS: u16 = 64;

/// `pronto dev`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DevArgs {
    /// Compute nodes; they share this machine between them
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_LAUNCHERS)))]
    pub(crate) launchers: u16,
    /// Where the cluster lives [default: ~/.local/state/pronto/dev]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Return when it is ready, and leave it running
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// End the cluster that runs there, with its workloads
    #[arg(long, conflicts_with = "detach")]
    pub(crate) stop: bool,
    /// Be the background process of --detach
    #[arg(long, hide = true, conflicts_with_all = ["detach", "stop"])]
    pub(crate) supervise: bool,
    /// End when this process has ended
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) until_gone: Option<i32>,
}

/// Runs it.
pub(crate) fn run(args: &DevArgs) -> Outcome {
    let layout = Layout::new(&data_dir(args.data_dir.as_deref())?)?;
    if args.stop {
        return stop::run(&layout);
    }
    if args.detach {
        let mut child = spawn(&layout, args.launchers, None)?;
        crate::commands::block_on(ready(&layout, args.launchers, Some(&mut child)))?;
        print_export(&layout);
        return Ok(OK);
    }
    let plan = supervisor::Plan {
        launchers: args.launchers,
        foreground: !args.supervise,
        until_gone: args.until_gone.and_then(process::Process::of),
    };
    supervisor::run(&layout, plan)
}

/// Starts a cluster in the background; [`ready`] waits for it. It ends with `owner`, if there is
/// one.
pub(crate) fn spawn(
    layout: &Layout,
    launchers: u16,
    owner: Option<process::Process>,
) -> Result<Child, Failure> {
    if let Some(supervisor) = supervisor::running(layout) {
        return Err(already(layout, supervisor));
    }
    layout.make_directories()?;
    let log = layout.log("dev");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("can't write {}", log.display()))?;
    let mut command = Command::new(process::OWN_PROGRAM);
    // `ps` and people look for the name, wherever the binary lies.
    command
        .arg0("pronto")
        .args(["dev", "--supervise", "--launchers", &launchers.to_string()]);
    if let Some(owner) = owner {
        command.args(["--until-gone", &owner.pid.to_string()]);
    }
    let child = command
        .arg("--data-dir")
        .arg(layout.directory())
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0)
        .spawn()
        .context("can't start the supervisor")?;
    Ok(child)
}

/// Ends a cluster with its workloads.
pub(crate) fn stop(layout: &Layout) -> Result<(), Failure> {
    stop::run(layout).map(|_| ())
}

fn already(layout: &Layout, supervisor: process::Process) -> Failure {
    let directory = layout.directory().display();
    Failure::new(
        Exit::Conflict,
        format!("a cluster runs in {directory} (pid {})", supervisor.pid),
    )
    .hint(format!(
        "use it: {}; or end it: pronto dev --stop --data-dir {directory}",
        export(layout)
    ))
}

fn export(layout: &Layout) -> String {
    format!("export PRONTO_CONFIG={}", quoted(&layout.client_config()))
}

/// The one line that a shell is to be told.
fn print_export(layout: &Layout) {
    say!("{}", export(layout));
    terminal::note("then: pronto run -- echo hello");
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte);
    if text.bytes().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// The directory that was named, or the user's own, absolute.
fn data_dir(named: Option<&Path>) -> Result<PathBuf, Failure> {
    let directory = match named {
        Some(directory) => directory.to_owned(),
        None => {
            let absolute = |name: &str| {
                std::env::var_os(name)
                    .map(PathBuf::from)
                    .filter(|path| path.is_absolute())
            };
            let state = absolute("XDG_STATE_HOME")
                .or_else(|| Some(absolute("HOME")?.join(".local/state")))
                .ok_or_else(|| Failure::usage("HOME is not set").hint("give --data-dir DIR"))?;
            state.join("pronto/dev")
        }
    };
    std::path::absolute(&directory)
        .with_context(|| format!("can't use {}", directory.display()))
        .map_err(Failure::from)
}

/// A client that is the cluster's administrator.
pub(crate) fn admin(layout: &Layout) -> Result<Client, Failure> {
    let args = ConnectionArgs {
        client_config: Some(layout.client_config()),
        ..ConnectionArgs::default()
    };
    Ok(Client::new(Settings::resolve(&args)?)?.impatient())
}

/// Waits until the controller answers and all nodes take work. `child` is the supervisor, whose end
/// ends the wait.
pub(crate) async fn ready(
    layout: &Layout,
    launchers: u16,
    mut child: Option<&mut Child>,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut last = String::from("it has not come up");
    while begun.elapsed() < READY_LIMIT {
        if let Some(child) = &mut child
            && let Some(status) = child.try_wait()?
        {
            let log = layout.log("dev");
            let tail = process::last_lines(&log, 5);
            return Err(Failure::new(
                Exit::Failed,
                format!("the cluster ended ({status}):\n{tail}"),
            )
            .hint(format!("{} has it all", log.display())));
        }
        match nodes_ready(layout, child.as_deref()).await {
            Ok((ready, scheduler)) if ready >= usize::from(launchers) && scheduler => return Ok(()),
            Ok((ready, true)) => last = format!("{ready} of {launchers} nodes are ready"),
            Ok((_, false)) => last = "the controller has no scheduler".to_owned(),
            Err(failure) => last = failure.to_string(),
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Err(Failure::new(
        Exit::TimedOut,
        format!("not ready after {READY_LIMIT:?}: {last}"),
    )
    .hint(format!("the logs are in {}", layout.logs().display())))
}

/// Nodes that take work, and whether the scheduler is active.
async fn nodes_ready(layout: &Layout, child: Option<&Child>) -> Result<(usize, bool), Failure> {
    // Until the supervisor has its record there, what answers is what a killed one has left.
    let is_up = |child: &Child| {
        let running = supervisor::running(layout);
        running.is_some_and(|running| u32::try_from(running.pid) == Ok(child.id()))
    };
    if !child.is_none_or(is_up) {
        return Ok((0, false));
    }
    let mut client = admin(layout)?;
    let status: api::Status = client.get(&path(&["status"])).await?;
    if !status.scheduler.connected || !status.scheduler.active {
        return Ok((0, false));
    }
    let list: api::NodeList = client.get(&path(&["nodes"])).await?;
    let takes = |node: &&api::Node| {
        matches!(
            node.state,
            api::NodeStateName::Ready | api::NodeStateName::Maintenance
        )
    };
    Ok((list.nodes.iter().filter(takes).count(), true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive_a_shell() {
        assert_eq!(quoted(Path::new("/tmp/a-b_c.d")), "/tmp/a-b_c.d");
        assert_eq!(quoted(Path::new("/tmp/a b'c")), "'/tmp/a b'\\''c'");
    }
}
