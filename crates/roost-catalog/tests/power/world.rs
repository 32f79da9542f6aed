//! One disk and what was promised on it, from power cut to power cut.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use roost_catalog::id::DatabaseId;
use roost_catalog::model::{State, Transition};
use roost_catalog::{Catalog, CatalogError, CatalogOptions, MAX_HISTORY_PER_DATABASE};
use roost_durable::Disk;
use roost_durable::simulated::{Random, SimulatedDisk};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::content;
use crate::model::{Change, Facts, moment};
use crate::vfs;

/// The most databases on one disk.
const DATABASES: usize = 12;
/// Changes that are asked for at once, and may share a commit.
const AT_ONCE: u64 = 4;
/// The catalog's file, as the simulated disk names it.
const FILE: &str = "/catalog.sqlite";

/// What the catalog was doing when the power was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Opening,
    Working,
    Closing,
    Closed,
}

impl Moment {
    pub(crate) const ALL: [Self; 4] = [Self::Opening, Self::Working, Self::Closing, Self::Closed];
}

/// How a life of the catalog ends.
enum End {
    Cut(Moment),
    Killed,
}

/// What was lost, or came to be without being asked for.
pub(crate) type Loss = String;

pub(crate) struct World {
    random: Random,
    disk: Arc<SimulatedDisk>,
    is_careless: bool,
    runtime: Runtime,
    /// What must be there.
    promised: BTreeMap<DatabaseId, Facts>,
    /// What was asked for and never acknowledged: the database is as it was promised, or as it is here.
    unanswered: BTreeMap<DatabaseId, Option<Facts>>,
    history: BTreeMap<DatabaseId, History>,
    path: PathBuf,
    directory: TempDir,
}

/// Steps are numbered from 0 by their reasons.
#[derive(Debug, Clone, Copy, Default)]
struct History {
    recorded: usize,
    flushed: usize,
}

impl Drop for World {
    fn drop(&mut self) {
        vfs::unmount(&self.directory.path().canonicalize().unwrap());
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        // Real files hold nothing here, and syncing them would take most of the time.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let directory = tempfile::tempdir_in(place).unwrap();
        let real = directory.path().canonicalize().unwrap();
        let disk = Arc::new(SimulatedDisk::new(seed));
        vfs::mount(&real, &disk);
        Self {
            random: Random::new(seed),
            disk,
            is_careless: false,
            runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
            promised: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            history: BTreeMap::new(),
            path: real.join("catalog.sqlite"),
            directory,
        }
    }

    /// Opens files that exist without making their names durable first.
    pub(crate) fn open_carelessly(&mut self) {
        self.is_careless = true;
    }

    pub(crate) fn lie_about_sync(&self) {
        self.disk.lie_about_sync();
    }

    /// Opens the catalog and works with it until the power is cut at a random operation, then looks what is left. Before
    /// that, it may be killed: then nothing is lost but the catalog's own memory.
    pub(crate) fn live_and_lose_power(&mut self) -> Result<Moment, Loss> {
        loop {
            match self.live()? {
                End::Cut(moment) => {
                    self.disk.reboot();
                    self.check()?;
                    return Ok(moment);
                }
                End::Killed => {
                    self.disk.go_on();
                    self.check()?;
                }
            }
        }
    }

    fn live(&mut self) -> Result<End, Loss> {
        self.establish();
        // Opening takes some ten operations, and a life without a cut some hundreds.
        let bound = if self.random.below(4) == 0 { 20 } else { 250 };
        self.disk.cut_power_after(self.random.below(bound));
        let catalog = match self.open() {
            Ok(catalog) => catalog,
            Err(error) => return self.excused(&error).map(|()| End::Cut(Moment::Opening)),
        };
        for _ in 0..self.random.below(16) {
            self.work(&catalog)?;
        }
        if !self.disk.has_power() {
            return Ok(End::Cut(Moment::Working));
        }
        if self.random.below(4) == 0 {
            // Whatever it does from here on has no effect.
            self.disk.cut_power_after(0);
            return Ok(End::Killed);
        }
        drop(catalog);
        if !self.disk.has_power() {
            return Ok(End::Cut(Moment::Closing));
        }
        // Closing writes what waits.
        self.all_is_flushed();
        Ok(End::Cut(Moment::Closed))
    }

    /// One group of changes, a checkpoint, or a wait for the history.
    fn work(&mut self, catalog: &Catalog) -> Result<(), Loss> {
        match self.random.below(8) {
            0 => self.checkpoint(),
            1 => self.flush(catalog),
            _ => {
                self.record_steps(catalog);
                self.change(catalog)
            }
        }
    }

    /// Moves the write-ahead log into the file, as the catalog does when it has been quiet for a while.
    fn checkpoint(&self) -> Result<(), Loss> {
        let moved = Connection::open(&self.path)
            .and_then(|connection| connection.execute_batch("PRAGMA wal_checkpoint(passive)"));
        moved.or_else(|error| self.excused(&error))
    }

    fn flush(&mut self, catalog: &Catalog) -> Result<(), Loss> {
        match self.runtime.block_on(catalog.flush()) {
            Ok(()) => {
                // Without power there may be nothing left to flush: what a commit could not write was dropped and counted.
                if self.disk.has_power() {
                    self.all_is_flushed();
                }
                Ok(())
            }
            Err(error) => self.excused(&error),
        }
    }

    fn all_is_flushed(&mut self) {
        for history in self.history.values_mut() {
            history.flushed = history.recorded;
        }
    }

    fn record_steps(&mut self, catalog: &Catalog) {
        for &id in self.promised.keys() {
            let history = self.history.entry(id).or_default();
            if self.random.below(4) > 0 || history.recorded >= MAX_HISTORY_PER_DATABASE as usize {
                continue;
            }
            catalog.record_transition(Transition {
                database: id,
                at: moment(),
                from: State::Stopped,
                to: State::Running,
                took: Duration::from_millis(1),
                reason: history.recorded.to_string(),
            });
            history.recorded += 1;
        }
    }

    /// Asks for some changes at once, each to another database, and notes the answers.
    fn change(&mut self, catalog: &Catalog) -> Result<(), Loss> {
        let mut chosen = BTreeMap::new();
        for _ in 0..=self.random.below(AT_ONCE) {
            let known = self.promised.len();
            let index = usize::try_from(self.random.below(DATABASES as u64)).unwrap();
            let id = if index < known {
                *self.promised.keys().nth(index).unwrap()
            } else {
                DatabaseId::generate()
            };
            let change = Change::choose(&mut self.random, self.promised.get(&id));
            chosen.entry(id).or_insert(change);
        }
        for (id, change) in &chosen {
            let after = change.after(self.promised.get(id).cloned());
            self.unanswered.insert(*id, after);
        }
        let answers = self.runtime.block_on(async {
            let mut asked = JoinSet::new();
            for (id, change) in chosen {
                let catalog = catalog.clone();
                asked.spawn(async move { (id, change.make(&catalog, id).await) });
            }
            asked.join_all().await
        });
        for (id, answer) in answers {
            match answer {
                Ok(()) => {
                    let after = self.unanswered.remove(&id).unwrap();
                    self.promise(id, after);
                }
                Err(error) => self.excused(&error)?,
            }
        }
        Ok(())
    }

    fn promise(&mut self, id: DatabaseId, facts: Option<Facts>) {
        match facts {
            Some(facts) => drop(self.promised.insert(id, facts)),
            None => {
                self.promised.remove(&id);
                self.history.remove(&id);
            }
        }
    }

    /// Opens the catalog and compares what is there with what was promised.
    fn check(&mut self) -> Result<(), Loss> {
        self.establish();
        let catalog = self.open().map_err(|error| format!("cannot be opened: {error}"))?;
        let file = Connection::open(&self.path).map_err(|error| error.to_string())?;
        let found = content::read(&file).map_err(|error| format!("cannot be read: {error}"))?;
        content::require_sound(&file)?;
        drop(file);
        for (id, after) in std::mem::take(&mut self.unanswered) {
            if found.get(&id) == after.as_ref() {
                self.promise(id, after);
            }
        }
        for id in self.promised.keys().chain(found.keys()) {
            let (promised, found) = (self.promised.get(id), found.get(id));
            if promised != found {
                return Err(format!("{id}: promised {promised:?}, found {found:?}"));
            }
        }
        self.runtime.block_on(check_logins(&catalog, &self.promised))?;
        for id in self.promised.keys() {
            let history = self.history.entry(*id).or_default();
            let kept = self.runtime.block_on(kept_steps(&catalog, id))?;
            if kept < history.flushed || kept > history.recorded {
                return Err(format!("{id}: {history:?}, and {kept} steps are kept"));
            }
            *history = History { recorded: kept, flushed: kept };
        }
        if self.random.coin() {
            // The log is left for the next life to recover.
            self.disk.cut_power_after(0);
            drop(catalog);
            self.disk.go_on();
        }
        Ok(())
    }

    /// What the catalog does on the real disk before SQLite sees its file: it makes the file if there is none, and all
    /// names in the directory durable.
    fn establish(&self) {
        let is_new = self.disk.open(Path::new(FILE)).unwrap().is_none();
        if is_new {
            self.disk.create(Path::new(FILE)).unwrap();
        }
        if is_new || !self.is_careless {
            self.disk.sync_dir(Path::new("/")).unwrap();
        }
    }

    fn open(&self) -> Result<Catalog, CatalogError> {
        let few = CatalogOptions {
            readers: 1,
            waiting_changes: 64,
            waiting_reads: 64,
            waiting_records: 256,
            cached_logins: 100,
            cached_routes: 100,
            ..CatalogOptions::default()
        };
        Catalog::open(&self.path, few)
    }

    /// An error is one only with power.
    fn excused(&self, error: &impl std::fmt::Display) -> Result<(), Loss> {
        if self.disk.has_power() { Err(format!("refused, with power: {error}")) } else { Ok(()) }
    }
}

/// A login is answered as the rows say, through the reader that the gateway uses.
async fn check_logins(catalog: &Catalog, promised: &BTreeMap<DatabaseId, Facts>) -> Result<(), Loss> {
    for (id, facts) in promised {
        for (login, verifier) in &facts.logins {
            let found = catalog.login(login).await.map_err(|error| error.to_string())?;
            let found = found.map(|login| login.verifier.clone());
            if found.as_ref() != (!facts.deleted).then_some(verifier) {
                return Err(format!("{id}: a login with {login} would be checked against {found:?}"));
            }
        }
    }
    Ok(())
}

/// How many of a database's steps are there, which are the first ones.
async fn kept_steps(catalog: &Catalog, id: &DatabaseId) -> Result<usize, Loss> {
    let mut steps = catalog.history(id, u32::MAX).await.map_err(|error| error.to_string())?;
    steps.reverse();
    if steps.iter().enumerate().any(|(number, step)| step.reason != number.to_string()) {
        return Err(format!("{id}: a step is missing in {steps:?}"));
    }
    Ok(steps.len())
}
