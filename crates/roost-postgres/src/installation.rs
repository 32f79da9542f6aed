//! The Postgres servers that this machine has.
//!
//! Candidates are Debian's `/usr/lib/postgresql/NN/bin`, wherever `pg_config` in `PATH` says, `postgres` in `PATH`, and
//! directories that an operator lists. A candidate counts when its `postgres` says a supported version and its shared
//! files and library directory are where Postgres itself would look for them. Nothing is read from environment
//! variables but `PATH`.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{NEWEST_MAJOR, OLDEST_MAJOR};

pub(crate) mod bounded;
mod elf;
mod fingerprint;
mod libraries;

pub(crate) use fingerprint::hex;

/// How long a program may take to say its version.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// One installed Postgres server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// Its major version.
    pub major: u16,
    /// Its version as it says it (`15.18`, `18beta1`).
    pub version: String,
    /// The directory of `postgres` and `initdb`, without symbolic links.
    pub bin: PathBuf,
    /// The directory of the shared files (`postgres.bki`, `extension/`, ...).
    pub share: PathBuf,
    /// The directory of loadable libraries (`pg_config --pkglibdir`).
    pub lib: PathBuf,
    /// A hash (hex) of what decides whether two installations treat a cluster's bytes alike: the content of `postgres`,
    /// the version of the C library that it links, and the ICU libraries that it links.
    pub fingerprint: String,
    /// The directories and files that a confined root must show, read-only, for this server to run. Some may be symbolic
    /// links (`/lib64`): what they lead to must then be visible under that name. None lies inside another. Besides them
    /// a server needs `/dev` with `shm`, `null` and `urandom`, and `/proc`, from which the loader takes the program's
    /// place when libraries are looked for relative to it.
    pub visible_paths: Vec<PathBuf>,
}

/// Where to look besides the usual places.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiscoverOptions {
    /// Prefixes (with `bin/postgres`) or `bin` directories.
    pub extra: Vec<PathBuf>,
}

/// Why a candidate is no installation.
#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    /// There is no `postgres`, or no `initdb` beside it.
    #[error("{0} is missing or cannot be read: {1}")]
    Missing(PathBuf, io::Error),
    /// A program did not say what it is.
    #[error("{0}: {1}")]
    NoAnswer(PathBuf, bounded::RunError),
    /// It says a version that is not understood.
    #[error("{0} says {1:?}, which is not a version of Postgres")]
    Version(PathBuf, String),
    /// Its version is not supported.
    #[error("{0} is version {1}; supported are {OLDEST_MAJOR} to {NEWEST_MAJOR}")]
    Unsupported(PathBuf, String),
    /// Its shared files or libraries are nowhere to be found.
    #[error("{0} has no {1}; looked in {2:?}")]
    Incomplete(PathBuf, &'static str, Vec<PathBuf>),
    /// The program file is not one that can be examined.
    #[error("{0}: {1}")]
    Program(PathBuf, String),
}

impl Installation {
    /// The server program.
    pub fn postgres(&self) -> PathBuf {
        self.bin.join("postgres")
    }

    /// The program that makes a cluster.
    pub fn initdb(&self) -> PathBuf {
        self.bin.join("initdb")
    }

    /// Examines the installation whose programs are in `bin`.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn examine(bin: &Path) -> Result<Self, InstallationError> {
        let postgres = bin.join("postgres");
        // Debian's /usr/local/bin/postgres and the like are links to the real place, from which Postgres itself finds its
        // other files.
        let postgres =
            fs::canonicalize(&postgres).map_err(|error| InstallationError::Missing(postgres, error))?;
        let bin = postgres.parent().unwrap_or(bin).to_owned();
        let initdb = bin.join("initdb");
        File::open(&initdb).map_err(|error| InstallationError::Missing(initdb, error))?;

        let said = bounded::run(Command::new(&postgres).arg("--version").env_clear(), None, ANSWER_WITHIN)
            .map_err(|error| InstallationError::NoAnswer(postgres.clone(), error))?;
        let (major, version) =
            parse_version(&said).ok_or_else(|| InstallationError::Version(postgres.clone(), said.clone()))?;
        if !(OLDEST_MAJOR..=NEWEST_MAJOR).contains(&major) {
            return Err(InstallationError::Unsupported(postgres, version));
        }

        let share = find(share_candidates(&bin, major), "postgres.bki")
            .map_err(|tried| InstallationError::Incomplete(postgres.clone(), "shared files", tried))?;
        let lib = find(lib_candidates(&bin), "plpgsql.so")
            .map_err(|tried| InstallationError::Incomplete(postgres.clone(), "loadable libraries", tried))?;
        let program = |error: io::Error| InstallationError::Program(postgres.clone(), error.to_string());
        let linked = libraries::resolve(&postgres).map_err(program)?;
        let fingerprint = fingerprint::of(&postgres, &linked).map_err(program)?;
        let visible_paths = visible_paths(&bin, &share, &lib, &linked);
        Ok(Self { major, version, bin, share, lib, fingerprint, visible_paths })
    }
}

/// The installations of this machine: at most one per major, the one with the newest minor version, sorted by major.
/// Of two alike, a listed one comes before Debian's, and Debian's before one in `PATH`. Candidates that cannot be used
/// are passed over and logged.
pub fn discover(options: &DiscoverOptions) -> Vec<Installation> {
    let path: Vec<PathBuf> =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    let mut candidates: Vec<PathBuf> = options.extra.iter().map(|extra| bin_of(extra)).collect();
    candidates.extend((OLDEST_MAJOR..=NEWEST_MAJOR).rev().map(debian_bin));
    candidates.extend(path.iter().filter_map(|directory| pg_config_bin(directory)));
    candidates.extend(path);
    choose(&candidates)
}

fn choose(candidates: &[PathBuf]) -> Vec<Installation> {
    let mut seen = Vec::new();
    let mut newest: BTreeMap<u16, Installation> = BTreeMap::new();
    for candidate in candidates {
        let Ok(postgres) = fs::canonicalize(candidate.join("postgres")) else { continue };
        if seen.contains(&postgres) {
            continue;
        }
        match Installation::examine(candidate) {
            Ok(found) => match newest.get(&found.major) {
                Some(other) if minor(&other.version) >= minor(&found.version) => {}
                _ => drop(newest.insert(found.major, found)),
            },
            Err(error) => tracing::warn!(%error, "a Postgres on this machine is passed over"),
        }
        seen.push(postgres);
    }
    newest.into_values().collect()
}

fn debian_bin(major: u16) -> PathBuf {
    PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"))
}

fn bin_of(extra: &Path) -> PathBuf {
    if extra.join("postgres").is_file() { extra.to_owned() } else { extra.join("bin") }
}

/// Where the `pg_config` in a directory says that the server's programs are.
fn pg_config_bin(directory: &Path) -> Option<PathBuf> {
    let pg_config = directory.join("pg_config");
    if !pg_config.is_file() {
        return None;
    }
    let said = bounded::run(Command::new(&pg_config).arg("--bindir"), None, ANSWER_WITHIN).ok()?;
    Some(PathBuf::from(said.trim_end())).filter(|bin| bin.is_absolute())
}

/// Major and whole version from `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn parse_version(said: &str) -> Option<(u16, String)> {
    let (_, after) = said.split_once("(PostgreSQL) ")?;
    let version = after.split_whitespace().next()?;
    let digits = version.bytes().take_while(u8::is_ascii_digit).count();
    Some((version.get(..digits)?.parse().ok()?, version.to_owned()))
}

/// The minor version; a pre-release (`18beta1`) is older than any.
fn minor(version: &str) -> i64 {
    version.split_once('.').and_then(|(_, minor)| minor.parse().ok()).unwrap_or(-1)
}

fn share_candidates(bin: &Path, major: u16) -> Vec<PathBuf> {
    let mut candidates = Vec::new();
    if bin == debian_bin(major) {
        candidates.push(PathBuf::from(format!("/usr/share/postgresql/{major}")));
    }
    if let Some(prefix) = bin.parent() {
        candidates.extend([
            prefix.join("share/postgresql"),
            prefix.join("share"),
            prefix.join("share/pgsql"),
        ]);
    }
    candidates
}

fn lib_candidates(bin: &Path) -> Vec<PathBuf> {
    bin.parent().map_or_else(Vec::new, |prefix| {
        ["lib/postgresql", "lib", "lib64/postgresql", "lib64/pgsql", "lib64", "lib/pgsql"]
            .map(|relative| prefix.join(relative))
            .into()
    })
}

fn find(candidates: Vec<PathBuf>, file: &str) -> Result<PathBuf, Vec<PathBuf>> {
    match candidates.iter().find(|directory| directory.join(file).is_file()) {
        Some(found) => Ok(found.clone()),
        None => Err(candidates),
    }
}

/// Everything that the server opens outside its data directory: its own directories, the directories of its libraries
/// (whole, because extensions link further ones), the loader and its cache, the machine's time zones (Debian's Postgres
/// has none of its own; among them is a link to `/etc/localtime`, without which `pg_timezone_names` fails), and the C library's locales (libc collations exist in every major, even where the template's
/// own is a builtin one).
fn visible_paths(bin: &Path, share: &Path, lib: &Path, linked: &libraries::Linked) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = vec![bin.to_owned(), share.to_owned(), lib.to_owned()];
    paths.extend(linked.directories.iter().cloned());
    paths.extend(
        ["/usr/share/zoneinfo", "/etc/localtime", "/usr/lib/locale", "/etc/ld.so.cache"]
            .into_iter()
            .map(PathBuf::from)
            .filter(|path| path.exists()),
    );
    paths.sort();
    paths.dedup();
    let all = paths.clone();
    paths.retain(|path| !all.iter().any(|other| other != path && path.starts_with(other)));
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_postgres_says() {
        let parsed = |text| parse_version(text).map(|(major, version)| (major, version, minor(text)));
        assert_eq!(
            parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n").unwrap(),
            (15, "15.18".into())
        );
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1").unwrap(), (18, "18beta1".into()));
        assert_eq!(parsed("psql 15"), None);
        assert_eq!(parsed("postgres (PostgreSQL) "), None);
        assert!(minor("18.0") > minor("18beta1"));
        assert!(minor("15.10") > minor("15.9"));
    }

    #[test]
    fn a_directory_without_a_server_is_passed_over() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(choose(&[empty.path().to_owned()]), []);
    }

    #[test]
    fn a_program_that_is_no_postgres_is_passed_over() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        for name in ["postgres", "initdb"] {
            let path = directory.path().join(name);
            fs::write(&path, "#!/bin/sh\necho hello\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        assert!(matches!(Installation::examine(directory.path()), Err(InstallationError::Version(..))));
        assert_eq!(choose(&[directory.path().to_owned()]), []);
    }
}
