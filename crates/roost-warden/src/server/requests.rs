//! One function for each thing that a node may ask.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::Signal;

use roost_postgres::settings::InstanceSettings;
use roost_postgres::volume::VolumeId;

use super::{Purpose, ReplyTo, Server, TemplateWaiter};
use crate::failure::{Step, system};
use crate::findings::{kernel_setting, memory_information};
use crate::job::{Lane, Work};
use crate::protocol::{
    Answer, Capabilities, Command, INSTANCES_PAGE, InstalledVersion, ShutdownMode, WardenError,
};
use crate::sys;
use crate::transfer;

impl Server {
    pub(super) fn handle(&mut self, to: ReplyTo, command: Command, descriptors: Vec<OwnedFd>) {
        match command {
            Command::Capabilities => {
                let capabilities = self.capabilities();
                self.reply(to, Ok(Answer::Capabilities(Box::new(capabilities))));
            }
            Command::Start(spec) => self.start(to, *spec),
            Command::Instances { after } => self.list_instances(to, after),
            Command::Freeze { volume } => self.freeze(to, volume),
            Command::Thaw { volume } => {
                let outcome = self.running(volume).and_then(|()| self.thaw(volume));
                self.reply(to, outcome.map(|()| Answer::Done));
            }
            Command::Reclaim { volume } => self.reclaim(to, volume),
            Command::Shutdown { volume, mode } => {
                let outcome = self.shut_down(volume, mode);
                self.reply(to, outcome.map(|()| Answer::Done));
            }
            Command::Reload { volume, settings } => {
                let outcome = self.reload(volume, &settings);
                self.reply(to, outcome.map(|()| Answer::Done));
            }
            Command::Release { volume } => self.release(to, volume),
            Command::Usage { volume } => {
                let usage = self
                    .instances
                    .get(&volume)
                    .map(|entry| Answer::Usage(self.isolation.usage(&entry.footprint)))
                    .ok_or(WardenError::NotRunning { volume });
                self.reply(to, usage);
            }
            Command::EnsureTemplate { major } => self.ensure_template(to, major),
            Command::LeaveInstances => {
                self.leave_instances = true;
                self.reply(to, Ok(Answer::Done));
            }
            command => match disk_work(&command, descriptors.into_iter().next()) {
                Ok((lane, work)) => self.jobs.push(lane, Purpose::Reply(to), work),
                Err(error) => self.reply(to, Err(error)),
            },
        }
    }

    fn running(&self, volume: VolumeId) -> Result<(), WardenError> {
        match self.instances.get(&volume) {
            Some(entry) if entry.is_running() => Ok(()),
            _ => Err(WardenError::NotRunning { volume }),
        }
    }

    fn capabilities(&self) -> Capabilities {
        let (descriptors, _) = sys::limits(libc::RLIMIT_NOFILE).unwrap_or((0, 0));
        Capabilities {
            isolation: self.isolation.name().to_owned(),
            privileged: self.isolation.volume_owner().is_some(),
            volumes: self.isolation.volumes(),
            freezer: self.isolation.freezer(),
            reclaim: self.isolation.reclaim_kind(),
            swap_bytes: memory_information("SwapTotal"),
            memory_bytes: memory_information("MemTotal"),
            descriptors,
            pid_max: kernel_setting("/proc/sys/kernel/pid_max"),
            versions: self
                .installations
                .values()
                .map(|each| InstalledVersion {
                    major: each.major,
                    version: each.version.clone(),
                    bin: each.bin.clone(),
                })
                .collect(),
            findings: self.isolation.findings(),
        }
    }

    fn list_instances(&mut self, to: ReplyTo, after: Option<VolumeId>) {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        // An instance that ended and was not released is listed too: its pidfd says so at once.
        let mut page = self.instances.range((from, Unbounded)).filter(|(_, entry)| !entry.is_starting());
        let mut instances = Vec::new();
        let mut exits = Vec::new();
        for (_, entry) in page.by_ref().take(INSTANCES_PAGE) {
            match entry.exit.try_clone() {
                Ok(exit) => {
                    instances.push(entry.record.clone());
                    exits.push(exit);
                }
                Err(error) => {
                    drop(page);
                    return self.reply(to, Err(system("duplicate a pidfd", &error)));
                }
            }
        }
        let more = page.next().is_some();
        self.reply_with(to, Ok(Answer::Instances { instances, more }), exits);
    }

    fn reclaim(&mut self, to: ReplyTo, volume: VolumeId) {
        let Some(entry) = self.instances.get(&volume).filter(|entry| entry.is_running()) else {
            return self.reply(to, Err(WardenError::NotRunning { volume }));
        };
        let footprint = entry.footprint.clone();
        let work: Work = Box::new(move |workshop| {
            let before = workshop.isolation.usage(&footprint).memory_bytes;
            workshop.isolation.reclaim(&footprint).map_err(|error| system("reclaim memory", &error))?;
            let after = workshop.isolation.usage(&footprint).memory_bytes;
            Ok(Answer::Reclaimed { bytes: before.saturating_sub(after) })
        });
        self.jobs.push(Lane::Steps, Purpose::Reply(to), work);
    }

    fn shut_down(&mut self, volume: VolumeId, mode: ShutdownMode) -> Result<(), WardenError> {
        let entry = self.instances.get(&volume).ok_or(WardenError::NotRunning { volume })?;
        let signal = match mode {
            ShutdownMode::Kill => {
                return self.isolation.kill(&entry.footprint).map_err(|error| system("kill", &error));
            }
            ShutdownMode::Fast => Signal::INT,
            ShutdownMode::Immediate => Signal::QUIT,
        };
        if entry.record.frozen || entry.freezing.is_some() {
            self.thaw(volume)?;
        }
        self.signal(volume, signal)
    }

    fn signal(&self, volume: VolumeId, signal: Signal) -> Result<(), WardenError> {
        let entry = self.instances.get(&volume).ok_or(WardenError::NotRunning { volume })?;
        match rustix::process::pidfd_send_signal(&entry.exit, signal) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::SRCH) => Err(WardenError::NotRunning { volume }),
            Err(error) => Err(system("signal the postmaster", &error.into())),
        }
    }

    fn reload(&mut self, volume: VolumeId, settings: &InstanceSettings) -> Result<(), WardenError> {
        self.running(volume)?;
        let entry = self.instances.get(&volume).ok_or(WardenError::NotRunning { volume })?;
        self.run.configure(volume, entry.record.major, settings).step("write the configuration")?;
        self.signal(volume, Signal::HUP)
    }

    fn ensure_template(&mut self, to: ReplyTo, major: u16) {
        match self.templates.get(&major) {
            Some(name) if self.volumes.layout.template(name).is_dir() => {
                let name = name.clone();
                self.reply(to, Ok(Answer::Template(name)));
            }
            _ => self.need_template(major, TemplateWaiter::Reply(to)),
        }
    }
}

/// The work of a request that only concerns a volume's files.
fn disk_work(command: &Command, descriptor: Option<OwnedFd>) -> Result<(Lane, Work), WardenError> {
    let needed = |descriptor: Option<OwnedFd>| {
        descriptor.ok_or_else(|| WardenError::InvalidRequest {
            detail: "a descriptor must come with it".to_owned(),
        })
    };
    let looks = |work: Work| Ok((Lane::Looks, work));
    let moves = |work: Work| Ok((Lane::Moves, work));
    match *command {
        Command::VolumeBytes { volume } => looks(Box::new(move |workshop| {
            let bytes =
                workshop.volumes.bytes(volume).map_err(|error| system("measure the volume", &error))?;
            Ok(Answer::Bytes(bytes))
        })),
        Command::InspectVolume { volume } => {
            looks(Box::new(move |workshop| Ok(Answer::Volume(Box::new(workshop.volumes.inspect(volume))))))
        }
        Command::DeleteVolume { volume } => {
            moves(Box::new(move |workshop| workshop.volumes.delete(volume).map(|()| Answer::Done)))
        }
        Command::CopyVolume { from, to, system_identifier } => moves(Box::new(move |workshop| {
            transfer::copy(workshop, from, to, system_identifier).map(|()| Answer::Done)
        })),
        Command::Export { volume } => {
            let stream = needed(descriptor)?;
            moves(Box::new(move |workshop| {
                transfer::export(workshop, volume, stream.as_fd()).map(Answer::Bytes)
            }))
        }
        Command::Import { volume, major, system_identifier } => {
            let stream = needed(descriptor)?;
            moves(Box::new(move |workshop| {
                transfer::import(workshop, volume, major, system_identifier, stream.as_fd())
                    .map(Answer::Bytes)
            }))
        }
        _ => Err(WardenError::InvalidRequest { detail: "not a request about files".to_owned() }),
    }
}
