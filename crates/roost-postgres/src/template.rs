//! Templates: immutable, freshly initialised clusters that new databases begin as.
//!
//! A template is made once for each installation and [recipe], by `initdb` and single-user Postgres, next to its
//! final place; when it is complete, shut down cleanly and synced, it is renamed into place in one step. A directory of a
//! template's name is therefore always whole. Nothing ever changes it afterwards.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::control_file::ControlFileError;
use crate::installation::bounded::RunError;
use crate::installation::{Installation, hex};
use crate::{NEWEST_MAJOR, OLDEST_MAJOR};

mod build;
mod reach;
pub mod recipe;

pub use build::build;

/// How a template that is being made is named until it is complete.
const UNFINISHED_PREFIX: &str = ".unfinished-";

/// The name of a template: its major version and 16 hexadecimal digits of a hash of binaries and recipe, like
/// `17-0123456789abcdef`. Always safe as one path component.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TemplateName(String);

/// A text that is not a template's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a template's name: expected a major version, `-` and 16 hexadecimal digits")]
pub struct InvalidTemplateName;

impl TemplateName {
    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The major version of Postgres.
    pub fn major(&self) -> u16 {
        self.0.split_once('-').and_then(|(major, _)| major.parse().ok()).unwrap_or_default()
    }
}

impl FromStr for TemplateName {
    type Err = InvalidTemplateName;

    fn from_str(text: &str) -> Result<Self, InvalidTemplateName> {
        let (major, hash) = text.split_once('-').ok_or(InvalidTemplateName)?;
        let number: u16 = major.parse().map_err(|_| InvalidTemplateName)?;
        let canonical = number.to_string() == major && (OLDEST_MAJOR..=NEWEST_MAJOR).contains(&number);
        let digits = hash.len() == 16
            && hash.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if canonical && digits { Ok(Self(text.to_owned())) } else { Err(InvalidTemplateName) }
    }
}

impl TryFrom<String> for TemplateName {
    type Error = InvalidTemplateName;

    fn try_from(text: String) -> Result<Self, InvalidTemplateName> {
        text.parse()
    }
}

impl From<TemplateName> for String {
    fn from(name: TemplateName) -> Self {
        name.0
    }
}

impl fmt::Display for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of the template that an installation makes: another one for other binaries, another C library, other ICU
/// libraries, or another recipe.
pub fn name(installation: &Installation) -> TemplateName {
    let mut hash = Context::new(&SHA256);
    hash.update(installation.fingerprint.as_bytes());
    hash.update(recipe::text(installation.major).as_bytes());
    let digest = hash.finish();
    let digits = hex(digest.as_ref().get(..8).unwrap_or_default());
    TemplateName(format!("{}-{digits}", installation.major))
}

/// Removes what templates that were never finished left behind in `templates`. Nothing may be building there.
///
/// # Errors
/// What the disk says. A directory that does not exist is no error.
pub fn remove_unfinished(templates: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(templates) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED_PREFIX) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Why a template could not be made. Nothing is left in its place.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// Something of that name is already there.
    #[error("{0} exists")]
    Exists(PathBuf),
    /// The destination has no parent directory, or no name.
    #[error("{0} cannot hold a template: its parent directory must exist")]
    Destination(PathBuf),
    /// A directory could not be read, written or synced.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// The directory could not be made reachable for the user that the cluster belongs to.
    #[error("{path} could not be made reachable for uid {uid}: {source}")]
    Reach {
        /// The directory.
        path: PathBuf,
        /// The user.
        uid: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// `initdb` failed.
    #[error("initdb: {0}")]
    Initdb(RunError),
    /// A step of the recipe failed.
    #[error("the recipe in database {database}: {error}")]
    Recipe {
        /// The database that it was applied to.
        database: &'static str,
        /// How Postgres ended.
        error: RunError,
    },
    /// The finished cluster is not as it should be.
    #[error("the new cluster is not usable: {0}")]
    Unusable(String),
    /// The finished cluster's control file cannot be read.
    #[error(transparent)]
    Control(#[from] ControlFileError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installation() -> Installation {
        Installation {
            major: 17,
            version: "17.5".into(),
            bin: "/b".into(),
            share: "/s".into(),
            lib: "/l".into(),
            fingerprint: "f".into(),
            visible_paths: Vec::new(),
        }
    }

    #[test]
    fn a_templates_name_follows_its_binaries() {
        let first = name(&installation());
        assert_eq!(first, name(&installation()));
        assert_eq!(first.major(), 17);
        assert_eq!(first.as_str().parse::<TemplateName>().unwrap(), first);
        let other = Installation { fingerprint: "g".into(), ..installation() };
        assert_ne!(first, name(&other));
    }

    #[test]
    fn a_templates_name_is_one_path_component() {
        for wrong in [
            "",
            "17",
            "17-",
            "17-0123456789abcde",
            "17-0123456789ABCDEF",
            "13-0123456789abcdef",
            "19-0123456789abcdef",
            "017-0123456789abcdef",
            "17-../../../../..",
            "../17-0123456789abcdef",
            "+17-0123456789abcdef",
        ] {
            assert_eq!(wrong.parse::<TemplateName>(), Err(InvalidTemplateName), "{wrong}");
        }
    }

    #[test]
    fn only_what_was_never_finished_is_removed() {
        let templates = tempfile::tempdir().unwrap();
        let finished = templates.path().join("17-0123456789abcdef");
        let unfinished = templates.path().join(format!("{UNFINISHED_PREFIX}17-0123456789abcdef-1"));
        fs::create_dir(&finished).unwrap();
        fs::create_dir_all(unfinished.join("base/1")).unwrap();
        remove_unfinished(templates.path()).unwrap();
        assert!(finished.exists());
        assert!(!unfinished.exists());
        remove_unfinished(&templates.path().join("missing")).unwrap();
    }
}
