//! Databases, and the requests that make and change them.

use roost_catalog::id::{ConnectionId, DatabaseId, ProjectId};
use roost_catalog::model::{Name, State};
use serde::{Deserialize, Serialize};

use super::{Connection, Reference, Settings, SettingsChange, SettingsReport, WakeReport};

/// A database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Database {
    /// Its identifier, for ever.
    pub id: DatabaseId,
    /// Always `database`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its path in this API.
    pub url: String,
    /// Its name, unique in its project.
    pub name: Name,
    /// `ready`, or `failure` when its last start failed. A sleeping database is ready.
    pub status: Status,
    /// When it was made.
    pub created_at: String,
    /// Always false: a project has no database that stands out.
    pub is_default: bool,
    /// Its oldest connection.
    pub default_connection_id: Option<ConnectionId>,
    /// Its connections, oldest first, at most 100; `GET /v1/databases/{id}/connections` pages through all.
    pub connections: Vec<Connection>,
    /// The project that it belongs to.
    pub project: Reference<ProjectId>,
    /// Always null: a node has one place.
    pub region: Option<String>,
    /// What it was made from.
    pub source: Source,
    /// Always null.
    pub branch_id: Option<String>,
    /// Always null.
    pub logical_id: Option<String>,
    /// Where it is on the ladder.
    pub state: State,
    /// Postgres' major version, as text.
    pub version: String,
    /// The size of its files when last measured; null before its first wake.
    pub size_bytes: Option<u64>,
    /// When a session last used it.
    pub last_used_at: Option<String>,
    /// Sessions that are open now.
    pub sessions: u64,
    /// Memory charged to it when last measured; null when it does not run, or nothing here measures it.
    pub memory_bytes: Option<u64>,
    /// What it is limited to and when it sleeps.
    pub settings: SettingsReport,
    /// When it was deleted; only deleted databases have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<String>,
    /// When it can no longer be undeleted, at the earliest; only deleted databases have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purge_at: Option<String>,
    /// Wake times by the state they started from; only in answers about one database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wakes: Option<Vec<WakeReport>>,
    /// Why its last start failed; only in state `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Whether a database can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It can be connected to; it wakes if it sleeps.
    Ready,
    /// Its last start failed.
    Failure,
}

/// What a database was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Source {
    /// Nothing: a fresh cluster.
    Empty,
}

/// A request for a new database.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateDatabase {
    /// Its project, by id or name; the default project when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    /// Its name; `db-` and eight random characters when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Postgres' major version; the node's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its settings.
    #[serde(default)]
    pub settings: Settings,
    /// Whether a first connection is made with it; yes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<bool>,
    /// Accepted from clients of the reference and without effect: a node has one place.
    #[serde(default, skip_serializing)]
    pub region: Option<String>,
    /// Accepted from clients of the reference and without effect.
    #[serde(default, skip_serializing)]
    pub is_default: Option<bool>,
    /// Only `{"type": "empty"}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// A change to a database.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateDatabase {
    /// Its new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// What changes in its settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<SettingsChange>,
}

/// A request to take back a deletion.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndeleteDatabase {
    /// The name that it gets; its old one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
}

/// A request to register many databases without connections. All or none are made.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateDatabases {
    /// Their project, by id or name; the default project when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    /// Postgres' major version; the node's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Settings of each.
    #[serde(default)]
    pub settings: Settings,
    /// Their names, at most [`MAX_BULK`].
    pub names: Vec<Name>,
}

/// How many databases one bulk registration can make.
pub const MAX_BULK: usize = 50_000;

/// What a bulk registration made, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkCreated {
    /// The new identifiers.
    pub ids: Vec<DatabaseId>,
}
