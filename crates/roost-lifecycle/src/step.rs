//! Steps down: freezing and stopping, by policy, by hand, for memory, or because the node ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use roost_catalog::id::DatabaseId;
use roost_catalog::model::State;
use roost_warden::WardenError;
use roost_warden::protocol::ShutdownMode;
use tokio::time::Instant;

use crate::Lifecycle;
use crate::entry::{ClosingReason, Entry, Run, step_time};
use crate::error::{StepError, WakeError};
use crate::hook::HookContext;
use crate::ladder::{Command, Event, Phase};
use crate::wraparound::HURRY;

/// How long a postmaster that ignored a fast shutdown has for an immediate one, and again until it is killed.
const FORCED_STOP: Duration = Duration::from_secs(10);

impl Lifecycle {
    /// Wakes a database by hand; it goes down again by its idle policy.
    ///
    /// # Errors
    ///
    /// As [`Lifecycle::acquire`].
    pub async fn wake(&self, id: &DatabaseId, deadline: Instant) -> Result<(), WakeError> {
        self.acquire(id, deadline).await.map(drop)
    }

    /// Freezes a database by hand. One that is stopped stays so.
    ///
    /// # Errors
    ///
    /// When sessions are active, or the state does not allow it.
    pub async fn freeze(&self, id: &DatabaseId) -> Result<(), StepError> {
        let Some(entry) = self.shared.entries.pin().get(id).cloned() else {
            return Err(StepError::WrongState { state: State::Stopped });
        };
        let _step = entry.steps.lock().await;
        match entry.state() {
            State::Frozen => return Ok(()),
            State::Running => {}
            state => return Err(StepError::WrongState { state }),
        }
        self.prepare(&entry).await;
        if !self.try_freeze(&entry) {
            return Err(match entry.state() {
                State::Frozen => return Ok(()),
                State::Running => StepError::Busy { active: entry.gate.leases() },
                state => StepError::WrongState { state },
            });
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        self.wait_for(&entry, deadline, |phase| !matches!(phase, Phase::Freezing { .. })).await?;
        match entry.state() {
            State::Frozen => Ok(()),
            state => Err(StepError::WrongState { state }),
        }
    }

    /// Stops a database by hand, whatever its sessions do: each is told `reason`. Returns once it is stopped.
    ///
    /// # Errors
    ///
    /// When it is not stopped by `deadline`; the stop goes on.
    pub async fn stop(
        &self,
        id: &DatabaseId,
        reason: ClosingReason,
        deadline: Instant,
    ) -> Result<(), StepError> {
        let Some(entry) = self.shared.entries.pin().get(id).cloned() else { return Ok(()) };
        // Like every step down but those that are in a hurry.
        if reason == ClosingReason::Stopped && entry.state() == State::Running && entry.gate.leases() == 0 {
            let _step = entry.steps.lock().await;
            self.prepare(&entry).await;
        }
        self.stop_entry(&entry, reason, deadline).await
    }

    /// A database's settings changed: what can change without a restart does so now.
    ///
    /// # Errors
    ///
    /// When the catalog or the warden fails.
    pub async fn settings_changed(&self, id: &DatabaseId) -> Result<(), StepError> {
        let Some(entry) = self.shared.entries.pin().get(id).cloned() else { return Ok(()) };
        let Ok(Some(database)) = self.shared.catalog.database(id).await else { return Ok(()) };
        entry.lock().settings = Arc::new(database.settings);
        // Another limit is another verdict.
        entry.size().forget_measurement();
        entry.reload_due.store(true, Ordering::SeqCst);
        self.reload_if_due(&entry).await.map_err(|error| StepError::Warden(Arc::new(error)))
    }

    /// Writes the configuration of a running instance again if it changed. That of one that does not run now is written
    /// when it runs: whoever makes it run asks again afterwards.
    pub(crate) async fn reload_if_due(&self, entry: &Entry) -> Result<(), WardenError> {
        // One after the other, or an older configuration could be written last.
        let _reload = entry.reloads.lock().await;
        if entry.lock().ladder.phase() != Phase::Running || !entry.reload_due.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        // What the entry knows may be older: a start that was under way brought what it had read before.
        if let Ok(Some(database)) = self.shared.catalog.database(&entry.id).await {
            entry.lock().settings = Arc::new(database.settings);
        }
        let settings = entry.lock().settings.clone();
        let read_only = entry.read_only.load(Ordering::SeqCst);
        let mut settings = self.shared.config.instance_settings(&settings, read_only);
        if entry.autovacuum_hurries.load(Ordering::SeqCst) {
            settings.extra.extend(HURRY.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        match self.shared.warden.reload(&entry.volume, settings).await {
            Ok(()) | Err(WardenError::NotRunning { .. }) => Ok(()),
            Err(error) => {
                entry.reload_due.store(true, Ordering::SeqCst);
                Err(error)
            }
        }
    }

    /// Stops everything, longest idle first, and returns when it is done or the deadline has passed. No session is
    /// admitted any more.
    pub async fn shut_down_all(&self, deadline: Instant) -> usize {
        self.shared.shutting_down.store(true, Ordering::Release);
        let entries: Vec<_> = self.shared.entries.pin().values().cloned().collect();
        for entry in &entries {
            entry.notify();
        }
        let mut stops = tokio::task::JoinSet::new();
        // A checkpoint each: as many at once as the machine starts at once, or they only delay each other.
        let places = Arc::new(tokio::sync::Semaphore::new(self.shared.config.concurrent_starts.max(1) * 4));
        for entry in entries {
            let (lifecycle, places) = (self.clone(), places.clone());
            stops.spawn(async move {
                let _place = places.acquire().await;
                lifecycle.stop_entry(&entry, ClosingReason::ShuttingDown, deadline).await.is_ok()
            });
        }
        let mut left = 0;
        while let Some(stopped) = stops.join_next().await {
            left += usize::from(!stopped.unwrap_or(false));
        }
        left
    }

    /// Refuses new sessions from now on, because the node hands over to its successor.
    pub fn refuse_sessions(&self) {
        self.shared.shutting_down.store(true, Ordering::Release);
        for entry in self.shared.entries.pin().values() {
            entry.notify();
        }
    }

    pub(crate) async fn stop_entry(
        &self,
        entry: &Arc<Entry>,
        reason: ClosingReason,
        deadline: Instant,
    ) -> Result<(), StepError> {
        let began = Instant::now();
        let mut changes = entry.subscribe();
        // How many runs had ended when the end of this one was under way: a demand may have begun the next one before
        // this task looks again, and that one is not to be stopped.
        let mut ended_before = None;
        loop {
            let (phase, ended) = {
                let inner = entry.lock();
                (inner.ladder.phase(), inner.ended)
            };
            if phase == Phase::Stopped || ended_before.is_some_and(|before| before != ended) {
                self.retire_if_unused(entry);
                return Ok(());
            }
            if ended_before.is_none() {
                // A start that is under way has to end first: then nothing changes here.
                ended_before = self.begin_stop(entry, reason);
            }
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                return Err(StepError::Deadline(began.elapsed()));
            }
        }
    }

    /// Begins a stop, whoever holds the database. How many runs had ended before, if a stop is under way now.
    pub(crate) fn begin_stop(&self, entry: &Arc<Entry>, reason: ClosingReason) -> Option<u64> {
        let mut inner = entry.lock();
        let phase = inner.ladder.phase();
        let command = entry.on(&mut inner, Event::Stop, Instant::now());
        if let Command::Shutdown { .. } = command {
            if let Some(run) = &inner.run {
                run.closing.send_replace(Some(reason));
            }
            inner.step_began = Some((Instant::now(), crate::entry::state_of(phase)));
        }
        let phase_now = inner.ladder.phase();
        let under_way = matches!(phase_now, Phase::Stopping { .. }).then_some(inner.ended);
        drop(inner);
        if phase_now != phase {
            entry.notify();
        }
        self.carry_out(entry, command);
        under_way
    }

    async fn wait_for(
        &self,
        entry: &Entry,
        deadline: Instant,
        done: impl Fn(Phase) -> bool,
    ) -> Result<(), StepError> {
        let began = Instant::now();
        let mut changes = entry.subscribe();
        while !done(entry.lock().ladder.phase()) {
            tokio::time::timeout_at(deadline, changes.changed())
                .await
                .map_err(|_| StepError::Deadline(began.elapsed()))
                .map(drop)?;
        }
        Ok(())
    }

    /// Closes the gate of an idle running database and begins to freeze it. False when somebody is active.
    pub(crate) fn try_freeze(&self, entry: &Arc<Entry>) -> bool {
        let mut inner = entry.lock();
        if inner.ladder.phase() != Phase::Running || !entry.gate.close_if_empty() {
            return false;
        }
        let command = entry.on(&mut inner, Event::Freeze, Instant::now());
        drop(inner);
        self.carry_out(entry, command);
        true
    }

    /// Begins a clean stop if no session holds the database. False when one does.
    pub(crate) fn try_stop(&self, entry: &Arc<Entry>) -> bool {
        let mut inner = entry.lock();
        let phase = inner.ladder.phase();
        if inner.holds > 0 || !matches!(phase, Phase::Running | Phase::Frozen) {
            return false;
        }
        if phase == Phase::Running && !entry.gate.close_if_empty() {
            return false;
        }
        let command = entry.on(&mut inner, Event::Stop, Instant::now());
        inner.step_began = Some((Instant::now(), crate::entry::state_of(phase)));
        drop(inner);
        self.carry_out(entry, command);
        true
    }

    /// Freezes; the gate is closed already.
    pub(crate) async fn freeze_now(&self, entry: &Arc<Entry>) {
        let generation = entry.lock().generation;
        let result = self.shared.warden.freeze(&entry.volume).await;
        let (command, took, frozen) = {
            let now = Instant::now();
            let mut inner = entry.lock();
            if inner.generation != generation {
                return; // that run is over, and this answer says nothing about the next one
            }
            let (took, _) = step_time(&inner, now);
            let event = if result.is_ok() { Event::Frozen } else { Event::FreezeFailed };
            (entry.on(&mut inner, event, now), took, inner.ladder.phase() == Phase::Frozen)
        };
        self.carry_out(entry, command);
        entry.notify();
        match result {
            Ok(()) => self.record(entry, State::Running, State::Frozen, took, "idle"),
            Err(error) => tracing::error!(database = %entry.id, %error, "freezing failed"),
        }
        if frozen && self.shared.capabilities.swap_bytes > 0 {
            self.push_out(entry).await;
        }
    }

    /// Pushes a frozen instance's memory out to swap.
    pub(crate) async fn push_out(&self, entry: &Entry) {
        if let Err(error) = self.shared.warden.reclaim(&entry.volume).await {
            tracing::debug!(database = %entry.id, %error, "memory was not pushed out");
        }
        if let Ok(usage) = self.shared.warden.usage(&entry.volume).await {
            entry.memory_bytes.store(usage.memory_bytes, Ordering::Relaxed);
        }
    }

    /// Carries out a stop that the ladder decided.
    pub(crate) async fn shut_down(&self, entry: &Arc<Entry>, frozen: bool) {
        entry.notify();
        let Some(run) = entry.run() else { return self.stopped(entry, "stop") };
        if frozen && let Err(error) = self.shared.warden.thaw(&entry.volume).await {
            tracing::error!(database = %entry.id, %error, "thawing before a stop failed");
        }
        let reason = *run.closing.borrow();
        if !reason.is_some_and(ClosingReason::is_urgent) {
            self.before_stop(entry, &run, frozen).await;
        }
        let clean = self.end_run(entry, &run, ShutdownMode::Fast).await;
        if !clean {
            tracing::error!(database = %entry.id, "the stop was not clean; the next start recovers from the log");
        }
        let reason = match reason {
            None => "stop: idle",
            Some(ClosingReason::Stopped) => "stop: by hand",
            Some(ClosingReason::MemoryPressure) => "stop: memory is short",
            Some(ClosingReason::StorageFull) => "stop: it grew beyond its storage limit",
            Some(ClosingReason::NodeStorageShort) => "stop: it grew while the node's disk was nearly full",
            Some(ClosingReason::Deleted) => "stop: deleted",
            Some(ClosingReason::ShuttingDown) => "stop: the node ends",
            Some(ClosingReason::Crashed) => "stop: crashed",
        };
        self.stopped(entry, reason);
    }

    /// What is owed to a database before its clean shutdown begins.
    async fn before_stop(&self, entry: &Entry, run: &Run, frozen: bool) {
        for hook in &self.shared.hooks {
            let context = HookContext { database: &entry.id, socket_dir: &run.socket_dir };
            let step = tokio::time::timeout(hook.bound(), hook.before_stop(context));
            if !matches!(step.await, Ok(Ok(()))) {
                tracing::warn!(database = %entry.id, hook = hook.name(), "a hook before the stop failed");
            }
        }
        if !frozen {
            self.read_roles(entry, run).await;
        }
    }

    fn stopped(&self, entry: &Arc<Entry>, reason: &str) {
        let now = Instant::now();
        let mut inner = entry.lock();
        let (took, from) = step_time(&inner, now);
        inner.run = None;
        inner.ended += 1;
        let command = entry.on(&mut inner, Event::Stopped, now);
        drop(inner);
        entry.memory_bytes.store(0, Ordering::Relaxed);
        self.record(entry, from, State::Stopped, took, reason);
        self.carry_out(entry, command);
        entry.notify();
        self.retire_if_unused(entry);
    }

    /// Ends a run and cleans up after it: a fast shutdown, and force only after the stop deadline. True if it was clean.
    pub(crate) async fn end_run(&self, entry: &Entry, run: &Run, mode: ShutdownMode) -> bool {
        let mut exited = run.exited.clone();
        let escalation = [
            (mode, self.shared.config.stop_deadline),
            (ShutdownMode::Immediate, FORCED_STOP),
            (ShutdownMode::Kill, FORCED_STOP),
        ];
        for (mode, patience) in escalation {
            match self.shared.warden.shutdown(&entry.volume, mode).await {
                Ok(()) | Err(WardenError::NotRunning { .. }) => {}
                Err(WardenError::Closed) => return false,
                Err(error) => {
                    tracing::error!(database = %entry.id, %error, ?mode, "shutdown was not delivered");
                }
            }
            // A dropped sender means that the watching task is gone, and the run with it.
            if tokio::time::timeout(patience, exited.wait_for(|gone| *gone)).await.is_ok() {
                break;
            }
            tracing::error!(database = %entry.id, ?mode, ?patience, "Postgres did not stop in time");
        }
        self.record_run(entry, run).await;
        self.release_instance(entry).await.is_some_and(|report| report.clean)
    }
}
