//! The client's side of a connection until the relay takes over: a stream that may become TLS, and the bytes read from
//! it that were not used yet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use roost_pool::Socket;
use roost_wire::frame;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::server::TlsStream;

use crate::error::ErrorKind;

/// How a client is connected.
#[derive(Debug)]
pub(crate) enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

impl Stream {
    /// The connection below.
    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl From<Socket> for Stream {
    fn from(stream: Socket) -> Self {
        Self::Plain(stream)
    }
}

impl From<Box<TlsStream<Socket>>> for Stream {
    fn from(stream: Box<TlsStream<Socket>>) -> Self {
        Self::Tls(stream)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Bytes asked for at once; nobody sends more before a session is open.
const READ_BYTES: usize = 1024;

/// How long a client may take to read its last error.
const FAREWELL: Duration = Duration::from_secs(2);

/// Bytes of a client that is being sent away that are read and thrown away, so that the system does not answer them
/// with a reset that destroys the error on its way.
const FAREWELL_BYTES: usize = 64 * 1024;

/// A client that has no session yet.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: Stream,
    /// Read but not used.
    pub(crate) inbox: Vec<u8>,
}

impl Client {
    pub(crate) const fn new(stream: Stream) -> Self {
        Self { stream, inbox: Vec::new() }
    }

    /// Reads some more bytes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::ClientGone`] at the end of the stream.
    pub(crate) async fn read_more(&mut self) -> Result<(), ErrorKind> {
        self.inbox.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.inbox).await? {
            0 => Err(ErrorKind::ClientGone),
            _ => Ok(()),
        }
    }

    /// Reads one message with this tag, of at most `max_len` bytes, and returns its body.
    ///
    /// # Errors
    ///
    /// When the client goes away, or sends something else.
    pub(crate) async fn read_message(&mut self, tag: u8, max_len: usize) -> Result<Vec<u8>, ErrorKind> {
        loop {
            let whole =
                frame::whole(&self.inbox, max_len).map_err(|error| ErrorKind::Protocol(error.to_string()))?;
            // The tag is looked at before the rest arrives: whoever sends something else is not waited for.
            if self.inbox.first().is_some_and(|first| *first != tag) {
                return Err(ErrorKind::Protocol(format!("expected message {:?}", char::from(tag))));
            }
            if let Some((_, body, len)) = whole {
                let body = body.to_vec();
                self.inbox.drain(..len);
                return Ok(body);
            }
            self.read_more().await?;
        }
    }

    /// Sends bytes.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), ErrorKind> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Resolves when the client has gone away while nothing is asked of it.
    pub(crate) async fn gone(&self) {
        self.stream.socket().closed().await;
    }

    /// Says goodbye and closes: sends `bytes`, ends the stream, and gives the client a moment to read.
    pub(crate) async fn dismiss(mut self, bytes: &[u8]) {
        let goodbye = async {
            self.stream.write_all(bytes).await?;
            self.stream.shutdown().await?;
            let mut rest = [0; 1024];
            let mut budget = FAREWELL_BYTES;
            while budget > 0 {
                match self.stream.read(&mut rest).await? {
                    0 => break,
                    count => budget = budget.saturating_sub(count),
                }
            }
            io::Result::Ok(())
        };
        // Whatever fails here fails on the way out.
        let _ = tokio::time::timeout(FAREWELL, goodbye).await;
    }
}
