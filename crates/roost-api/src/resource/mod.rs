//! The objects that the API takes and gives, as JSON. The server writes them and the client reads them.
//!
//! Field names are camelCase. `id`, `type`, `url`, `name`, `createdAt` and the shapes of database, connection and
//! project are those of Prisma's management API, so that its clients work; the rest is Roost's own. `url` is the path
//! of the object in this API. Secrets appear in exactly the answer that made them, and never again.

use roost_catalog::model::Name;
use serde::{Deserialize, Serialize};

mod connection;
mod database;
mod node;
mod project;
mod settings;
mod usage;

pub use connection::{Connection, CreateConnection, DirectConnection, Endpoint, Endpoints};
pub use database::{
    BulkCreated, CreateDatabase, CreateDatabases, Database, MAX_BULK, Source, Status, UndeleteDatabase,
    UpdateDatabase,
};
pub use node::{Check, Counts, DoctorReport, Installation, Node, Verdict};
pub use project::{CreateProject, Project, Workspace};
pub use settings::{Settings, SettingsChange, SettingsReport};
pub use usage::{Measured, Period, TransitionReport, UsageMetrics, UsageReport, WakeReport};

/// A reference to another object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference<Id> {
    /// Its identifier.
    pub id: Id,
    /// Its path in this API.
    pub url: String,
    /// Its name.
    pub name: Name,
}

/// A text with a secret in it. It is serialised as it is and never shown by `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// Guards a text.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for whoever it is meant for.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn null_and_absent_are_different_in_a_settings_change() {
        let change: SettingsChange = serde_json::from_value(
            json!({"idleFreeze": null, "idleStop": "5m", "postgres": {"work_mem": null}}),
        )
        .unwrap();
        assert_eq!(change.idle_freeze, Some(None));
        assert_eq!(change.idle_stop, Some(Some("5m".parse().unwrap())));
        assert_eq!(change.memory_bytes, None);
        assert_eq!(change.postgres.get("work_mem"), Some(&None));
        assert_eq!(
            serde_json::to_value(&change).unwrap(),
            json!({"idleFreeze": null, "idleStop": "5m", "postgres": {"work_mem": null}})
        );
    }

    #[test]
    fn an_unknown_setting_is_refused() {
        assert!(serde_json::from_value::<SettingsChange>(json!({"memory": 5})).is_err());
        assert!(serde_json::from_value::<CreateDatabase>(json!({"nmae": "x"})).is_err());
    }

    #[test]
    fn a_secret_is_not_in_debug_output() {
        let direct = DirectConnection {
            host: "h:1".into(),
            pass: SecretText::new("hunter2".into()),
            user: "u".into(),
        };
        assert!(!format!("{direct:?}").contains("hunter2"));
    }
}
