//! Cancel requests, and queries that nobody waits for any more.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use roost_wire::startup::write_cancel;
use tokio_postgres::NoTls;

use super::support::Door;
use super::support::door::eventually;

const LONG: &str = "select pg_sleep(600)";

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_request_ends_the_query_of_its_session_only() {
    let door = Door::open().await;
    let (client, other) = (door.connect().await, door.connect().await);
    let token = client.cancel_token();
    let (cancelled, undisturbed, ()) =
        tokio::join!(client.batch_execute(LONG), other.batch_execute("select pg_sleep(1)"), async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            token.cancel_query(NoTls).await.unwrap();
        });
    assert_eq!(cancelled.unwrap_err().code().unwrap().code(), "57014");
    undisturbed.unwrap();
    client.batch_execute("select 1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_and_an_idle_session_are_answered_like_a_right_one() {
    let door = Door::open().await;
    let mut session = door.session().await;
    let (pid, key) = session.key.clone();
    let mut wrong = key.clone();
    wrong[0] ^= 1;
    session.query("select pg_sleep(1.5)").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    for (pid, key) in [(pid, &wrong), (pid ^ 1, &key)] {
        assert!(cancel(&door, pid, key).await.is_empty());
    }
    session.read_until(b'Z').await;
    // Idle: the request must not wait somewhere for the next query.
    assert!(cancel(&door, pid, &key).await.is_empty());
    session.query("select pg_sleep(0.3)").await;
    session.read_until(b'Z').await;
    let metrics = door.metrics();
    assert!(metrics.contains("cancels_total{outcome=\"unknown_key\"} 2"), "{metrics}");
    assert_eq!(door.stage.thaws.load(Ordering::SeqCst), 0);
}

/// Sends a cancel request and returns what is answered until the end of the stream.
async fn cancel(door: &Door, pid: i32, key: &[u8]) -> Vec<u8> {
    let mut stream = tokio::net::TcpStream::connect(door.address).await.unwrap();
    let mut packet = Vec::new();
    write_cancel(&mut packet, pid, key);
    tokio::io::AsyncWriteExt::write_all(&mut stream, &packet).await.unwrap();
    let mut answer = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_worthless_after_its_session() {
    let door = Door::open().await;
    let session = door.session().await;
    let (pid, key) = session.key.clone();
    drop(session);
    eventually("the session ends", || door.stage.holds.load(Ordering::SeqCst) == 0).await;
    assert!(cancel(&door, pid, &key).await.is_empty());
    assert!(door.metrics().contains("cancels_total{outcome=\"unknown_key\"} 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_whose_client_vanished_does_not_run_on() {
    let door = Door::open().await;
    let observer = door.connect().await;
    let mut session = door.session().await;
    session.query(LONG).await;
    let running =
        "select count(*) from pg_stat_activity where query = 'select pg_sleep(600)' and state = 'active'";
    let began = Instant::now();
    while observer.query_one(running, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        assert!(began.elapsed() < Duration::from_secs(10));
    }
    drop(session);
    let began = Instant::now();
    while observer.query_one(running, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        assert!(began.elapsed() < Duration::from_secs(10), "the query runs on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eventually("its session is gone", || door.stage.holds.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_followed_by_a_goodbye_is_finished() {
    let door = Door::open().await;
    let observer = door.connect().await;
    observer.batch_execute("create table done (i int)").await.unwrap();
    let mut session = door.session().await;
    let mut bytes = Vec::new();
    roost_wire::frontend::write_query(&mut bytes, "select pg_sleep(0.5); insert into done values (1)");
    roost_wire::frontend::write_terminate(&mut bytes);
    session.send(&bytes).await;
    drop(session);
    let began = Instant::now();
    while observer.query_one("select count(*) from done", &[]).await.unwrap().get::<_, i64>(0) == 0 {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "what was asked for before Terminate was not done"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
