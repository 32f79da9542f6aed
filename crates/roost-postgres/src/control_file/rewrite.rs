//! Giving a cluster a system identifier of its own, so that its WAL can never be taken for another one's.
//!
//! The identifier is in the control file and in the first page of every WAL segment. The segments are written first and
//! the control file last: a rewriting that was cut short is completed by doing it again.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use super::{ControlFile, ControlFileError, RELATIVE_PATH, read_bounded, wal};

/// How much of a segment is read at once, in bytes; also the unit that is left out when it is all zeros.
const BLOCK_BYTES: usize = 64 * 1024;

/// Changes the system identifier of the cluster in `pgdata`, in place. No Postgres may run on it, and it must have been
/// shut down cleanly. Returns the files that were written, all synced.
///
/// # Errors
/// [`ControlFileError`]. The change may then be half done; doing it again with the same `id` completes it.
pub fn set_system_identifier(pgdata: &Path, id: u64) -> Result<Vec<PathBuf>, ControlFileError> {
    let cluster = Cluster::open(pgdata)?;
    let mut written = Vec::new();
    for (path, first_page) in cluster.segments_to_change(id)? {
        let file = OpenOptions::new().write(true).open(&path).map_err(io_at(&path))?;
        file.write_all_at(&first_page, 0).and_then(|()| file.sync_all()).map_err(io_at(&path))?;
        written.push(path);
    }
    let path = pgdata.join(RELATIVE_PATH);
    let content = cluster.control_with(id)?;
    let file = OpenOptions::new().write(true).open(&path).map_err(io_at(&path))?;
    file.write_all_at(&content, 0).and_then(|()| file.sync_all()).map_err(io_at(&path))?;
    written.push(path);
    Ok(written)
}

/// Writes copies of those files of the cluster in `source` that carry the system identifier, changed to `id`, to the same
/// places below `dest`: the upper directory of a layer over `source`, or an empty one. Missing directories are made with
/// the owner and mode that they have in `source`, and so are the files. WAL is copied without its zeros, with its whole
/// length reserved. Returns the files that were written; they and the directories above them, `dest` included, are synced.
///
/// # Errors
/// [`ControlFileError`]. What was written until then remains; doing it again overwrites it.
pub fn copy_with_system_identifier(
    source: &Path,
    dest: &Path,
    id: u64,
) -> Result<Vec<PathBuf>, ControlFileError> {
    let cluster = Cluster::open(source)?;
    let mut written = Vec::new();

    let wal_directory = copy_directory(source, dest, "pg_wal")?;
    for (path, first_page) in cluster.segments_to_change(id)? {
        let Some(name) = path.file_name() else { continue };
        let copy = wal_directory.join(name);
        let file = copy_segment(&path, &first_page, &copy).map_err(io_at(&copy))?;
        written.push((copy, file));
    }
    let global = copy_directory(source, dest, "global")?;
    let copy = dest.join(RELATIVE_PATH);
    let content = cluster.control_with(id)?;
    let file = create_like(&source.join(RELATIVE_PATH), &copy)
        .and_then(|file| file.write_all_at(&content, 0).map(|()| file))
        .map_err(io_at(&copy))?;
    written.push((copy, file));
    // After everything is written, so that a journalling file system has little left to do for all but the first.
    for (path, file) in &written {
        file.sync_all().map_err(io_at(path))?;
    }
    for directory in [&wal_directory, &global, dest] {
        sync_directory(directory)?;
    }
    Ok(written.into_iter().map(|(path, _)| path).collect())
}

/// A cluster that may be rewritten.
struct Cluster<'a> {
    pgdata: &'a Path,
    content: Vec<u8>,
    control: ControlFile,
}

impl<'a> Cluster<'a> {
    fn open(pgdata: &'a Path) -> Result<Self, ControlFileError> {
        let path = pgdata.join(RELATIVE_PATH);
        let content = read_bounded(&path).map_err(io_at(&path))?;
        let control = ControlFile::parse(&content)
            .map_err(|detail| ControlFileError::Damaged { path, detail: detail.to_owned() })?;
        if !control.state.is_clean() {
            return Err(ControlFileError::NotShutDown { path: pgdata.to_owned(), state: control.state });
        }
        Ok(Self { pgdata, content, control })
    }

    fn control_with(&self, id: u64) -> Result<Vec<u8>, ControlFileError> {
        self.control.with_system_identifier(&self.content, id).ok_or_else(|| ControlFileError::Damaged {
            path: self.pgdata.join(RELATIVE_PATH),
            detail: "it is too short".to_owned(),
        })
    }

    /// The segments that carry an identifier, each with its first page as it shall be.
    fn segments_to_change(&self, id: u64) -> Result<Vec<(PathBuf, Vec<u8>)>, ControlFileError> {
        let directory = self.pgdata.join("pg_wal");
        let mut segments = Vec::new();
        for entry in fs::read_dir(&directory).map_err(io_at(&directory))? {
            let path = entry.map_err(io_at(&directory))?.path();
            if !path.file_name().and_then(|name| name.to_str()).is_some_and(wal::is_segment_name) {
                continue;
            }
            let mut first_page = Vec::new();
            File::open(&path)
                .and_then(|file| file.take(u64::from(wal::PAGE_BYTES)).read_to_end(&mut first_page))
                .map_err(io_at(&path))?;
            // One that was never written carries none, and Postgres writes its header when it comes to use it.
            let Some(current) = wal::system_identifier(&first_page, self.control.wal_segment_bytes) else {
                continue;
            };
            if current != self.control.system_identifier && current != id {
                let detail =
                    format!("it belongs to the cluster {current}, not {}", self.control.system_identifier);
                return Err(ControlFileError::Damaged { path, detail });
            }
            wal::put_system_identifier(&mut first_page, id);
            segments.push((path, first_page));
        }
        segments.sort();
        Ok(segments)
    }
}

fn copy_segment(source: &Path, first_page: &[u8], dest: &Path) -> io::Result<File> {
    let from = File::open(source)?;
    let length = from.metadata()?.len();
    let to = create_like(source, dest)?;
    // Reserved, not merely long: a Postgres that finds no room while it writes WAL panics. A file system that cannot
    // reserve gets a file with holes.
    match rustix::fs::fallocate(&to, FallocateFlags::empty(), 0, length) {
        Ok(()) => {}
        Err(rustix::io::Errno::OPNOTSUPP) => to.set_len(length)?,
        Err(error) => return Err(error.into()),
    }
    to.write_all_at(first_page, 0)?;

    let mut block = vec![0; BLOCK_BYTES];
    let mut at = first_page.len() as u64;
    loop {
        let read = from.read_at(&mut block, at)?;
        let Some(bytes) = block.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        if bytes.iter().any(|&byte| byte != 0) {
            to.write_all_at(bytes, at)?;
        }
        at += read as u64;
    }
    Ok(to)
}

/// Makes an empty file with the owner and mode of another, or empties one.
fn create_like(model: &Path, path: &Path) -> io::Result<File> {
    let model = fs::metadata(model)?;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(model.mode() & 0o7777)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)?;
    own_like(&file, &model)?;
    Ok(file)
}

/// Makes the directory `name` in `dest` with the owner and mode that it has in `source`, unless it exists.
fn copy_directory(source: &Path, dest: &Path, name: &str) -> Result<PathBuf, ControlFileError> {
    let path = dest.join(name);
    let model = fs::metadata(source.join(name)).map_err(io_at(&source.join(name)))?;
    match DirBuilder::new().mode(model.mode() & 0o7777).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io_at(&path)(error)),
        _ => {}
    }
    File::open(&path).and_then(|directory| own_like(&directory, &model)).map_err(io_at(&path))?;
    Ok(path)
}

fn own_like(file: &File, model: &fs::Metadata) -> io::Result<()> {
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (model.uid(), model.gid()) {
        fchown(file, Some(model.uid()), Some(model.gid()))?;
    }
    Ok(())
}

fn sync_directory(path: &Path) -> Result<(), ControlFileError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(io_at(path))
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> ControlFileError + use<> {
    let path = path.to_owned();
    move |source| ControlFileError::Io { path, source }
}
