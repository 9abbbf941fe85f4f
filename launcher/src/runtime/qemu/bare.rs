//! A guest without Pronto around it: what benches compare with.

use super::disk::wants_seed;
use super::machine::{Machine, SEED};
use super::probe::Emulator;
use super::seed;
use pronto_payloads::demand::Demand;
use pronto_payloads::start::QemuTask;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One guest, as often as wanted, by the very command line that the runtime gives the emulator.
#[derive(Clone, Debug)]
pub struct BareGuest {
    command: Vec<String>,
    directory: PathBuf,
}

impl BareGuest {
    /// A guest that boots from a kernel; its files are made in `directory`, which is there. Each
    /// that is to run at the same time needs a directory of its own.
    ///
    /// # Errors
    ///
    /// If they can't be made.
    pub fn new(
        emulator: &Emulator,
        task: &QemuTask,
        demand: &Demand,
        directory: PathBuf,
    ) -> io::Result<Self> {
        if wants_seed(task) {
            let meta_data = seed::default_meta_data("bare", "guest");
            let user_data = task.user_data.as_deref().unwrap_or_default();
            std::fs::write(directory.join(SEED), seed::volume(user_data, &meta_data)?)?;
        }
        let machine = Machine {
            name: "bare",
            emulator,
            task,
            demand,
            ports: &task.ports,
            seed: wants_seed(task),
        };
        Ok(Self {
            command: machine.command(),
            directory,
        })
    }

    /// Runs it until it powers itself off. How long it took until the emulator was a process, and
    /// until its end.
    ///
    /// # Errors
    ///
    /// If it can't be run, or fails.
    pub fn run(&self) -> io::Result<[Duration; 2]> {
        let began = Instant::now();
        let mut child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let started = began.elapsed();
        let status = child.wait()?;
        if status.success() {
            return Ok([started, began.elapsed()]);
        }
        Err(io::Error::other(format!(
            "the emulator ended with {status}"
        )))
    }
}
