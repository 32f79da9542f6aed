//! The server's side: client-first, server-first, client-final, server-final.
//!
//! Each step consumes the one before, so a nonce is used once and no step can be skipped.

use std::fmt;

use aws_lc_rs::constant_time;
use base64::Engine as _;

use super::message::{self, Attributes};
use super::verifier::{ClientKeys, Verifier, parse_key};
use super::{BASE64, KEY_LEN, MECHANISM, MECHANISM_PLUS, ScramError, hmac_sha256, sha256, xor};

/// The one channel binding that is spoken (RFC 5929 section 4), as Postgres does.
const BINDING_NAME: &str = "tls-server-end-point";

/// What the client's channel can be bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding<'a> {
    /// Nothing: the connection is in plain text, and SCRAM-SHA-256 alone was offered.
    Unavailable,
    /// The `tls-server-end-point` data (the hash of the server's certificate); SCRAM-SHA-256-PLUS was offered too.
    Available(&'a [u8]),
}

/// A server that waits for the client's first message.
pub struct ServerFirst {
    verifier: Verifier,
    /// `None` when SCRAM-SHA-256-PLUS was not offered.
    binding: Option<Vec<u8>>,
    nonce: String,
}

impl ServerFirst {
    /// An exchange that checks the client against `verifier`.
    ///
    /// `nonce` has to be unpredictable and used once, as from [`super::fresh_nonce`].
    pub fn new(verifier: Verifier, binding: ChannelBinding<'_>, nonce: String) -> Self {
        let binding = match binding {
            ChannelBinding::Unavailable => None,
            ChannelBinding::Available(data) => Some(data.to_vec()),
        };
        Self { verifier, binding, nonce }
    }

    /// Takes the mechanism that the client selected and its first message; gives the server's first message.
    ///
    /// The name in the message is ignored as Postgres does: the startup packet has said who logs in.
    ///
    /// # Errors
    ///
    /// Whenever the message is malformed or asks for what was not offered; the exchange is over then.
    pub fn client_first(self, mechanism: &str, message: &[u8]) -> Result<(ServerFinal, Vec<u8>), ScramError> {
        if !message::is_nonce(&self.nonce) {
            return Err(ScramError::Misused("the server's nonce is empty or not printable"));
        }
        let plus = match (mechanism, &self.binding) {
            (MECHANISM, _) => false,
            (MECHANISM_PLUS, Some(_)) => true,
            _ => return Err(ScramError::UnsupportedMechanism),
        };
        let text = message::text(message)?;
        let (flag, rest) = text.split_once(',').ok_or(ScramError::Malformed("no GS2 header"))?;
        self.check_binding_flag(flag, plus)?;
        let (identity, bare) = rest.split_once(',').ok_or(ScramError::Malformed("no GS2 header"))?;
        if identity.starts_with("a=") {
            return Err(ScramError::AuthorizationIdentity);
        }
        if !identity.is_empty() {
            return Err(ScramError::Malformed("the GS2 header holds more than an authorization identity"));
        }

        let mut attributes = Attributes::new(bare);
        attributes.expect('n', "the first message does not begin with a user name")?;
        let client_nonce = attributes.expect('r', "the first message has no nonce after the name")?;
        if !message::is_nonce(client_nonce) {
            return Err(ScramError::Malformed("the client's nonce is empty or not printable"));
        }
        attributes.ignore_extensions()?;

        // `c=` of the final message: the GS2 header again, then the binding data if there is any.
        let mut bound = format!("{flag},,").into_bytes();
        if plus {
            bound.extend(self.binding.unwrap_or_default());
        }
        let nonce = format!("{client_nonce}{}", self.nonce);
        let salt = BASE64.encode(&self.verifier.salt);
        let server_first = format!("r={nonce},s={salt},i={}", self.verifier.iterations);
        let next = ServerFinal {
            stored_key: self.verifier.stored_key,
            server_key: self.verifier.server_key,
            transcript: format!("{bare},{server_first}"),
            bound: BASE64.encode(bound),
            nonce,
        };
        Ok((next, server_first.into_bytes()))
    }

    /// Whether the GS2 channel-binding flag goes with the mechanism and with what was offered (RFC 5802 section 6).
    fn check_binding_flag(&self, flag: &str, plus: bool) -> Result<(), ScramError> {
        match flag {
            "n" | "y" if plus => Err(ScramError::ChannelBindingDisagrees),
            "n" => Ok(()),
            "y" if self.binding.is_some() => Err(ScramError::ChannelBindingDowngrade),
            "y" => Ok(()),
            _ => match flag.strip_prefix("p=") {
                Some(_) if !plus => Err(ScramError::ChannelBindingDisagrees),
                Some(BINDING_NAME) => Ok(()),
                Some(_) => Err(ScramError::UnsupportedChannelBinding),
                None => Err(ScramError::Malformed("unknown GS2 channel-binding flag")),
            },
        }
    }
}

/// Shows no key and no nonce.
impl fmt::Debug for ServerFirst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerFirst").finish_non_exhaustive()
    }
}

/// A server that waits for the client's proof.
pub struct ServerFinal {
    stored_key: [u8; KEY_LEN],
    server_key: [u8; KEY_LEN],
    /// The beginning of RFC 5802's `AuthMessage`: client-first-bare and server-first.
    transcript: String,
    /// The value of `c=` that the client has to send.
    bound: String,
    /// Both nonces.
    nonce: String,
}

impl ServerFinal {
    /// Takes the client's final message and checks its proof; gives the server's final message.
    ///
    /// # Errors
    ///
    /// [`ScramError::InvalidProof`] when the client does not know the password; others when the message is malformed
    /// or belongs to another exchange or channel. The exchange is over then.
    pub fn client_final(self, message: &[u8]) -> Result<(Verified, Vec<u8>), ScramError> {
        let text = message::text(message)?;
        // Neither the channel binding nor a nonce holds a comma, so this is the first proof; it has to be the last attribute.
        let (without_proof, proof) =
            text.split_once(",p=").ok_or(ScramError::Malformed("no proof at the end"))?;
        let mut attributes = Attributes::new(without_proof);
        if attributes.expect('c', "the final message does not begin with a channel binding")? != self.bound {
            return Err(ScramError::ChannelBindingMismatch);
        }
        if attributes.expect('r', "the final message has no nonce after the channel binding")? != self.nonce {
            return Err(ScramError::NonceMismatch);
        }
        attributes.ignore_extensions()?;
        let proof = parse_key(proof).ok_or(ScramError::Malformed("the proof is not base64 of 32 bytes"))?;

        let auth_message: [&[u8]; 3] = [self.transcript.as_bytes(), b",", without_proof.as_bytes()];
        let client_key = xor(proof, &hmac_sha256(&self.stored_key, &auth_message));
        constant_time::verify_slices_are_equal(&sha256(&client_key), &self.stored_key)
            .map_err(|_| ScramError::InvalidProof)?;
        let signature = hmac_sha256(&self.server_key, &auth_message);
        let server_final = format!("v={}", BASE64.encode(signature)).into_bytes();
        Ok((Verified { keys: ClientKeys { client_key, server_key: self.server_key } }, server_final))
    }
}

/// Shows no key and no nonce.
impl fmt::Debug for ServerFinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerFinal").finish_non_exhaustive()
    }
}

/// That a client has proved to know the password behind a verifier. Only [`ServerFinal::client_final`] makes one.
#[derive(Debug)]
pub struct Verified {
    keys: ClientKeys,
}

impl Verified {
    /// The client key, recovered from the proof: who holds it can log in wherever the same verifier is in use.
    pub const fn client_key(&self) -> &[u8; 32] {
        &self.keys.client_key
    }

    /// The keys by which to log in as this client to a server that has the same verifier.
    pub fn into_client_keys(self) -> ClientKeys {
        self.keys
    }
}
