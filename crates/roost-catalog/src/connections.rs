//! Connections: credentials of a database, and the look-up that every login makes.

use std::sync::Arc;
use std::time::SystemTime;

use rusqlite::{Connection as Sqlite, OptionalExtension, Row, params};

use crate::MAX_CONNECTIONS_PER_DATABASE;
use crate::cache::Stale;
use crate::catalog::Catalog;
use crate::column::{Instant, uncount};
use crate::databases::Place;
use crate::error::{CatalogError, Subject};
use crate::id::{ConnectionId, DatabaseId};
use crate::meta::Tally;
use crate::model::{Connection, Login, NewConnection};
use crate::page::{Listing, Page};

/// Bytes of a connection's name for people.
const MAX_NAME: usize = 200;
/// Bytes of a role's name: Postgres' `NAMEDATALEN` less one.
pub(crate) const MAX_ROLE: usize = 63;
/// Bytes of a verifier. Those that Postgres makes have 133.
pub(crate) const MAX_VERIFIER: usize = 1_024;

const COLUMNS: &str = "c.key, c.id, d.id, c.name, c.role, c.created_at, c.rotated_at
                       FROM connections c CROSS JOIN databases d ON d.key = c.database";

impl Catalog {
    /// Registers a connection of a live database. When it returns, it survives a power cut and can log in.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] for the database, [`CatalogError::Deleted`], [`CatalogError::IdTaken`],
    /// [`CatalogError::TooMany`]; when the file cannot be written or the writer is overloaded.
    pub async fn create_connection(&self, new: NewConnection) -> Result<Connection, CatalogError> {
        self.change(move |sqlite, stale| {
            let place = Place::of_live(sqlite, &new.database)?;
            let count = sqlite
                .prepare_cached("SELECT count(*) FROM connections WHERE database = ?1")?
                .query_row([place.key], |row| row.get::<_, i64>(0))?;
            let limit = u64::from(MAX_CONNECTIONS_PER_DATABASE);
            if uncount(count) >= limit {
                return Err(CatalogError::TooMany { what: "connections of one database", limit });
            }
            insert(sqlite, stale, place.key, &new)?;
            Tally { connections: 1, ..Tally::default() }.add(sqlite)?;
            found(sqlite, &new.id)
        })
        .await
    }

    /// A connection by its identifier, those of deleted databases included.
    ///
    /// # Errors
    /// When the file cannot be read or the readers are overloaded.
    pub async fn connection(&self, id: &ConnectionId) -> Result<Option<Connection>, CatalogError> {
        let id = *id;
        self.read(move |sqlite| find(sqlite, &id)).await
    }

    /// A database's connections, oldest first.
    ///
    /// # Errors
    /// [`CatalogError::InvalidCursor`]; when the file cannot be read or the readers are overloaded.
    pub async fn connections(
        &self,
        database: &DatabaseId,
        page: Page,
    ) -> Result<Listing<Connection>, CatalogError> {
        let after = page.after()?;
        let database = *database;
        self.read(move |sqlite| {
            let sql = format!(
                "SELECT {COLUMNS}
                 WHERE c.database = (SELECT key FROM databases WHERE id = ?1) AND c.key > ?2
                 ORDER BY c.key LIMIT ?3"
            );
            let mut statement = sqlite.prepare_cached(&sql)?;
            let rows = statement.query_map(params![database, after, page.fetch()], from_row)?;
            Ok(Listing::from_rows(rows.collect::<Result<_, _>>()?, &page))
        })
        .await
    }

    /// Replaces a connection's secret: the old one fails from when this returns.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::Deleted`] for its database, [`CatalogError::TooMany`]; when the
    /// file cannot be written or the writer is overloaded.
    pub async fn rotate_connection(
        &self,
        id: &ConnectionId,
        verifier: String,
    ) -> Result<Connection, CatalogError> {
        let id = *id;
        let now = SystemTime::now();
        self.change(move |sqlite, stale| {
            require_short(&verifier, MAX_VERIFIER, "bytes of a verifier")?;
            let connection = found(sqlite, &id)?;
            Place::of_live(sqlite, &connection.database)?;
            sqlite
                .prepare_cached("UPDATE connections SET verifier = ?2, rotated_at = ?3 WHERE id = ?1")?
                .execute(params![id, verifier, Instant(now)])?;
            stale.logins.push(id);
            found(sqlite, &id)
        })
        .await
    }

    /// Deletes a connection for ever: its logins fail from when this returns.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`]; when the file cannot be written or the writer is overloaded.
    pub async fn delete_connection(&self, id: &ConnectionId) -> Result<(), CatalogError> {
        let id = *id;
        self.change(move |sqlite, stale| {
            let deleted = sqlite.prepare_cached("DELETE FROM connections WHERE id = ?1")?.execute([id])?;
            if deleted == 0 {
                return Err(CatalogError::NotFound(Subject::Connection));
            }
            stale.logins.push(id);
            Tally { connections: -1, ..Tally::default() }.add(sqlite)
        })
        .await
    }

    /// What a login with this connection is checked against, from memory when it was asked for before. `None` when
    /// there is no such connection or its database is deleted.
    ///
    /// # Errors
    /// When the file cannot be read or the readers are overloaded.
    pub async fn login(&self, id: &ConnectionId) -> Result<Option<Arc<Login>>, CatalogError> {
        let id = *id;
        let logins = &self.memories().logins;
        if let Some(known) = logins.get(&id) {
            return Ok(known);
        }
        let ticket = logins.ticket(&id);
        let login = self.read(move |sqlite| read_login(sqlite, &id)).await?.map(Arc::new);
        logins.remember(ticket, id, login.clone());
        Ok(login)
    }
}

fn read_login(sqlite: &Sqlite, id: &ConnectionId) -> Result<Option<Login>, CatalogError> {
    let mut statement = sqlite.prepare_cached(
        "SELECT d.id, c.role, c.verifier FROM connections c CROSS JOIN databases d ON d.key = c.database
         WHERE c.id = ?1 AND d.deleted_at IS NULL",
    )?;
    let login = statement.query_row([id], |row| {
        Ok(Login { connection: *id, database: row.get(0)?, role: row.get(1)?, verifier: row.get(2)? })
    });
    Ok(login.optional()?)
}

/// Adds a connection to the database with this key. Counting it is the caller's.
pub(crate) fn insert(
    sqlite: &Sqlite,
    stale: &mut Stale,
    database: i64,
    new: &NewConnection,
) -> Result<(), CatalogError> {
    require_short(&new.name, MAX_NAME, "bytes of a connection's name")?;
    require_short(&new.role, MAX_ROLE, "bytes of a role's name")?;
    require_short(&new.verifier, MAX_VERIFIER, "bytes of a verifier")?;
    let inserted = sqlite
        .prepare_cached(
            "INSERT INTO connections (id, database, name, role, verifier, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING",
        )?
        .execute(params![new.id, database, new.name, new.role, new.verifier, Instant(new.created_at)])?;
    if inserted == 0 {
        return Err(CatalogError::IdTaken(Subject::Connection));
    }
    stale.logins.push(new.id);
    Ok(())
}

fn require_short(text: &str, limit: usize, what: &'static str) -> Result<(), CatalogError> {
    if text.len() > limit { Err(CatalogError::TooMany { what, limit: limit as u64 }) } else { Ok(()) }
}

fn find(sqlite: &Sqlite, id: &ConnectionId) -> Result<Option<Connection>, CatalogError> {
    let mut statement = sqlite.prepare_cached(&format!("SELECT {COLUMNS} WHERE c.id = ?1"))?;
    Ok(statement.query_row([id], from_row).optional()?.map(|(_, connection)| connection))
}

fn found(sqlite: &Sqlite, id: &ConnectionId) -> Result<Connection, CatalogError> {
    find(sqlite, id)?.ok_or(CatalogError::NotFound(Subject::Connection))
}

/// A row of [`COLUMNS`], with its key.
fn from_row(row: &Row<'_>) -> rusqlite::Result<(i64, Connection)> {
    let connection = Connection {
        id: row.get(1)?,
        database: row.get(2)?,
        name: row.get(3)?,
        role: row.get(4)?,
        created_at: row.get::<_, Instant>(5)?.0,
        rotated_at: row.get::<_, Option<Instant>>(6)?.map(|time| time.0),
    };
    Ok((row.get(0)?, connection))
}
