//! What an earlier warden left running: adopted if it can be, ended if it cannot, and cleaned up if nothing runs.
//!
//! A warden that was killed leaves groups, directories and notes. A note is believed only as far as the kernel agrees:
//! the process that it names is in the instance's group, and began when the note says.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use roost_postgres::log::ReadyWatch;
use roost_postgres::volume::VolumeId;

use super::entry::{Entry, Phase, Starting};
use super::starting::{read_log_from, watch_log};
use super::{Server, Source, Timer};
use crate::isolation::{KILL_DEADLINE, Survivor, Trace};
use crate::premises::Note;
use crate::processes;

/// How long an adopted instance that was still starting may take.
const STILL_STARTING: Duration = Duration::from_secs(300);

/// How long an instance that cannot be adopted may take to stop by itself.
const STOP: Duration = Duration::from_secs(20);

impl Server {
    /// Takes over what runs, and clears away the rest.
    pub(super) fn adopt(&mut self) {
        let left = self.run.list();
        let noted: Vec<Note> = left.iter().filter_map(|&volume| self.run.read_note(volume)).collect();
        let trace = |&volume: &VolumeId| {
            let note = noted.iter().find(|note| note.record.volume == volume);
            let process = note.map(|note| (note.record.pid, note.began));
            Trace { volume, process, uid: note.and_then(|note| note.uid) }
        };
        let traces: Vec<Trace> = left.iter().map(trace).collect();
        let mut orphans = Vec::new();
        for survivor in self.isolation.survivors(&traces) {
            let note = noted.iter().find(|note| note.record.volume == survivor.volume);
            let populated = !self.isolation.is_gone(&survivor.footprint).unwrap_or(false);
            match note {
                Some(note) if populated && self.is_credible(note, &survivor) => {
                    if let Err(error) = self.take_over(note, survivor) {
                        tracing::error!(volume = %note.record.volume, %error, "could not adopt an instance");
                    }
                }
                _ => orphans.push(survivor),
            }
        }
        self.end_orphans(orphans);
        let kept: BTreeSet<VolumeId> = self.instances.keys().copied().collect();
        for volume in self.run.list() {
            if !kept.contains(&volume)
                && let Err(error) = self.run.remove(volume)
            {
                tracing::warn!(%volume, %error, "could not remove what an instance left");
            }
        }
    }

    fn is_credible(&self, note: &Note, survivor: &Survivor) -> bool {
        let pid = note.record.pid;
        self.isolation.has_process(&survivor.footprint, pid) && processes::began(pid) == Some(note.began)
    }

    fn take_over(&mut self, note: &Note, survivor: Survivor) -> std::io::Result<()> {
        let volume = survivor.volume;
        let pid = Pid::from_raw(note.record.pid).ok_or(std::io::ErrorKind::InvalidInput)?;
        let exit = pidfd_open(pid, PidfdFlags::empty())?;
        let mut record = note.record.clone();
        record.adopted = true;
        record.frozen = self.isolation.is_frozen(&survivor.footprint)?;
        record.socket_dir = self.run.socket(volume);
        record.log = self.volumes.layout.log(&volume);
        let mut phase = Phase::Running;
        let mut inotify = None;
        if !note.ready {
            let log = read_log_from(&record.log, note.log_offset)?;
            let watch = watch_log(&self.logs, &log)?;
            inotify = Some(watch);
            phase = Phase::Starting(Box::new(Starting {
                to: None,
                arrived: Instant::now(),
                deadline: STILL_STARTING,
                setup: None,
                watch: ReadyWatch::new(),
                log,
                inotify: watch,
                failure: None,
            }));
        }
        self.generation += 1;
        let generation = self.generation;
        let entry = Entry {
            record,
            footprint: survivor.footprint,
            exit,
            generation,
            phase,
            status: None,
            log_offset: note.log_offset,
            freezing: None,
            ending: None,
        };
        self.instances.insert(volume, entry);
        self.watch_exit(volume)?;
        tracing::info!(%volume, pid = note.record.pid, "adopted an instance");
        if let Some(inotify) = inotify {
            self.watches.insert(inotify, volume);
            self.after(STILL_STARTING, Timer::Deadline(volume, generation));
            self.look_at_log(volume);
        } else {
            // The warden before may have been killed between the two steps of it.
            self.run.seal(volume, self.instances.get(&volume).and_then(|entry| entry.footprint.uid))?;
        }
        Ok(())
    }

    fn watch_exit(&mut self, volume: VolumeId) -> std::io::Result<()> {
        let token = self.next_source;
        let Some(entry) = self.instances.get(&volume) else { return Ok(()) };
        rustix::event::epoll::add(
            &self.epoll,
            &entry.exit,
            rustix::event::epoll::EventData::new_u64(token),
            rustix::event::epoll::EventFlags::IN,
        )?;
        self.next_source += 1;
        self.sources.insert(token, Source::Exit(volume));
        Ok(())
    }

    /// Stops what runs and cannot be adopted: by a fast shutdown, so that nothing has to be recovered, then by force.
    fn end_orphans(&mut self, orphans: Vec<Survivor>) {
        for orphan in &orphans {
            if self.isolation.is_gone(&orphan.footprint).unwrap_or(false) {
                continue;
            }
            tracing::warn!(volume = %orphan.volume, "an instance without a credible note is stopped");
            if let Err(error) = self.isolation.set_frozen(&orphan.footprint, false) {
                tracing::error!(volume = %orphan.volume, %error, "could not thaw it");
            }
            for pid in self.isolation.postmasters(&orphan.footprint) {
                let process = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
                if let Some(Ok(process)) = process {
                    let _ = pidfd_send_signal(process, Signal::INT);
                }
            }
        }
        let began = Instant::now();
        let mut left = orphans;
        while !left.is_empty() && began.elapsed() < STOP + KILL_DEADLINE {
            let overdue = began.elapsed() >= STOP;
            left.retain(|orphan| {
                if self.isolation.is_gone(&orphan.footprint).unwrap_or(false) {
                    if let Err(error) = self.isolation.discard(orphan.volume, &orphan.footprint) {
                        tracing::error!(volume = %orphan.volume, %error, "could not give back what it had");
                    }
                    return false;
                }
                if overdue && let Err(error) = self.isolation.kill(&orphan.footprint) {
                    tracing::error!(volume = %orphan.volume, %error, "could not kill it");
                }
                true
            });
            if !left.is_empty() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        for orphan in left {
            tracing::error!(volume = %orphan.volume, "it could not be ended; its volume stays locked");
        }
    }
}
