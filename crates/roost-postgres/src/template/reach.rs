//! Putting a directory within reach of a user that could otherwise not work in it.
//!
//! Postgres insists on two things while a cluster is made: the user it runs as has an entry in the user database, and can
//! reach the data directory by its absolute path. The user that volumes belong to has neither, on purpose. So the work is
//! done on a thread with a mount namespace of its own, where a small user database lies over the machine's, and a fresh
//! directory with nothing but the wanted one inside lies over whatever bars the way. The machine sees none of it, and all
//! of it is gone when the thread ends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;

use super::TemplateError;

const USER_DATABASE: &str = "/etc/passwd";

/// Does `work`, which starts processes as that user and group, where they can reach `directory`. The directory is theirs,
/// and its parent is a directory that a small file may be left in.
pub(super) fn within<T: Send>(
    directory: &Path,
    uid: u32,
    gid: u32,
    work: impl FnOnce() -> Result<T, TemplateError> + Send,
) -> Result<T, TemplateError> {
    let failed = |source| TemplateError::Reach { path: directory.to_owned(), uid, source };
    let known = fs::read_to_string(USER_DATABASE).is_ok_and(|users| lists(&users, uid));
    let barrier = barrier(directory, uid, gid).map_err(failed)?;
    if known && barrier.is_none() {
        return work();
    }

    let outcome = thread::scope(|scope| {
        let worker = || {
            own_mounts().map_err(failed)?;
            if !known {
                cover_user_database(directory, uid, gid).map_err(failed)?;
            }
            if let Some(barrier) = barrier {
                cover_barrier(&barrier, directory).map_err(failed)?;
            }
            work()
        };
        thread::Builder::new()
            .name("template".to_owned())
            .spawn_scoped(scope, worker)
            .map(thread::ScopedJoinHandle::join)
    });
    match outcome {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(failed(io::Error::other("the thread that does the work ended early"))),
        Err(error) => Err(failed(error)),
    }
}

/// Whether a user database in the form of `/etc/passwd` has that user.
fn lists(users: &str, uid: u32) -> bool {
    users.lines().any(|line| line.split(':').nth(2).and_then(|field| field.parse().ok()) == Some(uid))
}

/// The first directory above `directory` that the user may not pass through. Access control lists are not looked at: where
/// they forbid more, Postgres will say so.
fn barrier(directory: &Path, uid: u32, gid: u32) -> io::Result<Option<PathBuf>> {
    let mut above: Vec<&Path> = directory.ancestors().skip(1).collect();
    above.reverse();
    for ancestor in above {
        let metadata = fs::metadata(ancestor)?;
        let search = if metadata.uid() == uid {
            0o100
        } else if metadata.gid() == gid {
            0o010
        } else {
            0o001
        };
        if metadata.mode() & search == 0 {
            return Ok(Some(ancestor.to_owned()));
        }
    }
    Ok(None)
}

#[allow(unsafe_code)]
fn own_mounts() -> io::Result<()> {
    // SAFETY: only the mount namespace is separated (and with it this thread's root and working directory), not the
    // table of file descriptors, so every descriptor means the same on all threads. The thread ends with the work.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", private)?)
}

fn cover_user_database(directory: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let users = directory.with_file_name("passwd");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&users)?;
    writeln!(file, "roost:x:{uid}:{gid}::/:/bin/false")?;
    Ok(rustix::mount::mount_bind(&users, USER_DATABASE)?)
}

fn cover_barrier(barrier: &Path, directory: &Path) -> io::Result<()> {
    // Opened in this namespace: a mount of another one cannot be bound here.
    let wanted: OwnedFd =
        rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::mount::mount(
        "roost",
        barrier,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(c"mode=0755,size=64k"),
    )?;
    fs::create_dir_all(directory)?;
    rustix::mount::mount_bind(format!("/proc/thread-self/fd/{}", wanted.as_raw_fd()), directory)?;
    File::open(directory).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_user_is_found_by_number() {
        let users = "root:x:0:0::/root:/bin/sh\nbroken\nnobody:x:65534:65534::/:/bin/false\n";
        assert!(lists(users, 0));
        assert!(lists(users, 65534));
        assert!(!lists(users, 1));
    }

    #[test]
    fn the_first_closed_directory_bars_the_way() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().canonicalize().unwrap().join("closed/open/cluster");
        fs::create_dir_all(&inner).unwrap();
        let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        open(outer.path(), 0o755);
        open(&outer.path().join("closed"), 0o755);
        open(&outer.path().join("closed/open"), 0o755);
        assert_eq!(barrier(&inner, 4_000_000, 4_000_000).unwrap(), None);
        open(&outer.path().join("closed"), 0o700);
        assert_eq!(barrier(&inner, 4_000_000, 4_000_000).unwrap(), Some(outer.path().join("closed")));
    }
}
