//! A volume: the files of one database. Its name, where it lies on disk, and the manifest that says what it was made
//! from.
//!
//! This module knows names and the manifest only. Who mounts, locks and owns the files is the warden's business.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub mod layout;
pub mod manifest;

pub use layout::Layout;
pub use manifest::{Manifest, ManifestError, VolumeKind};

/// The name of a volume, which is its database's id: `db_` and 20 characters of `a-z2-7`. Always safe as one path
/// component.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId([u8; 23]);

/// A text that is not a volume's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a volume id: expected `db_` and 20 characters of a-z and 2-7")]
pub struct InvalidVolumeId;

impl VolumeId {
    /// The whole name.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The two characters that choose its folder below `databases/`.
    pub fn shard(&self) -> &str {
        self.as_str().get(3..5).unwrap_or_default()
    }
}

impl FromStr for VolumeId {
    type Err = InvalidVolumeId;

    fn from_str(text: &str) -> Result<Self, InvalidVolumeId> {
        let bytes = <[u8; 23]>::try_from(text.as_bytes()).map_err(|_| InvalidVolumeId)?;
        let suffix = text.strip_prefix("db_").ok_or(InvalidVolumeId)?;
        if suffix.bytes().all(|byte| byte.is_ascii_lowercase() || (b'2'..=b'7').contains(&byte)) {
            Ok(Self(bytes))
        } else {
            Err(InvalidVolumeId)
        }
    }
}

impl TryFrom<String> for VolumeId {
    type Error = InvalidVolumeId;

    fn try_from(text: String) -> Result<Self, InvalidVolumeId> {
        text.parse()
    }
}

impl From<VolumeId> for String {
    fn from(id: VolumeId) -> Self {
        id.as_str().to_owned()
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_id_is_db_and_twenty_base32_characters() {
        let id: VolumeId = "db_abcdefghij234567klmn".parse().unwrap();
        assert_eq!(id.as_str(), "db_abcdefghij234567klmn");
        assert_eq!(id.shard(), "ab");
        for wrong in
            ["", "db_", "db_abcdefghij234567klm", "db_abcdefghij234567klmno", "db_abcdefghij234567klm1"]
        {
            assert_eq!(wrong.parse::<VolumeId>(), Err(InvalidVolumeId), "{wrong}");
        }
        assert!("db_../../../../etc/pass".parse::<VolumeId>().is_err());
        assert!("DB_abcdefghij234567klmn".parse::<VolumeId>().is_err());
        assert!("db_äbcdefghij234567klm".parse::<VolumeId>().is_err());
    }

    #[test]
    fn a_volume_id_travels_as_its_text_and_is_checked_on_arrival() {
        let id: VolumeId = "db_abcdefghij234567klmn".parse().unwrap();
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, "\"db_abcdefghij234567klmn\"");
        assert_eq!(serde_json::from_str::<VolumeId>(&json).unwrap(), id);
        assert!(serde_json::from_str::<VolumeId>("\"db_../x\"").is_err());
    }
}
