//! Opening a server session: the startup exchange with an instance on its unix socket, up to the first ReadyForQuery
//! (protocol: "Start-up").
//!
//! The instance trusts whoever reaches its socket, so the role named here is the role that the session gets: the caller
//! has authenticated the client for it. A client's own parameters are passed on as settings; those that would name
//! another user, another database or another protocol are not.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use roost_wire::backend::BackendMessage;
use roost_wire::frame;
use roost_wire::startup::{self, ProtocolVersion};
use tokio::time::Instant;

use crate::cancel::CancelTarget;
use crate::hold::Hold;
use crate::socket::Socket;

/// The name of the socket in an instance's socket directory.
const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// What an instance may send until it is ready for a query: its parameters, and the notices of login triggers.
const MAX_GREETING_BYTES: usize = 1024 * 1024;

/// Startup parameters that a client does not decide.
const NOT_PASSED_ON: [&str; 3] = ["user", "database", "replication"];

pub(crate) fn socket_path(directory: &Path) -> PathBuf {
    directory.join(SOCKET_NAME)
}

/// As whom, and where in an instance, a session is opened.
#[derive(Debug, Clone, Copy)]
pub struct ServerTarget<'a> {
    /// The Postgres role. The client must have been authenticated for it.
    pub role: &'a str,
    /// The Postgres database.
    pub database: &'a str,
    /// Settings of the session, in the order in which they are applied.
    pub settings: &'a [(String, String)],
}

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The socket could not be connected or broke.
    #[error("the instance's socket: {0}")]
    Socket(#[from] io::Error),
    /// Postgres closed the connection without a word.
    #[error("Postgres closed the connection during startup")]
    Closed,
    /// Postgres was not ready for a query in time.
    #[error("Postgres was not ready for a query after {0:?}")]
    Deadline(Duration),
    /// Postgres refused: the frames to hand to the client as they are, the ErrorResponse last.
    #[error("Postgres refused the session")]
    Refused(Vec<u8>),
    /// Postgres sent something that does not belong into a startup.
    #[error("unexpected message during startup: {0}")]
    Unexpected(String),
    /// Postgres sent more than any startup needs.
    #[error("more than {MAX_GREETING_BYTES} bytes during startup")]
    TooLong,
}

/// A server session that owes nothing: its first ReadyForQuery was read and nothing after it.
#[derive(Debug)]
pub struct ServerSession<H> {
    /// The connection to the backend.
    pub socket: Socket,
    /// What keeps the instance up, with its activity lease held.
    pub hold: H,
    /// What the client is told before its own BackendKeyData: ParameterStatus and NoticeResponse frames.
    pub greeting: Vec<u8>,
    /// Where cancel requests for this session go.
    pub cancel: CancelTarget,
}

impl<H: Hold> ServerSession<H> {
    /// Opens a session on the instance that `hold` holds. The activity lease stays held.
    ///
    /// # Errors
    ///
    /// When the instance does not serve the session by `deadline`. The hold is released then.
    pub async fn open(hold: H, target: ServerTarget<'_>, deadline: Instant) -> Result<Self, OpenError> {
        let began = Instant::now();
        match tokio::time::timeout_at(deadline, Self::start(hold, target)).await {
            Ok(result) => result,
            Err(_) => Err(OpenError::Deadline(began.elapsed())),
        }
    }

    async fn start(hold: H, target: ServerTarget<'_>) -> Result<Self, OpenError> {
        let mut socket = Socket::connect(&socket_path(hold.socket_dir())).await?;
        let mut packet = Vec::with_capacity(256);
        startup::write_startup(&mut packet, ProtocolVersion::V3_0, parameters(&target));
        socket.write_all(&packet).await?;

        let mut greeting = Greeting::default();
        let mut buffer = Vec::new();
        let mut chunk = [0; 2048];
        loop {
            let count = socket.read(&mut chunk).await?;
            if count == 0 {
                return Err(OpenError::Closed);
            }
            buffer.extend_from_slice(chunk.get(..count).unwrap_or_default());
            let consumed = greeting.read(&buffer)?;
            buffer.drain(..consumed);
            if greeting.ready {
                break;
            }
            if buffer.len() + greeting.frames.len() > MAX_GREETING_BYTES {
                return Err(OpenError::TooLong);
            }
        }
        if !buffer.is_empty() {
            return Err(OpenError::Unexpected("bytes after the first ReadyForQuery".to_owned()));
        }
        let Some((pid, key)) = greeting.key else {
            return Err(OpenError::Unexpected("no BackendKeyData".to_owned()));
        };
        let cancel = CancelTarget::new(hold.socket_dir(), pid, &key);
        Ok(Self { socket, hold, greeting: greeting.frames, cancel })
    }
}

fn parameters<'a>(target: &ServerTarget<'a>) -> impl Iterator<Item = (&'a str, &'a str)> {
    let settings = target.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    [("user", target.role), ("database", target.database)]
        .into_iter()
        .chain(settings.filter(|(name, _)| !NOT_PASSED_ON.contains(name) && !name.starts_with("_pq_.")))
}

/// What has been read of a startup.
#[derive(Debug, Default)]
struct Greeting {
    frames: Vec<u8>,
    key: Option<(i32, Vec<u8>)>,
    ready: bool,
}

impl Greeting {
    /// Takes the whole frames at the start of `bytes`, and says how long they are together.
    fn read(&mut self, bytes: &[u8]) -> Result<usize, OpenError> {
        let unexpected = |error: frame::FrameError| OpenError::Unexpected(error.to_string());
        let mut consumed = 0;
        while !self.ready {
            let rest = bytes.get(consumed..).unwrap_or_default();
            let Some((tag, body, len)) = frame::whole(rest, MAX_GREETING_BYTES).map_err(unexpected)? else {
                break;
            };
            self.take(tag, body, rest.get(..len).unwrap_or_default())?;
            consumed += len;
        }
        Ok(consumed)
    }

    fn take(&mut self, tag: u8, body: &[u8], whole: &[u8]) -> Result<(), OpenError> {
        match BackendMessage::parse(tag, body).map_err(|error| OpenError::Unexpected(error.to_string()))? {
            BackendMessage::AuthenticationOk => {}
            BackendMessage::ParameterStatus { .. } | BackendMessage::Notice(_) => {
                self.frames.extend_from_slice(whole);
            }
            BackendMessage::BackendKeyData { pid, key } => self.key = Some((pid, key.to_vec())),
            BackendMessage::ReadyForQuery(_) => self.ready = true,
            BackendMessage::Error(_) => {
                let mut frames = std::mem::take(&mut self.frames);
                frames.extend_from_slice(whole);
                return Err(OpenError::Refused(frames));
            }
            _ => return Err(OpenError::Unexpected(format!("message {:?}", char::from(tag)))),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use roost_wire::backend;
    use roost_wire::error::{ErrorFields, SqlState};
    use roost_wire::frame::TransactionStatus;

    use super::*;

    fn startup() -> Vec<u8> {
        let mut bytes = Vec::new();
        backend::authentication_ok(&mut bytes);
        backend::parameter_status(&mut bytes, "TimeZone", "UTC");
        backend::backend_key_data(&mut bytes, 7, b"secret key");
        backend::ready_for_query(&mut bytes, TransactionStatus::Idle);
        bytes
    }

    #[test]
    fn a_startup_is_read_however_it_is_cut() {
        let bytes = startup();
        for step in 1..bytes.len() {
            let mut greeting = Greeting::default();
            let mut buffer = Vec::new();
            for chunk in bytes.chunks(step) {
                assert!(!greeting.ready);
                buffer.extend_from_slice(chunk);
                let consumed = greeting.read(&buffer).unwrap();
                buffer.drain(..consumed);
            }
            assert!(greeting.ready && buffer.is_empty());
            assert_eq!(greeting.key, Some((7, b"secret key".to_vec())));
            let mut parameters = Vec::new();
            backend::parameter_status(&mut parameters, "TimeZone", "UTC");
            assert_eq!(greeting.frames, parameters);
        }
    }

    #[test]
    fn a_refusal_is_handed_on_as_it_is_with_what_came_before() {
        let mut bytes = Vec::new();
        backend::notice_response(&mut bytes, &ErrorFields::fatal(SqlState::SYSTEM_ERROR, "a notice"));
        backend::error_response(&mut bytes, &ErrorFields::fatal(SqlState::TOO_MANY_CONNECTIONS, "too many"));
        let mut greeting = Greeting::default();
        assert!(matches!(greeting.read(&bytes), Err(OpenError::Refused(frames)) if frames == bytes));
    }

    #[test]
    fn what_does_not_belong_into_a_startup_is_an_error() {
        let mut sasl = Vec::new();
        backend::authentication_sasl(&mut sasl, &["SCRAM-SHA-256"]);
        for bytes in [
            sasl.as_slice(),
            b"D\0\0\0\x04",
            b"Z\0\0\0\x04",
            b"K\0\0\0\x08\0\0\0\x01",
            b"S\x7f\0\0\0",
            b"N\0\0\0\0",
        ] {
            assert!(matches!(Greeting::default().read(bytes), Err(OpenError::Unexpected(_))), "{bytes:?}");
        }
    }

    #[test]
    fn a_clients_parameters_name_no_other_user_database_or_protocol() {
        let settings: Vec<(String, String)> =
            ["user", "database", "replication", "_pq_.x", "TimeZone", "options"]
                .map(|name| (name.to_owned(), "v".to_owned()))
                .to_vec();
        let target = ServerTarget { role: "app", database: "shop", settings: &settings };
        let sent: Vec<_> = parameters(&target).collect();
        assert_eq!(sent, [("user", "app"), ("database", "shop"), ("TimeZone", "v"), ("options", "v")]);
    }
}
