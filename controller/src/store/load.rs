//! Reading a store back: what a planner starts from, and single rows of the past.

use super::rows::{
    AfterStop, AmendRow, EndRow, Meta, NodeRow, Snapshot, SpecRow, StopIntent, StoredSubmission,
    SubmissionRow, TenantRow, WorkloadRow,
};
use super::sqlite::{
    OpenOptions, TenantJson, put_meta, signed, state_of, unpack_numbers, unsigned,
};
use super::{Past, StoreError};
use crate::api::types::{InstanceState, Spec};
use crate::numbers::{IdScheme, admitted_unix_ms};
use pronto_payloads::hello::Mode;
use pronto_payloads::ids::{BootId, InstanceId, NodeUuid, OwnerId};
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::sync::Arc;
use uuid::Uuid;

fn damaged(what: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged(what.to_string())
}

/// Gives a new store its identity, and every store its next epoch.
pub(crate) fn initialise(connection: &Connection, options: &OpenOptions) -> Result<(), StoreError> {
    let transaction = connection.unchecked_transaction()?;
    let known: Option<Vec<u8>> = transaction
        .query_row("SELECT value FROM meta WHERE key = 'owner'", [], |row| {
            row.get(0)
        })
        .optional()?;
    if known.is_none() {
        transaction.execute(
            "INSERT INTO meta (key, value) VALUES ('owner', ?1)",
            [options.owner.0],
        )?;
        put_meta(&transaction, "id_key", signed(options.id_key))?;
        put_meta(&transaction, "epoch", 0)?;
        put_meta(&transaction, "term", 0)?;
        put_meta(&transaction, "restored", 0)?;
    }
    transaction.execute("UPDATE meta SET value = value + 1 WHERE key = 'epoch'", [])?;
    transaction.commit()?;
    Ok(())
}

pub(super) fn meta(connection: &Connection) -> Result<Meta, StoreError> {
    let number_if_there = |key: &str| -> Result<Option<u64>, StoreError> {
        connection
            .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| {
                row.get::<_, i64>(0)
            })
            .optional()
            .map(|value| value.map(unsigned))
            .map_err(|error| damaged(format!("meta {key}: {error}")))
    };
    let number = |key: &str| {
        number_if_there(key)?.ok_or_else(|| damaged(format!("meta {key} is not there")))
    };
    let owner: [u8; 16] =
        connection.query_row("SELECT value FROM meta WHERE key = 'owner'", [], |row| {
            row.get(0)
        })?;
    let next_seq: i64 = connection.query_row(
        "SELECT coalesce(max(first_seq + count), 1) FROM
         (SELECT first_seq, count FROM submissions ORDER BY first_seq DESC LIMIT 1)",
        [],
        |row| row.get(0),
    )?;
    let next_event: i64 = connection.query_row(
        "SELECT coalesce(max(number) + 1, 1) FROM events",
        [],
        |row| row.get(0),
    )?;
    Ok(Meta {
        owner: OwnerId(owner),
        id_key: number("id_key")?,
        epoch: number("epoch")?,
        term: number("term")?,
        next_seq: unsigned(next_seq),
        next_event: unsigned(next_event),
        restored: number("restored")? != 0,
        // Only a store that was restored has them.
        leap_seq: number_if_there("leap_seq")?.unwrap_or(0),
        leap_attempt: u32::try_from(number_if_there("leap_attempt")?.unwrap_or(0))
            .map_err(|error| damaged(format!("meta leap_attempt: {error}")))?,
    })
}

/// When the latest submission that retention has removed was admitted.
pub(crate) const PURGED_UNIX_MS: &str = "purged_unix_ms";

/// The columns that [`submission`] reads.
pub(crate) const SUBMISSION: &str =
    "first_seq, count, request, digest, tenant, spec, name, unix_ms, nonce, admitted_ns";

pub(crate) fn submission(row: &Row<'_>) -> Result<SubmissionRow, rusqlite::Error> {
    let request: [u8; 16] = row.get(2)?;
    Ok(SubmissionRow {
        first_seq: unsigned(row.get(0)?),
        count: row.get(1)?,
        request: Uuid::from_bytes(request),
        digest: unsigned(row.get(3)?),
        tenant: row.get::<_, String>(4)?.into(),
        spec: row.get(5)?,
        name: row.get::<_, Option<String>>(6)?.map(Into::into),
        unix_ms: unsigned(row.get(7)?),
        nonce: unsigned(row.get(8)?),
        admitted_ns: unsigned(row.get(9)?),
    })
}

/// The columns that [`end`] reads.
pub(crate) const END: &str = "seq, state, attempt, restarts, reschedules, node, cause, code, \
                              signal, message, ended_unix_ms, numbers, deleted, highest_attempt";

pub(crate) fn end(row: &Row<'_>) -> Result<EndRow, rusqlite::Error> {
    let state: u8 = row.get(1)?;
    let cause: String = row.get(6)?;
    let numbers: Vec<u8> = row.get(11)?;
    let (times, usage) = unpack_numbers(&numbers);
    let unreadable = |column, text: String| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, text.into())
    };
    Ok(EndRow {
        seq: unsigned(row.get(0)?),
        state: state_of(state).ok_or_else(|| unreadable(1, format!("state {state}")))?,
        attempt: row.get(2)?,
        restarts: row.get(3)?,
        reschedules: row.get(4)?,
        node: row.get::<_, Option<String>>(5)?.map(Into::into),
        cause: serde_json::from_value(cause.clone().into())
            .map_err(|_| unreadable(6, format!("cause {cause}")))?,
        code: row.get(7)?,
        signal: row.get(8)?,
        message: row.get(9)?,
        ended_unix_ms: unsigned(row.get(10)?),
        times,
        usage,
        deleted: row.get(12)?,
        highest_attempt: row.get(13)?,
        amended: false,
    })
}

pub(crate) fn spec(connection: &Connection, id: u32) -> Result<Option<SpecRow>, StoreError> {
    let found: Option<(String, Option<String>, String)> = connection
        .prepare_cached("SELECT tenant, workload, spec FROM specs WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    found
        .map(|(tenant, workload, text)| {
            let spec: Spec = serde_json::from_str(&text).map_err(damaged)?;
            Ok(SpecRow {
                id,
                tenant: tenant.into(),
                workload: workload.map(Into::into),
                spec: Arc::new(spec),
            })
        })
        .transpose()
}

/// What a planner starts from.
pub(crate) fn snapshot(
    connection: &Connection,
    options: &OpenOptions,
) -> Result<Snapshot, StoreError> {
    let young = options
        .now_unix_ms
        .saturating_sub(options.request_window_ms);
    let rows: Vec<SubmissionRow> = connection
        .prepare(&format!(
            "SELECT {SUBMISSION} FROM submissions WHERE done = 0 OR unix_ms >= ?1
             ORDER BY first_seq"
        ))?
        .query_map([signed(young)], submission)?
        .collect::<Result<_, _>>()?;
    let mut specs: Vec<SpecRow> = Vec::new();
    let mut submissions = Vec::with_capacity(rows.len());
    for row in rows {
        if !specs.iter().rev().any(|known| known.id == row.spec) {
            let found = spec(connection, row.spec)?
                .ok_or_else(|| damaged(format!("spec {} is missing", row.spec)))?;
            specs.push(found);
        }
        let ended = ended_of(connection, &row)?;
        submissions.push(StoredSubmission { row, ended });
    }
    let next_spec =
        connection.query_row("SELECT coalesce(max(id), 0) + 1 FROM specs", [], |row| {
            row.get(0)
        })?;
    Ok(Snapshot {
        meta: meta(connection)?,
        next_spec,
        specs,
        submissions,
        amends: amends(connection)?,
        tenants: tenants(connection)?,
        workloads: workloads(connection)?,
        nodes: nodes(connection)?,
    })
}

fn ended_of(
    connection: &Connection,
    row: &SubmissionRow,
) -> Result<Vec<(u64, InstanceState)>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT seq, state FROM ends WHERE seq >= ?1 AND seq < ?1 + ?2 ORDER BY seq",
    )?;
    let found = statement.query_map(params![signed(row.first_seq), row.count], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, u8>(1)?))
    })?;
    found
        .map(|pair| {
            let (seq, state) = pair?;
            let state = state_of(state).ok_or_else(|| damaged(format!("state {state}")))?;
            Ok((unsigned(seq), state))
        })
        .collect()
}

fn amends(connection: &Connection) -> Result<Vec<AmendRow>, StoreError> {
    let mut statement = connection.prepare(
        "SELECT seq, attempt, restarts, reschedules, stop_grace_ms, stop_then, highest_attempt,
                settled_attempt
         FROM amends ORDER BY seq",
    )?;
    let rows = statement.query_map([], |row| {
        let grace: Option<i64> = row.get(4)?;
        let then: Option<u8> = row.get(5)?;
        Ok(AmendRow {
            seq: unsigned(row.get(0)?),
            attempt: row.get(1)?,
            highest_attempt: row.get(6)?,
            settled_attempt: row.get(7)?,
            restarts: row.get(2)?,
            reschedules: row.get(3)?,
            stop: then.map(|then| StopIntent {
                grace_ms: grace.map(unsigned),
                then: match then {
                    1 => AfterStop::Delete,
                    2 => AfterStop::Restart,
                    3 => AfterStop::Move,
                    _ => AfterStop::Keep,
                },
            }),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn tenants(connection: &Connection) -> Result<Vec<TenantRow>, StoreError> {
    let mut statement = connection.prepare("SELECT name, row FROM tenants ORDER BY name")?;
    let rows = statement.query_map([], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
    })?;
    rows.map(|pair| {
        let (name, text) = pair?;
        let value: TenantJson = serde_json::from_str(&text).map_err(damaged)?;
        Ok(TenantRow {
            name: name.into(),
            runtimes: value.runtimes,
            privileged: value.privileged,
            submit_rate_per_s: value.submit_rate_per_s,
            limits: value.limits,
            created_unix_ms: value.created_unix_ms,
        })
    })
    .collect()
}

fn workloads(connection: &Connection) -> Result<Vec<WorkloadRow>, StoreError> {
    let mut statement = connection.prepare(
        "SELECT tenant, name, spec, revision, created_unix_ms, updated_unix_ms FROM workloads
         ORDER BY tenant, name",
    )?;
    let rows = statement.query_map([], |row| {
        let text: String = row.get(2)?;
        Ok((
            text,
            WorkloadRow {
                tenant: row.get::<_, String>(0)?.into(),
                name: row.get::<_, String>(1)?.into(),
                spec: Arc::new(Spec::new(crate::api::types::TaskSpec::Sim(
                    crate::api::types::SimSpec::default(),
                ))),
                revision: unsigned(row.get(3)?),
                created_unix_ms: unsigned(row.get(4)?),
                updated_unix_ms: unsigned(row.get(5)?),
            },
        ))
    })?;
    rows.map(|pair| {
        let (text, mut row) = pair?;
        row.spec = Arc::new(serde_json::from_str(&text).map_err(damaged)?);
        Ok(row)
    })
    .collect()
}

fn nodes(connection: &Connection) -> Result<Vec<NodeRow>, StoreError> {
    let mut statement = connection.prepare(
        "SELECT name, uuid, boot_id, wish, drain_until_unix_ms, lost FROM nodes
         ORDER BY name",
    )?;
    let rows = statement.query_map([], |row| {
        let wish: u8 = row.get(3)?;
        let until: Option<i64> = row.get(4)?;
        Ok(NodeRow {
            name: row.get::<_, String>(0)?.into(),
            uuid: NodeUuid(row.get(1)?),
            boot_id: BootId(row.get(2)?),
            wish: match wish {
                1 => Some(Mode::Maintenance),
                2 => Some(Mode::Ready),
                _ => None,
            },
            drain_until_unix_ms: until.map(unsigned),
            lost: row.get(5)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The submission that an instance's number belongs to.
pub(crate) fn submission_of(
    connection: &Connection,
    seq: u64,
) -> Result<Option<SubmissionRow>, StoreError> {
    let found = connection
        .prepare_cached(&format!(
            "SELECT {SUBMISSION} FROM submissions WHERE first_seq <= ?1
             ORDER BY first_seq DESC LIMIT 1"
        ))?
        .query_row([signed(seq)], submission)
        .optional()?;
    Ok(found.filter(|row| seq < row.first_seq + u64::from(row.count)))
}

/// What is known of an instance that is not alive.
pub(crate) fn past(
    connection: &Connection,
    ids: IdScheme,
    id: InstanceId,
) -> Result<Past, StoreError> {
    let newest: i64 = connection
        .prepare_cached("SELECT coalesce(max(first_seq), 0) FROM submissions")?
        .query_row([], |row| row.get(0))?;
    // The newest submission has at most so many instances.
    let newest = unsigned(newest) + u64::from(crate::api::types::MAX_COUNT);
    let seq = ids.seq(id, newest);
    let known =
        submission_of(connection, seq)?.filter(|row| ids.id(row.unix_ms, row.nonce, seq) == id);
    if known.is_none() {
        // What was admitted before something that retention has removed, and is not here, was removed
        // too: also in a backup of this store.
        let purged: Option<i64> = connection
            .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
            .query_row([PURGED_UNIX_MS], |row| row.get(0))
            .optional()?;
        let is_purged = purged.is_some_and(|purged| admitted_unix_ms(id) <= unsigned(purged));
        return Ok(if is_purged {
            Past::Purged
        } else {
            Past::Unknown
        });
    }
    let highest_attempt: Option<u32> = connection
        .prepare_cached("SELECT max(attempt, highest_attempt) FROM ends WHERE seq = ?1")?
        .query_row([signed(seq)], |row| row.get(0))
        .optional()?;
    Ok(
        highest_attempt.map_or(Past::Unknown, |highest_attempt| Past::Ended {
            highest_attempt,
        }),
    )
}
