//! Many connections at once.

use std::sync::atomic::Ordering;
use std::time::Duration;

use roost_gateway::LimitsConfig;

use super::relaying::resident;
use super::support::door::SECRET;
use super::support::door::eventually;
use super::support::{Conversation, Door, DoorOptions};

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_half_open_connections_cost_little_and_keep_nobody_out() {
    const HALF_OPEN: usize = 2_000;
    let limits = LimitsConfig { unauthenticated_per_address: 5_000, ..LimitsConfig::default() };
    let startup_deadline = Duration::from_secs(120);
    let door = Door::open_with(DoorOptions { limits, startup_deadline, ..DoorOptions::default() }).await;
    drop(door.session().await);
    let before = resident();
    let mut crowd: Vec<Conversation> = Vec::with_capacity(HALF_OPEN);
    for index in 0..HALF_OPEN {
        let mut client = door.converse().await;
        // Half of them silent, half in the middle of a startup packet.
        if index % 2 == 0 {
            client.send(&[0, 0, 0x20, 0, 0, 3, 0, 0, b'u', b's']).await;
        }
        crowd.push(client);
    }
    eventually("all are accepted", || door.metrics().contains("open_connections 2000")).await;
    let each = resident().saturating_sub(before) / HALF_OPEN as u64;
    assert!(each < 24 << 10, "{each} bytes for each half-open connection");
    let mut session = door.session().await;
    session.query("select 1").await;
    session.read_until(b'Z').await;
    drop(crowd);
    eventually("all are forgotten", || door.metrics().contains("open_connections 1\n")).await;
    assert_eq!(door.stage.acquired.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_do_not_authenticate_are_bounded_per_address() {
    let limits = LimitsConfig { unauthenticated_per_address: 5, ..LimitsConfig::default() };
    let door = Door::open_with(DoorOptions { limits, ..DoorOptions::default() }).await;
    let mut strangers = Vec::new();
    // Sessions that have authenticated do not count.
    let _session = door.session().await;
    for _ in 0..5 {
        strangers.push(door.converse().await);
    }
    let mut one_more = door.converse().await;
    let error = one_more.read_error().await;
    assert_eq!(error[&'C'], "53300");
    assert!(error[&'M'].contains("at most 5 (limits.unauthenticated_per_address)"), "{error:?}");
    drop(strangers);
    eventually("there is room again", || door.metrics().contains("open_connections 1\n")).await;
    door.session().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_connections_together_are_bounded() {
    let limits = LimitsConfig { max_sessions: 3, ..LimitsConfig::default() };
    let door = Door::open_with(DoorOptions { limits, ..DoorOptions::default() }).await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(door.session().await);
    }
    let mut one_more = door.converse().await;
    one_more.start(&[("user", "a")]).await;
    let error = one_more.read_error().await;
    assert_eq!((error[&'C'].as_str(), error[&'M'].contains("(limits.max_sessions)")), ("53300", true));
    drop(sessions);
    eventually("there is room again", || door.metrics().contains("open_connections 0\n")).await;
    door.session().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn accepting_pauses_while_there_are_no_descriptors_and_goes_on_after() {
    let door = Door::open().await;
    door.session().await;
    let waiting = tokio::net::TcpSocket::new_v4().unwrap();
    let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = Some(used + 20);
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let mut fillers = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        fillers.push(file);
    }
    // The kernel completes the connection; the gateway has no descriptor to take it with.
    let mut client = Conversation::new(waiting.connect(door.address).await.unwrap());
    client.start(&[("user", &door.connection.to_string())]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(fillers);
    client.log_in(SECRET).await;
}
