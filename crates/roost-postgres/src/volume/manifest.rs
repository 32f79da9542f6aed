//! The manifest: what a volume was made from, as a small JSON file inside it. With the manifest, the template that it
//! names and the volume's files, any machine can run the database.
//!
//! A volume without a readable manifest is damaged or was never finished, and is not started.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use roost_durable::Disk;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::VolumeId;
use crate::template::TemplateName;

/// The manifest's name inside a volume.
pub const FILE_NAME: &str = "manifest.json";

/// The longest manifest that is read, in bytes.
pub const MAX_BYTES: u64 = 64 * 1024;

/// The form that this version writes and reads.
const FORMAT: u32 = 1;

/// What a volume's files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeKind {
    /// A layer over the template that the manifest names: useless without it.
    Layer,
    /// A whole data directory.
    Copy,
}

/// What a volume was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The database that the volume belongs to.
    pub id: VolumeId,
    /// The template that it began as; for a layer, the template that it lies over.
    pub template: TemplateName,
    /// Postgres' major version.
    pub major: u16,
    /// The cluster's own system identifier. Written as text: it does not fit a JSON number everywhere.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// What the files are.
    pub kind: VolumeKind,
    /// The size of a WAL segment, in bytes.
    pub wal_segment_bytes: u32,
    /// When the files first appeared, to the millisecond.
    #[serde(rename = "createdAtMs", with = "epoch_milliseconds")]
    pub created_at: SystemTime,
}

/// Why a manifest could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// There is none: the volume does not exist or its making was cut short.
    #[error("{path} does not exist")]
    Missing {
        /// The manifest's path.
        path: PathBuf,
    },
    /// It is there and is no manifest.
    #[error("{path} is damaged: {detail}")]
    Damaged {
        /// The manifest's path.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// It was written by a newer Roost.
    #[error("{path} has format {format}, and this version reads format {FORMAT}")]
    Format {
        /// The manifest's path.
        path: PathBuf,
        /// The format that it says it has.
        format: u32,
    },
    /// The disk failed.
    #[error("{path}: {source}")]
    Io {
        /// The manifest's path.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    #[serde(flatten)]
    manifest: &'a Manifest,
}

impl Manifest {
    /// Reads the manifest of the volume in directory `volume`.
    ///
    /// # Errors
    /// [`ManifestError`], telling a missing one from a damaged one.
    pub fn read<D: Disk>(disk: &D, volume: &Path) -> Result<Self, ManifestError> {
        let path = volume.join(FILE_NAME);
        let bytes = match disk.read(&path, MAX_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ManifestError::Missing { path });
            }
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                let detail = format!("longer than {MAX_BYTES} bytes");
                return Err(ManifestError::Damaged { path, detail });
            }
            Err(source) => return Err(ManifestError::Io { path, source }),
        };
        Self::parse(&bytes, path)
    }

    fn parse(bytes: &[u8], path: PathBuf) -> Result<Self, ManifestError> {
        let damaged = |error: serde_json::Error| error.to_string();
        match serde_json::from_slice::<FormatOnly>(bytes).map_err(damaged) {
            Ok(FormatOnly { format: FORMAT }) => {}
            Ok(FormatOnly { format }) => return Err(ManifestError::Format { path, format }),
            Err(detail) => return Err(ManifestError::Damaged { path, detail }),
        }
        serde_json::from_slice(bytes)
            .map_err(damaged)
            .map_err(|detail| ManifestError::Damaged { path, detail })
    }

    /// Like [`read`](Self::read), for a caller that is going to count on it: whoever wrote the manifest may have been
    /// killed before it was durable, so it is made so now.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn read_durably<D: Disk>(disk: &D, volume: &Path) -> Result<Self, ManifestError> {
        let manifest = Self::read(disk, volume)?;
        disk.sync_dir(volume).map_err(|source| ManifestError::Io { path: volume.to_owned(), source })?;
        Ok(manifest)
    }

    /// Writes the manifest of the volume in directory `volume`, replacing an older one whole. When this returns `Ok`,
    /// it survives a power cut, and it never survives one without what else had a name in `volume` before.
    ///
    /// # Errors
    /// [`ManifestError::Io`].
    pub fn write<D: Disk>(&self, disk: &D, volume: &Path) -> Result<(), ManifestError> {
        let path = volume.join(FILE_NAME);
        let result = serde_json::to_vec_pretty(&Written { format: FORMAT, manifest: self })
            .map_err(io::Error::from)
            // The volume is declared complete by this file: the others' names must not be lost while it is kept.
            .and_then(|bytes| {
                disk.sync_dir(volume)?;
                roost_durable::replace(disk, &path, &bytes)
            });
        result.map_err(|source| ManifestError::Io { path, source })
    }
}

mod decimal {
    use super::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

mod epoch_milliseconds {
    use super::{Deserialize, Deserializer, Duration, Serializer, SystemTime, UNIX_EPOCH};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        serializer.serialize_u64(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        UNIX_EPOCH
            .checked_add(Duration::from_millis(u64::deserialize(deserializer)?))
            .ok_or_else(|| serde::de::Error::custom("a time that this machine cannot represent"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roost_durable::RealDisk;
    use roost_durable::simulated::{Random, SimulatedDisk};

    fn manifest(system_identifier: u64) -> Manifest {
        Manifest {
            id: "db_abcdefghij234567klmn".parse().unwrap(),
            template: "17-0123456789abcdef".parse().unwrap(),
            major: 17,
            system_identifier,
            kind: VolumeKind::Layer,
            wal_segment_bytes: 4 << 20,
            created_at: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        }
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let volume = tempfile::tempdir().unwrap();
        let written = manifest(u64::MAX);
        written.write(&RealDisk, volume.path()).unwrap();
        assert_eq!(Manifest::read(&RealDisk, volume.path()).unwrap(), written);
    }

    #[test]
    fn a_manifest_on_disk_is_plain_json() {
        let volume = tempfile::tempdir().unwrap();
        manifest(u64::MAX).write(&RealDisk, volume.path()).unwrap();
        let value: serde_json::Value =
            serde_json::from_slice(&std::fs::read(volume.path().join(FILE_NAME)).unwrap()).unwrap();
        let expected = serde_json::json!({
            "format": 1,
            "id": "db_abcdefghij234567klmn",
            "template": "17-0123456789abcdef",
            "major": 17,
            "systemIdentifier": "18446744073709551615",
            "kind": "layer",
            "walSegmentBytes": 4_194_304,
            "createdAtMs": 1_700_000_000_123_u64,
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn a_missing_manifest_is_told_from_a_damaged_one() {
        let volume = tempfile::tempdir().unwrap();
        let read = || Manifest::read(&RealDisk, volume.path()).unwrap_err();
        let put = |bytes: &[u8]| std::fs::write(volume.path().join(FILE_NAME), bytes).unwrap();
        assert!(matches!(read(), ManifestError::Missing { .. }));
        for damaged in [&b""[..], b"{", b"{\"format\":1}", b"[]", b"\xff\xfe", &vec![b' '; 70_000]] {
            put(damaged);
            assert!(matches!(read(), ManifestError::Damaged { .. }), "{damaged:?}");
        }
        put(b"{\"format\":2,\"else\":true}");
        assert!(matches!(read(), ManifestError::Format { format: 2, .. }));
    }

    #[test]
    fn a_manifest_is_the_old_or_the_new_one_after_ten_thousand_power_cuts() {
        let volume = Path::new("/volume");
        for seed in 0..10_000 {
            let disk = SimulatedDisk::new(seed);
            roost_durable::create_dir(&disk, volume).unwrap();
            disk.cut_power_after(Random::new(seed).below(25));
            let mut acknowledged = None;
            for version in 0.. {
                if manifest(version).write(&disk, volume).is_err() {
                    break;
                }
                acknowledged = Some(version);
            }
            disk.reboot();
            match (acknowledged, Manifest::read(&disk, volume)) {
                (None, Err(ManifestError::Missing { .. })) => {}
                (None, Ok(found)) => assert_eq!(found, manifest(0), "seed {seed}"),
                (Some(version), Ok(found)) => {
                    assert!(
                        found == manifest(version) || found == manifest(version + 1),
                        "seed {seed}: {found:?}"
                    );
                }
                (acknowledged, Err(error)) => {
                    panic!("seed {seed}: acknowledged {acknowledged:?}, then {error}")
                }
            }
        }
    }

    /// Makes a volume in the order of the warden: what was left of an unfinished one goes, the directories and files
    /// are made and synced, and the manifest comes last. One that is complete is left as it is.
    fn make(disk: &SimulatedDisk, volume: &Path) -> Result<(), ManifestError> {
        match Manifest::read_durably(disk, volume) {
            Err(ManifestError::Missing { .. }) => {}
            found => return found.map(drop),
        }
        let files = volume.join("upper");
        let fill = || {
            roost_durable::ensure_dir(disk, volume)?;
            roost_durable::remove(disk, &volume.join(FILE_NAME))?;
            roost_durable::ensure_dir(disk, &files)?;
            let mut file = disk.create(&files.join("pg_control"))?;
            disk.write(&mut file, &[7; 8_192])?;
            disk.sync(&file)?;
            disk.sync_dir(&files)?;
            disk.sync_dir(Path::new("/"))
        };
        fill().map_err(|source| ManifestError::Io { path: files.clone(), source })?;
        manifest(1).write(disk, volume)
    }

    #[test]
    fn a_volume_with_a_manifest_is_whole_and_stays_after_ten_thousand_power_cuts() {
        let volume = Path::new("/volume");
        for seed in 0..10_000 {
            let disk = SimulatedDisk::new(seed);
            let mut random = Random::new(seed);
            // Killed somewhere, then made again until the power goes.
            disk.cut_power_after(random.below(25));
            let killed = make(&disk, volume);
            disk.go_on();
            disk.cut_power_after(random.below(25));
            let cut = make(&disk, volume);
            disk.reboot();
            match Manifest::read(&disk, volume) {
                Ok(_) => {
                    let file = disk.read(&volume.join("upper/pg_control"), u64::MAX);
                    assert_eq!(file.ok(), Some(vec![7; 8_192]), "seed {seed}");
                }
                Err(ManifestError::Missing { .. }) => {
                    assert!(killed.is_err() && cut.is_err(), "seed {seed}: it was complete, and is gone");
                }
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
    }
}
