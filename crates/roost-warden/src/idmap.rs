//! User namespaces that exist only to show a volume's files as an instance's own.
//!
//! On disk every volume belongs to one fixed user. A mount with such a map shows that user as the instance's, and root
//! as root; nobody else appears at all.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use crate::sys::{self, Forked};

/// A namespace that maps the user and group `on_disk` to `shown`, and root to root.
pub(crate) fn namespace(on_disk: u32, shown: u32) -> io::Result<OwnedFd> {
    // A namespace needs a process to be born in. This one waits until its map is written and its namespace is held,
    // and sees the pipe close.
    let (hold, release) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (pid, _pidfd) = match sys::fork(libc::CLONE_NEWUSER, None)? {
        Forked::Child => {
            drop(release);
            let _ = rustix::io::read(&hold, &mut [0_u8; 1]);
            sys::exit_now(0)
        }
        Forked::Parent(pid, pidfd) => (pid, pidfd),
    };
    let map = format!("0 0 1\n{on_disk} {shown} 1\n");
    let namespace = fs::write(format!("/proc/{pid}/uid_map"), &map)
        .and_then(|()| fs::write(format!("/proc/{pid}/gid_map"), &map))
        .and_then(|()| File::open(format!("/proc/{pid}/ns/user")));
    drop(release);
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
    }
    Ok(namespace?.into())
}
