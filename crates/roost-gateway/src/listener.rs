//! Listening sockets and the threads that serve what they accept.
//!
//! Each worker is a thread with a runtime of its own, so a session never moves between cores. One acceptor per address
//! runs on the first worker and hands connections out in turn. When descriptors run out, accepting pauses and the
//! kernel's queue takes what comes.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use roost_pool::Socket as SessionSocket;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};

use crate::client::{Client, Stream};
use crate::config::ListenerConfig;
use crate::connection::{self, Arrival};
use crate::door::Door;
use crate::error::ErrorKind;
use crate::ladder::Ladder;

/// Connections that the kernel queues for one address; it takes less where `net.core.somaxconn` says so.
const BACKLOG: i32 = 4096;

/// How long accepting pauses when the system has no descriptor or memory left.
const PAUSE: Duration = Duration::from_millis(100);

/// Refused clients that are told so at the same moment; more are simply closed.
const MAX_REFUSALS: usize = 64;

/// A client's connection that is silent this long is probed.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// How often it is probed then.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// After how many unanswered probes it is gone.
const KEEPALIVE_PROBES: u32 = 4;
/// How long sent bytes may stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(120);

/// Binds one address.
///
/// # Errors
///
/// When the system refuses, which is most often because another process listens there.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The threads that serve connections, in turn.
#[derive(Debug)]
pub(crate) struct Workers {
    handles: Vec<Handle>,
    next: AtomicUsize,
}

impl Workers {
    pub(crate) const fn new(handles: Vec<Handle>) -> Self {
        Self { handles, next: AtomicUsize::new(0) }
    }

    fn next(&self) -> Option<&Handle> {
        self.handles.get(self.next.fetch_add(1, Ordering::Relaxed) % self.handles.len().max(1))
    }
}

/// Accepts connections on one address until the node shuts down. Runs on the first worker. Every connection holds a clone
/// of `alive` until it has ended.
pub(crate) async fn accept<L: Ladder>(
    door: Arc<Door<L>>,
    listener: TcpListener,
    config: ListenerConfig,
    workers: Arc<Workers>,
    alive: mpsc::Sender<()>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, address = %config.address, "cannot listen");
            return;
        }
    };
    let refusals = Arc::new(Semaphore::new(MAX_REFUSALS));
    let closing = door.closing();
    tokio::pin!(closing);
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut closing => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                failing = false;
                let Ok(stream) = stream.into_std() else { continue };
                hand_over(&door, stream, peer, &config, &workers, &refusals, &alive);
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "accepting connections pauses until the system has room again");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Whether a failure to accept concerns a client that is gone already, and not the system.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

fn hand_over<L: Ladder>(
    door: &Arc<Door<L>>,
    stream: TcpStream,
    peer: SocketAddr,
    config: &ListenerConfig,
    workers: &Workers,
    refusals: &Arc<Semaphore>,
    alive: &mpsc::Sender<()>,
) {
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%error, %peer, "the client went away before it was served");
        return;
    }
    let permits = door
        .limits
        .admit_session()
        .and_then(|permit| door.limits.admit_stranger(peer.ip()).map(|stranger| (permit, stranger)));
    let (permit, stranger) = match permits {
        Ok(permits) => permits,
        Err(error) => {
            refuse(door, stream, error, refusals);
            return;
        }
    };
    let Some(worker) = workers.next() else { return };
    let peer = peer.ip().to_canonical();
    let requires_tls = config.requires_tls();
    let (door, alive) = (door.clone(), alive.clone());
    worker.spawn(async move {
        if let Ok(stream) = SessionSocket::accepted(stream) {
            connection::serve(door, Arrival { stream, peer, requires_tls, permit, stranger }).await;
        }
        drop(alive);
    });
}

/// Sets what every client's socket has.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}

/// Turns a client away, with the reason if not too many are being told one.
fn refuse<L: Ladder>(door: &Door<L>, stream: TcpStream, error: ErrorKind, refusals: &Arc<Semaphore>) {
    let words = connection::error_response(&error);
    door.metrics.connection_ended(&Err(error));
    if let Ok(slot) = refusals.clone().try_acquire_owned() {
        tokio::spawn(async move {
            if let Ok(stream) = SessionSocket::accepted(stream) {
                Client::new(Stream::Plain(stream)).dismiss(&words).await;
            }
            drop(slot);
        });
    }
}
