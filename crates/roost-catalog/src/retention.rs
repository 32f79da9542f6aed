//! For how long a deleted database has been deleted, whatever the wall clock does meanwhile.
//!
//! Clocks jump: a battery is empty, a virtual machine is resumed, somebody mistypes a year. By the wall clock alone, a jump
//! forward would purge at once all that was ever deleted. So the time is counted: while the node runs, by the monotonic
//! clock; for a time in which it did not run, by the wall clock, but [`MOST_FOR_A_STOP`] at most. A jump thus costs a
//! deleted database a day at most, and a jump back only gives it more.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use crate::column;
use crate::error::CatalogError;
use crate::meta;

/// What a time in which no node ran counts at most.
pub const MOST_FOR_A_STOP: Duration = Duration::from_secs(24 * 3_600);
/// Where the count is kept between runs.
const KEY: &str = "retention";

/// A moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// What people call it; jumps.
    pub wall: SystemTime,
    /// On the clock that only goes on; means nothing in another run of the machine.
    pub steady: Instant,
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        Self { wall: SystemTime::now(), steady: Instant::now() }
    }
}

/// The count, which goes on from run to run.
#[derive(Debug)]
pub(crate) struct Retention(Mutex<State>);

#[derive(Debug, Clone, Copy)]
struct State {
    counted: Duration,
    last: Last,
}

/// Up to when the time is counted.
#[derive(Debug, Clone, Copy)]
enum Last {
    /// It has not begun.
    Never,
    /// By an earlier run.
    EarlierRun(SystemTime),
    /// By this one.
    ThisRun(Instant),
}

/// The count as it is kept. Times are microseconds, `at` since the Unix epoch.
#[derive(Serialize, Deserialize)]
struct Kept {
    counted: i64,
    at: i64,
}

impl Retention {
    /// Goes on from what an earlier run kept.
    pub(crate) fn open(connection: &Connection) -> Result<Self, CatalogError> {
        let kept = meta::value_of(connection, KEY)?;
        let kept = kept.and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
        let state = kept.map_or(State { counted: Duration::ZERO, last: Last::Never }, |kept| State {
            counted: column::duration(kept.counted),
            last: Last::EarlierRun(SystemTime::UNIX_EPOCH + column::duration(kept.at)),
        });
        Ok(Self(Mutex::new(state)))
    }

    /// Counts up to `now`, keeps the count for the next run, and returns it.
    pub(crate) fn advance(&self, connection: &Connection, now: Moment) -> Result<Duration, CatalogError> {
        let counted = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.advance(now);
            state.counted
        };
        let at = now.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let kept = Kept { counted: column::micros(counted), at: column::micros(at) };
        let bytes = serde_json::to_vec(&kept)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        meta::put(connection, KEY, &bytes)?;
        Ok(counted)
    }
}

impl State {
    fn advance(&mut self, now: Moment) {
        let passed = match self.last {
            Last::Never => Duration::ZERO,
            Last::EarlierRun(at) => now.wall.duration_since(at).unwrap_or_default().min(MOST_FOR_A_STOP),
            Last::ThisRun(at) => now.steady.saturating_duration_since(at),
        };
        let last = match self.last {
            Last::ThisRun(at) => at.max(now.steady),
            Last::Never | Last::EarlierRun(_) => now.steady,
        };
        *self = Self { counted: self.counted.saturating_add(passed), last: Last::ThisRun(last) };
    }
}
