//! What an operator adds to what Postgres gives an owner: extensions that it does not trust, and libraries that are loaded
//! when an instance starts.
//!
//! Whether somebody who is no superuser may install an extension is one line of its control file, `trusted`. An instance
//! is shown control files that have that line, in place of the installation's own; its scripts then run as the bootstrap
//! superuser, as those of any trusted extension do. The files are made from what is installed at each start, so neither
//! an upgrade of a package nor a change of the list leaves an old one behind. A library is preloaded where it is
//! installed, because a Postgres that cannot find one does not start.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Installation;

/// How many extensions, and how many libraries, one node may list.
pub const MAX_MODULES: usize = 64;

/// The longest name, in bytes: what Postgres keeps of any name.
const MAX_NAME: usize = 63;

/// The largest control file that is read, in bytes; they have some hundred.
const MAX_CONTROL: u64 = 16 * 1024;

/// The name of an extension or a library, which is also the beginning of its files' names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModuleName(String);

/// A text that names neither an extension nor a library.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not the name of an extension or a library: those have 1 to {MAX_NAME} letters, digits, `_` and `-`, none of \
     the last at an end or two in a row"
)]
pub struct InvalidModuleName(String);

impl ModuleName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModuleName {
    type Err = InvalidModuleName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        let is_name = (1..=MAX_NAME).contains(&text.len())
            && text.bytes().all(is_known)
            && !text.starts_with('-')
            && !text.ends_with('-')
            && !text.contains("--");
        if is_name { Ok(Self(text.to_owned())) } else { Err(InvalidModuleName(text.to_owned())) }
    }
}

impl TryFrom<String> for ModuleName {
    type Error = InvalidModuleName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ModuleName> for String {
    fn from(name: ModuleName) -> Self {
        name.0
    }
}

impl fmt::Display for ModuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an operator adds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Modules {
    /// The extensions that owners may install although Postgres does not trust them.
    pub extensions: Vec<ModuleName>,
    /// The libraries that an instance loads when it starts, in their order.
    pub preload: Vec<ModuleName>,
}

/// A control file as an instance is to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// Its name in [`Installation::extensions`].
    pub name: String,
    /// Its content.
    pub content: Vec<u8>,
}

impl Installation {
    /// The directory of the extensions' control files and scripts.
    pub fn extensions(&self) -> PathBuf {
        self.share.join("extension")
    }

    /// Whether an extension is installed.
    pub fn has_extension(&self, name: &ModuleName) -> bool {
        self.extensions().join(format!("{name}.control")).is_file()
    }

    /// Whether a library is installed.
    pub fn has_library(&self, name: &ModuleName) -> bool {
        self.lib.join(format!("{name}.so")).is_file()
    }

    /// The named libraries, as far as they are installed, as `shared_preload_libraries` has them.
    pub fn preloading(&self, names: &[ModuleName]) -> String {
        let there = names.iter().filter(|name| self.has_library(name)).map(ModuleName::as_str);
        there.collect::<Vec<_>>().join(",")
    }

    /// The control files of the named extensions, as far as they are installed, each saying that it is trusted. Those of
    /// single versions (`NAME--VERSION.control`), whose lines outrank the main one's, are among them.
    ///
    /// # Errors
    /// When a file cannot be read, or is larger than a control file can be.
    pub fn trusting(&self, names: &[ModuleName]) -> io::Result<Vec<ControlFile>> {
        let mut files = Vec::new();
        if names.is_empty() {
            return Ok(files);
        }
        for entry in fs::read_dir(self.extensions())? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            if !names.iter().any(|extension| is_control_of(&name, extension)) {
                continue;
            }
            let mut content = Vec::new();
            let path = self.extensions().join(&name);
            File::open(&path)?.take(MAX_CONTROL + 1).read_to_end(&mut content)?;
            if content.len() as u64 > MAX_CONTROL {
                let detail = format!("{} is larger than {MAX_CONTROL} bytes", path.display());
                return Err(io::Error::other(detail));
            }
            // Of two lines that say the same, Postgres believes the later one.
            content.extend(b"\ntrusted = true\n");
            files.push(ControlFile { name, content });
        }
        Ok(files)
    }
}

/// Whether a file is the control file of an extension, or of one version of it.
fn is_control_of(file: &str, extension: &ModuleName) -> bool {
    file.strip_suffix(".control")
        .and_then(|stem| stem.strip_prefix(extension.as_str()))
        .is_some_and(|version| version.is_empty() || version.starts_with("--"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn name(text: &str) -> ModuleName {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_leads_to_no_other_file() {
        for text in ["pageinspect", "uuid-ossp", "plpython3u", "_x", "a-b-c", &"x".repeat(63)] {
            assert_eq!(name(text).to_string(), text);
        }
        for text in
            ["", "-a", "a-", "a--1.0", "../a", "a/b", "a.b", "a b", "a,b", "a\0", "ä", "*", &"x".repeat(64)]
        {
            assert!(text.parse::<ModuleName>().is_err(), "{text:?}");
        }
        assert!(serde_json::from_str::<ModuleName>("\"a/b\"").is_err());
    }

    fn installation(folder: &Path) -> Installation {
        Installation {
            major: 15,
            version: "15.1".to_owned(),
            bin: PathBuf::new(),
            share: folder.to_owned(),
            lib: folder.to_owned(),
            fingerprint: String::new(),
            visible_paths: Vec::new(),
        }
    }

    #[test]
    fn a_library_that_is_not_installed_keeps_nothing_from_starting() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["one.so", "two.so", "three.sql"] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        let installation = installation(folder.path());
        assert_eq!(installation.preloading(&["two", "three", "one"].map(name)), "two,one");
        assert_eq!(installation.preloading(&[]), "");
    }

    #[test]
    fn listed_extensions_are_trusted_in_all_their_control_files_and_no_others_are() {
        let share = tempfile::tempdir().unwrap();
        let folder = share.path().join("extension");
        fs::create_dir(&folder).unwrap();
        for file in ["a.control", "a--1.0.control", "a--1.0.sql", "ab.control", "b.control"] {
            fs::write(folder.join(file), "trusted = false").unwrap();
        }
        let installation = installation(share.path());
        let mut files = installation.trusting(&[name("a"), name("absent")]).unwrap();
        files.sort_by(|one, other| one.name.cmp(&other.name));
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["a--1.0.control", "a.control"]);
        assert!(files.iter().all(|file| file.content == b"trusted = false\ntrusted = true\n"));
        assert!(installation.has_extension(&name("ab")) && !installation.has_extension(&name("absent")));

        fs::write(folder.join("a.control"), vec![b'#'; 1 << 20]).unwrap();
        assert!(installation.trusting(&[name("a")]).is_err());
        assert_eq!(installation.trusting(&[]).unwrap(), []);
    }
}
