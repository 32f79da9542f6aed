//! Bytes both ways: whole, in order, in bounded memory.

use std::time::Duration;

use roost_gateway::LimitsConfig;

use super::support::door::eventually;
use super::support::{Door, DoorOptions};

/// Memory of this process (the gateway's threads are in it), in bytes.
pub(crate) fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_travel_whole_in_both_directions() {
    let door = Door::open().await;
    let client = door.connect().await;
    let large: String = (0..3_000_000_u32)
        .map(|index| char::from(b'a' + (index.wrapping_mul(2_654_435_761) >> 24) as u8 % 26))
        .collect();
    let row = client.query_one("select $1::text, md5($1::text), length($1::text)", &[&large]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), large);
    assert_eq!(row.get::<_, i32>(2), 3_000_000);
    let rows =
        client.query("select i, repeat('x', i % 1000) from generate_series(1, 50000) i", &[]).await.unwrap();
    assert_eq!(rows.len(), 50_000);
    assert!(rows.iter().all(|row| row.get::<_, i32>(0) % 1000 == row.get::<_, &str>(1).len() as i32));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sessions_interleave_without_mixing() {
    let door = Door::open().await;
    let mut tasks = Vec::new();
    for session in 0..40_i64 {
        let client = door.connect().await;
        tasks.push(tokio::spawn(async move {
            let statement =
                client.prepare("select $1::bigint, repeat(chr(97 + $2::int), 3000)").await.unwrap();
            for round in 0..50_i64 {
                let token = session * 1_000 + round;
                let letter = i32::try_from(session % 26).unwrap();
                let row = client.query_one(&statement, &[&token, &letter]).await.unwrap();
                assert_eq!(row.get::<_, i64>(0), token);
                let expected = char::from(b'a' + u8::try_from(letter).unwrap());
                assert!(row.get::<_, &str>(1).chars().all(|found| found == expected));
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_queries_are_answered_in_order() {
    let door = Door::open().await;
    let client = door.connect().await;
    let statement = client.prepare("select $1::int").await.unwrap();
    let (client, statement) = (&client, &statement);
    let answers = (0..200)
        .map(|index| async move { client.query_one(statement, &[&index]).await.unwrap().get::<_, i32>(0) });
    let mut pending: Vec<_> = answers.map(Box::pin).collect();
    for (index, answer) in pending.iter_mut().enumerate() {
        assert_eq!(answer.await, i32::try_from(index).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_cut_anywhere_are_put_together_by_nobody() {
    let door = Door::open().await;
    let mut session = door.session().await;
    let mut query = Vec::new();
    roost_wire::frontend::write_query(&mut query, "select 42");
    for byte in query {
        session.send(&[byte]).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let tags: Vec<u8> = session.read_until(b'Z').await.iter().map(|(tag, _)| *tag).collect();
    assert_eq!(tags, b"TDCZ");
    assert_eq!(door.stage.leases.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_ahead_of_the_sessions_start_is_not_lost() {
    let door = Door::open().await;
    let mut eager = door.converse().await;
    *door.stage.wake_takes.lock().unwrap() = Duration::from_millis(300);
    eager.start(&[("user", &door.connection.to_string())]).await;
    eager.prove(super::support::door::SECRET).await;
    eager.query("select 'early'").await;
    eager.read_until(b'Z').await;
    let frames = eager.read_until(b'Z').await;
    let row = frames.iter().find(|(tag, _)| *tag == b'D').unwrap();
    assert!(row.1.ends_with(b"early"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_costs_no_memory() {
    let door = Door::open().await;
    let mut lazy = door.session().await;
    lazy.query("select 1").await;
    lazy.read_until(b'Z').await;
    let before = resident();
    lazy.query("select repeat('x', 1000) from generate_series(1, 150000)").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes were kept for a client that does not read");
    // It gets everything all the same once it reads.
    let frames = lazy.read_until(b'C').await;
    assert_eq!(frames.len(), 150_002);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_sessions_hold_no_buffers() {
    const SESSIONS: usize = 60;
    let limits = LimitsConfig::default();
    let door = Door::open_with(DoorOptions { limits, workers: 1, ..DoorOptions::default() }).await;
    let mut sessions = Vec::new();
    sessions.push(door.session().await);
    let before = resident();
    for _ in 1..SESSIONS {
        let mut session = door.session().await;
        session.query("select 1").await;
        session.read_until(b'Z').await;
        sessions.push(session);
    }
    let each = resident().saturating_sub(before) / SESSIONS as u64;
    // The client's side of the test is in this process too.
    assert!(each < 48 << 10, "{each} bytes for each idle session");
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_recorded_when_a_session_ends() {
    let door = Door::open().await;
    let client = door.connect().await;
    client.query_one("select repeat('x', 100000)", &[]).await.unwrap();
    assert!(door.metrics().contains("roost_gateway_sent_bytes_total"), "{}", door.metrics());
    drop(client);
    let serving = door.serving.as_ref().unwrap();
    eventually("the session ends", || serving.sessions() == 0).await;
    door.catalog.flush().await.unwrap();
    let usage = door.catalog.usage(&door.database).await.unwrap();
    assert_eq!(usage.sessions, 1);
    assert!(usage.bytes_out > 100_000 && usage.bytes_in > 30, "{usage:?}");
}

/// How often the gateway's first worker thread has gone to sleep.
fn naps() -> u64 {
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let directory = task.unwrap().path();
        if std::fs::read_to_string(directory.join("comm")).unwrap().trim() == "roost-door-0" {
            let status = std::fs::read_to_string(directory.join("status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches:")).unwrap();
            return line.split_whitespace().nth(1).unwrap().parse().unwrap();
        }
    }
    panic!("no worker thread");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_wakes_a_worker_for_its_request_and_for_its_answer_and_no_more() {
    const TRANSACTIONS: u64 = 1_000;
    let door = Door::open_with(DoorOptions { workers: 1, ..DoorOptions::default() }).await;
    let mut session = door.session().await;
    let before = naps();
    for _ in 0..TRANSACTIONS {
        session.query("select 1").await;
        session.read_until(b'Z').await;
    }
    let each = (naps() - before) as f64 / TRANSACTIONS as f64;
    assert!(each < 2.2, "a worker woke {each} times for each transaction");
}
