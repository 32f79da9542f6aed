//! History and usage on their way to the file: a ring that never blocks whoever records, and the statements that write
//! what it holds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;
use rusqlite::{Connection, OptionalExtension, params};

use crate::MAX_HISTORY_PER_DATABASE;
use crate::column::{Instant, count, duration, micros, uncount};
use crate::error::CatalogError;
use crate::id::DatabaseId;
use crate::model::{Transition, Usage, UsageDelta};

/// Bytes of a transition's reason that are kept.
const MAX_REASON: usize = 200;

/// Something to be written soon.
#[derive(Debug)]
pub(crate) enum Record {
    Transition(Transition),
    Usage(UsageDelta),
}

/// Records that wait for the writer. Pushing is lock-free; when it is full, the oldest record makes room and is
/// counted.
pub(crate) struct Ring {
    waiting: ArrayQueue<Record>,
    dropped: AtomicU64,
    /// The writer knows that records wait.
    announced: AtomicBool,
    /// The writer knows that the ring is half full.
    hurried: AtomicBool,
}

impl Ring {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            waiting: ArrayQueue::new(capacity.max(1)),
            dropped: AtomicU64::new(0),
            announced: AtomicBool::new(false),
            hurried: AtomicBool::new(false),
        }
    }

    /// Adds a record. True when the writer must be told: it is the first one since the writer last took some, or the
    /// ring has become half full.
    #[must_use]
    pub(crate) fn push(&self, record: Record) -> bool {
        if self.waiting.force_push(record).is_some() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        let first = !self.announced.swap(true, Ordering::AcqRel);
        let crowded = self.is_crowded() && !self.hurried.swap(true, Ordering::AcqRel);
        first || crowded
    }

    /// Takes the oldest records, `limit` at most.
    pub(crate) fn take(&self, limit: usize) -> Vec<Record> {
        // Before the records are taken: one that is pushed meanwhile is either taken or announced again.
        self.announced.store(false, Ordering::Release);
        self.hurried.store(false, Ordering::Release);
        let mut taken = Vec::with_capacity(limit.min(self.waiting.len()));
        while taken.len() < limit {
            match self.waiting.pop() {
                Some(record) => taken.push(record),
                None => break,
            }
        }
        taken
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Half full: it is time to write without waiting any longer.
    pub(crate) fn is_crowded(&self) -> bool {
        self.waiting.len() >= self.waiting.capacity().div_ceil(2)
    }

    /// Counts records that were taken and could not be written.
    pub(crate) fn count_lost(&self, records: usize) {
        self.dropped.fetch_add(records as u64, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Writes records in their order. Those of databases that are gone are left out.
pub(crate) fn write(connection: &Connection, records: Vec<Record>) -> Result<(), CatalogError> {
    let mut keys = HashMap::new();
    let mut usage: HashMap<i64, UsageDelta> = HashMap::new();
    let mut latest: HashMap<i64, i64> = HashMap::new();
    for record in records {
        let database = match &record {
            Record::Transition(transition) => transition.database,
            Record::Usage(delta) => delta.database,
        };
        let key = match keys.get(&database) {
            Some(key) => *key,
            None => *keys.entry(database).or_insert(key_of(connection, &database)?),
        };
        let Some(key) = key else { continue };
        match record {
            Record::Transition(transition) => {
                latest.insert(key, append(connection, key, &transition)?);
            }
            Record::Usage(delta) => match usage.get_mut(&key) {
                Some(sum) => merge(sum, &delta),
                None => {
                    usage.insert(key, delta);
                }
            },
        }
    }
    for (key, number) in latest {
        connection
            .prepare_cached("DELETE FROM history WHERE database = ?1 AND number <= ?2")?
            .execute(params![key, number - i64::from(MAX_HISTORY_PER_DATABASE)])?;
    }
    for (key, delta) in usage {
        add_usage(connection, key, &delta)?;
    }
    Ok(())
}

fn key_of(connection: &Connection, id: &DatabaseId) -> Result<Option<i64>, CatalogError> {
    let mut statement = connection.prepare_cached("SELECT key FROM databases WHERE id = ?1")?;
    Ok(statement.query_row([id], |row| row.get(0)).optional()?)
}

/// Adds a step to a database's history and gives its number.
fn append(connection: &Connection, key: i64, step: &Transition) -> Result<i64, CatalogError> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO history (database, number, at, from_state, to_state, took_us, reason)
         VALUES (?1, (SELECT coalesce(max(number), 0) + 1 FROM history WHERE database = ?1), ?2, ?3, ?4, ?5, ?6)
         RETURNING number",
    )?;
    let reason = beginning(&step.reason, MAX_REASON);
    let values = params![key, Instant(step.at), step.from, step.to, micros(step.took), reason];
    Ok(statement.query_row(values, |row| row.get(0))?)
}

/// As much of a text as fits into `limit` bytes, in whole characters.
fn beginning(text: &str, limit: usize) -> &str {
    (0..=limit.min(text.len())).rev().find_map(|end| text.get(..end)).unwrap_or_default()
}

/// Adds a later delta of the same database to an earlier one.
fn merge(sum: &mut UsageDelta, later: &UsageDelta) {
    sum.sessions = sum.sessions.saturating_add(later.sessions);
    sum.bytes_in = sum.bytes_in.saturating_add(later.bytes_in);
    sum.bytes_out = sum.bytes_out.saturating_add(later.bytes_out);
    sum.cpu = sum.cpu.saturating_add(later.cpu);
    sum.running = sum.running.saturating_add(later.running);
    sum.last_used_at = sum.last_used_at.max(later.last_used_at);
    sum.size_bytes = later.size_bytes.or(sum.size_bytes);
    sum.xid_age = later.xid_age.or(sum.xid_age);
}

/// Adds to a database's counters. Counting up is done here and not in SQL, where a sum that is too large would turn
/// into a floating-point number.
fn add_usage(connection: &Connection, key: i64, delta: &UsageDelta) -> Result<(), CatalogError> {
    let before = usage_of(connection, key)?;
    let mut statement = connection.prepare_cached(
        "INSERT INTO usage (database, sessions, bytes_in, bytes_out, cpu_us, running_us, last_used_at, size_bytes,
                            xid_age)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
         ON CONFLICT (database) DO UPDATE SET
             sessions = excluded.sessions,
             bytes_in = excluded.bytes_in,
             bytes_out = excluded.bytes_out,
             cpu_us = excluded.cpu_us,
             running_us = excluded.running_us,
             last_used_at = max(coalesce(last_used_at, excluded.last_used_at),
                                coalesce(excluded.last_used_at, last_used_at)),
             size_bytes = coalesce(excluded.size_bytes, size_bytes),
             xid_age = coalesce(excluded.xid_age, xid_age)",
    )?;
    statement.execute(params![
        key,
        count(before.sessions.saturating_add(delta.sessions)),
        count(before.bytes_in.saturating_add(delta.bytes_in)),
        count(before.bytes_out.saturating_add(delta.bytes_out)),
        micros(before.cpu.saturating_add(delta.cpu)),
        micros(before.running.saturating_add(delta.running)),
        delta.last_used_at.map(Instant),
        delta.size_bytes.map(count),
        delta.xid_age.map(count),
    ])?;
    Ok(())
}

/// A database's counters; zeros when it was never used.
pub(crate) fn usage_of(connection: &Connection, key: i64) -> Result<Usage, CatalogError> {
    let mut statement = connection.prepare_cached(
        "SELECT sessions, bytes_in, bytes_out, cpu_us, running_us FROM usage WHERE database = ?1",
    )?;
    let usage = statement.query_row([key], |row| {
        Ok(Usage {
            sessions: uncount(row.get(0)?),
            bytes_in: uncount(row.get(1)?),
            bytes_out: uncount(row.get(2)?),
            cpu: duration(row.get(3)?),
            running: duration(row.get(4)?),
        })
    });
    Ok(usage.optional()?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn delta(sessions: u64) -> UsageDelta {
        UsageDelta {
            database: DatabaseId::generate(),
            sessions,
            bytes_in: 0,
            bytes_out: 0,
            cpu: Duration::ZERO,
            running: Duration::ZERO,
            last_used_at: None,
            size_bytes: None,
            xid_age: None,
        }
    }

    fn sessions(records: &[Record]) -> Vec<u64> {
        records
            .iter()
            .map(|record| match record {
                Record::Usage(delta) => delta.sessions,
                Record::Transition(_) => 0,
            })
            .collect()
    }

    #[test]
    fn a_full_ring_drops_its_oldest_record_and_counts_it() {
        let ring = Ring::new(4);
        for number in 0..6 {
            let _ = ring.push(Record::Usage(delta(number)));
        }
        assert_eq!(ring.dropped(), 2);
        assert_eq!(sessions(&ring.take(usize::MAX)), [2, 3, 4, 5]);
    }

    #[test]
    fn the_writer_is_told_of_the_first_record_and_when_the_ring_is_half_full() {
        let ring = Ring::new(4);
        assert!(ring.push(Record::Usage(delta(0))));
        assert!(ring.push(Record::Usage(delta(1))));
        assert!(!ring.push(Record::Usage(delta(2))));
        assert_eq!(ring.take(2).len(), 2);
        assert!(ring.push(Record::Usage(delta(3))), "the first one since the writer took some");
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        assert_eq!(beginning("wach", 10), "wach");
        assert_eq!(beginning("wäch", 2), "w");
        assert_eq!(beginning("wäch", 3), "wä");
        assert_eq!(beginning("ä", 0), "");
    }

    #[test]
    fn deltas_of_one_database_add_up_and_keep_the_latest_measurements() {
        let mut sum = UsageDelta { size_bytes: Some(1), xid_age: Some(5), ..delta(u64::MAX) };
        merge(&mut sum, &UsageDelta { size_bytes: Some(2), ..delta(1) });
        assert_eq!(sum.sessions, u64::MAX);
        assert_eq!(sum.size_bytes, Some(2));
        assert_eq!(sum.xid_age, Some(5));
    }
}
