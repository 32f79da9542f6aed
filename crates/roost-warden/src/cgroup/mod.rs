//! Control groups: one for each instance, below `roost-<hash of DATA>` in every hierarchy that is of use.
//!
//! A machine may have version 2 with controllers, version 1 hierarchies for some controllers, or a version 2 hierarchy
//! without controllers beside them, which still freezes, kills and tells when a group is empty. What a limit is set
//! through, and what usage is read from, is decided once, at start, by what is mounted.
//!
//! A group's directories exist exactly as long as its instance: [`Groups::create`] makes them before the first process,
//! [`Group::remove`] takes them away after the last, and [`Groups::list`] finds those of a warden that was killed.

mod v1;
mod v2;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use roost_postgres::volume::VolumeId;

use crate::protocol::{Freezer, InstanceUsage, Limits, Reclaim};

/// The hierarchies that instances get groups in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Groups {
    /// Version 2: the subtree, and the controllers that work in it.
    unified: Option<v2::Subtree>,
    /// Version 1: the subtrees of the controllers that version 2 does not have.
    legacy: Vec<v1::Subtree>,
}

/// The group of one instance.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    unified: Option<v2::Group>,
    legacy: Vec<v1::Group>,
}

impl Groups {
    /// Finds the hierarchies, and makes the subtree `name` in each. Hierarchies where that is not permitted are left
    /// out.
    pub(crate) fn prepare(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let unified = v2::Subtree::prepare(&mounts, &own, name);
        let has = |controller: &str| unified.as_ref().is_some_and(|subtree| subtree.has(controller));
        let missing: Vec<&str> = ["memory", "cpu", "cpuacct", "pids"]
            .into_iter()
            .filter(|&controller| match controller {
                // Version 2 counts processor time even where it does not control it.
                "cpuacct" => unified.is_none(),
                _ => !has(controller),
            })
            .collect();
        let legacy = v1::Subtree::prepare(&mounts, name, &missing);
        Self { unified, legacy }
    }

    /// Finds the part of the unified hierarchy that a service manager handed over to this process, and makes the
    /// subtree `name` in it: all that a warden without privileges may use.
    pub(crate) fn delegated(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self { unified: v2::Subtree::delegated(&mounts, &own, name), legacy: Vec::new() }
    }

    /// Makes the group of an instance, with its limits. A group that an earlier instance left, empty, is used again.
    pub(crate) fn create(&self, volume: VolumeId, limits: &Limits) -> io::Result<Group> {
        let group = self.group(volume);
        if let Some(unified) = &group.unified {
            unified.create(limits)?;
        }
        for legacy in &group.legacy {
            legacy.create(limits)?;
        }
        Ok(group)
    }

    /// The group of an instance, whether it exists or not.
    pub(crate) fn group(&self, volume: VolumeId) -> Group {
        Group {
            unified: self.unified.as_ref().map(|subtree| subtree.group(volume)),
            legacy: self.legacy.iter().map(|subtree| subtree.group(volume)).collect(),
        }
    }

    /// Every instance that has a group anywhere.
    pub(crate) fn list(&self) -> BTreeSet<VolumeId> {
        let unified = self.unified.iter().map(v2::Subtree::path);
        unified.chain(self.legacy.iter().map(v1::Subtree::path)).flat_map(instances_below).collect()
    }

    /// Takes the empty subtrees away.
    pub(crate) fn remove(&self) {
        let unified = self.unified.iter().map(v2::Subtree::path);
        for path in unified.chain(self.legacy.iter().map(v1::Subtree::path)) {
            // A subtree with an instance in it stays, for the next warden.
            let _ = fs::remove_dir(path);
        }
    }

    /// Where a limit on `controller` is enforced, for people: `version 2`, `version 1`, or nothing.
    pub(crate) fn enforced_by(&self, controller: &str) -> Option<&'static str> {
        if self.unified.as_ref().is_some_and(|subtree| subtree.has(controller)) {
            Some("version 2")
        } else if self.legacy.iter().any(|subtree| subtree.has(controller)) {
            Some("version 1")
        } else {
            None
        }
    }

    /// Whether groups can be frozen and killed as one.
    pub(crate) fn is_unified(&self) -> bool {
        self.unified.is_some()
    }

    /// How instances are frozen here.
    pub(crate) fn freezer(&self) -> Freezer {
        if self.unified.is_some() { Freezer::Cgroup } else { Freezer::Signal }
    }

    /// How memory is pushed out here.
    pub(crate) fn reclaim(&self) -> Reclaim {
        if self.unified.as_ref().is_some_and(|subtree| subtree.has("memory")) {
            Reclaim::MemoryReclaim
        } else if self.legacy.iter().any(|subtree| subtree.has("memory")) {
            Reclaim::ForceEmpty
        } else {
            Reclaim::Madvise
        }
    }
}

impl Group {
    /// The directory that a process is born into, for `CLONE_INTO_CGROUP`.
    pub(crate) fn birthplace(&self) -> io::Result<Option<fs::File>> {
        self.unified.as_ref().map(|group| fs::File::open(group.path())).transpose()
    }

    /// Moves the calling process, which must have one thread, into the groups that nobody can be born into.
    ///
    /// A thread that moves itself by `tasks` spares the kernel the lock against every fork and exit on the machine,
    /// which moving a process by `cgroup.procs` takes, and which costs more than all mounts of an instance.
    pub(crate) fn join(&self) -> io::Result<()> {
        self.legacy.iter().try_for_each(v1::Group::join)
    }

    /// Whether a process is left in it. Without a unified hierarchy, a zombie counts.
    pub(crate) fn is_populated(&self) -> io::Result<bool> {
        match (&self.unified, self.legacy.first()) {
            (Some(unified), _) => unified.is_populated(),
            (None, Some(legacy)) => legacy.processes().map(|processes| !processes.is_empty()),
            (None, None) => Ok(false),
        }
    }

    /// The processes in it.
    pub(crate) fn processes(&self) -> io::Result<Vec<i32>> {
        match (&self.unified, self.legacy.first()) {
            (Some(unified), _) => unified.processes(),
            (None, Some(legacy)) => legacy.processes(),
            (None, None) => Ok(Vec::new()),
        }
    }

    /// Asks for every process to stop, or to go on. [`Group::is_frozen`] tells when they did.
    pub(crate) fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        if let Some(unified) = &self.unified {
            return unified.set_frozen(frozen);
        }
        let signal = if frozen { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT };
        self.signal(signal)
    }

    /// Whether every process stands still.
    pub(crate) fn is_frozen(&self) -> io::Result<bool> {
        if let Some(unified) = &self.unified {
            return unified.is_frozen();
        }
        let processes = self.processes()?;
        Ok(!processes.is_empty() && processes.iter().all(|&process| is_stopped(process)))
    }

    /// Kills every process, those that are being forked too.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match &self.unified {
            Some(unified) => unified.kill(),
            None => self.signal(rustix::process::Signal::KILL),
        }
    }

    fn signal(&self, signal: rustix::process::Signal) -> io::Result<()> {
        // A process may fork while the list is read, so the list is read again until it shows nothing new.
        let mut seen = BTreeSet::new();
        for _ in 0..16 {
            let fresh: Vec<i32> =
                self.processes()?.into_iter().filter(|&process| seen.insert(process)).collect();
            if fresh.is_empty() {
                break;
            }
            for process in fresh {
                if let Some(process) = rustix::process::Pid::from_raw(process) {
                    // It may have ended since the list was read.
                    let _ = rustix::process::kill_process(process, signal);
                }
            }
        }
        Ok(())
    }

    /// Pushes its memory out; may take seconds. `false` if no controller here can.
    pub(crate) fn reclaim(&self) -> io::Result<bool> {
        if let Some(unified) = self.unified.as_ref().filter(|group| group.has("memory")) {
            unified.reclaim()?;
            return Ok(true);
        }
        match self.legacy.iter().find(|group| group.has("memory")) {
            Some(legacy) => legacy.reclaim().map(|()| true),
            None => Ok(false),
        }
    }

    /// What its processes use. What no controller counts is zero.
    pub(crate) fn usage(&self) -> InstanceUsage {
        let mut usage = InstanceUsage::default();
        if let Some(unified) = &self.unified {
            unified.add_usage(&mut usage);
        }
        for legacy in &self.legacy {
            legacy.add_usage(&mut usage);
        }
        if usage.pids == 0 {
            usage.pids = self.processes().map_or(0, |processes| u32::try_from(processes.len()).unwrap_or(0));
        }
        usage
    }

    /// How many of its processes the kernel killed for want of memory.
    pub(crate) fn out_of_memory_kills(&self) -> u64 {
        let unified = self.unified.as_ref().map_or(0, v2::Group::out_of_memory_kills);
        unified + self.legacy.iter().map(v1::Group::out_of_memory_kills).sum::<u64>()
    }

    /// Removes the empty group; one that does not exist is removed already.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let unified = self.unified.iter().map(v2::Group::path);
        for path in unified.chain(self.legacy.iter().map(v1::Group::path)) {
            match fs::remove_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Removes subtrees of no warden, with the groups of their instances, as far as no process is in them. `is_stale` is
/// asked by name. Returns the names of those that stay.
pub(crate) fn remove_empty_subtrees(is_stale: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut left = BTreeSet::new();
    for mount in mounts(&mountinfo).filter(|mount| mount.kind.starts_with("cgroup")) {
        for entry in fs::read_dir(&mount.point).into_iter().flatten().flatten() {
            let Some(name) = entry.file_name().to_str().filter(|name| is_stale(name)).map(str::to_owned)
            else {
                continue;
            };
            let path = entry.path();
            for volume in instances_below(&path) {
                // The kernel refuses if a process is in it.
                let _ = fs::remove_dir(path.join(volume.as_str()));
            }
            if fs::remove_dir(&path).is_err() && path.exists() {
                left.insert(name);
            }
        }
    }
    left
}

fn is_stopped(process: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T') || rest.starts_with('Z'))
}

fn instances_below(path: &Path) -> Vec<VolumeId> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// One line of `/proc/self/mountinfo`, as far as groups need it.
struct Mount<'a> {
    point: PathBuf,
    kind: &'a str,
    options: &'a str,
}

fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?;
        let mut after = after.split(' ');
        let (kind, _source, options) = (after.next()?, after.next()?, after.next()?);
        Some(Mount { point: PathBuf::from(point), kind, options })
    })
}

/// Makes a group, and the subtree above it if somebody took that away while it was empty. Returns whether it is new.
fn create_directory(path: &Path) -> io::Result<bool> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(path).map(|()| true),
        result => result.map(|()| true),
    }
}

fn read_list(path: &Path) -> io::Result<Vec<i32>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Whether an error says that the group does not exist (any more).
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// The value of `key` in a file of `key value` lines.
fn read_key(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The weight of all instances together beside what else competes at the same level, in multiples of one ordinary
/// process or group. With the weight of one, a machine that is busy otherwise would starve every database at once.
const SUBTREE_WEIGHT: u32 = 16;

/// The bandwidth of `millicores` thousandths of a core as (quota, period), in microseconds. A period of 20 ms keeps the
/// pauses of a throttled database short.
fn bandwidth(millicores: u32) -> (u64, u64) {
    const PERIOD: Duration = Duration::from_millis(20);
    let period = u64::try_from(PERIOD.as_micros()).unwrap_or(20_000);
    // The kernel takes no quota below one millisecond.
    (u64::from(millicores).saturating_mul(period).div_euclid(1000).max(1000), period)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
24 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
30 24 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
31 24 0:27 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
32 24 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn mounts_are_read_with_and_without_optional_fields() {
        let found: Vec<_> = mounts(MOUNTINFO).map(|mount| (mount.point, mount.kind, mount.options)).collect();
        assert_eq!(found.len(), 4);
        assert_eq!(found[2], (PathBuf::from("/sys/fs/cgroup/memory"), "cgroup", "rw,memory"));
        assert_eq!(found[3].1, "cgroup2");
    }

    #[test]
    fn half_a_core_is_half_of_each_period_and_no_quota_is_below_a_millisecond() {
        assert_eq!(bandwidth(500), (10_000, 20_000));
        assert_eq!(bandwidth(2000), (40_000, 20_000));
        assert_eq!(bandwidth(1), (1000, 20_000));
    }
}
