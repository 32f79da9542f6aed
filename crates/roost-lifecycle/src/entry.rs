//! A database that is not simply stopped, as the node keeps it in memory: its gate, its place on the ladder, its
//! instance, and who waits for it. A stopped database that nobody asks for has no entry.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use roost_catalog::id::DatabaseId;
use roost_catalog::model::{Settings, State};
use roost_postgres::volume::VolumeId;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::StartFailure;
use crate::gate::Gate;
use crate::ladder::{Command, Event, Ladder, Phase};
use crate::shortage::Shown;
use crate::volume_size::Size;

/// Why Roost takes an instance away from its sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClosingReason {
    /// Somebody stopped the database by hand, or its settings asked for a restart.
    Stopped,
    /// Memory was short, and the database's policy allows stopping under sessions.
    MemoryPressure,
    /// Its storage reached the hard limit.
    StorageFull,
    /// The node's own file system was running full, and this database went on growing.
    NodeStorageShort,
    /// Postgres died; it is being started again.
    Crashed,
    /// The database was deleted.
    Deleted,
    /// The node is shutting down.
    ShuttingDown,
}

impl ClosingReason {
    /// Whether the instance must go at once: every moment more costs disk.
    pub(crate) const fn is_urgent(self) -> bool {
        matches!(self, Self::StorageFull | Self::NodeStorageShort)
    }
}

/// One run of Postgres, from its start to its exit.
#[derive(Debug)]
pub(crate) struct Run {
    /// Counts the runs of one entry, so that a late answer about an earlier one is recognised.
    pub(crate) generation: u64,
    pub(crate) socket_dir: Arc<Path>,
    /// Where Postgres logs to.
    pub(crate) log: Arc<Path>,
    /// Set when Roost takes the instance away from its sessions.
    pub(crate) closing: watch::Sender<Option<ClosingReason>>,
    /// True when the postmaster has exited.
    pub(crate) exited: watch::Receiver<bool>,
    pub(crate) since: Instant,
}

/// What is guarded by the entry's lock; held for a few instructions, never across an await.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) ladder: Ladder,
    /// Sessions that own or wait for a server session.
    pub(crate) holds: u32,
    pub(crate) run: Option<Arc<Run>>,
    pub(crate) generation: u64,
    /// The latest failed start, with a number that grows.
    pub(crate) failure: Option<(u64, Arc<StartFailure>)>,
    pub(crate) failures_seen: u64,
    /// When the outstanding wake or step began, and the state it began from.
    pub(crate) step_began: Option<(Instant, State)>,
    pub(crate) state_since: SystemTime,
    pub(crate) settings: Arc<Settings>,
    /// Counts runs that have ended, so that whoever asked for an end knows it when the next run has begun already.
    pub(crate) ended: u64,
    /// This entry left the map: whoever holds it looks it up again.
    pub(crate) retired: bool,
}

/// One database in memory.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: DatabaseId,
    pub(crate) volume: VolumeId,
    pub(crate) gate: Gate,
    inner: Mutex<Inner>,
    /// Changes whenever the phase or a failure does.
    changed: watch::Sender<u64>,
    /// Held by whoever makes a step down (prepare and freeze, or stop): one at a time.
    pub(crate) steps: tokio::sync::Mutex<()>,
    /// Held by whoever writes the configuration again.
    pub(crate) reloads: tokio::sync::Mutex<()>,
    /// Memory charged to the instance when last measured, in bytes.
    pub(crate) memory_bytes: AtomicU64,
    /// What is known of the volume's size.
    pub(crate) size: Mutex<Size>,
    /// The moment of activity up to which the database was prepared for sleep.
    pub(crate) prepared_at: AtomicU64,
    /// Whether its volume is being measured by the watcher of storage.
    pub(crate) is_being_measured: AtomicBool,
    /// Whether its transactions are read-only by default, for want of storage.
    pub(crate) read_only: AtomicBool,
    /// What its sessions are told of that: from before the first refusal until Postgres refuses no more.
    pub(crate) shortage: Shown,
    /// Whether it is held awake to be vacuumed, and autovacuum is to hurry.
    pub(crate) autovacuum_hurries: AtomicBool,
    /// Whether its configuration changed since it was last written.
    pub(crate) reload_due: AtomicBool,
    /// Whether its start waits for memory.
    pub(crate) lacks_memory: AtomicBool,
    /// Whether its start was admitted, and its memory is thus spoken for.
    pub(crate) admitted: AtomicBool,
}

impl Entry {
    pub(crate) fn new(id: DatabaseId, now: Instant) -> Option<Self> {
        Some(Self {
            id,
            volume: id.to_string().parse().ok()?,
            gate: Gate::new(now),
            inner: Mutex::new(Inner {
                ladder: Ladder::new(),
                holds: 0,
                run: None,
                generation: 0,
                failure: None,
                failures_seen: 0,
                step_began: None,
                state_since: SystemTime::now(),
                settings: Arc::default(),
                ended: 0,
                retired: false,
            }),
            changed: watch::Sender::new(0),
            steps: tokio::sync::Mutex::new(()),
            reloads: tokio::sync::Mutex::new(()),
            memory_bytes: AtomicU64::new(0),
            size: Mutex::default(),
            prepared_at: AtomicU64::new(u64::MAX),
            is_being_measured: AtomicBool::new(false),
            read_only: AtomicBool::new(false),
            shortage: Shown::default(),
            autovacuum_hurries: AtomicBool::new(false),
            reload_due: AtomicBool::new(false),
            lacks_memory: AtomicBool::new(false),
            admitted: AtomicBool::new(false),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock was held left plain values behind, each of them valid.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn size(&self) -> MutexGuard<'_, Size> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows changes from here on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Tells everyone who waits that something changed.
    pub(crate) fn notify(&self) {
        self.changed.send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Feeds an event to the ladder and keeps the gate in step with it.
    pub(crate) fn on(&self, inner: &mut Inner, event: Event, now: Instant) -> Command {
        let before = state_of(inner.ladder.phase());
        let crashed = matches!(inner.ladder.phase(), Phase::Recovering { .. } | Phase::BackingOff { .. });
        let command = inner.ladder.on(event, now);
        let after = state_of(inner.ladder.phase());
        if before != after {
            inner.state_since = SystemTime::now();
        }
        match command {
            Command::Open => self.gate.open(now),
            Command::Shutdown { .. } | Command::Recover { .. } => self.gate.close(),
            Command::Freeze => inner.step_began = Some((now, State::Running)),
            // Also when a freeze or a stop was still under way: that is what it wakes from.
            Command::Thaw => inner.step_began = Some((now, State::Frozen)),
            Command::Start if crashed => inner.step_began = Some((now, State::Failed)),
            Command::Start => inner.step_began = Some((now, State::Stopped)),
            Command::Nothing | Command::Refuse { .. } => {}
        }
        command
    }

    pub(crate) fn state(&self) -> State {
        state_of(self.lock().ladder.phase())
    }

    pub(crate) fn run(&self) -> Option<Arc<Run>> {
        self.lock().run.clone()
    }

    pub(crate) fn memory(&self) -> u64 {
        self.memory_bytes.load(Ordering::Relaxed)
    }
}

/// The word for a phase.
pub(crate) const fn state_of(phase: Phase) -> State {
    match phase {
        Phase::Stopped => State::Stopped,
        Phase::Starting | Phase::Recovering { .. } => State::Starting,
        Phase::Running | Phase::Freezing { .. } => State::Running,
        Phase::Frozen | Phase::Thawing => State::Frozen,
        Phase::Stopping { .. } => State::Stopping,
        Phase::BackingOff { .. } => State::Failed,
    }
}

/// How long an entry's current step has taken so far, and where it came from.
pub(crate) fn step_time(inner: &Inner, now: Instant) -> (Duration, State) {
    inner.step_began.map_or((Duration::ZERO, State::Stopped), |(began, from)| {
        (now.saturating_duration_since(began), from)
    })
}
