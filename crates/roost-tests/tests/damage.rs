//! Files of a database that are gone or damaged, and a Postgres that does not start: a clear error, nothing is made anew,
//! and nothing is lost by it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use roost_tests::node::{Database, Node};
use roost_tests::session::{self, Session};
use roost_tests::{cold, psql};

const SOON: Duration = Duration::from_secs(30);

/// Takes something away, looks at how that is told, puts it back, and looks whether all is there.
async fn damage(
    node: &Node,
    database: &Database,
    what: &str,
    harm: impl FnOnce() -> Result<()>,
    mend: impl FnOnce() -> Result<()>,
) -> Result<()> {
    node.cli(&["stop", &database.name])?;
    harm()?;
    for attempt in 0..2 {
        let error = match Session::open(&database.url).await {
            Ok(_) => bail!("{what}: it woke"),
            Err(error) => error,
        };
        assert_eq!(session::sqlstate(&error), "XX001", "{what}, attempt {attempt}: {error:?}");
        let message = session::message(&error);
        ensure!(!message.contains('/') && message.contains("files are"), "{what}: {message}");
    }
    ensure!(node.instance_processes(database).is_empty(), "{what}: processes are left");
    mend()?;
    let session =
        Session::open_within(&database.url, SOON).await.with_context(|| format!("{what}, mended"))?;
    assert_eq!(session.value::<i32>("SELECT n FROM kept", &[]).await?, 1, "{what}, mended");
    session.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_damaged_volume_is_told_and_never_made_anew() -> Result<()> {
    let mut node = Node::new()?;
    let shop = node.create_with("shop", &["--set", "idle-stop=never"])?;
    Session::open(&shop.url).await?.batch_execute("CREATE TABLE kept AS SELECT 1 AS n").await?;
    node.cli(&["stop", "shop"])?;
    let neighbour = node.create("neighbour")?;
    let files = cold::volume(&node, &shop);
    let away = node.scratch().join("away");
    let (control, manifest) = (cold::cluster(&files).join("global/pg_control"), files.join("manifest.json"));
    let saved = |path: &PathBuf| fs::read(path).with_context(|| path.display().to_string());
    let (whole_control, whole_manifest) = (saved(&control)?, saved(&manifest)?);

    damage(
        &node,
        &shop,
        "the volume was moved away",
        || Ok(fs::rename(&files, &away)?),
        || {
            // What was made in its place holds nothing.
            let made: Vec<_> = walk(&files).into_iter().filter(|path| !path.ends_with("lock")).collect();
            ensure!(made.is_empty(), "{made:?}");
            let _ = fs::remove_dir_all(&files);
            Ok(fs::rename(&away, &files)?)
        },
    )
    .await?;
    damage(
        &node,
        &shop,
        "the manifest is gone",
        || Ok(fs::remove_file(&manifest)?),
        || Ok(fs::write(&manifest, &whole_manifest)?),
    )
    .await?;
    damage(
        &node,
        &shop,
        "the manifest is garbage",
        || Ok(fs::write(&manifest, "{\"id\": 7")?),
        || Ok(fs::write(&manifest, &whole_manifest)?),
    )
    .await?;
    let cut = |bytes: u64| Ok(fs::File::options().write(true).open(&control)?.set_len(bytes)?);
    node.cli(&["stop", "shop"])?;
    let whole = saved(&control)?;
    damage(&node, &shop, "pg_control is cut off", || cut(100), || Ok(fs::write(&control, &whole)?)).await?;
    node.cli(&["stop", "shop"])?;
    let whole = saved(&control)?;
    let mut flipped = whole.clone();
    flipped[40] ^= 0xff;
    damage(
        &node,
        &shop,
        "pg_control is garbled",
        || Ok(fs::write(&control, &flipped)?),
        || Ok(fs::write(&control, &whole)?),
    )
    .await?;
    ensure!(whole_control.len() == whole.len());
    if files.join("upper").is_dir() {
        let (templates, hidden) = (node.data().join("templates"), node.data().join("hidden"));
        damage(
            &node,
            &shop,
            "the template is gone",
            || Ok(fs::rename(&templates, &hidden)?),
            || {
                let _ = fs::remove_dir_all(&templates);
                Ok(fs::rename(&hidden, &templates)?)
            },
        )
        .await?;
    }
    assert_eq!(psql::run(&neighbour.url, "SELECT 1")?, "1");
    node.finish()
}

/// Plain files below a folder.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(walk(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_start_says_so_waits_longer_each_time_and_starts_once_it_can() -> Result<()> {
    if fs::read_to_string("/proc/swaps")?.lines().count() > 1 {
        eprintln!("skipped: with swap, a Postgres that wants too much memory starts, slowly");
        return Ok(());
    }
    let mut node = Node::new()?;
    let shop = node.create("shop")?;
    Session::open(&shop.url).await?.batch_execute("CREATE TABLE kept AS SELECT 1 AS n").await?;
    node.cli(&["stop", "shop"])?;
    // The shared memory of so many connections is more than the whole instance may have.
    node.cli(&[
        "set",
        "shop",
        "memory=64MiB",
        "max-connections=10000",
        "postgres.max_locks_per_transaction=1000",
    ])?;
    let mut waits = Vec::new();
    let end = Instant::now() + Duration::from_secs(8);
    while Instant::now() < end {
        let error = match Session::open(&shop.url).await {
            Ok(_) => bail!("it started"),
            Err(error) => error,
        };
        let told = error.as_db_error().with_context(|| format!("{error:?}"))?;
        ensure!(["57P03", "53200"].contains(&told.code().code()), "{told:?}");
        ensure!(told.message().contains("did not start"), "{told:?}");
        let hint = told.hint().context("no hint")?;
        ensure!(hint.contains("roost logs"), "{hint}");
        let wait = hint.split_whitespace().find_map(|word| word.parse::<f64>().ok()).context("no time")?;
        waits.push(wait);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let longest = waits.iter().copied().fold(0.0, f64::max);
    ensure!(longest > 1.5, "the pauses do not grow: {waits:?}");
    assert_eq!(node.state("shop")?, "failed");
    ensure!(node.instance_processes(&shop).is_empty());

    node.cli(&[
        "set",
        "shop",
        "memory=default",
        "max-connections=default",
        "postgres.max_locks_per_transaction=default",
    ])?;
    let session = Session::open_within(&shop.url, SOON).await?;
    assert_eq!(session.value::<i32>("SELECT n FROM kept", &[]).await?, 1);
    node.finish()
}
