//! The processes of an instance where no control group holds them: found through `/proc`, stopped and ended by signals.
//!
//! In a process namespace of its own an instance is exactly what descends from its first process, and the kernel ends
//! all of it with that one. Without such a namespace the first process takes over the orphans below it, and after its
//! end what is left is known by the volume's lock, which each of them inherited.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::confine::LOCK_DESCRIPTOR;
use crate::processes::{self, Process};
use crate::protocol::InstanceUsage;

/// Looks at a tree that goes on forking before more of them are left to a later moment.
const MAX_PASSES: usize = 16;

/// The processes of one instance.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    /// Its first process.
    pub(crate) root: i32,
    /// When that began, in clock ticks since boot.
    pub(crate) began: u64,
    /// The volume's lock, if processes may outlive the first one.
    pub(crate) lock: Option<PathBuf>,
}

impl Tree {
    fn is_root_there(&self) -> bool {
        Process::read(self.root).is_some_and(|root| root.began == self.began && !root.has_ended())
    }

    /// All that can be found now.
    pub(crate) fn processes(&self) -> Vec<i32> {
        if self.is_root_there() {
            return processes::tree(self.root);
        }
        let all: BTreeSet<i32> = self.orphans().into_iter().flat_map(processes::tree).collect();
        all.into_iter().collect()
    }

    /// What outlived the first process. What began before it belongs to another instance.
    fn orphans(&self) -> Vec<i32> {
        let mut left = self.lock.as_deref().map(holders).unwrap_or_default();
        left.retain(|&pid| {
            Process::read(pid).is_some_and(|process| process.began >= self.began && !process.has_ended())
        });
        left
    }

    /// Whether nothing of it is left.
    pub(crate) fn is_gone(&self) -> bool {
        !self.is_root_there() && self.orphans().is_empty()
    }

    /// Whether it is there and stands still.
    pub(crate) fn is_stopped(&self) -> bool {
        let processes = self.processes();
        let is_still = |pid: &i32| Process::read(*pid).is_none_or(|process| process.is_still());
        !processes.is_empty() && processes.iter().all(is_still)
    }

    /// Stops every process, until a look at the tree shows none that was not told to.
    pub(crate) fn stop(&self) {
        let mut told = BTreeSet::new();
        for _ in 0..MAX_PASSES {
            let mut fresh = self.processes();
            fresh.retain(|&pid| told.insert(pid));
            if fresh.is_empty() {
                return;
            }
            // Those that began first start the others.
            fresh.into_iter().for_each(|pid| signal(pid, Signal::STOP));
        }
    }

    /// Lets every process go on. What stands still forks nothing, so one look finds all of them.
    pub(crate) fn go_on(&self) {
        self.processes().into_iter().for_each(|pid| signal(pid, Signal::CONT));
    }

    /// Ends every process at once.
    pub(crate) fn kill(&self) {
        if self.lock.is_some() {
            self.stop();
            self.processes().into_iter().for_each(|pid| signal(pid, Signal::KILL));
        } else if self.is_root_there() {
            signal(self.root, Signal::KILL);
        }
    }

    /// What it uses, as far as `/proc` counts it.
    pub(crate) fn usage(&self) -> InstanceUsage {
        let mut usage = InstanceUsage::default();
        let (mut ticks, mut shared) = (0, 0);
        for pid in self.processes() {
            let Some(process) = Process::read(pid) else { continue };
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            usage.memory_bytes += processes::status_bytes(&status, "RssAnon");
            usage.swap_bytes += processes::status_bytes(&status, "VmSwap");
            // Shared by all of them; whoever touched the most of it knows best.
            shared = shared.max(processes::status_bytes(&status, "RssShmem"));
            usage.pids += process.threads;
            ticks += process.ticks;
        }
        usage.memory_bytes += shared;
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        usage.cpu = Duration::from_millis(ticks * 1000 / per_second);
        usage
    }
}

fn signal(pid: i32, signal: Signal) {
    if let Some(process) = Pid::from_raw(pid) {
        // It may have ended since it was found.
        let _ = kill_process(process, signal);
    }
}

/// The processes that hold a volume's lock where an instance's processes have it.
pub(crate) fn holders(lock: &Path) -> Vec<i32> {
    let Some(wanted) = identity(lock) else { return Vec::new() };
    processes::all().into_iter().filter(|&pid| lock_of(pid) == Some(wanted)).collect()
}

/// Which file a process has at the descriptor of the volume's lock: device and inode.
pub(crate) fn lock_of(pid: i32) -> Option<(u64, u64)> {
    identity(format!("/proc/{pid}/fd/{LOCK_DESCRIPTOR}"))
}

/// Device and inode of a file.
pub(crate) fn identity(path: impl AsRef<Path>) -> Option<(u64, u64)> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok()
}

/// The one of `pids` whose parent is none of them: who started the others.
pub(crate) fn eldest(pids: &[i32]) -> Option<(i32, u64)> {
    let known = pids.iter().filter_map(|&pid| Some((pid, Process::read(pid)?)));
    let first = known.filter(|(_, process)| !pids.contains(&process.parent));
    first.min_by_key(|(_, process)| process.began).map(|(pid, process)| (pid, process.began))
}

/// Whether some process holds a volume's lock.
pub(crate) fn is_held(lock: &Path) -> bool {
    let file = fs::File::options().write(true).open(lock);
    file.is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)))
}
