//! Memory: a query that wants too much fails alone, a database that runs out of memory recovers alone, and a node with
//! little of it lets the longest idle go first.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use roost_tests::machine;
use roost_tests::node::{Node, Setup};
use roost_tests::session::{self, Session};
use tokio_postgres::NoTls;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_wants_too_much_memory_fails_alone() -> Result<()> {
    let mut node = Node::new()?;
    for (name, memory) in [("small", "memory=64MiB"), ("medium", "memory=128MiB")] {
        let database = node.create_with(name, &["--set", memory])?;
        let witness = Session::open(&database.url).await?;
        witness
            .batch_execute("CREATE TABLE kept AS SELECT 1 AS n; CREATE TEMP TABLE mine AS SELECT 2 AS n")
            .await?;
        let server: i32 = witness.value("SELECT pg_backend_pid()", &[]).await?;
        let postmaster = node.postmaster_pid(&database)?;

        let greedy = Session::open(&database.url).await?;
        assert_eq!(greedy.sqlstate_of("SELECT repeat('x', 500000000)").await?, "53200", "{name}: one value");
        let sort = "SET work_mem = '2GB'; SELECT count(*) FROM (SELECT md5(n::text) AS m \
                    FROM generate_series(1, 3000000) n ORDER BY m OFFSET 10) sorted";
        assert_eq!(greedy.sqlstate_of(sort).await?, "53200", "{name}: a sort");
        assert_eq!(greedy.value::<i32>("SELECT 1", &[]).await?, 1, "{name}: the session goes on");

        assert_eq!(witness.value::<i32>("SELECT n FROM mine", &[]).await?, 2);
        assert_eq!(witness.value::<i32>("SELECT pg_backend_pid()", &[]).await?, server);
        assert_eq!(node.postmaster_pid(&database)?, postmaster);
        node.ensure_wakes(name, 1, 0)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_greedy_sessions_at_once_leave_a_reachable_database_and_its_rows() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create_with("shop", &["--set", "memory=128MiB"])?;
    let other = node.create("other")?;
    let neighbour = Session::open(&other.url).await?;
    let server: i32 = neighbour.value("SELECT pg_backend_pid()", &[]).await?;
    Session::open(&shop.url).await?.batch_execute("CREATE TABLE kept AS SELECT 1 AS n").await?;

    let greedy = (0..24).map(|_| {
        let url = shop.url.clone();
        tokio::spawn(async move {
            let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
            let ended = tokio::spawn(connection);
            // Each within what one backend may have, and together far more than there is.
            let grab =
                "SELECT length(v), pg_sleep(2) FROM (SELECT repeat('x', 30000000) AS v OFFSET 0) grabbed";
            let error = match client.simple_query(grab).await {
                Ok(_) => return Ok("00000".to_owned()),
                Err(error) => error,
            };
            let code = session::sqlstate(&error).to_owned();
            let last = match code.as_str() {
                "" => {
                    ended.await?.err().map(|error| session::sqlstate(&error).to_owned()).unwrap_or_default()
                }
                _ => code,
            };
            Ok::<_, anyhow::Error>(last)
        })
    });
    let mut codes = Vec::new();
    for ended in join_all(greedy).await {
        match ended? {
            Ok(code) => codes.push(code),
            Err(error) => {
                let code = error.downcast_ref().map(session::sqlstate).unwrap_or_default().to_owned();
                ensure!(["57P03", "57P02", "57P01", "53200"].contains(&code.as_str()), "{error:?}");
                codes.push(code);
            }
        }
    }
    eprintln!("{codes:?}");
    for code in &codes {
        ensure!(["00000", "53200", "57P02", "57P01", "57P03"].contains(&code.as_str()), "{codes:?}");
    }
    let session = Session::open_within(&shop.url, SOON).await?;
    assert_eq!(session.value::<i32>("SELECT n FROM kept", &[]).await?, 1);
    assert_eq!(neighbour.value::<i32>("SELECT pg_backend_pid()", &[]).await?, server);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_ends_its_databases_sessions_with_a_code_and_nothing_else() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    let other = node.create("other")?;
    let neighbour = Session::open(&other.url).await?;
    let server: i32 = neighbour.value("SELECT pg_backend_pid()", &[]).await?;
    Session::open(&shop.url).await?.batch_execute("CREATE TABLE kept AS SELECT 1 AS n").await?;

    // What the kernel does when memory is out: one process dies, or the postmaster itself.
    for (victim, postmaster) in [("a backend", false), ("the postmaster", true)] {
        let (client, connection) = tokio_postgres::connect(&shop.url, NoTls).await?;
        let ended = tokio::spawn(connection);
        client.simple_query("SELECT 1").await?;
        let first = node.postmaster_pid(&shop)?;
        let pid = if postmaster {
            first
        } else {
            let processes = node.instance_processes(&shop);
            let walwriter =
                processes.iter().filter(|process| process.parent == first).map(|process| process.pid);
            walwriter.max().context("the postmaster has no children")?
        };
        machine::signal(pid, rustix::process::Signal::KILL)?;
        let end = tokio::time::timeout(SOON, ended).await.context("the session did not end")??;
        let code = end.err().map(|error| session::sqlstate(&error).to_owned()).unwrap_or_default();
        ensure!(["57P01", "57P02"].contains(&code.as_str()), "{victim}: `{code}`");
        let session = Session::open_within(&shop.url, SOON).await.with_context(|| victim.to_owned())?;
        assert_eq!(session.value::<i32>("SELECT n FROM kept", &[]).await?, 1);
    }
    assert_eq!(neighbour.value::<i32>("SELECT pg_backend_pid()", &[]).await?, server);
    Ok(())
}

/// The least budget that a node accepts: ten databases fit in, as long as each needs little.
const BUDGET: [&str; 2] = ["--limits-memory-budget", "256MiB"];

#[tokio::test(flavor = "multi_thread")]
async fn within_a_budget_the_longest_idle_goes_first() -> Result<()> {
    let mut node = Setup::default().with(BUDGET).start()?;
    let names: Vec<String> = (0..14).map(|number| format!("d{number}")).collect();
    let mut held = None;
    for (number, name) in names.iter().enumerate() {
        let database = node.create_with(name, &["--set", "idle-freeze=never", "--set", "idle-stop=never"])?;
        let session = Session::open(&database.url).await.with_context(|| name.clone())?;
        assert_eq!(session.value::<i32>("SELECT 1", &[]).await?, 1);
        if number == 0 {
            held = Some(session);
        } else {
            session.close().await;
        }
    }
    let states = names.iter().map(|name| node.state(name)).collect::<Result<Vec<_>>>()?;
    let running = states.iter().filter(|state| *state == "running").count();
    ensure!((2..=10).contains(&running), "{states:?}");
    assert_eq!(states[0], "running", "a session holds it: {states:?}");
    // The others went in the order in which they were used.
    let rest = &states[1..];
    let first_running = rest.iter().position(|state| state == "running").context("none runs")?;
    ensure!(rest[..first_running].iter().all(|state| state == "stopped"), "{states:?}");
    ensure!(rest[first_running..].iter().all(|state| state == "running"), "{states:?}");
    held.context("the first one")?.value::<i32>("SELECT 1", &[]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_database_goes_only_where_its_owner_allows_it() -> Result<()> {
    let mut node = Setup::default().with(BUDGET).with(["--gateway-connect-deadline", "5s"]).start()?;
    let mut held = Vec::new();
    let (refused, error, took) = loop {
        let database = node.create_with(&format!("d{}", held.len()), &["--set", "idle-freeze=never"])?;
        if held.is_empty() {
            // The first start waits for the template, however long that takes here.
            node.cli(&["wake", &database.name])?;
        }
        let begun = Instant::now();
        match tokio_postgres::connect(&database.url, NoTls).await {
            Ok((client, connection)) => {
                let ended = tokio::spawn(connection);
                client.simple_query("SELECT 1").await?;
                held.push((client, ended));
            }
            Err(error) => break (database, error, begun.elapsed()),
        }
        ensure!(held.len() <= 10, "more were admitted than there is memory for");
    };
    assert_eq!(session::sqlstate(&error), "53200", "{error:?}");
    ensure!(session::message(&error).contains("limits.memory_budget"), "{error:?}");
    ensure!(took < Duration::from_secs(15), "{took:?}");
    for (client, _) in &held {
        client.simple_query("SELECT 1").await?;
    }

    node.cli(&["set", "d0", "stop-under-sessions=true"])?;
    let session = Session::open_within(&refused.url, SOON).await?;
    let (_client, ended) = held.remove(0);
    let end = tokio::time::timeout(SOON, ended).await.context("the session did not end")??;
    let error = end.err().context("no last words")?;
    assert_eq!(session::sqlstate(&error), "57P01");
    ensure!(session::message(&error).contains("memory"), "{error:?}");
    for (client, _) in &held {
        client.simple_query("SELECT 1").await?;
    }
    assert_eq!(session.value::<i32>("SELECT 1", &[]).await?, 1);
    Ok(())
}
