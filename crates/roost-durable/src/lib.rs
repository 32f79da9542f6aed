//! Small files that survive a power cut whole: what was acknowledged is there, and nothing half-written is ever read.
//!
//! A file is replaced by writing a neighbour, syncing it, renaming it over the old one and syncing the directory. All
//! I/O goes through [`Disk`], so that a test can put a simulated disk in its place (feature `simulated`) that drops,
//! tears and reorders whatever was not synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[cfg(any(test, feature = "simulated"))]
pub mod simulated;

/// The file system operations that durable files need. Each either fails or has happened in memory; only the `sync`
/// operations promise that anything survives a power cut.
pub trait Disk {
    /// An open file.
    type File;

    /// Makes an empty file for writing, readable by its owner only; an existing one is truncated.
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    /// Appends to a file that was just made.
    fn write(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;
    /// Makes the file's content durable, but not its name.
    fn sync(&self, file: &Self::File) -> io::Result<()>;
    /// Gives a file another name, replacing what had that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file's name.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory, open to its owner only.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Reads a whole file of at most `max_bytes`; a longer one is [`io::ErrorKind::FileTooLarge`].
    fn read(&self, path: &Path, max_bytes: u64) -> io::Result<Vec<u8>>;
}

/// The machine's file systems.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    type File = File;

    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn read(&self, path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > max_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(bytes)
    }
}

/// Replaces the content of the file at `path`, or makes it. When this returns `Ok`, the new content survives a power
/// cut; when it fails or is cut short, a reader finds the old content or the new, never a mixture.
///
/// Two replacements of one file must not run at once; the caller holds the volume's lock.
pub fn replace<D: Disk>(disk: &D, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = parent(path)?;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let new = parent.join(name);

    let mut file = disk.create(&new)?;
    disk.write(&mut file, bytes)?;
    disk.sync(&file)?;
    disk.rename(&new, path)?;
    disk.sync_dir(&parent)
}

/// Removes a file for good. One that does not exist is no error.
pub fn remove<D: Disk>(disk: &D, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    disk.sync_dir(&parent(path)?)
}

/// Makes a directory whose parent exists, durably. One that exists is no error, but its name is synced all the same:
/// whoever made it may have been cut short.
pub fn create_dir<D: Disk>(disk: &D, path: &Path) -> io::Result<()> {
    ensure_dir(disk, path)?;
    disk.sync_dir(&parent(path)?)
}

/// Makes a directory whose parent exists, unless it is there. Its name is not durable before its parent is synced.
pub fn ensure_dir<D: Disk>(disk: &D, path: &Path) -> io::Result<()> {
    match disk.create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn parent(path: &Path) -> io::Result<PathBuf> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Ok(PathBuf::from(".")),
        Some(parent) => Ok(parent.to_owned()),
        None => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_on_a_real_disk() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        replace(&RealDisk, &path, b"one").unwrap();
        replace(&RealDisk, &path, b"two").unwrap();
        assert_eq!(RealDisk.read(&path, 3).unwrap(), b"two");
        assert_eq!(RealDisk.read(&path, 2).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        remove(&RealDisk, &path).unwrap();
        remove(&RealDisk, &path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_exists_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sub");
        create_dir(&RealDisk, &path).unwrap();
        create_dir(&RealDisk, &path).unwrap();
        assert!(create_dir(&RealDisk, &path.join("missing/below")).is_err());
    }
}
