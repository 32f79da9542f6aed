//! What happened to a database: its latest steps on the ladder, how fast it woke, and what it used.
//!
//! All of it is written in batches. What is read of one database is written first, so nobody who saw a step happen reads a
//! history without it.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use crate::catalog::Catalog;
use crate::column::{Instant, count, duration};
use crate::error::{CatalogError, Subject};
use crate::id::DatabaseId;
use crate::model::{State, Transition, Usage, WakeStats};
use crate::records;

/// The least age of a transaction id that the catalog looks for: where Postgres itself begins to vacuum because of it.
const LEAST_INDEXED_AGE: u64 = 200_000_000;

/// The states that a wake starts from.
const ASLEEP: [State; 3] = [State::Stopped, State::Frozen, State::Failed];

impl Catalog {
    /// A database's latest steps, the latest first, `limit` at most. None when it has no history or does not exist.
    ///
    /// # Errors
    /// When the file cannot be read or the readers are overloaded.
    pub async fn history(&self, id: &DatabaseId, limit: u32) -> Result<Vec<Transition>, CatalogError> {
        self.write_what_waits().await;
        let id = *id;
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT at, from_state, to_state, took_us, reason FROM history
                 WHERE database = (SELECT key FROM databases WHERE id = ?1) ORDER BY number DESC LIMIT ?2",
            )?;
            let steps = statement.query_map(params![id, limit], |row| {
                Ok(Transition {
                    database: id,
                    at: row.get::<_, Instant>(0)?.0,
                    from: row.get(1)?,
                    to: row.get(2)?,
                    took: duration(row.get(3)?),
                    reason: row.get(4)?,
                })
            })?;
            Ok(steps.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// How long a database took to wake, for each state that it woke from, over its kept history.
    ///
    /// # Errors
    /// When the file cannot be read or the readers are overloaded.
    pub async fn wake_stats(&self, id: &DatabaseId) -> Result<Vec<WakeStats>, CatalogError> {
        self.write_what_waits().await;
        let id = *id;
        self.read(move |connection| {
            let mut stats = Vec::new();
            for from in ASLEEP {
                stats.extend(summary(from, &wakes(connection, &id, from)?));
            }
            Ok(stats)
        })
        .await
    }

    /// Live databases whose oldest transaction id was at least `age` transactions old when that was last read, the oldest
    /// first, `limit` at most. Ages below 200 million are taken for that.
    ///
    /// # Errors
    /// When the file cannot be read or the readers are overloaded.
    pub async fn databases_of_xid_age(&self, age: u64, limit: u32) -> Result<Vec<DatabaseId>, CatalogError> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT d.id FROM usage u INDEXED BY usage_xid_age CROSS JOIN databases d ON d.key = u.database
                 WHERE u.xid_age >= {LEAST_INDEXED_AGE} AND u.xid_age >= ?1 AND d.deleted_at IS NULL
                 ORDER BY u.xid_age DESC LIMIT ?2"
            ))?;
            let ids = statement.query_map(params![count(age), limit], |row| row.get(0))?;
            Ok(ids.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// What a database used since it was made.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`]; when the file cannot be read or the readers are overloaded.
    pub async fn usage(&self, id: &DatabaseId) -> Result<Usage, CatalogError> {
        self.write_what_waits().await;
        let id = *id;
        self.read(move |connection| {
            let mut statement = connection.prepare_cached("SELECT key FROM databases WHERE id = ?1")?;
            let key: Option<i64> = statement.query_row([id], |row| row.get(0)).optional()?;
            records::usage_of(connection, key.ok_or(CatalogError::NotFound(Subject::Database))?)
        })
        .await
    }

    /// On a full disk, what was written before can still be read.
    async fn write_what_waits(&self) {
        if let Err(error) = self.flush().await {
            tracing::debug!(%error, "history and usage are read without the latest");
        }
    }
}

/// The durations of a database's kept wakes from a state, oldest first.
fn wakes(connection: &Connection, id: &DatabaseId, from: State) -> Result<Vec<Duration>, CatalogError> {
    let mut statement = connection.prepare_cached(
        "SELECT took_us FROM history
         WHERE database = (SELECT key FROM databases WHERE id = ?1) AND from_state = ?2 AND to_state = ?3
         ORDER BY number",
    )?;
    let wakes = statement.query_map(params![id, from, State::Running], |row| Ok(duration(row.get(0)?)))?;
    Ok(wakes.collect::<Result<_, _>>()?)
}

/// Percentiles by nearest rank; nothing when there was no wake.
fn summary(from: State, wakes: &[Duration]) -> Option<WakeStats> {
    let last = wakes.last()?;
    let mut sorted = wakes.to_vec();
    sorted.sort_unstable();
    let milliseconds = |wake: &Duration| wake.as_secs_f64() * 1_000.0;
    let percentile = |hundredths: usize| {
        let rank = (sorted.len() * hundredths).div_ceil(100).max(1);
        sorted.get(rank - 1).map_or(0.0, milliseconds)
    };
    Some(WakeStats {
        from,
        count: sorted.len() as u64,
        last_ms: milliseconds(last),
        p50_ms: percentile(50),
        p90_ms: percentile(90),
        p99_ms: percentile(99),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let wakes: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        let stats = summary(State::Stopped, &wakes).unwrap();
        let got = (stats.count, stats.last_ms, stats.p50_ms, stats.p90_ms, stats.p99_ms);
        assert_eq!(got, (200, 1.0, 100.0, 180.0, 198.0));
    }

    #[test]
    fn one_wake_is_its_own_percentile_and_none_gives_no_line() {
        let stats = summary(State::Frozen, &[Duration::from_micros(1_500)]).unwrap();
        assert_eq!((stats.p50_ms, stats.p99_ms), (1.5, 1.5));
        assert!(summary(State::Frozen, &[]).is_none());
    }
}
