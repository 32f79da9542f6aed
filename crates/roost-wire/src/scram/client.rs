//! The client's side, without channel binding: what logs in to a server over a unix socket.

use std::fmt;

use aws_lc_rs::constant_time;
use base64::Engine as _;

use super::message::{self, Attributes};
use super::verifier::{ClientKeys, parse_iterations, parse_key, parse_salt};
use super::{BASE64, KEY_LEN, ScramError, hmac_sha256, sha256, xor};

/// The GS2 header of a client without channel binding and authorization identity.
const GS2_HEADER: &str = "n,,";

/// What a client proves its identity with.
#[derive(Clone)]
pub enum Credentials {
    /// A password: works with any salt, at the price of the server's number of PBKDF2 rounds for each login.
    Password(String),
    /// Keys derived before: work with the salt and rounds that they were derived with, at no price.
    Keys(ClientKeys),
}

/// Shows the kind only.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password(_) => "Password",
            Self::Keys(_) => "Keys",
        })
    }
}

/// How far a client has come.
enum Progress {
    /// The server has not sent its challenge.
    Begun,
    /// The proof is sent; the server has to answer with this signature.
    Proved { server_signature: [u8; KEY_LEN] },
    /// The challenge was refused.
    Failed,
}

/// A client in an exchange.
pub struct ClientExchange {
    credentials: Credentials,
    nonce: String,
    /// `client-first-message-bare` of RFC 5802 section 7.
    first_bare: String,
    progress: Progress,
}

impl ClientExchange {
    /// An exchange under SCRAM-SHA-256. `nonce` has to be unpredictable and used once, as from [`super::fresh_nonce`].
    ///
    /// The user name in its messages is empty: Postgres takes the one of the startup packet.
    pub fn new(credentials: Credentials, nonce: String) -> Self {
        Self::named(credentials, "", nonce)
    }

    /// An exchange that does give a user name, which has to be free of `,` and `=`.
    pub(super) fn named(credentials: Credentials, name: &str, nonce: String) -> Self {
        let first_bare = format!("n={name},r={nonce}");
        Self { credentials, nonce, first_bare, progress: Progress::Begun }
    }

    /// The client's first message.
    pub fn first(&self) -> Vec<u8> {
        format!("{GS2_HEADER}{}", self.first_bare).into_bytes()
    }

    /// Takes the server's first message and gives the client's final one.
    ///
    /// With a password this takes the time of the rounds that the server asks for, at most [`super::MAX_ITERATIONS`].
    ///
    /// # Errors
    ///
    /// When the message is malformed, out of bounds, or answers another client; the exchange is over then.
    pub fn challenge(&mut self, server_first: &[u8]) -> Result<Vec<u8>, ScramError> {
        if !matches!(self.progress, Progress::Begun) {
            return Err(ScramError::Misused("a second challenge"));
        }
        self.progress = Progress::Failed;
        let (final_message, server_signature) = self.prove(server_first)?;
        self.progress = Progress::Proved { server_signature };
        Ok(final_message)
    }

    /// The client's final message, and the signature that the server has to answer with.
    fn prove(&self, server_first: &[u8]) -> Result<(Vec<u8>, [u8; KEY_LEN]), ScramError> {
        if !message::is_nonce(&self.nonce) {
            return Err(ScramError::Misused("the client's nonce is empty or not printable"));
        }
        let server_first = message::text(server_first)?;
        if server_first.starts_with("e=") {
            return Err(ScramError::RefusedByServer);
        }
        let mut attributes = Attributes::new(server_first);
        let nonce = attributes.expect('r', "the server's first message does not begin with a nonce")?;
        let salt = attributes.expect('s', "the server's first message has no salt after the nonce")?;
        let iterations = attributes.expect('i', "the server's first message has no iteration count")?;
        attributes.ignore_extensions()?;
        // The server has to have added to the nonce, or an old exchange could be played back.
        match nonce.strip_prefix(&self.nonce) {
            Some(added) if message::is_nonce(added) => {}
            _ => return Err(ScramError::NonceMismatch),
        }
        let salt =
            parse_salt(salt).ok_or(ScramError::Malformed("the salt is not base64 or out of bounds"))?;
        let iterations = parse_iterations(iterations).ok_or(ScramError::Iterations)?;

        let ClientKeys { client_key, server_key } = match &self.credentials {
            Credentials::Password(password) => ClientKeys::from_password(password, &salt, iterations),
            Credentials::Keys(keys) => keys.clone(),
        };
        let without_proof = format!("c={},r={nonce}", BASE64.encode(GS2_HEADER));
        let auth_message = format!("{},{server_first},{without_proof}", self.first_bare);
        let client_signature = hmac_sha256(&sha256(&client_key), &[auth_message.as_bytes()]);
        let proof = BASE64.encode(xor(client_key, &client_signature));
        let server_signature = hmac_sha256(&server_key, &[auth_message.as_bytes()]);
        Ok((format!("{without_proof},p={proof}").into_bytes(), server_signature))
    }

    /// Takes the server's final message: `Ok` means that the server knows the password's verifier.
    ///
    /// # Errors
    ///
    /// When the server's signature is wrong or missing, or the server reports an error.
    pub fn verify(&self, server_final: &[u8]) -> Result<(), ScramError> {
        let Progress::Proved { server_signature } = &self.progress else {
            return Err(ScramError::Misused("a server's final message before its challenge was met"));
        };
        let text = message::text(server_final)?;
        if text.starts_with("e=") {
            return Err(ScramError::RefusedByServer);
        }
        let mut attributes = Attributes::new(text);
        let signature =
            attributes.expect('v', "the server's final message does not begin with a signature")?;
        let signature =
            parse_key(signature).ok_or(ScramError::Malformed("the signature is not base64 of 32 bytes"))?;
        attributes.ignore_extensions()?;
        constant_time::verify_slices_are_equal(&signature, server_signature)
            .map_err(|_| ScramError::InvalidServerSignature)
    }
}

/// Shows no key and no nonce.
impl fmt::Debug for ClientExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientExchange").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}
