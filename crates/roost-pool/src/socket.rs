//! The socket of a session, on either side of the gateway: a client's TCP connection, or the connection to a backend on
//! the instance's unix socket.
//!
//! It is watched for what arrives, and for room to write only while it is full. The kernel wakes whoever watches a unix
//! socket for room each time the other side has read something, so with a common stream a worker would wake for each
//! request that Postgres has taken, half as often again as there is something to do. What is written goes out with what
//! the worker's other sockets write in the same round, see [`batch`](crate::batch).

use std::future::poll_fn;
use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use socket2::{Domain, SockAddr, Type};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::batch::Outbox;

/// How long to wait before another attempt when the instance's queue of connections is full.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(5);

/// How long to wait before another look whether a connection with unread bytes has ended.
const CLOSED_PAUSE: Duration = Duration::from_millis(100);

/// One end of a session's connection. Dropping it sends what was written and closes it.
///
/// Written bytes count as flushed when they are certain to be sent without further help unless the reader falls behind;
/// an error of sending them is told at the next operation.
#[derive(Debug)]
pub struct Socket {
    /// Before the descriptors, so that it is dropped while they are open.
    outbox: Outbox,
    readable: AsyncFd<socket2::Socket>,
    /// Watches a second descriptor of the same socket, from when it was full until [`settle`](Self::settle).
    writable: Option<AsyncFd<socket2::Socket>>,
}

impl Socket {
    /// Connects to a unix socket. While its queue is full this waits for room, so callers set a deadline.
    ///
    /// # Errors
    ///
    /// When nobody listens there.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        let address = SockAddr::unix(path)?;
        loop {
            let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
            match socket.connect(&address) {
                Ok(()) => return Self::new(socket),
                // The system's word for a full queue on a unix socket.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(QUEUE_FULL_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A connection that was accepted, which is made nonblocking.
    ///
    /// # Errors
    ///
    /// When the runtime of this thread cannot watch it.
    pub fn accepted(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Self::new(stream.into())
    }

    fn new(socket: socket2::Socket) -> io::Result<Self> {
        Ok(Self { outbox: Outbox::default(), readable: watch(socket, Interest::READABLE)?, writable: None })
    }

    /// Reads what is there. Zero bytes are the end of the stream.
    #[inline]
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.readable.poll_read_ready(cx))?;
            match ready.get_inner().read(buffer) {
                Ok(count) => {
                    // Less than there was room for: the socket is empty, and asking again would only be told so.
                    if count > 0 && count < buffer.len() {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => ready.clear_ready(),
                    io::ErrorKind::Interrupted => {}
                    _ => return Poll::Ready(Err(error)),
                },
            }
        }
    }

    /// Takes as many of the bytes as there is room for, at least one.
    #[inline]
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { outbox, readable, writable } = self;
        outbox
            .poll_send(cx, readable.get_ref().as_fd(), bytes, |cx, bytes| send(readable, writable, cx, bytes))
    }

    /// Ready when all that was written is on its way or certain to be soon. To be asked again when the task is woken.
    #[inline]
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { outbox, readable, writable } = self;
        outbox.poll_unsent(cx, &mut |cx: &mut Context<'_>, bytes: &[u8]| send(readable, writable, cx, bytes))
    }

    /// Hands what was written to the system now, with what the worker's other sockets have written.
    pub fn flush_now(&self) {
        self.outbox.flush();
    }

    /// Whether all that was written has been handed to the system.
    #[inline]
    pub fn is_flushed(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Stops watching for room to write: nothing waits to be written.
    #[inline]
    pub fn settle(&mut self) {
        if self.writable.is_some() && self.outbox.is_empty() {
            self.writable = None;
        }
    }

    /// Writes what there is room for right now.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is none.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.outbox.flush();
        if !self.outbox.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.readable.get_ref().send(bytes)
    }

    /// Tells the other side that nothing more will come.
    ///
    /// # Errors
    ///
    /// When it is gone already.
    pub fn finish(&self) -> io::Result<()> {
        self.outbox.flush();
        self.readable.get_ref().shutdown(Shutdown::Write)
    }

    /// Waits for a byte and leaves it where it is; `None` is the end of the stream.
    ///
    /// # Errors
    ///
    /// When the connection broke.
    pub async fn peek(&self) -> io::Result<Option<u8>> {
        let mut first = [0; 1];
        let look = |socket: &socket2::Socket| Ok(recv(socket, &mut first, RecvFlags::PEEK)?.0);
        let count = self.readable.async_io(Interest::READABLE, look).await?;
        Ok((count > 0).then_some(first[0]))
    }

    /// Waits until the other side is gone while nothing is asked of it. What it sent ahead stays where it is.
    pub async fn closed(&self) {
        loop {
            let Ok(ready) = self.readable.readable().await else { return };
            if ready.ready().is_read_closed() {
                return;
            }
            match self.peek().await {
                Ok(None) | Err(_) => return,
                // The end of the stream shows up behind the bytes that wait.
                Ok(Some(_)) => tokio::time::sleep(CLOSED_PAUSE).await,
            }
        }
    }

    /// Reads what is there, waiting for something. Zero bytes are the end of the stream.
    ///
    /// # Errors
    ///
    /// When the connection broke.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read(cx, buffer)).await
    }

    /// Writes everything.
    ///
    /// # Errors
    ///
    /// When the connection broke.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = poll_fn(|cx| self.poll_write(cx, bytes)).await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = bytes.get(count..).unwrap_or_default();
        }
        poll_fn(|cx| self.poll_flush(cx)).await?;
        self.settle();
        Ok(())
    }
}

impl AsyncRead for Socket {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = ready!(Self::poll_read(self.get_mut(), cx, buffer.initialize_unfilled()))?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Self::poll_write(self.get_mut(), cx, bytes)
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_flush(self.get_mut(), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = self.get_mut();
        socket.outbox.flush();
        ready!(Self::poll_flush(socket, cx))?;
        Poll::Ready(socket.finish())
    }
}

/// Sends as much as there is room for, and waits for room for the first byte.
fn send(
    readable: &AsyncFd<socket2::Socket>,
    writable: &mut Option<AsyncFd<socket2::Socket>>,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    loop {
        let sent = match writable {
            None => readable.get_ref().send(bytes),
            Some(writable) => {
                let mut ready = ready!(writable.poll_write_ready(cx))?;
                let sent = ready.get_inner().send(bytes);
                if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                    ready.clear_ready();
                }
                sent
            }
        };
        match sent {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if writable.is_none() {
                    *writable = Some(watch(readable.get_ref().try_clone()?, Interest::WRITABLE)?);
                }
            }
            sent => return Poll::Ready(sent),
        }
    }
}

/// Registers a socket with the runtime of this thread.
fn watch(socket: socket2::Socket, interest: Interest) -> io::Result<AsyncFd<socket2::Socket>> {
    #[expect(unsafe_code, reason = "the one way to watch a socket for less than reading and writing")]
    // SAFETY: a `Socket` owns its descriptor, gives out the same one at every call, and keeps it open until it is
    // dropped; here it is moved into the `AsyncFd`, which drops it after its registration and never lends it mutably.
    let watched = unsafe { AsyncFd::register_with_interest(socket, interest) };
    Ok(watched?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn listen() -> (tempfile::TempDir, std::path::PathBuf, UnixListener) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        (directory, path, listener)
    }

    #[tokio::test]
    async fn a_full_socket_is_waited_for_and_nothing_is_lost() {
        let (_directory, path, listener) = listen();
        let mut socket = Socket::connect(&path).await.unwrap();
        let (mut backend, _) = listener.accept().unwrap();
        let sent: Vec<u8> = (0..4_000_000_u32).map(|index| (index % 251) as u8).collect();
        let expected = sent.clone();
        let reader = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            let mut received = Vec::new();
            backend.read_to_end(&mut received).unwrap();
            received
        });
        socket.write_all(&sent).await.unwrap();
        assert!(socket.writable.is_none());
        drop(socket);
        assert!(reader.join().unwrap() == expected);
    }

    #[tokio::test]
    async fn the_end_of_the_stream_is_seen_after_its_last_bytes() {
        let (_directory, path, listener) = listen();
        let mut socket = Socket::connect(&path).await.unwrap();
        let (mut backend, _) = listener.accept().unwrap();
        let mut buffer = [0; 16];
        backend.write_all(b"last words").unwrap();
        drop(backend);
        assert_eq!(socket.read(&mut buffer).await.unwrap(), 10);
        assert_eq!(socket.read(&mut buffer).await.unwrap(), 0);
        assert_eq!(socket.read(&mut buffer).await.unwrap(), 0);
        assert!(socket.write_all(b"too late").await.is_err());
    }

    #[tokio::test]
    async fn a_full_queue_of_connections_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        socket.listen(1).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            let attempt = tokio::time::timeout(Duration::from_millis(100), Socket::connect(&path));
            match attempt.await {
                Ok(connected) => waiting.push(connected.unwrap()),
                Err(_) => break Socket::connect(&path),
            }
            assert!(waiting.len() < 10);
        };
        let accepting = std::thread::spawn(move || {
            let first = socket.accept();
            (socket, first)
        });
        tokio::time::timeout(Duration::from_secs(5), full).await.unwrap().unwrap();
        drop(accepting.join().unwrap());
    }

    #[tokio::test]
    async fn nobody_listening_is_an_error_at_once() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Socket::connect(&directory.path().join("nothing")).await.is_err());
    }
}
