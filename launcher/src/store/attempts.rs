//! A directory an attempt: its record, its files, and for how long they stay.

use super::listing;
use super::removal;
use super::spares::{self, Spares};
use crate::data_dir::{self, DataDir, KEPT_FILE, RECORD_FILE, WORK_DIRECTORY, parse_key};
use crate::shim::message::EXIT_FILE;
use crate::supervisor::Job;
use crate::supervisor::record::JOB_FORMAT;
use anyhow::Context;
use pronto_payloads::ids::{Attempt, InstanceId, OwnerId};
use pronto_payloads::place::AttemptId;
use pronto_payloads::start::Task;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The part of the store that the executor thread uses: attempts' directories.
#[derive(Debug)]
pub struct AttemptStore {
    directory: DataDir,
    retention: Duration,
    /// Attempts that are acknowledged and age, by instance.
    kept: BTreeMap<(OwnerId, InstanceId), Vec<Kept>>,
    spares: Spares,
    /// Empties directories off this thread: a workload may have left a million files.
    cleaner: std::sync::mpsc::Sender<PathBuf>,
}

#[derive(Clone, Debug)]
struct Kept {
    job: Arc<Job>,
    until: SystemTime,
}

impl AttemptStore {
    /// Takes up what an earlier process kept.
    ///
    /// # Errors
    /// If the directory can't be read.
    pub fn open(directory: DataDir, retention: Duration) -> anyhow::Result<Self> {
        let (cleaner, paths) = std::sync::mpsc::channel::<PathBuf>();
        std::thread::Builder::new()
            .name("cleaner".into())
            .spawn(move || paths.into_iter().for_each(|path| clean(&path)))?;
        let mut store = Self {
            directory,
            retention,
            kept: BTreeMap::new(),
            spares: Spares::default(),
            cleaner,
        };
        for entry in fs::read_dir(store.directory.instances())? {
            let entry = entry?;
            let path = entry.path();
            // Spares of an earlier process are not worth looking through.
            if entry.file_name().to_str().and_then(parse_key).is_none() {
                store.discard(&path);
                continue;
            }
            let Ok(bytes) = fs::read(path.join(KEPT_FILE)) else {
                // With neither it is the rest of a removal that a crash cut short.
                if !path.join(RECORD_FILE).exists() {
                    store.discard(&path);
                }
                continue;
            };
            match serde_json::from_slice::<Job>(&bytes) {
                Ok(job) => {
                    let since = path.metadata().and_then(|data| data.modified());
                    store.keep(Arc::new(job), since.unwrap_or(SystemTime::UNIX_EPOCH));
                }
                Err(_) => store.discard(&path),
            }
        }
        Ok(store)
    }

    /// Makes an attempt's directory and record; not synced.
    ///
    /// # Errors
    /// If it can't be written: the attempt must not start then.
    pub fn accept(&mut self, job: &Job) -> io::Result<()> {
        let path = self.directory.attempt(&job.id);
        let reused = is_process(job) && self.reuse_spare(&path);
        if !reused {
            match fs::DirBuilder::new().mode(mode(job)).create(&path) {
                // Only a repeated START or a crash in between can have left one.
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        data_dir::overwrite(&path.join(RECORD_FILE), &serde_json::to_vec(job)?)
    }

    /// Removes the working directory of an attempt that is over, unless outputs are to be kept. An
    /// empty one may yet serve the next attempt.
    pub fn emptied(&self, job: &Job) {
        if job.body.keep_outputs_ms == 0 {
            let path = self.directory.attempt(&job.id);
            let work = path.join(WORK_DIRECTORY);
            if !(is_process(job) && is_empty(&work)) {
                self.discard(&work);
            }
            if uses_tmp(job) {
                self.discard(&path.join("tmp"));
            }
        }
    }

    /// The owner has committed the end: the record goes, logs and outputs age. What left neither
    /// goes at once; then true.
    pub fn acknowledged(&mut self, job: &Arc<Job>) -> bool {
        let path = self.directory.attempt(&job.id);
        let left = what_is_left(&path);
        if job.body.keep_outputs_ms == 0 && left != Left::Logs {
            if left != Left::Nothing || !self.spares.put(&path) {
                self.discard(&path);
            }
            return true;
        }
        if job.body.keep_outputs_ms == 0 {
            self.discard(&path.join(WORK_DIRECTORY));
        }
        if let Err(error) = fs::rename(path.join(RECORD_FILE), path.join(KEPT_FILE)) {
            tracing::warn!(%error, path = %path.display(), "a record can't be put aside");
        }
        self.keep(job.clone(), wall_clock());
        false
    }

    /// Removes all files of an attempt.
    pub fn deleted(&self, id: &AttemptId) {
        self.discard(&self.directory.attempt(id));
    }

    /// Removes all acknowledged attempts of an instance. Gives their ids.
    pub fn forgotten(&mut self, owner: OwnerId, instance: InstanceId) -> Vec<AttemptId> {
        let kept = self.kept.remove(&(owner, instance)).unwrap_or_default();
        let ids: Vec<AttemptId> = kept.iter().map(|kept| kept.job.id).collect();
        ids.iter().for_each(|id| self.deleted(id));
        ids
    }

    /// Removes what has aged. Gives the ids.
    pub fn age(&mut self) -> Vec<AttemptId> {
        let now = wall_clock();
        let mut gone = Vec::new();
        self.kept.retain(|_, attempts| {
            attempts.retain(|kept| {
                let stays = kept.until > now;
                if !stays {
                    gone.push(kept.job.id);
                }
                stays
            });
            !attempts.is_empty()
        });
        gone.iter().for_each(|id| self.deleted(id));
        gone
    }

    /// The last acknowledged attempt of an instance whose files are still here.
    #[must_use]
    pub fn kept_job(
        &self,
        owner: OwnerId,
        instance: InstanceId,
        wanted: Option<Attempt>,
    ) -> Option<Arc<Job>> {
        let attempts = self.kept.get(&(owner, instance))?;
        attempts
            .iter()
            .filter(|kept| wanted.is_none_or(|wanted| kept.job.id.attempt == wanted))
            .max_by_key(|kept| kept.job.id.attempt)
            .map(|kept| kept.job.clone())
    }

    fn reuse_spare(&mut self, path: &Path) -> bool {
        let Some(spare) = self.spares.take() else {
            return false;
        };
        let is_clean = spares::take_back(&spare.join(WORK_DIRECTORY)).unwrap_or(false);
        if !is_clean {
            self.discard(&spare);
        }
        is_clean && fs::rename(spare, path).is_ok()
    }

    fn keep(&mut self, job: Arc<Job>, since: SystemTime) {
        let outputs = Duration::from_millis(job.body.keep_outputs_ms);
        let until = since
            .checked_add(self.retention.max(outputs))
            .unwrap_or(since);
        self.kept
            .entry((job.id.owner, job.id.instance))
            .or_default()
            .push(Kept { job, until });
    }

    fn discard(&self, path: &Path) {
        // Most directories are empty; the rest is the cleaner's.
        if fs::remove_dir(path).is_err() && path.exists() {
            // It lives as long as this store.
            let _ = self.cleaner.send(path.to_owned());
        }
    }
}

/// What an attempt that is over has in its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Record, exit and an empty working directory at most.
    Nothing,
    /// Output, at least.
    Logs,
    /// Something else.
    Rest,
}

fn what_is_left(path: &Path) -> Left {
    let mut left = Left::Nothing;
    let seen = listing::open(path).and_then(|directory| {
        listing::each_name(&directory, |name| {
            if name.starts_with(b"log.") {
                left = Left::Logs;
                return false;
            }
            let is_ours = name == RECORD_FILE.as_bytes()
                || name == EXIT_FILE.as_bytes()
                || (name == WORK_DIRECTORY.as_bytes() && is_empty(&path.join(WORK_DIRECTORY)));
            if !is_ours {
                left = Left::Rest;
            }
            true
        })
    });
    if seen.is_ok() { left } else { Left::Rest }
}

fn is_empty(path: &Path) -> bool {
    let listed = listing::open(path).and_then(|directory| listing::is_empty(&directory));
    listed.unwrap_or(false)
}

fn is_process(job: &Job) -> bool {
    matches!(job.body.task, Task::Exec(_))
}

/// Of an attempt's directory. The users of processes and guests pass through it to what is theirs. What
/// a container may write is open to whatever user its image has, and so to nobody by way of here.
fn mode(job: &Job) -> u32 {
    match &job.body.task {
        Task::Docker(_) => 0o700,
        Task::Exec(_) | Task::Qemu(_) | Task::Sim(_) => 0o711,
    }
}

fn uses_tmp(job: &Job) -> bool {
    matches!(&job.body.task, Task::Exec(task) if task.private_tmp)
}

/// For ages on disk, which outlive boots.
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

fn clean(path: &Path) {
    match removal::remove_tree(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "a directory can't be removed");
        }
        _ => {}
    }
}

/// Records of attempts that are not acknowledged. One that can't be read is put aside, in words.
pub(super) fn read_jobs(directory: &DataDir) -> anyhow::Result<Vec<Arc<Job>>> {
    let mut jobs = Vec::new();
    for entry in fs::read_dir(directory.instances())? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(named) = name.to_str().and_then(parse_key) else {
            continue;
        };
        let path = entry.path().join(RECORD_FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        match serde_json::from_slice::<Job>(&bytes) {
            Ok(job) if job.format == JOB_FORMAT && (job.id.instance, job.id.attempt) == named => {
                jobs.push(Arc::new(job));
            }
            // Cut short by a crash while it was written, or still that of the attempt that had the
            // directory before: nothing of this one was started.
            Ok(_) | Err(_) => {
                tracing::warn!(path = %path.display(), "a record can't be read and is put aside");
                let _ = fs::rename(&path, path.with_extension("unreadable"));
            }
        }
    }
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(instance: u8) -> Arc<Job> {
        use pronto_payloads::ids::{BootId, ControllerEpoch};
        use pronto_payloads::start::{ExecTask, StartBody};
        Arc::new(Job {
            format: JOB_FORMAT,
            id: AttemptId {
                owner: OwnerId([1; 16]),
                instance: InstanceId([instance; 16]),
                attempt: Attempt(1),
            },
            controller_epoch: ControllerEpoch(1),
            demand: pronto_payloads::demand::Demand::default(),
            gpus: Vec::new(),
            received_at: crate::moment::Moment(1),
            boot_id: BootId::default(),
            body: StartBody {
                // A longer record than the next one, whose directory is reused.
                name: "n".repeat(60 - usize::from(instance)),
                ..StartBody::new(
                    "t",
                    Task::Exec(ExecTask {
                        command: vec!["true".into()],
                        ..ExecTask::default()
                    }),
                )
            },
        })
    }

    #[test]
    fn directories_are_reused_and_never_mistaken() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = DataDir::new(directory.path().to_owned());
        fs::create_dir(data_dir.instances()).unwrap();
        let open = || AttemptStore::open(data_dir.clone(), Duration::from_secs(60)).unwrap();
        let mut store = open();
        let (first, second, third) = (job(1), job(2), job(3));
        store.accept(&first).unwrap();
        fs::write(data_dir.attempt(&first.id).join("exit.json"), "{}").unwrap();
        fs::create_dir(data_dir.work(&first.id)).unwrap();
        store.emptied(&first);
        assert!(store.acknowledged(&first), "it left nothing");
        assert!(!data_dir.attempt(&first.id).exists());
        store.accept(&second).unwrap();
        assert!(
            data_dir.attempt(&second.id).join("exit.json").exists(),
            "the directory is reused"
        );
        assert!(data_dir.work(&second.id).exists(), "and its work directory");
        assert_eq!(read_jobs(&data_dir).unwrap(), std::slice::from_ref(&second));
        // A crash between taking a directory and writing its record.
        fs::rename(data_dir.attempt(&second.id), data_dir.attempt(&third.id)).unwrap();
        assert_eq!(read_jobs(&data_dir).unwrap(), []);
        // A directory whose last user has left something in it since is not reused.
        fs::remove_dir_all(data_dir.attempt(&third.id)).unwrap();
        store.accept(&second).unwrap();
        fs::create_dir(data_dir.work(&second.id)).unwrap();
        store.emptied(&second);
        assert!(store.acknowledged(&second));
        let work = data_dir.instances().join("spare.1").join("work");
        fs::write(work.join("planted"), "").unwrap();
        store.accept(&third).unwrap();
        assert!(!data_dir.work(&third.id).exists());
        store.deleted(&third.id);
        // One with output is kept, and found again by the next process.
        store.accept(&second).unwrap();
        fs::write(data_dir.attempt(&second.id).join("log.000000"), "").unwrap();
        assert!(!store.acknowledged(&second));
        assert!(
            !data_dir.work(&second.id).exists(),
            "nothing was kept in it"
        );
        drop(store);
        let mut store = open();
        let kept = |store: &AttemptStore| store.kept_job(second.id.owner, second.id.instance, None);
        assert_eq!(kept(&store), Some(second.clone()));
        assert_eq!(
            store.forgotten(second.id.owner, second.id.instance),
            [second.id]
        );
        assert_eq!(kept(&store), None);
    }
}
