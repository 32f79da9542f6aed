//! Everything that can go wrong with the catalog, each with a sentence that says what to do.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::ErrorCode;

use crate::model::Name;

/// What was looked for and is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A project.
    Project,
    /// A database.
    Database,
    /// A connection.
    Connection,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Project => "project",
            Self::Database => "database",
            Self::Connection => "connection",
        })
    }
}

/// Why the catalog could not do what it was asked.
///
/// It is `Clone` because one failed commit answers every change of its group.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    /// Another live project or database has this name.
    #[error("the name `{name}` is taken; choose another one")]
    NameTaken {
        /// The name that two would have.
        name: Name,
    },
    /// A row with this identifier exists already.
    #[error("a {0} with this id exists already")]
    IdTaken(Subject),
    /// There is no such row.
    #[error("no such {0}")]
    NotFound(Subject),
    /// The database is deleted, and this needs a live one.
    #[error("the database is deleted; undelete it first")]
    Deleted,
    /// The database is live, and this needs a deleted one.
    #[error("the database is not deleted")]
    NotDeleted,
    /// The database is being purged: its files may be gone already.
    #[error("the database is being purged and cannot be brought back")]
    Purging,
    /// Databases belong to the project: live ones, or deleted ones that can still be undeleted.
    #[error("the project has {live} databases, and {deleted} deleted ones that can still be undeleted")]
    ProjectNotEmpty {
        /// Live databases.
        live: u64,
        /// Deleted databases that are not purged yet.
        deleted: u64,
    },
    /// A page was asked for with a cursor that no listing gave.
    #[error("the cursor is not one that a listing gave")]
    InvalidCursor,
    /// A bound on what one call or one database may hold.
    #[error("too many {what}: at most {limit}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// A queue to the catalog's threads is full.
    #[error("the catalog is overloaded: {limit} {queue} wait already (setting `{setting}`); try again")]
    Overloaded {
        /// What waits in it.
        queue: &'static str,
        /// How many it holds.
        limit: usize,
        /// The field of [`CatalogOptions`](crate::CatalogOptions) that sets the bound.
        setting: &'static str,
    },
    /// A program other than Roost holds a lock inside the file for longer than the busy timeout.
    #[error("another program holds a lock on the catalog's file; close it and try again")]
    Busy,
    /// Another process has this catalog open.
    #[error("{} is open in another process: one node per data directory", path.display())]
    InUse {
        /// The catalog's file.
        path: PathBuf,
    },
    /// A newer Roost has written the file.
    #[error(
        "the catalog has format {found} and this Roost knows formats up to {supported}: use the newer Roost that \
         wrote it"
    )]
    TooNew {
        /// The format of the file.
        found: u32,
        /// The newest format that this program knows.
        supported: u32,
    },
    /// The file is damaged, or is not a catalog.
    #[error("the catalog's file is damaged or is not a catalog: {detail}")]
    Corrupt {
        /// What was noticed.
        detail: String,
    },
    /// The file system has no room.
    #[error("no room on the disk for the catalog; nothing was changed")]
    DiskFull,
    /// The catalog's threads are gone: it is shutting down.
    #[error("the catalog is closed")]
    Closed,
    /// A file could not be made, opened or locked.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The operating system's answer.
        source: Arc<std::io::Error>,
    },
    /// Anything else that SQLite says.
    #[error("the catalog's file: {0}")]
    Sqlite(#[source] Arc<rusqlite::Error>),
}

impl CatalogError {
    /// For `map_err` on file operations.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source: Arc::new(source) }
    }
}

impl From<rusqlite::Error> for CatalogError {
    fn from(error: rusqlite::Error) -> Self {
        match &error {
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..) => Self::Corrupt { detail: error.to_string() },
            _ => match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                    Self::Corrupt { detail: error.to_string() }
                }
                Some(ErrorCode::DiskFull) => Self::DiskFull,
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
                _ => Self::Sqlite(Arc::new(error)),
            },
        }
    }
}
