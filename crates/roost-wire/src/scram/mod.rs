//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, both sides, as Postgres speaks them.
//!
//! The gateway is the server towards clients ([`ServerFirst`]) and may be the client towards a server
//! ([`ClientExchange`]). Neither does I/O: what goes in are the bodies of the SASL messages that the peer sent, what comes
//! out are the bodies to send. Messages are refused above [`MAX_MESSAGE_LEN`] and read strictly; nothing a peer sends can
//! make this module panic or work longer than [`MAX_ITERATIONS`] rounds.
//!
//! Invariants: a [`Verified`] exists only where a client proved that it knows the password (or the client key) behind a
//! [`Verifier`]; proofs and signatures are compared in constant time; and no type here shows a key through `Debug`.
//!
//! Source: RFC 5802 (SCRAM), RFC 7677 (SHA-256), RFC 5929 section 4 (`tls-server-end-point`), and PostgreSQL
//! documentation, "SASL Authentication".

use aws_lc_rs::{digest, hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

mod client;
mod message;
mod password;
mod server;
mod verifier;

pub use client::{ClientExchange, Credentials};
pub use server::{ChannelBinding, ServerFinal, ServerFirst, Verified};
pub use verifier::{ClientKeys, Verifier, VerifierError};

/// The mechanism without channel binding.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding, offered over TLS only.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// The longest message that is read, in bytes, in either direction.
pub const MAX_MESSAGE_LEN: usize = 4096;
/// The most PBKDF2 rounds that are accepted, in a verifier or from a server.
pub const MAX_ITERATIONS: u32 = 1_000_000;
/// The longest salt that is accepted, in bytes.
pub const MAX_SALT_LEN: usize = 256;
/// The PBKDF2 rounds that Postgres uses unless told otherwise, and RFC 7677 recommends as the least.
pub const DEFAULT_ITERATIONS: u32 = 4096;

/// The length of a SHA-256 hash, and of each key, in bytes.
const KEY_LEN: usize = digest::SHA256_OUTPUT_LEN;
/// The random bytes in a nonce: the number Postgres uses, which fills base64 without padding.
const NONCE_LEN: usize = 18;

/// Why an exchange ended without success.
///
/// A server shows the client no more than "password authentication failed" for [`Self::InvalidProof`]; every other
/// variant of the server side is a protocol violation, and its text gives away nothing that the client did not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// A message is not what the grammar of RFC 5802 section 7 asks for.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// A message is too long.
    #[error("SCRAM message of {len} bytes is over the limit of {MAX_MESSAGE_LEN} bytes")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The client selected a mechanism that was not offered.
    #[error("the client selected a SASL authentication mechanism that was not offered")]
    UnsupportedMechanism,
    /// The client names a channel binding other than `tls-server-end-point`.
    #[error("unsupported SCRAM channel-binding type")]
    UnsupportedChannelBinding,
    /// The mechanism and the message disagree on whether there is channel binding.
    #[error("the SCRAM message does not agree with the mechanism on channel binding")]
    ChannelBindingDisagrees,
    /// The client believes that the server has no channel binding, although it was offered: somebody removed the offer
    /// on the way (RFC 5802 section 6).
    #[error("the client supports SCRAM channel binding but thinks the server does not")]
    ChannelBindingDowngrade,
    /// The client is bound to another channel than the one it speaks through.
    #[error("SCRAM channel binding check failed")]
    ChannelBindingMismatch,
    /// The client wants to act as somebody else than it authenticates as.
    #[error("the client uses an authorization identity, which is not supported")]
    AuthorizationIdentity,
    /// The peer demands an extension (`m=`); none exists.
    #[error("the peer requires an unsupported SCRAM extension")]
    MandatoryExtension,
    /// The peer's nonce is not the one agreed on.
    #[error("the SCRAM nonce does not match")]
    NonceMismatch,
    /// A server asks for a number of rounds out of bounds.
    #[error("a SCRAM iteration count has to be between 1 and {MAX_ITERATIONS}")]
    Iterations,
    /// The client does not know the password.
    #[error("the SCRAM proof is wrong")]
    InvalidProof,
    /// The server does not know the password, or not the one the client has.
    #[error("the server's SCRAM signature is wrong")]
    InvalidServerSignature,
    /// The server ended the exchange with an error (`e=`).
    #[error("the server refused the SCRAM exchange")]
    RefusedByServer,
    /// A caller used the steps of an exchange in the wrong order, or a nonce that is none.
    #[error("misused SCRAM exchange: {0}")]
    Misused(&'static str),
}

/// A nonce for either side: 18 random bytes in base64.
pub fn fresh_nonce() -> String {
    let mut bytes = [0; NONCE_LEN];
    rand::fill(&mut bytes).expect("the process-wide random generator does not fail");
    BASE64.encode(bytes)
}

/// A salt for [`Verifier::from_password`], of the length that Postgres uses.
pub fn fresh_salt() -> [u8; 16] {
    let mut salt = [0; 16];
    rand::fill(&mut salt).expect("the process-wide random generator does not fail");
    salt
}

/// SHA-256.
fn sha256(data: &[u8]) -> [u8; KEY_LEN] {
    array(digest::digest(&digest::SHA256, data).as_ref())
}

/// HMAC-SHA-256 over the concatenation of `parts`.
fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; KEY_LEN] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    array(context.sign().as_ref())
}

/// A hash as an array.
fn array(hash: &[u8]) -> [u8; KEY_LEN] {
    hash.try_into().expect("SHA-256 yields 32 bytes")
}

/// Both arrays, bit by bit exclusive-or: turns a client key into a proof and back (RFC 5802 section 3).
fn xor(mut left: [u8; KEY_LEN], right: &[u8; KEY_LEN]) -> [u8; KEY_LEN] {
    left.iter_mut().zip(right).for_each(|(left, right)| *left ^= right);
    left
}

#[cfg(test)]
mod tests;
