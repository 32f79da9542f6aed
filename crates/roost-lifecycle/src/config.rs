//! What the operator decides for all databases of a node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use roost_catalog::model::{IdleAfter, Settings, WalLevel};
use roost_postgres::settings::InstanceSettings;
use roost_warden::protocol::Limits;

/// The least `max_wal_size` that a database can be set to, in bytes.
const SMALLEST_MAX_WAL: u64 = 32 << 20;
/// The bounds of the `max_wal_size` that follows from a database's memory, in bytes.
const SMALLEST_DERIVED_WAL: u64 = 128 << 20;
/// The upper one of them.
const LARGEST_DERIVED_WAL: u64 = 4 << 30;
/// The `max_slot_wal_keep_size` of a database for which nothing else was said, in bytes.
const DERIVED_SLOT_WAL: u64 = 1 << 30;

/// The node's defaults and bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LifecycleConfig {
    /// The node's data directory, whose file system is watched.
    pub data: PathBuf,
    /// Idle time before freezing, where a database says nothing else.
    pub idle_freeze: IdleAfter,
    /// Idle time before stopping.
    pub idle_stop: IdleAfter,
    /// Memory limit of an instance, in bytes.
    pub memory_bytes: u64,
    /// Limit of a volume, in bytes.
    pub storage_bytes: u64,
    /// Processor limit in thousandths of a core; `None` is unlimited.
    pub cpu_millicores: Option<u32>,
    /// Postgres' `max_connections`.
    pub max_connections: u32,
    /// How many databases start at the same moment.
    pub concurrent_starts: usize,
    /// How long one start may take until Postgres is ready (crash recovery included).
    pub start_deadline: Duration,
    /// How long a clean shutdown may take before it is forced.
    pub stop_deadline: Duration,
    /// What maintenance before sleep may cost at most.
    pub maintenance_budget: Duration,
    /// Memory that all instances together may use, in bytes.
    pub memory_budget_bytes: u64,
    /// Free space below which growing databases become read-only: the larger of this many bytes and 5 %; 0 keeps none.
    pub storage_reserve_bytes: u64,
    /// The age of a database's oldest transaction id at which it is woken to be vacuumed, in transactions. Postgres stops
    /// taking writes shortly before 2,147 million.
    pub xid_age_limit: u64,
    /// How long an instance's log may grow before its older half is moved aside, in bytes.
    pub log_bytes: u64,
    /// How often idle databases are looked for.
    pub sweep_interval: Duration,
}

impl Default for LifecycleConfig {
    fn default() -> Self {
        Self {
            data: PathBuf::from("/var/lib/roost"),
            idle_freeze: IdleAfter::After(Duration::from_secs(10)),
            idle_stop: IdleAfter::After(Duration::from_secs(300)),
            memory_bytes: 256 << 20,
            storage_bytes: 10 << 30,
            cpu_millicores: None,
            max_connections: 100,
            concurrent_starts: 4,
            start_deadline: Duration::from_secs(600),
            stop_deadline: Duration::from_secs(120),
            maintenance_budget: Duration::from_secs(5),
            memory_budget_bytes: 8 << 30,
            storage_reserve_bytes: 2 << 30,
            xid_age_limit: 1_500_000_000,
            log_bytes: 4 << 20,
            sweep_interval: Duration::from_millis(200),
        }
    }
}

impl LifecycleConfig {
    /// A database's idle time before freezing.
    pub fn idle_freeze(&self, settings: &Settings) -> IdleAfter {
        settings.idle_freeze.unwrap_or(self.idle_freeze)
    }

    /// A database's idle time before stopping.
    pub fn idle_stop(&self, settings: &Settings) -> IdleAfter {
        settings.idle_stop.unwrap_or(self.idle_stop)
    }

    /// A database's memory limit, in bytes.
    pub fn memory(&self, settings: &Settings) -> u64 {
        settings.memory_bytes.unwrap_or(self.memory_bytes)
    }

    /// A database's storage limit, in bytes.
    pub fn storage(&self, settings: &Settings) -> u64 {
        settings.storage_bytes.unwrap_or(self.storage_bytes)
    }

    /// What Postgres is configured with for a database.
    pub fn instance_settings(&self, settings: &Settings, read_only: bool) -> InstanceSettings {
        InstanceSettings {
            memory_bytes: self.memory(settings),
            max_connections: settings.max_connections.unwrap_or(self.max_connections),
            wal_level: match settings.wal_level.unwrap_or_default() {
                WalLevel::Replica => roost_postgres::settings::WalLevel::Replica,
                WalLevel::Logical => roost_postgres::settings::WalLevel::Logical,
            },
            read_only,
            extra: self.postgres_settings(settings),
        }
    }

    /// Further settings: those that were chosen, and bounds on the write-ahead log that follow from the storage limit.
    /// Otherwise the log of a small database could fill it, and nothing that its owner deletes would make room.
    fn postgres_settings(&self, settings: &Settings) -> BTreeMap<String, String> {
        let mut all = settings.postgres.clone();
        let storage = self.storage(settings);
        let kib = |bytes: u64| format!("{}kB", bytes >> 10);
        let wal = (storage / 8).max(SMALLEST_MAX_WAL);
        // Postgres' configuration is derived from the memory; here it is only lowered.
        if wal < self.memory(settings).clamp(SMALLEST_DERIVED_WAL, LARGEST_DERIVED_WAL) {
            all.entry("max_wal_size".to_owned()).or_insert_with(|| kib(wal));
        }
        if storage / 4 < DERIVED_SLOT_WAL {
            all.entry("max_slot_wal_keep_size".to_owned()).or_insert_with(|| kib(storage / 4));
        }
        all
    }

    /// What the kernel enforces for a database.
    pub fn limits(&self, settings: &Settings) -> Limits {
        Limits {
            memory_bytes: self.memory(settings),
            cpu_millicores: settings.cpu_millicores.or(self.cpu_millicores),
            // A process a session, Postgres' own, and room for parallel workers.
            pids: settings.max_connections.unwrap_or(self.max_connections).saturating_add(64),
        }
    }
}
