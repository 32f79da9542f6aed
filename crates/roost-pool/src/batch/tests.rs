use std::future::poll_fn;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::task::Poll;
use std::time::Duration;

use super::ring::Ring;
use crate::Socket;

/// A session's socket and its peer.
fn pair() -> (Socket, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (Socket::accepted(listener.accept().unwrap().0).unwrap(), peer)
}

/// What has arrived so far.
fn arrived(peer: &mut TcpStream) -> Vec<u8> {
    peer.set_nonblocking(true).unwrap();
    let mut bytes = vec![0; 1 << 20];
    match peer.read(&mut bytes) {
        Ok(count) => bytes.truncate(count),
        Err(error) if error.kind() == ErrorKind::WouldBlock => bytes.clear(),
        Err(error) => panic!("{error}"),
    }
    bytes
}

/// Writes without waiting for anything, as a relay does within a round.
async fn write(socket: &mut Socket, bytes: &[u8]) -> std::io::Result<usize> {
    poll_fn(|cx| match socket.poll_write(cx, bytes) {
        Poll::Pending => panic!("no room"),
        ready => ready,
    })
    .await
}

/// Serves this test's thread. Says whether the machine can.
async fn serve() -> bool {
    tokio::spawn(super::serve());
    tokio::task::yield_now().await;
    super::is_available()
}

#[tokio::test]
async fn what_is_written_in_a_round_goes_out_at_its_end() {
    if !serve().await {
        return;
    }
    let (mut first, mut first_peer) = pair();
    let (mut second, mut second_peer) = pair();
    write(&mut first, b"one ").await.unwrap();
    write(&mut second, b"three").await.unwrap();
    write(&mut first, b"two").await.unwrap();
    assert_eq!((arrived(&mut first_peer), arrived(&mut second_peer)), (vec![], vec![]));
    assert!(!first.is_flushed());
    tokio::task::yield_now().await;
    assert!(first.is_flushed() && second.is_flushed());
    assert_eq!(arrived(&mut first_peer), b"one two");
    assert_eq!(arrived(&mut second_peer), b"three");
}

#[tokio::test]
async fn more_sockets_than_fit_into_one_call_are_all_served() {
    serve().await;
    let mut pairs: Vec<_> = (0..600).map(|_| pair()).collect();
    for (number, (socket, _)) in pairs.iter_mut().enumerate() {
        write(socket, format!("this is for {number}").as_bytes()).await.unwrap();
    }
    tokio::task::yield_now().await;
    for (number, (_, peer)) in pairs.iter_mut().enumerate() {
        assert_eq!(arrived(peer), format!("this is for {number}").as_bytes());
    }
}

#[tokio::test]
async fn pieces_of_all_sizes_arrive_in_order_however_slowly_they_are_read() {
    serve().await;
    let (mut socket, mut peer) = pair();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut some = [0; 70_000];
        loop {
            std::thread::sleep(Duration::from_millis(1));
            match peer.read(&mut some).unwrap() {
                0 => return all,
                count => all.extend_from_slice(&some[..count]),
            }
        }
    });
    let mut expected = Vec::new();
    let mut stalls = 0;
    for number in 0..12_000_u32 {
        let length = 1 + (number * 7919 % 5000) as usize;
        let piece: Vec<u8> = (0..length).map(|index| (number as usize * 31 + index) as u8).collect();
        expected.extend_from_slice(&piece);
        let mut rest = piece.as_slice();
        while !rest.is_empty() {
            let count = poll_fn(|cx| {
                let sent = socket.poll_write(cx, rest);
                stalls += usize::from(sent.is_pending());
                sent
            })
            .await
            .unwrap();
            rest = &rest[count..];
        }
        if number % 3 == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert!(stalls > 0, "the reader was never behind, so this test has shown nothing");
    poll_fn(|cx| socket.poll_flush(cx)).await.unwrap();
    drop(socket);
    assert!(reader.join().unwrap() == expected);
}

#[tokio::test]
async fn a_socket_that_is_dropped_sends_what_it_left_and_nothing_is_sent_to_its_descriptor_later() {
    serve().await;
    let (mut socket, mut peer) = pair();
    write(&mut socket, b"last words").await.unwrap();
    drop(socket);
    // It most likely gets the descriptor that has just become free.
    let (_heir, mut heir_peer) = pair();
    assert_eq!(arrived(&mut peer), b"last words");
    tokio::task::yield_now().await;
    assert_eq!(arrived(&mut heir_peer), b"");
}

#[tokio::test]
async fn an_error_is_told_at_the_next_operation() {
    serve().await;
    let (mut socket, peer) = pair();
    let (mut other, mut other_peer) = pair();
    drop(peer);
    let failed = async {
        loop {
            // Two of them, so that the ring is used and not the plain call.
            write(&mut other, b"x").await.unwrap();
            if let Err(error) = write(&mut socket, b"is anybody there?").await {
                return error;
            }
            tokio::task::yield_now().await;
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(5), failed).await.unwrap();
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    tokio::task::yield_now().await;
    assert!(arrived(&mut other_peer).starts_with(b"x"));
}

#[tokio::test]
async fn without_anybody_who_serves_the_thread_bytes_go_out_at_once() {
    let (mut socket, mut peer) = pair();
    write(&mut socket, b"now").await.unwrap();
    assert!(socket.is_flushed());
    assert_eq!(arrived(&mut peer), b"now");
}

#[tokio::test]
async fn when_serving_ends_what_was_left_is_sent() {
    let task = tokio::spawn(super::serve());
    tokio::task::yield_now().await;
    let (mut socket, mut peer) = pair();
    write(&mut socket, b"before, ").await.unwrap();
    task.abort();
    let _ = task.await;
    write(&mut socket, b"after").await.unwrap();
    assert_eq!(arrived(&mut peer), b"before, after");
}

#[test]
fn a_refused_ring_sends_one_by_one() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut peers: Vec<_> =
        (0..3).map(|_| TcpStream::connect(listener.local_addr().unwrap()).unwrap()).collect();
    let sockets: Vec<_> = (0..3).map(|_| listener.accept().unwrap().0).collect();
    let mut told = Vec::new();
    let pieces = sockets.iter().map(|socket| (std::os::fd::AsRawFd::as_raw_fd(socket), b"alone".as_slice()));
    Ring::refused().send(pieces, |position, result| told.push((position, result.unwrap())));
    assert_eq!(told, [(0, 5), (1, 5), (2, 5)]);
    assert!(peers.iter_mut().all(|peer| arrived(peer) == b"alone"));
}
