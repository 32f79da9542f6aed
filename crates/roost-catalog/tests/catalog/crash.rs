//! `kill -9` at any moment: what was acknowledged is there, and the file is sound.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use roost_catalog::id::{ConnectionId, DatabaseId};
use roost_catalog::model::{NewDatabase, State, Transition};
use roost_catalog::{Catalog, CatalogOptions};

use crate::fixture::{at, moment, new_connection, new_database};

/// Where the process that is to be killed finds its catalog.
const PATH_VARIABLE: &str = "ROOST_CATALOG_CRASH_TEST";
/// Repeats a run's moments.
const SEED_VARIABLE: &str = "ROOST_CATALOG_CRASH_SEED";
const ROUNDS: u32 = 8;

/// Creates databases with several callers at once and prints each one that was acknowledged, until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other side of the crash test, which starts it in a process of its own"]
async fn a_process_that_writes_until_it_is_killed() {
    let Ok(path) = std::env::var(PATH_VARIABLE) else { return };
    let catalog = Catalog::open(Path::new(&path), CatalogOptions::default()).unwrap();
    let writers: Vec<_> = (0..4).map(|_| tokio::spawn(write_for_ever(catalog.clone()))).collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

async fn write_for_ever(catalog: Catalog) {
    loop {
        let id = DatabaseId::generate();
        let connection = new_connection(&id);
        let login = connection.id;
        // A fresh name in every process and round.
        let new = new_database(id.suffix());
        let new = NewDatabase { id, connection: Some(connection), ..new };
        catalog.create_database(new).await.unwrap();
        acknowledge(&format!("made {id} {login}"));
        catalog.record_transition(Transition {
            database: id,
            at: at(0),
            from: State::Stopped,
            to: State::Running,
            took: Duration::from_millis(1),
            reason: String::new(),
        });
        if id.suffix().starts_with(|first: char| first < 'i') {
            catalog.delete_database(&id, moment(1)).await.unwrap();
            acknowledge(&format!("deleted {id}"));
        }
    }
}

/// One line in one write: a line that arrived whole was acknowledged.
fn acknowledge(line: &str) {
    std::io::stdout().lock().write_all(format!("{line}\n").as_bytes()).unwrap();
}

#[derive(Default)]
struct Acknowledged {
    made: Vec<(DatabaseId, ConnectionId)>,
    deleted: Vec<DatabaseId>,
}

impl Acknowledged {
    /// Reads what the process said before it died. Other lines are the test harness's.
    fn read(&mut self, output: impl BufRead) {
        for line in output.lines() {
            let line = line.unwrap();
            // The harness's own line about the test has no end when the test begins to print.
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                [.., "made", id, login] => self.made.push((id.parse().unwrap(), login.parse().unwrap())),
                [.., "deleted", id] => self.deleted.push(id.parse().unwrap()),
                _ => {}
            }
        }
    }
}

/// Numbers that look random and come from a seed (splitmix64).
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[tokio::test]
async fn a_kill_at_any_moment_loses_nothing_that_was_acknowledged() {
    let seed = match std::env::var(SEED_VARIABLE) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap(),
    };
    println!("{SEED_VARIABLE}={seed}");
    let mut random = seed;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.sqlite");
    let mut acknowledged = Acknowledged::default();
    for round in 0..ROUNDS {
        let before = acknowledged.made.len();
        kill_a_writer(&path, Duration::from_micros(next_random(&mut random) % 400_000), &mut acknowledged);
        println!("round {round}: {} databases acknowledged", acknowledged.made.len() - before);
        verify(&path, &acknowledged).await;
    }
    assert!(acknowledged.made.len() > 10, "the writer was killed before it did anything");
}

/// Starts the writing process on the file and kills it some time after its first acknowledgement.
fn kill_a_writer(path: &Path, patience: Duration, acknowledged: &mut Acknowledged) {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "crash::a_process_that_writes_until_it_is_killed",
            "--include-ignored",
            "--nocapture",
        ])
        .env(PATH_VARIABLE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(process.stdout.take().unwrap());
    // Reading goes on beside the clock, or a full pipe would hold the writer still.
    let reader = std::thread::spawn(move || {
        let mut seen = Acknowledged::default();
        seen.read(output);
        seen
    });
    std::thread::sleep(Duration::from_millis(30) + patience);
    process.kill().unwrap();
    process.wait().unwrap();
    let seen = reader.join().unwrap();
    acknowledged.made.extend(seen.made);
    acknowledged.deleted.extend(seen.deleted);
}

async fn verify(path: &Path, acknowledged: &Acknowledged) {
    let catalog = Catalog::open(path, CatalogOptions::default()).unwrap();
    for (id, login) in &acknowledged.made {
        let database = catalog.database(id).await.unwrap();
        let database = database.unwrap_or_else(|| panic!("{id} was acknowledged and is gone"));
        let found = catalog.login(login).await.unwrap();
        assert_eq!(found.is_some(), database.deleted_at.is_none(), "{id}");
    }
    for id in &acknowledged.deleted {
        assert!(catalog.database(id).await.unwrap().unwrap().deleted_at.is_some(), "{id}");
    }
    let counts = catalog.counts().await.unwrap();
    drop(catalog);
    let file = rusqlite::Connection::open(path).unwrap();
    let answer: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(answer, "ok");
    let orphans: i64 =
        file.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0)).unwrap();
    assert_eq!(orphans, 0);
    let (live, deleted): (u64, u64) = file
        .query_row("SELECT count(*) - count(deleted_at), count(deleted_at) FROM databases", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!((counts.databases, counts.deleted_databases), (live, deleted));
}
