//! Sleep: what survives it, what is ready after it, and that no order of steps and sessions loses or blocks anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use roost_tests::command_line::CommandLine;
use roost_tests::node::{Database, Node};
use roost_tests::random::Random;
use roost_tests::session::{self, Session};
use roost_tests::{machine, psql};
use tokio_postgres::NoTls;

const SOON: Duration = Duration::from_secs(30);

/// Loads a table and closes the session before anything could analyse it.
async fn load(database: &Database) -> Result<()> {
    let session = Session::open(&database.url).await?;
    session
        .batch_execute(
            "CREATE TABLE loaded (id int PRIMARY KEY, kind int, payload text); \
             INSERT INTO loaded SELECT n, n % 1000, md5(n::text) FROM generate_series(1, 100000) n; \
             CREATE INDEX loaded_kind ON loaded (kind)",
        )
        .await?;
    session.close().await;
    Ok(())
}

/// Statistics are there, and plans follow from them.
async fn check_plans(database: &Database) -> Result<()> {
    let session = Session::open(&database.url).await?;
    let columns: i64 = session.value("SELECT count(*) FROM pg_stats WHERE tablename = 'loaded'", &[]).await?;
    ensure!(columns == 3, "{}: statistics of {columns} columns", database.name);
    let plan = async |query: &str| -> Result<String> {
        let rows = session.query(&format!("EXPLAIN {query}"), &[]).await?;
        Ok(rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join("\n"))
    };
    let few = plan("SELECT payload FROM loaded WHERE kind = 7").await?;
    ensure!(few.contains("loaded_kind"), "{}: {few}", database.name);
    let one = plan("SELECT payload FROM loaded WHERE id = 7").await?;
    ensure!(one.contains("Index Scan using loaded_pkey"), "{}: {one}", database.name);
    let all = plan("SELECT payload FROM loaded WHERE kind >= 0").await?;
    ensure!(all.contains("Seq Scan") && all.contains("rows=100000"), "{}: {all}", database.name);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_and_then_sleep_at_once_leaves_statistics_and_good_plans() -> Result<()> {
    let mut node = Node::new()?;
    let frozen = node.create("frozen")?;
    load(&frozen).await?;
    node.cli(&["freeze", "frozen"])?;
    check_plans(&frozen).await?;

    let stopped = node.create("stopped")?;
    load(&stopped).await?;
    node.cli(&["stop", "stopped"])?;
    check_plans(&stopped).await?;

    let idle = node.create_with("idle", &["--set", "idle-freeze=100ms", "--set", "idle-stop=300ms"])?;
    load(&idle).await?;
    node.wait_for_state("idle", "stopped", SOON)?;
    check_plans(&idle).await
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_a_session_has_survives_a_freeze() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create_with("shop", &["--set", "idle-freeze=never"])?;
    let (client, mut connection) = tokio_postgres::connect(&shop.url, NoTls).await?;
    let (send, mut messages) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(message) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if send.send(message).is_err() {
                break;
            }
        }
    });
    client
        .batch_execute(
            "CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n; CREATE TEMP TABLE mine AS SELECT 5 AS n; \
             LISTEN news; SELECT pg_advisory_lock(4711); SET application_name = 'sleeper'; \
             PREPARE sum AS SELECT $1::int + n FROM mine; \
             DECLARE held CURSOR WITH HOLD FOR SELECT n FROM t ORDER BY n",
        )
        .await?;
    let prepared = client.prepare("SELECT n FROM t WHERE n = $1").await?;
    client.batch_execute("BEGIN; INSERT INTO t VALUES (2000); DECLARE c CURSOR FOR SELECT n FROM t ORDER BY n; FETCH 3 FROM c").await?;

    for round in 0..3 {
        node.cli(&["freeze", "shop"])?;
        assert_eq!(node.state("shop")?, "frozen", "round {round}");
        let fetched = client.simple_query("FETCH 1 FROM c").await?;
        let text = format!("{fetched:?}");
        ensure!(text.contains(&format!("{}", 4 + round)), "round {round}: {text}");
    }
    node.cli(&["freeze", "shop"])?;
    client.batch_execute("COMMIT").await?;
    node.cli(&["freeze", "shop"])?;
    assert_eq!(client.query_one(&prepared, &[&2000]).await?.get::<_, i32>(0), 2000);
    assert_eq!(client.query_one("SELECT n FROM mine", &[]).await?.get::<_, i32>(0), 5);
    let text = format!("{:?}", client.simple_query("EXECUTE sum(3)").await?);
    ensure!(text.contains('8'), "{text}");
    let text = format!("{:?}", client.simple_query("FETCH 1 FROM held").await?);
    ensure!(text.contains('1'), "{text}");
    let name: String = client.query_one("SELECT current_setting('application_name')", &[]).await?.get(0);
    assert_eq!(name, "sleeper");

    // The lock still keeps others out, and a notification reaches a session whose database was frozen.
    node.cli(&["freeze", "shop"])?;
    let other = Session::open(&shop.url).await?;
    assert!(!other.value::<bool>("SELECT pg_try_advisory_lock(4711)", &[]).await?);
    other.batch_execute("NOTIFY news, 'morning'").await?;
    let end = tokio::time::Instant::now() + SOON;
    loop {
        let message =
            tokio::time::timeout_at(end, messages.recv()).await?.context("the connection ended")??;
        if let tokio_postgres::AsyncMessage::Notification(news) = message {
            assert_eq!((news.channel(), news.payload()), ("news", "morning"));
            break;
        }
    }
    node.ensure_wakes("shop", 1, 6)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logical_slot_keeps_wal_level_logical_until_it_is_dropped() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create_with("shop", &["--set", "wal-level=logical", "--set", "idle-freeze=never"])?;
    let session = Session::open(&shop.url).await?;
    session.close().await;
    if !machine::is_root() {
        eprintln!("skipped: only root reaches the instance's own socket");
        return Ok(());
    }
    // Its owner may not make slots; what Roost makes is made like this.
    let superuser =
        format!("host={} user=_roost dbname=postgres", node.run().join(&shop.id).join("s").display());
    psql::run(&superuser, "SELECT pg_create_logical_replication_slot('remains', 'pgoutput')")?;
    node.cli(&["set", "shop", "wal-level=replica"])?;
    node.cli(&["stop", "shop"])?;
    let session = Session::open(&shop.url).await?;
    assert_eq!(session.value::<String>("SHOW wal_level", &[]).await?, "logical");
    ensure!(node.log().contains("logical replication slots"), "the log says why");
    session.close().await;
    psql::run(&superuser, "SELECT pg_drop_replication_slot('remains')")?;
    node.cli(&["stop", "shop"])?;
    let session = Session::open(&shop.url).await?;
    assert_eq!(session.value::<String>("SHOW wal_level", &[]).await?, "replica");
    Ok(())
}

/// What clients of the stress test saw.
#[derive(Debug, Default)]
struct Tally {
    queries: AtomicU64,
    stopped: AtomicU64,
}

/// One client: connects, asks a few questions with pauses, and leaves, until told to end.
async fn visit(url: &str, random: &mut Random, tally: &Tally) -> Result<()> {
    let opened = tokio::time::timeout(SOON, tokio_postgres::connect(url, NoTls)).await;
    let (client, connection) = match opened.context("no answer to a connection")? {
        Ok(pair) => pair,
        Err(error) => return ended(&error, "", tally),
    };
    let end = tokio::spawn(connection);
    for number in 0..random.below(6) {
        // A prepared statement would be closed behind our back, and swallow the server's last words as its answer.
        let question = format!("SELECT {number} + 1");
        let answer = tokio::time::timeout(SOON, client.simple_query(&question)).await;
        match answer.context("no answer to a query")? {
            Ok(messages) => {
                let value = messages.iter().find_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
                    _ => None,
                });
                ensure!(value == Some((number + 1).to_string().as_str()), "{question}: {value:?}");
            }
            Err(error) => {
                let last = match session::sqlstate(&error) {
                    "" => end.await?.err().map(|error| session::sqlstate(&error).to_owned()),
                    _ => None,
                };
                return ended(&error, &last.unwrap_or_default(), tally);
            }
        }
        tally.queries.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(random.within(Duration::from_millis(150))).await;
    }
    drop(client);
    let _ = tokio::time::timeout(SOON, end).await.context("the connection was not closed")?;
    Ok(())
}

fn ended(error: &tokio_postgres::Error, last: &str, tally: &Tally) -> Result<()> {
    let code = if last.is_empty() { session::sqlstate(error) } else { last };
    let message = session::message(error);
    ensure!(code == "57P01", "{code} {message}: {error:?}");
    tally.stopped.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Freezes, stops and wakes databases at random.
fn meddle(commands: &CommandLine, names: &[String], random: &mut Random, stop: &AtomicBool) -> Result<u64> {
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        let step = *random.pick(&["freeze", "freeze", "stop", "wake", "wake"]);
        let name = random.pick(names);
        let finished = commands.try_run(&[step, name])?;
        // A freeze is refused while somebody is active, or when the database has just stopped.
        ensure!(finished.status.success() || step == "freeze", "roost {step} {name}: {}", finished.stderr);
        done += 1;
        std::thread::sleep(random.within(Duration::from_millis(100)));
    }
    Ok(done)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_order_of_steps_and_sessions_fails_a_query_or_gets_stuck() -> Result<()> {
    let mut random = Random::from_environment("sleep");
    let mut node = Node::new()?;
    let policy = ["--set", "idle-freeze=50ms", "--set", "idle-stop=200ms", "--set", "memory=64MiB"];
    let databases: Vec<Database> =
        (0..10).map(|number| node.create_with(&format!("d{number}"), &policy)).collect::<Result<_>>()?;
    let names: Vec<String> = databases.iter().map(|database| database.name.clone()).collect();
    let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
    let clients: Vec<_> = (0..50)
        .map(|number| {
            let (stop, tally, mut random) = (stop.clone(), tally.clone(), random.fork());
            let urls: Vec<String> = databases.iter().map(|database| database.url.clone()).collect();
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let url = random.pick(&urls).clone();
                    if let Err(error) = visit(&url, &mut random, &tally).await {
                        stop.store(true, Ordering::Relaxed);
                        return Err(error.context(format!("client {number}")));
                    }
                    tokio::time::sleep(random.within(Duration::from_millis(400))).await;
                }
                Ok(())
            })
        })
        .collect();
    let meddlers: Vec<_> = (0..2)
        .map(|_| {
            let (commands, names, stop) = (node.command_line(), names.clone(), stop.clone());
            let mut random = random.fork();
            std::thread::spawn(move || meddle(&commands, &names, &mut random, &stop))
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(25);
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut errors = Vec::new();
    for client in clients {
        errors.extend(client.await?.err().map(|error| format!("{error:?}")));
    }
    let mut steps = 0;
    for meddler in meddlers {
        match meddler.join() {
            Ok(Ok(done)) => steps += done,
            other => errors.push(format!("{other:?}")),
        }
    }
    eprintln!("{tally:?}, {steps} steps by hand");
    ensure!(errors.is_empty(), "{} failed:\n{}", errors.len(), errors.join("\n"));
    ensure!(tally.queries.load(Ordering::Relaxed) > 200 && steps > 20, "too little happened");
    for database in &databases {
        let session = Session::open(&database.url).await.with_context(|| database.name.clone())?;
        assert_eq!(session.value::<i32>("SELECT 1", &[]).await?, 1);
    }
    for name in &names {
        node.wait_for_state(name, "stopped", SOON)?;
    }
    Ok(())
}
