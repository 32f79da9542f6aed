//! A client on the level of bytes, for what well-behaved clients don't do.

use std::collections::HashMap;
use std::time::Duration;

use roost_wire::frame;
use roost_wire::frontend;
use roost_wire::scram::{ClientExchange, Credentials, MECHANISM, fresh_nonce};
use roost_wire::startup::{ProtocolVersion, write_startup};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// A frame as read: its tag and body.
pub(crate) type Frame = (u8, Vec<u8>);

/// A connection to the gateway.
pub(crate) struct Conversation<S = TcpStream> {
    pub(crate) stream: S,
    inbox: Vec<u8>,
    /// What the server said when the session was ready.
    pub(crate) key: (i32, Vec<u8>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conversation<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, inbox: Vec::new(), key: (0, Vec::new()) }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub(crate) async fn start(&mut self, parameters: &[(&str, &str)]) {
        self.start_version(ProtocolVersion::V3_0, parameters).await;
    }

    pub(crate) async fn start_version(&mut self, version: ProtocolVersion, parameters: &[(&str, &str)]) {
        let mut packet = Vec::new();
        write_startup(&mut packet, version, parameters.iter().copied());
        self.send(&packet).await;
    }

    pub(crate) async fn query(&mut self, text: &str) {
        let mut frame = Vec::new();
        frontend::write_query(&mut frame, text);
        self.send(&frame).await;
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) async fn read(&mut self) -> Option<Frame> {
        loop {
            if let Some((tag, body, len)) = frame::whole(&self.inbox, 1 << 30).unwrap() {
                let frame = (tag, body.to_vec());
                self.inbox.drain(..len);
                return Some(frame);
            }
            let read = self.stream.read_buf(&mut self.inbox);
            match tokio::time::timeout(Duration::from_secs(20), read).await.expect("an answer in time") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Frames up to one with this tag.
    pub(crate) async fn read_until(&mut self, wanted: u8) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let frame = self.read().await.unwrap_or_else(|| panic!("the stream ended after {frames:?}"));
            let tag = frame.0;
            frames.push(frame);
            if tag == wanted {
                return frames;
            }
            assert_ne!(tag, b'E', "{:?}", frames.last().map(|(_, body)| fields(body)));
        }
    }

    /// The fields of the error that comes next.
    pub(crate) async fn read_error(&mut self) -> HashMap<char, String> {
        match self.read().await {
            Some((b'E', body)) => fields(&body),
            other => panic!("an error was expected, not {other:?}"),
        }
    }

    /// Whether the stream has ended.
    pub(crate) async fn is_over(&mut self) -> bool {
        self.read().await.is_none()
    }

    /// Runs the SCRAM exchange up to the point where the server answers the proof.
    pub(crate) async fn prove(&mut self, password: &str) {
        let frames = self.read_until(b'R').await;
        let (_, offer) = frames.last().unwrap();
        assert!(offer.windows(MECHANISM.len()).any(|window| window == MECHANISM.as_bytes()));
        let mut exchange = ClientExchange::new(Credentials::Password(password.to_owned()), fresh_nonce());
        let mut message = Vec::new();
        frontend::write_sasl_initial_response(&mut message, MECHANISM, &exchange.first());
        self.send(&message).await;
        let (_, challenge) = self.read_until(b'R').await.pop().unwrap();
        message.clear();
        frontend::write_sasl_response(&mut message, &exchange.challenge(&challenge[4..]).unwrap());
        self.send(&message).await;
    }

    /// Logs in, and reads until the session is ready.
    pub(crate) async fn log_in(&mut self, password: &str) {
        self.prove(password).await;
        for (tag, body) in self.read_until(b'Z').await {
            if tag == b'K' {
                self.key = (i32::from_be_bytes(body[..4].try_into().unwrap()), body[4..].to_vec());
            }
        }
    }
}

/// The fields of an ErrorResponse.
pub(crate) fn fields(body: &[u8]) -> HashMap<char, String> {
    body.split(|byte| *byte == 0)
        .filter_map(|field| {
            let (tag, text) = field.split_first()?;
            Some((char::from(*tag), String::from_utf8_lossy(text).into_owned()))
        })
        .collect()
}
