//! `pronto dev --stop`: ends a local cluster with its workloads.
//!
//! The supervisor does it in order (workloads, launchers, controller, scheduler). If it is gone, or
//! does not get there, what it has left is ended here: the children that it wrote down, the
//! workloads of every launcher's data directory, shims that would not, and every daemon that names a
//! file of the cluster's directory.

use super::layout::Layout;
use super::process::{Process, naming};
use super::supervisor::{self, WORKLOAD_GRACE_MS, WORKLOADS_LIMIT};
use crate::commands::block_on;
use crate::exit::{Exit, Failure, OK, Outcome};
use crate::output::{tell, terminal};
use pronto_launcher::end_workloads;
use pronto_launcher::runtime::qemu::shim_dir;
use rustix::process::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

/// The supervisor has this long for an orderly end.
const ORDERLY_LIMIT: Duration = Duration::from_secs(45);
/// Between SIGTERM and SIGKILL for what is left.
const GRACE: Duration = Duration::from_secs(5);
/// What is killed can still have children that show only then.
const ROUNDS: usize = 5;

/// Runs it. A cluster that does not run is no error: it is stopped.
pub(super) fn run(layout: &Layout) -> Outcome {
    if !layout.client_config().exists() {
        let directory = layout.directory().display();
        return Err(Failure::new(
            Exit::NotFound,
            format!("{directory} has no cluster of `pronto dev`"),
        ));
    }
    let record = supervisor::read_record(layout);
    let supervisor = supervisor::running(layout);
    if let Some(supervisor) = supervisor {
        supervisor.signal(Signal::TERM);
        if !supervisor.wait_end(ORDERLY_LIMIT) {
            terminal::note("the supervisor does not end; ending it");
            supervisor.end(GRACE);
        }
    }
    let children = record.into_iter().flat_map(|record| record.children);
    let children: Vec<Process> = children
        .map(|child| child.process)
        .filter(|process| process.is_alive())
        .collect();
    end_all(&children, GRACE);
    block_on(async {
        end_leftovers(layout).await;
        Ok(())
    })?;
    supervisor::remove_record(layout);
    if supervisor.is_none() && children.is_empty() {
        tell!("no cluster was running in {}", layout.directory().display());
    }
    Ok(OK)
}

/// Ends all workloads with what owns them, and every daemon that names a file of the cluster.
pub(super) async fn end_leftovers(layout: &Layout) {
    let launchers = layout.launchers();
    for launcher in &launchers {
        let ending = end_workloads(launcher.path(), WORKLOAD_GRACE_MS);
        match tokio::time::timeout(WORKLOADS_LIMIT, ending).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => terminal::note(&format!("{}: {error:#}", launcher.path().display())),
            Err(_) => terminal::note(&format!(
                "{}: its workloads do not end in time",
                launcher.path().display()
            )),
        }
    }
    // A shim that does not listen any more takes its processes with it when it is killed.
    let shims: Vec<Process> = launchers
        .iter()
        .flat_map(|launcher| [launcher.shim_pid(), shim_dir(launcher).shim_pid()])
        .filter_map(|file| shim(&file))
        .collect();
    end_all(&shims, GRACE);
    for round in 0..ROUNDS {
        let own = |words: &[String]| {
            // A user's editor or `tail -f` on a file of the cluster is none of ours.
            words
                .first()
                .is_some_and(|program| program.ends_with("pronto"))
                && words.get(1).is_some_and(|word| {
                    matches!(word.as_str(), "launcher" | "controller" | "scheduler")
                })
        };
        let left: Vec<Process> = naming(layout.directory())
            .into_iter()
            .filter(|(_, words)| own(words))
            .map(|(process, _)| process)
            .collect();
        if left.is_empty() {
            return;
        }
        end_all(&left, if round == 0 { GRACE } else { GRACE / 5 });
    }
}

/// The shim whose pid a launcher wrote down, if that process is still a shim.
fn shim(file: &Path) -> Option<Process> {
    let text = std::fs::read_to_string(file).ok()?;
    let process = Process::of(text.trim().parse().ok()?)?;
    let line = std::fs::read(format!("/proc/{}/cmdline", process.pid)).ok()?;
    line.split(|&byte| byte == 0)
        .any(|word| word == b"launcher-shim")
        .then_some(process)
}

/// Asks all of them to end, and kills those that have not within the grace.
pub(super) fn end_all(processes: &[Process], grace: Duration) {
    for process in processes {
        process.signal(Signal::TERM);
    }
    let until = Instant::now() + grace;
    for process in processes {
        if !process.wait_end(until.saturating_duration_since(Instant::now())) {
            process.signal(Signal::KILL);
            process.wait_end(GRACE);
        }
    }
}
