//! Connections: credentials of databases.

use roost_catalog::id::{ConnectionId, DatabaseId};
use serde::{Deserialize, Serialize};

use super::{Reference, SecretText};

/// A connection: a credential of a database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Its identifier, the user name of logins.
    pub id: ConnectionId,
    /// Always `connection`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Its path in this API.
    pub url: String,
    /// A name for people.
    pub name: String,
    /// When it was made.
    pub created_at: String,
    /// When its secret was last replaced.
    pub rotated_at: Option<String>,
    /// Always `postgres`.
    pub kind: String,
    /// Where to connect.
    pub endpoints: Endpoints,
    /// Host, user and secret, in the answer that made the secret; otherwise null.
    pub direct_connection: Option<DirectConnection>,
    /// The database that it belongs to.
    pub database: Reference<DatabaseId>,
    /// The Postgres role that it logs in as.
    pub role: String,
    /// The whole URL with the secret, only in the answer that made the secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_string: Option<SecretText>,
    /// The host, only in the answer that made the secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The secret, only in the answer that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass: Option<SecretText>,
    /// The user name, only in the answer that made the secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Where a connection can connect to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// Postgres' own protocol, a server session for each client session.
    pub direct: Endpoint,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The host.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// The whole URL with the secret, only in the answer that made the secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_string: Option<SecretText>,
}

/// What a driver is given to log in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectConnection {
    /// Host and port.
    pub host: String,
    /// The secret.
    pub pass: SecretText,
    /// The user name.
    pub user: String,
}

/// A request for a new connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateConnection {
    /// A name for people, 1 to 100 characters.
    pub name: String,
    /// The database, by id, name or `name--project`; only (and always) on `POST /v1/connections`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_id: Option<String>,
}
