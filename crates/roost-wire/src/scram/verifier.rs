//! What each side keeps instead of a password.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;

use super::{BASE64, DEFAULT_ITERATIONS, KEY_LEN, MAX_ITERATIONS, MAX_SALT_LEN, MECHANISM};
use super::{hmac_sha256, password, sha256};

/// The salt's length in a mocked verifier: what Postgres uses for real ones.
const MOCK_SALT_LEN: usize = 16;

/// What a server keeps of a password: enough to check a client's proof, not enough to make one.
///
/// Its text is what Postgres keeps in `pg_authid.rolpassword`:
/// `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`, the last three in base64.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    /// PBKDF2 rounds, 1 to [`MAX_ITERATIONS`].
    pub iterations: u32,
    /// The salt, 1 to [`MAX_SALT_LEN`] bytes.
    pub salt: Vec<u8>,
    /// `StoredKey` of RFC 5802 section 3: the hash of the client key.
    pub stored_key: [u8; 32],
    /// `ServerKey` of RFC 5802 section 3, by which a server proves itself.
    pub server_key: [u8; 32],
}

impl Verifier {
    /// Derives the verifier of a password. Takes the time of `iterations` rounds; less than one counts as one.
    pub fn from_password(password: &str, salt: &[u8], iterations: u32) -> Self {
        let ClientKeys { client_key, server_key } = ClientKeys::from_password(password, salt, iterations);
        Self {
            iterations: iterations.max(1),
            salt: salt.to_vec(),
            stored_key: sha256(&client_key),
            server_key,
        }
    }

    /// A verifier for a user that does not exist: the same for each name under the same `secret`, so that a client
    /// cannot tell from the salt whether a user exists (RFC 5802 section 7).
    ///
    /// No proof satisfies it: that would take a preimage of its stored key, which is no hash of anything known.
    pub fn mock(user: &str, secret: &[u8; 32]) -> Self {
        let derive = |purpose: &str| hmac_sha256(secret, &[purpose.as_bytes(), b"\0", user.as_bytes()]);
        Self {
            iterations: DEFAULT_ITERATIONS,
            salt: derive("salt").into_iter().take(MOCK_SALT_LEN).collect(),
            stored_key: derive("stored key"),
            server_key: derive("server key"),
        }
    }
}

/// Shows what a server tells any client that asks, and no key.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { iterations, salt, stored_key, server_key } = self;
        let [salt, stored, server] =
            [BASE64.encode(salt), BASE64.encode(stored_key), BASE64.encode(server_key)];
        write!(f, "{MECHANISM}${iterations}:{salt}${stored}:{server}")
    }
}

/// A text that is not a SCRAM verifier. It never repeats the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifierError {
    /// It is not of the form, for example because it is an MD5 hash or a password in plain text.
    #[error("not of the form SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>")]
    Form,
    /// The iteration count is no number or out of bounds.
    #[error("the iteration count has to be between 1 and {MAX_ITERATIONS}")]
    Iterations,
    /// The salt is not base64 or out of bounds.
    #[error("the salt has to be base64 of 1 to {MAX_SALT_LEN} bytes")]
    Salt,
    /// A key is not base64 of 32 bytes.
    #[error("the keys have to be base64 of {KEY_LEN} bytes each")]
    Key,
}

impl FromStr for Verifier {
    type Err = VerifierError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || {
            let rest = text.strip_prefix(MECHANISM)?.strip_prefix('$')?;
            let (parameters, keys) = rest.split_once('$')?;
            Some((parameters.split_once(':')?, keys.split_once(':')?))
        };
        let ((iterations, salt), (stored_key, server_key)) = form().ok_or(VerifierError::Form)?;
        Ok(Self {
            iterations: parse_iterations(iterations).ok_or(VerifierError::Iterations)?,
            salt: parse_salt(salt).ok_or(VerifierError::Salt)?,
            stored_key: parse_key(stored_key).ok_or(VerifierError::Key)?,
            server_key: parse_key(server_key).ok_or(VerifierError::Key)?,
        })
    }
}

/// A decimal number of rounds (`posit-number` of RFC 5802 section 7) within bounds.
pub(super) fn parse_iterations(text: &str) -> Option<u32> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|iterations| (1..=MAX_ITERATIONS).contains(iterations))
}

/// A salt in base64, within bounds.
pub(super) fn parse_salt(text: &str) -> Option<Vec<u8>> {
    // Four characters of base64 for three bytes: what is longer is not worth decoding.
    if text.len() > MAX_SALT_LEN.div_ceil(3) * 4 {
        return None;
    }
    BASE64.decode(text).ok().filter(|salt| (1..=MAX_SALT_LEN).contains(&salt.len()))
}

/// A key, proof or signature in base64.
pub(super) fn parse_key(text: &str) -> Option<[u8; KEY_LEN]> {
    if text.len() > KEY_LEN.div_ceil(3) * 4 {
        return None;
    }
    BASE64.decode(text).ok()?.try_into().ok()
}

/// What a client can keep instead of a password: enough to log in wherever the same salt and rounds are in use.
///
/// As secret as the password itself.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientKeys {
    /// `ClientKey` of RFC 5802 section 3.
    pub client_key: [u8; 32],
    /// `ServerKey` of RFC 5802 section 3, by which the server's answer is checked.
    pub server_key: [u8; 32],
}

impl ClientKeys {
    /// Derives the keys of a password. Takes the time of `iterations` rounds; less than one counts as one.
    pub fn from_password(password: &str, salt: &[u8], iterations: u32) -> Self {
        let salted = password::salted(password, salt, iterations);
        Self {
            client_key: hmac_sha256(&salted, &[b"Client Key"]),
            server_key: hmac_sha256(&salted, &[b"Server Key"]),
        }
    }
}

/// Shows no key.
impl fmt::Debug for ClientKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientKeys").finish_non_exhaustive()
    }
}
