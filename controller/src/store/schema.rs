//! The tables, and how an older file becomes a current one.
//!
//! `PRAGMA user_version` holds the schema's version. Migrations run one after the other, each in a
//! transaction, after a backup of the file beside it (`controller.db.schema-N`). A file of a newer
//! schema is refused: a downgrade means that backup.

use super::StoreError;
use rusqlite::Connection;
use std::path::Path;

/// What brings a file from the version of its index to the next.
pub(crate) const MIGRATIONS: &[&str] = &[
    // 0 to 1: the first schema.
    "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE specs (
        id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, workload TEXT, spec TEXT NOT NULL);
    -- One row for each admission, however many instances it has.
    CREATE TABLE submissions (
        first_seq INTEGER PRIMARY KEY, count INTEGER NOT NULL, request BLOB NOT NULL,
        digest INTEGER NOT NULL, tenant TEXT NOT NULL, spec INTEGER NOT NULL, name TEXT,
        unix_ms INTEGER NOT NULL, nonce INTEGER NOT NULL, admitted_ns INTEGER NOT NULL,
        done INTEGER NOT NULL DEFAULT 0);
    CREATE INDEX submissions_by_request ON submissions (request);
    CREATE INDEX submissions_by_tenant ON submissions (tenant, first_seq);
    CREATE TABLE amends (
        seq INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, restarts INTEGER NOT NULL,
        reschedules INTEGER NOT NULL, stop_grace_ms INTEGER, stop_then INTEGER);
    CREATE TABLE ends (
        seq INTEGER PRIMARY KEY, state INTEGER NOT NULL, attempt INTEGER NOT NULL,
        restarts INTEGER NOT NULL, reschedules INTEGER NOT NULL, node TEXT,
        cause TEXT NOT NULL, code INTEGER, signal INTEGER, message TEXT NOT NULL,
        ended_unix_ms INTEGER NOT NULL, numbers BLOB NOT NULL, deleted INTEGER NOT NULL);
    CREATE TABLE tenants (name TEXT PRIMARY KEY, row TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE workloads (
        tenant TEXT NOT NULL, name TEXT NOT NULL, spec TEXT NOT NULL, revision INTEGER NOT NULL,
        created_unix_ms INTEGER NOT NULL, updated_unix_ms INTEGER NOT NULL,
        PRIMARY KEY (tenant, name)) WITHOUT ROWID;
    CREATE TABLE nodes (
        name TEXT PRIMARY KEY, uuid BLOB NOT NULL, boot_id BLOB NOT NULL,
        maintenance INTEGER NOT NULL, drain_until_unix_ms INTEGER, lost INTEGER NOT NULL)
        WITHOUT ROWID;
    CREATE TABLE events (
        number INTEGER PRIMARY KEY, unix_ms INTEGER NOT NULL, kind TEXT NOT NULL,
        severity INTEGER NOT NULL, actor TEXT NOT NULL, source TEXT NOT NULL, tenant TEXT,
        instance BLOB, node TEXT, message TEXT NOT NULL);
    ",
    // 1 to 2: what an administrator wishes of a node: nothing (0), maintenance (1), that it be ready.
    "ALTER TABLE nodes RENAME COLUMN maintenance TO wish;",
    // 2 to 3: the highest number that an attempt was given, where an earlier one was taken back; indexes.
    "ALTER TABLE amends ADD COLUMN highest_attempt INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE ends ADD COLUMN highest_attempt INTEGER NOT NULL DEFAULT 0;
     CREATE INDEX submissions_by_spec ON submissions (spec);
     -- What retention looks for, and what an instance shows.
     CREATE INDEX submissions_by_age ON submissions (unix_ms) WHERE done = 1;
     CREATE INDEX events_by_instance ON events (instance, number) WHERE instance IS NOT NULL;",
    // 3 to 4: the attempt that certainly came to a node.
    "ALTER TABLE amends ADD COLUMN settled_attempt INTEGER NOT NULL DEFAULT 0;",
];

/// The schema that this build writes.
#[expect(clippy::cast_possible_truncation, reason = "a handful of migrations")]
pub const SCHEMA_VERSION: u32 = MIGRATIONS.len() as u32;

pub(crate) fn version(connection: &Connection) -> Result<u32, StoreError> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// Brings the file up to date; says whether anything was done.
pub(crate) fn migrate(
    connection: &mut Connection,
    path: &Path,
    migrations: &[&str],
) -> Result<bool, StoreError> {
    let found = version(connection)?;
    let known = u32::try_from(migrations.len()).unwrap_or(u32::MAX);
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    if found == known {
        return Ok(false);
    }
    if found > 0 {
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".schema-{found}"));
        super::check::copy(connection, Path::new(&aside))?;
    }
    for (index, migration) in migrations.iter().enumerate().skip(found as usize) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(migration)?;
        let reached = u32::try_from(index + 1).unwrap_or(u32::MAX);
        transaction.pragma_update(None, "user_version", reached)?;
        transaction.commit()?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_makes_a_backup_first_and_a_newer_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        let mut connection = Connection::open(&path).unwrap();
        let first = "CREATE TABLE a (x INTEGER); INSERT INTO a VALUES (7);";
        assert!(migrate(&mut connection, &path, &[first]).unwrap());
        assert!(!migrate(&mut connection, &path, &[first]).unwrap());
        let second = "ALTER TABLE a ADD COLUMN y INTEGER;";
        assert!(migrate(&mut connection, &path, &[first, second]).unwrap());
        assert_eq!(version(&connection).unwrap(), 2);
        let backup = Connection::open(directory.path().join("a.db.schema-1")).unwrap();
        assert_eq!(version(&backup).unwrap(), 1);
        let x: i64 = backup
            .query_row("SELECT x FROM a", [], |row| row.get(0))
            .unwrap();
        assert_eq!(x, 7);
        let refusal = migrate(&mut connection, &path, &[first]).unwrap_err();
        assert!(matches!(refusal, StoreError::Newer { found: 2, known: 1 }));
    }
}
