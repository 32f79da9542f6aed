//! A session of Roost's own with an instance, over its unix socket.
//!
//! The instance belongs to a tenant who may run native code in it, so nothing that it says is trusted to be short or to
//! come at all: connecting and every query have a deadline, and what the server may send in answer to one query is
//! bounded.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, Row};

use crate::SOCKET_PORT;

/// What a server may send in answer to one query, in bytes.
const MAX_REPLY_BYTES: u64 = 32 << 20;

/// How long the server's side of a session that was ended is waited for.
const FAREWELL: Duration = Duration::from_millis(500);

/// The pauses between attempts to connect grow from this
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// to this.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Why a control or maintenance session could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No connection came about in time.
    #[error("no connection to Postgres at {socket} within the deadline; the last attempt: {last}")]
    Deadline {
        /// The socket.
        socket: PathBuf,
        /// How the last attempt failed.
        last: String,
    },
    /// Postgres refused the connection, or the socket cannot be used.
    #[error("Postgres at {socket} cannot be connected to: {detail}")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What was said.
        detail: String,
        /// The SQLSTATE, when Postgres said it.
        code: Option<String>,
    },
    /// A query was not answered in time. The session cannot be used any more.
    #[error("a query was not answered within {} ms", .0.as_millis())]
    Unanswered(Duration),
    /// A query failed.
    #[error("a query failed: {}", describe(.0))]
    Query(#[from] tokio_postgres::Error),
    /// An answer has another form than was asked for.
    #[error("an answer is not as expected: {0}")]
    Answer(&'static str),
}

impl SessionError {
    /// The SQLSTATE that Postgres gave.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Query(error) => error.code().map(SqlState::code),
            Self::Connect { code, .. } => code.as_deref(),
            _ => None,
        }
    }
}

fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{} (SQLSTATE {})", said.message(), said.code().code()),
        None => error.to_string(),
    }
}

/// An open session.
pub(crate) struct Session {
    client: Client,
    allowance: Arc<AtomicU64>,
    /// The same socket once more, to see its end on.
    socket: UnixStream,
}

/// Whom a session is, where, and with which settings. Settings given at the start of a session outrank those that a
/// tenant has set for a role or a database.
pub(crate) struct Identity<'a> {
    pub(crate) role: &'a str,
    pub(crate) database: &'a str,
    pub(crate) settings: &'a [(&'a str, &'a str)],
}

impl Session {
    /// Connects, and tries again while the socket is not there yet or Postgres is still starting.
    pub(crate) async fn open(
        socket_dir: &Path,
        identity: &Identity<'_>,
        deadline: Instant,
    ) -> Result<Self, SessionError> {
        let socket = socket_dir.join(format!(".s.PGSQL.{SOCKET_PORT}"));
        let mut pause = FIRST_PAUSE;
        let mut last = "none was made".to_owned();
        loop {
            match timeout_at(deadline, Self::attempt(&socket, identity)).await {
                Err(_) => return Err(SessionError::Deadline { socket, last }),
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(Attempt::Later(why))) => last = why,
                Ok(Err(Attempt::Never(error))) => return Err(error),
            }
            if timeout_at(deadline, sleep(pause)).await.is_err() {
                return Err(SessionError::Deadline { socket, last });
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(socket: &Path, identity: &Identity<'_>) -> Result<Self, Attempt> {
        let refused = |detail: String, code| {
            Attempt::Never(SessionError::Connect { socket: socket.to_owned(), detail, code })
        };
        let stream = match UnixStream::connect(socket).await {
            Ok(stream) => stream,
            Err(error) if is_not_there_yet(&error) => return Err(Attempt::Later(error.to_string())),
            Err(error) => return Err(refused(error.to_string(), None)),
        };
        let (stream, socket) = twice(stream).map_err(|error| refused(error.to_string(), None))?;
        let allowance = Arc::new(AtomicU64::new(MAX_REPLY_BYTES));
        let stream = Allotted { stream, allowance: Arc::clone(&allowance) };
        let options: Vec<String> =
            identity.settings.iter().map(|(name, value)| option(name, value)).collect();

        let mut config = Config::new();
        config
            .user(identity.role)
            .dbname(identity.database)
            .application_name("roost")
            .options(options.join(" "));
        match config.connect_raw(stream, NoTls).await {
            Ok((client, connection)) => {
                // It ends when the client is dropped or the server closes; the client is told of errors.
                tokio::spawn(connection);
                Ok(Self { client, allowance, socket })
            }
            Err(error) if error.code() == Some(&SqlState::CANNOT_CONNECT_NOW) => {
                Err(Attempt::Later(describe(&error)))
            }
            Err(error) => Err(refused(describe(&error), error.code().map(|code| code.code().to_owned()))),
        }
    }

    /// The rows of a query, which must be answered within `within`.
    pub(crate) async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
        within: Duration,
    ) -> Result<Vec<Row>, SessionError> {
        self.allowance.store(MAX_REPLY_BYTES, Ordering::Relaxed);
        let answer = tokio::time::timeout(within, self.client.query(sql, parameters)).await;
        Ok(answer.map_err(|_| SessionError::Unanswered(within))??)
    }

    /// Does a statement that has no parameters and whose rows are of no interest.
    pub(crate) async fn execute(&self, sql: &str, within: Duration) -> Result<(), SessionError> {
        self.allowance.store(MAX_REPLY_BYTES, Ordering::Relaxed);
        let answer = tokio::time::timeout(within, self.client.batch_execute(sql)).await;
        Ok(answer.map_err(|_| SessionError::Unanswered(within))??)
    }

    /// Ends the session, and waits a moment until its process has closed the socket, which it does when it exits.
    pub(crate) async fn close(self) {
        drop(self.client);
        let ended = async {
            while let Ok(ready) = self.socket.ready(Interest::READABLE).await {
                if ready.is_read_closed() {
                    return;
                }
                // What there is to read is not for this handle: it is forgotten, and whatever happens next is waited for.
                let unread = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                let _ = self.socket.try_io(Interest::READABLE, unread);
            }
        };
        let _ = tokio::time::timeout(FAREWELL, ended).await;
    }

    /// Whether the connection has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

/// A second handle of a connection.
fn twice(stream: UnixStream) -> io::Result<(UnixStream, UnixStream)> {
    let stream = stream.into_std()?;
    let second = UnixStream::from_std(stream.try_clone()?)?;
    Ok((UnixStream::from_std(stream)?, second))
}

enum Attempt {
    Later(String),
    Never(SessionError),
}

fn is_not_there_yet(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        // The socket file is missing, nobody listens yet, or the queue of the listening socket is full.
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
    )
}

/// One setting in the form of the `options` parameter, where blanks and backslashes are escaped.
fn option(name: &str, value: &str) -> String {
    format!("-c {name}={}", value.replace('\\', "\\\\").replace(' ', "\\ "))
}

/// A stream that may bring only so many bytes.
struct Allotted {
    stream: UnixStream,
    allowance: Arc<AtomicU64>,
}

impl AsyncRead for Allotted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let arrived = buf.filled().len().saturating_sub(before) as u64;
        let left = self.allowance.load(Ordering::Relaxed);
        if arrived > left {
            let message = format!("the server sent more than {MAX_REPLY_BYTES} bytes in answer to one query");
            return Poll::Ready(Err(io::Error::other(message)));
        }
        self.allowance.store(left - arrived, Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for Allotted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn settings_survive_the_options_parameter() {
        assert_eq!(option("search_path", "pg_catalog"), "-c search_path=pg_catalog");
        assert_eq!(option("a", r"b c\d"), r"-c a=b\ c\\d");
    }

    #[tokio::test]
    async fn a_missing_socket_is_waited_for_until_the_deadline() {
        let directory = tempfile::tempdir().unwrap();
        let identity = Identity { role: "_roost", database: "_roost", settings: &[] };
        let deadline = Instant::now() + Duration::from_millis(30);
        let error = Session::open(directory.path(), &identity, deadline).await.err().unwrap();
        assert!(matches!(error, SessionError::Deadline { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_floods_is_cut_off() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut stream = Allotted { stream: near, allowance: Arc::new(AtomicU64::new(10)) };
        far.write_all(b"0123456789").await.unwrap();
        let mut bytes = [0; 64];
        assert_eq!(stream.read(&mut bytes).await.unwrap(), 10);
        far.write_all(b"x").await.unwrap();
        assert!(stream.read(&mut bytes).await.is_err());
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_is_left_at_the_deadline() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join(".s.PGSQL.5432");
        let _listener = tokio::net::UnixListener::bind(socket).unwrap();
        let identity = Identity { role: "_roost", database: "_roost", settings: &[] };
        let deadline = Instant::now() + Duration::from_millis(30);
        let error = Session::open(directory.path(), &identity, deadline).await.err().unwrap();
        assert!(matches!(error, SessionError::Deadline { .. }), "{error}");
    }
}
