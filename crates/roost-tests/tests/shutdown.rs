//! SIGTERM: the documented order and deadline, with many databases awake. `ROOST_TEST_AWAKE` is how many (`make soak`: 1000).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use roost_tests::node::{Database, Node, Setup};
use roost_tests::session;
use roost_tests::{cold, machine, psql};
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// How many are woken at the same moment.
const AT_ONCE: usize = 8;
/// Sessions may finish for this long (`shutdown.drain`).
const DRAIN: Duration = Duration::from_secs(1);
/// All databases are stopped within this (`shutdown.deadline`), and the node is gone soon after.
const DEADLINE: Duration = Duration::from_secs(90);

fn awake() -> Result<usize> {
    std::env::var("ROOST_TEST_AWAKE").map_or(Ok(50), |count| count.parse().context("ROOST_TEST_AWAKE"))
}

fn wake(node: &Node, databases: &[Database]) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(database) = databases.get(next.fetch_add(1, Ordering::Relaxed)) {
            node.cli(&["wake", &database.name])?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| anyhow::bail!("panicked")))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_sessions_with_a_reason_and_stops_every_database_cleanly() -> Result<()> {
    let budget = ["--limits-memory-budget", "64GiB"];
    let asleep_never = ["--defaults-idle-freeze", "never", "--defaults-idle-stop", "never"];
    let mut node =
        Setup::default().with(budget).with(asleep_never).with(["--shutdown-drain", "1s"]).start()?;
    let names: Vec<String> = (0..awake()?).map(|number| format!("d{number}")).collect();
    let databases = node.create_many(&names)?;
    let begun = Instant::now();
    wake(&node, &databases)?;
    eprintln!("{} awake after {:?}", databases.len(), begun.elapsed());
    for name in names.iter().step_by(10) {
        node.cli(&["freeze", name])?;
    }
    let url = node.new_url("d1")?;
    let (idle, connection) = tokio_postgres::connect(&url, NoTls).await?;
    let last_words = tokio::spawn(connection);
    let (busy, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    idle.batch_execute("CREATE TABLE kept AS SELECT 1 AS n").await?;
    let query = tokio::spawn(async move { busy.batch_execute("SELECT pg_sleep(600)").await });
    let running = "SELECT FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'";
    // Not prepared: the client would close the statement later, and take its session's last words for the answer to that.
    while !matches!(idle.simple_query(running).await?.last(), Some(SimpleQueryMessage::CommandComplete(1))) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let took = tokio::task::block_in_place(|| node.stop())?;
    eprintln!("{} stopped after {took:?}", databases.len());
    ensure!(took < DRAIN + DEADLINE, "{took:?}");
    let reasons = [last_words.await?, query.await?]
        .map(|end| end.err().map(|error| session::sqlstate(&error).to_owned()));
    assert_eq!(
        reasons,
        [Some("57P01".to_owned()), Some("57P01".to_owned())],
        "of an idle session and a busy one"
    );
    let installation = machine::debian_postgres()?;
    for database in &databases {
        let state = cold::state(&node, database, &installation)?;
        ensure!(state == "shut down", "{}: {state}", database.name);
    }
    node.start()?;
    assert_eq!(psql::run(&url, "SELECT n FROM kept")?, "1");
    node.finish()
}
