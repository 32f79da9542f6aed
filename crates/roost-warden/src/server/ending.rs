//! From the end of an instance's first process until nothing of it is left; and the end of the warden itself.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use roost_postgres::volume::VolumeId;

use super::entry::{Conclusion, Ending, Freezing, Phase};
use super::{ReplyTo, Server, Source, Timer};
use crate::isolation::{FREEZE_DEADLINE, KILL_DEADLINE, LINGER};
use crate::protocol::{Answer, ExitReport, ExitStatus, Freezer, WardenError};

/// The shortest and longest pause between two looks at a group.
const PAUSES: (Duration, Duration) = (Duration::from_micros(300), Duration::from_millis(50));

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(PAUSES.1)
}

impl Server {
    // Freezing.

    pub(super) fn freeze(&mut self, to: ReplyTo, volume: VolumeId) {
        let Some(entry) = self.instances.get_mut(&volume).filter(|entry| entry.is_running()) else {
            return self.reply(to, Err(WardenError::NotRunning { volume }));
        };
        if entry.freezing.is_some() {
            let detail = "it is being frozen already".to_owned();
            return self.reply(to, Err(WardenError::InvalidRequest { detail }));
        }
        if let Err(error) = self.isolation.set_frozen(&entry.footprint, true) {
            return self.reply(to, Err(crate::failure::system("freeze", &error)));
        }
        entry.freezing = Some(Freezing { to, began: Instant::now(), pause: PAUSES.0 });
        let generation = entry.generation;
        self.look_if_frozen(volume, generation);
    }

    pub(super) fn look_if_frozen(&mut self, volume: VolumeId, generation: u64) {
        let Some(entry) = self.instances.get_mut(&volume).filter(|entry| entry.generation == generation)
        else {
            return;
        };
        let Some(freezing) = &mut entry.freezing else { return };
        let (to, waited) = (freezing.to, freezing.began.elapsed());
        match self.isolation.is_frozen(&entry.footprint) {
            Ok(true) => {
                entry.freezing = None;
                entry.record.frozen = true;
                self.reply(to, Ok(Answer::Done));
            }
            Ok(false) if waited < FREEZE_DEADLINE => {
                let pause = freezing.pause;
                freezing.pause = longer(pause);
                if self.isolation.freezer() == Freezer::Signal
                    && let Err(error) = self.isolation.set_frozen(&entry.footprint, true)
                {
                    // What was forked since the last signal has to be sent one too.
                    tracing::warn!(%volume, %error, "could not stop all processes of an instance");
                }
                self.after(pause, Timer::Frozen(volume, generation));
            }
            outcome => {
                entry.freezing = None;
                if let Err(error) = self.isolation.set_frozen(&entry.footprint, false) {
                    tracing::error!(%volume, %error, "an instance that did not freeze could not be thawed");
                }
                let error = match outcome {
                    Ok(_) => WardenError::Deadline { what: "freezing".to_owned(), waited },
                    Err(error) => crate::failure::system("freeze", &error),
                };
                self.reply(to, Err(error));
            }
        }
    }

    /// Lets an instance run; one whose freeze is in progress too, whose request then fails.
    pub(super) fn thaw(&mut self, volume: VolumeId) -> Result<(), WardenError> {
        let Some(entry) = self.instances.get_mut(&volume) else {
            return Err(WardenError::NotRunning { volume });
        };
        let outcome = self.isolation.set_frozen(&entry.footprint, false);
        if outcome.is_ok() {
            entry.record.frozen = false;
        }
        let freezing = entry.freezing.take();
        if let Some(freezing) = freezing {
            let detail = "it was thawed meanwhile".to_owned();
            self.reply(freezing.to, Err(WardenError::InvalidRequest { detail }));
        }
        outcome.map_err(|error| crate::failure::system("thaw", &error))
    }

    // Ending.

    /// The first process of an instance ended.
    pub(super) fn instance_ended(&mut self, volume: VolumeId, status: Option<ExitStatus>) {
        let Some(entry) = self.instances.get_mut(&volume) else { return };
        if matches!(entry.phase, Phase::Ended) {
            return;
        }
        entry.status = status;
        let phase = std::mem::replace(&mut entry.phase, Phase::Ended);
        if entry.record.adopted {
            let _ = rustix::event::epoll::delete(&self.epoll, &entry.exit);
            self.sources.retain(|_, source| *source != Source::Exit(volume));
        }
        if let Some(freezing) = self.instances.get_mut(&volume).and_then(|entry| entry.freezing.take()) {
            self.reply(freezing.to, Err(WardenError::NotRunning { volume }));
        }
        if let Phase::Starting(starting) = phase {
            self.start_ended(volume, *starting, status);
        }
    }

    pub(super) fn release(&mut self, to: ReplyTo, volume: VolumeId) {
        match self.instances.get(&volume).map(|entry| matches!(entry.phase, Phase::Ended)) {
            None => {
                let inspected = self.volumes.inspect(volume);
                let report =
                    ExitReport { clean: inspected.clean, state: inspected.state, ..ExitReport::default() };
                self.reply(to, Ok(Answer::Released(Box::new(report))));
            }
            Some(false) => self.reply(to, Err(WardenError::AlreadyRunning { volume })),
            Some(true) => self.take_apart(volume, Some((to, Conclusion::Report))),
        }
    }

    /// Waits until nothing is left of an instance whose first process ended, and removes what it had.
    pub(super) fn take_apart(&mut self, volume: VolumeId, conclusion: Option<(ReplyTo, Conclusion)>) {
        let Some(entry) = self.instances.get_mut(&volume) else { return };
        let is_first = entry.ending.is_none();
        let ending = entry.ending.get_or_insert_with(|| Ending {
            conclusions: Vec::new(),
            began: Instant::now(),
            pause: PAUSES.0,
            killed: false,
        });
        ending.conclusions.extend(conclusion);
        let generation = entry.generation;
        if is_first {
            self.look_if_gone(volume, generation);
        }
    }

    pub(super) fn look_if_gone(&mut self, volume: VolumeId, generation: u64) {
        let Some(entry) = self.instances.get_mut(&volume).filter(|entry| entry.generation == generation)
        else {
            return;
        };
        let Some(ending) = &mut entry.ending else { return };
        let gone = self.isolation.is_gone(&entry.footprint);
        if let Err(error) = &gone {
            tracing::error!(%volume, %error, "cannot tell whether processes of an instance are left");
        }
        if gone.is_ok_and(|gone| gone) {
            return self.gone(volume);
        }
        let waited = ending.began.elapsed();
        if waited >= LINGER && !ending.killed {
            ending.killed = true;
            tracing::warn!(%volume, "processes outlived their postmaster and are killed");
            if let Err(error) = self.isolation.kill(&entry.footprint) {
                tracing::error!(%volume, %error, "could not kill them");
            }
        }
        if waited >= LINGER + KILL_DEADLINE {
            // Whoever asked is told; the instance stays known, and asking again waits again.
            let conclusions = entry.ending.take().map(|ending| ending.conclusions).unwrap_or_default();
            for (to, _) in conclusions {
                let what = "ending the processes of an instance".to_owned();
                self.reply(to, Err(WardenError::Deadline { what, waited }));
            }
            return;
        }
        let pause = ending.pause;
        ending.pause = longer(pause);
        self.after(pause, Timer::Gone(volume, generation));
    }

    /// Nothing of an instance runs any more.
    fn gone(&mut self, volume: VolumeId) {
        let Some(entry) = self.instances.get(&volume) else { return };
        let inspected = self.volumes.inspect(volume);
        let report = ExitReport {
            clean: inspected.clean,
            state: inspected.state,
            status: entry.status,
            out_of_memory: self.isolation.ran_out_of_memory(&entry.footprint),
            log_tail: entry.log_tail(),
        };
        if let Err(error) = self.isolation.discard(volume, &entry.footprint) {
            tracing::error!(%volume, %error, "could not give back what an instance had");
        }
        if let Err(error) = self.run.remove(volume) {
            tracing::error!(%volume, %error, "could not remove an instance's directory");
        }
        let Some(entry) = self.instances.remove(&volume) else { return };
        for (to, conclusion) in entry.ending.map(|ending| ending.conclusions).unwrap_or_default() {
            let result = match conclusion {
                Conclusion::Report => Ok(Answer::Released(Box::new(report.clone()))),
                Conclusion::Error(error) => Err(error),
            };
            self.reply(to, result);
        }
    }

    /// The node is gone for good. Stops what it left running, unless it was told to leave it, and returns the exit code.
    pub(super) fn finish(&mut self, code: i32) -> i32 {
        self.hang_up();
        if self.leave_instances {
            return code;
        }
        let volumes: Vec<VolumeId> = self.instances.keys().copied().collect();
        for volume in &volumes {
            self.stop_cleanly(*volume);
        }
        let began = Instant::now();
        while !self.instances.is_empty() {
            let overdue = began.elapsed() >= self.stop_deadline;
            for volume in &volumes {
                self.finish_one(*volume, overdue);
            }
            if began.elapsed() >= self.stop_deadline + KILL_DEADLINE {
                tracing::error!(left = self.instances.len(), "instances are left that could not be ended");
                return code.max(1);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        code
    }

    /// Asks an instance for a fast shutdown.
    pub(super) fn stop_cleanly(&mut self, volume: VolumeId) {
        let Some(entry) = self.instances.get(&volume) else { return };
        let outcome =
            if self.isolation.freezer() == Freezer::Signal || entry.record.frozen || entry.freezing.is_some()
            {
                self.isolation.set_frozen(&entry.footprint, false)
            } else {
                Ok(())
            };
        if let Err(error) = outcome {
            tracing::error!(%volume, %error, "could not thaw an instance to stop it");
        }
        // One that ended meanwhile needs no signal.
        let _ = rustix::process::pidfd_send_signal(&entry.exit, Signal::INT);
    }

    fn finish_one(&mut self, volume: VolumeId, overdue: bool) {
        let Some(entry) = self.instances.get(&volume) else { return };
        if overdue && let Err(error) = self.isolation.kill(&entry.footprint) {
            tracing::error!(%volume, %error, "could not kill an instance that did not stop");
        }
        if has_ended(entry.exit.as_fd()) && self.isolation.is_gone(&entry.footprint).unwrap_or(false) {
            self.gone(volume);
        }
    }
}

/// Whether the process of a pidfd ended.
pub(super) fn has_ended(exit: std::os::fd::BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&exit, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}
