//! When a session holds the activity lease, and how a frozen database is thawed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::support::Door;
use super::support::door::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_is_held_while_postgres_works_and_only_then() {
    let door = Door::open().await;
    let leases = || door.stage.leases.load(Ordering::SeqCst);
    let client = door.connect().await;
    eventually("an idle session holds no lease", || leases() == 0).await;
    assert_eq!(door.stage.holds.load(Ordering::SeqCst), 1);

    let (slept, ()) = tokio::join!(client.batch_execute("select pg_sleep(0.5)"), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(leases(), 1);
    });
    slept.unwrap();
    eventually("an answered query holds no lease", || leases() == 0).await;

    client.batch_execute("begin").await.unwrap();
    eventually("an idle transaction holds no lease", || leases() == 0).await;
    drop(client);
    eventually("a session that left holds nothing", || door.stage.holds.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_byte_of_an_idle_session_thaws_its_database() {
    let door = Door::open().await;
    let client = door.connect().await;
    client.batch_execute("create temp table kept (i int)").await.unwrap();
    eventually("the session is idle", || door.stage.leases.load(Ordering::SeqCst) == 0).await;
    door.stage.frozen.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(door.stage.thaws.load(Ordering::SeqCst), 0);
    client.batch_execute("insert into kept values (1)").await.unwrap();
    assert_eq!(door.stage.thaws.load(Ordering::SeqCst), 1);
    assert!(!door.stage.frozen.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_does_not_thaw_a_frozen_database() {
    let door = Door::open().await;
    let mut polite = door.session().await;
    let abrupt = door.session().await;
    eventually("the sessions are idle", || door.stage.leases.load(Ordering::SeqCst) == 0).await;
    door.stage.frozen.store(true, Ordering::SeqCst);
    polite.send(&[b'X', 0, 0, 0, 4]).await;
    drop(abrupt);
    eventually("both are gone", || door.stage.holds.load(Ordering::SeqCst) == 0).await;
    assert!(polite.is_over().await);
    assert_eq!(door.stage.thaws.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_never_ends_does_not_keep_a_database_awake() {
    let door = Door::open().await;
    let mut session = door.session().await;
    session.send(b"Q\0").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    eventually("the lease is given back", || door.stage.leases.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_holds_the_lease_until_it_is_done_or_has_failed() {
    let door = Door::open().await;
    let leases = || door.stage.leases.load(Ordering::SeqCst);
    let mut session = door.session().await;
    session.query("create temp table t (i int)").await;
    session.read_until(b'Z').await;
    session.query("copy t from stdin").await;
    session.read_until(b'G').await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(leases(), 1);
    session.send(b"d\0\0\0\x061\n").await;
    session.send(b"c\0\0\0\x04").await;
    session.read_until(b'Z').await;
    eventually("the copy is done", || leases() == 0).await;
}
