//! The launcher's durable state on disk: versioned JSON, a directory an attempt.
//!
//! A crash of this process must lose nothing; a crash of the machine may, because another boot id
//! proves all work gone anyway. So attempts and tombstones are written without fsync, and only what
//! must hold across boots is synced: node uuid, session epoch, mode, term, epochs of owners.
//!
//! It leaves names to `data_dir` and everything about processes to the runtimes.

mod ballast;
mod removal;

use crate::data_dir::{self, DataDir, KEPT_FILE, RECORD_FILE, WORK_DIRECTORY, parse_key};
use crate::shim::message::EXIT_FILE;
use crate::supervisor::record::JOB_FORMAT;
use crate::supervisor::tombstones::{TOMBSTONES, Tombstone};
use crate::supervisor::{Job, NodeRecord, Restored};
use anyhow::{Context, bail};
use ballast::Ballast;
use pronto_payloads::ids::{Attempt, InstanceId, NodeUuid, OwnerId, SessionEpoch};
use pronto_payloads::place::AttemptId;
use pronto_payloads::start::Task;
use rustix::fs::{Mode, OFlags, RawDir};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The format of `node.json`.
const NODE_FORMAT: u32 = 1;
/// Tombstones appended before the file is written anew, without those that are obsolete.
const TOMBSTONE_LINES: usize = 2 * TOMBSTONES;
/// Directories kept for the next attempts: more than end at once on most nodes.
const SPARES: usize = 64;
/// Names of a directory that are read at once.
const NAMES_BYTES: usize = 2048;

/// What is in `node.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct NodeFile {
    format: u32,
    node_uuid: NodeUuid,
    session_epoch: SessionEpoch,
    #[serde(flatten)]
    record: NodeRecord,
}

/// The part of the store that the main loop uses itself: small, synced files.
#[derive(Debug)]
pub struct NodeStore {
    directory: DataDir,
    node: NodeFile,
    tombstones: File,
    tombstone_lines: usize,
    ballast: Ballast,
    /// Held while this process lives.
    _lock: File,
}

impl NodeStore {
    /// Opens a data directory, making it if it is not there, and gives back what is in it.
    ///
    /// # Errors
    /// If another launcher uses it, or something in it can't be read.
    pub fn open(directory: DataDir) -> anyhow::Result<(Self, Restored)> {
        // Workloads pass through both to what is theirs, and list neither.
        make_directory(directory.path(), 0o711)?;
        let lock = lock(&directory)?;
        make_directory(&directory.instances(), 0o711)?;
        let node_path = directory.path().join("node.json");
        let node = match fs::read(&node_path) {
            Ok(bytes) => read_node(&bytes).with_context(|| node_path.display().to_string())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => NodeFile {
                format: NODE_FORMAT,
                node_uuid: uuid::Uuid::new_v4().into(),
                session_epoch: SessionEpoch(0),
                record: NodeRecord::default(),
            },
            Err(error) => return Err(error).with_context(|| node_path.display().to_string()),
        };
        let tombstones_path = directory.tombstones();
        let tombstones = read_tombstones(&tombstones_path)?;
        let ballast_path = directory.path().join("ballast");
        let restored = Restored {
            node: node.record.clone(),
            jobs: read_jobs(&directory)?,
            tombstones,
        };
        let mut store = Self {
            directory,
            node,
            tombstones: open_append(&tombstones_path)?,
            tombstone_lines: restored.tombstones.len(),
            ballast: Ballast::open(&ballast_path)
                .with_context(|| ballast_path.display().to_string())?,
            _lock: lock,
        };
        // The last line may have been cut by a crash.
        store
            .ballast
            .write(|| append(&store.tombstones, b"\n"))
            .with_context(|| tombstones_path.display().to_string())?;
        store.write_node()?;
        Ok((store, restored))
    }

    /// The directory's identity.
    #[must_use]
    pub const fn node_uuid(&self) -> NodeUuid {
        self.node.node_uuid
    }

    /// The next session's epoch, on disk before it is returned.
    ///
    /// # Errors
    /// If it can't be synced: then no session may begin.
    pub fn next_session_epoch(&mut self) -> anyhow::Result<SessionEpoch> {
        self.node.session_epoch = self.node.session_epoch.next();
        self.write_node()?;
        Ok(self.node.session_epoch)
    }

    /// Keeps mode, term and epochs.
    ///
    /// # Errors
    /// If they can't be synced.
    pub fn keep_node(&mut self, record: NodeRecord) -> anyhow::Result<()> {
        self.node.record = record;
        self.write_node()
    }

    /// Keeps what a STOP forbade; not synced. Where the disk is full it takes room that was set aside.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn keep_tombstone(&mut self, tombstone: &Tombstone) -> anyhow::Result<()> {
        let line = self.next_line(tombstone)?;
        self.ballast
            .write(|| append(&self.tombstones, &line))
            .context("a tombstone can't be written")
    }

    /// The same of what never started, without the room set aside: on a full disk that is each START.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn keep_end(&mut self, tombstone: &Tombstone) -> anyhow::Result<()> {
        let line = self.next_line(tombstone)?;
        append(&self.tombstones, &line).context("an end can't be written")
    }

    fn next_line(&mut self, tombstone: &Tombstone) -> anyhow::Result<Vec<u8>> {
        if self.tombstone_lines >= TOMBSTONE_LINES {
            self.rewrite_tombstones()?;
        }
        self.tombstone_lines += 1;
        let mut line = serde_json::to_vec(tombstone)?;
        line.push(b'\n');
        Ok(line)
    }

    /// Without those that are obsolete.
    fn rewrite_tombstones(&mut self) -> anyhow::Result<()> {
        let path = self.directory.tombstones();
        let mut all = read_tombstones(&path)?;
        let excess = all.len().saturating_sub(TOMBSTONES);
        all.drain(..excess);
        let mut text = Vec::new();
        for tombstone in &all {
            serde_json::to_writer(&mut text, tombstone)?;
            text.push(b'\n');
        }
        // All of it needs more room than is set aside; a line has that, so the old file is added to
        // until there is room for a new one.
        match replace(&path, &text, false) {
            Err(error) if ballast::is_full(&error) => {
                tracing::warn!(%error, path = %path.display(), "not written anew, and goes on to grow");
            }
            done => {
                done.with_context(|| path.display().to_string())?;
                self.tombstones = open_append(&path)?;
            }
        }
        self.tombstone_lines = all.len();
        Ok(())
    }

    fn write_node(&mut self) -> anyhow::Result<()> {
        let path = self.directory.path().join("node.json");
        let text = serde_json::to_vec_pretty(&self.node)?;
        self.ballast
            .write(|| replace(&path, &text, true))
            .with_context(|| path.display().to_string())
    }
}

/// The part of the store that the executor thread uses: attempts' directories.
#[derive(Debug)]
pub struct AttemptStore {
    directory: DataDir,
    retention: Duration,
    /// Attempts that are acknowledged and age, by instance.
    kept: BTreeMap<(OwnerId, InstanceId), Vec<Kept>>,
    /// Directories with nothing in them but a record and an exit that are over, and an empty working
    /// directory: short tasks would otherwise spend more on making and removing them than on their
    /// process.
    spares: Vec<PathBuf>,
    next_spare: u64,
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
            spares: Vec::new(),
            next_spare: 0,
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
        let spare = is_process(job).then(|| self.spares.pop()).flatten();
        let reused = spare.is_some_and(|spare| fs::rename(spare, &path).is_ok());
        if !reused {
            match fs::DirBuilder::new().mode(0o711).create(&path) {
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
            if left == Left::Nothing && self.spares.len() < SPARES {
                let spare = self
                    .directory
                    .instances()
                    .join(format!("spare.{}", self.next_spare));
                self.next_spare += 1;
                if fs::rename(&path, &spare).is_ok() {
                    self.spares.push(spare);
                    return true;
                }
            }
            self.discard(&path);
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
    let seen = each_name(path, |name| {
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
    });
    if seen.is_ok() { left } else { Left::Rest }
}

/// Whether it is a directory with nothing in it.
fn is_empty(path: &Path) -> bool {
    let mut empty = true;
    let seen = each_name(path, |_| {
        empty = false;
        false
    });
    empty && seen.is_ok()
}

/// Names in a directory while they are wanted. It is read into the stack: an attempt's takes one
/// call, and the standard library's 32 KiB from the heap cost more than that.
fn each_name(path: &Path, mut wants_more: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); NAMES_BYTES];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." && !wants_more(name) {
            break;
        }
    }
    Ok(())
}

fn is_process(job: &Job) -> bool {
    matches!(job.body.task, Task::Exec(_))
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

fn make_directory(path: &Path, mode: u32) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("can't make {}", path.display()))
}

fn lock(directory: &DataDir) -> anyhow::Result<File> {
    let path = directory.path().join("lock");
    // Whoever can open it, if only to read, can hold it, and so keep every launcher from its start.
    let private = 0o600;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(private)
        .open(&path)
        .with_context(|| format!("can't open {}", path.display()))?;
    file.set_permissions(fs::Permissions::from_mode(private))
        .with_context(|| format!("can't make {} private", path.display()))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!("another launcher uses {}", directory.path().display())
        }
        Err(error) => Err(error).with_context(|| format!("can't lock {}", path.display())),
    }
}

fn read_node(bytes: &[u8]) -> anyhow::Result<NodeFile> {
    let node: NodeFile = serde_json::from_slice(bytes)?;
    if node.format != NODE_FORMAT {
        bail!("format {}; accepted: {NODE_FORMAT}", node.format);
    }
    Ok(node)
}

/// Records of attempts that are not acknowledged. One that can't be read is put aside, in words.
fn read_jobs(directory: &DataDir) -> anyhow::Result<Vec<Arc<Job>>> {
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

fn read_tombstones(path: &Path) -> anyhow::Result<Vec<Tombstone>> {
    match fs::read(path) {
        // The last line may have been cut by a crash.
        Ok(bytes) => Ok(bytes
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn open_append(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("can't open {}", path.display()))
}

/// All of it or nothing: a half would spoil the next line too.
fn append(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    let before = file.metadata()?.len();
    file.write_all(bytes).inspect_err(|_| {
        // What remains is not read as a line.
        let _ = file.set_len(before);
    })
}

fn write_new(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    if sync { file.sync_all() } else { Ok(()) }
}

/// Replaces a file as a whole.
fn replace(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let written = write_new(&fresh, bytes, sync).and_then(|()| fs::rename(&fresh, path));
    if let Err(error) = written {
        // A half of it would take room where there is none.
        let _ = fs::remove_file(&fresh);
        return Err(error);
    }
    if sync && let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pronto_payloads::ids::{Attempt, Term};

    #[test]
    fn what_is_kept_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = DataDir::new(directory.path().join("node"));
        let stone = Tombstone {
            owner: OwnerId([1; 16]),
            instance: InstanceId([2; 16]),
            attempt: Attempt(3),
            at: crate::moment::Moment(4),
            end: Some(pronto_payloads::instance::End {
                cause: pronto_payloads::instance::EndCause::Rejected,
                message: "no disk".into(),
            }),
        };
        let uuid = {
            let (mut store, restored) = NodeStore::open(data_dir.clone()).unwrap();
            assert!(restored.jobs.is_empty());
            assert_eq!(store.next_session_epoch().unwrap(), SessionEpoch(1));
            store.keep_tombstone(&stone).unwrap();
            store
                .keep_node(NodeRecord {
                    term: Term(9),
                    ..NodeRecord::default()
                })
                .unwrap();
            let error = NodeStore::open(data_dir.clone()).unwrap_err().to_string();
            assert!(error.starts_with("another launcher uses"), "{error}");
            store.node_uuid()
        };
        let (mut store, restored) = NodeStore::open(data_dir).unwrap();
        assert_eq!(store.node_uuid(), uuid);
        assert_eq!(store.next_session_epoch().unwrap(), SessionEpoch(2));
        assert_eq!(
            (restored.node.term, restored.tombstones),
            (Term(9), vec![stone])
        );
    }

    #[test]
    fn tombstones_are_kept_where_there_is_no_room_to_write_them_anew() {
        let place = tempfile::tempdir().unwrap();
        let data_dir = DataDir::new(place.path().to_owned());
        let stone = |instance| Tombstone {
            owner: OwnerId([1; 16]),
            instance: InstanceId([instance; 16]),
            attempt: Attempt(1),
            at: crate::moment::Moment(4),
            end: None,
        };
        {
            let (mut store, _) = NodeStore::open(data_dir.clone()).unwrap();
            store.keep_tombstone(&stone(1)).unwrap();
            store.tombstone_lines = TOMBSTONE_LINES;
            std::os::unix::fs::symlink("/dev/full", place.path().join("tombstones.new")).unwrap();
            store.keep_tombstone(&stone(2)).unwrap();
            assert!(store.tombstone_lines < TOMBSTONE_LINES, "not at each line");
            // Once there is room.
            store.tombstone_lines = TOMBSTONE_LINES;
            store.keep_tombstone(&stone(3)).unwrap();
        }
        let (_, restored) = NodeStore::open(data_dir).unwrap();
        assert_eq!(restored.tombstones, [1, 2, 3].map(stone));
    }

    #[test]
    fn nobody_else_can_hold_the_lock() {
        let place = tempfile::tempdir().unwrap();
        let data_dir = DataDir::new(place.path().join("node"));
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        let lock = data_dir.path().join("lock");
        drop(NodeStore::open(data_dir.clone()).unwrap());
        assert_eq!((mode(data_dir.path()), mode(&lock)), (0o711, 0o600));
        // As an earlier release left it.
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o644)).unwrap();
        drop(NodeStore::open(data_dir.clone()).unwrap());
        assert_eq!(mode(&lock), 0o600);
    }

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
