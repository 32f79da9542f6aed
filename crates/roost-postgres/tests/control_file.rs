//! Control files of real clusters: read while they run and after a crash, and rewritten.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its set-up too")]

mod support;

use std::fs;
use std::process::Command;

use roost_postgres::control_file::{
    self, ClusterState, ControlFile, ControlFileError, copy_with_system_identifier, set_system_identifier,
};
use support::{Cluster, text};

const NEW_ID: u64 = 7_123_456_789_012_345_678;
const IDENTIFIER: &str = "SELECT system_identifier FROM pg_control_system()";

#[tokio::test]
async fn the_state_follows_the_server() {
    for installation in support::installations() {
        let cluster = Cluster::new(&installation);
        let read = || ControlFile::read(&cluster.data()).unwrap();
        assert!(read().state.is_clean());
        let server = cluster.start();
        assert_eq!(read().state, ClusterState::Running);
        server.stop();
        assert_eq!(read().state, ClusterState::ShutDown);
        let server = cluster.start();
        server.crash();
        assert_eq!(read().state, ClusterState::Running);
        assert!(matches!(
            set_system_identifier(&cluster.data(), NEW_ID),
            Err(ControlFileError::NotShutDown { .. })
        ));
    }
}

#[tokio::test]
async fn what_is_read_is_what_postgres_says() {
    for installation in support::installations() {
        let cluster = Cluster::new(&installation);
        let control = ControlFile::read(&cluster.data()).unwrap();
        let server = cluster.start();
        let client = server.connect("_roost", "_roost").await.unwrap();
        assert_eq!(text(&client, IDENTIFIER).await, control.system_identifier.to_string());
        let versions = "SELECT pg_control_version || ' ' || catalog_version_no FROM pg_control_system()";
        assert_eq!(
            text(&client, versions).await,
            format!("{} {}", control.control_version, control.catalog_version)
        );
        // The start's own checkpoint changed the rest, so it is read again while the server runs.
        let control = ControlFile::read(&cluster.data()).unwrap();
        let checkpoint = "SELECT checkpoint_lsn - '0/0'::pg_lsn || ' ' || timeline_id || ' ' || next_xid || ' ' || \
                          oldest_xid FROM pg_control_checkpoint()";
        let epoch = control.next_xid >> 32;
        let next = format!("{epoch}:{}", control.next_xid & u64::from(u32::MAX));
        assert_eq!(
            text(&client, checkpoint).await,
            format!("{} {} {next} {}", control.checkpoint, control.timeline, control.oldest_xid)
        );
        assert!(control.xid_age() < 1_000_000);
        server.stop();
    }
}

#[tokio::test]
async fn a_cluster_with_another_system_identifier_runs() {
    for installation in support::installations() {
        let cluster = Cluster::new(&installation);
        let written = set_system_identifier(&cluster.data(), NEW_ID).unwrap();
        assert_eq!(written.len(), 2, "{written:?}");
        // Once more, as after a rewriting that was cut short.
        assert_eq!(set_system_identifier(&cluster.data(), NEW_ID).unwrap(), written);
        assert_runs_as(&cluster, NEW_ID).await;
    }
}

#[tokio::test]
async fn a_rewriting_that_was_cut_short_is_completed_by_another() {
    let installation = support::installations().remove(0);
    let cluster = Cluster::new(&installation);
    let control = cluster.data().join(control_file::RELATIVE_PATH);
    let before = fs::read(&control).unwrap();
    set_system_identifier(&cluster.data(), NEW_ID).unwrap();
    // The WAL was rewritten, the control file not yet.
    fs::write(&control, before).unwrap();
    set_system_identifier(&cluster.data(), NEW_ID).unwrap();
    assert_runs_as(&cluster, NEW_ID).await;
}

#[tokio::test]
async fn a_layer_over_a_template_gets_an_identifier_of_its_own() {
    for installation in support::installations() {
        let template = support::template(&installation);
        let cluster = Cluster::new(&installation);
        let upper = support::directory();
        let before = ControlFile::read(&template).unwrap();
        let written = copy_with_system_identifier(&template, upper.path(), NEW_ID).unwrap();
        assert_eq!(ControlFile::read(&template).unwrap(), before);
        let relative: Vec<_> = written.iter().map(|path| path.strip_prefix(upper.path()).unwrap()).collect();
        assert_eq!(relative.len(), 2, "{relative:?}");
        assert!(relative[0].starts_with("pg_wal"));
        assert_eq!(relative[1], std::path::Path::new(control_file::RELATIVE_PATH));

        // What an overlay would show: the upper files over the template's.
        for (path, relative) in written.iter().zip(relative) {
            let model = fs::metadata(template.join(relative)).unwrap();
            let copy = fs::metadata(path).unwrap();
            use std::os::unix::fs::MetadataExt;
            assert_eq!((copy.len(), copy.mode(), copy.uid()), (model.len(), model.mode(), model.uid()));
            fs::remove_file(cluster.data().join(relative)).unwrap();
            support::copy_tree(path, &cluster.data().join(relative));
        }
        assert_runs_as(&cluster, NEW_ID).await;
    }
}

#[tokio::test]
async fn wal_of_one_database_is_not_taken_for_anothers() {
    let installation = support::installations().remove(0);
    let (one, other) = (Cluster::new(&installation), Cluster::new(&installation));
    set_system_identifier(&one.data(), 1).unwrap();
    let written = set_system_identifier(&other.data(), 2).unwrap();
    let segment = written[0].strip_prefix(other.data()).unwrap();
    fs::copy(other.data().join(segment), one.data().join(segment)).unwrap();
    let error = set_system_identifier(&one.data(), 3).unwrap_err();
    assert!(matches!(error, ControlFileError::Damaged { .. }), "{error}");
}

#[test]
fn a_damaged_control_file_is_told_from_a_missing_one() {
    let installation = support::installations().remove(0);
    let cluster = Cluster::new(&installation);
    let path = cluster.data().join(control_file::RELATIVE_PATH);
    let good = fs::read(&path).unwrap();
    for at in [0, 16, 100, 230] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        assert!(matches!(ControlFile::read(&cluster.data()), Err(ControlFileError::Damaged { .. })), "{at}");
    }
    for length in [0, 10, 200, 290] {
        fs::write(&path, &good[..length]).unwrap();
        assert!(
            matches!(ControlFile::read(&cluster.data()), Err(ControlFileError::Damaged { .. })),
            "{length}"
        );
    }
    fs::remove_file(&path).unwrap();
    assert!(matches!(ControlFile::read(&cluster.data()), Err(ControlFileError::Io { .. })));
}

async fn assert_runs_as(cluster: &Cluster, id: u64) {
    let server = cluster.start();
    let client = server.connect("_roost", "_roost").await.unwrap();
    assert_eq!(text(&client, IDENTIFIER).await, id.to_string());
    client.batch_execute("CREATE TABLE t AS SELECT generate_series(1, 100000) AS x").await.unwrap();
    // Recovery reads the WAL from the segment that was rewritten, and checks whose it is.
    server.crash();
    let server = cluster.start();
    let client = server.connect("_roost", "_roost").await.unwrap();
    assert_eq!(text(&client, "SELECT count(*) FROM t").await, "100000");
    server.stop();

    let pg_controldata = cluster.installation.bin.join("pg_controldata");
    if pg_controldata.exists() {
        let said = Command::new(pg_controldata).arg(cluster.data()).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        assert!(!said.contains("WARNING"), "{said}");
        let line = said.lines().find(|line| line.starts_with("Database system identifier")).unwrap();
        assert!(line.ends_with(&id.to_string()), "{line}");
    }
}
