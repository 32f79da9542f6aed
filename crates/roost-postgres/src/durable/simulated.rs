//! A disk in memory that loses power.
//!
//! It keeps two states: what programs see, and what would be found after a power cut. Only the sync operations carry
//! anything from the first to the second for sure. At a power cut, each change that was not synced survives or not, by the
//! throw of a seeded die, independently of the others: later writes without earlier ones, half a write (in sectors), a name
//! without the content it was given, a rename without the name before it. That is more than real file systems do to a
//! program, and every one of them does some of it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::Disk;

/// What a device writes whole or not at all.
const SECTOR: usize = 512;

pub(crate) struct SimulatedDisk {
    state: RefCell<State>,
}

struct State {
    random: Random,
    /// How many more operations happen before the power is cut; `None` is for ever.
    power: Option<u64>,
    inodes: Vec<Inode>,
    /// Names of files, as programs see them.
    names: BTreeMap<PathBuf, usize>,
    directories: BTreeSet<PathBuf>,
    durable_names: BTreeMap<PathBuf, usize>,
    durable_directories: BTreeSet<PathBuf>,
    /// Changes to names that are not durable yet, oldest first.
    pending: Vec<NameChange>,
}

#[derive(Clone, Default)]
struct Inode {
    content: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Clone)]
enum NameChange {
    Link { path: PathBuf, inode: usize },
    Rename { from: PathBuf, to: PathBuf, inode: usize },
    Unlink { path: PathBuf },
    Directory { path: PathBuf },
}

impl NameChange {
    fn is_in(&self, directory: &Path) -> bool {
        let path = match self {
            Self::Link { path, .. } | Self::Unlink { path } | Self::Directory { path } => path,
            Self::Rename { to, .. } => to,
        };
        path.parent() == Some(directory)
    }

    fn apply(self, names: &mut BTreeMap<PathBuf, usize>, directories: &mut BTreeSet<PathBuf>) {
        match self {
            Self::Link { path, inode } => drop(names.insert(path, inode)),
            Self::Rename { from, to, inode } => {
                names.remove(&from);
                names.insert(to, inode);
            }
            Self::Unlink { path } => drop(names.remove(&path)),
            Self::Directory { path } => drop(directories.insert(path)),
        }
    }
}

impl SimulatedDisk {
    /// A disk with one empty directory, `/`.
    pub(crate) fn new(seed: u64) -> Self {
        let root = BTreeSet::from([PathBuf::from("/")]);
        Self {
            state: RefCell::new(State {
                random: Random(seed),
                power: None,
                inodes: Vec::new(),
                names: BTreeMap::new(),
                directories: root.clone(),
                durable_names: BTreeMap::new(),
                durable_directories: root,
                pending: Vec::new(),
            }),
        }
    }

    /// Cuts the power after so many more operations: the one after them, and all later ones, fail.
    pub(crate) fn cut_power_after(&self, operations: u64) {
        self.state.borrow_mut().power = Some(operations);
    }

    /// Cuts the power if it is still there, and comes back with what survived.
    pub(crate) fn reboot(&self) {
        let state = &mut *self.state.borrow_mut();
        for change in std::mem::take(&mut state.pending) {
            if state.random.coin() {
                change.apply(&mut state.durable_names, &mut state.durable_directories);
            }
        }
        // What lies in a directory that did not survive is unreachable.
        let directories = std::mem::take(&mut state.durable_directories);
        state.durable_directories = directories
            .iter()
            .filter(|path| path.ancestors().all(|above| directories.contains(above)))
            .cloned()
            .collect();
        let reachable = &state.durable_directories;
        state.durable_names.retain(|path, _| path.parent().is_some_and(|parent| reachable.contains(parent)));
        for inode in &mut state.inodes {
            let survived = state.random.mixture(&inode.durable, &inode.content);
            *inode = Inode { content: survived.clone(), durable: survived };
        }
        state.names = state.durable_names.clone();
        state.directories = state.durable_directories.clone();
        state.power = None;
    }

    fn operation(&self) -> io::Result<std::cell::RefMut<'_, State>> {
        let mut state = self.state.borrow_mut();
        match &mut state.power {
            Some(0) => return Err(io::Error::other("the power is cut")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(state)
    }
}

impl Disk for SimulatedDisk {
    type File = usize;

    fn create(&self, path: &Path) -> io::Result<usize> {
        let mut state = self.operation()?;
        if !path.parent().is_some_and(|parent| state.directories.contains(parent)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if let Some(&inode) = state.names.get(path) {
            state.inodes[inode].content.clear();
            return Ok(inode);
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.names.insert(path.to_owned(), inode);
        state.pending.push(NameChange::Link { path: path.to_owned(), inode });
        Ok(inode)
    }

    fn write(&self, file: &mut usize, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.operation()?;
        state.inodes[*file].content.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&self, file: &usize) -> io::Result<()> {
        let mut state = self.operation()?;
        let inode = &mut state.inodes[*file];
        inode.durable.clone_from(&inode.content);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.operation()?;
        let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), inode);
        state.pending.push(NameChange::Rename { from: from.to_owned(), to: to.to_owned(), inode });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.operation()?;
        state.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        state.pending.push(NameChange::Unlink { path: path.to_owned() });
        Ok(())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.operation()?;
        if !state.directories.insert(path.to_owned()) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.pending.push(NameChange::Directory { path: path.to_owned() });
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut guard = self.operation()?;
        let state = &mut *guard;
        let (now, later) =
            std::mem::take(&mut state.pending).into_iter().partition(|change| change.is_in(path));
        state.pending = later;
        let now: Vec<NameChange> = now;
        for change in now {
            change.apply(&mut state.durable_names, &mut state.durable_directories);
        }
        Ok(())
    }

    fn read(&self, path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
        let state = self.operation()?;
        let &inode = state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        let content = state.inodes[inode].content.clone();
        if content.len() as u64 > max_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(content)
    }
}

/// A small, good enough and reproducible source of numbers (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn coin(&mut self) -> bool {
        self.next() & 1 == 0
    }

    /// What is found of a file whose last synced content and last content those are: some length between, and each sector
    /// from one of the two, or zeros where the one that it comes from has none.
    fn mixture(&mut self, durable: &[u8], content: &[u8]) -> Vec<u8> {
        if durable == content {
            return content.to_vec();
        }
        let lengths = [durable.len(), content.len(), content.len() / 2 / SECTOR * SECTOR];
        let length = lengths[usize::try_from(self.below(3)).unwrap()];
        let mut found = vec![0; length];
        for (index, sector) in found.chunks_mut(SECTOR).enumerate() {
            let source = if self.coin() { durable } else { content };
            let from = source.get(index * SECTOR..).unwrap_or_default();
            let count = from.len().min(sector.len());
            sector[..count].copy_from_slice(&from[..count]);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable;

    const CUTS: u64 = 10_000;

    /// A content of several sectors that differ from those of every other version.
    fn content(version: u64) -> Vec<u8> {
        let mut random = Random::new(version);
        (0..300).flat_map(|_| random.next().to_le_bytes()).collect()
    }

    /// Replaces a file again and again until the power is cut, by `replace`; says what was acknowledged last, and what is
    /// found after.
    fn life(
        seed: u64,
        replace: impl Fn(&SimulatedDisk, &Path, &[u8]) -> io::Result<()>,
    ) -> (Option<u64>, Option<Vec<u8>>) {
        let disk = SimulatedDisk::new(seed);
        let path = Path::new("/file");
        disk.cut_power_after(Random::new(seed).below(25));
        let mut acknowledged = None;
        for version in 0.. {
            if replace(&disk, path, &content(version)).is_err() {
                break;
            }
            acknowledged = Some(version);
        }
        disk.reboot();
        (acknowledged, disk.read(path, u64::MAX).ok())
    }

    fn is_old_or_new((acknowledged, found): &(Option<u64>, Option<Vec<u8>>)) -> bool {
        match (acknowledged, found) {
            (None, None) => true,
            (None, Some(found)) => *found == content(0),
            (Some(_), None) => false,
            (Some(version), Some(found)) => *found == content(*version) || *found == content(version + 1),
        }
    }

    #[test]
    fn a_replaced_file_is_the_old_or_the_new_one_after_ten_thousand_power_cuts() {
        for seed in 0..CUTS {
            let outcome = life(seed, durable::replace);
            assert!(is_old_or_new(&outcome), "seed {seed}: acknowledged {:?}", outcome.0);
        }
    }

    #[test]
    fn a_file_that_is_not_synced_before_its_rename_is_found_out() {
        let careless = |disk: &SimulatedDisk, path: &Path, bytes: &[u8]| {
            let mut file = disk.create(Path::new("/file.new"))?;
            disk.write(&mut file, bytes)?;
            disk.rename(Path::new("/file.new"), path)?;
            disk.sync_dir(Path::new("/"))
        };
        assert!((0..CUTS).any(|seed| !is_old_or_new(&life(seed, careless))));
    }

    #[test]
    fn a_rename_that_is_not_synced_is_found_out() {
        let careless = |disk: &SimulatedDisk, path: &Path, bytes: &[u8]| {
            let mut file = disk.create(Path::new("/file.new"))?;
            disk.write(&mut file, bytes)?;
            disk.sync(&file)?;
            disk.rename(Path::new("/file.new"), path)
        };
        assert!((0..CUTS).any(|seed| !is_old_or_new(&life(seed, careless))));
    }

    #[test]
    fn a_file_written_in_place_is_found_out() {
        let careless = |disk: &SimulatedDisk, path: &Path, bytes: &[u8]| {
            let mut file = disk.create(path)?;
            disk.write(&mut file, bytes)?;
            disk.sync(&file)?;
            disk.sync_dir(Path::new("/"))
        };
        assert!((0..CUTS).any(|seed| !is_old_or_new(&life(seed, careless))));
    }

    #[test]
    fn a_directory_that_was_acknowledged_survives_with_what_is_in_it() {
        for seed in 0..CUTS {
            let disk = SimulatedDisk::new(seed);
            disk.cut_power_after(Random::new(seed).below(20));
            let path = Path::new("/a/b/file");
            let made = durable::create_dir(&disk, Path::new("/a"))
                .and_then(|()| durable::create_dir(&disk, Path::new("/a/b")))
                .and_then(|()| durable::replace(&disk, path, &content(0)));
            disk.reboot();
            let found = disk.read(path, u64::MAX);
            match (made, found) {
                (_, Ok(found)) => assert_eq!(found, content(0), "seed {seed}"),
                (Ok(()), Err(error)) => panic!("seed {seed}: {error}"),
                (Err(_), Err(_)) => {}
            }
        }
    }

    #[test]
    fn a_removed_file_does_not_come_back() {
        for seed in 0..CUTS {
            let disk = SimulatedDisk::new(seed);
            let path = Path::new("/file");
            durable::replace(&disk, path, &content(0)).unwrap();
            disk.cut_power_after(Random::new(seed).below(4));
            let removed = durable::remove(&disk, path);
            disk.reboot();
            match (removed, disk.read(path, u64::MAX)) {
                (Ok(()), Ok(_)) => panic!("seed {seed}: it came back"),
                (_, Ok(found)) => assert_eq!(found, content(0), "seed {seed}"),
                (_, Err(_)) => {}
            }
        }
    }
}
