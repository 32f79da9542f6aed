//! `postgresql.conf`: what is derived from the instance's memory, what follows from sleeping a lot, and what was asked
//! for.

use std::fmt::Write as _;

use super::{InstanceSettings, MAX_CONNECTIONS, MIN_MEMORY_BYTES, RESERVED_CONNECTIONS, WalLevel, extra};

const MIB: u64 = 1 << 20;

/// Memory settings, in bytes, derived from the limit of a whole instance.
///
/// The limit counts everything: shared buffers, every backend, the page cache of the instance's own files. A quarter
/// goes to shared buffers; work memory is small enough that a handful of sorts fit beside them; the rest is page cache.
struct Memory {
    shared_buffers: u64,
    work_mem: u64,
    maintenance_work_mem: u64,
    effective_cache_size: u64,
    max_wal_size: u64,
}

impl Memory {
    fn derive(limit: u64) -> Self {
        let limit = limit.max(MIN_MEMORY_BYTES);
        Self {
            shared_buffers: (limit / 4).clamp(16 * MIB, 16 << 30),
            work_mem: (limit / 64).clamp(2 * MIB, 256 * MIB),
            maintenance_work_mem: (limit / 16).clamp(8 * MIB, 1 << 30),
            effective_cache_size: limit / 8 * 5,
            max_wal_size: limit.clamp(128 * MIB, 4 << 30),
        }
    }
}

/// The configuration file of an instance. Settings in `extra` that [`extra::validate_extra`] would refuse are left out:
/// a stored value that a newer version no longer allows must not keep a database from waking.
pub fn postgresql_conf(major: u16, settings: &InstanceSettings) -> String {
    let mut conf = String::with_capacity(4096);
    conf.push_str("# Written by Roost at every start and reload; changes made here are lost.\n");
    let mut set = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(conf, "{name} = '{value}'");
    };

    memory(settings, &mut set);
    processes(major, settings, &mut set);
    files(&mut set);
    logging(&mut set);
    sessions(major, settings, &mut set);

    for (name, value) in &settings.extra {
        match extra::render(major, name, value) {
            Ok(rendered) => set(name, &rendered),
            Err(error) => tracing::warn!(%name, %error, "a stored setting is left out of the configuration"),
        }
    }
    // Last, so that nothing in `extra` outranks it.
    if settings.read_only {
        set("default_transaction_read_only", "on");
    }
    conf
}

fn memory(settings: &InstanceSettings, set: &mut impl FnMut(&str, &str)) {
    let memory = Memory::derive(settings.memory_bytes);
    let kib = |bytes: u64| format!("{}kB", bytes / 1024);
    set("shared_buffers", &kib(memory.shared_buffers));
    set("work_mem", &kib(memory.work_mem));
    set("maintenance_work_mem", &kib(memory.maintenance_work_mem));
    set("effective_cache_size", &kib(memory.effective_cache_size));
    set("max_wal_size", &kib(memory.max_wal_size));
    // Two segments of a template's 4 MiB: a sleeping volume is nearly all WAL otherwise.
    set("min_wal_size", "8MB");
    // Huge pages are never returned to the machine while an instance is frozen.
    set("huge_pages", "off");
    set("shared_memory_type", "mmap");
    // In the instance's own, bounded /dev/shm.
    set("dynamic_shared_memory_type", "posix");
    // Compiling takes tens of MiB per backend, and short queries, which most are, never earn it back.
    set("jit", "off");
}

fn processes(major: u16, settings: &InstanceSettings, set: &mut impl FnMut(&str, &str)) {
    let connections = settings.max_connections.clamp(RESERVED_CONNECTIONS + 1, MAX_CONNECTIONS);
    set("max_connections", &connections.to_string());
    set("superuser_reserved_connections", &RESERVED_CONNECTIONS.to_string());
    set("max_prepared_transactions", "0");
    let large = settings.memory_bytes >= 1 << 30;
    set("max_worker_processes", "8");
    set("max_parallel_workers", if large { "4" } else { "2" });
    set("max_parallel_workers_per_gather", if large { "2" } else { "1" });
    set("max_parallel_maintenance_workers", if large { "2" } else { "1" });
    set("autovacuum", "on");
    set("autovacuum_max_workers", "2");
    if major >= 18 {
        set("autovacuum_worker_slots", "4");
        // The default starts three I/O workers with every instance. Their memory and their start cost more than they
        // bring to a database that is mostly asleep; reads then happen in the backend, as in every earlier version.
        set("io_method", "sync");
    }
    match settings.wal_level {
        WalLevel::Replica => {
            set("max_wal_senders", "0");
            set("max_logical_replication_workers", "0");
        }
        WalLevel::Logical => {
            set("max_wal_senders", "10");
            set("max_logical_replication_workers", "4");
        }
    }
    // Not zero without logical decoding: a slot that was left behind would keep Postgres from starting.
    set("max_replication_slots", "10");
    // A forgotten slot loses its WAL rather than fill its database's storage.
    set("max_slot_wal_keep_size", "1GB");
}

fn files(set: &mut impl FnMut(&str, &str)) {
    set("fsync", "on");
    set("full_page_writes", "on");
    set("synchronous_commit", "on");
    set("recovery_init_sync_method", "fsync");
    set("restart_after_crash", "on");
    set("ssl", "off");
    set("checkpoint_timeout", "5min");
    set("checkpoint_completion_target", "0.9");
    set("random_page_cost", "1.1");
}

fn logging(set: &mut impl FnMut(&str, &str)) {
    set("log_checkpoints", "off");
    set("log_autovacuum_min_duration", "-1");
    set("log_timezone", "UTC");
    // A system call or two less per statement; nobody inside can see the processes anyway.
    set("update_process_title", "off");
}

fn sessions(major: u16, settings: &InstanceSettings, set: &mut impl FnMut(&str, &str)) {
    set("timezone", "UTC");
    set("password_encryption", "scram-sha-256");
    set("statement_timeout", "0");
    set("idle_in_transaction_session_timeout", "0");
    set("default_transaction_read_only", if settings.read_only { "on" } else { "off" });
    if major >= 16 {
        // A role that a tenant makes is one that the tenant can become, as on a server of one's own.
        set("createrole_self_grant", "set, inherit");
    }
    if major >= 17 {
        set("allow_alter_system", "off");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(conf: &str, name: &str) -> String {
        let prefix = format!("{name} = '");
        let line =
            conf.lines().rfind(|line| line.starts_with(&prefix)).unwrap_or_else(|| panic!("no {name}"));
        line.strip_prefix(&prefix).unwrap().strip_suffix('\'').unwrap().to_owned()
    }

    #[test]
    fn memory_settings_follow_the_limit() {
        let small = postgresql_conf(15, &InstanceSettings::default());
        assert_eq!(value(&small, "shared_buffers"), "65536kB");
        assert_eq!(value(&small, "work_mem"), "4096kB");
        assert_eq!(value(&small, "maintenance_work_mem"), "16384kB");
        let large = InstanceSettings { memory_bytes: 8 << 30, ..InstanceSettings::default() };
        assert_eq!(value(&postgresql_conf(15, &large), "shared_buffers"), "2097152kB");
        let none = InstanceSettings { memory_bytes: 0, ..InstanceSettings::default() };
        assert_eq!(value(&postgresql_conf(15, &none), "shared_buffers"), "16384kB");
    }

    #[test]
    fn max_connections_always_exceeds_what_is_reserved() {
        let none = InstanceSettings { max_connections: 0, ..InstanceSettings::default() };
        assert_eq!(value(&postgresql_conf(15, &none), "max_connections"), "4");
    }

    #[test]
    fn a_short_of_storage_instance_is_read_only_whatever_was_asked_for() {
        let extra = [("statement_timeout".to_owned(), "5s".to_owned())].into();
        let settings = InstanceSettings { read_only: true, extra, ..InstanceSettings::default() };
        let conf = postgresql_conf(17, &settings);
        assert_eq!(value(&conf, "default_transaction_read_only"), "on");
        assert_eq!(value(&conf, "statement_timeout"), "5000ms");
    }

    #[test]
    fn a_stored_setting_that_is_not_allowed_is_left_out() {
        let extra = [
            ("archive_command".to_owned(), "rm -rf /".to_owned()),
            ("work_mem".to_owned(), "1MB'\nssl = 'on".to_owned()),
        ];
        let settings = InstanceSettings { extra: extra.into(), ..InstanceSettings::default() };
        let conf = postgresql_conf(17, &settings);
        assert!(!conf.contains("archive_command"));
        assert_eq!(value(&conf, "ssl"), "off");
        assert_eq!(value(&conf, "work_mem"), "4096kB");
    }

    #[test]
    fn a_major_gets_only_settings_that_it_knows() {
        let conf = |major| postgresql_conf(major, &InstanceSettings::default());
        assert!(!conf(15).contains("createrole_self_grant"));
        assert_eq!(value(&conf(16), "createrole_self_grant"), "set, inherit");
        assert!(!conf(16).contains("allow_alter_system"));
        assert!(!conf(17).contains("io_method"));
        assert_eq!(value(&conf(18), "io_method"), "sync");
    }
}
