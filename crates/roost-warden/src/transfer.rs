//! Whole volumes on the move: copied to another one, written out as a tar stream, and made of one.
//!
//! Each holds the locks of the volumes that it touches, so no instance runs on them, and nobody changes a file
//! meanwhile. What comes out is flattened: it needs no template. What comes in is not trusted: only directories, plain
//! files and the links of tablespaces are taken, and none outside of the new volume.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use roost_postgres::control_file::ControlFile;
use roost_postgres::volume::{Manifest, VolumeId, VolumeKind};

use crate::failure::{Step, refused, system};
use crate::job::Workshop;
use crate::mounts;
use crate::protocol::WardenError;

/// The first entry of a stream: what the volume was made from.
const MANIFEST: &str = "manifest.json";
/// The directory of the volume's files in a stream.
const FILES: &str = "pgdata";
/// The longest manifest in a stream, in bytes.
const MAX_MANIFEST: u64 = 64 * 1024;

/// Copies a stopped volume into a new one with a system identifier of its own.
pub(crate) fn copy(
    workshop: Workshop<'_>,
    from: VolumeId,
    to: VolumeId,
    system_identifier: u64,
) -> Result<(), WardenError> {
    let volumes = workshop.volumes;
    let (_source_lock, source) = volumes.lock_complete(from)?;
    let _target_lock = lock_new(workshop, to)?;
    let files = merged(workshop, &source)?;
    volumes.begin_copy(to, &files, system_identifier)?;
    volumes.finish(&Manifest {
        id: to,
        system_identifier,
        kind: VolumeKind::Copy,
        created_at: SystemTime::now(),
        ..source
    })
}

/// Shows a stopped volume's files in one directory.
fn merged(workshop: Workshop<'_>, manifest: &Manifest) -> Result<PathBuf, WardenError> {
    workshop.isolation.merged(manifest.id, &manifest.template, manifest.kind).map_err(|error| {
        if mounts::is_in_use(&error) {
            WardenError::VolumeInUse { volume: manifest.id }
        } else {
            refused("show the volume's files", &error)
        }
    })
}

/// Locks a volume that must not have files, and removes what an unfinished one has.
fn lock_new(workshop: Workshop<'_>, volume: VolumeId) -> Result<File, WardenError> {
    let lock = workshop.volumes.lock(volume)?;
    if workshop.volumes.manifest(volume)?.is_some() {
        return Err(WardenError::VolumeExists { volume });
    }
    workshop.volumes.clear(volume).step("remove unfinished files")?;
    Ok(lock)
}

/// Writes a stopped volume, flattened, as a tar stream. Returns the bytes of its files.
pub(crate) fn export(
    workshop: Workshop<'_>,
    volume: VolumeId,
    stream: BorrowedFd<'_>,
) -> Result<u64, WardenError> {
    let (_lock, manifest) = workshop.volumes.lock_complete(volume)?;
    let files = merged(workshop, &manifest)?;
    let write = || -> io::Result<u64> {
        let stream = File::from(stream.try_clone_to_owned()?);
        rustix::io::ioctl_fionbio(&stream, false)?;
        let mut archive = tar::Builder::new(io::BufWriter::with_capacity(1 << 18, stream));
        archive.follow_symlinks(false);
        archive.mode(tar::HeaderMode::Deterministic);
        let text = serde_json::to_vec(&Manifest { kind: VolumeKind::Copy, ..manifest.clone() })?;
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_cksum();
        archive.append_data(&mut header, MANIFEST, text.as_slice())?;
        archive.append_dir_all(FILES, &files)?;
        archive.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        bytes_of(&files)
    };
    write().map_err(|error| system("write the stream", &error))
}

fn bytes_of(path: &Path) -> io::Result<u64> {
    let metadata = std::fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    std::fs::read_dir(path)?.try_fold(0, |total, entry| Ok(total + bytes_of(&entry?.path())?))
}

/// Makes a volume of a tar stream that [`export`] wrote. Returns the bytes of its files.
pub(crate) fn import(
    workshop: Workshop<'_>,
    volume: VolumeId,
    major: u16,
    system_identifier: u64,
    stream: BorrowedFd<'_>,
) -> Result<u64, WardenError> {
    let volumes = workshop.volumes;
    let _lock = lock_new(workshop, volume)?;
    let files = volumes.layout.pgdata(&volume);
    let read = || -> io::Result<(Manifest, u64)> {
        let stream = File::from(stream.try_clone_to_owned()?);
        rustix::io::ioctl_fionbio(&stream, false)?;
        unpack(stream, &files)
    };
    let (manifest, bytes) = read().map_err(|error| system("read the stream", &error))?;
    let control = ControlFile::read(&files).map_err(|error| WardenError::InvalidRequest {
        detail: format!("the stream holds no cluster: {error}"),
    })?;
    if manifest.major != major {
        let detail = format!("the stream holds a cluster of Postgres {}, not {major}", manifest.major);
        return Err(WardenError::InvalidRequest { detail });
    }
    if !control.state.is_clean() {
        let detail = "the stream holds a cluster that was not shut down".to_owned();
        return Err(WardenError::InvalidRequest { detail });
    }
    volumes.settle_copy(&files, system_identifier)?;
    volumes.finish(&Manifest {
        id: volume,
        template: manifest.template,
        major,
        system_identifier,
        kind: VolumeKind::Copy,
        wal_segment_bytes: control.wal_segment_bytes,
        created_at: SystemTime::now(),
    })?;
    Ok(bytes)
}

fn unpack(stream: impl Read, files: &Path) -> io::Result<(Manifest, u64)> {
    let invalid = |detail: String| io::Error::new(io::ErrorKind::InvalidData, detail);
    let mut archive = tar::Archive::new(io::BufReader::with_capacity(1 << 18, stream));
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(false);
    archive.set_unpack_xattrs(false);
    let mut entries = archive.entries()?;
    let mut first = entries.next().ok_or_else(|| invalid("it is empty".to_owned()))??;
    if first.path()?.as_ref() != Path::new(MANIFEST) || first.size() > MAX_MANIFEST {
        return Err(invalid("it does not begin with a manifest".to_owned()));
    }
    let mut text = String::new();
    first.read_to_string(&mut text)?;
    let manifest: Manifest = serde_json::from_str(&text)?;

    std::fs::create_dir(files)?;
    let mut bytes = 0;
    for entry in entries {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let inside = path
            .strip_prefix(FILES)
            .map_err(|_| invalid(format!("{} lies outside of the volume", path.display())))?;
        if !inside.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(invalid(format!("{} lies outside of the volume", path.display())));
        }
        let kind = entry.header().entry_type();
        // The holes of a sparse log segment travel as holes.
        if !(kind.is_dir() || kind.is_file() || kind.is_gnu_sparse()) {
            return Err(invalid(format!("{} is neither a directory nor a file", path.display())));
        }
        bytes += entry.size();
        let target = files.join(inside);
        if kind.is_dir() {
            std::fs::create_dir_all(&target)?;
        } else {
            entry.unpack(&target)?;
        }
        let mode = if kind.is_dir() { 0o700 } else { 0o600 };
        std::fs::set_permissions(&target, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    }
    Ok((manifest, bytes))
}
