//! Real Postgres with the configuration that is rendered for it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its set-up too")]

mod support;

use roost_postgres::settings::{InstanceSettings, WalLevel, extra};
use support::{Cluster, code, text};

#[tokio::test]
async fn postgres_runs_with_what_was_rendered() {
    for installation in support::installations() {
        let cluster = Cluster::new(&installation);
        let server = cluster.start();
        let owner = server.owner().await;
        for (name, value) in [
            ("shared_buffers", "64MB"),
            ("max_connections", "100"),
            ("superuser_reserved_connections", "3"),
            ("min_wal_size", "8MB"),
            ("wal_level", "replica"),
            ("listen_addresses", ""),
            ("archive_mode", "off"),
            ("fsync", "on"),
            ("ssl", "off"),
            ("jit", "off"),
            ("password_encryption", "scram-sha-256"),
            ("default_transaction_read_only", "off"),
            ("wal_segment_size", "4MB"),
        ] {
            assert_eq!(text(&owner, &format!("SHOW {name}")).await, value, "{} {name}", installation.version);
        }
        let files = "SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL OR NOT applied";
        let control = server.connect("_roost", "_roost").await.unwrap();
        assert_eq!(text(&control, files).await, "0", "{}", installation.version);
        server.stop();
    }
}

#[tokio::test]
async fn a_read_only_instance_refuses_writes_until_it_is_told_otherwise() {
    let installation = support::installations().remove(0);
    let mut cluster = Cluster::new(&installation);
    cluster.settings.read_only = true;
    let server = cluster.start();
    let owner = server.owner().await;
    assert_eq!(code(owner.batch_execute("CREATE TABLE t (x int)").await), "25006");
    server.stop();
}

#[tokio::test]
async fn logical_decoding_and_back_is_a_restart_each() {
    for installation in support::installations() {
        let mut cluster = Cluster::new(&installation);
        for level in [WalLevel::Logical, WalLevel::Replica] {
            cluster.settings.wal_level = level;
            let server = cluster.start();
            let owner = server.owner().await;
            assert_eq!(text(&owner, "SHOW wal_level").await, level.as_str());
            server.stop();
        }
    }
}

#[tokio::test]
async fn postgres_starts_with_every_further_setting_at_both_ends_of_its_range() {
    for installation in support::installations() {
        let major = installation.major;
        for low in [true, false] {
            let pick = |(least, most)| if low { least } else { most };
            let chosen = extra::names(major)
                .map(|name| (name.to_owned(), extra::bounds(name).map(pick).unwrap()))
                .collect();
            extra::validate_extra(major, &chosen).unwrap();
            let mut cluster = Cluster::new(&installation);
            cluster.settings = InstanceSettings { extra: chosen, ..InstanceSettings::default() };
            let server = cluster.start();
            let control = server.connect("_roost", "_roost").await.unwrap();
            let errors = "SELECT string_agg(name || ': ' || error, '; ') FROM pg_file_settings WHERE error IS NOT NULL";
            assert_eq!(text(&control, errors).await, "NULL", "{}", installation.version);
            server.stop();
        }
    }
}
