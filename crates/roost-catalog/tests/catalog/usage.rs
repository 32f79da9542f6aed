//! History, wake times and counters.

use std::time::{Duration, Instant};

use roost_catalog::id::DatabaseId;
use roost_catalog::model::{State, Transition, Usage, UsageDelta};
use roost_catalog::{CatalogOptions, MAX_HISTORY_PER_DATABASE};

use crate::fixture::{Fixture, at, moment};

fn step(database: DatabaseId, from: State, to: State, took: u64) -> Transition {
    let took = Duration::from_millis(took);
    Transition { database, at: at(took.as_secs()), from, to, took, reason: "a connection".to_owned() }
}

fn delta(database: DatabaseId) -> UsageDelta {
    UsageDelta {
        database,
        sessions: 1,
        bytes_in: 10,
        bytes_out: 100,
        cpu: Duration::from_millis(3),
        running: Duration::from_secs(2),
        last_used_at: None,
        size_bytes: None,
        xid_age: None,
    }
}

#[tokio::test]
async fn history_is_kept_latest_first_and_bounded_for_each_database() {
    let fixture = Fixture::new();
    let busy = fixture.create("busy").await.id;
    let quiet = fixture.create("quiet").await.id;
    fixture.catalog.record_transition(step(quiet, State::Stopped, State::Running, 1));
    for number in 1..=450 {
        fixture.catalog.record_transition(step(busy, State::Frozen, State::Running, number));
        if number % 100 == 0 {
            fixture.catalog.flush().await.unwrap();
        }
    }
    fixture.catalog.flush().await.unwrap();
    let kept = fixture.catalog.history(&busy, u32::MAX).await.unwrap();
    assert_eq!(kept.len(), MAX_HISTORY_PER_DATABASE as usize);
    assert_eq!(kept[0], step(busy, State::Frozen, State::Running, 450));
    assert_eq!(kept.last(), Some(&step(busy, State::Frozen, State::Running, 251)));
    assert_eq!(fixture.catalog.history(&busy, 3).await.unwrap(), kept[..3]);
    assert_eq!(fixture.catalog.history(&quiet, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_was_recorded_before_a_look_is_seen_by_it() {
    let fixture = Fixture::with(CatalogOptions {
        record_interval: Duration::from_secs(3_600),
        ..CatalogOptions::default()
    });
    let id = fixture.create("shop").await.id;
    fixture.catalog.record_transition(step(id, State::Stopped, State::Running, 1));
    assert_eq!(fixture.catalog.history(&id, 10).await.unwrap().len(), 1);
    fixture.catalog.record_transition(step(id, State::Frozen, State::Running, 2));
    assert_eq!(fixture.catalog.wake_stats(&id).await.unwrap().len(), 2);
    fixture.catalog.record_usage(delta(id));
    assert_eq!(fixture.catalog.usage(&id).await.unwrap().sessions, 1);
}

#[tokio::test]
async fn wake_times_are_told_apart_by_the_state_they_started_from() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    for took in [30, 10, 20] {
        fixture.catalog.record_transition(step(id, State::Stopped, State::Running, took));
        fixture.catalog.record_transition(step(id, State::Running, State::Frozen, 1));
    }
    fixture.catalog.record_transition(step(id, State::Frozen, State::Running, 2));
    fixture.catalog.flush().await.unwrap();
    let stats = fixture.catalog.wake_stats(&id).await.unwrap();
    assert_eq!(stats.len(), 2);
    assert_eq!((stats[0].from, stats[0].count), (State::Stopped, 3));
    assert_eq!((stats[0].last_ms, stats[0].p50_ms, stats[0].p99_ms), (20.0, 20.0, 30.0));
    assert_eq!((stats[1].from, stats[1].count, stats[1].last_ms), (State::Frozen, 1, 2.0));
    assert!(fixture.catalog.wake_stats(&DatabaseId::generate()).await.unwrap().is_empty());
}

#[tokio::test]
async fn usage_adds_up_over_flushes_and_restarts() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    assert_eq!(fixture.catalog.usage(&id).await.unwrap(), Usage::default());
    fixture.catalog.record_usage(UsageDelta { last_used_at: Some(at(9)), ..delta(id) });
    fixture.catalog.record_usage(UsageDelta { size_bytes: Some(1 << 40), ..delta(id) });
    fixture.catalog.flush().await.unwrap();
    let late = UsageDelta { last_used_at: Some(at(3)), xid_age: Some(77), ..delta(id) };
    fixture.catalog.record_usage(late);
    let fixture = fixture.reopen();
    let expected = Usage {
        sessions: 3,
        bytes_in: 30,
        bytes_out: 300,
        cpu: Duration::from_millis(9),
        running: Duration::from_secs(6),
    };
    assert_eq!(fixture.catalog.usage(&id).await.unwrap(), expected);
    let database = fixture.catalog.database(&id).await.unwrap().unwrap();
    assert_eq!(database.last_used_at, Some(at(9)), "an earlier use does not replace a later one");
    assert_eq!((database.size_bytes, database.xid_age), (Some(1 << 40), Some(77)));
}

#[tokio::test]
async fn a_counter_stays_at_its_largest_value() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    for _ in 0..3 {
        fixture.catalog.record_usage(UsageDelta { bytes_in: u64::MAX, ..delta(id) });
        fixture.catalog.flush().await.unwrap();
    }
    let usage = fixture.catalog.usage(&id).await.unwrap();
    assert_eq!((usage.bytes_in, usage.sessions), (i64::MAX.unsigned_abs(), 3));
    assert_eq!(fixture.catalog.dropped_records(), 0);
}

#[tokio::test]
async fn records_are_written_by_themselves_after_a_moment() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    fixture.catalog.record_usage(UsageDelta { last_used_at: Some(at(9)), ..delta(id) });
    let started = Instant::now();
    while fixture.catalog.database(&id).await.unwrap().unwrap().last_used_at.is_none() {
        assert!(started.elapsed() < Duration::from_secs(10), "never written");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn recording_never_blocks_and_what_does_not_fit_is_counted() {
    let options = CatalogOptions { waiting_records: 100, ..CatalogOptions::default() };
    let fixture = Fixture::with(options);
    let id = fixture.create("shop").await.id;
    // Another program's lock keeps the writer from writing anything.
    let blocker = rusqlite::Connection::open(fixture.path()).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let started = Instant::now();
    for _ in 0..100_000 {
        fixture.catalog.record_usage(delta(id));
    }
    assert!(started.elapsed() < Duration::from_secs(3), "recording took {:?}", started.elapsed());
    blocker.execute_batch("ROLLBACK").unwrap();
    fixture.catalog.flush().await.unwrap();
    let written = fixture.catalog.usage(&id).await.unwrap().sessions;
    assert!(written >= 100, "{written}");
    assert_eq!(written + fixture.catalog.dropped_records(), 100_000);
}

#[tokio::test]
async fn databases_with_old_transaction_ids_are_found_the_oldest_first() {
    let fixture = Fixture::new();
    let age = |million: u64| Some(million * 1_000_000);
    let mut ids = Vec::new();
    for (name, million) in [("young", 100), ("old", 1_600), ("older", 1_900), ("deleted", 2_000)] {
        let id = fixture.create(name).await.id;
        fixture.catalog.record_usage(UsageDelta { xid_age: age(million), ..delta(id) });
        ids.push(id);
    }
    fixture.create("unknown").await;
    fixture.catalog.flush().await.unwrap();
    fixture.catalog.delete_database(&ids[3], moment(1)).await.unwrap();
    let found = async |million: u64, limit: u32| {
        fixture.catalog.databases_of_xid_age(million * 1_000_000, limit).await.unwrap()
    };
    assert_eq!(found(1_500, 10).await, [ids[2], ids[1]]);
    assert_eq!(found(1_500, 1).await, [ids[2]]);
    assert_eq!(found(1_700, 10).await, [ids[2]]);
    assert_eq!(found(0, 10).await, [ids[2], ids[1]], "the index knows none below 200 million");
}
