//! Storage: one database that fills its limit, or the whole disk, is held back and stopped, and its neighbours never
//! notice.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use roost_tests::node::{Database, Node, Setup};
use roost_tests::session::{Session, message, sqlstate};
use roost_tests::{command, machine, psql};

const SOON: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

/// A neighbour that commits all the time, and fails at its first error.
struct Neighbour {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Neighbour {
    async fn begin(database: &Database) -> Result<Self> {
        let session = Session::open(&database.url).await?;
        session.batch_execute("CREATE TABLE IF NOT EXISTS commits (n bigserial, at timestamptz)").await?;
        let (stop, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let task = tokio::spawn({
            let (stop, commits, url) = (stop.clone(), commits.clone(), database.url.clone());
            async move {
                let mut session = session;
                while !stop.load(Ordering::Relaxed) {
                    let number = commits.fetch_add(1, Ordering::Relaxed) + 1;
                    session
                        .execute("INSERT INTO commits (at) VALUES (now())", &[])
                        .await
                        .with_context(|| format!("the neighbour's commit {number}"))?;
                    if number.is_multiple_of(50) {
                        session.close().await;
                        session = Session::open(&url).await.context("a new session of the neighbour")?;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(())
            }
        });
        Ok(Self { stop, commits, task })
    }

    async fn end(self, database: &Database) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        let session = Session::open(&database.url).await?;
        let there: i64 = session.value("SELECT count(*) FROM commits", &[]).await?;
        ensure!(there.cast_unsigned() == self.commits.load(Ordering::Relaxed), "{there} commits are there");
        Ok(())
    }
}

/// Bytes of a database's files on disk.
fn volume_bytes(node: &Node, database: &Database) -> u64 {
    let folder = node.data().join("databases").join(&database.id[3..5]).join(&database.id).join("volume");
    let mut total = 0;
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            total += std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    total
}

/// A session whose end is remembered: the server's last words may come between two queries.
struct Watched {
    client: tokio_postgres::Client,
    end: tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>,
}

impl Watched {
    async fn open(url: &str) -> Result<Self, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
        Ok(Self { client, end: tokio::spawn(connection) })
    }

    /// The SQLSTATE of a failed query, or of the session's end if that is why it failed.
    async fn why(self, error: &tokio_postgres::Error) -> Result<String> {
        let code = sqlstate(error);
        if !code.is_empty() {
            return Ok(code.to_owned());
        }
        let end = tokio::time::timeout(SOON, self.end).await.context("the connection did not end")??;
        Ok(end.err().map(|error| sqlstate(&error).to_owned()).unwrap_or_default())
    }
}

/// Inserts until an error comes, and returns it with the number of acknowledged rows of 8 KiB.
async fn insert_until_error(session: Watched, table: &str) -> Result<(String, i64)> {
    let insert = format!(
        "INSERT INTO {table} SELECT (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 250)) \
         FROM generate_series(1, 50)"
    );
    // A statement of its own for each would be closed after each, and nobody reads an error that answers a Close.
    let insert = session.client.prepare(&insert).await?;
    let end = Instant::now() + SOON;
    let mut rows = 0;
    while Instant::now() < end {
        match session.client.execute(&insert, &[]).await {
            Ok(_) => rows += 50,
            Err(error) => return Ok((session.why(&error).await?, rows)),
        }
    }
    anyhow::bail!("{rows} rows, and no end")
}

async fn eventually<F: Future<Output = Result<bool>>>(what: &str, check: impl Fn() -> F) -> Result<()> {
    let end = Instant::now() + SOON;
    while !check().await? {
        ensure!(Instant::now() < end, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_database_is_read_only_and_says_so_until_its_owner_makes_room() -> Result<()> {
    let mut node = Node::new()?;
    let full = node.create_with("full", &["--set", "storage=96MiB"])?;
    let other = node.create("other")?;
    let neighbour = Neighbour::begin(&other).await?;

    let session = Session::open(&full.url).await?;
    session.batch_execute("CREATE TABLE kept AS SELECT 1 AS n; CREATE TABLE filler (t text)").await?;
    session.batch_execute("ALTER TABLE filler ALTER t SET STORAGE EXTERNAL").await?;
    let (error, rows) = insert_until_error(Watched::open(&full.url).await?, "filler").await?;
    assert_eq!(error, "53100", "after {rows} rows");
    assert_eq!(session.value::<i64>("SELECT count(*) FROM filler", &[]).await?, rows);
    let fresh = Session::open(&full.url).await?;
    assert_eq!(fresh.value::<i32>("SELECT n FROM kept", &[]).await?, 1);
    let refusal = fresh.execute("INSERT INTO kept VALUES (2)", &[]).await.err().context("it is writable")?;
    assert_eq!(sqlstate(&refusal), "53100");
    assert!(message(&refusal).contains("storage limit of 96 MiB (storage)"), "{refusal:?}");
    assert_eq!(fresh.sqlstate_of("SELEC").await?, "42601");
    let greeted = psql::try_run(&full.url, "SELECT n FROM kept")?;
    assert_eq!(greeted.text(), "1");
    assert!(greeted.stderr.contains("WARNING:  the database is read-only: it is over its storage limit"));

    // The limit outlasts a stop: the next run begins read-only.
    drop((session, fresh));
    node.cli(&["stop", "full"])?;
    let session = Session::open(&full.url).await?;
    assert_eq!(session.sqlstate_of("INSERT INTO kept VALUES (2)").await?, "53100");

    // What the hint says.
    session.batch_execute("BEGIN READ WRITE; DELETE FROM filler; COMMIT").await?;
    session.batch_execute("VACUUM filler").await?;
    eventually("it is writable again", async || {
        Ok(session.execute("INSERT INTO kept VALUES (3)", &[]).await.is_ok())
    })
    .await?;

    // A larger limit is as good.
    assert!(psql::try_run(&full.url, "SELECT 1")?.stderr.is_empty());
    assert_eq!(insert_until_error(Watched::open(&full.url).await?, "filler").await?.0, "53100");
    node.cli(&["set", "full", "storage=1GiB"])?;
    eventually("it is writable again", async || {
        Ok(session.execute("INSERT INTO kept VALUES (4)", &[]).await.is_ok())
    })
    .await?;
    neighbour.end(&other).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_database_that_overrides_read_only_is_stopped_and_comes_back() -> Result<()> {
    let mut node = Node::new()?;
    let full = node.create_with("full", &["--set", "storage=64MiB"])?;
    let other = node.create("other")?;
    let neighbour = Neighbour::begin(&other).await?;
    let idle = Watched::open(&full.url).await?;
    let mut acknowledged = 0;
    for round in 0..2 {
        let session = Watched::open(&full.url).await?;
        session.client.batch_execute("SET default_transaction_read_only = off").await?;
        session.client.batch_execute("CREATE TABLE IF NOT EXISTS filler (t text)").await?;
        session.client.batch_execute("ALTER TABLE filler ALTER t SET STORAGE EXTERNAL").await?;
        let (error, rows) = insert_until_error(session, "filler").await?;
        assert_eq!(error, "53100", "round {round}, after {rows} rows");
        acknowledged += rows;
        node.wait_for_state("full", "stopped", SOON)?;
        // Two looks of a writer that fills some hundred MiB a second here.
        let (bytes, bound) = (volume_bytes(&node, &full), 64 * MIB * 11 / 10 + 64 * MIB + 128 * MIB);
        ensure!(bytes < bound, "round {round}: {} MiB", bytes / MIB);
        let session = Session::open(&full.url).await?;
        let there: i64 = session.value("SELECT count(*) FROM filler", &[]).await?;
        // The last transaction's acknowledgement may have been cut off.
        ensure!(there == acknowledged || there == acknowledged + 50, "{there} of {acknowledged} rows");
        acknowledged = there;
        assert_eq!(session.sqlstate_of("CREATE TABLE another ()").await?, "53100");
    }
    let gone = idle.client.simple_query("SELECT 1").await.err().context("an ended session answers")?;
    assert_eq!(idle.why(&gone).await?, "53100");

    let session = Session::open(&full.url).await?;
    session.batch_execute("BEGIN; SET TRANSACTION READ WRITE; TRUNCATE filler; COMMIT").await?;
    eventually("it is writable again", async || {
        Ok(session.batch_execute("CREATE TABLE IF NOT EXISTS another ()").await.is_ok())
    })
    .await?;
    neighbour.end(&other).await
}

/// An ext4 file system in a file, unmounted and detached when this is dropped.
struct LoopDisk {
    folder: PathBuf,
}

impl LoopDisk {
    /// `None` where this machine cannot mount one.
    fn mount(folder: &Path, bytes: u64) -> Result<Option<Self>> {
        let image = folder.join("image");
        File::create(&image)?.set_len(bytes)?;
        let mounted = folder.join("mounted");
        std::fs::create_dir(&mounted)?;
        command::run(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-F"]).arg(&image), b"", SOON)?
            .success()?;
        // The loop device goes with the mount.
        let mount = command::run(
            Command::new("mount").args(["-o", "loop,noatime"]).arg(&image).arg(&mounted),
            b"",
            SOON,
        )?;
        if !mount.status.success() {
            return Ok(None);
        }
        std::fs::set_permissions(&mounted, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(Some(Self { folder: mounted }))
    }

    fn free(&self) -> Result<u64> {
        let space = rustix::fs::statvfs(&self.folder)?;
        Ok(space.f_bavail * space.f_frsize)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let unmounted = rustix::mount::unmount(&self.folder, rustix::mount::UnmountFlags::DETACH);
        assert!(unmounted.is_ok() || std::thread::panicking(), "{}: {unmounted:?}", self.folder.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_writes_as_fast_as_it_can_never_fills_the_disk() -> Result<()> {
    if !machine::is_root() {
        eprintln!("skipped: only root can mount a disk of its own");
        return Ok(());
    }
    let folder = tempfile::Builder::new().prefix("rl-").tempdir_in("/tmp")?;
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let Some(disk) = LoopDisk::mount(folder.path(), 3 << 30)? else {
        eprintln!("skipped: no loop device can be mounted here");
        return Ok(());
    };
    // Little has to be written to reach it, also on a slow machine.
    let reserve = 2304 * MIB;
    let data = disk.folder.join("data");
    let setup = Setup::default().with_data(&data).with(["--limits-storage-reserve", "2304MiB"]);
    let mut node = setup.start()?;
    let fast = node.create_with("fast", &["--set", "memory=512MiB"])?;
    let other = node.create("other")?;
    let neighbour = Neighbour::begin(&other).await?;

    let least_free = Arc::new(AtomicU64::new(u64::MAX));
    let watching = AtomicBool::new(true);
    let ends = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| -> Result<Vec<String>> {
            scope.spawn(|| {
                while watching.load(Ordering::Relaxed) {
                    least_free.fetch_min(disk.free().unwrap_or(0), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            let writing = tokio::runtime::Handle::current().block_on(write_fast(&fast));
            watching.store(false, Ordering::Relaxed);
            writing
        })
    })?;
    let least = least_free.load(Ordering::Relaxed);
    eprintln!("least free: {} MiB; the writer's sessions ended with {ends:?}", least / MIB);
    ensure!(least < reserve, "the reserve was never reached: {} MiB were free", least / MIB);
    ensure!(least > 256 * MIB, "the disk was nearly full: {} MiB were free", least / MIB);
    ensure!(ends.iter().any(|code| code == "53100"), "nobody was told why: {ends:?}");
    ensure!(ends.iter().all(|code| code == "53100"), "{ends:?}");
    // Held back or not started at all, it says which bound it was.
    let refusal = match Session::open(&fast.url).await {
        Ok(session) => session.batch_execute("CREATE TABLE another ()").await.err(),
        Err(error) => Some(error),
    };
    let refusal = refusal.context("it is writable")?;
    assert_eq!(sqlstate(&refusal), "53100", "{refusal:?}");
    assert!(message(&refusal).contains("the reserve of 2304 MiB (limits.storage_reserve)"), "{refusal:?}");
    neighbour.end(&other).await?;
    for database in [&fast, &other] {
        let log = node.cli(&["logs", &database.name])?;
        ensure!(!log.contains("PANIC") && !log.contains("No space left"), "{}: {log}", database.name);
    }

    // Room comes back with the deletion of what filled the disk.
    node.cli(&["delete", "fast", "--purge"])?;
    let third = node.create("third")?;
    eventually("a new database can be written to", async || {
        let session = Session::open(&third.url).await?;
        Ok(session.batch_execute("CREATE TABLE IF NOT EXISTS t ()").await.is_ok())
    })
    .await?;
    drop(node);
    drop(disk);
    Ok(())
}

/// Four sessions that write whatever they can, override what holds them back, and connect again when they are ended: for
/// five seconds after one of them was told that storage is full, and for a minute at most. Returns how they ended.
async fn write_fast(database: &Database) -> Result<Vec<String>> {
    let began = Instant::now();
    // Seconds after `began`.
    let end = Arc::new(AtomicU64::new(60));
    let goes_on = move |end: &AtomicU64| began.elapsed().as_secs() < end.load(Ordering::Relaxed);
    let writers: Vec<_> = (0..4)
        .map(|number| {
            let (url, end) = (database.url.clone(), end.clone());
            tokio::spawn(async move {
                let mut ends: Vec<String> = Vec::new();
                while goes_on(&end) {
                    if ends.last().is_some_and(|code| code == "53100") {
                        end.fetch_min(began.elapsed().as_secs() + 5, Ordering::Relaxed);
                    }
                    let session = match Watched::open(&url).await {
                        Ok(session) => session,
                        Err(error) => {
                            ends.push(sqlstate(&error).to_owned());
                            tokio::time::sleep(Duration::from_millis(200)).await;
                            continue;
                        }
                    };
                    let table = format!("filler{number}");
                    let prepare = format!(
                        "SET default_transaction_read_only = off; SET synchronous_commit = off; \
                         CREATE TABLE IF NOT EXISTS {table} (t text); \
                         ALTER TABLE {table} ALTER t SET STORAGE EXTERNAL"
                    );
                    let insert = format!(
                        "INSERT INTO {table} SELECT repeat(chr(65 + n % 26), 1000000) FROM generate_series(1, 20) n"
                    );
                    let writing = async {
                        session.client.batch_execute(&prepare).await?;
                        while goes_on(&end) {
                            session.client.batch_execute(&insert).await?;
                        }
                        Ok::<_, tokio_postgres::Error>(())
                    };
                    if let Err(error) = writing.await {
                        ends.push(session.why(&error).await.unwrap_or_default());
                    }
                }
                ends
            })
        })
        .collect();
    let mut ends = Vec::new();
    for writer in writers {
        ends.extend(writer.await?);
    }
    Ok(ends)
}
