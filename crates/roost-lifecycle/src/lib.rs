//! The ladder: who may use a database, and when it goes down a rung.
//!
//! The gateway asks [`Lifecycle::acquire`] for a [`Presence`]; that wakes the database if need be, single-flight, with
//! each caller's own deadline. While no session is active the [`sweep`] makes steps down: it prepares the database
//! (roles are read for logins while it sleeps, statistics are brought up to date), freezes it, and later stops it. What
//! may follow what is decided by the pure [`ladder`]; whether a session may send a byte, by the [`gate`].
//!
//! Invariants:
//! - a database that is stopped and wanted by nobody has no entry, no task and no timer here;
//! - an instance is frozen only while its gate is closed and no activity lease is out;
//! - an instance is stopped only without presence holds, unless a person, the owner's policy, a full disk, or the end
//!   of the node asks for it, and then each session is told why;
//! - a stop is a clean shutdown; a postmaster that does not obey is killed only after the stop deadline.

mod adopt;
mod config;
mod entry;
mod error;
pub mod gate;
pub mod hook;
pub mod ladder;
mod logs;
mod memory;
mod metrics;
mod prepare;
mod presence;
mod roles;
mod shortage;
mod start;
mod step;
mod storage;
mod sweep;
mod volume_size;
mod wraparound;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use prometheus_client::registry::Registry;
use roost_catalog::Catalog;
use roost_catalog::id::DatabaseId;
use roost_catalog::model::State;
use roost_warden::Warden;
use roost_warden::protocol::Capabilities;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use config::LifecycleConfig;
pub use entry::ClosingReason;
pub use error::{StartFailure, StepError, WakeError};
pub use presence::Presence;
pub use roles::{RoleSource, RoleUnavailable};
pub use shortage::Shortage;

use entry::{Entry, Run, state_of};
use hook::Hook;
use ladder::{Command, Event, Phase};
use metrics::LifecycleMetrics;

/// The ladder of all databases of a node. A cheap handle.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    shared: Arc<Shared>,
}

struct Shared {
    catalog: Catalog,
    warden: Warden,
    capabilities: Capabilities,
    /// Where steps run: sessions call from runtimes of their own, which may end before a step does.
    runtime: Handle,
    config: LifecycleConfig,
    hooks: Vec<Arc<dyn Hook>>,
    entries: papaya::HashMap<DatabaseId, Arc<Entry>>,
    /// Starts in order of arrival; the dispatcher admits them one after the other.
    starts: mpsc::UnboundedSender<Arc<Entry>>,
    /// Starts that were asked for and are not done, for metrics and admission.
    starting: AtomicU64,
    shutting_down: AtomicBool,
    /// What the watcher of storage knows.
    storage: storage::Watch,
    metrics: LifecycleMetrics,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lifecycle").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What is known of a database at this moment without waking it.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Where it is on the ladder.
    pub state: State,
    /// Sessions that use or wait for it.
    pub sessions: u32,
    /// Sessions that Postgres owes something.
    pub active: u64,
    /// Since when it is in this state; `None` if it has simply been stopped for longer than the node remembers.
    pub since: Option<SystemTime>,
    /// How long nothing has been active.
    pub idle_for: Option<Duration>,
    /// Memory charged to its instance when last measured, in bytes; `None` where nothing measures it.
    pub memory_bytes: Option<u64>,
    /// Why the last start failed, if it did.
    pub failure: Option<String>,
}

/// The databases in memory by state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Census {
    /// How many are in each state.
    pub states: BTreeMap<&'static str, u64>,
    /// Sessions that use or wait for a database.
    pub sessions: u64,
}

impl Lifecycle {
    /// Begins the lifecycle of a node: adopts what already runs, and starts sweeping. Must be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the warden does not answer.
    pub async fn begin(
        catalog: Catalog,
        warden: Warden,
        config: LifecycleConfig,
        hooks: Vec<Arc<dyn Hook>>,
    ) -> Result<Self, StepError> {
        let failed = |error| StepError::Warden(Arc::new(error));
        let capabilities = warden.capabilities().await.map_err(failed)?;
        let (starts, queue) = mpsc::unbounded_channel();
        let lifecycle = Self {
            shared: Arc::new(Shared {
                catalog,
                warden,
                capabilities,
                runtime: Handle::current(),
                config,
                hooks,
                entries: papaya::HashMap::new(),
                starts,
                starting: AtomicU64::new(0),
                shutting_down: AtomicBool::new(false),
                storage: storage::Watch::default(),
                metrics: LifecycleMetrics::default(),
            }),
        };
        lifecycle.adopt().await.map_err(failed)?;
        tokio::spawn(lifecycle.clone().dispatch_starts(queue));
        tokio::spawn(lifecycle.clone().sweep());
        tokio::spawn(lifecycle.clone().watch_storage());
        tokio::spawn(lifecycle.clone().cap_logs());
        tokio::spawn(lifecycle.clone().prevent_wraparound());
        Ok(lifecycle)
    }

    /// Wakes a database if need be and holds it for a session. The activity lease of the result is taken.
    ///
    /// # Errors
    ///
    /// When it does not run by `deadline`, cannot be started, or does not exist.
    pub async fn acquire(&self, id: &DatabaseId, deadline: Instant) -> Result<Presence, WakeError> {
        let mut presence = self.hold(id)?;
        let entry = presence.entry().clone();
        let run = self.enter(&entry, None, deadline).await?;
        presence.entered(run);
        Ok(presence)
    }

    /// What is known of a database, without waking it.
    pub fn snapshot(&self, id: &DatabaseId) -> Snapshot {
        let Some(entry) = self.shared.entries.pin().get(id).cloned() else {
            return Snapshot {
                state: State::Stopped,
                sessions: 0,
                active: 0,
                since: None,
                idle_for: None,
                memory_bytes: None,
                failure: None,
            };
        };
        let inner = entry.lock();
        Snapshot {
            state: state_of(inner.ladder.phase()),
            sessions: inner.holds,
            active: entry.gate.leases(),
            since: Some(inner.state_since),
            idle_for: inner.run.is_some().then(|| entry.gate.idle_for(Instant::now())),
            memory_bytes: inner.run.is_some().then(|| entry.memory()).filter(|bytes| *bytes > 0),
            failure: inner.failure.as_ref().map(|(_, failure)| failure.to_string()),
        }
    }

    /// How many databases are in each state, those that are simply stopped left out, and how many sessions there are.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        for entry in self.shared.entries.pin().values() {
            let inner = entry.lock();
            *census.states.entry(state_of(inner.ladder.phase()).as_str()).or_default() += 1;
            census.sessions += u64::from(inner.holds);
        }
        census
    }

    /// Registers counters, histograms and the census under `lifecycle_…`.
    pub fn register(&self, registry: &mut Registry) {
        self.shared.metrics.register(registry);
        registry.register_collector(Box::new(self.clone()));
    }

    /// Where a database is on the ladder.
    pub fn state(&self, id: &DatabaseId) -> State {
        self.shared.entries.pin().get(id).map_or(State::Stopped, |entry| entry.state())
    }

    /// What the machine can do, as the warden found it.
    pub fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    /// The warden, for volume work that is no step on the ladder.
    pub fn warden(&self) -> &Warden {
        &self.shared.warden
    }

    /// The node's defaults and bounds.
    pub fn config(&self) -> &LifecycleConfig {
        &self.shared.config
    }

    /// Marks a hold on a database's entry, making the entry if there is none.
    fn hold(&self, id: &DatabaseId) -> Result<Presence, WakeError> {
        if self.shared.shutting_down.load(Ordering::Acquire) {
            return Err(WakeError::ShuttingDown);
        }
        loop {
            let known = self.shared.entries.pin().get(id).cloned();
            let entry = match known {
                Some(entry) => entry,
                None => {
                    let Some(fresh) = Entry::new(*id, Instant::now()) else {
                        return Err(WakeError::NotFound);
                    };
                    self.shared.entries.pin().get_or_insert_with(*id, || Arc::new(fresh)).clone()
                }
            };
            let mut inner = entry.lock();
            if !inner.retired {
                inner.holds += 1;
                drop(inner);
                return Ok(Presence::held(self.clone(), entry));
            }
            // It is being removed by another thread under this very lock's protection; look again.
            drop(inner);
            self.forget(&entry);
        }
    }

    /// Waits until the database runs, and takes an activity lease. A session that is `bound` to a run gets a lease on
    /// that run or none: it does not wake the database for a session that is over.
    async fn enter(
        &self,
        entry: &Arc<Entry>,
        bound: Option<&Run>,
        deadline: Instant,
    ) -> Result<Arc<Run>, WakeError> {
        let began = Instant::now();
        let mut changes = entry.subscribe();
        let mut failures_before = None;
        loop {
            if self.shared.shutting_down.load(Ordering::Acquire) {
                return Err(WakeError::ShuttingDown);
            }
            if entry.gate.enter() {
                // The run is put in place before the gate opens, and a crash closes the gate before it removes the run.
                match entry.run() {
                    Some(run) if bound.is_none_or(|bound| bound.generation == run.generation) => {
                        return Ok(run);
                    }
                    _ => entry.gate.leave_unnoticed(),
                }
            }
            {
                let mut inner = entry.lock();
                if let Some(run) = bound {
                    let reason = *run.closing.borrow();
                    let current = inner.run.as_ref().is_some_and(|now| now.generation == run.generation);
                    if reason.is_some() || !current {
                        return Err(WakeError::Closing(reason.unwrap_or(ClosingReason::Crashed)));
                    }
                }
                let seen = *failures_before.get_or_insert(inner.failures_seen);
                if inner.failures_seen != seen
                    && let Some((_, cause)) = &inner.failure
                {
                    let retry_in = match inner.ladder.phase() {
                        Phase::BackingOff { until } => until.saturating_duration_since(Instant::now()),
                        _ => Duration::ZERO,
                    };
                    return Err(wake_failure(cause, retry_in));
                }
                let command = entry.on(&mut inner, Event::Demand, Instant::now());
                if let Command::Refuse { retry_in } = command {
                    return Err(match &inner.failure {
                        Some((_, cause)) => wake_failure(cause, retry_in),
                        None => WakeError::NotFound,
                    });
                }
                drop(inner);
                self.carry_out(entry, command);
            }
            let changed = changes.changed();
            match tokio::time::timeout_at(deadline, changed).await {
                Ok(_) => {}
                Err(_) => {
                    return Err(self.deadline_error(entry, began.elapsed()));
                }
            }
        }
    }

    fn deadline_error(&self, entry: &Entry, waited: Duration) -> WakeError {
        match self.lacking_memory(entry) {
            Some(error) => error,
            None => WakeError::Deadline { waited, state: entry.state() },
        }
    }

    /// Carries out what the ladder decided, in a task of its own.
    fn carry_out(&self, entry: &Arc<Entry>, command: Command) {
        let (lifecycle, entry) = (self.clone(), entry.clone());
        let runtime = &self.shared.runtime;
        match command {
            Command::Nothing | Command::Refuse { .. } => {}
            Command::Open => entry.notify(),
            Command::Start => {
                entry.notify();
                self.shared.starting.fetch_add(1, Ordering::Relaxed);
                // The dispatcher lives as long as this handle, so the queue is open.
                let _ = self.shared.starts.send(entry);
            }
            Command::Thaw => drop(runtime.spawn(async move { lifecycle.thaw(&entry).await })),
            Command::Freeze => drop(runtime.spawn(async move { lifecycle.freeze_now(&entry).await })),
            Command::Recover { at } => {
                drop(runtime.spawn(async move { lifecycle.recover(&entry, at).await }));
            }
            Command::Shutdown { frozen } => {
                drop(runtime.spawn(async move { lifecycle.shut_down(&entry, frozen).await }));
            }
        }
    }

    /// Takes a hold away, and forgets the entry if nothing needs it any more.
    fn release_hold(&self, entry: &Arc<Entry>) {
        let mut inner = entry.lock();
        inner.holds = inner.holds.saturating_sub(1);
        let idle = inner.holds == 0 && inner.ladder.phase() == Phase::Stopped;
        inner.retired |= idle;
        drop(inner);
        if idle {
            self.forget(entry);
        }
    }

    /// Removes a retired entry from the map, unless a newer one stands in its place.
    fn forget(&self, entry: &Arc<Entry>) {
        let entries = self.shared.entries.pin();
        let _ = entries.remove_if(&entry.id, |_, present| Arc::ptr_eq(present, entry));
    }

    /// Retires an entry that is stopped and held by nobody.
    fn retire_if_unused(&self, entry: &Arc<Entry>) {
        let mut inner = entry.lock();
        let unused = inner.holds == 0 && inner.ladder.phase() == Phase::Stopped;
        inner.retired |= unused;
        drop(inner);
        if unused {
            self.forget(entry);
        }
    }
}

fn wake_failure(cause: &Arc<StartFailure>, retry_in: Duration) -> WakeError {
    match **cause {
        StartFailure::Deleted => WakeError::NotFound,
        StartFailure::ShuttingDown => WakeError::ShuttingDown,
        StartFailure::Admission { needed_bytes, budget_bytes } => {
            WakeError::Admission { needed_bytes, budget_bytes }
        }
        _ => WakeError::Failed { cause: cause.clone(), retry_in },
    }
}
