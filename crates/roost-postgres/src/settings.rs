//! An instance's settings, and the configuration files and command line that they become.
//!
//! Configuration lies outside the volume and is read-only to the instance. What must not be changed from inside (paths,
//! listeners, preloaded libraries, archiving) is passed on the command line, which outranks every file, including the
//! `postgresql.auto.conf` inside the volume. Everything else is derived from the instance's memory, or taken from an
//! allow-list of further settings ([`extra`]).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

mod access;
mod configuration;
pub mod extra;

pub use access::{hba, ident};
pub use configuration::postgresql_conf;
pub use extra::{InvalidSetting, validate_extra};

/// The configuration file's name in [`InstancePaths::config`].
pub const CONF_FILE: &str = "postgresql.conf";
/// The client authentication file's name in [`InstancePaths::config`].
pub const HBA_FILE: &str = "pg_hba.conf";
/// The user name map's name in [`InstancePaths::config`].
pub const IDENT_FILE: &str = "pg_ident.conf";

/// The least memory that an instance is configured for, in bytes; a smaller limit is treated as this one.
pub const MIN_MEMORY_BYTES: u64 = 64 << 20;
/// The memory of an instance for which nothing else was said, in bytes.
pub const DEFAULT_MEMORY_BYTES: u64 = 256 << 20;
/// `max_connections` of an instance for which nothing else was said.
pub const DEFAULT_MAX_CONNECTIONS: u32 = 100;
/// The largest `max_connections` that is configured.
pub const MAX_CONNECTIONS: u32 = 10_000;
/// How many of `max_connections` are for superusers, that is for Roost's own control connections: the tenant has no
/// superuser.
pub const RESERVED_CONNECTIONS: u32 = 3;

/// Postgres' `wal_level`; never `minimal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WalLevel {
    /// Enough for archiving and physical replicas.
    #[default]
    Replica,
    /// Also logical decoding.
    Logical,
}

impl WalLevel {
    /// The word in the configuration file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Replica => "replica",
            Self::Logical => "logical",
        }
    }
}

/// What an instance is started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSettings {
    /// Memory limit of the whole instance, in bytes; buffers and work memory are derived from it.
    pub memory_bytes: u64,
    /// Postgres' `max_connections`, [`RESERVED_CONNECTIONS`] of which are not for the tenant. Held between 4 and
    /// [`MAX_CONNECTIONS`].
    pub max_connections: u32,
    /// Postgres' `wal_level`.
    pub wal_level: WalLevel,
    /// Whether new transactions are read-only by default, because storage is short.
    pub read_only: bool,
    /// Further settings by name; only those of an allow-list are rendered.
    pub extra: BTreeMap<String, String>,
}

impl Default for InstanceSettings {
    fn default() -> Self {
        Self {
            memory_bytes: DEFAULT_MEMORY_BYTES,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            wal_level: WalLevel::Replica,
            read_only: false,
            extra: BTreeMap::new(),
        }
    }
}

/// Where an instance finds its things, as paths that it sees itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstancePaths {
    /// The data directory.
    pub data: PathBuf,
    /// The directory of [`CONF_FILE`], [`HBA_FILE`] and [`IDENT_FILE`].
    pub config: PathBuf,
    /// The directory that its socket appears in.
    pub socket: PathBuf,
}

/// The command line of `postgres`, without the program itself.
pub fn arguments(major: u16, paths: &InstancePaths, settings: &InstanceSettings) -> Vec<OsString> {
    let mut arguments = vec![OsString::from("-D"), paths.data.clone().into_os_string()];
    let mut set = |name: &str, value: &Path| {
        let mut argument = OsString::from(name);
        argument.push("=");
        argument.push(value);
        arguments.push(OsString::from("-c"));
        arguments.push(argument);
    };
    set("config_file", &paths.config.join(CONF_FILE));
    set("hba_file", &paths.config.join(HBA_FILE));
    set("ident_file", &paths.config.join(IDENT_FILE));
    set("unix_socket_directories", &quoted_directory(&paths.socket));
    let fixed = [
        ("port", "5432"),
        ("listen_addresses", ""),
        ("unix_socket_permissions", "0700"),
        ("shared_preload_libraries", ""),
        ("session_preload_libraries", ""),
        ("local_preload_libraries", ""),
        ("dynamic_library_path", "$libdir"),
        ("archive_mode", "off"),
        ("archive_command", ""),
        ("restore_command", ""),
        ("primary_conninfo", ""),
        ("log_destination", "stderr"),
        ("logging_collector", "off"),
        // How `crate::log` recognises that Postgres is ready.
        ("log_line_prefix", "%m [%p] "),
        ("log_min_messages", "warning"),
        ("lc_messages", "C"),
        ("wal_level", settings.wal_level.as_str()),
    ];
    for (name, value) in fixed {
        set(name, Path::new(value));
    }
    if major >= 15 {
        set("archive_library", Path::new(""));
    }
    if major >= 18 {
        // Where extensions' control files are looked for: the installation's own, and nothing that is writable inside.
        set("extension_control_path", Path::new("$system"));
    }
    arguments
}

/// `unix_socket_directories` is a list, so a directory with a comma or a blank must be one quoted element.
fn quoted_directory(directory: &Path) -> PathBuf {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};

    let mut quoted = vec![b'"'];
    for &byte in directory.as_os_str().as_bytes() {
        if byte == b'"' {
            quoted.push(b'"');
        }
        quoted.push(byte);
    }
    quoted.push(b'"');
    PathBuf::from(OsString::from_vec(quoted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> InstancePaths {
        InstancePaths { data: "/v".into(), config: "/c".into(), socket: "/run/a b,c".into() }
    }

    #[test]
    fn what_must_not_be_changed_from_inside_is_on_the_command_line() {
        let arguments: Vec<String> = arguments(17, &paths(), &InstanceSettings::default())
            .into_iter()
            .map(|argument| argument.into_string().unwrap())
            .collect();
        for wanted in [
            "config_file=/c/postgresql.conf",
            "hba_file=/c/pg_hba.conf",
            "ident_file=/c/pg_ident.conf",
            "listen_addresses=",
            "shared_preload_libraries=",
            "archive_mode=off",
            "archive_library=",
            "logging_collector=off",
            "unix_socket_directories=\"/run/a b,c\"",
        ] {
            assert!(arguments.iter().any(|argument| argument == wanted), "{wanted}: {arguments:?}");
        }
        assert_eq!(arguments.get(0..2).unwrap(), ["-D", "/v"]);
    }

    #[test]
    fn a_setting_that_a_major_does_not_know_is_not_passed_to_it() {
        let has = |major, name: &str| {
            arguments(major, &paths(), &InstanceSettings::default())
                .iter()
                .any(|argument| argument.to_str().unwrap().starts_with(name))
        };
        assert!(!has(14, "archive_library"));
        assert!(!has(17, "extension_control_path"));
        assert!(has(18, "extension_control_path"));
    }
}
