//! The configuration of a node: defaults, then `roost.toml`, then environment variables, then flags; the later wins.
//!
//! Each layer is a TOML table of the same shape; they are laid over one another and read once into [`Config`], so that
//! a wrong value gets the same error wherever it came from. What cannot be wrong by its type alone is checked by
//! [`Config::validate`].

mod flags;
mod keys;
mod print;
mod value;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

pub(crate) use flags::ConfigFlags;
pub(crate) use print::default_file;
pub(crate) use value::{Auto, Cores, HttpAddress, LogFormat, Rate, Size, Span};

use roost_api::MIN_STORAGE_BYTES;
use roost_api::units::Idle;
use roost_postgres::module::{MAX_MODULES, ModuleName};
use roost_postgres::settings::MIN_MEMORY_BYTES;
use roost_postgres::{NEWEST_MAJOR, OLDEST_MAJOR};

/// What `limits.xid_age` can be. Autovacuum begins at 200 million, so vacuuming brings an age below that and no further.
const XID_AGES: std::ops::RangeInclusive<u64> = 400_000_000..=2_000_000_000;

/// A node's whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    #[serde(default = "default_data")]
    pub(crate) data: PathBuf,
    #[serde(default = "default_run")]
    pub(crate) run: PathBuf,
    /// Empty is the default: loopback of both families, as far as the machine has them.
    #[serde(default)]
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) http: HttpAddress,
    #[serde(default)]
    pub(crate) host: Option<String>,
    pub(crate) node_user: String,
    pub(crate) purge_after: Span,
    pub(crate) gateway: Gateway,
    pub(crate) tls: Tls,
    pub(crate) postgres: Postgres,
    pub(crate) defaults: Defaults,
    pub(crate) limits: Limits,
    pub(crate) shutdown: Shutdown,
    pub(crate) log: Log,
}

/// `[gateway]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Gateway {
    pub(crate) workers: Auto<usize>,
    pub(crate) require_tls: Auto<bool>,
    pub(crate) startup_deadline: Span,
    pub(crate) connect_deadline: Span,
}

/// `[tls]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    #[serde(default)]
    pub(crate) certificate: Option<PathBuf>,
    #[serde(default)]
    pub(crate) key: Option<PathBuf>,
}

/// `[postgres]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Postgres {
    pub(crate) installations: Vec<PathBuf>,
    pub(crate) default_major: Auto<u16>,
    pub(crate) extensions: Vec<ModuleName>,
    pub(crate) preload: Vec<ModuleName>,
}

/// `[defaults]`: settings of databases that have none of their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Defaults {
    pub(crate) idle_freeze: Idle,
    pub(crate) idle_stop: Idle,
    pub(crate) memory: Size,
    pub(crate) storage: Size,
    pub(crate) cpu: Cores,
    pub(crate) max_connections: u32,
}

/// `[limits]`: bounds of the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    pub(crate) memory_budget: Auto<Size>,
    pub(crate) concurrent_starts: Auto<usize>,
    pub(crate) start_deadline: Span,
    pub(crate) stop_deadline: Span,
    pub(crate) maintenance_budget: Span,
    pub(crate) storage_reserve: Size,
    pub(crate) xid_age: u64,
    pub(crate) max_sessions: usize,
    pub(crate) unauthenticated_per_address: u32,
    pub(crate) failed_logins_per_address: Rate,
    pub(crate) failed_logins_per_address_and_database: Rate,
    pub(crate) failed_logins_per_database: Rate,
    pub(crate) failed_login_delay: Span,
    pub(crate) cancels_per_address: Rate,
}

/// `[shutdown]`: deadlines of a clean end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shutdown {
    pub(crate) drain: Span,
    pub(crate) deadline: Span,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Log {
    pub(crate) level: String,
    pub(crate) format: LogFormat,
}

impl Config {
    /// Reads all layers: defaults, the file (if any), environment variables, flags. `run` is the flag of all commands.
    pub(crate) fn load(file: Option<&Path>, flags: &ConfigFlags, run: Option<&Path>) -> anyhow::Result<Self> {
        let mut merged = print::defaults();
        if let Some(path) = file {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let table: toml::Table = text.parse().with_context(|| format!("in {}", path.display()))?;
            overlay(&mut merged, table);
        }
        overlay(&mut merged, flags.table().clone());
        if let Some(run) = run {
            let run = run.to_str().with_context(|| format!("{} is not UTF-8", run.display()))?;
            merged.insert(keys::RUN.to_owned(), toml::Value::String(run.to_owned()));
        }
        let config: Self = merged.try_into().context("the configuration is wrong")?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what types cannot.
    fn validate(&self) -> anyhow::Result<()> {
        if self.tls.certificate.is_some() != self.tls.key.is_some() {
            bail!("tls.certificate and tls.key belong together: set both or none");
        }
        if self.listen.len() > 64 {
            bail!("listen has {} addresses, but at most 64 are allowed", self.listen.len());
        }
        for (key, names) in
            [("postgres.extensions", &self.postgres.extensions), ("postgres.preload", &self.postgres.preload)]
        {
            if names.len() > MAX_MODULES {
                bail!("{key} has {} names, but at most {MAX_MODULES} are allowed", names.len());
            }
        }
        at_least("defaults.memory", self.defaults.memory.0, MIN_MEMORY_BYTES)?;
        at_least("defaults.storage", self.defaults.storage.0, MIN_STORAGE_BYTES)?;
        if let Auto::Value(budget) = self.limits.memory_budget {
            at_least("limits.memory_budget", budget.0, self.defaults.memory.0)?;
        }
        for (key, count) in [
            ("limits.max_sessions", Some(self.limits.max_sessions)),
            ("gateway.workers", self.gateway.workers.value()),
            ("limits.concurrent_starts", self.limits.concurrent_starts.value()),
        ] {
            if count == Some(0) {
                bail!("{key} is 0, but must be at least 1");
            }
        }
        if !(10..=10_000).contains(&self.defaults.max_connections) {
            bail!("defaults.max_connections is {}, but must be 10 to 10000", self.defaults.max_connections);
        }
        if !XID_AGES.contains(&self.limits.xid_age) {
            let (least, most) = XID_AGES.into_inner();
            bail!("limits.xid_age is {}, but must be {least} to {most}", self.limits.xid_age);
        }
        let majors = OLDEST_MAJOR..=NEWEST_MAJOR;
        if self.postgres.default_major.value().is_some_and(|major| !majors.contains(&major)) {
            bail!("postgres.default_major must be {OLDEST_MAJOR} to {NEWEST_MAJOR}, or \"auto\"");
        }
        for (key, span) in [
            ("gateway.connect_deadline", self.gateway.connect_deadline),
            ("gateway.startup_deadline", self.gateway.startup_deadline),
            ("limits.start_deadline", self.limits.start_deadline),
            ("limits.stop_deadline", self.limits.stop_deadline),
            ("shutdown.deadline", self.shutdown.deadline),
        ] {
            if span.0 < Duration::from_millis(100) {
                bail!("{key} is {span}, but must be at least 100ms");
            }
        }
        tracing_subscriber::EnvFilter::try_new(&self.log.level)
            .with_context(|| format!("log.level `{}` is not a level or a filter", self.log.level))?;
        Ok(())
    }

    /// Makes paths absolute, because warden and node may be started from elsewhere later.
    pub(crate) fn with_absolute_paths(mut self) -> anyhow::Result<Self> {
        let optional = [self.tls.certificate.as_mut(), self.tls.key.as_mut()].into_iter().flatten();
        for path in [&mut self.data, &mut self.run]
            .into_iter()
            .chain(optional)
            .chain(&mut self.postgres.installations)
        {
            *path =
                std::path::absolute(&*path).with_context(|| format!("{} is not a path", path.display()))?;
        }
        Ok(self)
    }
}

fn at_least(key: &str, bytes: u64, least: u64) -> anyhow::Result<()> {
    if bytes < least {
        bail!("{key} is {}, but must be at least {}", Size(bytes), Size(least));
    }
    Ok(())
}

/// Lays one table over another: tables are merged, everything else is replaced.
fn overlay(base: &mut toml::Table, upper: toml::Table) {
    for (key, value) in upper {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => overlay(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Whether this process is root.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Where data is unless told.
fn default_data() -> PathBuf {
    if is_root() {
        return PathBuf::from("/var/lib/roost");
    }
    absolute_variable("XDG_DATA_HOME")
        .or_else(|| absolute_variable("HOME").map(|home| home.join(".local/share")))
        .unwrap_or_else(user_folder)
        .join("roost")
}

/// Where sockets are unless told; also where the command line looks for its node.
pub(crate) fn default_run() -> PathBuf {
    if is_root() {
        return PathBuf::from("/run/roost");
    }
    absolute_variable("XDG_RUNTIME_DIR").unwrap_or_else(user_folder).join("roost")
}

/// A directory in an environment variable; one that is relative is ignored, as the XDG specification says.
fn absolute_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// A directory for a user who has no place of their own.
fn user_folder() -> PathBuf {
    PathBuf::from(format!("/tmp/roost-{}", rustix::process::geteuid().as_raw()))
}

#[cfg(test)]
mod tests;
