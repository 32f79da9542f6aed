//! What the catalog holds, as plain values: no behaviour, no SQL.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::id::{ConnectionId, DatabaseId, ProjectId};

/// The name of a project or database: a DNS label of `[a-z0-9-]`, 1 to 63 characters, not beginning or ending with `-`,
/// without `--` (which separates a database's name from its project's in routing).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Names that a database may not have: they mean something inside Postgres or to Roost.
pub const RESERVED_NAMES: [&str; 4] = ["postgres", "template0", "template1", "roost"];

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Empty or longer than a DNS label.
    #[error("a name has 1 to 63 characters")]
    Length,
    /// A character outside `[a-z0-9-]`, a hyphen at an end, or two in a row.
    #[error("a name has only a-z, 0-9 and single hyphens inside")]
    Characters,
    /// One of [`RESERVED_NAMES`].
    #[error("this name is reserved (postgres, template0, template1, roost)")]
    Reserved,
}

impl Name {
    /// The project that databases belong to when none is named.
    pub fn default_project() -> Self {
        Self("default".to_owned())
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.is_empty() || text.len() > 63 {
            return Err(InvalidName::Length);
        }
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !text.bytes().all(allowed) || text.starts_with('-') || text.ends_with('-') || text.contains("--") {
            return Err(InvalidName::Characters);
        }
        if RESERVED_NAMES.contains(&text) {
            return Err(InvalidName::Reserved);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a database is on the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// No process, no mount, no memory: its volume's bytes on disk, if it was ever woken.
    Stopped,
    /// On its way from stopped to running.
    Starting,
    /// A Postgres process tree that serves.
    Running,
    /// Its processes are frozen; sessions survive.
    Frozen,
    /// A clean shutdown is under way.
    Stopping,
    /// The last start failed; the next is tried when its back-off is over.
    Failed,
}

impl State {
    /// The word used in the API, the command line, metrics and the catalog's history.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Frozen => "frozen",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for State {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        [Self::Stopped, Self::Starting, Self::Running, Self::Frozen, Self::Stopping, Self::Failed]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or(UnknownState)
    }
}

/// A word that names no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a state: stopped, starting, running, frozen, stopping or failed")]
pub struct UnknownState;

/// How long a database may be idle before it goes down a rung.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdleAfter {
    /// After this long without activity.
    #[serde(rename = "after")]
    After(Duration),
    /// Never.
    Never,
}

/// The Write-Ahead Log's detail (`wal_level`); never `minimal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WalLevel {
    /// Enough for archiving and physical replicas.
    #[default]
    Replica,
    /// Also logical decoding.
    Logical,
}

/// A database's own settings. `None` means the node's default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Idle time before freezing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_freeze: Option<IdleAfter>,
    /// Idle time before stopping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_stop: Option<IdleAfter>,
    /// Memory limit of the whole instance, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Limit of the volume, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_bytes: Option<u64>,
    /// Processor limit in thousandths of a core; `None` is unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millicores: Option<u32>,
    /// Postgres' `max_connections`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Postgres' `wal_level`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_level: Option<WalLevel>,
    /// Whether a database may be stopped for memory while sessions hold it (they then get 57P01 and the reason).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_under_sessions: Option<bool>,
    /// Further Postgres settings (an allow-list), by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub postgres: BTreeMap<String, String>,
}

/// A named group of databases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Its identifier.
    pub id: ProjectId,
    /// Its name, unique on the node.
    pub name: Name,
    /// When it was made.
    pub created_at: SystemTime,
}

/// One database as registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Its identifier, for ever.
    pub id: DatabaseId,
    /// The project it belongs to.
    pub project: ProjectId,
    /// That project's name.
    pub project_name: Name,
    /// Its name, unique among the live databases of the project.
    pub name: Name,
    /// Postgres' major version.
    pub major: u16,
    /// Its own settings.
    pub settings: Settings,
    /// When it was registered.
    pub created_at: SystemTime,
    /// When it was deleted; it can be undeleted until it is purged.
    pub deleted_at: Option<SystemTime>,
    /// What its volume was made from; `None` until it is first woken (it has no files before).
    pub volume: Option<VolumeRecord>,
    /// When a session last used it.
    pub last_used_at: Option<SystemTime>,
    /// Size of its volume when last measured, in bytes.
    pub size_bytes: Option<u64>,
    /// Age of its oldest transaction id when last asked, in transactions.
    pub xid_age: Option<u64>,
}

/// What a database's volume was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// The template's name (`17-<hash>`).
    pub template: String,
    /// Postgres' system identifier of this volume.
    pub system_identifier: u64,
}

/// A request to register a database.
#[derive(Debug, Clone)]
pub struct NewDatabase {
    /// Its identifier.
    pub id: DatabaseId,
    /// The project it belongs to, by name; made when it does not exist only for the default project.
    pub project: Name,
    /// Its name.
    pub name: Name,
    /// Postgres' major version.
    pub major: u16,
    /// Its own settings.
    pub settings: Settings,
    /// When it is made.
    pub created_at: SystemTime,
    /// A first connection, registered in the same transaction.
    pub connection: Option<NewConnection>,
}

/// A request to register a connection.
#[derive(Debug, Clone)]
pub struct NewConnection {
    /// Its identifier, the user name of logins.
    pub id: ConnectionId,
    /// The database it belongs to.
    pub database: DatabaseId,
    /// A name for people.
    pub name: String,
    /// The Postgres role that it logs in as.
    pub role: String,
    /// A SCRAM-SHA-256 verifier in Postgres' text form. Never a password.
    pub verifier: String,
    /// When it is made.
    pub created_at: SystemTime,
}

/// A connection as registered, without its verifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Its identifier, the user name of logins.
    pub id: ConnectionId,
    /// The database it belongs to.
    pub database: DatabaseId,
    /// A name for people.
    pub name: String,
    /// The Postgres role that it logs in as.
    pub role: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// When its secret was last replaced.
    pub rotated_at: Option<SystemTime>,
}

/// What the gateway needs to check a login with a connection's secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The connection.
    pub connection: ConnectionId,
    /// The database it belongs to.
    pub database: DatabaseId,
    /// The Postgres role that it logs in as.
    pub role: String,
    /// A SCRAM-SHA-256 verifier in Postgres' text form.
    pub verifier: String,
}

/// A role that was made with SQL, as it was when last read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleLogin {
    /// The role's name.
    pub role: String,
    /// `rolpassword`: a SCRAM verifier, an md5 hash, or nothing.
    pub verifier: Option<String>,
    /// `rolcanlogin`.
    pub can_login: bool,
    /// `rolvaliduntil`; `None` is for ever.
    pub valid_until: Option<SystemTime>,
}

/// One step on the ladder, for the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The database.
    pub database: DatabaseId,
    /// When the step was complete.
    pub at: SystemTime,
    /// The state before.
    pub from: State,
    /// The state after.
    pub to: State,
    /// How long it took.
    pub took: Duration,
    /// Why, in a few words.
    pub reason: String,
}

/// What to add to a database's usage counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageDelta {
    /// The database.
    pub database: DatabaseId,
    /// Sessions that were opened.
    pub sessions: u64,
    /// Bytes from clients to the server.
    pub bytes_in: u64,
    /// Bytes from the server to clients.
    pub bytes_out: u64,
    /// Processor time of instances.
    pub cpu: Duration,
    /// Time spent running.
    pub running: Duration,
    /// Set when a session used it.
    pub last_used_at: Option<SystemTime>,
    /// Set when its volume was measured, in bytes.
    pub size_bytes: Option<u64>,
    /// Set when the age of its oldest transaction id was asked.
    pub xid_age: Option<u64>,
}

/// A database's usage since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Sessions that were opened.
    pub sessions: u64,
    /// Bytes from clients to the server.
    pub bytes_in: u64,
    /// Bytes from the server to clients.
    pub bytes_out: u64,
    /// Processor time of instances.
    pub cpu: Duration,
    /// Time spent running.
    pub running: Duration,
}

/// Wake times of one database from one state, over its kept history. Times are in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WakeStats {
    /// The state that the wakes started from.
    pub from: State,
    /// How many there were.
    pub count: u64,
    /// The latest.
    pub last_ms: f64,
    /// The median.
    pub p50_ms: f64,
    /// The 90th percentile.
    pub p90_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
}
