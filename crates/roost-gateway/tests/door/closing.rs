//! How sessions end when their database or the node goes away.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use roost_lifecycle::{ClosingReason, Shortage};

use super::support::door::eventually;
use super::support::{Door, DoorOptions};

/// Ends the backends of all sessions but this.
const TERMINATE_OTHERS: &str = "select pg_terminate_backend(pid) from pg_stat_activity \
     where pid <> pg_backend_pid() and backend_type = 'client backend'";

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_taken_away_tells_its_sessions_why() {
    for (reason, code, words) in [
        (ClosingReason::Stopped, "57P01", "stopped by its operator"),
        (ClosingReason::MemoryPressure, "57P01", "memory is short"),
        (ClosingReason::Crashed, "57P02", "crashed"),
        (ClosingReason::Deleted, "57P01", "deleted"),
    ] {
        let door = Door::open().await;
        let mut session = door.session().await;
        door.stage.closing.send_replace(Some(reason));
        let error = session.read_error().await;
        assert_eq!(error[&'C'], code);
        assert!(error[&'M'].contains(words), "{error:?}");
        assert!(session.is_over().await);
        eventually("its hold is released", || door.stage.holds.load(Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postmaster_that_is_killed_is_a_crash_to_its_sessions() {
    let door = Door::open().await;
    let mut session = door.session().await;
    session.query("select pg_sleep(600)").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    door.stage.postgres.kill();
    tokio::spawn({
        let stage = door.stage.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            stage.closing.send_replace(Some(ClosingReason::Crashed));
        }
    });
    let error = session.read_error().await;
    assert_eq!(error[&'C'], "57P02");
    assert!(session.is_over().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_terminated_speaks_for_itself() {
    let door = Door::open().await;
    let observer = door.connect().await;
    let mut session = door.session().await;
    observer.batch_execute(TERMINATE_OTHERS).await.unwrap();
    let error = session.read_error().await;
    assert_eq!(error[&'M'], "terminating connection due to administrator command");
    assert!(session.is_over().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_shut_down_first_does_not_hide_why() {
    let door = Door::open().await;
    let observer = door.connect().await;
    let mut session = door.session().await;
    session.query("create table t (n int); begin read only").await;
    session.read_until(b'Z').await;
    door.stage.is_heard.send_replace(false);
    *door.stage.shortage.lock().unwrap() = Some(Shortage::Limit { bytes: 1 << 20 });
    door.stage.closing.send_replace(Some(ClosingReason::StorageFull));

    // Other errors are told, also those that are reworded.
    session.query("insert into t values (1)").await;
    assert_eq!(session.read_error().await[&'C'], "53100");
    assert_eq!(session.read().await.map(|(tag, _)| tag), Some(b'Z'));
    session.query("rollback").await;
    session.read_until(b'Z').await;
    session.query("do $$ begin raise 'mine' using errcode = '57P01'; end $$").await;
    assert_eq!(session.read_error().await[&'M'], "mine");
    assert_eq!(session.read().await.map(|(tag, _)| tag), Some(b'Z'));

    observer.batch_execute(TERMINATE_OTHERS).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    door.stage.is_heard.send_replace(true);
    let error = session.read_error().await;
    assert_eq!(error[&'C'], "53100");
    assert!(error[&'M'].contains("grew on although it is over its storage limit"), "{error:?}");
    assert!(session.is_over().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_idle_sessions_at_once_and_busy_ones_when_they_are_done() {
    let mut door = Door::open().await;
    let mut idle = door.session().await;
    let mut busy = door.session().await;
    let mut open = door.session().await;
    open.query("begin").await;
    open.read_until(b'Z').await;
    busy.query("select pg_sleep(1)").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    let shutdown = tokio::spawn(door.serving.take().unwrap().shutdown(Duration::from_secs(20)));

    assert_eq!(idle.read_error().await[&'C'], "57P01");
    assert!(began.elapsed() < Duration::from_millis(900), "an idle session waited for {:?}", began.elapsed());
    assert_eq!(busy.read_until(b'Z').await.len(), 4);
    assert_eq!(busy.read_error().await[&'C'], "57P01");
    // In a transaction: it may still commit.
    open.query("commit").await;
    open.read_until(b'Z').await;
    assert_eq!(open.read_error().await[&'C'], "57P01");
    assert_eq!(shutdown.await.unwrap(), 0);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(tokio::net::TcpStream::connect(door.address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_waits_no_longer_than_it_was_told() {
    let mut door = Door::open().await;
    let mut busy = door.session().await;
    busy.query("select pg_sleep(600)").await;
    let mut opening = door.converse().await;
    opening.start(&[("user", "app.shop")]).await;
    opening.read_until(b'R').await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    let shutdown = tokio::spawn(door.serving.take().unwrap().shutdown(Duration::from_millis(500)));
    assert_eq!(opening.read_error().await[&'C'], "57P01");
    assert_eq!(busy.read_error().await[&'C'], "57P01");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(shutdown.await.unwrap(), 0);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_is_half_sent_is_never_followed_by_an_error_inside_a_frame() {
    let door = Door::open().await;
    let mut lazy = door.session().await;
    lazy.query("select repeat('x', 5000000) from generate_series(1, 10)").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    door.stage.closing.send_replace(Some(ClosingReason::Stopped));
    eventually("it is closed", || door.stage.holds.load(Ordering::SeqCst) == 0).await;
    // Every whole frame that arrives is one of the result; the last one is cut off.
    while let Some((tag, _)) = lazy.read().await {
        assert!(b"TDC".contains(&tag), "{tag}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_wake_in_time_is_an_honest_error() {
    let connect_deadline = Duration::from_millis(300);
    let door = Door::open_with(DoorOptions { connect_deadline, ..DoorOptions::default() }).await;
    *door.stage.wake_takes.lock().unwrap() = Duration::from_secs(600);
    let (code, text) = super::support::door::refusal(&door.config()).await;
    assert_eq!(code, "57P03");
    assert!(text.contains("still starting after 0.3 s (gateway.connect_deadline)"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_stops_waiting_for_its_database() {
    let door = Door::open().await;
    *door.stage.wake_takes.lock().unwrap() = Duration::from_secs(600);
    let mut impatient = door.converse().await;
    impatient.start(&[("user", &door.connection.to_string())]).await;
    impatient.prove(super::support::door::SECRET).await;
    // What was sent ahead does not hide that it left.
    impatient.query("select 1").await;
    eventually("it waits", || door.stage.waiting.load(Ordering::SeqCst) == 1).await;
    drop(impatient);
    eventually("it waits no longer", || door.stage.waiting.load(Ordering::SeqCst) == 0).await;
}
