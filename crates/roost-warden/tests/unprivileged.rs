//! The isolation kind `process` as an ordinary user has it: real wardens and instances of a user without privileges.
//!
//! Started by root, each test executes this binary again as such a user.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod harness;

use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use harness::{Place, ask, connect, spec, start, volume};
use roost_postgres::volume::Layout;
use roost_warden::protocol::Standing;
use roost_warden::{ExitStatus, Instance, ShutdownMode, Warden, WardenError};

/// Who these tests are when root starts them: `daemon`, for initdb wants a user with a name. Not `nobody`, who in a user
/// namespace stands for everybody else.
const SOMEBODY: u32 = 1;
/// Set in the process that is such a user, to what it may do.
const USER_NAMESPACES: &str = "ROOST_TEST_USER_NAMESPACES";

/// Whether the test goes on in this process. If not, it was done by others, and succeeded: by an ordinary user, and by one
/// who may make no user namespaces.
fn is_unprivileged(test: &str) -> bool {
    if !harness::has_postgres() {
        return false;
    }
    if std::env::var_os(USER_NAMESPACES).is_some() {
        return true;
    }
    // The build's own directory may be closed to others.
    let place = tempfile::Builder::new().prefix("roost-unprivileged-").tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.path().join("test");
    for user_namespaces in [true, false] {
        let child = {
            // A copy that another test's fork still has open for writing cannot be executed.
            static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
            let _turn = ONE_AT_A_TIME.lock().unwrap();
            std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
            let mut command = if user_namespaces { Command::new(&program) } else { barred(&program) };
            command.args(["--exact", test, "--nocapture"]).current_dir("/");
            command.env(USER_NAMESPACES, user_namespaces.to_string());
            if rustix::process::geteuid().is_root() {
                command.uid(SOMEBODY).gid(SOMEBODY);
            }
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let output = child.wait_with_output().unwrap();
        println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "user namespaces: {user_namespaces}: {}", output.status);
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "the test was not found");
    }
    false
}

/// A program in a user namespace whose limit of further ones is 0, where it keeps its user and has no privileges.
fn barred(program: &Path) -> Command {
    let own = rustix::process::geteuid();
    let user = if own.is_root() { SOMEBODY } else { own.as_raw() };
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --inh-caps=-all --ambient-caps=-all -- \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--user", &format!("--map-user={user}"), &format!("--map-group={user}"), "--keep-caps"]);
    command.args(["--", "sh", "-c", script, "sh"]).arg(program);
    command
}

/// Whether the user who runs this test may make user namespaces.
fn has_user_namespaces() -> bool {
    std::env::var(USER_NAMESPACES).is_ok_and(|has| has == "true")
}

#[test]
#[ignore = "what a warden executes as its node"]
fn node() {
    harness::be_the_node();
}

async fn ended(exit: impl AsFd) {
    let exit = exit.as_fd().try_clone_to_owned().unwrap();
    tokio::time::timeout(Duration::from_secs(60), roost_warden::ended(exit)).await.unwrap().unwrap();
}

async fn stop(warden: &Warden, instance: &Instance) -> roost_warden::ExitReport {
    warden.shutdown(&instance.volume, ShutdownMode::Fast).await.unwrap();
    released(warden, instance).await
}

/// Waits for an instance's end and takes it apart. Its exit may be seen here a moment before the warden sees it.
async fn released(warden: &Warden, instance: &Instance) -> roost_warden::ExitReport {
    ended(&instance.exit).await;
    let begun = std::time::Instant::now();
    loop {
        match warden.release(&instance.volume).await {
            Err(WardenError::AlreadyRunning { .. }) if begun.elapsed() < Duration::from_secs(5) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            report => return report.unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_on_a_plain_copy_starts_answers_and_stops_cleanly() {
    if !is_unprivileged("an_instance_on_a_plain_copy_starts_answers_and_stops_cleanly") {
        return;
    }
    let place = Place::new();
    let process = start(&place);
    let warden = &process.warden;
    let capabilities = warden.capabilities().await.unwrap();
    assert!(!capabilities.privileged);
    for finding in &capabilities.findings {
        println!("{}: {:?}: {}", finding.name, finding.standing, finding.detail);
    }
    let namespaces = capabilities.findings.iter().find(|finding| finding.name == "namespaces").unwrap();
    if has_user_namespaces() {
        assert_eq!(namespaces.standing, Standing::Enforced, "{}", namespaces.detail);
    } else {
        assert_eq!(namespaces.standing, Standing::Missing, "{}", namespaces.detail);
        assert!(namespaces.detail.contains("user.max_user_namespaces"), "{}", namespaces.detail);
    }
    for number in [1, 2] {
        let instance = warden.start(spec(volume(number))).await.unwrap();
        println!("{:?}", instance.phases);
        let client = connect(&instance.socket_dir).await;
        assert_eq!(ask(&client, "SELECT 1").await.unwrap(), "1");
        let identifier = ask(&client, "SELECT system_identifier FROM pg_control_system()").await.unwrap();
        assert_eq!(identifier, spec(volume(number)).system_identifier.to_string(), "of its own");
        let own = rustix::process::geteuid().as_raw();
        let socket = std::fs::symlink_metadata(instance.socket_dir.join(".s.PGSQL.5432")).unwrap();
        assert_eq!((socket.uid(), socket.mode() & 0o777), (own, 0o600));
        let usage = warden.usage(&instance.volume).await.unwrap();
        assert!(usage.memory_bytes > 1 << 20 && usage.pids > 3, "{usage:?}");
        drop(client);
        assert!(stop(warden, &instance).await.clean);
        assert!(!instance.socket_dir.exists());
    }
    let layout = Layout::new(place.data());
    assert!(layout.pgdata(&volume(1)).is_dir() && !layout.upper(&volume(1)).exists());
    for directory in [place.data(), place.run()] {
        assert_eq!(std::fs::metadata(directory).unwrap().mode() & 0o777, 0o700);
    }

    // Once more, on files that are there.
    let again = warden.start(spec(volume(1))).await.unwrap();
    assert!(stop(warden, &again).await.clean);
    assert_eq!(process.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_instance_stands_still_and_goes_on_stops_or_is_killed() {
    if !is_unprivileged("a_frozen_instance_stands_still_and_goes_on_stops_or_is_killed") {
        return;
    }
    let place = Place::new();
    let process = start(&place);
    let warden = &process.warden;
    let instance = warden.start(spec(volume(3))).await.unwrap();
    let client = connect(&instance.socket_dir).await;
    client.simple_query("CREATE TEMP TABLE kept AS SELECT 7 AS x").await.unwrap();
    warden.freeze(&instance.volume).await.unwrap();
    assert!(warden.instances().await.unwrap()[0].frozen);
    warden.reclaim(&instance.volume).await.unwrap();
    let before = warden.usage(&instance.volume).await.unwrap().cpu;
    let mut query = Box::pin(ask(&client, "SELECT x FROM kept"));
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut query).await.is_err(), "it stands still");
    assert_eq!(warden.usage(&instance.volume).await.unwrap().cpu, before);
    warden.thaw(&instance.volume).await.unwrap();
    assert_eq!(query.as_mut().await.unwrap(), "7");
    drop(query);

    warden.freeze(&instance.volume).await.unwrap();
    drop(client);
    assert!(stop(warden, &instance).await.clean);
    let instance = warden.start(spec(volume(3))).await.unwrap();
    warden.freeze(&instance.volume).await.unwrap();
    warden.shutdown(&instance.volume, ShutdownMode::Kill).await.unwrap();
    let report = released(warden, &instance).await;
    assert_eq!((report.clean, report.status), (false, Some(ExitStatus::Signal(9))));
    let instance = warden.start(spec(volume(3))).await.unwrap();
    assert!(stop(warden, &instance).await.clean);
    assert_eq!(process.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_warden_leaves_instances_that_the_next_one_adopts_or_stops() {
    if !is_unprivileged("a_killed_warden_leaves_instances_that_the_next_one_adopts_or_stops") {
        return;
    }
    let place = Place::new();
    let process = start(&place);
    let running = process.warden.start(spec(volume(4))).await.unwrap();
    let frozen = process.warden.start(spec(volume(5))).await.unwrap();
    let unknown = process.warden.start(spec(volume(6))).await.unwrap();
    process.warden.freeze(&frozen.volume).await.unwrap();
    let client = connect(&running.socket_dir).await;
    process.kill();
    assert_eq!(ask(&client, "SELECT 'alive'").await.unwrap(), "alive");
    // What a warden leaves that is killed before it wrote anything down.
    std::fs::remove_file(place.run().join(unknown.volume.as_str()).join("instance.json")).unwrap();

    let process = start(&place);
    let warden = &process.warden;
    let adopted = warden.instances().await.unwrap();
    let seen: Vec<_> =
        adopted.iter().map(|each| (each.volume, each.pid, each.adopted, each.frozen)).collect();
    assert_eq!(seen, [(running.volume, running.pid, true, false), (frozen.volume, frozen.pid, true, true)]);
    let report = warden.inspect_volume(&unknown.volume).await.unwrap();
    assert!(report.clean && !report.in_use, "it was stopped by a fast shutdown: {report:?}");
    assert_eq!(ask(&client, "SELECT 'still'").await.unwrap(), "still");
    let error = warden.start(spec(volume(4))).await.unwrap_err();
    assert_eq!(error, WardenError::AlreadyRunning { volume: volume(4) });
    drop(client);
    for instance in &adopted {
        let report = stop(warden, instance).await;
        assert!(report.clean && report.status.is_none(), "{report:?}");
    }
    assert_eq!(process.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_start_of_a_volume_is_refused_by_whatever_way() {
    if !is_unprivileged("a_second_start_of_a_volume_is_refused_by_whatever_way") {
        return;
    }
    let place = Place::new();
    let process = start(&place);
    let warden = &process.warden;
    let id = volume(7);
    let instance = warden.start(spec(id)).await.unwrap();
    assert_eq!(warden.start(spec(id)).await.unwrap_err(), WardenError::AlreadyRunning { volume: id });
    assert_eq!(warden.delete_volume(&id).await.unwrap_err(), WardenError::VolumeInUse { volume: id });
    assert!(harness::try_start(&place).is_none(), "a second warden");

    // The lock is the kernel's, in every process of the instance.
    let lock = std::fs::File::options().write(true).open(Layout::new(place.data()).lock(&id)).unwrap();
    assert!(lock.try_lock().is_err());
    assert!(stop(warden, &instance).await.clean);
    lock.lock().unwrap();
    assert_eq!(warden.start(spec(id)).await.unwrap_err(), WardenError::VolumeInUse { volume: id });
    drop(lock);
    let instance = warden.start(spec(id)).await.unwrap();
    assert!(stop(warden, &instance).await.clean);
    assert_eq!(process.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superuser_inside_reaches_no_file_process_or_socket_outside() {
    if !is_unprivileged("a_superuser_inside_reaches_no_file_process_or_socket_outside") {
        return;
    }
    let place = Place::new();
    let process = start(&place);
    let warden = &process.warden;
    let instance = warden.start(spec(volume(8))).await.unwrap();
    let client = connect(&instance.socket_dir).await;
    let layout = Layout::new(place.data());
    let own = layout.manifest(&volume(8));
    for sql in [
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_ls_dir('/home')",
        "COPY (SELECT 1) TO '/run/postgresql/../planted'",
        "COPY (SELECT 1) TO '/etc/postgresql/pg_hba.conf'",
        &format!("SELECT pg_read_file('{}')", own.display()),
        &format!("COPY (SELECT 1) TO '{}'", place.run().join("planted").display()),
    ] {
        let error = ask(&client, sql).await.expect_err(sql);
        println!("{sql}: {}", error.as_db_error().unwrap().message());
    }
    drop(client);
    assert!(stop(warden, &instance).await.clean);
    assert_eq!(process.end(), 0);
}
