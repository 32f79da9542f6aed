//! Settings of a database.

use std::collections::BTreeMap;

use roost_catalog::model::WalLevel;
use serde::{Deserialize, Deserializer, Serialize};

use crate::units::Idle;

/// A database's settings: its own, and what is in force with the node's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SettingsReport {
    /// What was set for this database.
    pub own: Settings,
    /// What is in force.
    pub effective: Settings,
}

/// Settings of a database. In `own`, what is absent is the node's default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Idle time before freezing: a duration such as `10s`, or `never`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_freeze: Option<Idle>,
    /// Idle time before stopping: a duration such as `5m`, or `never`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_stop: Option<Idle>,
    /// Memory limit of the whole instance, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Limit of its files, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_bytes: Option<u64>,
    /// Processor limit in thousandths of a core; absent is unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millicores: Option<u32>,
    /// Postgres' `max_connections`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Postgres' `wal_level`: `replica` or `logical`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_level: Option<WalLevel>,
    /// Whether it may be stopped for memory while sessions hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_under_sessions: Option<bool>,
    /// Further Postgres settings by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub postgres: BTreeMap<String, String>,
}

/// A change to a database's settings (RFC 7396): what is absent stays, null goes back to the node's default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SettingsChange {
    /// Idle time before freezing.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub idle_freeze: Option<Option<Idle>>,
    /// Idle time before stopping.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub idle_stop: Option<Option<Idle>>,
    /// Memory limit of the whole instance, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub memory_bytes: Option<Option<u64>>,
    /// Limit of its files, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub storage_bytes: Option<Option<u64>>,
    /// Processor limit in thousandths of a core.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub cpu_millicores: Option<Option<u32>>,
    /// Postgres' `max_connections`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub max_connections: Option<Option<u32>>,
    /// Postgres' `wal_level`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub wal_level: Option<Option<WalLevel>>,
    /// Whether it may be stopped for memory while sessions hold it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub stop_under_sessions: Option<Option<bool>>,
    /// Further Postgres settings by name; null removes one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub postgres: BTreeMap<String, Option<String>>,
}

/// Tells a null (`Some(None)`) from a field that is absent (`None`).
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}
