//! A file system of a test's own, in a sparse file, so that filling it fills nothing else.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command;
use crate::machine;

const SOON: Duration = Duration::from_secs(300);

/// A mounted ext4; unmounted and removed when dropped.
#[derive(Debug)]
pub struct Disk {
    image: tempfile::TempPath,
    folder: PathBuf,
}

impl Disk {
    /// Makes and mounts a file system of `bytes`. The file is sparse: it takes what is written.
    pub fn create(bytes: u64) -> Result<Self> {
        Self::create_with(bytes, "")
    }

    /// Like [`create`](Self::create); what is not synced stays in memory for long: names for so many seconds, contents
    /// even when they replace others.
    pub fn create_forgetful(bytes: u64) -> Result<Self> {
        Self::create_with(bytes, ",commit=300,noauto_da_alloc")
    }

    fn create_with(bytes: u64, options: &str) -> Result<Self> {
        let image = Self::image()?;
        image.as_file().set_len(bytes)?;
        let image = image.into_temp_path();
        let mut format = Command::new(machine::program("mkfs.ext4"));
        format.args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"]).arg(&image);
        command::run(&mut format, b"", SOON)?.success().context("mkfs.ext4")?;
        Self::mount(image, options)
    }

    /// What would be found on it if the power were cut now: a copy of what the kernel has given to the device, and
    /// nothing of what it keeps in memory. Nobody may sync anything meanwhile.
    pub fn after_a_power_cut(&self) -> Result<Self> {
        let copy = Self::image()?.into_temp_path();
        let mut copying = Command::new("cp");
        copying.arg("--sparse=always").arg(&self.image).arg(&copy);
        command::run(&mut copying, b"", SOON)?.success().context("cp")?;
        Self::mount(copy, "")
    }

    fn image() -> Result<tempfile::NamedTempFile> {
        Ok(tempfile::Builder::new().prefix("roost-test-").suffix(".ext4").tempfile_in("/var/tmp")?)
    }

    fn mount(image: tempfile::TempPath, options: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("rs-").tempdir_in("/tmp")?.keep();
        let disk = Self { image, folder };
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("loop,noatime{options}")]).arg(&disk.image).arg(&disk.folder);
        command::run(&mut mount, b"", SOON)?.success().context("mount")?;
        // The node's process is not root, and passes through here.
        fs::set_permissions(&disk.folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Takes space until only `left` bytes are free; it comes back when the result is dropped.
    pub fn fill(&self, left: u64) -> Result<Ballast> {
        let path = self.folder.join("ballast");
        let file = File::create(&path)?;
        let ballast = Ballast { path };
        let free = machine::free_bytes(&self.folder)?;
        if free > left {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, free - left)?;
        }
        Ok(ballast)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A file system that is still in use goes away when its last user does.
        let _ = rustix::mount::unmount(&self.folder, rustix::mount::UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Space that is taken.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
}

impl Drop for Ballast {
    fn drop(&mut self) {
        // It is on a file system that goes away anyway.
        let _ = fs::remove_file(&self.path);
    }
}
