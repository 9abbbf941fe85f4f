//! The node's own small files, synced where they must hold across boots.

use super::attempts::read_jobs;
use super::ballast::{self, Ballast};
use crate::data_dir::DataDir;
use crate::supervisor::tombstones::{TOMBSTONES, Tombstone};
use crate::supervisor::{NodeRecord, Restored};
use anyhow::{Context, bail};
use pronto_payloads::ids::{NodeUuid, SessionEpoch};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The format of `node.json`.
const NODE_FORMAT: u32 = 1;

/// Tombstones appended before the file is written anew, without those that are obsolete.
const TOMBSTONE_LINES: usize = 2 * TOMBSTONES;

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
    use pronto_payloads::ids::{Attempt, InstanceId, OwnerId, Term};

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
}
