//! Maintenance before sleep, on real Postgres.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its set-up too")]

mod support;

use std::time::Duration;

use roost_postgres::maintenance;
use support::{Cluster, text};

const BUDGET: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_load_and_then_sleep_at_once_leaves_statistics() {
    for installation in support::installations() {
        let cluster = Cluster::new(&installation);
        let server = cluster.start();
        let owner = server.owner().await;
        owner
            .batch_execute(
                "CREATE TABLE \"Odd \"\"name\" AS SELECT x, x % 7 AS y FROM generate_series(1, 100000) x; \
                 CREATE TABLE empty (id int); CREATE TABLE small AS SELECT 1 AS x; \
                 CREATE TABLE off WITH (autovacuum_enabled = off) AS SELECT 1 AS x; \
                 CREATE MATERIALIZED VIEW m AS SELECT 1 AS x; \
                 CREATE TABLE p (x int) PARTITION BY RANGE (x); \
                 CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); \
                 INSERT INTO p SELECT generate_series(1, 99)",
            )
            .await
            .unwrap();
        let report = maintenance::run(&cluster.socket(), BUDGET).await;
        assert_eq!(report.problems, Vec::<String>::new(), "{}", installation.version);
        assert!(!report.unfinished);
        let tables = "SELECT string_agg(DISTINCT tablename, ',' ORDER BY tablename) FROM pg_stats \
                       WHERE schemaname = 'public'";
        assert_eq!(text(&owner, tables).await, "Odd \"name,m,p,p1,small");
        let visible = "SELECT relallvisible > 0 FROM pg_class WHERE relname LIKE 'Odd%'";
        assert_eq!(text(&owner, visible).await, "t");

        // Nothing changed since, so nothing is due. Version 14 shows statistics up to half a second late.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let again = maintenance::run(&cluster.socket(), BUDGET).await;
        assert_eq!((again.analyzed, again.vacuumed), (0, 0), "{}", installation.version);
        server.stop();
    }
}

#[tokio::test]
async fn a_table_that_grew_in_a_session_that_is_still_open_is_analysed_again() {
    for installation in support::installations() {
        let cluster = Cluster::new(&installation);
        let server = cluster.start();
        let owner = server.owner().await;
        owner.batch_execute("CREATE TABLE t AS SELECT 1 AS x; ANALYZE t").await.unwrap();
        owner.batch_execute("INSERT INTO t SELECT generate_series(1, 100000)").await.unwrap();
        maintenance::run(&cluster.socket(), BUDGET).await;
        let rows = "SELECT reltuples > 90000 FROM pg_class WHERE relname = 't'";
        assert_eq!(text(&owner, rows).await, "t", "{}", installation.version);
        server.stop();
    }
}

#[tokio::test]
async fn every_database_of_the_tenant_is_looked_into_as_its_owner() {
    for installation in support::installations() {
        let cluster = Cluster::new(&installation);
        let server = cluster.start();
        let owner = server.owner().await;
        for sql in ["CREATE ROLE app LOGIN", "GRANT app TO postgres", "CREATE DATABASE shop OWNER app"] {
            owner.batch_execute(sql).await.unwrap();
        }
        let app = server.connect("app", "shop").await.unwrap();
        // The index's function notes who runs it, inside the session that analyses.
        app.batch_execute(
            "CREATE FUNCTION note(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN \
                 RAISE LOG 'noted % %', session_user, pg_catalog.current_setting('is_superuser'); RETURN $1; END $$; \
             CREATE TABLE t AS SELECT x FROM generate_series(1, 1000) x; CREATE INDEX ON t (note(x))",
        )
        .await
        .unwrap();
        let report = maintenance::run(&cluster.socket(), BUDGET).await;
        assert_eq!((report.databases, &report.problems), (2, &Vec::new()), "{}", installation.version);
        assert_eq!(text(&app, "SELECT count(*) > 0 FROM pg_stats WHERE tablename = 't'").await, "t");
        server.stop();
        let log = cluster.log();
        assert!(log.contains("noted app off"), "{log}");
        assert!(!log.contains("noted _roost"), "{log}");
        assert!(!log.contains("noted app on"), "{log}");
    }
}

#[tokio::test]
async fn a_database_whose_owner_may_not_log_in_is_left_alone_and_reported() {
    let installation = support::installations().remove(0);
    let cluster = Cluster::new(&installation);
    let server = cluster.start();
    let owner = server.owner().await;
    for sql in
        ["CREATE ROLE nobody_in", "GRANT nobody_in TO postgres", "CREATE DATABASE shop OWNER nobody_in"]
    {
        owner.batch_execute(sql).await.unwrap();
    }
    let report = maintenance::run(&cluster.socket(), BUDGET).await;
    assert_eq!(report.databases, 1);
    assert!(
        report.problems.iter().any(|problem| problem.contains("shop") && problem.contains("log in")),
        "{report:?}"
    );
    server.stop();
}

#[tokio::test]
async fn the_budget_is_kept() {
    let installation = support::installations().remove(0);
    let cluster = Cluster::new(&installation);
    let server = cluster.start();
    let owner = server.owner().await;
    owner
        .batch_execute(
            "CREATE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_catalog.pg_sleep(0.01); RETURN $1; END $$; \
             CREATE TABLE t (x int); CREATE INDEX ON t (slow(x)); INSERT INTO t SELECT generate_series(1, 100)",
        )
        .await
        .unwrap();
    owner.batch_execute("CREATE TABLE u AS SELECT 1 AS x").await.unwrap();
    let report = maintenance::run(&cluster.socket(), Duration::from_millis(300)).await;
    assert!(report.unfinished, "{report:?}");
    assert!(report.took < Duration::from_secs(5), "{report:?}");
    server.stop();
}

#[tokio::test]
async fn a_locked_table_is_passed_over() {
    for installation in support::installations() {
        let cluster = Cluster::new(&installation);
        let server = cluster.start();
        let owner = server.owner().await;
        owner
            .batch_execute("CREATE TABLE locked AS SELECT 1 AS x; CREATE TABLE free AS SELECT 1 AS x")
            .await
            .unwrap();
        let other = server.owner().await;
        other.batch_execute("BEGIN; LOCK TABLE locked IN ACCESS EXCLUSIVE MODE").await.unwrap();
        // As if `free` had been analysed before and grown since: without sizes, only what was never analysed is seen.
        owner.batch_execute("ANALYZE free").await.unwrap();
        owner
            .batch_execute("CREATE TABLE fresh AS SELECT generate_series(1, 1000) AS x; ANALYZE fresh")
            .await
            .unwrap();
        let report = maintenance::run(&cluster.socket(), Duration::from_secs(10)).await;
        assert_eq!(report.problems, Vec::<String>::new());
        assert!(report.took < Duration::from_secs(5), "{report:?}");
        other.batch_execute("ROLLBACK").await.unwrap();
        let analysed = "SELECT count(*) FROM pg_stats WHERE tablename = 'locked'";
        assert_eq!(text(&owner, analysed).await, "0");
        server.stop();
    }
}

#[tokio::test]
async fn an_instance_that_does_not_answer_costs_no_more_than_the_budget() {
    let directory = support::directory();
    let report = maintenance::run(directory.path(), Duration::from_millis(50)).await;
    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert!(report.took < Duration::from_secs(5));
}
