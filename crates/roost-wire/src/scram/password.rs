//! From a password to the salted password: SASLprep and PBKDF2.

use std::borrow::Cow;
use std::num::NonZeroU32;

use aws_lc_rs::pbkdf2;

use super::KEY_LEN;

/// `Hi(Normalize(password), salt, i)` of RFC 5802 section 2.2. Less than one iteration counts as one.
pub(super) fn salted(password: &str, salt: &[u8], iterations: u32) -> [u8; KEY_LEN] {
    let rounds = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
    let mut salted = [0; KEY_LEN];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, prepare(password).as_bytes(), &mut salted);
    salted
}

/// SASLprep (RFC 4013) with the leniency of Postgres' `pg_saslprep`: ASCII is taken as it is, control characters
/// included, and so is a password that the profile prohibits, instead of being refused.
///
/// Passwords that Roost makes are ASCII. A client that prepares another password differently, or not at all, computes
/// another key and is refused, here as with Postgres.
fn prepare(password: &str) -> Cow<'_, str> {
    if password.is_ascii() {
        return Cow::Borrowed(password);
    }
    match stringprep::saslprep(password) {
        // Postgres prohibits a password of which nothing is left.
        Ok(prepared) if !prepared.is_empty() => prepared,
        _ => Cow::Borrowed(password),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_passwords_are_taken_as_they_are() {
        for password in ["", "pencil", "a b", "tab\there", "bell\u{7}", "del\u{7f}"] {
            assert_eq!(prepare(password), password);
        }
    }

    /// The examples of RFC 4013 section 3, and of its tables.
    #[test]
    fn other_passwords_are_normalised() {
        assert_eq!(prepare("I\u{ad}X"), "IX");
        assert_eq!(prepare("\u{aa}"), "a");
        assert_eq!(prepare("\u{2168}"), "IX");
        assert_eq!(prepare("no\u{a0}break"), "no break");
        assert_eq!(prepare("e\u{301}"), "\u{e9}");
    }

    #[test]
    fn what_the_profile_prohibits_is_taken_as_it_is() {
        // A control character beside non-ASCII; right-to-left text that ends in a digit; nothing left but a soft hyphen;
        // a code point that Unicode 3.2 did not assign.
        for password in ["\u{e9}\u{7}", "\u{627}1", "\u{ad}", "\u{e9}\u{1f600}"] {
            assert_eq!(prepare(password), password);
        }
    }
}
