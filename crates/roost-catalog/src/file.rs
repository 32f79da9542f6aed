//! The file itself: made private, locked against other processes, opened for the writer and for readers.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use crate::error::CatalogError;
use crate::options::CatalogOptions;
use crate::schema;

/// It holds password verifiers, so nobody but its owner may read it. SQLite gives its side files the same mode.
const MODE: u32 = 0o600;
/// Pages in the write-ahead log before a commit moves them into the file (32 MiB). A bulk load touches its indexes at
/// random; moving pages less often writes each of them less often.
const CHECKPOINT_PAGES: u32 = 8_192;
/// What the write-ahead log is cut down to after a checkpoint, in bytes.
const WAL_LIMIT_BYTES: u32 = 64 * 1024 * 1024;
/// Prepared statements that a connection keeps.
const STATEMENTS: usize = 128;

/// Holds the file for this process. The lock is the kernel's and ends with the process, however it ends.
///
/// It is on a file beside the catalog: closing any descriptor of the catalog itself would drop SQLite's own locks.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Makes the file if there is none, private, and locks it. Its name and those of its side files are durable then.
pub(crate) fn claim(path: &Path) -> Result<Lock, CatalogError> {
    let lock_path = with_suffix(path, ".lock");
    let file = private()
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(CatalogError::io("open", &lock_path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(CatalogError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => return Err(CatalogError::io("lock", &lock_path)(error)),
    }
    match private().create_new(true).open(path) {
        Ok(file) => file.sync_all().map_err(CatalogError::io("sync", path))?,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => make_private(path)?,
        Err(error) => return Err(CatalogError::io("create", path)(error)),
    }
    // Also when the file is not new: whoever made it, or its write-ahead log, may have been killed before this.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(CatalogError::io("sync the directory", parent))?;
    Ok(Lock { _file: file })
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(MODE);
    options
}

fn make_private(path: &Path) -> Result<(), CatalogError> {
    let metadata = std::fs::metadata(path).map_err(CatalogError::io("look at", path))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        std::fs::set_permissions(path, Permissions::from_mode(MODE))
            .map_err(CatalogError::io("make private", path))?;
    }
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    PathBuf::from(text)
}

/// The writer's connection, on a file that has the newest format.
pub(crate) fn open_writer(path: &Path, options: &CatalogOptions) -> Result<Connection, CatalogError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(options.busy_timeout)?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        let detail = format!("SQLite gave journal mode `{mode}` where `wal` was asked for");
        return Err(CatalogError::Corrupt { detail });
    }
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // A verifier that was replaced or deleted is overwritten, not only unlinked.
    connection.pragma_update(None, "secure_delete", true)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    // These pragmas answer with a row.
    let settings = format!(
        "PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}; PRAGMA analysis_limit = 400; PRAGMA temp_store = memory"
    );
    connection.execute_batch(&settings)?;
    common(&connection, options.writer_cache_kib)?;
    schema::migrate(&mut connection, &schema::MIGRATIONS)?;
    Ok(connection)
}

/// A reader's connection. It cannot write, whatever statement it is given.
pub(crate) fn open_reader(path: &Path, options: &CatalogOptions) -> Result<Connection, CatalogError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(options.busy_timeout)?;
    connection.pragma_update(None, "query_only", true)?;
    common(&connection, options.reader_cache_kib)?;
    Ok(connection)
}

fn common(connection: &Connection, cache_kib: u32) -> Result<(), CatalogError> {
    connection.pragma_update(None, "cache_size", -i64::from(cache_kib))?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_and_its_side_files_belong_to_their_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.sqlite");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let _lock = claim(&path).unwrap();
        let _connection = open_writer(&path, &CatalogOptions::default()).unwrap();
        let mut seen = 0;
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, MODE, "{entry:?}");
            seen += 1;
        }
        assert!(seen >= 3, "the catalog, its lock and its write-ahead log: {seen}");
    }

    #[test]
    fn the_writer_commits_with_full_synchronisation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.sqlite");
        let _lock = claim(&path).unwrap();
        let connection = open_writer(&path, &CatalogOptions::default()).unwrap();
        let level: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
        assert_eq!(level, 2);
        let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
        assert_eq!(mode, "wal");
    }

    #[test]
    fn a_reader_cannot_write() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.sqlite");
        let _lock = claim(&path).unwrap();
        let _writer = open_writer(&path, &CatalogOptions::default()).unwrap();
        let reader = open_reader(&path, &CatalogOptions::default()).unwrap();
        assert!(reader.execute("DELETE FROM projects", []).is_err());
    }
}
