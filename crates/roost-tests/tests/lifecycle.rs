//! What a user does with databases: create, connect, look, put to sleep, wake, change, delete; and who may wake one.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use roost_tests::node::{Node, Setup};
use roost_tests::session::{self, Session, url_with};
use roost_tests::{command, http, machine, psql};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// The fields that `list --json` and `show --json` promise.
fn check_listed(listed: &Value, name: &str, state: &str) -> Result<()> {
    ensure!(listed["id"].as_str().is_some_and(|id| id.starts_with("db_") && id.len() == 23), "id: {listed}");
    ensure!(listed["name"] == name, "name: {listed}");
    ensure!(listed["state"] == state, "state: {listed}");
    ensure!(listed["version"].as_str().is_some_and(|version| !version.is_empty()), "version: {listed}");
    ensure!(listed["sessions"].is_u64(), "sessions: {listed}");
    Ok(())
}

#[test]
fn a_created_database_is_listed_stopped_and_wakes_for_psql() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    assert!(shop.id.starts_with("db_"));
    check_listed(node.list()?.first().context("not listed")?, "shop", "stopped")?;
    assert_eq!(node.instance_processes(&shop), []);

    assert_eq!(psql::run(&shop.url, "SELECT current_user, current_database()")?, "postgres|postgres");
    assert_eq!(psql::run(&node.new_url("shop")?, "SELECT 6 * 7")?, "42");
    node.ensure_wakes("shop", 1, 0)?;
    let shown = node.show("shop")?;
    check_listed(&shown, "shop", "running")?;
    for key in ["lastMs", "p50Ms", "p99Ms"] {
        assert!(shown["wakes"][0][key].as_f64().is_some_and(|ms| ms > 0.0), "wakes have {key}: {shown}");
    }
    node.finish()
}

#[test]
fn stops_that_meet_starts_hold_nothing_up() -> Result<()> {
    let mut node = Node::new()?;
    let databases = (0..4).map(|n| node.create(&format!("shop{n}"))).collect::<Result<Vec<_>>>()?;
    std::thread::scope(|scope| -> Result<()> {
        let mut clients = Vec::new();
        for database in &databases {
            // A client may be told that its database was stopped.
            clients.push(
                scope.spawn(|| (0..15).try_for_each(|_| psql::try_run(&database.url, "SELECT 1").map(drop))),
            );
            for _ in 0..2 {
                let command_line = node.command_line();
                clients.push(scope.spawn(move || {
                    (0..15).try_for_each(|_| command_line.try_run(&["stop", &database.name]).map(drop))
                }));
            }
        }
        clients.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
    })?;
    for database in &databases {
        assert_eq!(psql::run(&database.url, "SELECT 6 * 7")?, "42");
    }
    node.finish()
}

#[test]
fn a_name_is_taken_once_and_must_be_a_dns_label() -> Result<()> {
    let mut node = Node::new()?;
    node.create("shop")?;
    for name in ["shop", "postgres", "template1", "roost", "Shop", "a b", "-a", "a--b", "", &"a".repeat(64)] {
        let refused = node.try_cli(&["create", "--", name])?;
        assert!(!refused.status.success(), "`{name}` was accepted");
        assert!(
            !refused.stderr.is_empty() && !refused.stderr.contains("panicked"),
            "{name}: {}",
            refused.stderr
        );
    }
    assert_eq!(node.list()?.len(), 1);
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn freezing_and_stopping_by_hand_keep_sessions_and_rows() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    let session = Session::open(&shop.url).await?;
    session
        .batch_execute(
            "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1); CREATE TEMP TABLE mine (n int)",
        )
        .await?;
    let server: i32 = session.value("SELECT pg_backend_pid()", &[]).await?;

    node.cli(&["freeze", "shop"])?;
    assert_eq!(node.state("shop")?, "frozen");
    assert_eq!(session.value::<i64>("SELECT count(*) FROM mine", &[]).await?, 0);
    assert_eq!(session.value::<i32>("SELECT pg_backend_pid()", &[]).await?, server);
    assert_eq!(node.state("shop")?, "running");
    node.ensure_wakes("shop", 1, 1)?;

    session.close().await;
    node.cli(&["stop", "shop"])?;
    assert_eq!(node.state("shop")?, "stopped");
    assert_eq!(node.instance_processes(&shop), []);
    assert_eq!(machine::cgroups_of(std::slice::from_ref(&shop.id)), Vec::<std::path::PathBuf>::new());
    node.cli(&["wake", "shop"])?;
    assert_eq!(node.state("shop")?, "running");
    let session = Session::open(&shop.url).await?;
    assert_eq!(session.value::<i64>("SELECT count(*) FROM kept", &[]).await?, 1);
    node.finish()
}

#[test]
fn an_idle_psql_session_does_not_keep_a_database_awake_and_goes_on_after_the_freeze() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    node.cli(&["set", "shop", "idle-freeze=1s", "idle-stop=never"])?;
    let mut psql =
        psql::command(&shop.url).arg("-At").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = psql.stdin.take().context("no standard input")?;
    let mut output = BufReader::new(psql.stdout.take().context("no standard output")?).lines();
    let mut ask = |query: &str| -> Result<String> {
        writeln!(input, "{query}")?;
        Ok(output.next().context("psql ended")??)
    };
    let server = ask("SELECT pg_backend_pid();")?;
    for round in 1..=3 {
        node.wait_for_state("shop", "frozen", SOON)?;
        assert_eq!(ask("SELECT pg_backend_pid();")?, server, "round {round}");
    }
    drop(input);
    assert!(command::wait(&mut psql, SOON)?.success());
    node.ensure_wakes("shop", 1, 3)?;
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_sessions_freezes_then_stops_and_a_held_one_does_not_stop() -> Result<()> {
    let mut node = Node::new()?;
    let idle = node.create("idle")?;
    let held = node.create("held")?;
    for name in ["idle", "held"] {
        node.cli(&["set", name, "idle-freeze=500ms", "idle-stop=2s"])?;
    }
    let session = Session::open(&held.url).await?;
    session.batch_execute("BEGIN; CREATE TABLE t (n int); INSERT INTO t VALUES (7)").await?;
    psql::run(&idle.url, "SELECT 1")?;
    node.wait_for_state("idle", "stopped", SOON)?;
    assert_eq!(node.instance_processes(&idle), []);
    node.wait_for_state("held", "frozen", SOON)?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(node.state("held")?, "frozen");
    assert_eq!(session.value::<i32>("SELECT n FROM t", &[]).await?, 7);
    session.batch_execute("COMMIT").await?;
    session.close().await;
    node.wait_for_state("held", "stopped", SOON)?;
    assert_eq!(psql::run(&held.url, "SELECT n FROM t")?, "7");
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_query_keeps_its_database_awake() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    node.cli(&["set", "shop", "idle-freeze=200ms", "idle-stop=400ms"])?;
    let session = Session::open(&shop.url).await?;
    assert_eq!(session.value::<String>("SELECT 'awake' FROM pg_sleep(4)", &[]).await?, "awake");
    node.ensure_wakes("shop", 1, 0)?;
    node.finish()
}

#[test]
fn a_long_list_is_written_whole_or_as_far_as_asked_and_leaves_out_what_is_deleted() -> Result<()> {
    let mut node = Node::new()?;
    let names: Vec<String> = (0..2_100).map(|number| format!("d{number}")).collect();
    node.create_many(&names)?;
    for gone in ["d0", "d1000", "d2099"] {
        node.cli(&["delete", gone])?;
    }
    let kept: Vec<&String> =
        names.iter().filter(|name| !["d0", "d1000", "d2099"].contains(&&***name)).collect();

    let listed = node.list()?;
    assert_eq!(listed.iter().filter_map(|one| one["name"].as_str()).collect::<Vec<_>>(), kept);
    let table = node.cli(&["list"])?;
    let first: Vec<&str> = table.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(first[0], "NAME");
    assert_eq!(first[1..], kept);
    assert_eq!(node.cli_json(&["list", "--limit", "3"])?.as_array().map(Vec::len), Some(3));
    assert_eq!(node.cli(&["list", "-n", "1500"])?.lines().count(), 1_501);
    assert_eq!(node.cli_json(&["list", "--deleted"])?.as_array().map(Vec::len), Some(3));
    assert_eq!(node.cli_json(&["list", "--limit", "0"])?, serde_json::json!([]));
    node.finish()
}

#[test]
fn a_deleted_database_comes_back_until_it_is_purged() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    psql::run(&shop.url, "CREATE TABLE t AS SELECT 1 AS n")?;
    node.cli(&["delete", "shop"])?;
    assert_eq!(node.list()?.len(), 0);
    assert_eq!(node.instance_processes(&shop), []);
    assert!(!psql::try_run(&shop.url, "SELECT 1")?.status.success());

    node.cli(&["undelete", &shop.id])?;
    assert_eq!(psql::run(&shop.url, "SELECT n FROM t")?, "1");

    node.cli(&["delete", "shop", "--purge"])?;
    assert!(!node.try_cli(&["undelete", &shop.id])?.status.success());
    let files = node.data().join("databases").join(&shop.id[3..5]).join(&shop.id);
    let end = Instant::now() + SOON;
    while files.exists() {
        ensure!(Instant::now() < end, "{} is still there", files.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    node.finish()
}

#[test]
fn a_renamed_database_keeps_its_urls_and_frees_its_name() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    psql::run(&shop.url, "CREATE TABLE t AS SELECT 1 AS n")?;
    node.cli(&["rename", "shop", "store"])?;
    assert_eq!(psql::run(&shop.url, "SELECT n FROM t")?, "1");
    assert_eq!(node.show("store")?["id"], shop.id.as_str());
    let other = node.create("shop")?;
    assert_ne!(other.id, shop.id);
    node.finish()
}

#[test]
fn settings_reach_postgres() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    node.cli(&["set", "shop", "memory=512MiB", "max-connections=17", "wal-level=logical", "storage=1GiB"])?;
    let query = "SELECT current_setting('max_connections'), current_setting('wal_level')";
    assert_eq!(psql::run(&shop.url, query)?, "17|logical");
    // A setting that needs a restart is in force after the next stop.
    node.cli(&["set", "shop", "wal-level=replica"])?;
    node.cli(&["stop", "shop"])?;
    assert_eq!(psql::run(&shop.url, query)?, "17|replica");
    assert!(!node.try_cli(&["set", "shop", "no-such-setting=1"])?.status.success());
    assert!(!node.try_cli(&["set", "shop", "memory=lots"])?.status.success());
    node.finish()
}

#[test]
fn logs_and_the_psql_command_reach_the_database() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    psql::try_run(&shop.url, "SELECT 1 / 0 AS a_division_for_the_log")?;
    assert!(node.cli(&["logs", "shop"])?.contains("division by zero"));
    let answer = command::run(node.command().args(["psql", "shop", "-XAt"]), b"SELECT current_user;", SOON)?
        .success()?;
    assert_eq!(answer.text(), "postgres");
    assert_eq!(node.cli(&["doctor"])?.lines().count().min(5), 5);
    node.finish()
}

/// One login that must fail, with the SQLSTATE it must fail with.
async fn refused(url: &str, sqlstate: &str) -> Result<()> {
    let Err(error) = Session::open(url).await else { anyhow::bail!("logged in: {url}") };
    ensure!(session::sqlstate(&error) == sqlstate, "{sqlstate} expected for {url}: {error:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_not_logged_in_wakes_a_database() -> Result<()> {
    let mut node = Setup::default().with_system_ports().start()?;
    let shop = node.create("shop")?;
    psql::run(&shop.url, "CREATE ROLE clerk LOGIN PASSWORD 'clerk-secret'")?;
    node.cli(&["stop", "shop"])?;
    node.ensure_wakes("shop", 1, 0)?;
    let still_asleep = |node: &Node, after: &str| -> Result<()> {
        ensure!(node.state("shop")? == "stopped" && node.wakes("shop")? == 1, "awake after {after}");
        ensure!(node.instance_processes(&shop).is_empty(), "processes after {after}");
        Ok(())
    };

    refused(&url_with(&shop.url, |url| url.password = "wrong".to_owned())?, "28P01").await?;
    still_asleep(&node, "a wrong password")?;
    refused(&url_with(&shop.url, |url| url.user = "con_aaaaaaaaaaaaaaaaaaaa".to_owned())?, "28P01").await?;
    still_asleep(&node, "an unknown connection")?;
    refused(&url_with(&shop.url, |url| url.user = "clerk.shop".to_owned())?, "28P01").await?;
    still_asleep(&node, "a wrong password of a role made with SQL")?;
    refused(&url_with(&shop.url, |url| url.user = "nobody.shop".to_owned())?, "28P01").await?;
    still_asleep(&node, "an unknown role")?;
    refused(&url_with(&shop.url, |url| url.user = "_roost.shop".to_owned())?, "28P01").await?;
    still_asleep(&node, "Roost's own role")?;

    let half_open: Vec<TcpStream> =
        (0..20).map(|_| TcpStream::connect(node.listen())).collect::<std::io::Result<_>>()?;
    for mut stream in half_open.iter().take(10) {
        stream.write_all(&[0, 0, 0])?;
    }
    still_asleep(&node, "half-open connections")?;
    for _ in 0..100 {
        TcpStream::connect(node.listen())?;
        TcpStream::connect(node.http())?;
    }
    still_asleep(&node, "a port scan")?;
    for path in ["/health", "/ready", "/metrics"] {
        let (status, body) = http::get(node.http(), path)?;
        assert_eq!(status, 200, "{path}: {body}");
    }
    assert!(http::get(node.http(), "/metrics")?.1.contains("roost_"));
    assert_ne!(
        http::get(node.http(), "/v1/databases")?.0,
        200,
        "the API has no tokens yet, so TCP must not have it"
    );
    still_asleep(&node, "a health check and a scrape")?;
    node.list()?;
    node.cli(&["show", "shop"])?;
    node.new_url("shop")?;
    still_asleep(&node, "the command line")?;

    let clerk = url_with(&shop.url, |url| {
        url.user = "clerk.shop".to_owned();
        url.password = "clerk-secret".to_owned();
    })?;
    let session = Session::open(&clerk).await?;
    assert_eq!(session.value::<String>("SELECT current_user::text", &[]).await?, "clerk");
    // Steps are told in order: one that something above had caused would be counted too.
    node.ensure_wakes("shop", 2, 0)?;
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_clients_at_once_cause_one_start() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    node.cli(&["set", "shop", "max-connections=250", "memory=1GiB"])?;
    let clients: Vec<_> = (0..200)
        .map(|number: i32| {
            let url = shop.url.clone();
            tokio::spawn(async move {
                let session = Session::open(&url).await?;
                session.value::<i32>("SELECT $1::int", &[&number]).await
            })
        })
        .collect();
    for (number, client) in clients.into_iter().enumerate() {
        let answer = client.await?.with_context(|| format!("client {number}"))?;
        assert_eq!(answer, i32::try_from(number)?);
    }
    node.ensure_wakes("shop", 1, 0)?;
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn replacing_the_node_and_the_warden_leaves_databases_running() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    node.cli(&["set", "shop", "idle-freeze=never", "idle-stop=never"])?;
    psql::run(&shop.url, "CREATE TABLE t AS SELECT 1 AS n")?;
    let postmaster = node.postmaster_pid(&shop)?;

    node.replace_node()?;
    assert_eq!(psql::run(&shop.url, "SELECT n FROM t")?, "1");
    assert_eq!(node.postmaster_pid(&shop)?, postmaster, "after SIGHUP");

    node.kill_node()?;
    node.revive()?;
    Session::open_within(&shop.url, SOON).await?.close().await;
    assert_eq!(node.postmaster_pid(&shop)?, postmaster, "after the node was killed");

    node.kill_warden()?;
    node.revive()?;
    Session::open_within(&shop.url, SOON).await?.close().await;
    assert_eq!(node.postmaster_pid(&shop)?, postmaster, "after the warden was killed");
    node.ensure_wakes("shop", 1, 0)?;
    node.finish()
}

#[test]
fn a_second_node_on_the_same_data_is_refused() -> Result<()> {
    let node = Node::new()?;
    let run = node.scratch().join("r2");
    let second = command::run(
        node.command()
            .args(["up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"])
            .arg(node.data())
            .arg("--run")
            .arg(&run),
        b"",
        SOON,
    )?;
    assert!(!second.status.success());
    assert!(
        second.stderr.contains(&*node.data().to_string_lossy()),
        "the error names DATA: {}",
        second.stderr
    );
    assert_eq!(node.list()?.len(), 0);
    node.finish()
}

#[test]
fn every_installed_major_can_be_used() -> Result<()> {
    let further = machine::further_postgres();
    let mut node = Setup::default().with_installations(further.clone()).start()?;
    let majors =
        further.iter().map(|installation| installation.major).chain([machine::debian_postgres()?.major]);
    for major in majors {
        let database = node.create_major(&format!("pg{major}"), major)?;
        let query =
            "SELECT current_setting('server_version_num')::int / 10000, current_setting('data_checksums')";
        assert_eq!(psql::run(&database.url, query)?, format!("{major}|on"));
        node.cli(&["freeze", &database.name])?;
        assert_eq!(psql::run(&database.url, "SELECT 1")?, "1");
        node.cli(&["stop", &database.name])?;
        assert_eq!(psql::run(&database.url, "SELECT 1")?, "1");
        assert_eq!(
            node.show(&database.name)?["version"].as_str().map(|text| text.starts_with(&major.to_string())),
            Some(true)
        );
    }
    node.finish()
}
