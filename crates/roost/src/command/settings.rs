//! `KEY=VALUE` of `roost set`, as a change to a database's settings.

use std::str::FromStr;

use anyhow::Result;
use roost_api::resource::{Settings, SettingsChange};
use roost_api::units::{Idle, parse_cores, parse_size};
use roost_catalog::model::WalLevel;

use crate::exit::UsageError;

/// The word for the node's default.
const DEFAULT: &str = "default";

/// What prefixes a setting of Postgres.
const POSTGRES: &str = "postgres.";

/// Reads all pairs into one change.
pub(super) fn change(pairs: &[String]) -> Result<SettingsChange> {
    let mut change = SettingsChange::default();
    for pair in pairs {
        set(&mut change, pair)?;
    }
    Ok(change)
}

/// Reads all pairs as the settings of a new database.
pub(super) fn settings(pairs: &[String]) -> Result<Settings> {
    let change = change(pairs)?;
    Ok(Settings {
        idle_freeze: change.idle_freeze.flatten(),
        idle_stop: change.idle_stop.flatten(),
        memory_bytes: change.memory_bytes.flatten(),
        storage_bytes: change.storage_bytes.flatten(),
        cpu_millicores: change.cpu_millicores.flatten(),
        max_connections: change.max_connections.flatten(),
        wal_level: change.wal_level.flatten(),
        stop_under_sessions: change.stop_under_sessions.flatten(),
        postgres: change.postgres.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
    })
}

fn set(change: &mut SettingsChange, pair: &str) -> Result<()> {
    let usage = |text: String| UsageError(text);
    let (key, text) = pair.split_once('=').ok_or_else(|| usage(format!("`{pair}` is not KEY=VALUE")))?;
    if let Some(name) = key.strip_prefix(POSTGRES) {
        let value = (text != DEFAULT).then(|| text.to_owned());
        change.postgres.insert(name.to_owned(), value);
        return Ok(());
    }
    match key {
        "idle-freeze" => change.idle_freeze = Some(value(key, text, str::parse::<Idle>)?),
        "idle-stop" => change.idle_stop = Some(value(key, text, str::parse::<Idle>)?),
        "memory" => change.memory_bytes = Some(value(key, text, parse_size)?),
        "storage" => change.storage_bytes = Some(value(key, text, parse_size)?),
        "cpu" => change.cpu_millicores = Some(value(key, text, parse_cores)?.flatten()),
        "max-connections" => change.max_connections = Some(value(key, text, u32::from_str)?),
        "wal-level" => change.wal_level = Some(value(key, text, wal_level)?),
        "stop-under-sessions" => change.stop_under_sessions = Some(value(key, text, bool::from_str)?),
        _ => {
            let known = "idle-freeze, idle-stop, memory, storage, cpu, max-connections, wal-level, \
                         stop-under-sessions, postgres.NAME";
            return Err(usage(format!("there is no setting `{key}`; there are: {known}")).into());
        }
    }
    Ok(())
}

/// A value, or nothing for the node's default.
fn value<T, E: std::fmt::Display>(
    key: &str,
    text: &str,
    read: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>> {
    if text == DEFAULT {
        return Ok(None);
    }
    read(text).map(Some).map_err(|error| UsageError(format!("{key}: {error}")).into())
}

fn wal_level(text: &str) -> Result<WalLevel, String> {
    match text {
        "replica" => Ok(WalLevel::Replica),
        "logical" => Ok(WalLevel::Logical),
        _ => Err(format!("`{text}` is not a WAL level: write replica or logical")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[&str]) -> Result<SettingsChange> {
        change(&pairs.iter().map(|pair| (*pair).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn every_setting_can_be_set_and_taken_back() {
        let all = [
            "idle-freeze=10s",
            "idle-stop=never",
            "memory=256MiB",
            "storage=10GiB",
            "cpu=0.5",
            "max-connections=50",
            "wal-level=logical",
            "stop-under-sessions=true",
            "postgres.work_mem=8MB",
        ];
        let change = read(&all).unwrap();
        assert_eq!(change.memory_bytes, Some(Some(256 << 20)));
        assert_eq!(change.cpu_millicores, Some(Some(500)));
        assert_eq!(change.wal_level, Some(Some(WalLevel::Logical)));
        assert_eq!(change.postgres["work_mem"].as_deref(), Some("8MB"));
        let back: Vec<String> =
            all.iter().map(|pair| format!("{}=default", pair.split_once('=').unwrap().0)).collect();
        let back = super::change(&back).unwrap();
        assert_eq!(back.idle_stop, Some(None));
        assert_eq!(back.stop_under_sessions, Some(None));
        assert_eq!(back.postgres["work_mem"], None);
    }

    #[test]
    fn a_value_of_postgres_may_contain_an_equals_sign() {
        let change = read(&["postgres.search_path=a=b"]).unwrap();
        assert_eq!(change.postgres["search_path"].as_deref(), Some("a=b"));
    }

    #[test]
    fn what_is_wrong_is_told_by_name() {
        for (pair, word) in [
            ("memory", "KEY=VALUE"),
            ("memory=5", "memory:"),
            ("mem=5MiB", "stop-under-sessions"),
            ("wal-level=minimal", "replica"),
        ] {
            let error = read(&[pair]).unwrap_err();
            assert!(error.is::<UsageError>() && error.to_string().contains(word), "{error}");
        }
    }
}
