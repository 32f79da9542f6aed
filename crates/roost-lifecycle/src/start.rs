//! Steps up: starting, thawing, and starting again after a crash.
//!
//! Starts are admitted in order of arrival: the dispatcher takes one entry after the other from the queue, waits for a
//! place among the concurrent starts and for memory, and only then looks at the next.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use roost_catalog::model::{Database, State, Transition, UsageDelta, VolumeRecord};
use roost_postgres::settings::WalLevel;
use roost_warden::protocol::{ShutdownMode, StartSpec};
use roost_warden::{Instance, WardenError};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use crate::Lifecycle;
use crate::entry::{ClosingReason, Entry, Run, step_time};
use crate::error::StartFailure;
use crate::hook::HookContext;
use crate::ladder::{Command, Event, Phase};
use crate::prepare::no_usage;

impl Lifecycle {
    /// Admits starts in order of arrival, for as long as the node lives.
    pub(crate) async fn dispatch_starts(self, mut queue: mpsc::UnboundedReceiver<Arc<Entry>>) {
        let places = Arc::new(Semaphore::new(self.shared.config.concurrent_starts.max(1)));
        while let Some(entry) = queue.recv().await {
            // The semaphore is never closed.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let room = self.make_room(&entry).await;
            let lifecycle = self.clone();
            tokio::spawn(async move {
                lifecycle.start(&entry, room).await;
                entry.admitted.store(false, Ordering::Relaxed);
                lifecycle.shared.starting.fetch_sub(1, Ordering::Relaxed);
                drop(place);
            });
        }
    }

    async fn start(&self, entry: &Arc<Entry>, room: Result<(), StartFailure>) {
        let result = match room {
            Ok(()) if self.shared.shutting_down.load(Ordering::Acquire) => Err(StartFailure::ShuttingDown),
            Ok(()) => self.start_instance(entry).await,
            Err(failure) => Err(failure),
        };
        match result {
            Ok(run) => {
                let (command, took, from) = {
                    let now = Instant::now();
                    let mut inner = entry.lock();
                    inner.run = Some(run.clone());
                    inner.failure = None;
                    let (took, from) = step_time(&inner, now);
                    (entry.on(&mut inner, Event::Started, now), took, from)
                };
                self.carry_out(entry, command);
                self.record(entry, from, State::Running, took, "wake");
                self.reload_after_step(entry).await;
                if *run.exited.borrow() {
                    // It died before the entry knew it, so nobody has acted on its exit yet.
                    self.exited(entry, run.generation);
                }
            }
            Err(failure) => {
                if !matches!(failure, StartFailure::ShuttingDown) {
                    tracing::error!(database = %entry.id, error = %failure, "start failed");
                    self.shared.metrics.start_failed();
                }
                let now = Instant::now();
                let mut inner = entry.lock();
                let (took, from) = step_time(&inner, now);
                inner.failures_seen += 1;
                let number = inner.failures_seen;
                let reason = failure.to_string();
                inner.failure = Some((number, Arc::new(failure)));
                entry.on(&mut inner, Event::StartFailed, now);
                drop(inner);
                entry.notify();
                self.record(entry, from, State::Failed, took, &reason);
            }
        }
    }

    async fn start_instance(&self, entry: &Arc<Entry>) -> Result<Arc<Run>, StartFailure> {
        let database = self.shared.catalog.database(&entry.id).await?;
        let database =
            database.filter(|database| database.deleted_at.is_none()).ok_or(StartFailure::Deleted)?;
        // Settings that change from here on are not in what the instance is started with.
        entry.reload_due.store(false, Ordering::SeqCst);
        let read_only = self.storage_at_start(entry, &database)?;
        let instance = self.launch(entry, self.start_spec(entry, &database, read_only)).await?;
        let volume = database.volume.is_none().then(|| VolumeRecord {
            template: instance.template.clone(),
            system_identifier: instance.system_identifier,
        });
        let run = self.install(entry, instance, Arc::new(database.settings));
        let entered = async {
            if let Some(volume) = volume {
                // Before the first client's first byte, or a node that dies now could take the volume for missing.
                self.shared.catalog.set_volume(&entry.id, volume).await?;
            }
            self.after_start(entry, &run).await
        };
        if let Err(failure) = entered.await {
            let _ = self.end_run(entry, &run, ShutdownMode::Fast).await;
            return Err(failure);
        }
        Ok(run)
    }

    async fn launch(&self, entry: &Entry, mut spec: StartSpec) -> Result<Instance, StartFailure> {
        match self.shared.warden.start(spec.clone()).await {
            // An earlier node's request may have finished after we asked what runs.
            Err(WardenError::AlreadyRunning { .. }) => {
                entry.reload_due.store(true, Ordering::SeqCst);
                self.find_running(entry).await
            }
            Err(WardenError::StartFailed { log, .. })
                if spec.settings.wal_level != WalLevel::Logical && needs_logical_wal(&log) =>
            {
                tracing::warn!(
                    database = %entry.id,
                    "it has logical replication slots, so wal_level stays logical until they are dropped"
                );
                spec.settings.wal_level = WalLevel::Logical;
                Ok(self.shared.warden.start(spec).await?)
            }
            Err(error @ WardenError::StartFailed { .. }) => {
                // Postgres says so in many ways; its files may say it in one.
                let report = self.shared.warden.inspect_volume(&entry.volume).await;
                match report.ok().and_then(|report| report.damage) {
                    Some(detail) => Err(WardenError::VolumeDamaged { volume: entry.volume, detail }.into()),
                    None => Err(error.into()),
                }
            }
            other => Ok(other?),
        }
    }

    fn start_spec(&self, entry: &Entry, database: &Database, read_only: bool) -> StartSpec {
        let config = &self.shared.config;
        StartSpec {
            volume: entry.volume,
            major: database.major,
            system_identifier: system_identifier(SystemTime::now()),
            create: database.volume.is_none(),
            settings: config.instance_settings(&database.settings, read_only),
            limits: config.limits(&database.settings),
            deadline: config.start_deadline,
        }
    }

    async fn find_running(&self, entry: &Entry) -> Result<Instance, StartFailure> {
        let instances = self.shared.warden.instances().await?;
        let found = instances.into_iter().find(|instance| instance.volume == entry.volume);
        let instance = found.ok_or(WardenError::NotRunning { volume: entry.volume })?;
        if instance.frozen {
            self.shared.warden.thaw(&entry.volume).await?;
        }
        Ok(instance)
    }

    /// Makes a run of an instance, and watches for its exit.
    pub(crate) fn install(
        &self,
        entry: &Arc<Entry>,
        instance: Instance,
        settings: Arc<roost_catalog::model::Settings>,
    ) -> Arc<Run> {
        let (exited_sender, exited) = watch::channel(false);
        let mut inner = entry.lock();
        inner.generation += 1;
        inner.settings = settings;
        let run = Arc::new(Run {
            generation: inner.generation,
            socket_dir: Arc::from(instance.socket_dir),
            log: Arc::from(instance.log),
            closing: watch::Sender::new(None),
            exited,
            since: Instant::now(),
        });
        drop(inner);
        let (lifecycle, entry, generation) = (self.clone(), entry.clone(), run.generation);
        tokio::spawn(async move {
            if let Err(error) = roost_warden::ended(instance.exit).await {
                // Then only its sessions notice when it dies.
                tracing::error!(database = %entry.id, %error, "a process cannot be watched for its exit");
                std::future::pending::<()>().await;
            }
            let _ = exited_sender.send(true);
            lifecycle.exited(&entry, generation);
        });
        run
    }

    async fn after_start(&self, entry: &Entry, run: &Run) -> Result<(), StartFailure> {
        for hook in &self.shared.hooks {
            let context = HookContext { database: &entry.id, socket_dir: &run.socket_dir };
            let failed = |detail| StartFailure::Hook { hook: hook.name(), detail };
            match tokio::time::timeout(hook.bound(), hook.after_start(context)).await {
                Ok(result) => result.map_err(failed)?,
                Err(_) => return Err(failed(format!("not done after {:?}", hook.bound()))),
            }
        }
        Ok(())
    }

    /// Opens the freezer.
    pub(crate) async fn thaw(&self, entry: &Arc<Entry>) {
        let generation = entry.lock().generation;
        let result = self.shared.warden.thaw(&entry.volume).await;
        let now = Instant::now();
        match result {
            Ok(()) => {
                let (command, took, from) = {
                    let mut inner = entry.lock();
                    if inner.generation != generation {
                        return; // that run is over, and this answer says nothing about the next one
                    }
                    let (took, from) = step_time(&inner, now);
                    (entry.on(&mut inner, Event::Thawed, now), took, from)
                };
                self.carry_out(entry, command);
                if command == Command::Open {
                    self.record(entry, from, State::Running, took, "wake");
                    self.reload_after_step(entry).await;
                }
            }
            Err(WardenError::NotRunning { .. } | WardenError::Closed) => {} // its exit, or the node's, is on its way
            Err(error) => {
                // Nothing can be asked of processes that cannot be thawed; recovery loses no commit.
                tracing::error!(database = %entry.id, %error, "thawing failed; the instance is killed and restarted");
                let _ = self.shared.warden.shutdown(&entry.volume, ShutdownMode::Kill).await;
            }
        }
    }

    /// Settings may have changed while the step up was made.
    async fn reload_after_step(&self, entry: &Entry) {
        if let Err(error) = self.reload_if_due(entry).await {
            tracing::error!(database = %entry.id, %error, "changed settings did not reach Postgres");
        }
    }

    /// The postmaster of a run is gone. If nobody asked for that, the database is started again.
    pub(crate) fn exited(&self, entry: &Arc<Entry>, generation: u64) {
        let mut inner = entry.lock();
        // Whoever takes the run out of the entry acts on its end, so it happens once.
        let Some(run) = inner.run.clone().filter(|run| run.generation == generation) else { return };
        if matches!(inner.ladder.phase(), Phase::Stopping { .. }) {
            return; // whoever stops it waits for the exit as well
        }
        let command = entry.on(&mut inner, Event::Exited, Instant::now());
        inner.run = None;
        run.closing.send_replace(Some(ClosingReason::Crashed));
        drop(inner);
        self.shared.metrics.crashed();
        self.carry_out(entry, command);
    }

    /// After an exit that nobody asked for: cleans up, and starts again when it is due.
    pub(crate) async fn recover(&self, entry: &Arc<Entry>, at: Instant) {
        entry.notify();
        self.record_cpu(entry).await;
        let mut changes = entry.subscribe();
        let report = self.release_instance(entry).await;
        let clean = report.as_ref().is_some_and(|report| report.clean);
        let event = if clean {
            // An earlier node had asked for this stop; nothing is lost and nobody waits for a restart.
            Event::Stopped
        } else {
            tracing::error!(database = %entry.id, ?report, "Postgres died; it is started again");
            self.record(entry, State::Running, State::Failed, Duration::ZERO, &crash_reason(report.as_ref()));
            while matches!(entry.lock().ladder.phase(), Phase::Recovering { .. })
                && let Ok(Ok(())) = tokio::time::timeout_at(at, changes.changed()).await
            {}
            if self.shared.shutting_down.load(Ordering::Acquire) { Event::Stopped } else { Event::RestartDue }
        };
        let mut inner = entry.lock();
        inner.ended += 1;
        let command = entry.on(&mut inner, event, Instant::now());
        drop(inner);
        entry.memory_bytes.store(0, Ordering::Relaxed);
        self.carry_out(entry, command);
        entry.notify();
        self.retire_if_unused(entry);
    }

    /// Releases what a dead instance left, trying again for as long as its processes are not gone.
    pub(crate) async fn release_instance(&self, entry: &Entry) -> Option<roost_warden::ExitReport> {
        let mut pause = Duration::from_millis(1);
        loop {
            match self.shared.warden.release(&entry.volume).await {
                Ok(report) => return Some(report),
                Err(WardenError::Closed) => return None,
                // The exit was seen here a moment before the warden saw it.
                Err(WardenError::AlreadyRunning { .. }) if pause < Duration::from_secs(1) => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(error) => {
                    tracing::error!(database = %entry.id, %error, "an ended instance could not be released yet");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Writes a step into the history and the metrics.
    pub(crate) fn record(&self, entry: &Entry, from: State, to: State, took: Duration, reason: &str) {
        self.shared.metrics.step(from, to, took);
        tracing::info!(database = %entry.id, %from, %to, took_ms = took.as_secs_f64() * 1e3, reason, "step");
        let at = SystemTime::now();
        let reason = reason.chars().take(500).collect();
        self.shared.catalog.record_transition(Transition { database: entry.id, at, from, to, took, reason });
    }

    /// Adds the time that a run lasted, and the processor time that it took, to the usage counters. To be called when
    /// it has ended and before it is released, which forgets them.
    pub(crate) async fn record_run(&self, entry: &Entry, run: &Run) {
        self.shared.catalog.record_usage(UsageDelta { running: run.since.elapsed(), ..no_usage(entry) });
        self.record_cpu(entry).await;
    }

    async fn record_cpu(&self, entry: &Entry) {
        if let Ok(usage) = self.shared.warden.usage(&entry.volume).await {
            self.shared.catalog.record_usage(UsageDelta { cpu: usage.cpu, ..no_usage(entry) });
        }
    }
}

/// Whether Postgres refused to start because logical slots are there and `wal_level` is lower.
fn needs_logical_wal(log: &[String]) -> bool {
    log.iter().any(|line| line.contains("logical replication slot") && line.contains("wal_level"))
}

fn crash_reason(report: Option<&roost_warden::ExitReport>) -> String {
    match report {
        Some(report) if report.out_of_memory => "crashed: the kernel ended it for want of memory".to_owned(),
        Some(report) => format!("crashed: {:?}", report.status),
        None => "crashed".to_owned(),
    }
}

/// An identifier as Postgres makes them (`BootStrapXLOG`): the time in the upper half; the rest is random.
fn system_identifier(now: SystemTime) -> u64 {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), since.subsec_nanos());
    (since.as_secs() << 32) | (random & 0xffff_ffff)
}
