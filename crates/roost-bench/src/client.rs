//! A client that costs little: blocking sockets, no driver, the protocol straight from `roost-wire`.
//!
//! A login reports how long each of its steps took. SCRAM keys are derived from the password at a database's first login
//! and kept: thousands of PBKDF2 rounds are the client's business, and would hide what is measured.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use roost_wire::backend::BackendMessage;
use roost_wire::frame::{self, MAX_FRAME_LEN};
use roost_wire::frontend;
use roost_wire::scram::{self, ClientExchange, ClientKeys};
use roost_wire::startup::{ProtocolVersion, write_startup};

/// How long a server may keep a client waiting.
const PATIENCE: Duration = Duration::from_secs(300);

/// A user name and password, and the keys that were derived from them.
#[derive(Clone)]
pub(crate) struct Credentials {
    user: String,
    password: String,
    keys: Arc<OnceLock<ClientKeys>>,
}

impl Credentials {
    /// Without derived keys.
    pub(crate) fn new(user: &str, password: &str) -> Self {
        Self { user: user.to_owned(), password: password.to_owned(), keys: Arc::default() }
    }

    /// The user name.
    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    /// The password.
    pub(crate) fn password(&self) -> &str {
        &self.password
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// When the steps of a login were done, counted from its beginning.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Login {
    /// Before the connection.
    pub(crate) begun: Instant,
    /// The TCP connection stood.
    pub(crate) connected: Duration,
    /// The client was about to send the proof of its password.
    pub(crate) proving: Duration,
    /// The server said that the password is right.
    pub(crate) authenticated: Duration,
    /// The server was ready for a query.
    pub(crate) ready: Duration,
    /// How long the client derived keys within that, while the server had nothing to do.
    pub(crate) deriving: Duration,
}

/// When a client proved its password, and how long it derived keys for that.
struct Proof {
    at: Instant,
    deriving: Duration,
}

/// A session that is ready for a query.
#[derive(Debug)]
pub(crate) struct Session<S> {
    stream: S,
    input: Vec<u8>,
    /// Bytes of `input` that were read already.
    taken: usize,
}

impl Session<TcpStream> {
    /// Logs in at a gateway, to the database `postgres`.
    pub(crate) fn log_in(address: SocketAddr, credentials: &Credentials) -> Result<(Self, Login)> {
        let begun = Instant::now();
        let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        let connected = begun.elapsed();
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut session = Self::new(stream);
        session.start(&credentials.user, "postgres")?;
        let Proof { at: proving, deriving } = session.authenticate(credentials)?;
        let proving = proving.duration_since(begun);
        let authenticated = begun.elapsed();
        session.wait_until_ready()?;
        let ready = begun.elapsed();
        Ok((session, Login { begun, connected, proving, authenticated, ready, deriving }))
    }
}

impl Session<UnixStream> {
    /// Logs in to a server that trusts everybody who reaches its socket.
    pub(crate) fn open_trusted(socket: &Path, user: &str, database: &str) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut session = Self::new(stream);
        session.start(user, database)?;
        session.wait_until_ready()?;
        Ok(session)
    }
}

impl<S: Read + Write> Session<S> {
    fn new(stream: S) -> Self {
        Self { stream, input: Vec::with_capacity(8192), taken: 0 }
    }

    /// Runs a query. Returns when the first row arrived, and has read the rest by then.
    pub(crate) fn first_row(&mut self) -> Result<Instant> {
        let mut query = Vec::new();
        frontend::write_query(&mut query, "SELECT 1");
        self.stream.write_all(&query)?;
        let mut first = None;
        loop {
            match self.next()? {
                (b'D', _) => first = first.or_else(|| Some(Instant::now())),
                (b'Z', _) => return first.context("a query without a row"),
                (b'E', body) => bail!("{}", error(body)),
                _ => {}
            }
        }
    }

    /// Ends the session.
    pub(crate) fn close(mut self) {
        let mut terminate = Vec::new();
        frontend::write_terminate(&mut terminate);
        // The server ends the session either way.
        let _ = self.stream.write_all(&terminate);
    }

    fn start(&mut self, user: &str, database: &str) -> Result<()> {
        let mut startup = Vec::new();
        write_startup(&mut startup, ProtocolVersion::V3_0, [("user", user), ("database", database)]);
        Ok(self.stream.write_all(&startup)?)
    }

    /// SCRAM-SHA-256, up to AuthenticationOk.
    fn authenticate(&mut self, credentials: &Credentials) -> Result<Proof> {
        let proof = match credentials.keys.get() {
            Some(keys) => scram::Credentials::Keys(keys.clone()),
            None => scram::Credentials::Password(credentials.password.clone()),
        };
        let mut exchange = ClientExchange::new(proof, scram::fresh_nonce());
        let mut proof = Proof { at: Instant::now(), deriving: Duration::ZERO };
        loop {
            let (tag, body) = self.next()?;
            let mut answer = Vec::new();
            match BackendMessage::parse(tag, body)? {
                BackendMessage::AuthenticationOk => return Ok(proof),
                BackendMessage::AuthenticationSasl(_) => {
                    frontend::write_sasl_initial_response(&mut answer, scram::MECHANISM, &exchange.first());
                }
                BackendMessage::SaslContinue(server_first) => {
                    let begun = Instant::now();
                    let final_message = exchange.challenge(server_first)?;
                    if credentials.keys.get().is_none() {
                        let keys = derive(&credentials.password, server_first)?;
                        // Another thread's keys are the same.
                        let _ = credentials.keys.set(keys);
                        proof.deriving = begun.elapsed();
                    }
                    frontend::write_sasl_response(&mut answer, &final_message);
                    proof.at = Instant::now();
                }
                BackendMessage::SaslFinal(server_final) => exchange.verify(server_final)?,
                BackendMessage::Error(_) => bail!("{}", error(body)),
                _ => bail!("message {:?} during authentication", char::from(tag)),
            }
            self.stream.write_all(&answer)?;
        }
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        loop {
            match self.next()? {
                (b'Z', _) => return Ok(()),
                (b'E', body) => bail!("{}", error(body)),
                _ => {}
            }
        }
    }

    /// The next message: its type and body.
    fn next(&mut self) -> Result<(u8, &[u8])> {
        loop {
            let unread = self.input.get(self.taken..).unwrap_or_default();
            if let Some((tag, body, len)) = frame::whole(unread, MAX_FRAME_LEN)? {
                let end = self.taken + len;
                let body = end - body.len()..end;
                self.taken = end;
                return Ok((tag, self.input.get(body).unwrap_or_default()));
            }
            self.input.drain(..self.taken);
            self.taken = 0;
            let mut chunk = [0; 4096];
            let read = self.stream.read(&mut chunk)?;
            ensure!(read > 0, "the server closed the connection");
            self.input.extend_from_slice(chunk.get(..read).unwrap_or_default());
        }
    }
}

/// The keys for the salt and iterations that a server-first message names (RFC 5802, section 7).
fn derive(password: &str, server_first: &[u8]) -> Result<ClientKeys> {
    let text = std::str::from_utf8(server_first)?;
    let attribute = |name: &str| text.split(',').find_map(|part| part.strip_prefix(name));
    let salt = BASE64.decode(attribute("s=").context("no salt")?)?;
    let iterations = attribute("i=").context("no iterations")?.parse()?;
    Ok(ClientKeys::from_password(password, &salt, iterations))
}

fn error(body: &[u8]) -> String {
    let fields = roost_wire::error::ErrorFields::parse(body);
    let detail = fields.detail.map(|detail| format!(" ({detail})")).unwrap_or_default();
    format!("{} {}{detail}", fields.code.as_str(), fields.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_were_kept_are_those_of_the_password() {
        let message = format!("r=abc,s={},i=1", BASE64.encode(b"salt"));
        let kept = derive("secret", message.as_bytes()).unwrap();
        let fresh = ClientKeys::from_password("secret", b"salt", 1);
        assert_eq!((kept.client_key, kept.server_key), (fresh.client_key, fresh.server_key));
        assert!(derive("secret", b"r=abc").is_err());
    }
}
