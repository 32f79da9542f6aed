//! The unified hierarchy: limits where its controllers are, and freezing, killing and emptiness always.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use roost_postgres::volume::VolumeId;

use super::{SUBTREE_WEIGHT, bandwidth, create_directory, is_gone, mounts, read_key, read_list, read_number};
use crate::protocol::{InstanceUsage, Limits};

/// The directory that instances' groups are in.
#[derive(Debug, Clone)]
pub(super) struct Subtree {
    path: PathBuf,
    controllers: BTreeSet<String>,
}

/// The group of one instance.
#[derive(Debug, Clone)]
pub(super) struct Group {
    path: PathBuf,
    controllers: BTreeSet<String>,
}

impl Subtree {
    /// Makes the subtree: below the warden's own group if a service manager delegated that one, else below the root,
    /// where a later warden finds it from whatever session it is started.
    pub(super) fn prepare(mountinfo: &str, own: &str, name: &str) -> Option<Self> {
        match home(mountinfo, own)? {
            (_, Some(home)) => Self::below(&settle(home)?, name),
            (mount, None) => Self::below(&mount, name),
        }
    }

    /// Makes the subtree below the warden's own group, if a service manager delegated that one.
    pub(super) fn delegated(mountinfo: &str, own: &str, name: &str) -> Option<Self> {
        let (_, home) = home(mountinfo, own)?;
        Self::below(&settle(home?)?, name)
    }

    fn below(parent: &Path, name: &str) -> Option<Self> {
        let path = parent.join(name);
        create_directory(&path).ok()?;
        if !path.join("cgroup.kill").exists() {
            return None; // before Linux 5.14: version 1, or signals, do the work
        }
        enable_controllers(parent);
        enable_controllers(&path);
        let controllers = controllers_of(&path.join("cgroup.subtree_control"));
        if controllers.contains("cpu") {
            // Without it, instances run with the weight that new groups have.
            let _ = fs::write(path.join("cpu.weight"), (100 * SUBTREE_WEIGHT).to_string());
        }
        Some(Self { path, controllers })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.contains(controller)
    }

    pub(super) fn group(&self, volume: VolumeId) -> Group {
        Group { path: self.path.join(volume.as_str()), controllers: self.controllers.clone() }
    }
}

/// Where the hierarchy is mounted, and the warden's own group in it, if a service manager delegated that one.
fn home(mountinfo: &str, own: &str) -> Option<(PathBuf, Option<PathBuf>)> {
    let mount = mounts(mountinfo).find(|mount| mount.kind == "cgroup2")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // A warden before this one, or this one when it was executed again, moved itself into the leaf.
    let own = own.strip_suffix("/warden").unwrap_or(own);
    let home = mount.point.join(own);
    let delegated = own.ends_with(".service") && is_delegated(&home);
    Some((mount.point, delegated.then_some(home)))
}

/// Moves the warden into a leaf of its own group: one that has controllers for its children may hold no processes.
fn settle(home: PathBuf) -> Option<PathBuf> {
    let leaf = home.join("warden");
    create_directory(&leaf).ok()?;
    fs::write(leaf.join("cgroup.procs"), "0").ok()?;
    Some(home)
}

fn is_delegated(group: &Path) -> bool {
    let mut value = [0_u8; 8];
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        rustix::fs::getxattr(group, *name, &mut value).is_ok_and(|length| value.get(..length) == Some(b"1"))
    })
}

fn enable_controllers(group: &Path) {
    let available = controllers_of(&group.join("cgroup.controllers"));
    for controller in ["memory", "cpu", "pids"] {
        if available.contains(controller) {
            // One that cannot be enabled is missing from `cgroup.subtree_control`, which is read afterwards.
            let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
}

fn controllers_of(path: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

impl Group {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.contains(controller)
    }

    pub(super) fn create(&self, limits: &Limits) -> io::Result<()> {
        let is_new = create_directory(&self.path)?;
        if self.has("memory") {
            fs::write(self.path.join("memory.max"), limits.memory_bytes.to_string())?;
            // Slowed down a little before the end, so that a group that swaps survives a peak.
            let high = limits.memory_bytes - limits.memory_bytes / 32;
            fs::write(self.path.join("memory.high"), high.to_string())?;
        }
        if self.has("cpu") {
            let value = limits.cpu_millicores.map_or_else(
                || "max".to_owned(),
                |millicores| {
                    let (quota, period) = bandwidth(millicores);
                    format!("{quota} {period}")
                },
            );
            fs::write(self.path.join("cpu.max"), value)?;
        }
        if self.has("pids") {
            fs::write(self.path.join("pids.max"), limits.pids.to_string())?;
        }
        if is_new { Ok(()) } else { self.set_frozen(false) }
    }

    pub(super) fn is_populated(&self) -> io::Result<bool> {
        self.event("populated")
    }

    pub(super) fn is_frozen(&self) -> io::Result<bool> {
        self.event("frozen")
    }

    fn event(&self, key: &str) -> io::Result<bool> {
        match fs::read_to_string(self.path.join("cgroup.events")) {
            Ok(text) => Ok(text.lines().any(|line| line.strip_prefix(key) == Some(" 1"))),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn processes(&self) -> io::Result<Vec<i32>> {
        read_list(&self.path.join("cgroup.procs"))
    }

    pub(super) fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        fs::write(self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    pub(super) fn kill(&self) -> io::Result<()> {
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Err(error) if is_gone(&error) => Ok(()),
            result => result,
        }
    }

    pub(super) fn reclaim(&self) -> io::Result<()> {
        let bytes = read_number(&self.path.join("memory.current")).unwrap_or(0);
        match fs::write(self.path.join("memory.reclaim"), bytes.to_string()) {
            // The kernel reclaimed less than was asked for, which is what asking for everything comes to.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }

    pub(super) fn add_usage(&self, usage: &mut InstanceUsage) {
        if self.has("memory") {
            usage.memory_bytes = read_number(&self.path.join("memory.current")).unwrap_or(0);
            usage.swap_bytes = read_number(&self.path.join("memory.swap.current")).unwrap_or(0);
        }
        // Version 2 counts processor time even where it does not control it.
        let microseconds = read_key(&self.path.join("cpu.stat"), "usage_usec").unwrap_or(0);
        usage.cpu = Duration::from_micros(microseconds);
        if self.has("pids") {
            let pids = read_number(&self.path.join("pids.current")).unwrap_or(0);
            usage.pids = u32::try_from(pids).unwrap_or(u32::MAX);
        }
    }

    pub(super) fn out_of_memory_kills(&self) -> u64 {
        read_key(&self.path.join("memory.events"), "oom_kill").unwrap_or(0)
    }
}
