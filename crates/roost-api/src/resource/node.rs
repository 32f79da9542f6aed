//! The node, and what its machine can do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Roost's version.
    pub version: String,
    /// The node's process id.
    pub pid: u32,
    /// When it started.
    pub started_at: String,
    /// Seconds since then.
    pub uptime_seconds: u64,
    /// Where Postgres clients connect.
    pub listen: Vec<String>,
    /// Where /health, /ready and /metrics are.
    pub http: Option<String>,
    /// The directory of all data.
    pub data: String,
    /// The major version of Postgres that a new database gets; null when none is installed.
    pub default_version: Option<String>,
    /// The Postgres versions of this machine.
    pub installations: Vec<Installation>,
    /// How many of what there are.
    pub counts: Counts,
}

/// A Postgres installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// The major version.
    pub major: u16,
    /// The whole version.
    pub version: String,
    /// The directory of its programs.
    pub bin: String,
}

/// How many of what there are on a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Projects.
    pub projects: u64,
    /// Databases that are not deleted.
    pub databases: u64,
    /// Databases that are deleted and can be undeleted.
    pub deleted: u64,
    /// Connections.
    pub connections: u64,
    /// Databases that are not simply stopped, by state.
    pub states: BTreeMap<String, u64>,
    /// Sessions that use or wait for a database.
    pub sessions: u64,
}

/// What this machine can do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DoctorReport {
    /// The checks, in the order in which they are shown.
    pub checks: Vec<Check>,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at: `postgres`, `isolation`, `volumes`, `memory`, ...
    pub subject: String,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// How a finding stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Roost works, but less fast, less small or less isolated than it could.
    Weak,
    /// Roost does not work like this.
    Bad,
}
