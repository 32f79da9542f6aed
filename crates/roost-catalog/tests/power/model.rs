//! What the catalog has promised: its rows as plain values, and the changes that a life makes to them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use roost_catalog::id::{ConnectionId, DatabaseId};
use roost_catalog::model::{Name, NewConnection, NewDatabase, Settings, VolumeRecord};
use roost_catalog::{Catalog, CatalogError, Moment, SettingsPatch};
use roost_durable::simulated::Random;

/// A moment that the file can hold exactly.
pub(crate) fn moment() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

/// One database with all that belongs to it, but for its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) deleted: bool,
    pub(crate) settings: Settings,
    pub(crate) system_identifier: Option<u64>,
    /// Verifiers by connection.
    pub(crate) logins: BTreeMap<ConnectionId, String>,
}

/// A change to one database.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Create { name: Name, login: ConnectionId, verifier: String },
    Rename { name: Name },
    Delete,
    Undelete,
    Set { memory_bytes: u64 },
    Note { system_identifier: u64 },
    Connect { login: ConnectionId, verifier: String },
    Rotate { login: ConnectionId, verifier: String },
    Disconnect { login: ConnectionId },
    Purge,
}

impl Change {
    /// A change that a database as it is allows.
    pub(crate) fn choose(random: &mut Random, before: Option<&Facts>) -> Self {
        let name = || DatabaseId::generate().suffix().parse().unwrap();
        // Long enough that a few of them fill a page.
        let verifier = format!("SCRAM-SHA-256$4096:c2FsdA==${:0150}:{}", random.next(), random.next());
        let Some(before) = before else {
            return Self::Create { name: name(), login: ConnectionId::generate(), verifier };
        };
        if before.deleted {
            return if random.coin() { Self::Undelete } else { Self::Purge };
        }
        let login = before.logins.keys().next().copied();
        match (random.below(8), login) {
            (0, _) => Self::Rename { name: name() },
            (1, _) => Self::Delete,
            (2, _) => Self::Set { memory_bytes: random.below(1 << 40) },
            (3, _) => Self::Note { system_identifier: random.next() },
            (4 | 5, Some(login)) => Self::Rotate { login, verifier },
            (6, Some(login)) => Self::Disconnect { login },
            _ => Self::Connect { login: ConnectionId::generate(), verifier },
        }
    }

    /// What becomes of the database.
    pub(crate) fn after(&self, before: Option<Facts>) -> Option<Facts> {
        let mut facts = before.unwrap_or(Facts {
            name: String::new(),
            deleted: false,
            settings: Settings::default(),
            system_identifier: None,
            logins: BTreeMap::new(),
        });
        match self.clone() {
            Self::Create { name, login, verifier } => {
                facts.name = name.to_string();
                facts.logins.insert(login, verifier);
            }
            Self::Rename { name } => facts.name = name.to_string(),
            Self::Delete => facts.deleted = true,
            Self::Undelete => facts.deleted = false,
            Self::Set { memory_bytes } => facts.settings.memory_bytes = Some(memory_bytes),
            Self::Note { system_identifier } => facts.system_identifier = Some(system_identifier),
            Self::Connect { login, verifier } | Self::Rotate { login, verifier } => {
                facts.logins.insert(login, verifier);
            }
            Self::Disconnect { login } => drop(facts.logins.remove(&login)),
            Self::Purge => return None,
        }
        Some(facts)
    }

    /// Asks the catalog for it.
    pub(crate) async fn make(self, catalog: &Catalog, id: DatabaseId) -> Result<(), CatalogError> {
        let connection = |login, verifier| NewConnection {
            id: login,
            database: id,
            name: "first".to_owned(),
            role: "postgres".to_owned(),
            verifier,
            created_at: moment(),
        };
        match self {
            Self::Create { name, login, verifier } => {
                let new = NewDatabase {
                    id,
                    project: Name::default_project(),
                    name,
                    major: 17,
                    settings: Settings::default(),
                    created_at: moment(),
                    connection: Some(connection(login, verifier)),
                };
                catalog.create_database(new).await.map(drop)
            }
            Self::Rename { name } => catalog.rename_database(&id, &name).await.map(drop),
            Self::Delete => {
                let now = Moment { wall: moment(), steady: std::time::Instant::now() };
                catalog.delete_database(&id, now).await.map(drop)
            }
            Self::Undelete => catalog.undelete_database(&id, None).await.map(drop),
            Self::Set { memory_bytes } => {
                let patch =
                    SettingsPatch { memory_bytes: Some(Some(memory_bytes)), ..SettingsPatch::default() };
                catalog.update_settings(&id, patch).await.map(drop)
            }
            Self::Note { system_identifier } => {
                let record = VolumeRecord { template: "17-0123456789abcdef".to_owned(), system_identifier };
                catalog.set_volume(&id, record).await
            }
            Self::Connect { login, verifier } => {
                catalog.create_connection(connection(login, verifier)).await.map(drop)
            }
            Self::Rotate { login, verifier } => catalog.rotate_connection(&login, verifier).await.map(drop),
            Self::Disconnect { login } => catalog.delete_connection(&login).await,
            Self::Purge => catalog.purge_database(&id).await,
        }
    }
}
