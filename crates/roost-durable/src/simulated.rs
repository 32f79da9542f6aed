//! A disk in memory that loses power.
//!
//! It keeps two states: what programs see, and what would be found after a power cut. Only the sync operations carry
//! anything from the first to the second for sure. At a power cut, each change that was not synced survives or not, by the
//! throw of a seeded die, independently of the others: later writes without earlier ones, half a write (in sectors), a name
//! without the content it was given, a rename without the name before it. That is more than real file systems do to a
//! program, and every one of them does some of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Disk;

/// What a device writes whole or not at all.
const SECTOR: usize = 512;

/// A disk that forgets what was not synced when its power is cut. It may be shared between threads.
#[derive(Debug)]
pub struct SimulatedDisk {
    state: Mutex<State>,
}

/// An open file. It stays what it is when its name changes or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode(usize);

#[derive(Debug)]
struct State {
    random: Random,
    /// Whether syncing is acknowledged and not done.
    is_liar: bool,
    /// How many more operations happen before the power is cut; `None` is for ever.
    power: Option<u64>,
    contents: Vec<Content>,
    /// Names of files, as programs see them.
    names: BTreeMap<PathBuf, Inode>,
    directories: BTreeSet<PathBuf>,
    durable_names: BTreeMap<PathBuf, Inode>,
    durable_directories: BTreeSet<PathBuf>,
    /// Changes to names that are not durable yet, oldest first.
    pending: Vec<NameChange>,
}

#[derive(Debug, Default)]
struct Content {
    /// As programs see it.
    now: Vec<u8>,
    /// As it was when it was last synced.
    durable: Vec<u8>,
}

#[derive(Debug)]
enum NameChange {
    Link { path: PathBuf, inode: Inode },
    Rename { from: PathBuf, to: PathBuf, inode: Inode },
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

    fn apply(self, names: &mut BTreeMap<PathBuf, Inode>, directories: &mut BTreeSet<PathBuf>) {
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
    pub fn new(seed: u64) -> Self {
        let root = BTreeSet::from([PathBuf::from("/")]);
        Self {
            state: Mutex::new(State {
                random: Random(seed),
                is_liar: false,
                power: None,
                contents: Vec::new(),
                names: BTreeMap::new(),
                directories: root.clone(),
                durable_names: BTreeMap::new(),
                durable_directories: root,
                pending: Vec::new(),
            }),
        }
    }

    /// From here on, syncing is acknowledged and not done: what a drive does whose cache forgets.
    pub fn lie_about_sync(&self) {
        self.state().is_liar = true;
    }

    /// Cuts the power after so many more operations: the one after them, and all later ones, fail. Looking at names and
    /// lengths and reading at a place are no operations, but fail without power too.
    pub fn cut_power_after(&self, operations: u64) {
        self.state().power = Some(operations);
    }

    /// Whether operations still happen.
    pub fn has_power(&self) -> bool {
        self.state().power != Some(0)
    }

    /// Lets operations happen again without loss: a program was killed, and the machine went on.
    pub fn go_on(&self) {
        self.state().power = None;
    }

    /// Cuts the power if it is still there, and comes back with what survived.
    pub fn reboot(&self) {
        let state = &mut *self.state();
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
        for content in state.contents.iter_mut().filter(|content| content.now != content.durable) {
            let survived = state.random.mixture(&content.durable, &content.now);
            content.now.clone_from(&survived);
            content.durable = survived;
        }
        state.names = state.durable_names.clone();
        state.directories = state.durable_directories.clone();
        state.power = None;
    }

    /// The file of that name; `None` if there is none.
    ///
    /// # Errors
    /// Without power.
    pub fn open(&self, path: &Path) -> io::Result<Option<Inode>> {
        Ok(self.powered()?.names.get(path).copied())
    }

    /// A file's length in bytes.
    ///
    /// # Errors
    /// Without power.
    pub fn length(&self, file: Inode) -> io::Result<u64> {
        Ok(self.powered()?.contents[file.0].now.len() as u64)
    }

    /// Reads at a place in a file as much as there is; says how much.
    ///
    /// # Errors
    /// Without power.
    pub fn read_at(&self, file: Inode, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.powered()?;
        let from = state.contents[file.0].now.get(index(offset)..).unwrap_or_default();
        let count = from.len().min(bytes.len());
        bytes[..count].copy_from_slice(&from[..count]);
        Ok(count)
    }

    /// Writes at a place in a file. A gap before it reads as zeros.
    ///
    /// # Errors
    /// Without power.
    pub fn write_at(&self, file: Inode, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.operation()?;
        let now = &mut state.contents[file.0].now;
        let (start, end) = (index(offset), index(offset) + bytes.len());
        now.resize(now.len().max(end), 0);
        now[start..end].copy_from_slice(bytes);
        Ok(())
    }

    /// Cuts a file, or makes it longer by zeros.
    ///
    /// # Errors
    /// Without power.
    pub fn set_length(&self, file: Inode, length: u64) -> io::Result<()> {
        self.operation()?.contents[file.0].now.resize(index(length), 0);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn powered(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.power == Some(0) { Err(io::Error::other("the power is cut")) } else { Ok(state) }
    }

    fn operation(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.powered()?;
        if let Some(left) = &mut state.power {
            *left -= 1;
        }
        Ok(state)
    }
}

/// Files here are small enough for memory.
fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

impl Disk for SimulatedDisk {
    type File = Inode;

    fn create(&self, path: &Path) -> io::Result<Inode> {
        let mut state = self.operation()?;
        if !path.parent().is_some_and(|parent| state.directories.contains(parent)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if let Some(&inode) = state.names.get(path) {
            state.contents[inode.0].now.clear();
            return Ok(inode);
        }
        let inode = Inode(state.contents.len());
        state.contents.push(Content::default());
        state.names.insert(path.to_owned(), inode);
        state.pending.push(NameChange::Link { path: path.to_owned(), inode });
        Ok(inode)
    }

    fn write(&self, file: &mut Inode, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.operation()?;
        state.contents[file.0].now.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&self, file: &Inode) -> io::Result<()> {
        let mut state = self.operation()?;
        if !state.is_liar {
            let content = &mut state.contents[file.0];
            content.durable.clone_from(&content.now);
        }
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
        if state.is_liar {
            return Ok(());
        }
        let (now, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut state.pending).into_iter().partition(|change| change.is_in(path));
        state.pending = later;
        for change in now {
            change.apply(&mut state.durable_names, &mut state.durable_directories);
        }
        Ok(())
    }

    fn read(&self, path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
        let state = self.operation()?;
        let inode = state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        let content = state.contents[inode.0].now.clone();
        if content.len() as u64 > max_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(content)
    }
}

/// A small, good enough and reproducible source of numbers (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True half of the time.
    pub const fn coin(&mut self) -> bool {
        self.next() & 1 == 0
    }

    /// What is found of a file whose last synced content and last content those are: some length between, and each sector
    /// from one of the two, or zeros where the one that it comes from has none.
    fn mixture(&mut self, durable: &[u8], content: &[u8]) -> Vec<u8> {
        let between = (durable.len() + content.len()) / 2 / SECTOR * SECTOR;
        let lengths = [durable.len(), content.len(), between.max(durable.len().min(content.len()))];
        let length = lengths[index(self.below(3))];
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
            let outcome = life(seed, crate::replace);
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
            let made = crate::create_dir(&disk, Path::new("/a"))
                .and_then(|()| crate::create_dir(&disk, Path::new("/a/b")))
                .and_then(|()| crate::replace(&disk, path, &content(0)));
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
            crate::replace(&disk, path, &content(0)).unwrap();
            disk.cut_power_after(Random::new(seed).below(4));
            let removed = crate::remove(&disk, path);
            disk.reboot();
            match (removed, disk.read(path, u64::MAX)) {
                (Ok(()), Ok(_)) => panic!("seed {seed}: it came back"),
                (_, Ok(found)) => assert_eq!(found, content(0), "seed {seed}"),
                (_, Err(_)) => {}
            }
        }
    }
}
