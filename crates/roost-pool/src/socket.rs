//! The connection to a backend, on the instance's unix socket.
//!
//! It is watched for what arrives, and for room to write only while it is full. The kernel wakes whoever watches a unix
//! socket for room each time the other side has read something, so with a common stream a worker would wake for each
//! request that Postgres has taken, half as often again as there is something to do.

use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long to wait before another attempt when the instance's queue of connections is full.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(5);

/// A connection to a backend.
#[derive(Debug)]
pub struct ServerSocket {
    readable: AsyncFd<UnixStream>,
    /// Watches a second descriptor of the same socket, from when it was full until [`settle`](Self::settle).
    writable: Option<AsyncFd<UnixStream>>,
}

impl ServerSocket {
    /// Connects. While the instance's queue is full this waits for room, so callers set a deadline.
    ///
    /// # Errors
    ///
    /// When nobody listens there.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        let address = SockAddr::unix(path)?;
        loop {
            let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
            match socket.connect(&address) {
                Ok(()) => {
                    return Ok(Self { readable: watch(socket.into(), Interest::READABLE)?, writable: None });
                }
                // The system's word for a full queue on a unix socket.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(QUEUE_FULL_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
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

    /// Writes what there is room for, at least one byte.
    #[inline]
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            if let Some(writable) = &self.writable {
                let mut ready = ready!(writable.poll_write_ready(cx))?;
                match ready.get_inner().write(bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => return Poll::Ready(result),
                }
            } else {
                match self.readable.get_ref().write(bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        let second = self.readable.get_ref().try_clone()?;
                        self.writable = Some(watch(second, Interest::WRITABLE)?);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => return Poll::Ready(result),
                }
            }
        }
    }

    /// Stops watching for room to write: nothing waits to be written.
    #[inline]
    pub fn settle(&mut self) {
        if self.writable.is_some() {
            self.writable = None;
        }
    }

    /// Writes what there is room for right now.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is none.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.readable.get_ref().write(bytes)
    }

    /// Tells the backend that nothing more will come.
    ///
    /// # Errors
    ///
    /// When the backend is gone already.
    pub fn finish(&self) -> io::Result<()> {
        self.readable.get_ref().shutdown(Shutdown::Write)
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
        self.settle();
        Ok(())
    }
}

/// Registers a socket with the runtime of this thread.
fn watch(socket: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    #[expect(unsafe_code, reason = "the one way to watch a socket for less than reading and writing")]
    // SAFETY: a `UnixStream` owns its descriptor, gives out the same one at every call, and keeps it open until it is
    // dropped; here it is moved into the `AsyncFd`, which drops it after its registration and never lends it mutably.
    let watched = unsafe { AsyncFd::register_with_interest(socket, interest) };
    Ok(watched?)
}

#[cfg(test)]
mod tests {
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
        let mut socket = ServerSocket::connect(&path).await.unwrap();
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
        let mut socket = ServerSocket::connect(&path).await.unwrap();
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
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        socket.listen(1).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            let attempt = tokio::time::timeout(Duration::from_millis(100), ServerSocket::connect(&path));
            match attempt.await {
                Ok(connected) => waiting.push(connected.unwrap()),
                Err(_) => break ServerSocket::connect(&path),
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
        assert!(ServerSocket::connect(&directory.path().join("nothing")).await.is_err());
    }
}
