//! Hierarchies of version 1, one for each controller or for several together: limits and usage.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use roost_postgres::volume::VolumeId;

use super::{SUBTREE_WEIGHT, bandwidth, create_directory, is_gone, mounts, read_key, read_list, read_number};
use crate::protocol::{InstanceUsage, Limits};

/// How often memory is pushed out in a row at most, and what may be left then.
const RECLAIM_PASSES: usize = 4;
const RECLAIM_ENOUGH_BYTES: u64 = 128 << 10;

/// The directory that instances' groups are in, in one hierarchy.
#[derive(Debug, Clone)]
pub(super) struct Subtree {
    path: PathBuf,
    controllers: Vec<String>,
}

/// The group of one instance in one hierarchy.
#[derive(Debug, Clone)]
pub(super) struct Group {
    path: PathBuf,
    controllers: Vec<String>,
}

impl Subtree {
    /// Makes a subtree in each hierarchy that has one of the `wanted` controllers.
    pub(super) fn prepare(mountinfo: &str, name: &str, wanted: &[&str]) -> Vec<Self> {
        let mut subtrees: Vec<Self> = Vec::new();
        for mount in mounts(mountinfo).filter(|mount| mount.kind == "cgroup") {
            let controllers: Vec<String> = mount
                .options
                .split(',')
                .filter(|option| wanted.contains(option))
                .map(str::to_owned)
                .collect();
            let known = subtrees.iter().any(|subtree| subtree.controllers == controllers);
            let path = mount.point.join(name);
            if !controllers.is_empty() && !known && create_directory(&path).is_ok() {
                if controllers.iter().any(|controller| controller == "cpu") {
                    // Without it, instances run with the weight that new groups have.
                    let _ = fs::write(path.join("cpu.shares"), (1024 * SUBTREE_WEIGHT).to_string());
                }
                subtrees.push(Self { path, controllers });
            }
        }
        subtrees
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|own| own == controller)
    }

    pub(super) fn group(&self, volume: VolumeId) -> Group {
        Group { path: self.path.join(volume.as_str()), controllers: self.controllers.clone() }
    }
}

impl Group {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|own| own == controller)
    }

    pub(super) fn create(&self, limits: &Limits) -> io::Result<()> {
        let is_new = create_directory(&self.path)?;
        if self.has("memory") {
            fs::write(self.path.join("memory.limit_in_bytes"), limits.memory_bytes.to_string())?;
        }
        if self.has("cpu") {
            match limits.cpu_millicores.map(bandwidth) {
                Some((quota, period)) => {
                    fs::write(self.path.join("cpu.cfs_period_us"), period.to_string())?;
                    fs::write(self.path.join("cpu.cfs_quota_us"), quota.to_string())?;
                }
                None if is_new => {}
                None => set_unlimited(&self.path.join("cpu.cfs_quota_us"))?,
            }
        }
        if self.has("pids") {
            fs::write(self.path.join("pids.max"), limits.pids.to_string())?;
        }
        Ok(())
    }

    pub(super) fn join(&self) -> io::Result<()> {
        fs::write(self.path.join("tasks"), "0")
    }

    pub(super) fn processes(&self) -> io::Result<Vec<i32>> {
        read_list(&self.path.join("cgroup.procs"))
    }

    pub(super) fn reclaim(&self) -> io::Result<()> {
        let stat = self.path.join("memory.stat");
        let resident = || ["rss", "cache"].iter().filter_map(|key| read_key(&stat, key)).sum::<u64>();
        // Pages that were touched of late are spared once, and the kernel gives up early.
        for _ in 0..RECLAIM_PASSES {
            match fs::write(self.path.join("memory.force_empty"), "0") {
                Err(error) if is_gone(&error) => return Ok(()),
                Err(error) if error.kind() != io::ErrorKind::ResourceBusy => return Err(error),
                _ => {}
            }
            if resident() <= RECLAIM_ENOUGH_BYTES {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn add_usage(&self, usage: &mut InstanceUsage) {
        if self.has("memory") {
            usage.memory_bytes = read_number(&self.path.join("memory.usage_in_bytes")).unwrap_or(0);
            usage.swap_bytes = read_key(&self.path.join("memory.stat"), "swap").unwrap_or(0);
        }
        if self.has("cpuacct") {
            let nanoseconds = read_number(&self.path.join("cpuacct.usage")).unwrap_or(0);
            usage.cpu = Duration::from_nanos(nanoseconds);
        }
        if self.has("pids") {
            let pids = read_number(&self.path.join("pids.current")).unwrap_or(0);
            usage.pids = u32::try_from(pids).unwrap_or(u32::MAX);
        }
    }

    pub(super) fn out_of_memory_kills(&self) -> u64 {
        if self.has("memory") {
            read_key(&self.path.join("memory.oom_control"), "oom_kill").unwrap_or(0)
        } else {
            0
        }
    }
}

/// A machine without bandwidth control has no such file.
fn set_unlimited(path: &Path) -> io::Result<()> {
    match fs::write(path, "-1") {
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.kind() == io::ErrorKind::PermissionDenied =>
        {
            Ok(())
        }
        result => result,
    }
}
