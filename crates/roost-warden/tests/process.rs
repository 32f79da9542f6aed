//! The isolation kind `process`, from outside: real wardens, real instances, and what is left when they are gone.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod harness;

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use harness::{Place, ask, connect, spec, start, volume};
use roost_warden::config::NODE_UID;
use roost_warden::{ExitStatus, ShutdownMode, Warden, WardenError};

#[test]
#[ignore = "what a warden executes as its node"]
fn node() {
    harness::be_the_node();
}

async fn ended(exit: impl AsFd) {
    let exit = exit.as_fd().try_clone_to_owned().unwrap();
    tokio::time::timeout(Duration::from_secs(60), roost_warden::ended(exit)).await.unwrap().unwrap();
}

async fn stop(warden: &Warden, instance: &roost_warden::Instance) -> roost_warden::ExitReport {
    warden.shutdown(&instance.volume, ShutdownMode::Fast).await.unwrap();
    ended(&instance.exit).await;
    warden.release(&instance.volume).await.unwrap()
}

fn mounts_with(text: &str) -> usize {
    std::fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .filter(|line| line.contains(text))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_starts_answers_stops_cleanly_and_leaves_nothing() {
    if !harness::can_run() {
        return;
    }
    let place = Place::new();
    let process = start(&place);
    let warden = &process.warden;
    let instance = warden.start(spec(volume(1))).await.unwrap();
    assert!(!instance.adopted && !instance.frozen);
    assert_eq!(instance.system_identifier, spec(volume(1)).system_identifier);

    let client = connect(&instance.socket_dir).await;
    assert_eq!(ask(&client, "SELECT 1").await.unwrap(), "1");
    let identifier = ask(&client, "SELECT system_identifier FROM pg_control_system()").await.unwrap();
    assert_eq!(identifier, instance.system_identifier.to_string());

    let socket = std::fs::symlink_metadata(instance.socket_dir.join(".s.PGSQL.5432")).unwrap();
    assert_eq!((socket.uid(), socket.mode() & 0o777), (NODE_UID, 0o600));
    let directory = std::fs::metadata(&instance.socket_dir).unwrap();
    assert_eq!((directory.uid(), directory.gid(), directory.mode() & 0o777), (0, NODE_UID, 0o710));

    let usage = warden.usage(&instance.volume).await.unwrap();
    assert!(usage.memory_bytes > 0 && usage.pids > 3 && usage.cpu > Duration::ZERO, "{usage:?}");
    assert!(warden.volume_bytes(&instance.volume).await.unwrap() > 0);
    drop(client);

    let report = stop(warden, &instance).await;
    assert!(report.clean, "{report:?}");
    assert_eq!(report.status, Some(ExitStatus::Code(0)));
    assert_eq!(mounts_with(place.data().to_str().unwrap()) + mounts_with(place.run().to_str().unwrap()), 0);
    assert!(!instance.socket_dir.exists());
    assert!(warden.instances().await.unwrap().is_empty());

    // And again, on the same volume.
    let again = warden.start(spec(volume(1))).await.unwrap();
    let client = connect(&again.socket_dir).await;
    assert_eq!(ask(&client, "SELECT 2").await.unwrap(), "2");
    drop(client);
    assert!(stop(warden, &again).await.clean);
    assert_eq!(process.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_instance_uses_no_processor_and_its_sessions_go_on_after_a_thaw() {
    if !harness::can_run() {
        return;
    }
    let place = Place::new();
    let process = start(&place);
    let warden = &process.warden;
    let instance = warden.start(spec(volume(2))).await.unwrap();
    let client = connect(&instance.socket_dir).await;
    client.simple_query("CREATE TEMP TABLE kept AS SELECT 7 AS x").await.unwrap();

    let began = Instant::now();
    warden.freeze(&instance.volume).await.unwrap();
    println!("freeze: {:?}", began.elapsed());
    assert!(warden.instances().await.unwrap()[0].frozen);
    let before = warden.usage(&instance.volume).await.unwrap().cpu;
    let reclaimed = warden.reclaim(&instance.volume).await.unwrap();
    println!("reclaimed: {reclaimed} bytes");
    let mut query = Box::pin(ask(&client, "SELECT x FROM kept"));
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut query).await.is_err(), "it stands still");
    assert_eq!(warden.usage(&instance.volume).await.unwrap().cpu, before);

    let began = Instant::now();
    warden.thaw(&instance.volume).await.unwrap();
    assert_eq!(query.as_mut().await.unwrap(), "7");
    drop(query);
    println!("thaw to a row: {:?}", began.elapsed());

    // A frozen one can be stopped, and killed.
    warden.freeze(&instance.volume).await.unwrap();
    drop(client);
    assert!(stop(warden, &instance).await.clean);
    let instance = warden.start(spec(volume(2))).await.unwrap();
    warden.freeze(&instance.volume).await.unwrap();
    warden.shutdown(&instance.volume, ShutdownMode::Kill).await.unwrap();
    ended(&instance.exit).await;
    let report = warden.release(&instance.volume).await.unwrap();
    assert!(!report.clean, "{report:?}");
    assert_eq!(report.status, Some(ExitStatus::Signal(9)));

    // What the killed one left, its process id file included, does not keep the next one from starting.
    let instance = warden.start(spec(volume(2))).await.unwrap();
    assert!(stop(warden, &instance).await.clean);
    assert_eq!(process.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_outlive_a_killed_warden_and_the_next_one_adopts_them() {
    if !harness::can_run() {
        return;
    }
    let place = Place::new();
    let process = start(&place);
    let running = process.warden.start(spec(volume(3))).await.unwrap();
    let frozen = process.warden.start(spec(volume(4))).await.unwrap();
    process.warden.freeze(&frozen.volume).await.unwrap();
    let client = connect(&running.socket_dir).await;
    let old = process.warden.clone();
    process.kill();
    assert_eq!(ask(&client, "SELECT 'alive'").await.unwrap(), "alive");
    drop(old);

    let process = start(&place);
    let warden = &process.warden;
    let adopted = warden.instances().await.unwrap();
    let seen: Vec<_> =
        adopted.iter().map(|each| (each.volume, each.pid, each.adopted, each.frozen)).collect();
    assert_eq!(seen, [(running.volume, running.pid, true, false), (frozen.volume, frozen.pid, true, true)]);
    assert_eq!(ask(&client, "SELECT 'still'").await.unwrap(), "still");
    let error = warden.start(spec(volume(3))).await.unwrap_err();
    assert_eq!(error, WardenError::AlreadyRunning { volume: volume(3) });
    drop(client);
    for instance in &adopted {
        let report = stop(warden, instance).await;
        assert!(report.clean && report.status.is_none(), "{report:?}");
    }
    assert_eq!(process.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_warden_on_the_same_directories_does_not_begin() {
    if !harness::can_run() {
        return;
    }
    let place = Place::new();
    let process = start(&place);
    assert!(harness::try_start(&place).is_none());
    assert_eq!(process.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_somebody_holds_is_not_started() {
    if !harness::can_run() {
        return;
    }
    let place = Place::new();
    let process = start(&place);
    let warden = &process.warden;
    let id = volume(5);
    let instance = warden.start(spec(id)).await.unwrap();
    assert!(stop(warden, &instance).await.clean);
    let layout = roost_postgres::volume::Layout::new(place.data());
    let lock = std::fs::File::options().write(true).open(layout.lock(&id)).unwrap();
    lock.lock().unwrap();
    assert_eq!(warden.start(spec(id)).await.unwrap_err(), WardenError::VolumeInUse { volume: id });
    assert_eq!(warden.delete_volume(&id).await.unwrap_err(), WardenError::VolumeInUse { volume: id });
    assert!(warden.inspect_volume(&id).await.unwrap().in_use);
    drop(lock);
    let instance = warden.start(spec(id)).await.unwrap();
    assert!(stop(warden, &instance).await.clean);
    assert_eq!(process.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_postmaster_is_reported_and_its_volume_starts_again() {
    if !harness::can_run() {
        return;
    }
    let place = Place::new();
    let process = start(&place);
    let warden = &process.warden;
    let id = volume(6);
    let instance = warden.start(spec(id)).await.unwrap();
    let client = connect(&instance.socket_dir).await;
    client.simple_query("CREATE TABLE t AS SELECT 42 AS x").await.unwrap();
    let layout = roost_postgres::volume::Layout::new(place.data());
    let left = layout.upper(&id).join("postmaster.pid");
    assert!(std::fs::read_to_string(&left).unwrap().starts_with("1\n"));
    rustix::process::pidfd_send_signal(&instance.exit, rustix::process::Signal::KILL).unwrap();
    ended(&instance.exit).await;
    let report = warden.release(&id).await.unwrap();
    assert_eq!((report.clean, report.status), (false, Some(ExitStatus::Signal(9))));
    assert!(left.exists());
    // Another process id than a postmaster has here, as a volume from elsewhere brings it.
    let text = std::fs::read_to_string(&left).unwrap().replacen("1\n", "7\n", 1);
    std::fs::write(&left, text).unwrap();
    let instance = warden.start(spec(id)).await.unwrap();
    let client = connect(&instance.socket_dir).await;
    assert_eq!(ask(&client, "SELECT x FROM t").await.unwrap(), "42");
    drop(client);
    assert!(stop(warden, &instance).await.clean);
    assert_eq!(process.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superuser_inside_reaches_nothing_outside() {
    if !harness::can_run() {
        return;
    }
    let place = Place::new();
    let process = start(&place);
    let warden = &process.warden;
    let instance = warden.start(spec(volume(7))).await.unwrap();
    let other = warden.start(spec(volume(8))).await.unwrap();
    let client = connect(&instance.socket_dir).await;
    for sql in [
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT pg_read_file('/etc/shadow')",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_ls_dir('/home')",
        "SELECT pg_ls_dir('/work')",
        "SELECT pg_ls_dir('/sys')",
        "SELECT pg_ls_dir('/')",
        "SELECT pg_read_file('/proc/1/environ') FROM pg_sleep(0) WHERE false OR pg_read_file('/proc/meminfo') IS NOT NULL",
        "SELECT pg_read_file('/proc/sys/kernel/hostname')",
        "COPY (SELECT 1) TO '/etc/postgresql/pg_hba.conf'",
        "COPY (SELECT 1) TO '/run/postgresql/planted'",
        "COPY (SELECT 1) TO '/planted'",
    ] {
        let error = ask(&client, sql).await.expect_err(sql);
        println!("{sql}: {}", error.as_db_error().unwrap().message());
    }
    let processes = "SELECT count(*) FROM pg_ls_dir('/proc') AS x WHERE x ~ '^[0-9]+$'";
    let seen: u32 = ask(&client, processes).await.unwrap().parse().unwrap();
    assert!(seen <= warden.usage(&instance.volume).await.unwrap().pids, "{seen}");
    let status = ask(&client, "SELECT pg_read_file('/proc/self/status')").await.unwrap();
    for line in ["CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    // Far below the limit on its data segment, of which shared memory is no part.
    let data = status.lines().find_map(|line| line.strip_prefix("VmData:")?.trim().strip_suffix(" kB"));
    assert!(data.unwrap().parse::<u64>().unwrap() < 16 * 1024, "{status}");
    assert_eq!(
        status.lines().filter(|line| line.starts_with("Groups:")).collect::<String>().trim(),
        "Groups:"
    );
    drop(client);
    assert!(stop(warden, &instance).await.clean);
    assert!(stop(warden, &other).await.clean);
    assert_eq!(process.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_copied_exported_and_imported_flattened() {
    if !harness::can_run() {
        return;
    }
    let place = Place::new();
    let process = start(&place);
    let warden = &process.warden;
    let (source, copy, import) = (volume(9), volume(10), volume(11));
    let instance = warden.start(spec(source)).await.unwrap();
    let client = connect(&instance.socket_dir).await;
    client.simple_query("CREATE TABLE t AS SELECT 5 AS x").await.unwrap();
    drop(client);
    assert!(stop(warden, &instance).await.clean);

    warden.copy_volume(&source, &copy, 77).await.unwrap();
    let error = warden.copy_volume(&source, &copy, 77).await.unwrap_err();
    assert_eq!(error, WardenError::VolumeExists { volume: copy });
    let file = place.run().join("stream.tar");
    let to = std::fs::File::create(&file).unwrap();
    let bytes = warden.export(&source, to.into()).await.unwrap();
    assert!(bytes > 1 << 20);
    let from = std::fs::File::open(&file).unwrap();
    let major = spec(source).major;
    assert_eq!(warden.import(&import, major, 78, from.into()).await.unwrap(), bytes);
    std::fs::remove_file(file).unwrap();

    for (id, identifier) in [(copy, 77), (import, 78)] {
        let report = warden.inspect_volume(&id).await.unwrap();
        assert_eq!((report.system_identifier, report.clean, &report.damage), (Some(identifier), true, &None));
        let instance = warden.start(spec(id)).await.unwrap();
        let client = connect(&instance.socket_dir).await;
        assert_eq!(ask(&client, "SELECT x FROM t").await.unwrap(), "5");
        drop(client);
        assert!(stop(warden, &instance).await.clean);
        warden.delete_volume(&id).await.unwrap();
        assert!(!warden.inspect_volume(&id).await.unwrap().exists);
    }
    assert_eq!(process.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_that_do_not_end_hold_up_no_measurement_and_no_start() {
    if !harness::can_run() {
        return;
    }
    let place = Place::new();
    let process = start(&place);
    let warden = &process.warden;
    // More than run at once, each of a stream that never says anything.
    let mut streams = Vec::new();
    for number in 20..28 {
        let (stream, silence) = std::io::pipe().unwrap();
        let (warden, major) = (warden.clone(), spec(volume(number)).major);
        let import =
            tokio::spawn(async move { warden.import(&volume(number), major, 79, stream.into()).await });
        streams.push((silence, import));
    }
    let work = async {
        // Its template has to be made first, which is a job too.
        let instance = warden.start(spec(volume(12))).await.unwrap();
        assert!(warden.volume_bytes(&volume(12)).await.unwrap() > 1 << 20);
        assert!(stop(warden, &instance).await.clean);
    };
    tokio::time::timeout(Duration::from_secs(60), work).await.unwrap();
    for (silence, import) in streams {
        assert!(!import.is_finished());
        drop(silence);
        import.await.unwrap().unwrap_err();
    }
    assert_eq!(process.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_grows_gets_an_error_and_its_neighbours_live_on() {
    if !harness::can_run() {
        return;
    }
    let place = Place::new();
    let process = start(&place);
    let warden = &process.warden;
    let mut small = spec(volume(12));
    small.limits.memory_bytes = 128 << 20;
    small.settings.memory_bytes = 128 << 20;
    let instance = warden.start(small).await.unwrap();
    let neighbour = connect(&instance.socket_dir).await;
    let greedy = connect(&instance.socket_dir).await;
    let error = ask(&greedy, "SELECT length(repeat('x', 200 * 1024 * 1024))").await.unwrap_err();
    assert_eq!(error.as_db_error().unwrap().code().code(), "53200", "{error}");
    assert_eq!(ask(&greedy, "SELECT 1").await.unwrap(), "1");
    assert_eq!(ask(&neighbour, "SELECT 2").await.unwrap(), "2");
    drop((neighbour, greedy));
    let report = stop(warden, &instance).await;
    assert!(report.clean && !report.out_of_memory, "{report:?}");
    assert_eq!(process.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_succeed_says_why_and_leaves_nothing() {
    if !harness::can_run() {
        return;
    }
    let place = Place::new();
    let process = start(&place);
    let warden = &process.warden;
    let id = volume(13);

    let mut absent = spec(id);
    absent.create = false;
    assert_eq!(warden.start(absent).await.unwrap_err(), WardenError::VolumeMissing { volume: id });
    let mut unknown = spec(id);
    unknown.major = 99;
    assert!(matches!(warden.start(unknown).await.unwrap_err(), WardenError::NoSuchVersion { major: 99, .. }));
    let mut hurried = spec(id);
    hurried.deadline = Duration::ZERO;
    warden.ensure_template(hurried.major).await.unwrap();
    assert!(matches!(warden.start(hurried).await.unwrap_err(), WardenError::StartDeadline { .. }));

    let instance = warden.start(spec(id)).await.unwrap();
    assert!(stop(warden, &instance).await.clean);
    let layout = roost_postgres::volume::Layout::new(place.data());
    std::fs::write(layout.upper(&id).join("PG_VERSION"), "9.6\n").unwrap();
    let error = warden.start(spec(id)).await.unwrap_err();
    let WardenError::StartFailed { log, .. } = &error else { panic!("{error}") };
    assert!(log.iter().any(|line| line.contains("incompatible")), "{log:?}");
    assert!(warden.instances().await.unwrap().is_empty());
    assert!(!place.run().join(id.as_str()).exists());
    assert_eq!(process.end(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_below_the_scratch_directory_is_seen_by_its_instances() {
    if !harness::can_run() {
        return;
    }
    let place = Place::new();
    let mut config = place.config();
    let major = spec(volume(14)).major;
    config.installations.retain(|each| each.major == major);
    let installation = &mut config.installations[0];
    assert!(place.data().starts_with("/tmp"));
    let bin = place.data().with_file_name("programs");
    std::fs::create_dir(&bin).unwrap();
    for program in ["postgres", "initdb"] {
        std::fs::copy(installation.bin.join(program), bin.join(program)).unwrap();
    }
    // Postgres finds its other files beside its program.
    let prefix = installation.bin.parent().unwrap();
    for (name, target) in [("lib", prefix.join("lib")), ("share", installation.share.clone())] {
        let link = bin.with_file_name(name);
        std::os::unix::fs::symlink(target, &link).unwrap();
        installation.visible_paths.push(link);
    }
    let found = roost_postgres::Installation::examine(&bin).unwrap();
    installation.visible_paths.extend(found.visible_paths);
    installation.bin = found.bin;
    let process = harness::try_start_with(&place, config).expect("the warden ended at once");
    let warden = &process.warden;
    let instance = warden.start(spec(volume(14))).await.unwrap();
    let client = connect(&instance.socket_dir).await;
    let seen =
        ask(&client, "SELECT string_agg(x, ',' ORDER BY x) FROM pg_ls_dir('/tmp') AS x").await.unwrap();
    println!("{seen}");
    assert!(!seen.contains("meeting-point"));
    ask(&client, "COPY (SELECT 1) TO '/tmp/scratch'").await.unwrap();
    drop(client);
    assert!(stop(warden, &instance).await.clean);
    assert_eq!(process.end(), 0);
}

#[test]
fn a_node_that_cannot_get_to_its_data_is_told_where_it_is_stopped() {
    if !harness::can_run() {
        return;
    }
    let place = Place::new();
    let closed = place.data().with_file_name("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mut config = place.config();
    config.data = closed.join("data");
    let error = roost_warden::run(config).unwrap_err().to_string();
    assert!(error.contains(&format!("{} does not let it through", closed.display())), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_node_left_goes_away_with_its_data_at_the_next_start_of_any_node() {
    if !harness::can_run() {
        return;
    }
    let claims = || -> Vec<(std::path::PathBuf, String)> {
        let entries = std::fs::read_dir("/run/roost-uids").unwrap().flatten();
        entries
            .filter_map(|entry| Some((entry.path(), std::fs::read_to_string(entry.path()).ok()?)))
            .collect()
    };
    let claimed = |data: &std::path::Path| claims().iter().any(|(_, owner)| owner == data.to_str().unwrap());
    let place = Place::new();
    let process = start(&place);
    let instance = process.warden.start(spec(volume(15))).await.unwrap();
    process.kill();
    rustix::process::pidfd_send_signal(&instance.exit, rustix::process::Signal::KILL).unwrap();
    ended(&instance.exit).await;
    let data = place.data();
    assert!(claimed(&data) && groups_of(&data) > 0);
    drop(place);

    let other = Place::new();
    let process = start(&other);
    assert!(!claimed(&data) && claimed(&other.data()));
    assert_eq!(groups_of(&data), 0);
    assert_eq!(process.end(), 0);
    assert_eq!(groups_of(&other.data()), 0);
}

/// Control groups that belong to a data directory.
fn groups_of(data: &std::path::Path) -> usize {
    use std::os::unix::ffi::OsStrExt;
    let hash = data.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points =
        mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| std::path::Path::new(point).join(format!("roost-{hash:016x}")).exists()).count()
}
