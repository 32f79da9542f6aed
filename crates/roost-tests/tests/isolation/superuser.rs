//! A superuser inside a database, who gets there over the socket that only root and the node can open: with SQL alone.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use roost_tests::machine;
use roost_tests::node::{Database, Node};
use roost_tests::session::{Session, message, sqlstate};
use tokio_postgres::Config;

/// A session as Roost's own superuser, past the gateway. Keeps nothing awake: idle policies are off in these tests.
pub(crate) async fn open_as_superuser(node: &Node, database: &Database) -> Result<Session> {
    let mut config = Config::new();
    config.host_path(node.run().join(&database.id).join("s")).user("_roost").dbname("postgres");
    Ok(Session::with(&config).await?)
}

/// Two databases that run, one of which is attacked from.
pub(crate) async fn attacker_and_victim(node: &mut Node) -> Result<(Database, Database)> {
    let (attacker, victim) = (node.create("attacker")?, node.create("victim")?);
    for database in [&attacker, &victim] {
        node.cli(&["set", &database.name, "idle-freeze=never", "idle-stop=never"])?;
        Session::open(&database.url).await?.close().await;
    }
    Ok((attacker, victim))
}

/// Paths of the host and of other databases that must not be readable from inside.
pub(crate) fn forbidden_paths(node: &Node, victim: &Database) -> Vec<String> {
    let data = node.data().display().to_string();
    let volume = format!("{data}/databases/{}/{}/volume", &victim.id[3..5], victim.id);
    let run = node.run().display().to_string();
    let mut paths: Vec<String> = [
        "/etc/shadow",
        "/etc/ssh",
        "/root",
        "/home",
        "/sys/fs/cgroup",
        "/sys/kernel",
        "/proc/1/root/etc/shadow",
        "/var/log",
        "/boot",
        "/dev/mem",
        "/dev/vda",
    ]
    .map(str::to_owned)
    .to_vec();
    paths.extend([
        format!("{data}/catalog.sqlite"),
        format!("{data}/tls"),
        volume.clone(),
        format!("{volume}/manifest.json"),
    ]);
    paths.extend([format!("{run}/api.sock"), format!("{run}/node.json"), format!("{run}/{}", victim.id)]);
    paths.push(node.scratch().display().to_string());
    paths.push(machine::crate_folder().display().to_string());
    paths
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superuser_reads_and_reaches_nothing_of_the_host() -> Result<()> {
    ensure!(machine::is_root(), "isolation needs root; without it `roost doctor` says what is missing");
    let mut node = Node::new()?;
    let (attacker, victim) = attacker_and_victim(&mut node).await?;
    let session = open_as_superuser(&node, &attacker).await?;

    for path in forbidden_paths(&node, &victim) {
        for read in ["pg_read_binary_file($1)::text", "(SELECT string_agg(f, ' ') FROM pg_ls_dir($1) f)"] {
            if let Ok(found) = session.value::<Option<String>>(&format!("SELECT {read}"), &[&path]).await {
                // A folder that is there and empty gives nothing away.
                ensure!(found.as_deref().unwrap_or_default().is_empty(), "{read} of {path} gave: {found:?}");
            }
        }
    }

    let processes: Vec<String> = session
        .query("SELECT f FROM pg_ls_dir('/proc') f WHERE f ~ '^[0-9]+$'", &[])
        .await
        .map(|rows| rows.iter().filter_map(|row| row.try_get(0).ok()).collect())
        .unwrap_or_default();
    let own = node.instance_processes(&attacker).len();
    ensure!(processes.len() <= own + 2, "{} processes are seen, {own} are its own", processes.len());

    // That the root folder cannot even be listed is as good.
    for name in ["root", "home", "boot", "srv", "mnt", "media", "opt", "var", "work"] {
        let seen = format!("SELECT string_agg(f, ' ') FROM pg_ls_dir('/{name}') f");
        let seen: Option<String> = session.value(&seen, &[]).await.unwrap_or(None);
        ensure!(seen.is_none(), "/{name} is seen from inside: {seen:?}");
    }

    for folder in ["/usr", "/etc", "/tmp", "/var/tmp", "/dev/shm"] {
        let target = format!("{folder}/roost-was-here-{}", victim.id);
        let _ = session.batch_execute(&format!("SELECT lo_export(lo_from_bytea(0, 'x'), '{target}')")).await;
        ensure!(!Path::new(&target).exists(), "{target} was written on the host");
    }

    let port = node.listen().rsplit_once(':').context("no port")?.1.to_owned();
    session.batch_execute("CREATE EXTENSION dblink").await?;
    let socket = node.run().join(&victim.id).join("s");
    for target in [
        format!("host=127.0.0.1 port={port} user=x password=x"),
        format!("host=127.0.0.1 port={} user=x", node.http().rsplit_once(':').context("no port")?.1),
        format!("host={} user=_roost dbname=postgres", socket.display()),
        "host=/var/run/postgresql user=postgres".to_owned(),
        format!("host={} user=_roost dbname=postgres", node.run().join(&attacker.id).join("s").display()),
    ] {
        let attempt = session.query_one("SELECT dblink_connect($1)", &[&target]).await;
        let error = attempt.err().with_context(|| format!("connected to {target}"))?;
        let detail = error.as_db_error().and_then(|error| error.detail()).unwrap_or_default().to_owned();
        ensure!(!detail.contains("password") && !detail.contains("SSL"), "reached {target}: {detail}");
    }
    let _ = session.batch_execute("CREATE TABLE heard (t text)").await;
    let shell = format!("COPY heard FROM PROGRAM 'exec 3<>/dev/tcp/127.0.0.1/{port} && echo reached'");
    let _ = session.batch_execute(&shell).await;
    let _ = session.batch_execute("COPY heard FROM PROGRAM 'cat /etc/shadow'").await;
    ensure!(session.value::<i64>("SELECT count(*) FROM heard", &[]).await? == 0, "a shell command got out");
    node.finish()
}

/// A sandbox has no shell. The client is told so, and nothing else comes of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_superusers_shell_command_is_refused_with_its_name_and_harms_nothing() -> Result<()> {
    let mut node = Node::new()?;
    let database = node.create_with("shop", &["--set", "idle-freeze=never", "--set", "idle-stop=never"])?;
    let bystander = Session::open(&database.url).await?;
    let server: i32 = bystander.value("SELECT pg_backend_pid()", &[]).await?;
    let session = open_as_superuser(&node, &database).await?;
    session.batch_execute("CREATE TABLE heard (t text)").await?;
    for statement in ["COPY (SELECT 1) TO PROGRAM 'id'", "COPY heard FROM PROGRAM 'id'"] {
        let error = session.batch_execute(statement).await.err().context("a shell command ran")?;
        ensure!(message(&error).contains("could not execute command \"id\""), "{error:?}");
        ensure!(sqlstate(&error).len() == 5, "{error:?}");
    }
    assert_eq!(session.value::<i64>("SELECT count(*) FROM heard", &[]).await?, 0);
    assert_eq!(bystander.value::<i32>("SELECT pg_backend_pid()", &[]).await?, server);
    assert_eq!(node.wakes(&database.name)?, 1);
    node.finish()
}
