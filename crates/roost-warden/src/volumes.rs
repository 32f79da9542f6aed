//! Volumes on disk: their lock, their first files, what they say of themselves, and their end.
//!
//! A volume is complete when it has a manifest, which is written last; what was made without one is made again. Nothing
//! is done to a volume's files without its lock, which an instance holds in every one of its processes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use roost_durable::{Disk, RealDisk};
use roost_postgres::control_file::{self, ClusterState, ControlFile};
use roost_postgres::template::TemplateName;
use roost_postgres::volume::manifest::ManifestError;
use roost_postgres::volume::{Layout, Manifest, VolumeId, VolumeKind};

use crate::failure::{Step, refused};
use crate::protocol::{StartSpec, VolumeReport, WardenError};

/// Directories that a walk over a volume goes down at most; Postgres' own files lie four deep.
const MAX_DEPTH: u32 = 64;

/// The volumes of a node.
#[derive(Debug, Clone)]
pub(crate) struct Volumes {
    /// Where they are.
    pub(crate) layout: Layout,
    /// Who owns their files; `None` if the warden cannot choose.
    pub(crate) owner: Option<(u32, u32)>,
    /// Who owns their logs; `None` if the warden cannot choose.
    pub(crate) reader: Option<(u32, u32)>,
}

impl Volumes {
    /// Makes the directories that all volumes share.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        for directory in [self.layout.templates(), self.layout.databases()] {
            open_directory(&directory, 0o711)?;
            // Also when it is not new: a warden that was killed may have left names in it that are not durable, of a
            // template for one, which volumes are going to lie over.
            RealDisk.sync_dir(&directory)?;
        }
        RealDisk.sync_dir(&self.layout.data)
    }

    /// Opens a volume's log for appending, after making the directories above it.
    pub(crate) fn open_log(&self, volume: VolumeId) -> io::Result<File> {
        open_directory(&self.layout.shard(&volume), 0o711)?;
        open_directory(&self.layout.database(&volume), 0o711)?;
        let logs = self.layout.logs(&volume);
        open_directory(&logs, 0o750)?;
        // The node owns this directory, and is not trusted with what the warden opens: no link is followed, and only a
        // plain file with one name is taken.
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.layout.log(&volume))?;
        let metadata = log.metadata()?;
        if !metadata.is_file() || metadata.nlink() != 1 {
            return Err(io::Error::other("the log is not a plain file with one name"));
        }
        if let Some((uid, gid)) = self.reader {
            std::os::unix::fs::fchown(&log, Some(uid), Some(gid))?;
            std::os::unix::fs::chown(&logs, Some(uid), Some(gid))?;
        }
        Ok(log)
    }

    /// Locks a volume, after making its directory. Whoever inherits the descriptor holds the lock too.
    pub(crate) fn lock(&self, volume: VolumeId) -> Result<File, WardenError> {
        for directory in
            [self.layout.shard(&volume), self.layout.database(&volume), self.layout.volume(&volume)]
        {
            // Their names become durable before the manifest does.
            roost_durable::ensure_dir(&RealDisk, &directory).step("make the volume's directory")?;
        }
        self.lock_existing(volume)
    }

    fn lock_existing(&self, volume: VolumeId) -> Result<File, WardenError> {
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(self.layout.lock(&volume))
            .step("open the volume's lock")?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(fs::TryLockError::WouldBlock) => Err(WardenError::VolumeInUse { volume }),
            Err(fs::TryLockError::Error(error)) => Err(refused("lock the volume", &error)),
        }
    }

    /// Locks a volume that has files.
    pub(crate) fn lock_complete(&self, volume: VolumeId) -> Result<(File, Manifest), WardenError> {
        if !self.layout.volume(&volume).is_dir() {
            return Err(WardenError::VolumeMissing { volume });
        }
        let lock = self.lock_existing(volume)?;
        match self.manifest(volume)? {
            Some(manifest) => Ok((lock, manifest)),
            None => Err(WardenError::VolumeMissing { volume }),
        }
    }

    /// The manifest of a volume; `None` if it has no files yet.
    pub(crate) fn manifest(&self, volume: VolumeId) -> Result<Option<Manifest>, WardenError> {
        checked(volume, Manifest::read(&RealDisk, &self.layout.volume(&volume)))
    }

    /// The manifest of a volume that is about to be started, after making its first files if it has none. The caller
    /// holds its lock.
    pub(crate) fn materialise(
        &self,
        spec: &StartSpec,
        template: &TemplateName,
        kind: VolumeKind,
    ) -> Result<Manifest, WardenError> {
        let volume = spec.volume;
        // Whoever asks for a volume that is not known to have files may find one that a killed warden finished. What is
        // written to it from now on must not be taken for an unfinished one's after a power cut.
        let read = if spec.create { Manifest::read_durably } else { Manifest::read };
        if let Some(manifest) = checked(volume, read(&RealDisk, &self.layout.volume(&volume)))? {
            if manifest.major != spec.major {
                let detail = format!("its files are of Postgres {}, not {}", manifest.major, spec.major);
                return Err(WardenError::VolumeDamaged { volume, detail });
            }
            return Ok(manifest);
        }
        if !spec.create {
            return Err(WardenError::VolumeMissing { volume });
        }
        self.clear(volume).step("remove unfinished files")?;
        let source = self.layout.template(template);
        let control = ControlFile::read(&source)
            .map_err(|error| WardenError::TemplateFailed { major: spec.major, detail: error.to_string() })?;
        match kind {
            VolumeKind::Layer => self.begin_layer(volume, &source, spec.system_identifier)?,
            VolumeKind::Copy => self.begin_copy(volume, &source, spec.system_identifier)?,
        }
        let manifest = Manifest {
            id: volume,
            template: template.clone(),
            major: spec.major,
            system_identifier: spec.system_identifier,
            kind,
            wal_segment_bytes: control.wal_segment_bytes,
            created_at: SystemTime::now(),
        };
        self.finish(&manifest)?;
        Ok(manifest)
    }

    /// Declares a volume complete, durably.
    pub(crate) fn finish(&self, manifest: &Manifest) -> Result<(), WardenError> {
        let volume = manifest.id;
        for directory in [self.layout.databases(), self.layout.shard(&volume), self.layout.database(&volume)]
        {
            RealDisk.sync_dir(&directory).step("write the volume's directory to disk")?;
        }
        manifest
            .write(&RealDisk, &self.layout.volume(&volume))
            .map_err(|error| match error {
                ManifestError::Io { source, .. } => source,
                other => io::Error::other(other),
            })
            .step("write the volume's manifest")
    }

    /// Makes the two directories of a layer, and the only files in which it differs from its template from the start.
    fn begin_layer(&self, volume: VolumeId, template: &Path, identifier: u64) -> Result<(), WardenError> {
        let (upper, work) = (self.layout.upper(&volume), self.layout.work(&volume));
        for directory in [&upper, &work] {
            fs::DirBuilder::new().mode(0o700).create(directory).step("make the volume's layer")?;
        }
        if let Some((uid, gid)) = self.owner {
            std::os::unix::fs::chown(&upper, Some(uid), Some(gid)).step("give the layer to its owner")?;
        }
        control_file::copy_with_system_identifier(template, &upper, identifier)
            .map(drop)
            .map_err(io::Error::other)
            .step("give the volume a system identifier")
    }

    /// Copies a whole cluster.
    pub(crate) fn begin_copy(
        &self,
        volume: VolumeId,
        source: &Path,
        identifier: u64,
    ) -> Result<(), WardenError> {
        let files = self.layout.pgdata(&volume);
        copy_tree(source, &files, MAX_DEPTH).step("copy the cluster")?;
        self.settle_copy(&files, identifier)
    }

    /// Makes files that were just put in place a cluster of its own, durably.
    pub(crate) fn settle_copy(&self, files: &Path, identifier: u64) -> Result<(), WardenError> {
        control_file::set_system_identifier(files, identifier)
            .map_err(io::Error::other)
            .step("give the volume a system identifier")?;
        if let Some(owner) = self.owner {
            own_tree(files, owner, MAX_DEPTH).step("give the volume's files to their owner")?;
        }
        sync_tree(files, MAX_DEPTH).step("write the volume's files to disk")
    }

    /// Removes whatever files a volume has, but not its lock. The manifest goes first, so that a half-removed volume is
    /// never taken for a whole one.
    pub(crate) fn clear(&self, volume: VolumeId) -> io::Result<()> {
        roost_durable::remove(&RealDisk, &self.layout.manifest(&volume))?;
        for directory in [self.layout.upper(&volume), self.layout.work(&volume), self.layout.pgdata(&volume)]
        {
            remove_tree(&directory)?;
        }
        Ok(())
    }

    /// Removes a stopped volume, its log, and everything else of its database.
    pub(crate) fn delete(&self, volume: VolumeId) -> Result<(), WardenError> {
        let database = self.layout.database(&volume);
        if !database.exists() {
            return Ok(());
        }
        let _lock = self.lock(volume)?;
        self.clear(volume).step("remove the volume's files")?;
        remove_tree(&database).step("remove the database's directory")?;
        // What is purged does not come back.
        let shard = self.layout.shard(&volume);
        RealDisk.sync_dir(&shard).step("remove the database's directory")?;
        // The folder that it shared may hold others.
        let _ = fs::remove_dir(shard);
        Ok(())
    }

    /// Bytes that a volume's own files take on disk.
    pub(crate) fn bytes(&self, volume: VolumeId) -> io::Result<u64> {
        let mut total = 0;
        for directory in [self.layout.upper(&volume), self.layout.pgdata(&volume)] {
            match rustix::fs::open(&directory, DIRECTORY, rustix::fs::Mode::empty()) {
                Ok(directory) => total += bytes_below(&directory, MAX_DEPTH)?,
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(total)
    }

    /// What a volume's files say of themselves.
    pub(crate) fn inspect(&self, volume: VolumeId) -> VolumeReport {
        let mut report = VolumeReport::default();
        let manifest = match self.manifest(volume) {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return report,
            Err(error) => {
                report.exists = true;
                report.damage = Some(error.to_string());
                return report;
            }
        };
        report.exists = true;
        report.in_use = matches!(self.lock_existing(volume), Err(WardenError::VolumeInUse { .. }));
        report.major = Some(manifest.major);
        let files = match manifest.kind {
            VolumeKind::Copy => self.layout.pgdata(&volume),
            VolumeKind::Layer => {
                report.template = Some(manifest.template.clone());
                if !self.layout.template(&manifest.template).is_dir() {
                    report.damage = Some(format!("its template {} is not there", manifest.template.as_str()));
                }
                // A layer has a control file of its own from the start.
                self.layout.upper(&volume)
            }
        };
        match read_control(&files) {
            Ok(control) => {
                report.system_identifier = Some(control.system_identifier);
                report.clean = control.state.is_clean();
                report.state = Some(state_name(control.state).to_owned());
                if control.system_identifier != manifest.system_identifier {
                    report.damage =
                        Some("its control file has another system identifier than its manifest".into());
                }
            }
            Err(detail) => report.damage = Some(detail),
        }
        report
    }
}

/// A volume's own manifest, or none if it has no files yet.
fn checked(
    volume: VolumeId,
    manifest: Result<Manifest, ManifestError>,
) -> Result<Option<Manifest>, WardenError> {
    match manifest {
        Ok(manifest) if manifest.id == volume => Ok(Some(manifest)),
        Ok(manifest) => {
            let detail = format!("its manifest is that of {}", manifest.id);
            Err(WardenError::VolumeDamaged { volume, detail })
        }
        Err(ManifestError::Missing { .. }) => Ok(None),
        Err(error) => Err(WardenError::VolumeDamaged { volume, detail: error.to_string() }),
    }
}

/// A cluster's state in the words of `pg_controldata`.
fn state_name(state: ClusterState) -> &'static str {
    match state {
        ClusterState::Starting => "starting up",
        ClusterState::ShutDown => "shut down",
        ClusterState::ShutDownInRecovery => "shut down in recovery",
        ClusterState::ShuttingDown => "shutting down",
        ClusterState::CrashRecovery => "in crash recovery",
        ClusterState::ArchiveRecovery => "in archive recovery",
        ClusterState::Running => "in production",
    }
}

/// The control file of a cluster whose owner may have put anything in its place.
fn read_control(files: &Path) -> Result<ControlFile, String> {
    let directory = files.join("global");
    let is_plain = |path: &Path, directory: bool| {
        fs::symlink_metadata(path)
            .is_ok_and(|metadata| if directory { metadata.is_dir() } else { metadata.is_file() })
    };
    if !is_plain(&directory, true) || !is_plain(&directory.join("pg_control"), false) {
        return Err("it has no control file".to_owned());
    }
    ControlFile::read(files).map_err(|error| error.to_string())
}

const DIRECTORY: rustix::fs::OFlags =
    rustix::fs::OFlags::DIRECTORY.union(rustix::fs::OFlags::NOFOLLOW).union(rustix::fs::OFlags::CLOEXEC);

fn open_directory(path: &Path, mode: u32) -> io::Result<()> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // A directory that was made for its owner alone is opened to those who have to pass through.
            let metadata = fs::symlink_metadata(path)?;
            if !metadata.is_dir() {
                return Err(io::Error::other(format!("{} is not a directory", path.display())));
            }
            if metadata.mode() & 0o777 != mode {
                fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
            }
            Ok(())
        }
        result => result,
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Bytes on disk of everything below an open directory, a file with several names once for each. A tenant's processes
/// may change the tree meanwhile: links are not followed, and what disappears is not counted.
fn bytes_below(directory: &std::os::fd::OwnedFd, depth: u32) -> io::Result<u64> {
    use rustix::fs::{AtFlags, Dir, FileType, Mode, openat, statat};
    let Some(depth) = depth.checked_sub(1) else {
        return Err(io::Error::other(format!("directories deeper than {MAX_DEPTH}")));
    };
    let mut total = 0;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        total += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            match openat(directory, name, DIRECTORY, Mode::empty()) {
                Ok(below) => total += bytes_below(&below, depth)?,
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(total)
}

/// Copies a stopped cluster's files: directories and plain files, with their modes; links are kept as links.
pub(crate) fn copy_tree(from: &Path, to: &Path, depth: u32) -> io::Result<()> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(io::Error::other(format!("directories deeper than {MAX_DEPTH}")));
    };
    let mode = fs::symlink_metadata(from)?.mode() & 0o777;
    fs::DirBuilder::new().mode(mode).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&source, &target, depth)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            copy_file(&source, &target)?;
        }
    }
    Ok(())
}

/// Copies a file, sharing its blocks where the file system can.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let mode = source.metadata()?.mode() & 0o777;
    let mut target = OpenOptions::new().write(true).create_new(true).mode(mode).open(to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
        io::copy(&mut &source, &mut target)?;
    }
    Ok(())
}

fn own_tree(path: &Path, owner: (u32, u32), depth: u32) -> io::Result<()> {
    walk(path, depth, &mut |path, _| std::os::unix::fs::lchown(path, Some(owner.0), Some(owner.1)))
}

fn sync_tree(path: &Path, depth: u32) -> io::Result<()> {
    walk(path, depth, &mut |path, kind| {
        if kind.is_symlink() { Ok(()) } else { File::open(path)?.sync_all() }
    })
}

/// Visits a tree that nobody changes meanwhile, each directory after what is in it.
fn walk(
    path: &Path,
    depth: u32,
    visit: &mut impl FnMut(&Path, fs::FileType) -> io::Result<()>,
) -> io::Result<()> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(io::Error::other(format!("directories deeper than {MAX_DEPTH}")));
    };
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            walk(&entry?.path(), depth, visit)?;
        }
    }
    visit(path, kind)
}
