//! Further settings that an operator or an owner may choose, by name: an allow-list.
//!
//! A setting is on the list when it cannot lead outside the instance (no paths, commands, libraries or listeners), and
//! when every value that is accepted here is one that Postgres starts with: a database that does not start because of
//! a typing error is worse than a refused typing error. Settings that a role can set for itself with `ALTER ROLE` or
//! `ALTER DATABASE` are listed only where a default for the whole database makes sense.

use std::collections::BTreeMap;

use crate::OLDEST_MAJOR;

/// How many further settings one database may have.
pub const MAX_EXTRA: usize = 128;

/// What a setting's value may be.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Bool,
    Integer {
        min: i64,
        max: i64,
    },
    Real {
        min: f64,
        max: f64,
    },
    /// Kibibytes when no unit is given (`base_kib` of them); `kB`, `MB`, `GB`, `TB`. Bounds in kibibytes. `-1` where
    /// `special` says so.
    Memory {
        base_kib: i64,
        min: i64,
        max: i64,
        special: bool,
    },
    /// Milliseconds when no unit is given (`base_ms` of them); `ms`, `s`, `min`, `h`, `d`. Bounds in milliseconds. `-1`
    /// where `special` says so.
    Duration {
        base_ms: i64,
        min: i64,
        max: i64,
        special: bool,
    },
    Word(&'static [&'static str]),
}

/// A setting that may be chosen.
struct Allowed {
    name: &'static str,
    /// The first major that has it.
    since: u16,
    kind: Kind,
}

const fn allowed(name: &'static str, kind: Kind) -> Allowed {
    Allowed { name, since: OLDEST_MAJOR, kind }
}

const fn since(since: u16, name: &'static str, kind: Kind) -> Allowed {
    Allowed { name, since, kind }
}

const fn integer(min: i64, max: i64) -> Kind {
    Kind::Integer { min, max }
}

const fn real(min: f64, max: f64) -> Kind {
    Kind::Real { min, max }
}

const MIB: i64 = 1024;
const GIB: i64 = 1024 * MIB;
/// The largest number of kibibytes that Postgres takes for most memory settings.
const MAX_KIB: i64 = i32::MAX as i64;
/// The largest number of milliseconds that Postgres takes.
const MAX_MS: i64 = i32::MAX as i64;

const fn kib(min: i64, max: i64) -> Kind {
    Kind::Memory { base_kib: 1, min, max, special: false }
}

const fn mib(min: i64, max: i64) -> Kind {
    Kind::Memory { base_kib: MIB, min, max, special: false }
}

const fn pages(min: i64, max: i64) -> Kind {
    Kind::Memory { base_kib: 8, min, max, special: false }
}

const fn or_minus_one(kind: Kind) -> Kind {
    match kind {
        Kind::Memory { base_kib, min, max, .. } => Kind::Memory { base_kib, min, max, special: true },
        Kind::Duration { base_ms, min, max, .. } => Kind::Duration { base_ms, min, max, special: true },
        other => other,
    }
}

const fn milliseconds(min: i64, max: i64) -> Kind {
    Kind::Duration { base_ms: 1, min, max, special: false }
}

const fn seconds(min: i64, max: i64) -> Kind {
    Kind::Duration { base_ms: 1000, min: min * 1000, max: max * 1000, special: false }
}

const LEVELS: &[&str] = &[
    "debug5", "debug4", "debug3", "debug2", "debug1", "info", "notice", "warning", "error", "log", "fatal",
    "panic",
];

/// Sorted by name.
const ALLOWED: &[Allowed] = &[
    allowed("autovacuum", Kind::Bool),
    allowed("autovacuum_analyze_scale_factor", real(0.0, 100.0)),
    allowed("autovacuum_analyze_threshold", integer(0, i32::MAX as i64)),
    // Below what Roost wakes a database for (`limits.xid_age`), or nothing would be vacuumed then.
    allowed("autovacuum_freeze_max_age", integer(100_000, 1_000_000_000)),
    allowed("autovacuum_max_workers", integer(1, 4)),
    allowed("autovacuum_naptime", seconds(1, 2_147_483)),
    allowed("autovacuum_vacuum_cost_delay", or_minus_one(milliseconds(0, 100))),
    allowed("autovacuum_vacuum_cost_limit", integer(-1, 10_000)),
    allowed("autovacuum_vacuum_insert_scale_factor", real(0.0, 100.0)),
    allowed("autovacuum_vacuum_insert_threshold", integer(-1, i32::MAX as i64)),
    allowed("autovacuum_vacuum_scale_factor", real(0.0, 100.0)),
    allowed("autovacuum_vacuum_threshold", integer(0, i32::MAX as i64)),
    allowed("bgwriter_delay", milliseconds(10, 10_000)),
    allowed("bgwriter_lru_maxpages", integer(0, 1000)),
    allowed("checkpoint_completion_target", real(0.0, 1.0)),
    allowed("checkpoint_timeout", seconds(30, 86_400)),
    allowed("client_connection_check_interval", milliseconds(0, MAX_MS)),
    allowed("commit_delay", integer(0, 100_000)),
    allowed("commit_siblings", integer(0, 1000)),
    allowed("compute_query_id", Kind::Word(&["auto", "on", "off"])),
    allowed("constraint_exclusion", Kind::Word(&["partition", "on", "off"])),
    allowed("cpu_index_tuple_cost", real(0.0, 1e10)),
    allowed("cpu_operator_cost", real(0.0, 1e10)),
    allowed("cpu_tuple_cost", real(0.0, 1e10)),
    allowed("cursor_tuple_fraction", real(0.0, 1.0)),
    allowed("deadlock_timeout", milliseconds(1, MAX_MS)),
    allowed("default_statistics_target", integer(1, 10_000)),
    allowed(
        "default_transaction_isolation",
        Kind::Word(&["serializable", "repeatable read", "read committed", "read uncommitted"]),
    ),
    allowed("effective_cache_size", pages(8, MAX_KIB)),
    allowed("effective_io_concurrency", integer(0, 1000)),
    allowed("from_collapse_limit", integer(1, 1000)),
    allowed("geqo", Kind::Bool),
    allowed("geqo_threshold", integer(2, 1000)),
    allowed("gin_pending_list_limit", kib(64, MAX_KIB)),
    allowed("hash_mem_multiplier", real(1.0, 1000.0)),
    allowed("idle_in_transaction_session_timeout", milliseconds(0, MAX_MS)),
    allowed("idle_session_timeout", milliseconds(0, MAX_MS)),
    allowed("jit", Kind::Bool),
    allowed("join_collapse_limit", integer(1, 1000)),
    allowed("lock_timeout", milliseconds(0, MAX_MS)),
    allowed("log_autovacuum_min_duration", or_minus_one(milliseconds(0, MAX_MS))),
    allowed("log_checkpoints", Kind::Bool),
    allowed("log_connections", Kind::Bool),
    allowed("log_disconnections", Kind::Bool),
    allowed("log_duration", Kind::Bool),
    allowed("log_error_verbosity", Kind::Word(&["terse", "default", "verbose"])),
    allowed("log_lock_waits", Kind::Bool),
    allowed("log_min_duration_sample", or_minus_one(milliseconds(0, MAX_MS))),
    allowed("log_min_duration_statement", or_minus_one(milliseconds(0, MAX_MS))),
    allowed("log_min_error_statement", Kind::Word(LEVELS)),
    allowed("log_statement", Kind::Word(&["none", "ddl", "mod", "all"])),
    allowed("log_statement_sample_rate", real(0.0, 1.0)),
    allowed("log_temp_files", or_minus_one(kib(0, MAX_KIB))),
    allowed("log_transaction_sample_rate", real(0.0, 1.0)),
    allowed("logical_decoding_work_mem", kib(64, MAX_KIB)),
    allowed("maintenance_work_mem", kib(MIB, MAX_KIB)),
    allowed("max_locks_per_transaction", integer(10, 1024)),
    allowed("max_parallel_maintenance_workers", integer(0, 64)),
    allowed("max_parallel_workers", integer(0, 64)),
    allowed("max_parallel_workers_per_gather", integer(0, 64)),
    allowed("max_pred_locks_per_transaction", integer(10, 1024)),
    allowed("max_slot_wal_keep_size", or_minus_one(mib(0, 1024 * GIB))),
    allowed("max_wal_size", mib(32 * MIB, 1024 * GIB)),
    allowed("max_worker_processes", integer(1, 64)),
    allowed("min_wal_size", mib(8 * MIB, 1024 * GIB)),
    allowed("parallel_setup_cost", real(0.0, 1e10)),
    allowed("parallel_tuple_cost", real(0.0, 1e10)),
    allowed("plan_cache_mode", Kind::Word(&["auto", "force_generic_plan", "force_custom_plan"])),
    allowed("random_page_cost", real(0.0, 1e10)),
    allowed("seq_page_cost", real(0.0, 1e10)),
    allowed("statement_timeout", milliseconds(0, MAX_MS)),
    allowed("synchronous_commit", Kind::Word(&["on", "local", "off"])),
    allowed("temp_buffers", pages(800, 8 * GIB)),
    allowed("temp_file_limit", or_minus_one(kib(0, MAX_KIB))),
    allowed("track_activity_query_size", integer(100, 65_536)),
    allowed("track_commit_timestamp", Kind::Bool),
    allowed("track_functions", Kind::Word(&["none", "pl", "all"])),
    allowed("track_io_timing", Kind::Bool),
    allowed("track_wal_io_timing", Kind::Bool),
    since(17, "transaction_timeout", milliseconds(0, MAX_MS)),
    allowed("vacuum_cost_delay", milliseconds(0, 100)),
    allowed("vacuum_cost_limit", integer(1, 10_000)),
    allowed("vacuum_failsafe_age", integer(0, 2_100_000_000)),
    allowed("vacuum_freeze_min_age", integer(0, 1_000_000_000)),
    allowed("vacuum_freeze_table_age", integer(0, 2_000_000_000)),
    allowed("wal_buffers", pages(64, 64 * MIB)),
    allowed("wal_compression", Kind::Bool),
    allowed("wal_keep_size", mib(0, 1024 * GIB)),
    allowed("wal_writer_delay", milliseconds(1, 10_000)),
    allowed("work_mem", kib(64, MAX_KIB)),
];

/// Why a further setting is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSetting {
    /// Its name is not on the list.
    #[error("{name}: this setting cannot be chosen for a database")]
    NotAllowed {
        /// The name that was asked for.
        name: String,
    },
    /// The database's major version does not have it.
    #[error("{name}: Postgres has this setting from version {since} on, and this database has {major}")]
    NotInMajor {
        /// The name that was asked for.
        name: String,
        /// The first major that has it.
        since: u16,
        /// The database's major.
        major: u16,
    },
    /// Its value is none of this kind.
    #[error("{name}: {value:?} is not {expected}")]
    Value {
        /// The setting's name.
        name: String,
        /// The value that was asked for.
        value: String,
        /// What would have been accepted, in words.
        expected: String,
    },
    /// There are too many.
    #[error("a database may have {MAX_EXTRA} further settings, not {count}")]
    TooMany {
        /// How many there are.
        count: usize,
    },
}

/// Checks further settings of a database of that major before they are stored.
///
/// # Errors
/// The first setting that is refused, in order of the names.
pub fn validate_extra(major: u16, extra: &BTreeMap<String, String>) -> Result<(), InvalidSetting> {
    if extra.len() > MAX_EXTRA {
        return Err(InvalidSetting::TooMany { count: extra.len() });
    }
    extra.iter().try_for_each(|(name, value)| render(major, name, value).map(drop))
}

/// The names that [`validate_extra`] accepts for a major, sorted.
pub fn names(major: u16) -> impl Iterator<Item = &'static str> {
    ALLOWED.iter().filter(move |allowed| allowed.since <= major).map(|allowed| allowed.name)
}

/// The least and the greatest value that a setting may have, as text: for those that are one of some words, the first
/// and the last. `None` for a name that is not on the list.
pub fn bounds(name: &str) -> Option<(String, String)> {
    let kind = find(name)?.kind;
    Some(match kind {
        Kind::Bool => ("off".to_owned(), "on".to_owned()),
        Kind::Integer { min, max } => (min.to_string(), max.to_string()),
        Kind::Real { min, max } => (min.to_string(), max.to_string()),
        Kind::Memory { min, max, .. } => (format!("{min}kB"), format!("{max}kB")),
        Kind::Duration { min, max, .. } => (format!("{min}ms"), format!("{max}ms")),
        Kind::Word(words) => {
            let word = |word: Option<&&str>| word.copied().unwrap_or_default().to_owned();
            (word(words.first()), word(words.last()))
        }
    })
}

fn find(name: &str) -> Option<&'static Allowed> {
    ALLOWED.binary_search_by(|allowed| allowed.name.cmp(name)).ok().and_then(|at| ALLOWED.get(at))
}

/// The text to write between quotes for a setting of that name, normalised from `value`, so that nothing of a caller's
/// own punctuation reaches the file.
pub(super) fn render(major: u16, name: &str, value: &str) -> Result<String, InvalidSetting> {
    let allowed = find(name).ok_or_else(|| InvalidSetting::NotAllowed { name: name.to_owned() })?;
    if major < allowed.since {
        return Err(InvalidSetting::NotInMajor { name: name.to_owned(), since: allowed.since, major });
    }
    allowed.kind.normalise(value.trim()).ok_or_else(|| InvalidSetting::Value {
        name: name.to_owned(),
        value: value.chars().take(64).collect(),
        expected: allowed.kind.describe(),
    })
}

impl Kind {
    fn normalise(self, value: &str) -> Option<String> {
        match self {
            Self::Bool => match value.to_ascii_lowercase().as_str() {
                "on" | "true" | "yes" | "1" => Some("on".to_owned()),
                "off" | "false" | "no" | "0" => Some("off".to_owned()),
                _ => None,
            },
            Self::Integer { min, max } => value
                .parse()
                .ok()
                .filter(|number| (min..=max).contains(number))
                .map(|number| number.to_string()),
            Self::Real { min, max } => value
                .parse()
                .ok()
                .filter(|number: &f64| (min..=max).contains(number))
                .map(|number| number.to_string()),
            Self::Memory { base_kib, min, max, special } => {
                let units = [("kB", 1), ("MB", MIB), ("GB", GIB), ("TB", 1024 * GIB)];
                quantity(value, base_kib, &units, min..=max, special, "kB")
            }
            Self::Duration { base_ms, min, max, special } => {
                let units = [("ms", 1), ("min", 60_000), ("s", 1000), ("h", 3_600_000), ("d", 86_400_000)];
                quantity(value, base_ms, &units, min..=max, special, "ms")
            }
            Self::Word(words) => {
                words.iter().find(|word| word.eq_ignore_ascii_case(value)).map(|&word| word.to_owned())
            }
        }
    }

    fn describe(self) -> String {
        match self {
            Self::Bool => "on or off".to_owned(),
            Self::Integer { min, max } => format!("a whole number from {min} to {max}"),
            Self::Real { min, max } => format!("a number from {min} to {max}"),
            Self::Memory { min, max, special, .. } => {
                format!("an amount of memory from {min}kB to {max}kB{}", or_special(special))
            }
            Self::Duration { min, max, special, .. } => {
                format!("a time from {min}ms to {max}ms{}", or_special(special))
            }
            Self::Word(words) => format!("one of {}", words.join(", ")),
        }
    }
}

const fn or_special(special: bool) -> &'static str {
    if special { ", or -1" } else { "" }
}

/// A whole number with a unit, in the smallest unit.
fn quantity(
    value: &str,
    base: i64,
    units: &[(&str, i64)],
    range: std::ops::RangeInclusive<i64>,
    special: bool,
    smallest: &str,
) -> Option<String> {
    if special && value == "-1" {
        return Some(value.to_owned());
    }
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = value.split_at_checked(digits)?;
    let unit = unit.trim();
    let factor = if unit.is_empty() {
        base
    } else {
        units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor)?
    };
    let amount = number.parse::<i64>().ok()?.checked_mul(factor)?;
    range.contains(&amount).then(|| format!("{amount}{smallest}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(name: &str, value: &str) -> Result<String, InvalidSetting> {
        render(17, name, value)
    }

    #[test]
    fn the_list_is_sorted_and_names_nothing_twice() {
        assert!(ALLOWED.windows(2).all(|pair| pair[0].name < pair[1].name));
    }

    #[test]
    fn values_are_normalised_to_postgres_own_units() {
        assert_eq!(one("work_mem", "64MB").unwrap(), "65536kB");
        assert_eq!(one("work_mem", " 64 MB ").unwrap(), "65536kB");
        assert_eq!(one("work_mem", "128").unwrap(), "128kB");
        assert_eq!(one("max_wal_size", "1024").unwrap(), "1048576kB");
        assert_eq!(one("statement_timeout", "1min").unwrap(), "60000ms");
        assert_eq!(one("checkpoint_timeout", "90").unwrap(), "90000ms");
        assert_eq!(one("log_min_duration_statement", "-1").unwrap(), "-1");
        assert_eq!(one("jit", "TRUE").unwrap(), "on");
        assert_eq!(one("random_page_cost", "1.5").unwrap(), "1.5");
        assert_eq!(one("log_statement", "DDL").unwrap(), "ddl");
    }

    #[test]
    fn values_that_postgres_would_not_start_with_are_refused() {
        for (name, value) in [
            ("work_mem", "63kB"),
            ("work_mem", "-1"),
            ("work_mem", "1mb"),
            ("work_mem", "99999999999999999999GB"),
            ("work_mem", "9223372036854775807TB"),
            ("work_mem", ""),
            ("work_mem", "MB"),
            ("work_mem", "ä"),
            ("random_page_cost", "NaN"),
            ("random_page_cost", "inf"),
            ("jit", "maybe"),
            ("log_statement", "none'"),
        ] {
            assert!(matches!(one(name, value), Err(InvalidSetting::Value { .. })), "{name} = {value}");
        }
    }

    #[test]
    fn what_leads_outside_the_instance_is_not_on_the_list() {
        for name in [
            "data_directory",
            "hba_file",
            "listen_addresses",
            "shared_preload_libraries",
            "session_preload_libraries",
            "local_preload_libraries",
            "archive_command",
            "dynamic_library_path",
            "krb_server_keyfile",
            "ssl_passphrase_command",
            "log_directory",
            "zero_damaged_pages",
            "fsync",
            "full_page_writes",
            "wal_level",
            "max_connections",
            "Work_Mem",
            "work_mem\nfsync",
        ] {
            assert_eq!(one(name, "on"), Err(InvalidSetting::NotAllowed { name: name.to_owned() }));
        }
    }

    #[test]
    fn a_setting_of_a_later_major_is_refused_by_name() {
        let error = render(16, "transaction_timeout", "1s").unwrap_err();
        assert_eq!(
            error,
            InvalidSetting::NotInMajor { name: "transaction_timeout".into(), since: 17, major: 16 }
        );
    }

    #[test]
    fn there_is_a_bound_on_how_many() {
        let many = (0..=MAX_EXTRA).map(|number| (number.to_string(), String::new())).collect();
        assert_eq!(validate_extra(17, &many), Err(InvalidSetting::TooMany { count: MAX_EXTRA + 1 }));
    }

    proptest! {
        #[test]
        fn no_value_brings_punctuation_into_the_file(at in 0..ALLOWED.len(), value in any::<String>()) {
            if let Ok(rendered) = one(ALLOWED[at].name, &value) {
                let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | ' ');
                prop_assert!(rendered.chars().all(plain), "{}", rendered);
            }
        }

        #[test]
        fn what_was_normalised_is_accepted_again(at in 0..ALLOWED.len(), number in 0u32..100_000, unit in "(|kB|MB|ms|s|min)") {
            if let Ok(rendered) = one(ALLOWED[at].name, &format!("{number}{unit}")) {
                let again = one(ALLOWED[at].name, &rendered);
                prop_assert_eq!(again, Ok(rendered));
            }
        }
    }
}
