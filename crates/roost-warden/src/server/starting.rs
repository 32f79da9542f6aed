//! From a request to start until Postgres accepts connections, or until it is clear that it will not.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use rustix::fs::inotify;

use roost_postgres::log::ReadyWatch;
use roost_postgres::settings::MIN_MEMORY_BYTES;
use roost_postgres::volume::VolumeId;

use super::entry::{Conclusion, Entry, Phase, Starting};
use super::{Purpose, ReplyTo, Server, Source, TemplateWaiter, Timer};
use crate::failure::Step;
use crate::isolation::{Launched, Premises};
use crate::job;
use crate::protocol::{Answer, ExitStatus, InstanceRecord, StartPhases, StartSpec, WardenError};

/// The longest deadline of a start that the node may ask for: crash recovery may take long.
const MAX_DEADLINE: Duration = Duration::from_secs(3600);

/// Processes that Postgres needs at least, and that an instance may have at most.
const PIDS: std::ops::RangeInclusive<u32> = 16..=32_768;

/// Instances at once, which bounds the warden's descriptors.
const MAX_INSTANCES: usize = 16_384;

impl Server {
    pub(super) fn start(&mut self, to: ReplyTo, mut spec: StartSpec) {
        let arrived = Instant::now();
        if let Err(error) = self.admit(&mut spec) {
            return self.reply(to, Err(error));
        }
        // An adopted instance that was still starting has found who waits for it.
        if let Some(Entry { phase: Phase::Starting(starting), .. }) = self.instances.get_mut(&spec.volume)
            && starting.to.is_none()
        {
            starting.to = Some(to);
            return;
        }
        if self.instances.contains_key(&spec.volume) {
            return self.reply(to, Err(WardenError::AlreadyRunning { volume: spec.volume }));
        }
        let is_new = spec.create && !self.volumes.layout.manifest(&spec.volume).exists();
        let has_template =
            self.templates.get(&spec.major).is_some_and(|name| self.volumes.layout.template(name).is_dir());
        if is_new && !has_template {
            let major = spec.major;
            return self.need_template(major, TemplateWaiter::Start(to, Box::new(spec), arrived));
        }
        self.launch(to, &spec, arrived);
    }

    /// Checks what the node asked for against the warden's own bounds.
    fn admit(&self, spec: &mut StartSpec) -> Result<(), WardenError> {
        if !self.installations.contains_key(&spec.major) {
            let available = self.installations.keys().copied().collect();
            return Err(WardenError::NoSuchVersion { major: spec.major, available });
        }
        if self.instances.len() >= MAX_INSTANCES {
            return Err(WardenError::Unsupported {
                detail: format!("{MAX_INSTANCES} instances are the most that one warden has"),
            });
        }
        spec.limits.memory_bytes = spec.limits.memory_bytes.max(MIN_MEMORY_BYTES);
        spec.limits.pids = spec.limits.pids.clamp(*PIDS.start(), *PIDS.end());
        spec.settings.memory_bytes = spec.settings.memory_bytes.min(spec.limits.memory_bytes);
        spec.deadline = spec.deadline.min(MAX_DEADLINE);
        Ok(())
    }

    /// Has the template of a major version built, once for all who wait for it.
    pub(super) fn need_template(&mut self, major: u16, waiter: TemplateWaiter) {
        let waiters = self.template_waiters.entry(major).or_default();
        waiters.push(waiter);
        if waiters.len() > 1 {
            return;
        }
        let (Some(installation), Some(name)) = (self.installations.get(&major), self.templates.get(&major))
        else {
            let available = self.installations.keys().copied().collect();
            return self
                .job_done(Purpose::Template(major), Err(WardenError::NoSuchVersion { major, available }));
        };
        let (installation, name) = (installation.clone(), name.clone());
        let work: job::Work = Box::new(move |workshop| {
            let place = workshop.volumes.layout.template(&name);
            if !place.is_dir() {
                roost_postgres::template::build(&installation, &place, workshop.isolation.volume_owner())
                    .map_err(|error| WardenError::TemplateFailed { major, detail: error.to_string() })?;
            }
            Ok(Answer::Template(name))
        });
        self.jobs.push(job::Lane::Steps, Purpose::Template(major), work);
    }

    pub(super) fn launch(&mut self, to: ReplyTo, spec: &StartSpec, arrived: Instant) {
        let volume = spec.volume;
        if self.instances.contains_key(&volume) {
            return self.reply(to, Err(WardenError::AlreadyRunning { volume }));
        }
        let uid = match self.isolation.reserve() {
            Ok(uid) => uid,
            Err(error) => return self.reply(to, Err(error)),
        };
        if let Err(error) = self.try_launch(to, spec, arrived, uid) {
            self.isolation.cancel(volume, uid);
            if let Err(error) = self.run.remove(volume) {
                tracing::warn!(%volume, %error, "could not remove the directory of an instance that was not launched");
            }
            self.reply(to, Err(error));
        }
    }

    fn try_launch(
        &mut self,
        to: ReplyTo,
        spec: &StartSpec,
        arrived: Instant,
        uid: Option<u32>,
    ) -> Result<(), WardenError> {
        let volume = spec.volume;
        let template = self.templates.get(&spec.major).ok_or(WardenError::Closed)?;
        self.run.create(volume, uid, spec.major, &spec.settings).step("make the instance's directory")?;
        let log = self.volumes.open_log(volume).step("open the log")?;
        let path = self.volumes.layout.log(&volume);
        let log_offset = log.metadata().step("look at the log")?.len();
        let reader = read_log_from(&path, log_offset).step("read the log")?;
        let inotify = watch_log(&self.logs, &reader).step("watch the log")?;
        let premises = Premises {
            template,
            socket: self.run.socket(volume),
            configuration: self.run.configuration(volume),
            log: log.into(),
        };
        let launched = self.isolation.launch(spec, &premises, uid);
        let Launched { footprint, exit, setup } = match launched {
            Ok(launched) => launched,
            Err(error) => {
                let _ = inotify::remove_watch(&self.logs, inotify);
                return Err(error);
            }
        };
        self.generation += 1;
        let entry = Entry {
            record: InstanceRecord {
                volume,
                pid: footprint.pid,
                socket_dir: self.run.socket(volume),
                log: path,
                major: spec.major,
                frozen: false,
                // Both are the volume's own, which the first process reads, or makes.
                template: String::new(),
                system_identifier: 0,
                adopted: false,
                phases: StartPhases { spawn: arrived.elapsed(), ..StartPhases::default() },
            },
            footprint,
            exit,
            generation: self.generation,
            phase: Phase::Starting(Box::new(Starting {
                to: Some(to),
                arrived,
                deadline: spec.deadline,
                setup: None,
                watch: ReadyWatch::new(),
                log: reader,
                inotify,
                failure: None,
            })),
            status: None,
            log_offset,
            freezing: None,
            ending: None,
        };
        // Should the warden be killed right here, its successor finds a populated group without a note, and clears it.
        if let Err(error) = self.run.write_note(&entry.note()) {
            tracing::warn!(%volume, %error, "a later warden could not adopt this instance: its note was not written");
        }
        self.watches.insert(inotify, volume);
        if let Err(error) = self.watch(&setup, Source::Setup(volume)) {
            tracing::error!(%volume, %error, "the set-up of an instance cannot be waited for");
        }
        let deadline = spec.deadline.saturating_sub(arrived.elapsed());
        self.after(deadline, Timer::Deadline(volume, self.generation));
        self.instances.insert(volume, entry);
        if let Some(Entry { phase: Phase::Starting(starting), .. }) = self.instances.get_mut(&volume) {
            starting.setup = Some(setup);
        }
        Ok(())
    }

    /// Postgres is being executed, or will never be.
    pub(super) fn setup_done(&mut self, volume: VolumeId) {
        let Some(entry) = self.instances.get_mut(&volume) else { return };
        let Phase::Starting(starting) = &mut entry.phase else { return };
        let Some(setup) = starting.setup.take() else { return };
        entry.record.phases.confine = starting.arrived.elapsed().saturating_sub(entry.record.phases.spawn);
        self.unwatch(setup.as_fd(), Source::Setup(volume));
        let message = job::read_all(setup);
        if message.is_empty() {
            return self.executed(volume);
        }
        let failure = serde_json::from_slice(&message).unwrap_or_else(|_| WardenError::SetUpFailed {
            step: "confine the instance".to_owned(),
            detail: "its first process ended without a word".to_owned(),
        });
        if let Some(Entry { phase: Phase::Starting(starting), .. }) = self.instances.get_mut(&volume) {
            starting.failure = Some(failure);
        }
    }

    /// Postgres was executed, so the volume has a manifest.
    fn executed(&mut self, volume: VolumeId) {
        let manifest = self.volumes.manifest(volume);
        let Some(entry) = self.instances.get_mut(&volume) else { return };
        match manifest {
            Ok(Some(manifest)) => {
                entry.record.template = manifest.template.as_str().to_owned();
                entry.record.system_identifier = manifest.system_identifier;
            }
            outcome => tracing::error!(%volume, ?outcome, "a started volume has no manifest"),
        }
    }

    /// Something was written to the log of an instance that starts.
    pub(super) fn read_logs(&mut self) {
        let mut ready = Vec::new();
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.logs, &mut space);
        while let Ok(event) = events.next() {
            let Some(&volume) = self.watches.get(&event.wd()) else { continue };
            if !ready.contains(&volume) {
                ready.push(volume);
            }
        }
        for volume in ready {
            self.look_at_log(volume);
        }
    }

    pub(super) fn look_at_log(&mut self, volume: VolumeId) {
        let Some(Entry { phase: Phase::Starting(starting), .. }) = self.instances.get_mut(&volume) else {
            return;
        };
        if starting.failure.is_none() && starting.read_log() {
            // The execution came first, even if its event comes in the same batch after this one.
            self.setup_done(volume);
            self.ready(volume);
        }
    }

    /// Postgres says that it accepts connections.
    fn ready(&mut self, volume: VolumeId) {
        let Some(entry) = self.instances.get_mut(&volume) else { return };
        let sealed = self.run.seal(volume, entry.footprint.uid);
        if let Err(error) = sealed {
            tracing::error!(%volume, %error, "the socket of an instance could not be taken over");
            let failure = crate::failure::refused("take the socket over", &error);
            return self.give_up(volume, failure);
        }
        let phase = std::mem::replace(&mut entry.phase, Phase::Running);
        let Phase::Starting(starting) = phase else {
            entry.phase = phase;
            return;
        };
        let phases = &mut entry.record.phases;
        phases.ready = starting.arrived.elapsed().saturating_sub(phases.spawn + phases.confine);
        if let Err(error) = self.run.write_note(&entry.note()) {
            tracing::warn!(%volume, %error, "a later warden could not adopt this instance: its note was not written");
        }
        let record = entry.record.clone();
        let exit = entry.exit.try_clone();
        self.stop_watching(volume, &starting);
        let Some(to) = starting.to else { return };
        match exit {
            Ok(exit) => self.reply_with(to, Ok(Answer::Started(Box::new(record))), vec![exit]),
            Err(error) => self.reply(to, Err(crate::failure::system("duplicate a pidfd", &error))),
        }
    }

    fn stop_watching(&mut self, volume: VolumeId, starting: &Starting) {
        self.watches.remove(&starting.inotify);
        let _ = inotify::remove_watch(&self.logs, starting.inotify);
        if let Some(setup) = &starting.setup {
            self.unwatch(setup.as_fd(), Source::Setup(volume));
        }
    }

    pub(super) fn start_deadline(&mut self, volume: VolumeId, generation: u64) {
        let Some(entry) = self.instances.get(&volume) else { return };
        let Phase::Starting(starting) = &entry.phase else { return };
        if entry.generation == generation {
            let failure = WardenError::StartDeadline { waited: starting.deadline, log: entry.log_tail() };
            self.give_up(volume, failure);
        }
    }

    /// Ends a start that cannot succeed any more. Its reply is sent when nothing of the instance is left.
    fn give_up(&mut self, volume: VolumeId, failure: WardenError) {
        let Some(entry) = self.instances.get_mut(&volume) else { return };
        if let Phase::Starting(starting) = &mut entry.phase {
            starting.failure.get_or_insert(failure);
        }
        if let Err(error) = self.isolation.kill(&entry.footprint) {
            tracing::error!(%volume, %error, "an instance that did not start could not be killed");
        }
    }

    /// The first process of an instance that was starting ended.
    pub(super) fn start_ended(
        &mut self,
        volume: VolumeId,
        mut starting: Starting,
        status: Option<ExitStatus>,
    ) {
        // It may have said why in its last moment, by the pipe or by the log.
        if starting.failure.is_none()
            && let Some(setup) = starting.setup.take()
        {
            self.unwatch(setup.as_fd(), Source::Setup(volume));
            starting.failure = serde_json::from_slice(&job::read_all(setup)).ok();
        }
        starting.read_log();
        self.stop_watching(volume, &starting);
        let Some(entry) = self.instances.get(&volume) else { return };
        // The last complaint last, because it is what an error message quotes; the lines around it say the rest.
        let mut log = entry.log_tail();
        log.extend(starting.watch.complaints().last().map(str::to_owned));
        let failure = starting.failure.unwrap_or(WardenError::StartFailed { status, log });
        let conclusion = starting.to.map(|to| (to, Conclusion::Error(failure)));
        self.take_apart(volume, conclusion);
    }
}

/// Opens a log for reading from `offset`.
pub(super) fn read_log_from(path: &std::path::Path, offset: u64) -> io::Result<File> {
    let mut log = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    log.seek(SeekFrom::Start(offset))?;
    Ok(log)
}

/// Asks to be told when an open log is written to.
pub(super) fn watch_log(logs: impl AsFd, log: &File) -> io::Result<i32> {
    let path = format!("/proc/self/fd/{}", log.as_raw_fd());
    Ok(inotify::add_watch(logs, path, inotify::WatchFlags::MODIFY)?)
}
