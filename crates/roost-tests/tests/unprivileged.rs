//! A node without privileges on a machine where ordinary users may make no user namespaces: all of it works, behind the
//! walls that are left, and `roost doctor` says which are missing.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use roost_tests::command_line::{ORDINARY_USER, as_user};
use roost_tests::node::Setup;
use roost_tests::session::Session;
use roost_tests::{command, machine};

const SOON: Duration = Duration::from_secs(30);
/// A user who has nothing to do with the node.
const STRANGER: u32 = 2;

fn is_stopped(pid: i32) -> Result<bool> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T")))
}

/// Who owns a file, and what others may do with it.
fn access(path: &Path) -> Result<(u32, u32)> {
    let metadata = std::fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    Ok((metadata.uid(), metadata.mode() & 0o077))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_privileges_and_user_namespaces_a_database_lives_and_doctor_says_what_is_missing()
-> Result<()> {
    ensure!(machine::is_root(), "only root can be another user");
    let mut node = Setup::default().without_privileges().start()?;
    let doctor = node.cli_json(&["doctor"])?;
    let checks = doctor["checks"].as_array().context("no checks")?;
    let check = |subject: &str| checks.iter().find(|check| check["subject"] == subject).context("no check");
    for subject in ["privileges", "namespaces", "network", "users", "memory", "pids", "freezer", "stragglers"]
    {
        assert_eq!(check(subject)?["verdict"], "weak", "{subject}: {doctor}");
    }
    let detail = check("namespaces")?["detail"].to_string();
    ensure!(detail.contains("user.max_user_namespaces"), "{detail}");
    assert_eq!(check("seccomp")?["verdict"], "good");

    let shop = node.create_with("shop", &["--set", "idle-freeze=never", "--set", "idle-stop=never"])?;
    let session = Session::open(&shop.url).await?;
    session.batch_execute("CREATE TABLE kept AS SELECT 1 AS n").await?;
    let postmaster = node.postmaster_pid(&shop)?;
    ensure!(!is_stopped(postmaster)?);
    node.cli(&["freeze", "shop"])?;
    ensure!(is_stopped(postmaster)?, "it is frozen by SIGSTOP");
    assert_eq!(session.value::<i32>("SELECT n FROM kept", &[]).await?, 1);
    ensure!(!is_stopped(postmaster)?);
    session.close().await;

    // Nobody else gets in: not to the files, not to Postgres, not to the node.
    let socket = node.run().join(&shop.id).join("s");
    for path in [node.data(), node.run(), &socket.join(".s.PGSQL.5432"), &node.run().join("api.sock")] {
        assert_eq!(access(path)?, (ORDINARY_USER, 0), "{}", path.display());
    }
    let mut psql = as_user(STRANGER);
    psql.arg(machine::program("psql")).args(["-X", "-U", "_roost", "-d", "postgres", "-c", "SELECT 1", "-h"]);
    let refused = command::run(psql.arg(&socket), b"", SOON)?;
    ensure!(!refused.status.success() && refused.stderr.contains("Permission denied"), "{}", refused.stderr);
    let list = node.command_line().typed_by(STRANGER).try_run(&["list"])?;
    assert_eq!(list.status.code(), Some(4), "there is no node for a stranger: {}", list.stderr);

    node.cli(&["stop", "shop"])?;
    ensure!(machine::process(postmaster).is_none());
    let session = Session::open(&shop.url).await?;
    assert_eq!(session.value::<i32>("SELECT n FROM kept", &[]).await?, 1);
    session.close().await;
    node.finish()
}
