//! Real, unmodified clients: they log in, query, use transactions and COPY, cancel, and survive a freeze with an open
//! session and a stop between sessions.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt, pin_mut};
use roost_tests::machine::{crate_folder, program, python};
use roost_tests::node::{Database, Node, Setup};
use roost_tests::session::{Session, sqlstate, url_with};
use roost_tests::{command, machine, psql};
use rustix::process::Signal;
use sqlx::{Connection, Executor};
use tokio_postgres::NoTls;

const SOON: Duration = Duration::from_secs(60);

/// Runs a client script, freezing and stopping its database when it asks for that.
fn run_script(node: &Node, database: &Database, mut script: Command) -> Result<()> {
    let mut child = script.arg(&database.url).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("no standard input")?;
    let output = BufReader::new(child.stdout.take().context("no standard output")?);
    let (finished, watched) = mpsc::channel::<()>();
    let pid = i32::try_from(child.id())?;
    std::thread::spawn(move || {
        if watched.recv_timeout(SOON) == Err(mpsc::RecvTimeoutError::Timeout) {
            // It hangs: its end ends the loop below.
            let _ = machine::signal(pid, Signal::KILL);
        }
    });
    let mut paused = Vec::new();
    let mut done = false;
    for line in output.lines() {
        let line = line?;
        match line.split_once(' ') {
            Some(("pause", what)) => {
                node.cli(&[what, &database.name])?;
                paused.push(what.to_owned());
                writeln!(input, "go on")?;
            }
            _ => done |= line == "done",
        }
    }
    let status = command::wait(&mut child, SOON)?;
    drop(finished);
    ensure!(
        status.success() && done && paused == ["freeze", "stop"],
        "{status}, done: {done}, paused: {paused:?}"
    );
    Ok(())
}

fn python_script(name: &str) -> Result<Command> {
    let mut command = Command::new(python()?);
    command.arg(crate_folder().join("clients/python").join(name));
    Ok(command)
}

fn node_script(name: &str) -> Result<Command> {
    let script = crate_folder().join("clients/node").join(name);
    ensure!(script.with_file_name("node_modules").exists(), "run scripts/install-test-dependencies");
    let mut command = Command::new(program("node"));
    command.arg(script);
    Ok(command)
}

#[test]
fn python_clients_work_and_survive_sleep() -> Result<()> {
    let mut node = Node::new()?;
    let database = node.create("python")?;
    run_script(&node, &database, python_script("client_psycopg.py")?).context("psycopg")?;
    run_script(&node, &database, python_script("client_asyncpg.py")?).context("asyncpg")?;
    node.finish()
}

#[test]
fn node_clients_work_and_survive_sleep() -> Result<()> {
    let mut node = Node::new()?;
    let database = node.create("node")?;
    run_script(&node, &database, node_script("client_pg.mjs")?).context("pg")?;
    run_script(&node, &database, node_script("client_postgres.mjs")?).context("postgres")?;
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokio_postgres_works_and_survives_sleep() -> Result<()> {
    let mut node = Node::new()?;
    let database = node.create("rust")?;
    let mut session = Session::open(&database.url).await?;
    assert_eq!(session.value::<i32>("SELECT $1::int + $2::int", &[&40, &2]).await?, 42);
    session.batch_execute("CREATE TABLE t (n int PRIMARY KEY, t text)").await?;

    let transaction = session.transaction().await?;
    transaction.execute("INSERT INTO t VALUES (1, 'kept')", &[]).await?;
    transaction.commit().await?;
    let transaction = session.transaction().await?;
    transaction.execute("INSERT INTO t VALUES (2, 'rolled back')", &[]).await?;
    transaction.rollback().await?;

    let sink = session.copy_in("COPY t FROM STDIN").await?;
    pin_mut!(sink);
    for first in (1000..6000).step_by(100) {
        let lines: String = (first..first + 100).map(|n| format!("{n}\trow {n}\n")).collect();
        sink.send(std::io::Cursor::new(lines.into_bytes())).await?;
    }
    assert_eq!(sink.finish().await?, 5000);
    let stream = session.copy_out("COPY (SELECT n FROM t WHERE n >= 1000 ORDER BY n) TO STDOUT").await?;
    pin_mut!(stream);
    let mut copied = Vec::new();
    while let Some(chunk) = stream.next().await {
        copied.extend_from_slice(&chunk?);
    }
    let copied: Vec<i32> = String::from_utf8(copied)?.lines().map(str::parse).collect::<Result<_, _>>()?;
    assert_eq!(copied, (1000..6000).collect::<Vec<i32>>());

    let cancel = session.cancel_token();
    let timer = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        cancel.cancel_query(NoTls).await
    });
    let Err(error) = session.batch_execute("SELECT pg_sleep(60)").await else { bail!("not cancelled") };
    assert_eq!(sqlstate(&error), "57014");
    timer.await??;

    let prepared = session.prepare("SELECT $1::int * 2").await?;
    node.cli(&["freeze", "rust"])?;
    assert_eq!(session.query_one(&prepared, &[&21]).await?.try_get::<_, i32>(0)?, 42);
    session.close().await;
    node.cli(&["stop", "rust"])?;
    let session = Session::open(&database.url).await?;
    assert_eq!(session.value::<i64>("SELECT count(*) FROM t", &[]).await?, 5001);
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlx_works_and_survives_sleep() -> Result<()> {
    let mut node = Node::new()?;
    let database = node.create("sqlx")?;
    let mut connection = sqlx::PgConnection::connect(&database.url).await?;
    let sum: i32 =
        sqlx::query_scalar("SELECT $1 + $2").bind(40_i32).bind(2_i32).fetch_one(&mut connection).await?;
    assert_eq!(sum, 42);
    connection.execute("CREATE TABLE t (n int PRIMARY KEY, t text)").await?;
    let mut transaction = connection.begin().await?;
    transaction.execute("INSERT INTO t VALUES (1, 'kept')").await?;
    transaction.commit().await?;
    let mut transaction = connection.begin().await?;
    transaction.execute("INSERT INTO t VALUES (2, 'rolled back')").await?;
    transaction.rollback().await?;

    let mut copy = connection.copy_in_raw("COPY t FROM STDIN").await?;
    copy.send((1000..6000).map(|n| format!("{n}\trow {n}\n")).collect::<String>().into_bytes()).await?;
    assert_eq!(copy.finish().await?, 5000);
    let mut stream = connection.copy_out_raw("COPY (SELECT n FROM t WHERE n >= 1000) TO STDOUT").await?;
    let mut lines = 0;
    while let Some(chunk) = stream.next().await {
        lines += chunk?.iter().filter(|byte| **byte == b'\n').count();
    }
    drop(stream);
    assert_eq!(lines, 5000);

    node.cli(&["freeze", "sqlx"])?;
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&mut connection).await?;
    assert_eq!(count, 5001);
    connection.close().await?;
    node.cli(&["stop", "sqlx"])?;
    let pool = sqlx::PgPool::connect(&database.url).await?;
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&pool).await?;
    assert_eq!(count, 5001);
    pool.close().await;
    node.finish()
}

#[test]
fn psql_works_and_its_query_is_cancelled_by_an_interrupt() -> Result<()> {
    let mut node = Node::new()?;
    let database = node.create("shop")?;
    let rows = node.scratch().join("rows");
    fs::write(&rows, (0..5000).map(|n| format!("{n}\trow {n}\n")).collect::<String>())?;
    let script = format!(
        "CREATE TABLE t (n int PRIMARY KEY, t text);\n\\copy t FROM '{0}'\n\\copy t TO '{0}.out'\n\
         BEGIN; DELETE FROM t; ROLLBACK;\nSELECT count(*) FROM t;\n\\d t\n",
        rows.display()
    );
    let answer = psql::run(&database.url, &script)?;
    assert!(answer.starts_with("5000\n") && answer.contains("n|integer"), "{answer}");
    assert_eq!(fs::read(&rows)?, fs::read(rows.with_extension("out"))?);

    let mut sleeping = psql::command(&database.url)
        .args(["-c", "SELECT pg_sleep(60)"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    std::thread::sleep(Duration::from_secs(2));
    machine::signal(i32::try_from(sleeping.id())?, Signal::INT)?;
    assert!(!command::wait(&mut sleeping, Duration::from_secs(20))?.success());
    let mut error = String::new();
    std::io::Read::read_to_string(&mut sleeping.stderr.take().context("no standard error")?, &mut error)?;
    assert!(error.contains("canceling statement due to user request"), "{error}");
    node.finish()
}

/// Tables with most kinds of content that a dump has to carry.
const CONTENT: &str = "
    CREATE SCHEMA sales;
    CREATE TYPE sales.mood AS ENUM ('glad', 'sad');
    CREATE TABLE sales.orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, mood sales.mood, at timestamptz,
        note text, data jsonb, raw bytea);
    INSERT INTO sales.orders (mood, at, note, data, raw)
        SELECT 'glad', '2024-01-01'::timestamptz + n * interval '1 hour', repeat('naïve ☃ ', n % 50),
            jsonb_build_object('n', n, 'list', ARRAY[n, n + 1]), decode(lpad(to_hex(n), 8, '0'), 'hex')
        FROM generate_series(1, 5000) n;
    CREATE INDEX ON sales.orders USING gin (data);
    CREATE VIEW sales.recent AS SELECT * FROM sales.orders WHERE id > 4900;
    CREATE FUNCTION sales.twice(n int) RETURNS int LANGUAGE sql AS 'SELECT n * 2';
    CREATE TABLE public.parted (n int) PARTITION BY RANGE (n);
    CREATE TABLE public.part1 PARTITION OF public.parted FOR VALUES FROM (0) TO (100);
    INSERT INTO public.parted SELECT generate_series(0, 99);
    CREATE EXTENSION hstore;
";

#[test]
fn pg_dump_and_pg_restore_carry_a_database_over() -> Result<()> {
    let mut node = Node::new()?;
    let (from, to) = (node.create("from")?, node.create("to")?);
    psql::run(&from.url, CONTENT)?;
    let archive = node.scratch().join("dump");
    for format in ["custom", "directory"] {
        let mut dump = psql::client_program(&machine::program("pg_dump"));
        dump.args(["--format", format, "--file"]).arg(&archive).args(["--dbname", &from.url]);
        command::run(&mut dump, b"", SOON)?.success().context("pg_dump")?;
        node.cli(&["stop", "to"])?;
        let mut restore = psql::client_program(&machine::program("pg_restore"));
        restore
            .args(["--exit-on-error", "--clean", "--if-exists", "--jobs", "2", "--dbname", &to.url])
            .arg(&archive);
        command::run(&mut restore, b"", SOON)?.success().context("pg_restore")?;
        assert_eq!(psql::fingerprint(&from.url)?, psql::fingerprint(&to.url)?);
        if archive.is_file() { fs::remove_file(&archive)? } else { fs::remove_dir_all(&archive)? }
    }
    node.finish()
}

#[test]
fn roost_dump_and_restore_carry_a_database_over() -> Result<()> {
    let mut node = Node::new()?;
    let from = node.create("from")?;
    psql::run(&from.url, CONTENT)?;
    let dump = command::run(node.command().args(["dump", "from"]), b"", SOON)?.success()?;
    assert!(dump.stdout.starts_with(b"PGDMP"), "a dump is in pg_dump's custom format");
    command::run(node.command().args(["restore", "new"]), &dump.stdout, SOON)?.success()?;
    assert_eq!(psql::fingerprint(&from.url)?, psql::fingerprint(&node.new_url("new")?)?);
    node.finish()
}

#[test]
fn a_cold_copy_of_a_stopped_database_becomes_another_one() -> Result<()> {
    let mut node = Node::new()?;
    let from = node.create("from")?;
    psql::run(&from.url, CONTENT)?;
    let identifier = "SELECT system_identifier FROM pg_control_system()";
    node.cli(&["stop", "from"])?;
    let file = node.scratch().join("cold.tar");
    command::run(node.command().args(["dump", "from", "--cold", "--file"]).arg(&file), b"", SOON)?
        .success()?;
    assert_eq!(node.state("from")?, "stopped");
    command::run(node.command().args(["restore", "new", "--cold", "--file"]).arg(&file), b"", SOON)?
        .success()?;
    let new = node.new_url("new")?;
    assert_eq!(psql::fingerprint(&from.url)?, psql::fingerprint(&new)?);
    assert_ne!(
        psql::run(&from.url, identifier)?,
        psql::run(&new, identifier)?,
        "two volumes with one identity"
    );
    node.finish()
}

/// The node's self-signed certificate.
fn certificate(node: &Node) -> Result<PathBuf> {
    let files = fs::read_dir(node.data().join("tls"))?.flatten().map(|entry| entry.path());
    files
        .filter(|path| fs::read_to_string(path).is_ok_and(|text| text.contains("BEGIN CERTIFICATE")))
        .min()
        .context("no certificate in DATA/tls")
}

#[test]
fn tls_protects_a_session_and_the_certificate_can_be_verified() -> Result<()> {
    let mut node = Node::new()?;
    let database = node.create("shop")?;
    let certificate = certificate(&node)?;
    let with = |parameters: &[&str]| {
        url_with(&database.url, |url| url.parameters.extend(parameters.iter().map(|text| (*text).to_owned())))
    };
    let root = format!("sslrootcert={}", certificate.display());
    for parameters in [
        vec!["sslmode=require"],
        vec!["sslmode=verify-ca", &root],
        vec!["sslmode=verify-full", &root],
        vec!["sslmode=require", "channel_binding=require"],
    ] {
        let answer =
            psql::run(&with(&parameters)?, "\\conninfo\nSELECT 6 * 7;\n").context(parameters.join("&"))?;
        assert!(answer.contains("TLSv1.3") && answer.ends_with("42"), "{parameters:?}: {answer}");
    }
    let other = format!("sslrootcert={}", foreign_certificate(&node)?.display());
    let refused = psql::try_run(&with(&["sslmode=verify-ca", &other])?, "SELECT 1")?;
    assert!(
        !refused.status.success() && refused.stderr.contains("certificate verify failed"),
        "{}",
        refused.stderr
    );
    node.finish()
}

/// A certificate that the node does not have: another node's.
fn foreign_certificate(node: &Node) -> Result<PathBuf> {
    let other = Node::new()?;
    let copy = node.scratch().join("foreign.pem");
    fs::copy(certificate(&other)?, &copy)?;
    Ok(copy)
}

/// Makes a certificate for this machine that signs itself, and its key, each in place of the one before.
fn make_certificate(certificate: &Path, key: &Path) -> Result<()> {
    let new = |path: &Path| PathBuf::from(format!("{}.new", path.display()));
    let mut openssl = Command::new(program("openssl"));
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    openssl.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]);
    openssl.arg("-keyout").arg(new(key)).arg("-out").arg(new(certificate));
    command::run(&mut openssl, b"", SOON)?.success()?;
    for path in [key, certificate] {
        // The node reads them as a user of its own.
        fs::set_permissions(new(path), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        fs::rename(new(path), path)?;
    }
    Ok(())
}

#[test]
fn a_new_certificate_is_that_of_new_connections_and_old_sessions_go_on() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("roost-tls-").tempdir()?;
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let at = |name: &str| folder.path().join(name);
    let (certificate, key, old, new) = (at("server.crt"), at("server.key"), at("old.crt"), at("new.crt"));
    make_certificate(&certificate, &key)?;
    fs::copy(&certificate, &old)?;
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path that is no UTF-8");
    let mut node = Setup::default()
        .with(["--tls-certificate", &text(&certificate)?, "--tls-key", &text(&key)?])
        .start()?;
    let shop = node.create("shop")?;
    let trusting = |root: &Path| {
        let parameters = ["sslmode=verify-full".to_owned(), format!("sslrootcert={}", root.display())];
        url_with(&shop.url, |url| url.parameters.extend(parameters))
    };

    let mut before =
        psql::command(&trusting(&old)?).arg("-At").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = before.stdin.take().context("no standard input")?;
    let mut output = BufReader::new(before.stdout.take().context("no standard output")?).lines();
    let mut ask = || -> Result<String> {
        writeln!(input, "SELECT pg_backend_pid();")?;
        Ok(output.next().context("psql ended")??)
    };
    let server = ask()?;

    make_certificate(&certificate, &key)?;
    fs::copy(&certificate, &new)?;
    let end = Instant::now() + SOON;
    while !psql::try_run(&trusting(&new)?, "SELECT 1")?.status.success() {
        ensure!(Instant::now() < end, "the new certificate was not taken:\n{}", node.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let refused = psql::try_run(&trusting(&old)?, "SELECT 1")?;
    ensure!(refused.stderr.contains("certificate verify failed"), "{}", refused.stderr);
    assert_eq!(ask()?, server, "the old session goes on");
    drop(input);
    assert!(command::wait(&mut before, SOON)?.success());
    node.finish()
}
