//! Storage limits, kept by a watcher: a database over its limit becomes read-only by default (its owner may still override
//! that to delete), and one that goes on growing is stopped. When the node's own file system runs short, those that grow
//! become read-only, and are stopped when they grow on, before a Postgres that cannot write its log panics.
//!
//! Measuring a volume means walking over its files, so it is done only when it can change anything. The free space of the
//! file system costs one system call, and says what all databases together have written: until that has reached a part of
//! what a database has left, the database cannot have reached its limit. So a thousand awake databases cost next to
//! nothing, and the one that writes a gigabyte a second is looked at twenty times a second.
//!
//! Below a quarter of the reserve there is a brake: the database that has grown most is stopped at once, and one that was
//! stopped like that does not start until there is room again.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use roost_catalog::id::DatabaseId;
use roost_catalog::model::Database;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::Lifecycle;
use crate::entry::{ClosingReason, Entry};
use crate::error::StartFailure;
use crate::ladder::Phase;
use crate::shortage::Shortage;
use crate::volume_size::Mark;

/// The pause between two looks at free space while databases are awake, and while none is.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// How many volumes are measured at the same moment; those that grow fastest come first.
const VOLUMES_AT_ONCE: usize = 8;
/// The oldest that the measurement of an active database becomes: this, and as much again for every hundred of them.
const OLDEST: Duration = Duration::from_secs(5);
/// The pause between two measurements of a read-only database that is active, and of one that is not.
const READ_ONLY_PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// What a database may always grow by in a shortage: some segments of its write-ahead log come at once.
const LEAST_ALLOWANCE: u64 = 16 << 20;

/// What the watcher knows.
#[derive(Debug)]
pub(crate) struct Watch {
    /// What free space has fallen by in all, in bytes.
    written: AtomicU64,
    /// What is kept free of the file system, in bytes.
    reserve: AtomicU64,
    /// Whether free space is below the reserve.
    is_short: AtomicBool,
    /// Whether it is below a quarter of it.
    brakes: AtomicBool,
    /// Databases that were held because they grew during the shortage.
    growers: Mutex<HashSet<DatabaseId>>,
    /// Places of measurements.
    measuring: Arc<Semaphore>,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            written: AtomicU64::new(0),
            reserve: AtomicU64::new(0),
            is_short: AtomicBool::new(false),
            brakes: AtomicBool::new(false),
            growers: Mutex::default(),
            measuring: Arc::new(Semaphore::new(VOLUMES_AT_ONCE)),
        }
    }
}

impl Watch {
    /// This moment, for a measurement that begins now.
    pub(crate) fn mark(&self, entry: &Entry) -> Mark {
        let written = self.written.load(Ordering::Relaxed);
        Mark { at: Instant::now(), written, activity: entry.gate.last_active() }
    }

    fn growers(&self) -> MutexGuard<'_, HashSet<DatabaseId>> {
        self.growers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file system of the data directory.
#[derive(Debug, Clone, Copy)]
struct Space {
    free: u64,
    reserve: u64,
}

impl Lifecycle {
    /// Watches free space and volumes for as long as the node lives.
    pub(crate) async fn watch_storage(self) {
        let mut before = None;
        loop {
            let pause = if self.shared.entries.is_empty() { PAUSES.1 } else { PAUSES.0 };
            tokio::time::sleep(pause).await;
            if self.shared.shutting_down.load(Ordering::Acquire) {
                return;
            }
            let Some(space) = self.space() else { continue };
            let fallen =
                before.replace(space.free).map_or(0, |before: u64| before.saturating_sub(space.free));
            self.shared.storage.written.fetch_add(fallen, Ordering::Relaxed);
            self.compare_with_reserve(space).await;
            self.look_at_volumes(space);
        }
    }

    /// Whether a start is read-only, by what is known before it.
    ///
    /// # Errors
    ///
    /// When the disk is nearly full and this database is one of those that filled it.
    pub(crate) fn storage_at_start(&self, entry: &Entry, database: &Database) -> Result<bool, StartFailure> {
        let watch = &self.shared.storage;
        let is_grower = watch.is_short.load(Ordering::Relaxed) && watch.growers().contains(&entry.id);
        if is_grower && watch.brakes.load(Ordering::Relaxed) {
            let reserve_bytes = watch.reserve.load(Ordering::Relaxed);
            return Err(StartFailure::Reserve { reserve_bytes });
        }
        let limit = self.shared.config.storage(&database.settings);
        let is_over = database.size_bytes.is_some_and(|bytes| bytes > limit);
        entry.size().begin_run(is_over, is_grower);
        if let Some(bytes) = database.size_bytes.filter(|_| !is_over && !is_grower) {
            // What was known when it went to sleep will do until it has been active for a while.
            entry.size().assume(bytes, watch.mark(entry));
        }
        let shortage = self.shortage(is_over, is_grower, limit);
        entry.read_only.store(shortage.is_some(), Ordering::SeqCst);
        entry.shortage.set(shortage);
        Ok(shortage.is_some())
    }

    /// Of two bounds that a database has reached, its own comes first: about that its owner can do something.
    fn shortage(&self, over_limit: bool, read_only: bool, limit: u64) -> Option<Shortage> {
        if over_limit {
            return Some(Shortage::Limit { bytes: limit });
        }
        read_only.then(|| Shortage::Reserve { bytes: self.shared.storage.reserve.load(Ordering::Relaxed) })
    }

    fn space(&self) -> Option<Space> {
        let space = rustix::fs::statvfs(&self.shared.config.data).ok()?;
        let total = space.f_blocks.saturating_mul(space.f_frsize);
        let reserve = match self.shared.config.storage_reserve_bytes {
            0 => 0,
            bytes => bytes.max(total / 20),
        };
        Some(Space { free: space.f_bavail.saturating_mul(space.f_frsize), reserve })
    }

    async fn compare_with_reserve(&self, Space { free, reserve }: Space) {
        let watch = &self.shared.storage;
        let was_short = watch.is_short.load(Ordering::Relaxed);
        // Relief is granted only with some room to spare, or the node would flap.
        watch.reserve.store(reserve, Ordering::Relaxed);
        let is_short = if was_short { free < reserve + reserve / 10 } else { free < reserve };
        watch.brakes.store(is_short && free < reserve / 4, Ordering::Relaxed);
        if is_short == was_short {
            return;
        }
        watch.is_short.store(is_short, Ordering::Relaxed);
        tracing::warn!(free, reserve, is_short, "free space against the node's reserve");
        if is_short {
            return;
        }
        watch.growers().clear();
        for entry in self.running() {
            self.apply(&entry, None).await;
        }
    }

    fn look_at_volumes(&self, Space { free, reserve }: Space) {
        let is_short = self.shared.storage.is_short.load(Ordering::Relaxed);
        let now = Instant::now();
        let running = self.running();
        let mut due: Vec<_> = (running.iter())
            .filter_map(|entry| Some((self.urgency(entry, now, is_short, running.len())?, entry)))
            .collect();
        due.sort_by_key(|(urgency, _)| std::cmp::Reverse(*urgency));
        // Between the brake and the reserve, everybody shares what is left.
        let sharers = u64::try_from(running.len()).unwrap_or(u64::MAX).saturating_mul(2).max(2);
        let allowance = (free.saturating_sub(reserve / 4) / sharers).max(LEAST_ALLOWANCE);
        for (_, entry) in due {
            let Ok(place) = self.shared.storage.measuring.clone().try_acquire_owned() else { break };
            if entry.is_being_measured.swap(true, Ordering::Relaxed) {
                continue;
            }
            // Apart from the others: on a busy disk one walk may take long, and must not hold up the next look.
            let (lifecycle, entry) = (self.clone(), entry.clone());
            tokio::spawn(async move {
                if lifecycle.measure(&entry).await.is_some() {
                    lifecycle.apply(&entry, is_short.then_some(allowance)).await;
                }
                entry.is_being_measured.store(false, Ordering::Relaxed);
                drop(place);
            });
        }
        if self.shared.storage.brakes.load(Ordering::Relaxed) {
            self.brake(&running);
        }
    }

    /// How much a database's size is wanted; `None` if it cannot have changed anything.
    fn urgency(&self, entry: &Entry, now: Instant, is_short: bool, running: usize) -> Option<u128> {
        let limit = self.shared.config.storage(&entry.lock().settings);
        let size = entry.size();
        if entry.is_being_measured.load(Ordering::Relaxed) {
            return None;
        }
        let Some(last) = size.last() else { return Some(u128::MAX) };
        let age = now.saturating_duration_since(last.at);
        let is_active = entry.gate.leases() > 0 || entry.gate.last_active() != last.activity;
        let written = self.shared.storage.written.load(Ordering::Relaxed).saturating_sub(last.written);
        let oldest = OLDEST * u32::try_from(running / 100 + 1).unwrap_or(u32::MAX);
        let is_read_only = entry.read_only.load(Ordering::Relaxed);
        let is_due = is_active && (is_short || age >= oldest || written > size.slack(limit) / 4)
            || is_read_only && age >= if is_active { READ_ONLY_PAUSES.0 } else { READ_ONLY_PAUSES.1 };
        // What it has probably grown by, and of those that do not grow, the one that has waited longest.
        is_due.then(|| (u128::from(size.rate()) + 1000) * age.as_micros())
    }

    /// Does what follows from a database's latest measurement.
    async fn apply(&self, entry: &Arc<Entry>, allowance: Option<u64>) {
        let limit = self.shared.config.storage(&entry.lock().settings);
        let (verdict, bytes) = {
            let mut size = entry.size();
            (size.judge(limit, allowance), size.bytes())
        };
        if verdict.is_grower {
            self.shared.storage.growers().insert(entry.id);
        }
        if let Some(reason) = verdict.stop {
            tracing::warn!(database = %entry.id, bytes, limit, ?reason, "it grew on although it is read-only");
            self.begin_stop(entry, reason);
        }
        let read_only = verdict.read_only;
        let was_read_only = entry.read_only.swap(read_only, Ordering::SeqCst);
        if read_only {
            entry.shortage.set(self.shortage(verdict.over_limit, read_only, limit));
        }
        if read_only == was_read_only {
            return;
        }
        tracing::warn!(database = %entry.id, bytes, limit, read_only, "storage");
        entry.reload_due.store(true, Ordering::SeqCst);
        if let Err(error) = self.reload_if_due(entry).await {
            tracing::error!(database = %entry.id, %error, "the read-only default could not be changed");
        }
        if !read_only {
            entry.shortage.clear_unless(&entry.read_only);
        }
    }

    /// Stops the database that has grown most since the disk became short.
    fn brake(&self, running: &[Arc<Entry>]) {
        let grown = running.iter().map(|entry| (entry.size().grown_in_shortage(), entry));
        let Some((bytes, entry)) = grown.max_by_key(|(bytes, _)| *bytes) else { return };
        if bytes < LEAST_ALLOWANCE || entry.lock().ladder.phase() != Phase::Running {
            return;
        }
        tracing::warn!(database = %entry.id, bytes, "the fastest grower is stopped: the disk is nearly full");
        self.shared.storage.growers().insert(entry.id);
        self.begin_stop(entry, ClosingReason::NodeStorageShort);
    }

    fn running(&self) -> Vec<Arc<Entry>> {
        let entries = self.shared.entries.pin();
        entries.values().filter(|entry| entry.lock().ladder.phase() == Phase::Running).cloned().collect()
    }
}
