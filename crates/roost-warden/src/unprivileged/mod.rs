//! Isolation of kind `process` without the machine's privileges: every instance runs as the node's own user, on a plain
//! copy of its template, in as many namespaces as an ordinary user may make.
//!
//! Where user namespaces may be made, an instance gets the same read-only root, process, IPC and network namespaces as
//! with privileges, all of them inside a user namespace that maps this one user to itself. Where they may not, Landlock
//! and the system call filter are the walls. Which of the two it is, is found out once, by trying.

mod confine;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use roost_postgres::Installation;
use roost_postgres::module::Modules;
use roost_postgres::template::TemplateName;
use roost_postgres::volume::{VolumeId, VolumeKind};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::cgroup::Groups;
use crate::config::WardenConfig;
use crate::failure::Step;
use crate::findings;
use crate::isolation::{Footprint, Isolation, Launched, Premises, Survivor, Trace};
use crate::landlock;
use crate::processes;
use crate::protocol::{Finding, Freezer, InstanceUsage, Reclaim, StartSpec, WardenError};
use crate::seccomp::Filter;
use crate::sys::{self, Forked};
use crate::volumes::Volumes;
use confine::{Confinement, OWN_NAMESPACES, User};
use tree::Tree;

/// The kind `process`, as far as an ordinary user can have it.
#[derive(Debug)]
pub(crate) struct Unprivileged {
    volumes: Volumes,
    installations: BTreeMap<u16, Installation>,
    modules: Modules,
    filters: BTreeMap<u16, Filter>,
    /// What the service manager handed over; often nothing.
    groups: Groups,
    landlock: i32,
    /// The directory that each instance's root is built over, in its own mount namespace; or why there is none.
    stage: Result<PathBuf, String>,
}

impl Unprivileged {
    /// Finds out what this user may do. For a process with one thread.
    pub(crate) fn prepare(volumes: Volumes, config: &WardenConfig, run: &Path) -> io::Result<Self> {
        let installations = config.installations.as_slice();
        let groups = Groups::delegated(&crate::process::subtree(&volumes.layout.data));
        let stage = run.join(".stage");
        let stage = confine::rehearse(&stage, installations).map(|()| stage).map_err(|error| {
            tracing::warn!(%error, "user namespaces are not to be had, so instances see the whole machine's files");
            error.to_string()
        });
        let mut filters = BTreeMap::new();
        for installation in installations {
            filters.insert(installation.major, Filter::compile(installation.major)?);
        }
        let installations = installations.iter().map(|each| (each.major, each.clone())).collect();
        let modules = config.modules.clone();
        if stage.is_err() && !modules.extensions.is_empty() {
            tracing::warn!("postgres.extensions has no effect: {}", findings::NO_EXTENSIONS);
        }
        Ok(Self { volumes, installations, modules, filters, groups, landlock: landlock::version(), stage })
    }

    /// The instance's processes, where no group holds them.
    fn tree(&self, instance: &Footprint) -> Tree {
        Tree {
            root: instance.pid,
            began: instance.began,
            lock: self.stage.is_err().then(|| self.volumes.layout.lock(&instance.volume)),
        }
    }
}

impl Isolation for Unprivileged {
    fn name(&self) -> &'static str {
        "process"
    }

    fn volumes(&self) -> VolumeKind {
        VolumeKind::Copy
    }

    fn freezer(&self) -> Freezer {
        self.groups.freezer()
    }

    fn reclaim_kind(&self) -> Reclaim {
        self.groups.reclaim()
    }

    fn findings(&self) -> Vec<Finding> {
        let barred = self.stage.as_ref().err().map(String::as_str);
        let mut findings = findings::unprivileged(&self.groups, self.landlock, barred);
        findings.extend(findings::modules(&self.modules, &self.installations, barred.is_none()));
        findings
    }

    fn reserve(&mut self) -> Result<Option<u32>, WardenError> {
        Ok(None)
    }

    fn launch(
        &mut self,
        spec: &StartSpec,
        premises: &Premises<'_>,
        _uid: Option<u32>,
    ) -> Result<Launched, WardenError> {
        let unknown = || WardenError::NoSuchVersion {
            major: spec.major,
            available: self.installations.keys().copied().collect(),
        };
        let installation = self.installations.get(&spec.major).ok_or_else(unknown)?;
        let filter = self.filters.get(&spec.major).ok_or_else(unknown)?;
        if self.stage.is_err() && spec.major < 15 {
            return Err(WardenError::Unsupported {
                detail:
                    "Postgres 14 needs a network to itself, and without user namespaces it has the machine's"
                        .to_owned(),
            });
        }
        let group = self.groups.create(spec.volume, &spec.limits).step("make the control group")?;
        let birthplace = group.birthplace().step("open the control group")?;
        let (setup, child_setup) =
            pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).step("make a pipe")?;
        let user = User::own();
        let namespaces = if self.stage.is_ok() { OWN_NAMESPACES } else { 0 };
        match sys::fork(namespaces, birthplace.as_ref().map(AsFd::as_fd)).step("fork")? {
            Forked::Child => {
                let plan = Confinement {
                    user,
                    spec,
                    installation,
                    modules: &self.modules,
                    volumes: &self.volumes,
                    template: premises.template,
                    stage: self.stage.as_deref().ok(),
                    socket: &premises.socket,
                    configuration: &premises.configuration,
                    log: premises.log.as_fd(),
                    landlock: self.landlock,
                    filter,
                };
                confine::run(&plan, &child_setup)
            }
            Forked::Parent(pid, exit) => {
                let began = processes::began(pid).unwrap_or(0);
                let footprint = Footprint { volume: spec.volume, pid, began, uid: None, group };
                Ok(Launched { footprint, exit, setup })
            }
        }
    }

    fn set_frozen(&self, instance: &Footprint, frozen: bool) -> io::Result<()> {
        if self.groups.is_unified() {
            return instance.group.set_frozen(frozen);
        }
        let tree = self.tree(instance);
        if frozen {
            tree.stop();
        } else {
            tree.go_on();
        }
        Ok(())
    }

    fn is_frozen(&self, instance: &Footprint) -> io::Result<bool> {
        if self.groups.is_unified() {
            return instance.group.is_frozen();
        }
        Ok(self.tree(instance).is_stopped())
    }

    fn kill(&self, instance: &Footprint) -> io::Result<()> {
        if self.groups.is_unified() {
            return instance.group.kill();
        }
        self.tree(instance).kill();
        Ok(())
    }

    fn is_gone(&self, instance: &Footprint) -> io::Result<bool> {
        if self.groups.is_unified() && instance.group.is_populated()? {
            return Ok(false);
        }
        Ok(self.tree(instance).is_gone())
    }

    fn reclaim(&self, instance: &Footprint) -> io::Result<()> {
        if instance.group.reclaim()? {
            return Ok(());
        }
        match processes::page_out(&self.tree(instance).processes()) {
            // Most kernels want a privilege for it. Then the memory stays where it is, which `doctor` says.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            result => result,
        }
    }

    fn usage(&self, instance: &Footprint) -> InstanceUsage {
        let mut usage =
            if self.groups.is_unified() { instance.group.usage() } else { InstanceUsage::default() };
        if self.groups.enforced_by("memory").is_none() {
            let counted = self.tree(instance).usage();
            usage = InstanceUsage { cpu: usage.cpu.max(counted.cpu), ..counted };
        }
        usage
    }

    fn ran_out_of_memory(&self, instance: &Footprint) -> bool {
        instance.group.out_of_memory_kills() > 0
    }

    fn discard(&mut self, _volume: VolumeId, instance: &Footprint) -> io::Result<()> {
        instance.group.remove()
    }

    fn cancel(&mut self, volume: VolumeId, _uid: Option<u32>) {
        if let Err(error) = self.groups.group(volume).remove() {
            tracing::warn!(%volume, %error, "could not remove the group of an instance that was not launched");
        }
    }

    /// An instance is known by the lock that its processes hold. Where what they have open is hidden from the warden, a
    /// process that was written down and began when the note says is believed, if somebody holds the lock.
    fn survivors(&mut self, traces: &[Trace]) -> Vec<Survivor> {
        let layout = &self.volumes.layout;
        let locks: Vec<(VolumeId, (u64, u64))> = traces
            .iter()
            .filter_map(|trace| Some((trace.volume, tree::identity(layout.lock(&trace.volume))?)))
            .collect();
        let mut holders: BTreeMap<VolumeId, Vec<i32>> = BTreeMap::new();
        if !locks.is_empty() {
            for pid in processes::all() {
                let Some(held) = tree::lock_of(pid) else { continue };
                if let Some((volume, _)) = locks.iter().find(|(_, lock)| *lock == held) {
                    holders.entry(*volume).or_default().push(pid);
                }
            }
        }
        let is_credible = |trace: &Trace| {
            let there = trace.process.filter(|&(pid, began)| processes::began(pid) == Some(began));
            there.filter(|_| tree::is_held(&layout.lock(&trace.volume)))
        };
        let credible: BTreeMap<VolumeId, (i32, u64)> =
            traces.iter().filter_map(|trace| Some((trace.volume, is_credible(trace)?))).collect();
        let mut all: BTreeSet<VolumeId> = self.groups.list();
        all.extend(holders.keys().chain(credible.keys()));
        let survivor = |volume| {
            let eldest = || holders.get(&volume).and_then(|holders| tree::eldest(holders));
            let (pid, began) = credible.get(&volume).copied().or_else(eldest).unwrap_or_default();
            let group = self.groups.group(volume);
            Survivor { volume, footprint: Footprint { volume, pid, began, uid: None, group } }
        };
        all.into_iter().map(survivor).collect()
    }

    fn postmasters(&self, instance: &Footprint) -> Vec<i32> {
        (instance.pid > 0).then_some(instance.pid).into_iter().collect()
    }

    fn has_process(&self, instance: &Footprint, pid: i32) -> bool {
        instance.pid == pid && self.tree(instance).processes().contains(&pid)
    }

    fn merged(&self, volume: VolumeId, _template: &TemplateName, kind: VolumeKind) -> io::Result<PathBuf> {
        match kind {
            VolumeKind::Copy => Ok(self.volumes.layout.pgdata(&volume)),
            VolumeKind::Layer => Err(io::Error::other(confine::LAYER)),
        }
    }

    fn volume_owner(&self) -> Option<(u32, u32)> {
        None
    }
}

impl Drop for Unprivileged {
    fn drop(&mut self) {
        self.groups.remove();
    }
}
