//! `kill -9` of the node, the warden, a postmaster or all of them, at random moments under a write load.
//!
//! After each kill every database is reachable again without a hand (but the one that starts `roost up` again, as systemd
//! does), and every acknowledged write is there. At the end the files are whole. `ROOST_TEST_ROUNDS` sets the number of
//! kills. That `kill -9` keeps the page cache is known: what survives a power cut is tested where files are written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use roost_tests::cold::check_stopped_database;
use roost_tests::ledger::{Findings, Ledger, Writer};
use roost_tests::node::{Database, Node};
use roost_tests::random::Random;
use roost_tests::session::Session;

/// How long a database may take to be reachable after a kill, recovery included.
const REACHABLE: Duration = Duration::from_secs(60);
const WRITERS_EACH: i64 = 2;

fn rounds() -> u64 {
    std::env::var("ROOST_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

/// A database with a pace: how long its writers pause at most, and when it freezes and stops.
const DATABASES: [(&str, Duration, &str, &str); 3] = [
    ("busy", Duration::from_millis(5), "idle-freeze=10s", "idle-stop=1m"),
    ("calm", Duration::from_millis(700), "idle-freeze=100ms", "idle-stop=never"),
    ("sleepy", Duration::from_millis(2500), "idle-freeze=100ms", "idle-stop=300ms"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_acknowledged_write_survives_kills_at_random_moments() -> Result<()> {
    let mut random = Random::from_environment("crash");
    let mut node = Node::new()?;
    let ledger = Ledger::create(&node.scratch().join("ledger"))?;
    let mut databases = Vec::new();
    let mut writers = Vec::new();
    for (name, pause, freeze, stop) in DATABASES {
        let database = node.create(name)?;
        node.cli(&["set", name, freeze, stop])?;
        Writer::prepare(&Session::open(&database.url).await?).await?;
        for number in 0..WRITERS_EACH {
            let writer = Writer::new(ledger.clone(), database.id.clone(), number << 40, random.fork());
            writers.push((writer, database.url.clone(), pause));
        }
        databases.push(database);
    }

    for round in 1..=rounds() {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks: Vec<_> = writers
            .drain(..)
            .map(|(mut writer, url, pause)| {
                let stop = Arc::clone(&stop);
                tokio::spawn(async move {
                    // `sleepy` is to be asleep between its writes: a session of its own for each of them.
                    let outcome = writer.write_until(&url, &stop, pause).await;
                    (writer, url, pause, outcome)
                })
            })
            .collect();
        tokio::time::sleep(random.within(Duration::from_millis(1500))).await;
        let victim = kill(&mut node, &databases, &mut random)?;
        tokio::time::sleep(random.within(Duration::from_millis(300))).await;
        node.revive().with_context(|| format!("round {round}, after the kill of {victim}"))?;
        tokio::time::sleep(random.within(Duration::from_millis(300))).await;
        stop.store(true, Ordering::Relaxed);
        for task in tasks {
            let (writer, url, pause, outcome) = task.await?;
            outcome.with_context(|| format!("round {round}, after the kill of {victim}"))?;
            writers.push((writer, url, pause));
        }
        let findings = look(&ledger, &databases).await.with_context(|| format!("round {round}, {victim}"))?;
        ensure!(findings.is_clean(), "round {round}, after the kill of {victim}: {findings:#?}");
        eprintln!("round {round}: killed {victim}, {} rows sound", findings.sound);
    }
    ensure!(ledger.acknowledged() > rounds() * 20, "only {} writes were acknowledged", ledger.acknowledged());
    for database in &databases {
        check_stopped_database(&node, database).with_context(|| database.name.clone())?;
    }
    node.finish()
}

fn kill(node: &mut Node, databases: &[Database], random: &mut Random) -> Result<String> {
    Ok(match random.below(6) {
        0 => {
            node.kill_node()?;
            "the node".to_owned()
        }
        1 => {
            node.kill_warden()?;
            "the warden".to_owned()
        }
        2 | 3 => {
            let database = random.pick(databases);
            node.kill_postmaster(database)?;
            format!("the postmaster of {}", database.name)
        }
        4 => {
            let database = random.pick(databases);
            node.kill_postmaster(database)?;
            node.kill_warden()?;
            format!("the postmaster of {} and the warden", database.name)
        }
        _ => {
            node.kill_everything()?;
            "everything".to_owned()
        }
    })
}

async fn look(ledger: &Ledger, databases: &[Database]) -> Result<Findings> {
    let mut findings = Findings::default();
    for database in databases {
        let session = Session::open_within(&database.url, REACHABLE).await.context(database.name.clone())?;
        findings.add(ledger.compare(&database.id, &session).await?);
        session.close().await;
    }
    Ok(findings)
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_hear_of_a_crash_and_the_next_one_finds_everything() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    let session = Session::open(&shop.url).await?;
    session.batch_execute("CREATE TABLE t (n int); INSERT INTO t SELECT generate_series(1, 1000)").await?;
    node.kill_postmaster(&shop)?;
    // A server process may answer until it notices that its postmaster is gone.
    let heard = async {
        while session.batch_execute("SELECT 1").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), heard).await.context("a session survived its server")?;
    let session = Session::open_within(&shop.url, REACHABLE).await?;
    assert_eq!(session.value::<i64>("SELECT count(*) FROM t", &[]).await?, 1000);
    node.finish()
}
