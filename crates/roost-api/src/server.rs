//! HTTP/1 connections: accepted, bounded in number and time, and answered by a router.
//!
//! Bounds: [`MAX_CONNECTIONS`] per listener, [`HEADER_TIMEOUT`] for a request's head (which also ends idle keep-alive
//! connections), [`MAX_HEAD`] for its size. The router bounds bodies and answers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::socket::ApiSocket;

/// Connections that one listener serves at the same time; further ones wait in the kernel's queue.
pub(crate) const MAX_CONNECTIONS: usize = 256;
/// How long a client may take to send a request's head.
pub(crate) const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes that a request's head may have.
pub(crate) const MAX_HEAD: usize = 16 * 1024;
/// Wait after an accept that failed (for want of descriptors, say), so that the loop does not spin.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);

/// Where connections come from.
pub(crate) trait Accept {
    /// The connection's type.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The next connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for ApiSocket {
    type Stream = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        ApiSocket::accept(self).await
    }
}

impl Accept for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        TcpListener::accept(self).await.map(|(stream, _)| stream)
    }
}

/// Answers connections until `shutdown` is true; then finishes the requests that are under way and returns.
///
/// Whoever wants a deadline for that drops the future.
pub(crate) async fn serve(listener: impl Accept, router: Router, mut shutdown: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let stopping = async {
            // When the sender is gone, so is the node.
            let _ = shutdown.wait_for(|stop| *stop).await;
        };
        let accepted = tokio::select! {
            () = stopping => break,
            accepted = async {
                // The semaphore is never closed.
                let slot = slots.clone().acquire_owned().await.ok();
                (slot, listener.accept().await)
            } => accepted,
        };
        match accepted {
            (slot, Ok(stream)) => {
                let (router, shutdown) = (router.clone(), shutdown.clone());
                connections.spawn(async move {
                    answer(stream, router, shutdown).await;
                    drop(slot);
                });
            }
            (_, Err(error)) => {
                tracing::warn!(%error, "could not accept an HTTP connection");
                tokio::time::sleep(ACCEPT_BACK_OFF).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Answers one connection's requests.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    mut shutdown: watch::Receiver<bool>,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let stopping = async {
        // When the sender is gone, so is the node.
        let _ = shutdown.wait_for(|stop| *stop).await;
    };
    let ended = tokio::select! {
        result = connection.as_mut() => Some(result),
        () = stopping => None,
    };
    let result = match ended {
        Some(result) => result,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn started() -> (std::net::SocketAddr, watch::Sender<bool>, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopping) = watch::channel(false);
        let router = Router::new().route(
            "/slow",
            get(async || {
                tokio::time::sleep(Duration::from_millis(300)).await;
                "done"
            }),
        );
        (address, stop, tokio::spawn(serve(listener, router, stopping)))
    }

    #[tokio::test]
    async fn a_request_under_way_is_answered_before_the_server_ends() {
        let (address, stop, server) = started().await;
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.send_replace(true);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_head_beyond_its_bound_is_refused() {
        let (address, _stop, _server) = started().await;
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!("GET /slow HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(MAX_HEAD * 2));
        let _ = client.write_all(head.as_bytes()).await;
        let mut answer = String::new();
        let _ = client.read_to_string(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
}
