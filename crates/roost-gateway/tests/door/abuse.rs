//! Clients that do not follow the protocol. None of them wakes anything, and each is told something or closed.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::support::door::{SECRET, eventually};
use super::support::{Door, DoorOptions};

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_refused_at_its_first_bytes() {
    let door = Door::open().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 64],
        &[0; 64],
        &[0, 0, 0, 4],
        &[0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0],
        &[0, 0, 0, 9, 0, 3, 0, 0, b'x'],
        &[0, 0, 0, 16, 0, 3, 0, 0, b'u', b's', b'e', b'r', 0, 0xff, 0, 0],
        b"\0\0\0\x0c\x04\xd2\x16\x2e\0\0\0\0",
    ] {
        let mut client = door.converse().await;
        client.send(garbage).await;
        let error = client.read_error().await;
        assert!(["08P01", "0A000"].contains(&error[&'C'].as_str()), "{garbage:?} {error:?}");
        assert!(client.is_over().await);
    }
    assert_eq!(door.stage.acquired.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_tls_handshake_ends_the_connection() {
    let door = Door::open().await;
    let mut client = door.converse().await;
    client.send(&[0x16, 3, 1, 0xff, 0xff, 1, 2, 3, 4, 5, 6, 7, 8]).await;
    client.send(&[0; 70_000]).await;
    while !client.is_over().await {}
    eventually("it is counted", || door.metrics().contains("outcome=\"tls_handshake\"} 1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn authentication_takes_only_short_sasl_messages() {
    let door = Door::open().await;
    let user = door.connection.to_string();
    for nonsense in [
        &b"p\x7f\xff\xff\xff"[..],
        b"p\0\0\0\x03",
        b"Q\0\0\0\x0cselect 1\0",
        b"p\0\0\0\x0dpassword\0",
        b"p\0\0\0\x14SCRAM-SHA-1\0\0\0\0\0",
        b"p\0\0\0\x1cSCRAM-SHA-256-PLUS\0\0\0\0\x01n",
    ] {
        let mut client = door.converse().await;
        client.start(&[("user", &user)]).await;
        client.read_until(b'R').await;
        client.send(nonsense).await;
        assert_eq!(client.read_error().await[&'C'], "08P01", "{nonsense:?}");
        assert!(client.is_over().await);
    }
    assert_eq!(door.stage.acquired.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dawdles_is_ended_by_the_startup_deadline() {
    let startup_deadline = Duration::from_millis(800);
    let door = Door::open_with(DoorOptions { startup_deadline, ..DoorOptions::default() }).await;
    let began = Instant::now();
    let mut silent = door.converse().await;
    let mut drop_by_drop = door.converse().await;
    let mut unfinished = door.converse().await;
    unfinished.start(&[("user", &door.connection.to_string())]).await;
    unfinished.read_until(b'R').await;
    let slow = async {
        for byte in [0, 0, 0, 200, 0, 3, 0, 0].into_iter().chain(std::iter::repeat(b'x')) {
            if tokio::io::AsyncWriteExt::write_all(&mut drop_by_drop.stream, &[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    };
    tokio::join!(slow, async { assert!(silent.is_over().await) });
    let error = unfinished.read_error().await;
    assert!(error[&'M'].contains("gateway.startup_deadline"), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(door.stage.acquired.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_over_the_bound_ends_the_session_with_the_bound_named() {
    let door = Door::open().await;
    for header in [&b"Q\x7f\xff\xff\xff"[..], b"Q\0\0\0\x03", b"Q\xff\xff\xff\xff"] {
        let mut session = door.session().await;
        session.send(header).await;
        let error = session.read_error().await;
        assert_eq!(error[&'C'], "08P01");
        assert!(
            error[&'M'].contains("length") || error[&'M'].contains("limit of 1073741823 bytes"),
            "{error:?}"
        );
        assert!(session.is_over().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_scan_wakes_nothing_and_harms_nobody() {
    let door = Door::open().await;
    for _ in 0..200 {
        drop(door.converse().await);
    }
    let mut client = door.converse().await;
    client.start(&[("user", &door.connection.to_string())]).await;
    client.read_until(b'R').await;
    drop(client);
    assert_eq!(door.stage.acquired.load(Ordering::SeqCst), 0);
    let mut session = door.converse().await;
    session.start(&[("user", &door.connection.to_string())]).await;
    session.log_in(SECRET).await;
}
