//! After a restart of the launcher: what became of a container that an earlier process made.
//!
//! Three things are looked at, in this order: the end that was written down before a container was
//! removed, the engine's own view, and the mark that a start was asked for.

use super::attempt::{Attempt, Ended, is_over, moment, remove};
use super::engine::has_status;
use super::output::Fate;
use super::verdict;
use crate::data_dir::key;
use crate::moment::Moment;
use crate::supervisor::{Event, Found};
use pronto_payloads::instance::{End, Usage};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::Path;
use tokio::sync::watch;

/// The version of what an exit looks like on disk.
const FORMAT: u32 = 1;
/// How a container ended, in its attempt's directory.
const EXIT_FILE: &str = "docker-exit.json";

/// How a container ended: written before it is removed, since then nothing else tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Exit {
    format: u32,
    /// Which attempt's: directories may be used again.
    key: String,
    pub(super) started_at: Option<Moment>,
    pub(super) ended_at: Moment,
    pub(super) end: End,
    pub(super) usage: Usage,
}

impl Exit {
    pub(super) const fn new(
        key: String,
        started_at: Moment,
        ended_at: Moment,
        end: End,
        usage: Usage,
    ) -> Self {
        Self {
            format: FORMAT,
            key,
            started_at: Some(started_at),
            ended_at,
            end,
            usage,
        }
    }

    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        let path = directory.join(EXIT_FILE);
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, path)
    }

    fn read(directory: &Path, key: &str) -> Option<Self> {
        let bytes = fs::read(directory.join(EXIT_FILE)).ok()?;
        let exit: Self = serde_json::from_slice(&bytes).ok()?;
        (exit.format == FORMAT && exit.key == key).then_some(exit)
    }
}

/// What became of a container.
enum Finding {
    Running(Moment),
    Ended(Exit),
    NeverStarted,
    Lost,
}

impl Attempt {
    /// An attempt of an earlier launcher process: finds out, tells, and goes on as if it had been
    /// this process that started it.
    pub(super) async fn adopted(mut self) {
        let id = self.job.id;
        let adopted = |found| Event::Adopted { id, found };
        match self.find().await {
            Finding::Running(started_at) => {
                self.view.set_running(true);
                self.tell(adopted(Found::Running {
                    started_at,
                    fence_at: None,
                }));
                let exit = self.watch(started_at).await;
                self.conclude(exit).await;
            }
            Finding::Ended(exit) => {
                self.remove().await;
                self.tell(adopted(Found::Ended {
                    started_at: exit.started_at,
                    ended_at: exit.ended_at,
                    end: exit.end,
                    usage: exit.usage,
                }));
            }
            Finding::NeverStarted => {
                // Forgotten first: the answer may be a Prepare.
                self.shared.forget(id);
                self.tell(adopted(Found::NeverStarted));
                return;
            }
            Finding::Lost => {
                let text = "its container is gone, and how it ended is not known";
                self.tell(adopted(Found::Lost(text.to_owned())));
            }
        }
        self.shared.forget(id);
    }

    async fn find(&mut self) -> Finding {
        if let Some(exit) = Exit::read(&self.directory(), &key(&self.job.id)) {
            return Finding::Ended(exit);
        }
        loop {
            let found = match self.inspect().await {
                Ok(found) => found,
                Err(error) if has_status(&error, 404) => {
                    return if self.marked().is_some() {
                        Finding::Lost
                    } else {
                        Finding::NeverStarted
                    };
                }
                Err(error) => {
                    tracing::warn!(container = %self.name(), %error, "can't be inspected");
                    self.shared.engine.suspect().await;
                    continue;
                }
            };
            let started_at = self.started_at(&found);
            let state = found.state.unwrap_or_default();
            if !verdict::was_started(&state) {
                // A start may be under way that the earlier process asked for. Removed without
                // force, it either never runs, or turns out to run.
                remove(&self.shared.engine, &self.name(), false).await;
                if !matches!(self.inspect().await, Err(error) if has_status(&error, 404)) {
                    continue;
                }
                return Finding::NeverStarted;
            }
            if is_over(&state) {
                let at = moment(state.finished_at.as_deref());
                let ended = Ended {
                    at,
                    state: Some(state),
                    cause: None,
                };
                let output = self.copy(watch::channel(Fate::Interrupted).1);
                return Finding::Ended(self.settle(started_at, ended, output).await);
            }
            return Finding::Running(started_at);
        }
    }
}
