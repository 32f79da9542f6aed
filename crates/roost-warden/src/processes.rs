//! What `/proc` says of processes.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::sys;

/// What is known of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its state, as the letter that `/proc` shows.
    pub(crate) state: u8,
    /// Who started it, or who took it over.
    pub(crate) parent: i32,
    /// The session that it belongs to, by the process that began it.
    pub(crate) session: i32,
    /// When it began, in clock ticks since boot.
    pub(crate) began: u64,
    /// Processor time of its own and of the children that it waited for, in clock ticks.
    pub(crate) ticks: u64,
    /// Its threads.
    pub(crate) threads: u32,
}

impl Process {
    /// Reads a process's line; `None` if there is no such process.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The name in parentheses may hold anything; the fields after it are counted from the process's state, the
        // third.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let ticks = |number| field(number)?.parse::<u64>().ok();
        Some(Self {
            state: *field(3)?.as_bytes().first()?,
            parent: field(4)?.parse().ok()?,
            session: field(6)?.parse().ok()?,
            began: field(22)?.parse().ok()?,
            ticks: (14..=17).filter_map(ticks).sum(),
            threads: field(20)?.parse().ok()?,
        })
    }

    /// Whether nothing of it runs any more.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    /// Whether a signal stopped it, or it has ended.
    pub(crate) fn is_still(&self) -> bool {
        self.state == b'T' || self.has_ended()
    }
}

/// Whatever still runs in a session.
pub(crate) fn of_session(session: i32) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            Process::read(*pid).is_some_and(|process| process.session == session && !process.has_ended())
        })
        .filter_map(Pid::from_raw)
        .collect()
}

/// A process, if it still runs and is a child of `parent`.
pub(crate) fn child_of(parent: u32, pid: i32) -> Option<Pid> {
    let process = Process::read(pid)?;
    let is_child = u32::try_from(process.parent).is_ok_and(|own| own == parent);
    Pid::from_raw(pid).filter(|_| is_child && !process.has_ended())
}

/// When a process began, in clock ticks since boot; `None` if there is none.
pub(crate) fn began(pid: i32) -> Option<u64> {
    Process::read(pid).map(|process| process.began)
}

/// The process ids that this process sees.
pub(crate) fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A process and all that it started, directly or not, as of now: what is forked meanwhile may be missing.
pub(crate) fn tree(root: i32) -> Vec<i32> {
    let mut found = vec![root];
    let mut next = 0;
    if fs::exists("/proc/thread-self/children").unwrap_or(false) {
        while let Some(&pid) = found.get(next) {
            next += 1;
            let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            for thread in threads {
                let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
                found.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
            }
        }
    } else {
        // A kernel without that list: everybody is asked for their parent.
        let parents: Vec<(i32, i32)> =
            all().into_iter().filter_map(|pid| Some((pid, Process::read(pid)?.parent))).collect();
        while let Some(&pid) = found.get(next) {
            next += 1;
            found.extend(parents.iter().filter(|(_, parent)| *parent == pid).map(|(child, _)| *child));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// What a line of a process's `status` says in kibibytes, in bytes; 0 if it is not there.
pub(crate) fn status_bytes(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kibibytes = line.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Whether a process is the first one of a process namespace below this one's.
pub(crate) fn is_first_of_namespace(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let mut ids = ids.split_ascii_whitespace();
    ids.next().is_some() && ids.next_back() == Some("1")
}

/// Pushes the private memory of processes out.
pub(crate) fn page_out(pids: &[i32]) -> io::Result<()> {
    for &pid in pids {
        let Some(id) = Pid::from_raw(pid) else { continue };
        // One that ended meanwhile has no memory any more.
        let Ok(process) = pidfd_open(id, PidfdFlags::empty()) else { continue };
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let ranges: Vec<(u64, u64)> = maps.lines().filter_map(range).collect();
        match sys::page_out(process.as_fd(), &ranges) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            result => result?,
        }
    }
    Ok(())
}

/// Start and length of a mapping that can be pushed out.
fn range(line: &str) -> Option<(u64, u64)> {
    if line.ends_with("[vsyscall]") || line.ends_with("[vvar]") || line.ends_with("[vdso]") {
        return None;
    }
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_began_after_boot_and_one_that_is_not_there_never_did() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(began(own).unwrap() > 0);
        assert_eq!(began(-1), None);
    }

    #[test]
    fn a_process_with_any_name_is_read() {
        let line = "7 (a) b (c) T 1 7 7 0 -1 0 0 0 0 0 10 20 3 4 20 0 5 0 12345 0 0\n";
        let process = Process::parse(line).unwrap();
        let expected = Process { state: b'T', parent: 1, session: 7, began: 12345, ticks: 37, threads: 5 };
        assert_eq!(process, expected);
        assert!(process.is_still() && !process.has_ended());
        assert_eq!(Process::parse("7 (a"), None);
    }

    #[test]
    fn a_tree_holds_the_process_itself_and_its_children() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let id = i32::try_from(child.id()).unwrap();
        let tree = tree(own);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(tree.contains(&own) && tree.contains(&id), "{tree:?}");
    }

    #[test]
    fn sizes_in_a_status_are_in_bytes() {
        assert_eq!(status_bytes("Name:\tx\nRssAnon:\t     8 kB\n", "RssAnon"), 8192);
        assert_eq!(status_bytes("Name:\tx\n", "RssAnon"), 0);
    }

    #[test]
    fn a_mapping_is_read_as_start_and_length() {
        assert_eq!(range("7f00-8000 rw-p 00000000 00:00 0 "), Some((0x7f00, 0x100)));
        assert_eq!(range("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]"), None);
        assert_eq!(range("nonsense"), None);
    }
}
