//! Reading beside the writer: lists of ended instances, single ones, events.
//!
//! A few read-only connections, each behind a lock; calls block, and belong on a blocking thread.
//! A list walks submissions from the newest down and looks at no more than [`SCAN_LIMIT`] of them
//! for one page, however few match; the page then ends early, with a place to go on from.

use super::rows::{EndRow, SpecRow, SubmissionRow, timestamp};
use super::sqlite::{DATABASE, signed, state_of, unsigned};
use super::{StoreError, load};
use crate::api::types::{EventRecord, InstanceState, Severity};
use crate::numbers::{IdScheme, ends_in};
use pronto_payloads::ids::InstanceId;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;
use uuid::Uuid;

/// Connections: more than processors would only wait for the same disk.
const CONNECTIONS: usize = 3;
/// Submissions that one page looks at.
const SCAN_LIMIT: usize = 50_000;
/// Decoded specs that a connection keeps: the same few are read again and again.
const SPEC_CACHE: usize = 1024;

#[derive(Debug)]
struct Handle {
    connection: Connection,
    specs: HashMap<u32, Arc<SpecRow>>,
}

/// Reads a store that somebody else writes.
#[derive(Debug)]
pub struct Reader {
    handles: Vec<Mutex<Handle>>,
    ids: IdScheme,
}

/// Which ended instances.
#[derive(Clone, Debug, Default)]
pub struct EndedFilter {
    pub tenant: Option<String>,
    /// Empty: all.
    pub states: Vec<InstanceState>,
    pub node: Option<String>,
    pub workload: Option<String>,
    pub name: Option<String>,
    pub labels: Vec<(String, String)>,
    pub submission: Option<Uuid>,
    /// Only those numbered below.
    pub before: Option<u64>,
    pub limit: usize,
}

/// An ended instance with all that belongs to it.
#[derive(Clone, Debug)]
pub struct Ended {
    pub id: InstanceId,
    pub submission: SubmissionRow,
    pub spec: Arc<SpecRow>,
    pub end: EndRow,
}

/// How many instances are in which state.
pub type Counts = Vec<(InstanceState, u32)>;

/// One page of ended instances.
#[derive(Clone, Debug, Default)]
pub struct EndedPage {
    pub found: Vec<Ended>,
    /// It looked no further than down to this number.
    pub scanned_to: Option<u64>,
}

/// Which events.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    pub tenant: Option<String>,
    pub instance: Option<InstanceId>,
    pub node: Option<String>,
    pub kind: Option<String>,
    pub before: Option<u64>,
    pub limit: usize,
}

impl Reader {
    /// Opens a data directory's database, which exists.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn open(data_dir: &Path, id_key: u64) -> Result<Self, StoreError> {
        let handles = (0..CONNECTIONS)
            .map(|_| {
                let connection = Connection::open_with_flags(
                    data_dir.join(DATABASE),
                    OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
                )?;
                connection.busy_timeout(Duration::from_secs(10))?;
                Ok(Mutex::new(Handle {
                    connection,
                    specs: HashMap::new(),
                }))
            })
            .collect::<Result<_, StoreError>>()?;
        Ok(Self {
            handles,
            ids: IdScheme::new(id_key),
        })
    }

    /// A connection that is free, or the first to become so. A reader that panicked has changed
    /// nothing, so a poisoned lock is as good as new.
    fn handle(&self) -> MutexGuard<'_, Handle> {
        for handle in &self.handles {
            match handle.try_lock() {
                Ok(guard) => return guard,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        self.handles[0]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Ended instances, newest first.
    ///
    /// # Errors
    /// If the database fails.
    pub fn ended(&self, filter: &EndedFilter) -> Result<EndedPage, StoreError> {
        let mut handle = self.handle();
        let before = filter.before.unwrap_or(u64::MAX >> 1);
        let mut conditions = String::from("first_seq < ?1");
        if filter.tenant.is_some() {
            conditions.push_str(" AND tenant = ?2");
        } else {
            conditions.push_str(" AND ?2 IS NULL");
        }
        if filter.submission.is_some() {
            conditions.push_str(" AND request = ?3");
        } else {
            conditions.push_str(" AND ?3 IS NULL");
        }
        let sql = format!(
            "SELECT {} FROM submissions WHERE {conditions} ORDER BY first_seq DESC LIMIT ?4",
            load::SUBMISSION
        );
        let limit = i64::try_from(SCAN_LIMIT).unwrap_or(i64::MAX);
        let request = filter.submission.map(|request| *request.as_bytes());
        let mut page = EndedPage::default();
        // Read in parts, so that a page of a hundred does not read fifty thousand rows.
        let mut from = before;
        let mut scanned = 0;
        'pages: while scanned < SCAN_LIMIT {
            let part = limit.min(512);
            let rows: Vec<SubmissionRow> = handle
                .connection
                .prepare_cached(&sql)?
                .query_map(
                    params![signed(from), filter.tenant, request, part],
                    load::submission,
                )?
                .collect::<Result<_, _>>()?;
            let Some(last) = rows.last() else {
                return Ok(page);
            };
            from = last.first_seq;
            scanned += rows.len();
            for row in rows {
                handle.ended_of(self.ids, row, filter, before, &mut page)?;
                if page.found.len() >= filter.limit {
                    break 'pages;
                }
            }
        }
        page.scanned_to = page.found.last().map(|ended| ended.end.seq).or(Some(from));
        if page.found.len() < filter.limit {
            page.scanned_to = Some(from);
        }
        Ok(page)
    }

    /// The ended instance with this number, a deleted one as well.
    ///
    /// # Errors
    /// If the database fails.
    pub fn ended_one(&self, seq: u64) -> Result<Option<Ended>, StoreError> {
        let mut handle = self.handle();
        let Some(submission) = load::submission_of(&handle.connection, seq)? else {
            return Ok(None);
        };
        let end = handle
            .connection
            .prepare_cached(&format!("SELECT {} FROM ends WHERE seq = ?1", load::END))?
            .query_row([signed(seq)], load::end)
            .optional()?;
        let Some(end) = end else { return Ok(None) };
        let spec = handle.spec(submission.spec)?;
        Ok(Some(Ended {
            id: self.ids.id(submission.unix_ms, submission.nonce, seq),
            submission,
            spec,
            end,
        }))
    }

    /// The ended instance with this id, unless it is deleted.
    ///
    /// # Errors
    /// If the database fails.
    pub fn ended_by_id(&self, id: InstanceId) -> Result<Option<Ended>, StoreError> {
        let newest = self.newest()?;
        let found = self.ended_one(self.ids.seq(id, newest))?;
        Ok(found.filter(|ended| ended.id == id && !ended.end.deleted))
    }

    /// An upper bound of all numbers that were given out.
    ///
    /// # Errors
    /// If the database fails.
    pub fn newest(&self) -> Result<u64, StoreError> {
        let newest: i64 = self.handle().connection.query_row(
            "SELECT coalesce(max(first_seq), 0) FROM submissions",
            [],
            |row| row.get(0),
        )?;
        Ok(unsigned(newest) + u64::from(crate::api::types::MAX_COUNT))
    }

    /// The latest ended instance with this name in each tenant.
    ///
    /// # Errors
    /// If the database fails.
    pub fn named(&self, name: &str, tenant: Option<&str>) -> Result<Vec<Ended>, StoreError> {
        let mut found = self
            .ended(&EndedFilter {
                tenant: tenant.map(str::to_owned),
                name: Some(name.to_owned()),
                limit: 2,
                ..EndedFilter::default()
            })?
            .found;
        if let [newest, older] = &found[..]
            && newest.submission.tenant == older.submission.tenant
        {
            found.truncate(1);
        }
        Ok(found)
    }

    /// Those among these numbers whose ids end in the suffix and belong to the tenant.
    ///
    /// # Errors
    /// If the database fails.
    pub fn matching(
        &self,
        numbers: &[u64],
        suffix: &str,
        tenant: Option<&str>,
    ) -> Result<Vec<Ended>, StoreError> {
        let mut found = Vec::new();
        for &seq in numbers {
            let fits = self.ended_one(seq)?.filter(|ended| {
                !ended.end.deleted
                    && ends_in(ended.id, suffix)
                    && tenant.is_none_or(|tenant| tenant == &*ended.submission.tenant)
            });
            found.extend(fits);
        }
        Ok(found)
    }

    /// How many instances of a submission have ended, by state.
    ///
    /// # Errors
    /// If the database fails.
    pub fn submission(
        &self,
        request: Uuid,
        tenant: Option<&str>,
    ) -> Result<Option<(SubmissionRow, Counts)>, StoreError> {
        let handle = self.handle();
        let row = handle
            .connection
            .prepare_cached(&format!(
                "SELECT {} FROM submissions WHERE request = ?1
                 AND (?2 IS NULL OR tenant = ?2) ORDER BY first_seq DESC LIMIT 1",
                load::SUBMISSION
            ))?
            .query_row(params![request.as_bytes(), tenant], load::submission)
            .optional()?;
        let Some(row) = row else { return Ok(None) };
        let counts = ended_counts(&handle.connection, &row)?;
        Ok(Some((row, counts)))
    }

    /// How many instances of the submission of an ended instance have ended, by state.
    ///
    /// # Errors
    /// If the database fails.
    pub fn ended_counts(&self, row: &SubmissionRow) -> Result<Counts, StoreError> {
        ended_counts(&self.handle().connection, row)
    }

    /// Events, newest first.
    ///
    /// # Errors
    /// If the database fails.
    pub fn events(&self, filter: &EventFilter) -> Result<Vec<EventRecord>, StoreError> {
        let handle = self.handle();
        let (exact, prefix) = match filter.kind.as_deref() {
            Some(kind) => match kind.strip_suffix('*') {
                Some(prefix) => (None, Some(prefix)),
                None => (Some(kind), None),
            },
            None => (None, None),
        };
        let before = filter.before.unwrap_or(u64::MAX >> 1);
        let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
        let mut statement = handle.connection.prepare_cached(
            "SELECT number, unix_ms, kind, severity, actor, source, tenant, instance, node, message
             FROM events WHERE number < ?1 AND (?2 IS NULL OR tenant = ?2)
             AND (?3 IS NULL OR instance = ?3) AND (?4 IS NULL OR node = ?4)
             AND (?5 IS NULL OR kind = ?5)
             AND (?6 IS NULL OR substr(kind, 1, length(?6)) = ?6)
             ORDER BY number DESC LIMIT ?7",
        )?;
        let rows = statement.query_map(
            params![
                signed(before),
                filter.tenant,
                filter.instance.map(|id| id.0),
                filter.node,
                exact,
                prefix,
                limit
            ],
            |row| {
                let instance: Option<[u8; 16]> = row.get(7)?;
                Ok(EventRecord {
                    number: unsigned(row.get(0)?),
                    at: timestamp(unsigned(row.get(1)?)),
                    kind: row.get(2)?,
                    severity: match row.get::<_, u8>(3)? {
                        0 => Severity::Info,
                        1 => Severity::Warning,
                        _ => Severity::Alarm,
                    },
                    actor: row.get(4)?,
                    source: row.get(5)?,
                    tenant: row.get(6)?,
                    instance: instance.map(Uuid::from_bytes),
                    node: row.get(8)?,
                    message: row.get(9)?,
                })
            },
        )?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn ended_counts(connection: &Connection, row: &SubmissionRow) -> Result<Counts, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT state, count(*) FROM ends WHERE seq >= ?1 AND seq < ?1 + ?2 GROUP BY state",
    )?;
    let rows = statement.query_map(params![signed(row.first_seq), row.count], |row| {
        Ok((row.get::<_, u8>(0)?, row.get::<_, u32>(1)?))
    })?;
    let mut counts = Vec::new();
    for pair in rows {
        let (state, count) = pair?;
        let state = state_of(state).ok_or_else(|| StoreError::Damaged(format!("state {state}")))?;
        counts.push((state, count));
    }
    Ok(counts)
}

impl Handle {
    fn spec(&mut self, id: u32) -> Result<Arc<SpecRow>, StoreError> {
        if let Some(spec) = self.specs.get(&id) {
            return Ok(Arc::clone(spec));
        }
        let spec = load::spec(&self.connection, id)?
            .ok_or_else(|| StoreError::Damaged(format!("spec {id} is missing")))?;
        let spec = Arc::new(spec);
        if self.specs.len() >= SPEC_CACHE {
            self.specs.clear();
        }
        self.specs.insert(id, Arc::clone(&spec));
        Ok(spec)
    }

    fn ended_of(
        &mut self,
        ids: IdScheme,
        row: SubmissionRow,
        filter: &EndedFilter,
        before: u64,
        page: &mut EndedPage,
    ) -> Result<(), StoreError> {
        let spec = self.spec(row.spec)?;
        let workload = filter.workload.as_deref();
        if workload.is_some_and(|workload| spec.workload.as_deref() != Some(workload)) {
            return Ok(());
        }
        let labelled = filter
            .labels
            .iter()
            .all(|(key, value)| spec.spec.labels.get(key) == Some(value));
        if !labelled {
            return Ok(());
        }
        let end = (row.first_seq + u64::from(row.count)).min(before);
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT {} FROM ends WHERE seq >= ?1 AND seq < ?2 AND deleted = 0
             ORDER BY seq DESC",
            load::END
        ))?;
        let rows = statement.query_map([signed(row.first_seq), signed(end)], load::end)?;
        for found in rows {
            let found = found?;
            let wanted = filter.states.is_empty() || filter.states.contains(&found.state);
            let there = filter
                .node
                .as_deref()
                .is_none_or(|node| found.node.as_deref() == Some(node));
            let named = filter
                .name
                .as_deref()
                .is_none_or(|name| row.instance_name(found.seq).as_deref() == Some(name));
            if !(wanted && there && named) {
                continue;
            }
            page.found.push(Ended {
                id: ids.id(row.unix_ms, row.nonce, found.seq),
                submission: row.clone(),
                spec: Arc::clone(&spec),
                end: found,
            });
            if page.found.len() >= filter.limit {
                return Ok(());
            }
        }
        Ok(())
    }
}
