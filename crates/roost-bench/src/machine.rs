//! What the kernel says of this machine, its processes and their control groups.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

/// Ticks a second in `/proc/PID/stat`: `USER_HZ`, which every architecture that Postgres runs on has at 100.
const TICKS_A_SECOND: u64 = 100;

/// User and system time that a process has used so far, all its threads together.
pub(crate) fn cpu_time(process: u32) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    let ticks = cpu_ticks(&stat).with_context(|| path)?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS_A_SECOND))
}

/// Fields 14 and 15 of `/proc/PID/stat`; the second field is a name that may have blanks and brackets in it.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Resident memory of a process, in bytes.
pub(crate) fn resident(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024)
}

/// What there is of a node on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// Processes of the machine whose ancestor is the node's warden, the warden included.
    pub(crate) processes: usize,
    /// Open descriptors of warden and node.
    pub(crate) descriptors: usize,
    /// Mounts in the namespaces of the machine, the warden and the node.
    pub(crate) mounts: usize,
    /// Control groups anywhere that are named like one of the databases.
    pub(crate) groups: usize,
}

/// Counts what there is of the node whose warden and node are `processes` (the warden first) and of its `databases`.
pub(crate) fn footprint(processes: &[u32], databases: &[String]) -> Result<Footprint> {
    let mut descriptors = 0;
    let mut mounts = count_lines(Path::new("/proc/self/mountinfo"))?;
    for process in processes {
        descriptors += fs::read_dir(format!("/proc/{process}/fd"))?.count();
        mounts += count_lines(&PathBuf::from(format!("/proc/{process}/mountinfo")))?;
    }
    let warden = processes.first().copied().unwrap_or(0);
    let groups = groups(&|name| databases.iter().any(|database| database == name)).len();
    Ok(Footprint { processes: tree(warden)?.len(), descriptors, mounts, groups })
}

fn count_lines(path: &Path) -> Result<usize> {
    Ok(fs::read_to_string(path).with_context(|| path.display().to_string())?.lines().count())
}

/// A process and all its descendants.
pub(crate) fn tree(root: u32) -> Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // It may have ended meanwhile.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<u32>().ok());
        parents.push((process, parent.unwrap_or(0)));
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(process, _)| *process));
        next += 1;
    }
    Ok(found)
}

/// The control groups of a database, one in each hierarchy that it is in.
#[derive(Debug, Clone)]
pub(crate) struct Groups {
    paths: Vec<PathBuf>,
}

impl Groups {
    /// Those of the database with this id. They exist only while its instance does.
    pub(crate) fn of(database: &str) -> Self {
        Self { paths: groups(&|name| name == database) }
    }

    /// Processor time of the database so far, as finely as the kernel counts it.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        if let Some(nanoseconds) = self.number("cpuacct.usage") {
            return Ok(Duration::from_nanos(nanoseconds));
        }
        let microseconds =
            self.key("cpu.stat", "usage_usec").context("no controller counts processor time")?;
        Ok(Duration::from_micros(microseconds))
    }

    /// Memory charged to the database, kernel memory included, without what is in swap, in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        let usage = self.number("memory.usage_in_bytes").or_else(|| self.number("memory.current"));
        usage.context("no controller counts memory")
    }

    /// The part of [`Groups::memory`] that is the kernel's own, in bytes; zero where it is not told apart.
    pub(crate) fn kernel_memory(&self) -> u64 {
        let usage = self.number("memory.kmem.usage_in_bytes").or_else(|| self.key("memory.stat", "kernel"));
        usage.unwrap_or(0)
    }

    /// What of the database is in swap, before compression, in bytes.
    pub(crate) fn swap(&self) -> Result<u64> {
        let swap = self.number("memory.swap.current").or_else(|| self.key("memory.stat", "swap"));
        swap.context("no controller counts swap")
    }

    /// Processes in the groups.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let lists = self.paths.iter().filter_map(|path| fs::read_to_string(path.join("cgroup.procs")).ok());
        let longest = lists.max_by_key(String::len).unwrap_or_default();
        longest.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn number(&self, file: &str) -> Option<u64> {
        self.texts(file).find_map(|text| text.trim().parse().ok())
    }

    fn key(&self, file: &str, key: &str) -> Option<u64> {
        self.texts(file).find_map(|text| {
            text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
        })
    }

    fn texts(&self, file: &str) -> impl Iterator<Item = String> {
        self.paths.iter().filter_map(move |path| fs::read_to_string(path.join(file)).ok())
    }
}

fn groups(wanted: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_str().is_some_and(wanted) {
                    found.push(entry.path());
                }
                waiting.push(entry.path());
            }
        }
    }
    found
}

/// Reads every file below a folder, so that it is in the page cache.
pub(crate) fn read_files(folder: &Path) -> Result<()> {
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())?.flatten() {
            match entry.file_type()? {
                kind if kind.is_dir() => waiting.push(entry.path()),
                kind if kind.is_file() => {
                    let mut file = fs::File::open(entry.path())?;
                    std::io::copy(&mut file, &mut std::io::sink())?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_behind_a_name_with_brackets() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194304 100 0 0 0 7 5 0 0 20 0 1 0 100 1000 10 0";
        assert_eq!(cpu_ticks(stat), Some(12));
        assert_eq!(cpu_ticks("42 (a"), None);
    }

    #[test]
    fn this_process_is_in_its_own_tree_and_has_memory() {
        let own = std::process::id();
        assert_eq!(tree(own).unwrap().first(), Some(&own));
        assert!(resident(own).unwrap() > 100_000);
        assert!(cpu_time(own).is_ok());
    }
}
