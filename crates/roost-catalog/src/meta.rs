//! Small values of the node's own by name (a mock secret, for one), and how many rows there are.

use rusqlite::{Connection, OptionalExtension, params};

use crate::catalog::Catalog;
use crate::column::uncount;
use crate::error::CatalogError;

/// How many rows there are. Kept up to date with every change, so asking costs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Projects.
    pub projects: u64,
    /// Live databases.
    pub databases: u64,
    /// Databases that are deleted and not purged.
    pub deleted_databases: u64,
    /// Connections, those of deleted databases included.
    pub connections: u64,
}

impl Catalog {
    /// How many rows there are.
    ///
    /// # Errors
    /// When the file cannot be read or the readers are overloaded.
    pub async fn counts(&self) -> Result<Counts, CatalogError> {
        self.read(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT projects, databases, deleted, connections FROM tally")?;
            Ok(statement.query_row([], |row| {
                Ok(Counts {
                    projects: uncount(row.get(0)?),
                    databases: uncount(row.get(1)?),
                    deleted_databases: uncount(row.get(2)?),
                    connections: uncount(row.get(3)?),
                })
            })?)
        })
        .await
    }

    /// The value that was put under `key`.
    ///
    /// # Errors
    /// When the file cannot be read or the readers are overloaded.
    pub async fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, CatalogError> {
        let key = key.to_owned();
        self.read(move |connection| value_of(connection, &key)).await
    }

    /// Puts a value under `key`, in place of another.
    ///
    /// # Errors
    /// When the file cannot be written or the writer is overloaded.
    pub async fn put_meta(&self, key: &str, value: &[u8]) -> Result<(), CatalogError> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.change(move |connection, _| put(connection, &key, &value)).await
    }

    /// The value under `key`; when there is none, `value` is put there first. Whoever calls this gets the same value,
    /// now and after a restart.
    ///
    /// # Errors
    /// When the file cannot be written or the writer is overloaded.
    pub async fn ensure_meta(&self, key: &str, value: &[u8]) -> Result<Vec<u8>, CatalogError> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.change(move |connection, _| {
            if let Some(found) = value_of(connection, &key)? {
                return Ok(found);
            }
            connection.prepare_cached("INSERT INTO meta VALUES (?1, ?2)")?.execute(params![key, value])?;
            Ok(value)
        })
        .await
    }
}

/// By how much a change alters [`Counts`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) projects: i64,
    pub(crate) databases: i64,
    pub(crate) deleted: i64,
    pub(crate) connections: i64,
}

impl Tally {
    /// Adds to the counts, in the change's own transaction.
    pub(crate) fn add(self, connection: &Connection) -> Result<(), CatalogError> {
        connection
            .prepare_cached(
                "UPDATE tally SET projects = projects + ?1, databases = databases + ?2, deleted = deleted + ?3,
                                  connections = connections + ?4",
            )?
            .execute([self.projects, self.databases, self.deleted, self.connections])?;
        Ok(())
    }
}

/// The value under `key`.
pub(crate) fn value_of(connection: &Connection, key: &str) -> Result<Option<Vec<u8>>, CatalogError> {
    let mut statement = connection.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    Ok(statement.query_row([key], |row| row.get(0)).optional()?)
}

/// Puts a value under `key`, in place of another.
pub(crate) fn put(connection: &Connection, key: &str, value: &[u8]) -> Result<(), CatalogError> {
    connection
        .prepare_cached(
            "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )?
        .execute(params![key, value])?;
    Ok(())
}
