//! Databases: registering, finding, listing, renaming, settings, and what their volume was made from.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::MAX_BULK;
use crate::cache::Stale;
use crate::catalog::Catalog;
use crate::column::{Instant, uncount};
use crate::connections;
use crate::error::{CatalogError, Subject};
use crate::id::{DatabaseId, ProjectId};
use crate::meta::Tally;
use crate::model::{Database, Name, NewDatabase, Settings, VolumeRecord};
use crate::page::{Listing, Page};
use crate::projects;
use crate::settings_patch::SettingsPatch;

/// Bytes of a database's settings as JSON.
const MAX_SETTINGS: usize = 16 * 1024;

/// Which databases a listing shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DatabaseFilter {
    /// Only those of one project.
    pub project: Option<ProjectId>,
    /// Those that are deleted and can be undeleted, in place of the live ones.
    pub deleted: bool,
}

impl Catalog {
    /// Registers a database, and its first connection if one is given (which is taken to be this database's). When it
    /// returns, the rows survive a power cut.
    ///
    /// # Errors
    /// [`CatalogError::NameTaken`], [`CatalogError::IdTaken`], [`CatalogError::NotFound`] for the project,
    /// [`CatalogError::TooMany`]; when the file cannot be written or the writer is overloaded.
    pub async fn create_database(&self, new: NewDatabase) -> Result<Database, CatalogError> {
        self.change(move |connection, stale| {
            let project = projects::key_for_new_database(connection, &new.project, new.created_at)?;
            let id = new.id;
            let mut tally = Tally::default();
            insert(connection, stale, &mut tally, project, new)?;
            tally.add(connection)?;
            found(connection, &id)
        })
        .await
    }

    /// Registers many databases in one transaction: all or none. Other changes wait meanwhile, so a million are best
    /// made in calls of some thousands.
    ///
    /// # Errors
    /// As [`create_database`](Self::create_database), and [`CatalogError::TooMany`] above [`MAX_BULK`].
    pub async fn create_databases(&self, new: Vec<NewDatabase>) -> Result<Vec<DatabaseId>, CatalogError> {
        if new.len() > MAX_BULK {
            return Err(CatalogError::TooMany { what: "databases in one call", limit: MAX_BULK as u64 });
        }
        self.change_alone(move |connection, stale| {
            let mut keys = HashMap::new();
            let mut tally = Tally::default();
            let mut ids = Vec::with_capacity(new.len());
            for new in new {
                let project = match keys.entry(new.project.clone()) {
                    Entry::Occupied(entry) => *entry.get(),
                    Entry::Vacant(entry) => {
                        let key = projects::key_for_new_database(connection, &new.project, new.created_at)?;
                        *entry.insert(key)
                    }
                };
                ids.push(new.id);
                insert(connection, stale, &mut tally, project, new)?;
            }
            tally.add(connection)?;
            Ok(ids)
        })
        .await
    }

    /// A database by its identifier, deleted ones included.
    ///
    /// # Errors
    /// When the file cannot be read or the readers are overloaded.
    pub async fn database(&self, id: &DatabaseId) -> Result<Option<Database>, CatalogError> {
        let id = *id;
        self.read(move |connection| find(connection, &id)).await
    }

    /// A live database by its project's name and its own.
    ///
    /// # Errors
    /// When the file cannot be read or the readers are overloaded.
    pub async fn database_by_name(
        &self,
        project: &Name,
        name: &Name,
    ) -> Result<Option<Database>, CatalogError> {
        let (project, name) = (project.clone(), name.clone());
        self.read(move |connection| {
            let sql = select("FROM projects p CROSS JOIN databases d ON d.project = p.key")
                + " WHERE p.name = ?1 AND d.name = ?2 AND d.deleted_at IS NULL";
            let mut statement = connection.prepare_cached(&sql)?;
            Ok(statement.query_row([project, name], from_row).optional()?.map(|(_, database)| database))
        })
        .await
    }

    /// The identifier of a live database by its project's name and its own, from memory when it was asked for before.
    ///
    /// # Errors
    /// When the file cannot be read or the readers are overloaded.
    pub async fn route(&self, project: &Name, name: &Name) -> Result<Option<DatabaseId>, CatalogError> {
        let routes = &self.memories().routes;
        let key = (project.clone(), name.clone());
        if let Some(known) = routes.get(&key) {
            return Ok(known);
        }
        let ticket = routes.ticket(&key);
        let (project, name) = key.clone();
        let id = self
            .read(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT d.id FROM projects p CROSS JOIN databases d ON d.project = p.key
                     WHERE p.name = ?1 AND d.name = ?2 AND d.deleted_at IS NULL",
                )?;
                Ok(statement.query_row([project, name], |row| row.get(0)).optional()?)
            })
            .await?;
        routes.remember(ticket, key, id);
        Ok(id)
    }

    /// Databases in the order they were registered.
    ///
    /// # Errors
    /// [`CatalogError::InvalidCursor`]; when the file cannot be read or the readers are overloaded.
    pub async fn databases(
        &self,
        filter: DatabaseFilter,
        page: Page,
    ) -> Result<Listing<Database>, CatalogError> {
        let after = page.after()?;
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(&listing_sql(filter))?;
            let rows = match filter.project {
                Some(project) => statement.query_map(params![after, page.fetch(), project], from_row)?,
                None => statement.query_map(params![after, page.fetch()], from_row)?,
            };
            Ok(Listing::from_rows(rows.collect::<Result<_, _>>()?, &page))
        })
        .await
    }

    /// Gives a live database another name.
    ///
    /// # Errors
    /// [`CatalogError::NameTaken`], [`CatalogError::NotFound`], [`CatalogError::Deleted`]; when the file cannot be
    /// written or the writer is overloaded.
    pub async fn rename_database(&self, id: &DatabaseId, name: &Name) -> Result<Database, CatalogError> {
        let (id, name) = (*id, name.clone());
        self.change(move |connection, stale| {
            let place = Place::of_live(connection, &id)?;
            if name != place.name {
                require_free(connection, place.project, &name)?;
                connection
                    .prepare_cached("UPDATE databases SET name = ?2 WHERE key = ?1")?
                    .execute(params![place.key, name])?;
                stale.routes.push((place.project_name.clone(), place.name));
                stale.routes.push((place.project_name, name));
            }
            found(connection, &id)
        })
        .await
    }

    /// Changes a live database's settings. What is allowed is the caller's business; here they are only bounded in
    /// size.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::Deleted`], [`CatalogError::TooMany`]; when the file cannot be
    /// written or the writer is overloaded.
    pub async fn update_settings(
        &self,
        id: &DatabaseId,
        patch: SettingsPatch,
    ) -> Result<Database, CatalogError> {
        let id = *id;
        self.change(move |connection, _| {
            let place = Place::of_live(connection, &id)?;
            let mut database = found(connection, &id)?;
            patch.apply(&mut database.settings);
            connection
                .prepare_cached("UPDATE databases SET settings = ?2 WHERE key = ?1")?
                .execute(params![place.key, settings_column(&database.settings)?])?;
            Ok(database)
        })
        .await
    }

    /// Notes what a database's volume was made from, after its files have appeared; also when it is made anew from
    /// another template.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`]; when the file cannot be written or the writer is overloaded.
    pub async fn set_volume(&self, id: &DatabaseId, volume: VolumeRecord) -> Result<(), CatalogError> {
        let id = *id;
        self.change(move |connection, _| {
            let changed = connection
                .prepare_cached("UPDATE databases SET template = ?2, system_identifier = ?3 WHERE id = ?1")?
                .execute(params![id, volume.template, volume.system_identifier.cast_signed()])?;
            if changed == 0 { Err(CatalogError::NotFound(Subject::Database)) } else { Ok(()) }
        })
        .await
    }
}

/// Where a database's row is, for changes.
pub(crate) struct Place {
    pub(crate) key: i64,
    pub(crate) project: i64,
    pub(crate) project_name: Name,
    pub(crate) name: Name,
    pub(crate) deleted: bool,
    pub(crate) purging: bool,
}

impl Place {
    pub(crate) fn of(connection: &Connection, id: &DatabaseId) -> Result<Self, CatalogError> {
        let mut statement = connection.prepare_cached(
            "SELECT d.key, d.project, p.name, d.name, d.deleted_at IS NOT NULL, d.purging IS NOT NULL
             FROM databases d CROSS JOIN projects p ON p.key = d.project WHERE d.id = ?1",
        )?;
        let place = statement.query_row([id], |row| {
            Ok(Self {
                key: row.get(0)?,
                project: row.get(1)?,
                project_name: row.get(2)?,
                name: row.get(3)?,
                deleted: row.get(4)?,
                purging: row.get(5)?,
            })
        });
        place.optional()?.ok_or(CatalogError::NotFound(Subject::Database))
    }

    pub(crate) fn of_live(connection: &Connection, id: &DatabaseId) -> Result<Self, CatalogError> {
        let place = Self::of(connection, id)?;
        if place.deleted { Err(CatalogError::Deleted) } else { Ok(place) }
    }
}

/// An error when a live database of the project has this name.
pub(crate) fn require_free(connection: &Connection, project: i64, name: &Name) -> Result<(), CatalogError> {
    let taken = connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM databases WHERE project = ?1 AND name = ?2 AND deleted_at IS NULL)",
        )?
        .query_row(params![project, name], |row| row.get::<_, bool>(0))?;
    if taken { Err(CatalogError::NameTaken { name: name.clone() }) } else { Ok(()) }
}

/// A database that is known to exist.
pub(crate) fn found(connection: &Connection, id: &DatabaseId) -> Result<Database, CatalogError> {
    find(connection, id)?.ok_or(CatalogError::NotFound(Subject::Database))
}

fn find(connection: &Connection, id: &DatabaseId) -> Result<Option<Database>, CatalogError> {
    let sql = select("FROM databases d CROSS JOIN projects p ON p.key = d.project") + " WHERE d.id = ?1";
    let mut statement = connection.prepare_cached(&sql)?;
    Ok(statement.query_row([id], from_row).optional()?.map(|(_, database)| database))
}

fn insert(
    connection: &Connection,
    stale: &mut Stale,
    tally: &mut Tally,
    project: i64,
    new: NewDatabase,
) -> Result<(), CatalogError> {
    let inserted = connection
        .prepare_cached(
            "INSERT INTO databases (id, project, name, major, settings, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            new.id,
            project,
            new.name,
            new.major,
            settings_column(&new.settings)?,
            Instant(new.created_at)
        ])?;
    if inserted == 0 {
        require_free(connection, project, &new.name)?;
        return Err(CatalogError::IdTaken(Subject::Database));
    }
    tally.databases += 1;
    if let Some(first) = new.connection {
        connections::insert(connection, stale, connection.last_insert_rowid(), &first)?;
        tally.connections += 1;
    }
    stale.routes.push((new.project, new.name));
    Ok(())
}

/// `NULL` when all settings are the node's defaults.
fn settings_column(settings: &Settings) -> Result<Option<String>, CatalogError> {
    if *settings == Settings::default() {
        return Ok(None);
    }
    let text = serde_json::to_string(settings)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    if text.len() > MAX_SETTINGS {
        return Err(CatalogError::TooMany { what: "bytes of settings", limit: MAX_SETTINGS as u64 });
    }
    Ok(Some(text))
}

/// The columns that [`from_row`] reads, from `d`, its project `p`, and its usage.
fn select(tables: &str) -> String {
    format!(
        "SELECT d.key, d.id, p.id, p.name, d.name, d.major, d.settings, d.created_at, d.deleted_at, d.template,
                d.system_identifier, u.last_used_at, u.size_bytes, u.xid_age
         {tables} LEFT JOIN usage u ON u.database = d.key"
    )
}

/// The index is named so that a plan that would read a million rows is an error and not a surprise.
fn listing_sql(filter: DatabaseFilter) -> String {
    let (index, state) = match (filter.project, filter.deleted) {
        (None, false) => ("INDEXED BY databases_live_key", "d.deleted_at IS NULL"),
        (None, true) => {
            ("INDEXED BY databases_deleted_key", "d.deleted_at IS NOT NULL AND d.purging IS NULL")
        }
        (Some(_), false) => ("INDEXED BY databases_live", "d.deleted_at IS NULL"),
        (Some(_), true) => ("INDEXED BY databases_deleted", "d.deleted_at IS NOT NULL AND d.purging IS NULL"),
    };
    let project = match filter.project {
        Some(_) => "AND d.project = (SELECT key FROM projects WHERE id = ?3)",
        None => "",
    };
    select(&format!("FROM databases d {index} CROSS JOIN projects p ON p.key = d.project"))
        + &format!(" WHERE {state} {project} AND d.key > ?1 ORDER BY d.key LIMIT ?2")
}

/// A row of [`select`], with its key.
fn from_row(row: &Row<'_>) -> rusqlite::Result<(i64, Database)> {
    let settings = match row.get_ref(6)?.as_str_or_null()? {
        None => Settings::default(),
        Some(text) => serde_json::from_str(text)
            .map_err(|error| rusqlite::Error::FromSqlConversionFailure(6, Type::Text, Box::new(error)))?,
    };
    let template: Option<String> = row.get(9)?;
    let system_identifier: Option<i64> = row.get(10)?;
    let volume = template
        .zip(system_identifier)
        .map(|(template, bits)| VolumeRecord { template, system_identifier: bits.cast_unsigned() });
    let time = |column| row.get::<_, Option<Instant>>(column).map(|time| time.map(|instant| instant.0));
    let database = Database {
        id: row.get(1)?,
        project: row.get(2)?,
        project_name: row.get(3)?,
        name: row.get(4)?,
        major: row.get(5)?,
        settings,
        created_at: row.get::<_, Instant>(7)?.0,
        deleted_at: time(8)?,
        volume,
        last_used_at: time(11)?,
        size_bytes: row.get::<_, Option<i64>>(12)?.map(uncount),
        xid_age: row.get::<_, Option<i64>>(13)?.map(uncount),
    };
    Ok((row.get(0)?, database))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What SQLite says it will do for a statement, one step a line.
    fn plan(connection: &Connection, sql: &str) -> String {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let parameters = statement.parameter_count();
        for parameter in 1..=parameters {
            statement.raw_bind_parameter(parameter, 1).unwrap();
        }
        let mut rows = statement.raw_query();
        let mut steps = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            steps.push(row.get::<_, String>(3).unwrap());
        }
        steps.join("\n")
    }

    #[test]
    fn no_listing_scans_or_sorts() {
        let mut connection = Connection::open_in_memory().unwrap();
        crate::schema::migrate(&mut connection, &crate::schema::MIGRATIONS).unwrap();
        for project in [None, Some(ProjectId::generate())] {
            for deleted in [false, true] {
                let filter = DatabaseFilter { project, deleted };
                let plan = plan(&connection, &listing_sql(filter));
                assert!(!plan.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{filter:?}:\n{plan}");
                let project_bound = plan.contains("project=? AND rowid>?");
                assert_eq!(project_bound, project.is_some(), "{filter:?}:\n{plan}");
            }
        }
    }
}
