//! Identifiers: a prefix that names the kind, and 20 lower-case base32 characters (100 random bits).
//!
//! They are opaque, unguessable enough to be user names, and valid DNS labels after the prefix. They can only be made
//! by [`generate`](DatabaseId::generate) or by parsing, so a value of one of these types is always well formed: it is
//! safe in a file name, a cgroup name and a log line.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Characters of an identifier after its prefix (RFC 4648 base32, lower case).
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// How many characters follow the prefix.
const RANDOM_LEN: usize = 20;

/// A string that is not an identifier of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind} id: expected `{prefix}` and {RANDOM_LEN} characters of a-z and 2-7")]
pub struct InvalidId {
    kind: &'static str,
    prefix: &'static str,
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; RANDOM_LEN]);

        impl $name {
            /// What every identifier of this kind begins with.
            pub const PREFIX: &'static str = $prefix;

            /// A new random identifier from the operating system's generator.
            pub fn generate() -> Self {
                Self(random_characters())
            }

            /// The characters after the prefix.
            pub fn suffix(&self) -> &str {
                std::str::from_utf8(&self.0).unwrap_or_default()
            }

            /// The identifier with these characters after its prefix.
            ///
            /// # Errors
            /// When they are not what [`suffix`](Self::suffix) gives.
            pub fn from_suffix(suffix: &str) -> Result<Self, InvalidId> {
                <[u8; RANDOM_LEN]>::try_from(suffix.as_bytes())
                    .ok()
                    .filter(|bytes| bytes.iter().all(|byte| ALPHABET.contains(byte)))
                    .map(Self)
                    .ok_or(InvalidId { kind: $kind, prefix: $prefix })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                f.write_str(self.suffix())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let suffix = text.strip_prefix($prefix).unwrap_or_default();
                Self::from_suffix(suffix)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}

identifier!(
    /// A database: what a user creates, one Postgres cluster of its own.
    DatabaseId,
    "database",
    "db_"
);
identifier!(
    /// A project: a named group of databases.
    ProjectId,
    "project",
    "prj_"
);
identifier!(
    /// A connection: a credential of a database. Also the user name that a client logs in with.
    ConnectionId,
    "connection",
    "con_"
);

fn random_characters() -> [u8; RANDOM_LEN] {
    let mut bytes = [0_u8; RANDOM_LEN];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system's random generator works");
    // 256 is a multiple of 32, so the remainder is unbiased.
    bytes.map(|byte| ALPHABET[usize::from(byte % 32)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_survives_its_text_form() {
        let id = DatabaseId::generate();
        assert_eq!(id.to_string().parse::<DatabaseId>(), Ok(id));
        assert_eq!(id.to_string().len(), 23);
        assert_ne!(id, DatabaseId::generate());
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "db_",
            "db_abc",
            "db_ABCDEFGHIJKLMNOPQRST",
            "con_abcdefghijklmnopqrst",
            "db_abcdefghijklmnopqrs1",
            "db_../../../../../etc/pass",
        ] {
            assert!(text.parse::<DatabaseId>().is_err(), "{text}");
        }
    }
}
