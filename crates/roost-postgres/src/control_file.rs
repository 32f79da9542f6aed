//! What a cluster says of itself while no Postgres runs on it: its control file (`global/pg_control`).
//!
//! The layout is that of `ControlFileData` for versions 14 to 18 on 64-bit machines, in the machine's byte order; the
//! fields read here lie at the same place in all of them. Only the checksum's place moves, and it is found by trying: it
//! is where the CRC-32C of everything before it is stored.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

mod rewrite;
pub mod wal;

pub use rewrite::{copy_with_system_identifier, set_system_identifier};

/// The control file's path inside a data directory.
pub const RELATIVE_PATH: &str = "global/pg_control";

/// The size of the file; what is meaningful is at its beginning, the rest is zeros.
const FILE_BYTES: usize = 8192;
/// The checksum is searched from here,
const CRC_SEARCH_FROM: usize = 200;
/// to here, on every fourth byte.
const CRC_SEARCH_TO: usize = 400;

/// How often a control file that is just being written is read again.
const READ_ATTEMPTS: u32 = 3;

mod offset {
    pub(super) const SYSTEM_IDENTIFIER: usize = 0;
    pub(super) const CONTROL_VERSION: usize = 8;
    pub(super) const CATALOG_VERSION: usize = 12;
    pub(super) const STATE: usize = 16;
    pub(super) const CHECKPOINT: usize = 32;
    pub(super) const CHECKPOINT_TIMELINE: usize = 48;
    pub(super) const NEXT_XID: usize = 64;
    pub(super) const OLDEST_XID: usize = 84;
    pub(super) const FLOAT_FORMAT: usize = 208;
    pub(super) const WAL_SEGMENT_BYTES: usize = 228;
    pub(super) const DATA_CHECKSUM_VERSION: usize = 252;
}

/// A number that Postgres stores so that a reader can tell whether it understands the layout and the byte order.
const FLOAT_FORMAT: f64 = 1_234_567.0;

/// What Postgres last wrote of a cluster's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// Being initialised.
    Starting,
    /// Shut down cleanly: nothing has to be recovered.
    ShutDown,
    /// Shut down cleanly while it was a standby.
    ShutDownInRecovery,
    /// Was shutting down, and either still is or was cut short.
    ShuttingDown,
    /// Was recovering from a crash.
    CrashRecovery,
    /// Was a standby, or recovering from an archive.
    ArchiveRecovery,
    /// Running, or it crashed.
    Running,
}

impl ClusterState {
    const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Starting,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::CrashRecovery,
            5 => Self::ArchiveRecovery,
            6 => Self::Running,
            _ => return None,
        })
    }

    /// Whether the files are consistent without recovery.
    pub const fn is_clean(self) -> bool {
        matches!(self, Self::ShutDown | Self::ShutDownInRecovery)
    }
}

/// What a control file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster's own number, by which WAL knows where it belongs.
    pub system_identifier: u64,
    /// The version of the control file's layout (1300 for Postgres 13 to 17, 1800 for 18).
    pub control_version: u32,
    /// The version of the system catalogs, another one for every major.
    pub catalog_version: u32,
    /// The cluster's state.
    pub state: ClusterState,
    /// Where in the WAL the last checkpoint record begins.
    pub checkpoint: u64,
    /// The timeline of that checkpoint.
    pub timeline: u32,
    /// The next transaction id at that checkpoint, epoch included.
    pub next_xid: u64,
    /// The oldest transaction id that any row may carry, at that checkpoint.
    pub oldest_xid: u32,
    /// The size of a WAL segment, in bytes.
    pub wal_segment_bytes: u32,
    /// 0 without data checksums.
    pub data_checksum_version: u32,
    /// Where the file's checksum is.
    crc_offset: usize,
}

/// Why a control file or the WAL beside it could not be read or rewritten.
#[derive(Debug, thiserror::Error)]
pub enum ControlFileError {
    /// The disk failed, or the file does not exist.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// The content is not a control file's, or its checksum is wrong.
    #[error("{path} is damaged: {detail}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The cluster was not shut down cleanly, and what was asked for needs that.
    #[error("the cluster in {path} is not shut down cleanly (its state is {state:?})")]
    NotShutDown {
        /// The data directory.
        path: PathBuf,
        /// Its state.
        state: ClusterState,
    },
}

impl ControlFile {
    /// Reads the control file of the cluster in `pgdata`.
    ///
    /// A running Postgres rewrites the file in place now and then; a reading that met such a moment is repeated.
    ///
    /// # Errors
    /// [`ControlFileError`].
    pub fn read(pgdata: &Path) -> Result<Self, ControlFileError> {
        let path = pgdata.join(RELATIVE_PATH);
        let mut attempt = 1;
        loop {
            let content =
                read_bounded(&path).map_err(|source| ControlFileError::Io { path: path.clone(), source })?;
            match Self::parse(&content) {
                Ok(control) => return Ok(control),
                Err(_) if attempt < READ_ATTEMPTS => attempt += 1,
                Err(detail) => return Err(ControlFileError::Damaged { path, detail: detail.to_owned() }),
            }
        }
    }

    /// Parses a control file's content.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(content: &[u8]) -> Result<Self, &'static str> {
        const SHORT: &str = "it is too short";
        let number = |at| u32_at(content, at).ok_or(SHORT);
        let long = |at| u64_at(content, at).ok_or(SHORT);
        let crc_offset = find_crc(content).ok_or("its checksum is wrong")?;
        let float = f64::from_bits(long(offset::FLOAT_FORMAT)?);
        if float.to_bits() != FLOAT_FORMAT.to_bits() {
            return Err("its layout or byte order is not one of Postgres 14 to 18 on this machine");
        }
        let wal_segment_bytes = number(offset::WAL_SEGMENT_BYTES)?;
        if !wal_segment_bytes.is_power_of_two() || !(1 << 20..=1 << 30).contains(&wal_segment_bytes) {
            return Err("its WAL segment size is impossible");
        }
        Ok(Self {
            system_identifier: long(offset::SYSTEM_IDENTIFIER)?,
            control_version: number(offset::CONTROL_VERSION)?,
            catalog_version: number(offset::CATALOG_VERSION)?,
            state: ClusterState::from_number(number(offset::STATE)?).ok_or("its state is unknown")?,
            checkpoint: long(offset::CHECKPOINT)?,
            timeline: number(offset::CHECKPOINT_TIMELINE)?,
            next_xid: long(offset::NEXT_XID)?,
            oldest_xid: number(offset::OLDEST_XID)?,
            wal_segment_bytes,
            data_checksum_version: number(offset::DATA_CHECKSUM_VERSION)?,
            crc_offset,
        })
    }

    /// The age of the oldest transaction id at the last checkpoint, in transactions.
    pub fn xid_age(&self) -> u32 {
        // Transaction ids live on a circle; the low half of the next one is where it is on it.
        let next = (self.next_xid & u64::from(u32::MAX)) as u32;
        next.wrapping_sub(self.oldest_xid)
    }

    /// `content` with another system identifier, and with the checksum that goes with it. `content` is what this value was
    /// parsed from.
    fn with_system_identifier(&self, content: &[u8], id: u64) -> Option<Vec<u8>> {
        let mut changed = content.to_vec();
        changed
            .get_mut(offset::SYSTEM_IDENTIFIER..)?
            .first_chunk_mut::<8>()?
            .copy_from_slice(&id.to_ne_bytes());
        let crc = crc32c::crc32c(changed.get(..self.crc_offset)?);
        changed.get_mut(self.crc_offset..)?.first_chunk_mut::<4>()?.copy_from_slice(&crc.to_ne_bytes());
        Some(changed)
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut content = Vec::with_capacity(FILE_BYTES);
    fs::File::open(path)?.take(FILE_BYTES as u64).read_to_end(&mut content)?;
    Ok(content)
}

fn find_crc(content: &[u8]) -> Option<usize> {
    (CRC_SEARCH_FROM..=CRC_SEARCH_TO).step_by(4).find(|&at| {
        let stored = u32_at(content, at);
        stored.is_some() && stored == content.get(..at).map(crc32c::crc32c)
    })
}

fn u32_at(content: &[u8], at: usize) -> Option<u32> {
    content.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

fn u64_at(content: &[u8], at: usize) -> Option<u64> {
    content.get(at..)?.first_chunk().copied().map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A control file in the layout of those versions whose checksum is at `crc_offset`.
    fn content(crc_offset: usize) -> Vec<u8> {
        let mut content = vec![0; FILE_BYTES];
        let mut put = |at: usize, bytes: &[u8]| content[at..at + bytes.len()].copy_from_slice(bytes);
        put(offset::SYSTEM_IDENTIFIER, &42_u64.to_ne_bytes());
        put(offset::CONTROL_VERSION, &1300_u32.to_ne_bytes());
        put(offset::STATE, &1_u32.to_ne_bytes());
        put(offset::NEXT_XID, &(7_u64 << 32 | 1000).to_ne_bytes());
        put(offset::OLDEST_XID, &(u32::MAX - 99).to_ne_bytes());
        put(offset::FLOAT_FORMAT, &FLOAT_FORMAT.to_ne_bytes());
        put(offset::WAL_SEGMENT_BYTES, &(4_u32 << 20).to_ne_bytes());
        let crc = crc32c::crc32c(&content[..crc_offset]);
        content[crc_offset..crc_offset + 4].copy_from_slice(&crc.to_ne_bytes());
        content
    }

    #[test]
    fn the_checksum_is_found_where_each_version_has_it() {
        for crc_offset in [288, 292] {
            let control = ControlFile::parse(&content(crc_offset)).unwrap();
            assert_eq!((control.system_identifier, control.crc_offset), (42, crc_offset));
            assert!(control.state.is_clean());
        }
    }

    #[test]
    fn the_age_of_transactions_goes_round() {
        assert_eq!(ControlFile::parse(&content(288)).unwrap().xid_age(), 1100);
    }

    #[test]
    fn a_changed_identifier_has_a_checksum_that_fits() {
        let before = content(288);
        let control = ControlFile::parse(&before).unwrap();
        let after = control.with_system_identifier(&before, u64::MAX).unwrap();
        let changed = ControlFile::parse(&after).unwrap();
        assert_eq!(changed, ControlFile { system_identifier: u64::MAX, ..control });
    }

    proptest! {
        #[test]
        fn damage_is_an_error(at in 0_usize..292, flip in 1_u8..) {
            let mut damaged = content(288);
            damaged[at] ^= flip;
            prop_assert!(ControlFile::parse(&damaged).is_err());
        }

        #[test]
        fn nothing_that_is_read_makes_it_panic(content in proptest::collection::vec(any::<u8>(), 0..500)) {
            let _ = ControlFile::parse(&content);
        }
    }
}
