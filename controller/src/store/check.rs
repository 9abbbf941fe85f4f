//! Looking after a store: integrity check, backup while it runs, restore.

use super::sqlite::{DATABASE, lock, put_meta, signed};
use super::{SCHEMA_VERSION, StoreError, load, schema};
use crate::shell::unix_ms;
use rusqlite::backup::Backup;
use rusqlite::{Connection, OpenFlags};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Pages copied at a time by an online backup: the writer waits for one such step at most.
const BACKUP_PAGES: std::ffi::c_int = 1024;

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> StoreError {
    let what = what.into();
    move |source| StoreError::Io { what, source }
}

fn read_only(path: &Path) -> Result<Connection, StoreError> {
    if !path.exists() {
        return Err(StoreError::Io {
            what: path.display().to_string(),
            source: std::io::ErrorKind::NotFound.into(),
        });
    }
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(Duration::from_secs(10))?;
    Ok(connection)
}

/// Copies a whole database, consistently, also while it is written to.
pub(crate) fn copy(from: &Connection, to: &Path) -> Result<(), StoreError> {
    // It holds what specs hold in their environment.
    let mut options = std::fs::File::options();
    let created = options.write(true).create(true).mode(0o600).open(to);
    created.map_err(io(to.display().to_string()))?;
    let mut target = Connection::open(to)?;
    // One snapshot for all steps: without it each commit between two would begin the copy anew.
    let snapshot = from.unchecked_transaction()?;
    snapshot.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    let backup = Backup::new(&snapshot, &mut target)?;
    backup.run_to_completion(BACKUP_PAGES, Duration::ZERO, None)?;
    drop(backup);
    drop(snapshot);
    // One file, whole by itself: without a log beside it.
    target.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))?;
    target
        .close()
        .map_err(|(_, error)| StoreError::from(error))?;
    sync(to)
}

fn sync(path: &Path) -> Result<(), StoreError> {
    let what = || format!("synchronising {}", path.display());
    let file = std::fs::File::open(path).map_err(io(what()))?;
    file.sync_all().map_err(io(what()))
}

/// Checks the database of a data directory; the controller may run.
///
/// # Errors
/// What is wrong with it.
pub fn check(data_dir: &Path) -> Result<(), StoreError> {
    check_file(&data_dir.join(DATABASE))
}

fn check_file(path: &Path) -> Result<(), StoreError> {
    let connection = read_only(path)?;
    let found = schema::version(&connection)?;
    if found > SCHEMA_VERSION {
        return Err(StoreError::Newer {
            found,
            known: SCHEMA_VERSION,
        });
    }
    let verdict: String =
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(StoreError::Damaged(verdict));
    }
    if found == 0 {
        return Err(StoreError::Damaged(format!(
            "{} is no controller's database",
            path.display()
        )));
    }
    let orphans: i64 = connection.query_row(
        "SELECT count(*) FROM submissions WHERE spec NOT IN (SELECT id FROM specs)",
        [],
        |row| row.get(0),
    )?;
    if orphans > 0 {
        return Err(StoreError::Damaged(format!(
            "{orphans} submissions without their spec"
        )));
    }
    Ok(())
}

/// Writes a consistent copy of a data directory's database to `file`; the controller may run.
///
/// # Errors
/// If the database can't be read, `file` exists or can't be written.
pub fn backup(data_dir: &Path, file: &Path) -> Result<(), StoreError> {
    if file.exists() {
        return Err(StoreError::Io {
            what: format!("{} is not overwritten", file.display()),
            source: std::io::ErrorKind::AlreadyExists.into(),
        });
    }
    let connection = read_only(&data_dir.join(DATABASE))?;
    copy(&connection, file)?;
    check_file(file)
}

/// Puts a backup in the place of a data directory's database, which is moved aside: gives where to, if
/// there was one. The controller must not run; at its next session it raises its epoch above all that launchers
/// report, and quarantines what the backup does not know.
///
/// # Errors
/// If the backup is damaged, or the directory is in use or can't be written.
pub fn restore_backup(data_dir: &Path, file: &Path) -> Result<Option<PathBuf>, StoreError> {
    check_file(file)?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .map_err(io(data_dir.display().to_string()))?;
    let _lock = lock(data_dir)?;
    let path = data_dir.join(DATABASE);
    let fresh = data_dir.join("controller.db.restoring");
    if fresh.exists() {
        std::fs::remove_file(&fresh).map_err(io(fresh.display().to_string()))?;
    }
    copy(&read_only(file)?, &fresh)?;
    let connection = Connection::open(&fresh)?;
    let mut meta = load::meta(&connection)?;
    meta.leap(unix_ms());
    let numbers = [
        ("restored", u64::from(meta.restored)),
        ("epoch", meta.epoch),
        ("term", meta.term),
        ("leap_seq", meta.leap_seq),
        ("leap_attempt", u64::from(meta.leap_attempt)),
    ];
    for (key, value) in numbers {
        put_meta(&connection, key, signed(value))?;
    }
    connection
        .close()
        .map_err(|(_, error)| StoreError::from(error))?;
    sync(&fresh)?;
    let aside = (1_u32..)
        .map(|n| data_dir.join(format!("controller.db.replaced-{n}")))
        .find(|aside| !aside.exists())
        .filter(|_| path.exists());
    for ending in ["", "-wal", "-shm"] {
        let with = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let old = with(&path);
        if let (true, Some(aside)) = (old.exists(), &aside) {
            std::fs::rename(&old, with(aside)).map_err(io(old.display().to_string()))?;
        }
    }
    std::fs::rename(&fresh, &path).map_err(io(path.display().to_string()))?;
    sync(data_dir)?;
    Ok(aside)
}
