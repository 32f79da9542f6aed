//! Projects: named groups of databases.

use std::time::SystemTime;

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::catalog::Catalog;
use crate::column::{Instant, uncount};
use crate::error::{CatalogError, Subject};
use crate::id::ProjectId;
use crate::meta::Tally;
use crate::model::{Name, Project};
use crate::page::{Listing, Page};

impl Catalog {
    /// Makes a project.
    ///
    /// # Errors
    /// [`CatalogError::NameTaken`]; when the file cannot be written or the writer is overloaded.
    pub async fn create_project(&self, name: &Name) -> Result<Project, CatalogError> {
        let name = name.clone();
        let now = SystemTime::now();
        self.change(move |connection, _| {
            if key_of(connection, &name)?.is_some() {
                return Err(CatalogError::NameTaken { name });
            }
            let key = insert(connection, &name, now)?;
            let mut statement =
                connection.prepare_cached("SELECT key, id, name, created_at FROM projects WHERE key = ?1")?;
            Ok(statement.query_row([key], from_row)?.1)
        })
        .await
    }

    /// The projects, oldest first.
    ///
    /// # Errors
    /// [`CatalogError::InvalidCursor`]; when the file cannot be read or the readers are overloaded.
    pub async fn projects(&self, page: Page) -> Result<Listing<Project>, CatalogError> {
        let after = page.after()?;
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT key, id, name, created_at FROM projects WHERE key > ?1 ORDER BY key LIMIT ?2",
            )?;
            let rows = statement.query_map(params![after, page.fetch()], from_row)?;
            Ok(Listing::from_rows(rows.collect::<Result<_, _>>()?, &page))
        })
        .await
    }

    /// A project by its identifier.
    ///
    /// # Errors
    /// When the file cannot be read or the readers are overloaded.
    pub async fn project(&self, id: &ProjectId) -> Result<Option<Project>, CatalogError> {
        let id = *id;
        self.read(move |connection| {
            let mut statement =
                connection.prepare_cached("SELECT key, id, name, created_at FROM projects WHERE id = ?1")?;
            Ok(statement.query_row([id], from_row).optional()?.map(|(_, project)| project))
        })
        .await
    }

    /// A project by its name.
    ///
    /// # Errors
    /// When the file cannot be read or the readers are overloaded.
    pub async fn project_by_name(&self, name: &Name) -> Result<Option<Project>, CatalogError> {
        let name = name.clone();
        self.read(move |connection| {
            let mut statement = connection
                .prepare_cached("SELECT key, id, name, created_at FROM projects WHERE name = ?1")?;
            Ok(statement.query_row([name], from_row).optional()?.map(|(_, project)| project))
        })
        .await
    }

    /// Deletes a project that has no databases, not even deleted ones that could be undeleted.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::ProjectNotEmpty`]; when the file cannot be written or the writer is
    /// overloaded.
    pub async fn delete_project(&self, id: &ProjectId) -> Result<(), CatalogError> {
        let id = *id;
        self.change(move |connection, _| {
            let key: Option<i64> = connection
                .prepare_cached("SELECT key FROM projects WHERE id = ?1")?
                .query_row([id], |row| row.get(0))
                .optional()?;
            let key = key.ok_or(CatalogError::NotFound(Subject::Project))?;
            let (live, deleted) = connection
                .prepare_cached(
                    "SELECT (SELECT count(*) FROM databases INDEXED BY databases_live
                                 WHERE project = ?1 AND deleted_at IS NULL),
                            (SELECT count(*) FROM databases INDEXED BY databases_deleted
                                 WHERE project = ?1 AND deleted_at IS NOT NULL)",
                )?
                .query_row([key], |row| Ok((uncount(row.get(0)?), uncount(row.get(1)?))))?;
            if live > 0 || deleted > 0 {
                return Err(CatalogError::ProjectNotEmpty { live, deleted });
            }
            connection.prepare_cached("DELETE FROM projects WHERE key = ?1")?.execute([key])?;
            Tally { projects: -1, ..Tally::default() }.add(connection)
        })
        .await
    }
}

/// The key of the project that a new database goes to. The default project is made when it is first used.
pub(crate) fn key_for_new_database(
    connection: &Connection,
    name: &Name,
    now: SystemTime,
) -> Result<i64, CatalogError> {
    match key_of(connection, name)? {
        Some(key) => Ok(key),
        None if *name == Name::default_project() => insert(connection, name, now),
        None => Err(CatalogError::NotFound(Subject::Project)),
    }
}

fn key_of(connection: &Connection, name: &Name) -> Result<Option<i64>, CatalogError> {
    let mut statement = connection.prepare_cached("SELECT key FROM projects WHERE name = ?1")?;
    Ok(statement.query_row([name], |row| row.get(0)).optional()?)
}

fn insert(connection: &Connection, name: &Name, now: SystemTime) -> Result<i64, CatalogError> {
    connection
        .prepare_cached("INSERT INTO projects (id, name, created_at) VALUES (?1, ?2, ?3)")?
        .execute(params![ProjectId::generate(), name, Instant(now)])?;
    let key = connection.last_insert_rowid();
    Tally { projects: 1, ..Tally::default() }.add(connection)?;
    Ok(key)
}

/// A row of key, id, name, created_at.
fn from_row(row: &Row<'_>) -> rusqlite::Result<(i64, Project)> {
    let created_at = row.get::<_, Instant>(3)?.0;
    Ok((row.get(0)?, Project { id: row.get(1)?, name: row.get(2)?, created_at }))
}
