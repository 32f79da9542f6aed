//! User namespaces that exist only to show a volume's files as an instance's own.
//!
//! On disk every volume belongs to one fixed user. A mount with such a map shows that user as the instance's, and root
//! as root; nobody else appears at all.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use crate::sys;

/// A namespace that maps the user and group `on_disk` to `shown`, and root to root.
pub(crate) fn namespace(on_disk: u32, shown: u32) -> io::Result<OwnedFd> {
    let map = format!("0 0 1\n{on_disk} {shown} 1\n");
    // It needs a process to be born in, until its map is written and a descriptor holds it.
    let namespace = sys::with_user_namespace(|pid| {
        fs::write(format!("/proc/{pid}/uid_map"), &map)?;
        fs::write(format!("/proc/{pid}/gid_map"), &map)?;
        File::open(format!("/proc/{pid}/ns/user"))
    })??;
    Ok(namespace.into())
}
