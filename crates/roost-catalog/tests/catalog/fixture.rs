//! A catalog in a directory of its own, and short ways to ask for rows.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use roost_catalog::id::{ConnectionId, DatabaseId};
use roost_catalog::model::{Database, Name, NewConnection, NewDatabase, Settings};
use roost_catalog::{Catalog, CatalogOptions, Moment, Page};
use tempfile::TempDir;

/// Dropped after the catalog: the directory is the last field.
pub(crate) struct Fixture {
    pub(crate) catalog: Catalog,
    directory: TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(CatalogOptions::default())
    }

    pub(crate) fn with(options: CatalogOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&directory.path().join("catalog.sqlite"), options).unwrap();
        Self { catalog, directory }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("catalog.sqlite")
    }

    /// Closes the catalog and keeps its directory.
    pub(crate) fn close(self) -> TempDir {
        let Self { catalog, directory } = self;
        drop(catalog);
        directory
    }

    /// Closes the catalog and opens it again.
    pub(crate) fn reopen(self) -> Self {
        let directory = self.close();
        let catalog =
            Catalog::open(&directory.path().join("catalog.sqlite"), CatalogOptions::default()).unwrap();
        Self { catalog, directory }
    }

    /// Registers a database in the default project.
    pub(crate) async fn create(&self, text: &str) -> Database {
        self.catalog.create_database(new_database(text)).await.unwrap()
    }

    /// Registers a connection of a database.
    pub(crate) async fn connect(&self, database: &DatabaseId) -> ConnectionId {
        let new = new_connection(database);
        self.catalog.create_connection(new).await.unwrap().id
    }
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A moment that the file can hold exactly.
pub(crate) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

/// A moment at which both clocks tell the same.
pub(crate) fn moment(seconds: u64) -> Moment {
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    Moment { wall: at(seconds), steady: *BEGIN + Duration::from_secs(seconds) }
}

pub(crate) fn new_database(text: &str) -> NewDatabase {
    NewDatabase {
        id: DatabaseId::generate(),
        project: Name::default_project(),
        name: name(text),
        major: 17,
        settings: Settings::default(),
        created_at: at(0),
        connection: None,
    }
}

pub(crate) fn new_connection(database: &DatabaseId) -> NewConnection {
    NewConnection {
        id: ConnectionId::generate(),
        database: *database,
        name: "first".to_owned(),
        role: "postgres".to_owned(),
        verifier: "SCRAM-SHA-256$4096:c2FsdA==$one:one".to_owned(),
        created_at: at(0),
    }
}

pub(crate) fn page(cursor: Option<String>, limit: u32) -> Page {
    Page { cursor, limit }
}
