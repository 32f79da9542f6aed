//! Files of a database that are gone or damaged: a clear error, and nothing is lost by it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use roost_tests::node::{Database, Node};
use roost_tests::psql;
use roost_tests::session::Session;

const SOON: Duration = Duration::from_secs(60);

/// The folder of a database's files.
fn volume(node: &Node, database: &Database) -> PathBuf {
    node.data().join("databases").join(&database.id[3..5]).join(&database.id).join("volume")
}

/// The first file of this name below `folder`.
fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        if entry.file_name() == name {
            return Ok(Some(path));
        }
        if entry.file_type()?.is_dir()
            && let Some(found) = find(&path, name)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// A connection that must fail with an error of the server's kind, which says what is wrong without telling internals.
async fn refused(node: &Node, database: &Database) -> Result<()> {
    let attempt = tokio::time::timeout(SOON, Session::open(&database.url)).await.context("no answer")?;
    let error = attempt.err().context("a session on damaged files")?;
    let told =
        error.as_db_error().with_context(|| format!("not an error of the server's kind: {error:?}"))?;
    ensure!(told.code().code().len() == 5 && told.message().len() > 10, "{told}");
    let data = node.data().to_string_lossy().into_owned();
    ensure!(!told.message().contains(&data), "the message leaks a path: {told}");
    Ok(())
}

/// The rows of `kept`, once the back-off of failed starts is over.
async fn rows(database: &Database) -> Result<i64> {
    let end = Instant::now() + SOON;
    loop {
        match Session::open(&database.url).await {
            Ok(session) => return session.value("SELECT count(*) FROM kept", &[]).await,
            Err(error) => ensure!(Instant::now() < end, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_missing_or_damaged_is_a_clear_error_and_loses_nothing() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    let other = node.create("other")?;
    psql::run(&shop.url, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")?;
    node.cli(&["stop", "shop"])?;

    let (place, away) = (volume(&node, &shop), node.scratch().join("away"));
    fs::rename(&place, &away)?;
    refused(&node, &shop).await.context("a missing volume")?;
    ensure!(
        !place.exists() || find(&place, "PG_VERSION")?.is_none(),
        "an empty database took the missing one's place"
    );
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::rename(&away, &place)?;
    assert_eq!(rows(&shop).await?, 1000);
    node.cli(&["stop", "shop"])?;

    let control = find(&place, "pg_control")?.context("no pg_control")?;
    let sound = fs::read(&control)?;
    fs::write(&control, vec![0x5a; sound.len()])?;
    refused(&node, &shop).await.context("a damaged control file")?;
    fs::write(&control, &sound)?;
    assert_eq!(rows(&shop).await?, 1000);
    assert_eq!(psql::run(&other.url, "SELECT 1")?, "1");
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_settings_keep_postgres_from_starting_says_so_and_can_be_mended() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    psql::run(&shop.url, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")?;
    // Postgres refuses to start with less shared memory than its connections need, or Roost refuses the setting.
    let set = node.try_cli(&["set", "shop", "max-connections=250000", "memory=64MiB"])?;
    if set.status.success() {
        node.cli(&["stop", "shop"])?;
        refused(&node, &shop).await?;
        node.cli(&["set", "shop", "max-connections=50", "memory=256MiB"])?;
    } else {
        ensure!(set.stderr.len() > 10, "a refusal without a reason");
    }
    assert_eq!(rows(&shop).await?, 1000);
    node.finish()
}
