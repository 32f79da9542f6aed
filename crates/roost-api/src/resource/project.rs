//! Projects: named groups of databases.

use roost_catalog::id::ProjectId;
use roost_catalog::model::Name;
use serde::{Deserialize, Serialize};

use super::Database;

/// A project: a named group of databases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Project {
    /// Its identifier.
    pub id: ProjectId,
    /// Always `project`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its path in this API.
    pub url: String,
    /// Its name, unique on the node.
    pub name: Name,
    /// Always null.
    pub logical_id: Option<String>,
    /// When it was made.
    pub created_at: String,
    /// Always null.
    pub default_region: Option<String>,
    /// The node, as the reference's workspace.
    pub workspace: Workspace,
    /// The database that was made with it, only in the answer to its creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<Box<Database>>,
}

/// What projects belong to: always the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workspace {
    /// Always `node`.
    pub id: String,
    /// The node's path in this API.
    pub url: String,
    /// Always `node`.
    pub name: String,
}

/// A request for a new project.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateProject {
    /// Its name.
    pub name: Option<Name>,
    /// Whether a database is made with it; no when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_database: Option<bool>,
    /// Accepted from clients of the reference and without effect.
    #[serde(default, skip_serializing)]
    pub region: Option<String>,
}
