//! Secrets of connections: made here, shown once, and kept by nobody but their owner.

use roost_wire::scram::Verifier;

use crate::resource::SecretText;

/// Characters of a secret: none of them needs escaping in a URL, a shell or a connection string.
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Characters of a secret; 40 of 62 kinds are 238 bits.
const LENGTH: usize = 40;
/// Iterations of a verifier. Postgres' own default; a secret this random gains nothing from more.
const ITERATIONS: u32 = 4096;
/// Bytes of a verifier's salt, as Postgres has them.
const SALT_BYTES: usize = 16;

/// A new secret, and the SCRAM-SHA-256 verifier that it is checked with, in Postgres' text form.
///
/// # Errors
///
/// When the operating system's random generator fails, or the runtime is going down.
pub(crate) async fn generate() -> std::io::Result<(SecretText, String)> {
    // Thousands of hashes: too long for a thread that serves connections.
    tokio::task::spawn_blocking(|| {
        let secret = random_text()?;
        let mut salt = [0_u8; SALT_BYTES];
        fill(&mut salt)?;
        let verifier = Verifier::from_password(&secret, &salt, ITERATIONS).to_string();
        Ok((SecretText::new(secret), verifier))
    })
    .await
    .map_err(std::io::Error::other)?
}

/// A random number for a new cluster.
pub(crate) fn random_u64() -> std::io::Result<u64> {
    let mut bytes = [0_u8; 8];
    fill(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn fill(bytes: &mut [u8]) -> std::io::Result<()> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| std::io::Error::other("the random generator failed"))
}

/// Characters drawn evenly: bytes beyond the largest multiple of 62 are drawn again.
fn random_text() -> std::io::Result<String> {
    const FAIR: u8 = 248;
    let mut text = String::with_capacity(LENGTH);
    let mut bytes = [0_u8; LENGTH];
    while text.len() < LENGTH {
        fill(&mut bytes)?;
        let characters = bytes.iter().filter(|byte| **byte < FAIR);
        let characters = characters.filter_map(|byte| ALPHABET.get(usize::from(byte % 62)));
        text.extend(characters.take(LENGTH - text.len()).map(|byte| char::from(*byte)));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_secret_is_long_plain_and_never_the_same() {
        let (secret, verifier) = generate().await.unwrap();
        assert_eq!(secret.expose().len(), LENGTH);
        assert!(secret.expose().bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert!(!verifier.contains(secret.expose()));
        assert!(verifier.starts_with("SCRAM-SHA-256$4096:"), "{verifier}");
        assert_ne!(secret, generate().await.unwrap().0);
    }

    #[tokio::test]
    async fn the_verifier_is_that_of_the_secret() {
        let (secret, verifier) = generate().await.unwrap();
        let parsed: Verifier = verifier.parse().unwrap();
        assert_eq!(parsed, Verifier::from_password(secret.expose(), &parsed.salt, ITERATIONS));
        assert_ne!(parsed, Verifier::from_password("another", &parsed.salt, ITERATIONS));
    }
}
