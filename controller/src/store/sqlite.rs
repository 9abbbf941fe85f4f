//! The store on SQLite: write-ahead log, `synchronous=FULL`, one writer, one transaction for all
//! batches that are waiting.

use super::rows::{AmendRow, EndRow, EventRow, Snapshot, StopIntent, SubmissionRow, Times, Write};
use super::{Batch, Committed, Past, Store, StoreError, load, schema};
use crate::api::types::{InstanceState, Severity, UsageView};
use crate::numbers::IdScheme;
use pronto_payloads::hello::Mode;
use pronto_payloads::ids::{InstanceId, OwnerId};
use rusqlite::{Connection, ErrorCode, Transaction, params};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The database's file in the data directory.
pub const DATABASE: &str = "controller.db";
const LOCK: &str = "controller.lock";
const BALLAST: &str = "ballast";
/// Given up when the disk is full, so that what has ended can still be written down: room for
/// some tens of thousands of ends.
const BALLAST_BYTES: u64 = 8 << 20;
/// While even that does not help, the writer tries again this often.
const FULL_RETRY: Duration = Duration::from_secs(1);
/// Rows that one round of retention removes: it must not hold a commit up for long.
const PURGE_SUBMISSIONS: u32 = 256;
const PURGE_EVENTS: u32 = 2048;

/// What opening a store needs from outside of it.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// For a new store.
    pub owner: OwnerId,
    /// For a new store: random.
    pub id_key: u64,
    pub now_unix_ms: u64,
    pub request_window_ms: u64,
}

/// The writer of a data directory's database; holds its lock.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
    ids: IdScheme,
    data_dir: PathBuf,
    full: bool,
    _lock: File,
}

/// Takes the lock of a data directory; it goes with the process.
pub(crate) fn lock(data_dir: &Path) -> Result<File, StoreError> {
    let path = data_dir.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| StoreError::Io {
            what: path.display().to_string(),
            source,
        })?;
    file.try_lock().map_err(|error| match error {
        std::fs::TryLockError::WouldBlock => StoreError::Locked {
            path: data_dir.display().to_string(),
        },
        std::fs::TryLockError::Error(source) => StoreError::Io {
            what: path.display().to_string(),
            source,
        },
    })?;
    Ok(file)
}

impl SqliteStore {
    /// Opens or makes the store of a data directory, raises its epoch, and reads what a planner
    /// starts from.
    ///
    /// # Errors
    /// If it is held by another controller, damaged, of a newer schema, or can't be written.
    pub fn open(data_dir: &Path, options: &OpenOptions) -> Result<(Self, Snapshot), StoreError> {
        // Specs are in it with their environments, which are nobody else's on this host.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(data_dir)
            .map_err(|source| StoreError::Io {
                what: data_dir.display().to_string(),
                source,
            })?;
        let lock = lock(data_dir)?;
        let path = data_dir.join(DATABASE);
        let mut connection = Connection::open(&path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        configure(&connection)?;
        let verdict: String =
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(StoreError::Damaged(verdict));
        }
        schema::migrate(&mut connection, &path, schema::MIGRATIONS)?;
        load::initialise(&connection, options)?;
        let snapshot = load::snapshot(&connection, options)?;
        let mut store = Self {
            connection,
            ids: IdScheme::new(snapshot.meta.id_key),
            data_dir: data_dir.to_owned(),
            full: false,
            _lock: lock,
        };
        store.put_ballast();
        Ok((store, snapshot))
    }

    /// Removes what is older than these times, a bounded part at a time. Says whether there may
    /// be more.
    ///
    /// # Errors
    /// If the database fails.
    pub fn purge(
        &mut self,
        instances_before_unix_ms: u64,
        events_before_unix_ms: u64,
    ) -> Result<bool, StoreError> {
        let transaction = self.connection.transaction()?;
        let old: Vec<(i64, i64, i64, i64)> = transaction
            .prepare_cached(
                // The newest row stays: the next number follows from it.
                "SELECT first_seq, count, spec, unix_ms FROM submissions WHERE done = 1 AND unix_ms < ?1
                 AND first_seq < (SELECT max(first_seq) FROM submissions)
                 AND NOT EXISTS (SELECT 1 FROM ends WHERE seq >= first_seq
                                 AND seq < first_seq + count AND ended_unix_ms >= ?1)
                 ORDER BY unix_ms LIMIT ?2",
            )?
            .query_map(
                params![signed(instances_before_unix_ms), PURGE_SUBMISSIONS],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
            )?
            .collect::<Result<_, _>>()?;
        for (first, count, ..) in &old {
            transaction
                .prepare_cached("DELETE FROM ends WHERE seq >= ?1 AND seq < ?1 + ?2")?
                .execute(params![first, count])?;
            transaction
                .prepare_cached("DELETE FROM submissions WHERE first_seq = ?1")?
                .execute([first])?;
        }
        let specs: BTreeSet<i64> = old.iter().map(|(_, _, spec, _)| *spec).collect();
        for spec in specs {
            transaction
                .prepare_cached(
                    "DELETE FROM specs WHERE id = ?1
                     AND NOT EXISTS (SELECT 1 FROM submissions WHERE spec = ?1)",
                )?
                .execute([spec])?;
        }
        if let Some((.., newest)) = old.last() {
            transaction
                .prepare_cached(
                    "INSERT INTO meta (key, value) VALUES (?1, ?2)
                     ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)",
                )?
                .execute(params![load::PURGED_UNIX_MS, newest])?;
        }
        let events = transaction
            .prepare_cached(
                // Of the first ones, so that no table is walked: numbers rise with time.
                "DELETE FROM events WHERE number IN (
                     SELECT number FROM events WHERE number < (SELECT max(number) FROM events)
                     ORDER BY number LIMIT ?2) AND unix_ms < ?1",
            )?
            .execute(params![signed(events_before_unix_ms), PURGE_EVENTS])?;
        transaction.commit()?;
        Ok(old.len() == PURGE_SUBMISSIONS as usize || events == PURGE_EVENTS as usize)
    }

    /// Lets the database grow by so many pages and no further, as a full disk would: for tests.
    ///
    /// # Errors
    /// If the database fails.
    pub fn limit_pages(&self, more: u32) -> Result<(), StoreError> {
        let pages: u32 = self
            .connection
            .pragma_query_value(None, "page_count", |row| row.get(0))?;
        let limit = pages.saturating_add(more);
        self.connection
            .pragma_update_and_check(None, "max_page_count", limit, |_| Ok(()))?;
        Ok(())
    }

    fn try_commit(&mut self, batches: &[Batch], admissions: bool) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        for write in batches.iter().flat_map(|batch| &batch.writes) {
            if admissions || !matches!(write, Write::Submission(_)) {
                apply(&transaction, write)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn put_ballast(&mut self) {
        let path = self.data_dir.join(BALLAST);
        let there = std::fs::metadata(&path).is_ok_and(|meta| meta.len() >= BALLAST_BYTES);
        if there {
            return;
        }
        // Zeroes are written, not a hole, so that the room is really held. Failing is no fault:
        // it is tried again.
        let written = File::create(&path).and_then(|mut file| {
            let zeroes = vec![0_u8; 1 << 20];
            for _ in 0..BALLAST_BYTES >> 20 {
                std::io::Write::write_all(&mut file, &zeroes)?;
            }
            file.sync_all()
        });
        if written.is_err() {
            let _ = std::fs::remove_file(&path);
        }
    }
}

fn configure(connection: &Connection) -> Result<(), StoreError> {
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| {
        row.get::<_, String>(0).map(|_| ())
    })?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // 16 MiB of log before it is folded in: fewer, larger checkpoints.
    connection.pragma_update(None, "wal_autocheckpoint", 4096)?;
    connection.pragma_update(None, "cache_size", -32_768)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn is_full(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Sqlite(rusqlite::Error::SqliteFailure(failure, _))
            if failure.code == ErrorCode::DiskFull
    )
}

impl Store for SqliteStore {
    fn commit(&mut self, batches: &[Batch]) -> Result<Committed, StoreError> {
        match self.try_commit(batches, true) {
            Ok(()) => {
                if std::mem::take(&mut self.full) {
                    self.put_ballast();
                }
                return Ok(Committed {
                    admissions_refused: false,
                });
            }
            Err(error) if is_full(&error) => {}
            Err(error) => return Err(error),
        }
        self.full = true;
        let _ = std::fs::remove_file(self.data_dir.join(BALLAST));
        loop {
            match self.try_commit(batches, false) {
                Ok(()) => {
                    return Ok(Committed {
                        admissions_refused: true,
                    });
                }
                Err(error) if is_full(&error) => std::thread::sleep(FULL_RETRY),
                Err(error) => return Err(error),
            }
        }
    }

    fn lookup(&mut self, id: InstanceId) -> Result<Past, StoreError> {
        load::past(&self.connection, self.ids, id)
    }
}

/// The numbers of an end's row that only people read, in one blob.
pub(crate) fn pack_numbers(times: &Times, usage: Option<&UsageView>) -> Vec<u8> {
    let mut out = Vec::with_capacity(48);
    for value in [
        times.admitted_ns,
        times.committed_ns,
        times.dispatched_ns,
        times.placed_ns,
        times.received_ns,
        times.started_ns,
        times.ended_ns,
        times.reported_ns,
    ] {
        put_varint(&mut out, value.map_or(0, |value| value.saturating_add(1)));
    }
    if let Some(usage) = usage {
        for value in [
            usage.cpu_ms,
            u64::from(usage.memory_mib),
            u64::from(usage.memory_peak_mib),
            usage.read_bytes,
            usage.written_bytes,
            u64::from(usage.pids),
        ] {
            put_varint(&mut out, value);
        }
    }
    out
}

pub(crate) fn unpack_numbers(bytes: &[u8]) -> (Times, Option<UsageView>) {
    let mut rest = bytes;
    let mut optional = || take_varint(&mut rest).and_then(|value| value.checked_sub(1));
    let times = Times {
        admitted_ns: optional(),
        committed_ns: optional(),
        dispatched_ns: optional(),
        placed_ns: optional(),
        received_ns: optional(),
        started_ns: optional(),
        ended_ns: optional(),
        reported_ns: optional(),
    };
    let mut number = || take_varint(&mut rest);
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let usage = (|| {
        Some(UsageView {
            cpu_ms: number()?,
            memory_mib: narrow(number()?),
            memory_peak_mib: narrow(number()?),
            read_bytes: number()?,
            written_bytes: number()?,
            pids: narrow(number()?),
        })
    })();
    (times, usage)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or(0);
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// SQLite's integers are signed; ours fit, and bit patterns come back unchanged.
pub(crate) const fn signed(value: u64) -> i64 {
    value.cast_signed()
}

pub(crate) const fn unsigned(value: i64) -> u64 {
    value.cast_unsigned()
}

/// A tenant's row but its name, as JSON: it is small, and grows.
#[derive(Serialize, Deserialize)]
pub(crate) struct TenantJson {
    pub(crate) runtimes: Vec<crate::api::types::RuntimeName>,
    pub(crate) privileged: bool,
    pub(crate) submit_rate_per_s: Option<u32>,
    pub(crate) limits: crate::api::types::QuotaLimits,
    pub(crate) created_unix_ms: u64,
}

fn json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Damaged(error.to_string()))
}

fn apply(transaction: &Transaction<'_>, write: &Write) -> Result<(), StoreError> {
    match write {
        Write::Submission(row) => put_submission(transaction, row)?,
        Write::Spec(row) => {
            transaction
                .prepare_cached(
                    "INSERT INTO specs (id, tenant, workload, spec)
                     VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![
                    row.id,
                    &*row.tenant,
                    row.workload.as_deref(),
                    json(&*row.spec)?
                ])?;
        }
        Write::Amend(row) => put_amend(transaction, row)?,
        Write::End(row) => put_end(transaction, row)?,
        Write::SubmissionDone(first) => set_done(transaction, *first, true)?,
        Write::Forget(seq) => {
            transaction
                .prepare_cached("UPDATE ends SET deleted = 1, message = '' WHERE seq = ?1")?
                .execute([signed(*seq)])?;
        }
        Write::Reopen { amend, first_seq } => {
            transaction
                .prepare_cached("DELETE FROM ends WHERE seq = ?1")?
                .execute([signed(amend.seq)])?;
            put_amend(transaction, amend)?;
            set_done(transaction, *first_seq, false)?;
        }
        Write::Tenant(row) => {
            let value = TenantJson {
                runtimes: row.runtimes.clone(),
                privileged: row.privileged,
                submit_rate_per_s: row.submit_rate_per_s,
                limits: row.limits,
                created_unix_ms: row.created_unix_ms,
            };
            transaction
                .prepare_cached("INSERT OR REPLACE INTO tenants (name, row) VALUES (?1, ?2)")?
                .execute(params![&*row.name, json(&value)?])?;
        }
        Write::TenantDeleted(name) => {
            transaction.execute("DELETE FROM tenants WHERE name = ?1", [&**name])?;
        }
        Write::Workload(row) => {
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO workloads
                     (tenant, name, spec, revision, created_unix_ms, updated_unix_ms)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![
                    &*row.tenant,
                    &*row.name,
                    json(&*row.spec)?,
                    signed(row.revision),
                    signed(row.created_unix_ms),
                    signed(row.updated_unix_ms)
                ])?;
        }
        Write::WorkloadDeleted { tenant, name } => {
            transaction.execute(
                "DELETE FROM workloads WHERE tenant = ?1 AND name = ?2",
                [&**tenant, &**name],
            )?;
        }
        Write::Node(row) => {
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO nodes
                     (name, uuid, boot_id, wish, drain_until_unix_ms, lost)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![
                    &*row.name,
                    row.uuid.0,
                    row.boot_id.0,
                    match row.wish {
                        None => 0,
                        Some(Mode::Maintenance) => 1,
                        Some(Mode::Ready) => 2,
                    },
                    row.drain_until_unix_ms.map(signed),
                    row.lost
                ])?;
        }
        Write::NodeDeleted(name) => {
            transaction.execute("DELETE FROM nodes WHERE name = ?1", [&**name])?;
        }
        Write::Event(row) => put_event(transaction, row)?,
        Write::Term(term) => put_meta(transaction, "term", signed(*term))?,
        Write::Epoch(epoch) => {
            put_meta(transaction, "epoch", signed(*epoch))?;
            put_meta(transaction, "restored", 0)?;
        }
    }
    Ok(())
}

pub(crate) fn put_meta(
    connection: &Connection,
    key: &str,
    value: i64,
) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
        .execute(params![key, value])
        .map(|_| ())
}

fn put_submission(
    transaction: &Transaction<'_>,
    row: &SubmissionRow,
) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached(
            "INSERT INTO submissions (first_seq, count, request, digest, tenant, spec, name,
             unix_ms, nonce, admitted_ns) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            signed(row.first_seq),
            row.count,
            row.request.as_bytes(),
            signed(row.digest),
            &*row.tenant,
            row.spec,
            row.name.as_deref(),
            signed(row.unix_ms),
            signed(row.nonce),
            signed(row.admitted_ns)
        ])
        .map(|_| ())
}

fn set_done(transaction: &Transaction<'_>, first: u64, done: bool) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached("UPDATE submissions SET done = ?2 WHERE first_seq = ?1")?
        .execute(params![signed(first), done])
        .map(|_| ())
}

fn put_amend(transaction: &Transaction<'_>, row: &AmendRow) -> Result<(), rusqlite::Error> {
    let stop: Option<StopIntent> = row.stop;
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO amends
             (seq, attempt, restarts, reschedules, stop_grace_ms, stop_then, highest_attempt,
              settled_attempt)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            signed(row.seq),
            row.attempt,
            row.restarts,
            row.reschedules,
            stop.and_then(|stop| stop.grace_ms).map(signed),
            stop.map(|stop| stop.then as u8),
            row.highest_attempt,
            row.settled_attempt
        ])
        .map(|_| ())
}

fn put_end(transaction: &Transaction<'_>, row: &EndRow) -> Result<(), StoreError> {
    let cause = json(&row.cause)?;
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO ends (seq, state, attempt, restarts, reschedules, node, cause,
             code, signal, message, ended_unix_ms, numbers, deleted, highest_attempt)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        )?
        .execute(params![
            signed(row.seq),
            row.state as u8,
            row.attempt,
            row.restarts,
            row.reschedules,
            row.node.as_deref(),
            cause.trim_matches('"'),
            row.code,
            row.signal,
            row.message,
            signed(row.ended_unix_ms),
            pack_numbers(&row.times, row.usage.as_ref()),
            row.deleted,
            row.highest_attempt
        ])?;
    if row.amended {
        transaction
            .prepare_cached("DELETE FROM amends WHERE seq = ?1")?
            .execute([signed(row.seq)])?;
    }
    Ok(())
}

fn put_event(transaction: &Transaction<'_>, row: &EventRow) -> Result<(), rusqlite::Error> {
    let severity = match row.severity {
        Severity::Info => 0,
        Severity::Warning => 1,
        Severity::Alarm => 2,
    };
    transaction
        .prepare_cached(
            "INSERT INTO events (number, unix_ms, kind, severity, actor, source, tenant, instance,
             node, message) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            signed(row.number),
            signed(row.unix_ms),
            row.kind,
            severity,
            row.actor,
            row.source,
            row.tenant.as_deref(),
            row.instance.map(|id| id.0),
            row.node.as_deref(),
            row.message
        ])
        .map(|_| ())
}

pub(crate) fn state_of(code: u8) -> Option<InstanceState> {
    InstanceState::ALL.get(usize::from(code)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_from_their_blob() {
        let times = Times {
            admitted_ns: Some(0),
            committed_ns: Some(8_000_000),
            ended_ns: Some(u64::MAX - 1),
            ..Times::default()
        };
        let usage = UsageView {
            cpu_ms: 1234,
            memory_mib: 5,
            memory_peak_mib: 6,
            read_bytes: u64::MAX,
            written_bytes: 0,
            pids: 3,
        };
        assert_eq!(
            unpack_numbers(&pack_numbers(&times, Some(&usage))),
            (times, Some(usage))
        );
        assert_eq!(unpack_numbers(&pack_numbers(&times, None)), (times, None));
        assert_eq!(unpack_numbers(&[]), (Times::default(), None));
    }
}
