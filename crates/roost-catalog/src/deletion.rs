//! Deleting in two steps: a deleted database keeps its row and its files and can be brought back, until it is purged.
//!
//! Purging has a first step of its own ([`Catalog::begin_purge`]), made before any file goes: from then on nobody can
//! undelete the database, so no row ever comes back to life without its files. A purge that was interrupted shows up
//! in [`Catalog::expired_deletions`] again. When that is due is counted by [`retention`](crate::retention), which no clock
//! that jumps can hurry.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, params};

use crate::cache::Stale;
use crate::catalog::Catalog;
use crate::column::{Instant, micros};
use crate::databases::{Place, found, require_free};
use crate::error::CatalogError;
use crate::id::DatabaseId;
use crate::meta::Tally;
use crate::model::{Database, Name};
use crate::retention::Moment;

/// Databases that one call of [`Catalog::expired_deletions`] gives at most.
const MAX_EXPIRED: u32 = 1_000;

impl Catalog {
    /// Deletes a database: its name is free and its logins fail from when this returns. Its rows stay until it is
    /// purged.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::Deleted`] when it is already; when the file cannot be written or
    /// the writer is overloaded.
    pub async fn delete_database(&self, id: &DatabaseId, now: Moment) -> Result<Database, CatalogError> {
        let id = *id;
        let retention = Arc::clone(self.retention());
        self.change(move |connection, stale| {
            let place = Place::of_live(connection, &id)?;
            let counted = retention.advance(connection, now)?;
            connection
                .prepare_cached("UPDATE databases SET deleted_at = ?2, deleted_count = ?3 WHERE key = ?1")?
                .execute(params![place.key, Instant(now.wall), micros(counted)])?;
            Tally { databases: -1, deleted: 1, ..Tally::default() }.add(connection)?;
            note_logins(connection, stale, place.key)?;
            stale.routes.push((place.project_name, place.name));
            found(connection, &id)
        })
        .await
    }

    /// Brings a deleted database back, with another name if one is given.
    ///
    /// # Errors
    /// [`CatalogError::NameTaken`] when a live database of the project has the name, [`CatalogError::NotFound`],
    /// [`CatalogError::NotDeleted`], [`CatalogError::Purging`]; when the file cannot be written or the writer is
    /// overloaded.
    pub async fn undelete_database(
        &self,
        id: &DatabaseId,
        name: Option<Name>,
    ) -> Result<Database, CatalogError> {
        let id = *id;
        self.change(move |connection, stale| {
            let place = Place::of(connection, &id)?;
            if place.purging {
                return Err(CatalogError::Purging);
            }
            if !place.deleted {
                return Err(CatalogError::NotDeleted);
            }
            let name = name.unwrap_or(place.name);
            require_free(connection, place.project, &name)?;
            connection
                .prepare_cached(
                    "UPDATE databases SET deleted_at = NULL, deleted_count = NULL, name = ?2 WHERE key = ?1",
                )?
                .execute(params![place.key, name])?;
            Tally { databases: 1, deleted: -1, ..Tally::default() }.add(connection)?;
            note_logins(connection, stale, place.key)?;
            stale.routes.push((place.project_name, name));
            found(connection, &id)
        })
        .await
    }

    /// Marks a deleted database as one that cannot be brought back, before its files go. Doing it again changes
    /// nothing.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::NotDeleted`]; when the file cannot be written or the writer is
    /// overloaded.
    pub async fn begin_purge(&self, id: &DatabaseId) -> Result<(), CatalogError> {
        let id = *id;
        self.change(move |connection, _| {
            let place = Place::of(connection, &id)?;
            if !place.deleted {
                return Err(CatalogError::NotDeleted);
            }
            connection
                .prepare_cached("UPDATE databases SET purging = 1 WHERE key = ?1")?
                .execute([place.key])?;
            Ok(())
        })
        .await
    }

    /// Removes every row of a deleted database: connections, roles, usage and history with it. To be called after its
    /// files are gone.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::NotDeleted`] (a live database is never purged); when the file
    /// cannot be written or the writer is overloaded.
    pub async fn purge_database(&self, id: &DatabaseId) -> Result<(), CatalogError> {
        let id = *id;
        self.change(move |connection, stale| {
            let place = Place::of(connection, &id)?;
            if !place.deleted {
                return Err(CatalogError::NotDeleted);
            }
            note_logins(connection, stale, place.key)?;
            let connections = connection
                .prepare_cached("DELETE FROM connections WHERE database = ?1")?
                .execute([place.key])?;
            // The other tables' rows go with it (ON DELETE CASCADE).
            connection.prepare_cached("DELETE FROM databases WHERE key = ?1")?.execute([place.key])?;
            Tally { deleted: -1, connections: -(connections as i64), ..Tally::default() }.add(connection)
        })
        .await
    }

    /// Databases to be purged: those that were deleted `keep` ago or longer, and those whose purge was begun and not
    /// finished. Some of them at a time; it is empty when none are left. To be called from time to time, for it counts
    /// the time.
    ///
    /// # Errors
    /// When the file cannot be read or written, or the readers or the writer are overloaded.
    pub async fn expired_deletions(
        &self,
        now: Moment,
        keep: Duration,
    ) -> Result<Vec<DatabaseId>, CatalogError> {
        let retention = Arc::clone(self.retention());
        let counted = self.change(move |connection, _| retention.advance(connection, now)).await?;
        let up_to = counted.checked_sub(keep).map_or(-1, micros);
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id FROM databases INDEXED BY databases_purging WHERE purging IS NOT NULL
                 UNION
                 SELECT id FROM databases INDEXED BY databases_deleted_count
                     WHERE deleted_at IS NOT NULL AND deleted_count <= ?1
                 LIMIT ?2",
            )?;
            let ids = statement.query_map(params![up_to, MAX_EXPIRED], |row| row.get(0))?;
            Ok(ids.collect::<Result<_, _>>()?)
        })
        .await
    }
}

/// What the memory holds of a database's connections is no longer true.
fn note_logins(connection: &Connection, stale: &mut Stale, key: i64) -> Result<(), CatalogError> {
    let mut statement = connection.prepare_cached("SELECT id FROM connections WHERE database = ?1")?;
    for id in statement.query_map([key], |row| row.get(0))? {
        stale.logins.push(id?);
    }
    Ok(())
}
