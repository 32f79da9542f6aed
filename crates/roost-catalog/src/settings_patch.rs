//! A change to a database's settings: what it names changes, what it leaves out stays.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::model::{IdleAfter, Settings, WalLevel};

/// A change to [`Settings`]. In JSON a field that is absent stays as it is, `null` goes back to the node's default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SettingsPatch {
    /// Idle time before freezing.
    #[serde(default, deserialize_with = "named", skip_serializing_if = "Option::is_none")]
    pub idle_freeze: Option<Option<IdleAfter>>,
    /// Idle time before stopping.
    #[serde(default, deserialize_with = "named", skip_serializing_if = "Option::is_none")]
    pub idle_stop: Option<Option<IdleAfter>>,
    /// Memory limit of the whole instance, in bytes.
    #[serde(default, deserialize_with = "named", skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<Option<u64>>,
    /// Limit of the volume, in bytes.
    #[serde(default, deserialize_with = "named", skip_serializing_if = "Option::is_none")]
    pub storage_bytes: Option<Option<u64>>,
    /// Processor limit in thousandths of a core.
    #[serde(default, deserialize_with = "named", skip_serializing_if = "Option::is_none")]
    pub cpu_millicores: Option<Option<u32>>,
    /// Postgres' `max_connections`.
    #[serde(default, deserialize_with = "named", skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<Option<u32>>,
    /// Postgres' `wal_level`.
    #[serde(default, deserialize_with = "named", skip_serializing_if = "Option::is_none")]
    pub wal_level: Option<Option<WalLevel>>,
    /// Whether a database may be stopped for memory while sessions hold it.
    #[serde(default, deserialize_with = "named", skip_serializing_if = "Option::is_none")]
    pub stop_under_sessions: Option<Option<bool>>,
    /// Further Postgres settings by name; `None` (JSON `null`) removes one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub postgres: BTreeMap<String, Option<String>>,
}

/// Tells a field that is `null` (`Some(None)`) from one that is absent (the default, `None`).
fn named<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Some)
}

impl SettingsPatch {
    /// The patch that turns any settings into `settings`, but for Postgres settings that `settings` does not name.
    pub fn replacing_with(settings: Settings) -> Self {
        Self {
            idle_freeze: Some(settings.idle_freeze),
            idle_stop: Some(settings.idle_stop),
            memory_bytes: Some(settings.memory_bytes),
            storage_bytes: Some(settings.storage_bytes),
            cpu_millicores: Some(settings.cpu_millicores),
            max_connections: Some(settings.max_connections),
            wal_level: Some(settings.wal_level),
            stop_under_sessions: Some(settings.stop_under_sessions),
            postgres: settings.postgres.into_iter().map(|(name, value)| (name, Some(value))).collect(),
        }
    }

    /// Changes `settings` as the patch says.
    pub fn apply(self, settings: &mut Settings) {
        fn set<T>(field: &mut Option<T>, change: Option<Option<T>>) {
            if let Some(value) = change {
                *field = value;
            }
        }
        set(&mut settings.idle_freeze, self.idle_freeze);
        set(&mut settings.idle_stop, self.idle_stop);
        set(&mut settings.memory_bytes, self.memory_bytes);
        set(&mut settings.storage_bytes, self.storage_bytes);
        set(&mut settings.cpu_millicores, self.cpu_millicores);
        set(&mut settings.max_connections, self.max_connections);
        set(&mut settings.wal_level, self.wal_level);
        set(&mut settings.stop_under_sessions, self.stop_under_sessions);
        for (name, value) in self.postgres {
            match value {
                Some(value) => settings.postgres.insert(name, value),
                None => settings.postgres.remove(&name),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_stays_null_resets_and_a_value_sets() {
        let mut settings = Settings {
            memory_bytes: Some(1),
            storage_bytes: Some(2),
            max_connections: Some(3),
            postgres: BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]),
            ..Settings::default()
        };
        let patch: SettingsPatch = serde_json::from_str(
            r#"{"memoryBytes": null, "storageBytes": 9, "postgres": {"a": null, "c": "3"}}"#,
        )
        .unwrap();
        patch.apply(&mut settings);
        assert_eq!(settings.memory_bytes, None);
        assert_eq!(settings.storage_bytes, Some(9));
        assert_eq!(settings.max_connections, Some(3));
        let names: Vec<_> = settings.postgres.keys().map(String::as_str).collect();
        assert_eq!(names, ["b", "c"]);
    }

    #[test]
    fn a_patch_survives_its_json_form() {
        let patch = SettingsPatch {
            idle_stop: Some(Some(IdleAfter::Never)),
            wal_level: Some(None),
            ..Default::default()
        };
        let text = serde_json::to_string(&patch).unwrap();
        assert_eq!(serde_json::from_str::<SettingsPatch>(&text).unwrap(), patch);
    }

    #[test]
    fn an_unknown_setting_is_an_error() {
        assert!(serde_json::from_str::<SettingsPatch>(r#"{"memory": 1}"#).is_err());
    }
}
