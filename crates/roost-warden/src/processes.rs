//! What `/proc` says of processes.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::sys;

/// When a process began, in clock ticks since boot; `None` if there is none.
pub(crate) fn began(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields after it are counted from the process's state, the third.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
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
    fn a_mapping_is_read_as_start_and_length() {
        assert_eq!(range("7f00-8000 rw-p 00000000 00:00 0 "), Some((0x7f00, 0x100)));
        assert_eq!(range("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]"), None);
        assert_eq!(range("nonsense"), None);
    }
}
