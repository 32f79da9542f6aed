//! Isolation of kind `process`, with the machine's privileges: an instance is a process tree in namespaces of its own,
//! on an overlay of its own, under a user of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use roost_postgres::Installation;
use roost_postgres::module::Modules;
use roost_postgres::template::TemplateName;
use roost_postgres::volume::{VolumeId, VolumeKind};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::cgroup::{self, Groups};
use crate::config::{VOLUME_UID, WardenConfig};
use crate::confine::{self, Confinement};
use crate::failure::Step;
use crate::findings;
use crate::idmap;
use crate::isolation::{Footprint, Isolation, Launched, Premises, Survivor, Trace};
use crate::landlock;
use crate::mounts::Stage;
use crate::processes;
use crate::protocol::{Finding, Freezer, InstanceUsage, Reclaim, StartSpec, WardenError};
use crate::seccomp::Filter;
use crate::sys::{self, Forked};
use crate::uids::{Claims, Uids};
use crate::volumes::Volumes;

/// The Landlock version from which abstract sockets and signals end at an instance's own domain.
const LANDLOCK_SCOPES: i32 = 6;

/// The kind `process`.
#[derive(Debug)]
pub(crate) struct Process {
    volumes: Volumes,
    installations: BTreeMap<u16, Installation>,
    modules: Modules,
    filters: BTreeMap<u16, Filter>,
    stage: Stage,
    groups: Groups,
    /// Where nodes of one machine agree on user ids.
    claims: PathBuf,
    uids: Uids,
    landlock: i32,
    /// A network namespace with nothing in it, not even loopback that is up, which all instances can share where
    /// Landlock keeps their abstract sockets apart.
    network: Option<OwnedFd>,
}

impl Process {
    /// Prepares what all instances share. The calling process must be root, and in a mount namespace of its own.
    pub(crate) fn prepare(
        volumes: Volumes,
        config: &WardenConfig,
        run: &Path,
        claims: &Path,
    ) -> io::Result<Self> {
        let installations = config.installations.as_slice();
        let data = &volumes.layout.data;
        let (uids, groups) = {
            let open = Claims::open(claims)?;
            sweep(&open);
            (open.claim(data)?, Groups::prepare(&subtree(data)))
        };
        let stage = Stage::build(&run.join(".stage"), installations)?;
        let landlock = landlock::version();
        let network = if landlock >= LANDLOCK_SCOPES { Some(empty_network()?) } else { None };
        let mut filters = BTreeMap::new();
        for installation in installations {
            filters.insert(installation.major, Filter::compile(installation.major)?);
        }
        let installations = installations.iter().map(|each| (each.major, each.clone())).collect();
        let modules = config.modules.clone();
        let claims = claims.to_owned();
        Ok(Self { volumes, installations, modules, filters, stage, groups, claims, uids, landlock, network })
    }
}

impl Isolation for Process {
    fn name(&self) -> &'static str {
        "process"
    }

    fn volumes(&self) -> VolumeKind {
        VolumeKind::Layer
    }

    fn freezer(&self) -> Freezer {
        self.groups.freezer()
    }

    fn reclaim_kind(&self) -> Reclaim {
        self.groups.reclaim()
    }

    fn findings(&self) -> Vec<Finding> {
        let mut findings = findings::privileged(&self.groups, self.landlock);
        findings.extend(findings::modules(&self.modules, &self.installations, true));
        findings
    }

    fn reserve(&mut self) -> Result<Option<u32>, WardenError> {
        match self.uids.take() {
            Some(uid) => Ok(Some(uid)),
            None => Err(WardenError::Unsupported {
                detail: format!("all {} user ids of this node have an instance", crate::uids::BLOCK),
            }),
        }
    }

    fn launch(
        &mut self,
        spec: &StartSpec,
        premises: &Premises<'_>,
        uid: Option<u32>,
    ) -> Result<Launched, WardenError> {
        let unknown = || WardenError::NoSuchVersion {
            major: spec.major,
            available: self.installations.keys().copied().collect(),
        };
        let installation = self.installations.get(&spec.major).ok_or_else(unknown)?;
        let filter = self.filters.get(&spec.major).ok_or_else(unknown)?;
        let uid = uid.ok_or(WardenError::Closed)?;
        let group = self.groups.create(spec.volume, &spec.limits).step("make the control groups")?;
        let birthplace = group.birthplace().step("open the control group")?;
        let owners = idmap::namespace(VOLUME_UID, uid).step("map the volume's owner")?;
        let (setup, child_setup) =
            pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).step("make a pipe")?;
        // Version 14's statistics collector talks to itself over loopback, so it needs a network of its own.
        let network = self.network.as_ref().filter(|_| spec.major >= 15);
        let mut namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        if network.is_none() {
            namespaces |= libc::CLONE_NEWNET;
        }
        let forked = sys::fork(namespaces, birthplace.as_ref().map(AsFd::as_fd)).step("fork")?;
        match forked {
            Forked::Child => {
                let plan = Confinement {
                    spec,
                    installation,
                    modules: &self.modules,
                    volumes: &self.volumes,
                    template: premises.template,
                    stage: &self.stage,
                    group: &group,
                    uid,
                    owners: owners.as_fd(),
                    socket: &premises.socket,
                    configuration: &premises.configuration,
                    log: premises.log.as_fd(),
                    network: network.map(AsFd::as_fd),
                    landlock: self.landlock,
                    filter,
                };
                confine::run(&plan, &child_setup)
            }
            Forked::Parent(pid, exit) => {
                let began = processes::began(pid).unwrap_or(0);
                let footprint = Footprint { volume: spec.volume, pid, began, uid: Some(uid), group };
                Ok(Launched { footprint, exit, setup })
            }
        }
    }

    fn set_frozen(&self, instance: &Footprint, frozen: bool) -> io::Result<()> {
        instance.group.set_frozen(frozen)
    }

    fn is_frozen(&self, instance: &Footprint) -> io::Result<bool> {
        instance.group.is_frozen()
    }

    fn kill(&self, instance: &Footprint) -> io::Result<()> {
        instance.group.kill()
    }

    fn is_gone(&self, instance: &Footprint) -> io::Result<bool> {
        instance.group.is_populated().map(|populated| !populated)
    }

    fn reclaim(&self, instance: &Footprint) -> io::Result<()> {
        if instance.group.reclaim()? {
            return Ok(());
        }
        processes::page_out(&instance.group.processes()?)
    }

    fn usage(&self, instance: &Footprint) -> InstanceUsage {
        instance.group.usage()
    }

    fn ran_out_of_memory(&self, instance: &Footprint) -> bool {
        instance.group.out_of_memory_kills() > 0
    }

    fn discard(&mut self, _volume: VolumeId, instance: &Footprint) -> io::Result<()> {
        instance.group.remove()?;
        if let Some(uid) = instance.uid {
            self.uids.give_back(uid);
        }
        Ok(())
    }

    fn cancel(&mut self, volume: VolumeId, uid: Option<u32>) {
        if let Err(error) = self.groups.group(volume).remove() {
            tracing::warn!(%volume, %error, "could not remove the groups of an instance that was not launched");
        }
        if let Some(uid) = uid {
            self.uids.give_back(uid);
        }
    }

    fn survivors(&mut self, traces: &[Trace]) -> Vec<Survivor> {
        for trace in traces {
            trace.uid.iter().for_each(|&uid| self.uids.hold(uid));
        }
        let find = |volume| traces.iter().find(|trace| trace.volume == volume);
        self.groups
            .list()
            .into_iter()
            .map(|volume| {
                let (pid, began) = find(volume).and_then(|trace| trace.process).unwrap_or_default();
                let uid = find(volume).and_then(|trace| trace.uid);
                let group = self.groups.group(volume);
                Survivor { volume, footprint: Footprint { volume, pid, began, uid, group } }
            })
            .collect()
    }

    fn postmasters(&self, instance: &Footprint) -> Vec<i32> {
        // Only a postmaster is the first process of its own namespace.
        let mut processes = instance.group.processes().unwrap_or_default();
        processes.retain(|&pid| processes::is_first_of_namespace(pid));
        processes
    }

    fn has_process(&self, instance: &Footprint, pid: i32) -> bool {
        instance.group.processes().is_ok_and(|processes| processes.contains(&pid))
    }

    fn merged(&self, volume: VolumeId, template: &TemplateName, kind: VolumeKind) -> io::Result<PathBuf> {
        let layout = &self.volumes.layout;
        match kind {
            VolumeKind::Copy => Ok(layout.pgdata(&volume)),
            VolumeKind::Layer => {
                sys::unshare(libc::CLONE_NEWNS)?;
                self.stage.merge(&layout.template(template), &layout.volume(&volume))
            }
        }
    }

    fn volume_owner(&self) -> Option<(u32, u32)> {
        Some((VOLUME_UID, VOLUME_UID))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.groups.remove();
        match Claims::open(&self.claims) {
            Ok(claims) => sweep(&claims),
            Err(error) => tracing::warn!(%error, "could not look for what other nodes left"),
        }
    }
}

/// Clears away what nodes left that were killed and will not come back for it: empty control groups where no warden
/// runs, and claims whose data directory is gone.
///
/// A warden makes its groups after its claim, and the claims are held still here, so a subtree that belongs to no
/// running node gets no new instance meanwhile. One with a process in it stays, and so does the claim.
fn sweep(claims: &Claims) {
    let list = match claims.list() {
        Ok(list) => list,
        Err(error) => return tracing::warn!(%error, "could not read the claims on user ids"),
    };
    let (running, resting): (Vec<_>, Vec<_>) = list.iter().partition(|claim| claim.is_running());
    let kept: BTreeSet<String> = running.iter().map(|claim| subtree(&claim.data)).collect();
    let left = cgroup::remove_empty_subtrees(|name| is_subtree(name) && !kept.contains(name));
    for claim in resting {
        if claim.is_abandoned()
            && !left.contains(&subtree(&claim.data))
            && let Err(error) = claims.release(claim)
        {
            tracing::warn!(data = %claim.data.display(), %error, "could not give a block of user ids back");
        }
    }
}

/// Whether a control group has a name as [`subtree`] makes them.
fn is_subtree(name: &str) -> bool {
    name.strip_prefix("roost-").is_some_and(|hash| {
        hash.len() == 16 && hash.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// A network namespace in which nothing is.
fn empty_network() -> io::Result<OwnedFd> {
    // Entered for a moment by this one thread, which then goes back.
    let own = sys::own_namespace("net")?;
    sys::unshare(libc::CLONE_NEWNET)?;
    let empty = sys::own_namespace("net");
    sys::enter_namespace(&own)?;
    empty
}

/// The name of the subtree of control groups that belongs to a data directory.
pub(crate) fn subtree(data: &Path) -> String {
    format!("roost-{:016x}", fingerprint(data))
}

/// A short name for a path that stays the same for ever: FNV-1a.
fn fingerprint(path: &Path) -> u64 {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
