//! The user ids that instances run as.
//!
//! Nodes on one machine must not give two instances the same id, so each claims a block of [`BLOCK`] ids by a file in
//! a directory that they share. The file holds the data directory that the block belongs to: the same data directory
//! gets its block back. A claim goes away when its data directory is gone and none of its instances runs, which the
//! next node that begins or ends here looks after. Within its block a node hands ids out itself, and an id comes back
//! only when nothing of its instance is left.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// User ids in one block.
pub(crate) const BLOCK: u32 = 65_536;

/// The first id of the first block: above the fixed ids of nodes and volumes.
const FIRST: u32 = 1_900_000_000 + BLOCK;

/// The file in a data directory that its warden locks.
pub(crate) const NODE_LOCK: &str = "node.lock";

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

/// The claims of all nodes on this machine, which nobody else changes or adds to while this exists.
#[derive(Debug)]
pub(crate) struct Claims {
    directory: PathBuf,
    _lock: File,
}

/// What is known of a node by its claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    block: u32,
    /// Its data directory.
    pub(crate) data: PathBuf,
}

impl Claim {
    /// Whether a warden runs there now. One that begins takes its lock before it looks at the claims.
    pub(crate) fn is_running(&self) -> bool {
        let lock = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(self.data.join(NODE_LOCK));
        lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
    }

    /// Whether its data directory is gone.
    pub(crate) fn is_abandoned(&self) -> bool {
        !self.data.join(NODE_LOCK).exists()
    }
}

impl Claims {
    /// Waits until no other node looks at the claims in `directory`, which root alone may write.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).create(directory)?;
        let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(directory.join("lock"))?;
        lock.lock()?;
        Ok(Self { directory: directory.to_owned(), _lock: lock })
    }

    /// All of them, by block.
    pub(crate) fn list(&self) -> io::Result<Vec<Claim>> {
        let mut claims = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let Some(block) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let data = PathBuf::from(OsString::from_vec(fs::read(entry.path())?));
            claims.push(Claim { block, data });
        }
        claims.sort_unstable_by_key(|claim| claim.block);
        Ok(claims)
    }

    /// Gives a block back.
    pub(crate) fn release(&self, claim: &Claim) -> io::Result<()> {
        fs::remove_file(self.directory.join(claim.block.to_string()))
    }

    /// Claims a block for the data directory `data`: the one that it had, or one that nobody has.
    pub(crate) fn claim(&self, data: &Path) -> io::Result<Uids> {
        let claims = self.list()?;
        if let Some(own) = claims.iter().find(|claim| claim.data == data) {
            return Ok(Uids::new(own.block));
        }
        let is_free = |block: &u32| claims.iter().all(|claim| claim.block != *block);
        let block = (0..BLOCKS)
            .find(is_free)
            .ok_or_else(|| io::Error::other(format!("all {BLOCKS} blocks of user ids are claimed")))?;
        let new = self.directory.join("new");
        let mut file = File::create(&new)?;
        file.write_all(data.as_os_str().as_bytes())?;
        fs::rename(&new, self.directory.join(block.to_string()))?;
        Ok(Uids::new(block))
    }
}

impl Uids {
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
        fs::write(data.join(NODE_LOCK), "").unwrap();
        data
    }

    #[test]
    fn two_nodes_never_share_an_id_and_a_node_finds_its_block_again() {
        let directory = tempfile::tempdir().unwrap();
        let claims = directory.path().join("claims");
        let (one, two) = (node(directory.path(), "one"), node(directory.path(), "two"));
        let claims = Claims::open(&claims).unwrap();
        let first = claims.claim(&one).unwrap().take().unwrap();
        let second = claims.claim(&two).unwrap().take().unwrap();
        assert_eq!(second - first, BLOCK);
        assert_eq!(claims.claim(&one).unwrap().take().unwrap(), first);
    }

    #[test]
    fn the_block_of_a_data_directory_that_is_gone_is_used_again() {
        let directory = tempfile::tempdir().unwrap();
        let claims = directory.path().join("claims");
        let (one, two) = (node(directory.path(), "one"), node(directory.path(), "two"));
        let claims = Claims::open(&claims).unwrap();
        let first = claims.claim(&one).unwrap().take().unwrap();
        let second = claims.claim(&two).unwrap().take().unwrap();
        fs::remove_dir_all(&one).unwrap();
        let abandoned: Vec<Claim> = claims.list().unwrap().into_iter().filter(Claim::is_abandoned).collect();
        assert_eq!(abandoned.iter().map(|claim| &claim.data).collect::<Vec<_>>(), [&one]);
        claims.release(&abandoned[0]).unwrap();
        let three = node(directory.path(), "three");
        assert_eq!(claims.claim(&three).unwrap().take().unwrap(), first);
        assert_eq!(claims.claim(&two).unwrap().take().unwrap(), second, "found behind the gap");
    }

    #[test]
    fn a_node_runs_as_long_as_it_holds_its_lock() {
        let directory = tempfile::tempdir().unwrap();
        let data = node(directory.path(), "one");
        let claims = Claims::open(&directory.path().join("claims")).unwrap();
        claims.claim(&data).unwrap();
        let claim = claims.list().unwrap().remove(0);
        assert!(!claim.is_running() && !claim.is_abandoned());
        let lock = File::options().write(true).open(data.join(NODE_LOCK)).unwrap();
        lock.try_lock().unwrap();
        assert!(claim.is_running());
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
