//! Settings between their JSON form and the catalog's, and the bounds of what a database may be set to.

use std::collections::BTreeMap;

use roost_catalog::SettingsPatch;
use roost_catalog::model as catalog;
use roost_lifecycle::LifecycleConfig;
use roost_postgres::settings::{MAX_CONNECTIONS, MIN_MEMORY_BYTES, validate_extra};

use crate::error::ApiError;
use crate::resource::{Settings, SettingsChange, SettingsReport};
use crate::units::{Idle, format_cores, format_size};

/// The least storage that holds a cluster and its write-ahead log, in bytes.
pub const MIN_STORAGE_BYTES: u64 = 64 << 20;
/// The least of a core that a database can work with, in thousandths.
const MIN_CPU_MILLICORES: u32 = 10;
/// The least `max_connections`.
const MIN_CONNECTIONS: u32 = 10;

/// The report of a database's own settings and of those in force.
pub(crate) fn report(own: &catalog::Settings, defaults: &LifecycleConfig) -> SettingsReport {
    let effective = Settings {
        idle_freeze: Some(Idle(defaults.idle_freeze(own))),
        idle_stop: Some(Idle(defaults.idle_stop(own))),
        memory_bytes: Some(defaults.memory(own)),
        storage_bytes: Some(defaults.storage(own)),
        cpu_millicores: own.cpu_millicores.or(defaults.cpu_millicores),
        max_connections: Some(own.max_connections.unwrap_or(defaults.max_connections)),
        wal_level: Some(own.wal_level.unwrap_or_default()),
        stop_under_sessions: Some(own.stop_under_sessions.unwrap_or(false)),
        postgres: own.postgres.clone(),
    };
    SettingsReport { own: from_catalog(own.clone()), effective }
}

fn from_catalog(settings: catalog::Settings) -> Settings {
    Settings {
        idle_freeze: settings.idle_freeze.map(Idle),
        idle_stop: settings.idle_stop.map(Idle),
        memory_bytes: settings.memory_bytes,
        storage_bytes: settings.storage_bytes,
        cpu_millicores: settings.cpu_millicores,
        max_connections: settings.max_connections,
        wal_level: settings.wal_level,
        stop_under_sessions: settings.stop_under_sessions,
        postgres: settings.postgres,
    }
}

/// Settings of a new database, within their bounds.
pub(crate) fn for_new(settings: Settings, major: u16) -> Result<catalog::Settings, ApiError> {
    let settings = catalog::Settings {
        idle_freeze: settings.idle_freeze.map(|idle| idle.0),
        idle_stop: settings.idle_stop.map(|idle| idle.0),
        memory_bytes: settings.memory_bytes,
        storage_bytes: settings.storage_bytes,
        cpu_millicores: settings.cpu_millicores,
        max_connections: settings.max_connections,
        wal_level: settings.wal_level,
        stop_under_sessions: settings.stop_under_sessions,
        postgres: settings.postgres,
    };
    check(&settings, major)?;
    Ok(settings)
}

/// A change to a database's settings, such that they are within their bounds afterwards.
pub(crate) fn for_change(
    change: SettingsChange,
    before: &catalog::Settings,
    major: u16,
) -> Result<SettingsPatch, ApiError> {
    let patch = SettingsPatch {
        idle_freeze: change.idle_freeze.map(|idle| idle.map(|idle| idle.0)),
        idle_stop: change.idle_stop.map(|idle| idle.map(|idle| idle.0)),
        memory_bytes: change.memory_bytes,
        storage_bytes: change.storage_bytes,
        cpu_millicores: change.cpu_millicores,
        max_connections: change.max_connections,
        wal_level: change.wal_level,
        stop_under_sessions: change.stop_under_sessions,
        postgres: change.postgres,
    };
    let mut after = before.clone();
    patch.clone().apply(&mut after);
    check(&after, major)?;
    Ok(patch)
}

fn check(settings: &catalog::Settings, major: u16) -> Result<(), ApiError> {
    let refuse = |text: String| Err(ApiError::Invalid(text));
    if let Some(bytes) = settings.memory_bytes.filter(|bytes| *bytes < MIN_MEMORY_BYTES) {
        return refuse(format!(
            "memory is {}, but must be at least {}",
            format_size(bytes),
            format_size(MIN_MEMORY_BYTES)
        ));
    }
    if let Some(bytes) = settings.storage_bytes.filter(|bytes| *bytes < MIN_STORAGE_BYTES) {
        let least = format_size(MIN_STORAGE_BYTES);
        return refuse(format!("storage is {}, but must be at least {least}", format_size(bytes)));
    }
    if let Some(cpu) = settings.cpu_millicores.filter(|cpu| *cpu < MIN_CPU_MILLICORES) {
        let least = format_cores(Some(MIN_CPU_MILLICORES));
        return refuse(format!("cpu is {}, but must be at least {least}", format_cores(Some(cpu))));
    }
    let connections = MIN_CONNECTIONS..=MAX_CONNECTIONS;
    if let Some(count) = settings.max_connections.filter(|count| !connections.contains(count)) {
        return refuse(format!(
            "max-connections is {count}, but must be {MIN_CONNECTIONS} to {MAX_CONNECTIONS}"
        ));
    }
    check_postgres(major, &settings.postgres)
}

fn check_postgres(major: u16, settings: &BTreeMap<String, String>) -> Result<(), ApiError> {
    validate_extra(major, settings).map_err(|error| ApiError::Invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use roost_catalog::model::IdleAfter;

    #[test]
    fn what_is_not_set_is_reported_as_the_nodes_default() {
        let own = catalog::Settings { idle_stop: Some(IdleAfter::Never), ..Default::default() };
        let report = report(&own, &LifecycleConfig::default());
        assert_eq!(report.own.memory_bytes, None);
        assert_eq!(report.effective.memory_bytes, Some(256 << 20));
        assert_eq!(report.own.idle_stop.unwrap().to_string(), "never");
        assert_eq!(report.effective.idle_freeze.unwrap().to_string(), "10s");
    }

    #[test]
    fn a_setting_out_of_bounds_is_refused_with_the_bound() {
        let refused = |settings: Settings| for_new(settings, 17).unwrap_err().to_string();
        assert!(refused(Settings { memory_bytes: Some(1), ..Default::default() }).contains("64MiB"));
        assert!(refused(Settings { storage_bytes: Some(1), ..Default::default() }).contains("64MiB"));
        assert!(refused(Settings { cpu_millicores: Some(1), ..Default::default() }).contains("0.01"));
        assert!(refused(Settings { max_connections: Some(1), ..Default::default() }).contains("10 to 10000"));
        let postgres = BTreeMap::from([("shared_preload_libraries".to_owned(), "x".to_owned())]);
        assert!(refused(Settings { postgres, ..Default::default() }).contains("shared_preload_libraries"));
    }

    #[test]
    fn a_change_is_checked_as_it_will_be() {
        let before = catalog::Settings { memory_bytes: Some(512 << 20), ..Default::default() };
        let reset = SettingsChange { memory_bytes: Some(None), ..Default::default() };
        assert_eq!(for_change(reset, &before, 17).unwrap().memory_bytes, Some(None));
        let too_small = SettingsChange { memory_bytes: Some(Some(1)), ..Default::default() };
        assert!(for_change(too_small, &before, 17).is_err());
    }
}
