//! Roost's own connection to a running instance.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its set-up too")]

mod support;

use std::time::{Duration, SystemTime};

use roost_postgres::control::{Control, SessionError};
use support::{Cluster, code};
use tokio::time::Instant;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

#[tokio::test]
async fn roles_are_read_with_their_verifiers() {
    for installation in support::installations() {
        let cluster = Cluster::new(&installation);
        let server = cluster.start();
        let owner = server.owner().await;
        let control = Control::connect(&cluster.socket(), soon()).await.unwrap();
        let roles = control.roles().await.unwrap();
        assert_eq!(roles.len(), 1);
        assert_eq!(
            (roles[0].name.as_str(), roles[0].can_login, &roles[0].verifier),
            ("postgres", true, &None)
        );

        owner
            .batch_execute(
                "CREATE ROLE app LOGIN PASSWORD 'x' VALID UNTIL '2033-05-18 03:33:20+00'; \
                 CREATE ROLE late LOGIN VALID UNTIL '-infinity'; \
                 CREATE ROLE ever LOGIN VALID UNTIL 'infinity'; \
                 CREATE ROLE \"Grüße\"",
            )
            .await
            .unwrap();
        let app = control.role("app").await.unwrap().unwrap();
        assert!(app.verifier.unwrap().starts_with("SCRAM-SHA-256$4096:"));
        assert_eq!(app.valid_until, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000)));
        assert_eq!(control.role("late").await.unwrap().unwrap().valid_until, Some(SystemTime::UNIX_EPOCH));
        assert_eq!(control.role("ever").await.unwrap().unwrap().valid_until, None);
        assert!(!control.role("Grüße").await.unwrap().unwrap().can_login);
        assert_eq!(control.roles().await.unwrap().len(), 5);
        for none in ["_roost", "pg_monitor", "missing", "", "a\0b", &"x".repeat(64)] {
            assert_eq!(control.role(none).await.unwrap(), None, "{none}");
        }
        server.stop();
    }
}

#[tokio::test]
async fn a_role_whose_name_is_not_utf8_does_not_hide_the_others() {
    let installation = support::installations().remove(0);
    let cluster = Cluster::new(&installation);
    let server = cluster.start();
    let owner = server.owner().await;
    owner
        .batch_execute("CREATE DATABASE old TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
        .await
        .unwrap();
    let old = server.connect("postgres", "old").await.unwrap();
    // In this database a text may hold any byte; 0xff is none of UTF-8's.
    old.batch_execute(
        "DO $$ BEGIN EXECUTE format('CREATE ROLE %I LOGIN', pg_catalog.convert_from('\\xff41', 'SQL_ASCII')); END $$",
    )
    .await
    .unwrap();
    let control = Control::connect(&cluster.socket(), soon()).await.unwrap();
    let names: Vec<String> = control.roles().await.unwrap().into_iter().map(|role| role.name).collect();
    assert_eq!(names, ["postgres"]);
    server.stop();
}

#[tokio::test]
async fn a_verifier_of_absurd_length_is_not_read() {
    let installation = support::installations().remove(0);
    let cluster = Cluster::new(&installation);
    let server = cluster.start();
    let owner = server.owner().await;
    let long = "A".repeat(100_000);
    let key = format!("{}=", "A".repeat(43));
    let sql = format!("CREATE ROLE app LOGIN PASSWORD 'SCRAM-SHA-256$4096:{long}${key}:{key}'");
    if code(owner.batch_execute(&sql).await) == "00000" {
        let control = Control::connect(&cluster.socket(), soon()).await.unwrap();
        assert_eq!(control.role("app").await.unwrap().unwrap().verifier, None);
    }
    server.stop();
}

#[tokio::test]
async fn activity_counts_the_tenants_sessions_only() {
    for installation in support::installations() {
        let cluster = Cluster::new(&installation);
        let server = cluster.start();
        let control = Control::connect(&cluster.socket(), soon()).await.unwrap();
        let activity = control.activity().await.unwrap();
        assert_eq!((activity.sessions, activity.active, activity.idle_in_transaction), (0, 0, 0));
        assert_eq!(activity.oldest_transaction, None);

        let (idle, inside, busy) = (server.owner().await, server.owner().await, server.owner().await);
        inside.batch_execute("BEGIN").await.unwrap();
        let sleeping = tokio::spawn(async move { busy.batch_execute("SELECT pg_sleep(60)").await });
        let begun = std::time::Instant::now();
        loop {
            let activity = control.activity().await.unwrap();
            if (activity.sessions, activity.active, activity.idle_in_transaction) == (3, 1, 1) {
                assert!(activity.oldest_transaction.is_some());
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{activity:?}");
        }

        assert_eq!(control.terminate_sessions().await.unwrap(), 3);
        assert_eq!(code(sleeping.await.unwrap()), "57P01");
        drop((idle, inside));
        assert!(!control.is_closed());
        server.stop();
    }
}

#[tokio::test]
async fn databases_sizes_and_ages_are_read() {
    for installation in support::installations() {
        let cluster = Cluster::new(&installation);
        let server = cluster.start();
        let control = Control::connect(&cluster.socket(), soon()).await.unwrap();
        let databases = control.databases().await.unwrap();
        let found: Vec<_> = databases
            .iter()
            .map(|row| (row.name.as_str(), row.owner.as_str(), row.allows_connections))
            .collect();
        assert_eq!(found[0], ("postgres", "postgres", true));
        assert!(found.contains(&("_roost", "_roost", true)), "{found:?}");
        assert!(found.contains(&("template0", "_roost", false)), "{found:?}");
        assert!(control.size_bytes().await.unwrap() > 1 << 20);
        assert!(control.xid_age().await.unwrap() < 1_000_000);
        server.stop();
    }
}

#[tokio::test]
async fn a_stopped_server_is_noticed_and_its_absence_is_bounded_by_the_deadline() {
    let installation = support::installations().remove(0);
    let cluster = Cluster::new(&installation);
    let server = cluster.start();
    let control = Control::connect(&cluster.socket(), soon()).await.unwrap();
    server.stop();
    assert!(control.activity().await.is_err());
    assert!(control.is_closed());
    let deadline = Instant::now() + Duration::from_millis(100);
    let error = Control::connect(&cluster.socket(), deadline).await.err().unwrap();
    assert!(matches!(error, SessionError::Deadline { .. }), "{error}");
}

#[tokio::test]
async fn the_tenants_settings_and_objects_do_not_reach_roosts_queries() {
    for installation in support::installations() {
        let cluster = Cluster::new(&installation);
        let server = cluster.start();
        let owner = server.owner().await;
        owner
            .batch_execute(
                "ALTER DATABASE postgres SET search_path = 'evil'; ALTER ROLE postgres SET search_path = 'evil'; \
                 CREATE SCHEMA evil; CREATE VIEW evil.pg_stat_activity AS SELECT 1; \
                 CREATE FUNCTION evil.count(boolean) RETURNS bigint LANGUAGE sql AS 'SELECT 99::bigint'",
            )
            .await
            .unwrap();
        let control = Control::connect(&cluster.socket(), soon()).await.unwrap();
        assert_eq!(control.activity().await.unwrap().sessions, 1);
        server.stop();
    }
}

#[tokio::test]
async fn a_connection_that_was_closed_has_left_no_process() {
    let installation = support::installations().remove(0);
    let cluster = Cluster::new(&installation);
    let server = cluster.start();
    let owner = server.owner().await;
    for round in 0..20 {
        let control = Control::connect(&cluster.socket(), soon()).await.unwrap();
        control.roles().await.unwrap();
        control.close().await;
        let left = "SELECT count(*) FROM pg_stat_activity WHERE usename = '_roost'";
        let left: i64 = owner.query_one(left, &[]).await.unwrap().get(0);
        assert_eq!(left, 0, "round {round}");
    }
    server.stop();
}
