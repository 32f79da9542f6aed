//! The user ids that instances run as.
//!
//! Nodes on one machine must not give two instances the same id, so each claims a block of [`BLOCK`] ids by a file in
//! a directory that they share. The file holds the data directory that the block belongs to: the same data directory
//! gets its block back, and a block whose data directory is gone is free again. Within its block a node hands ids out
//! itself, and an id comes back only when nothing of its instance is left.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// User ids in one block.
pub(crate) const BLOCK: u32 = 65_536;

/// The first id of the first block: above the fixed ids of nodes and volumes.
const FIRST: u32 = 1_900_000_000 + BLOCK;

/// Blocks that fit below 2^31, above which some programs take an id for a negative number.
const BLOCKS: u32 = (i32::MAX.cast_unsigned() - FIRST) / BLOCK;

/// The ids of one node's instances.
#[derive(Debug)]
pub(crate) struct Uids {
    first: u32,
    /// Ids from here on were never handed out by this warden.
    fresh: u32,
    /// Ids that came back, the one that rested longest in front.
    returned: VecDeque<u32>,
    /// Ids that adopted instances hold, which `fresh` has yet to pass.
    held: BTreeSet<u32>,
}

impl Uids {
    /// Claims a block for the data directory `data`, in the directory `claims`, which root alone may write.
    pub(crate) fn claim(claims: &Path, data: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).create(claims)?;
        // One node at a time looks for a block.
        let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(claims.join("lock"))?;
        lock.lock()?;
        let mut free = None;
        for block in 0..BLOCKS {
            match fs::read(claims.join(block.to_string())) {
                Ok(owner) if owner == data.as_os_str().as_bytes() => return Ok(Self::new(block)),
                Ok(owner) => {
                    let owner = PathBuf::from(std::ffi::OsString::from_vec(owner));
                    if !owner.join("node.lock").exists() {
                        free = free.or(Some(block));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // Blocks are claimed from below, so nothing of this node's lies beyond.
                    free = free.or(Some(block));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let block =
            free.ok_or_else(|| io::Error::other(format!("all {BLOCKS} blocks of user ids are claimed")))?;
        let path = claims.join(block.to_string());
        let new = claims.join("new");
        let mut file = File::create(&new)?;
        file.write_all(data.as_os_str().as_bytes())?;
        fs::rename(&new, path)?;
        Ok(Self::new(block))
    }

    fn new(block: u32) -> Self {
        let first = FIRST + block * BLOCK;
        Self { first, fresh: first, returned: VecDeque::new(), held: BTreeSet::new() }
    }

    /// An id that no instance has, or `None` if all are in use.
    pub(crate) fn take(&mut self) -> Option<u32> {
        // An id that never ran anything, first: a process that somehow outlived its group then meets no successor.
        while self.fresh < self.first + BLOCK {
            let uid = self.fresh;
            self.fresh += 1;
            if !self.held.remove(&uid) {
                return Some(uid);
            }
        }
        self.returned.pop_front()
    }

    /// Gives an id back, after the last process of its instance is gone.
    pub(crate) fn give_back(&mut self, uid: u32) {
        self.held.remove(&uid);
        if self.contains(uid) && uid < self.fresh {
            self.returned.push_back(uid);
        }
    }

    /// Marks the id of an adopted instance as taken.
    pub(crate) fn hold(&mut self, uid: u32) {
        if self.contains(uid) && uid >= self.fresh {
            self.held.insert(uid);
        }
    }

    /// Whether an id is of this node's block.
    pub(crate) fn contains(&self, uid: u32) -> bool {
        (self.first..self.first + BLOCK).contains(&uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(directory: &Path, name: &str) -> PathBuf {
        let data = directory.join(name);
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("node.lock"), "").unwrap();
        data
    }

    #[test]
    fn two_nodes_never_share_an_id_and_a_node_finds_its_block_again() {
        let directory = tempfile::tempdir().unwrap();
        let claims = directory.path().join("claims");
        let (one, two) = (node(directory.path(), "one"), node(directory.path(), "two"));
        let first = Uids::claim(&claims, &one).unwrap().take().unwrap();
        let second = Uids::claim(&claims, &two).unwrap().take().unwrap();
        assert_eq!(second - first, BLOCK);
        assert_eq!(Uids::claim(&claims, &one).unwrap().take().unwrap(), first);
    }

    #[test]
    fn the_block_of_a_data_directory_that_is_gone_is_used_again() {
        let directory = tempfile::tempdir().unwrap();
        let claims = directory.path().join("claims");
        let (one, two) = (node(directory.path(), "one"), node(directory.path(), "two"));
        let first = Uids::claim(&claims, &one).unwrap().take().unwrap();
        fs::remove_dir_all(&one).unwrap();
        assert_eq!(Uids::claim(&claims, &two).unwrap().take().unwrap(), first);
    }

    #[test]
    fn an_id_is_handed_out_once_until_it_comes_back() {
        let mut uids = Uids::new(3);
        uids.hold(uids.first + 1);
        let all: BTreeSet<u32> = std::iter::from_fn(|| uids.take()).collect();
        assert_eq!(all.len(), BLOCK as usize - 1);
        uids.give_back(uids.first + 7);
        assert_eq!(uids.take(), Some(uids.first + 7));
        assert_eq!(uids.take(), None);
    }
}
