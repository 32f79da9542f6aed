//! What a client says besides queries: readers for its side of the SASL exchange, and writers for the few messages that
//! Roost sends to a server.
//!
//! Source: PostgreSQL documentation, "Message Formats" and "SASL Authentication".

use crate::backend::{c_string, integer};
use crate::frame::FrameError;

/// The type byte of password messages: SASL responses share it.
pub const PASSWORD: u8 = b'p';

/// A SASLInitialResponse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaslInitialResponse<'a> {
    /// The mechanism that the client chose.
    pub mechanism: &'a str,
    /// Its first message.
    pub data: &'a [u8],
}

/// Reads a SASLInitialResponse.
///
/// # Errors
///
/// When the frame is not one.
pub fn sasl_initial_response(tag: u8, body: &[u8]) -> Result<SaslInitialResponse<'_>, FrameError> {
    let malformed = |what| FrameError::Malformed { tag, what };
    if tag != PASSWORD {
        return Err(malformed("expected a SASL response"));
    }
    let (mechanism, rest) = c_string(body).ok_or(malformed("no mechanism"))?;
    let (len, data) = integer(rest).ok_or(malformed("no length"))?;
    if usize::try_from(len).is_ok_and(|len| len == data.len()) {
        Ok(SaslInitialResponse { mechanism, data })
    } else {
        Err(malformed("its length is not that of its data"))
    }
}

/// Reads a SASLResponse.
///
/// # Errors
///
/// When the frame is not one.
pub fn sasl_response(tag: u8, body: &[u8]) -> Result<&[u8], FrameError> {
    if tag == PASSWORD {
        Ok(body)
    } else {
        Err(FrameError::Malformed { tag, what: "expected a SASL response" })
    }
}

fn frame(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    let len = 4 + parts.iter().map(|part| part.len()).sum::<usize>();
    out.push(tag);
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// Appends a SASLInitialResponse.
pub fn write_sasl_initial_response(out: &mut Vec<u8>, mechanism: &str, data: &[u8]) {
    let len = u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes();
    frame(out, PASSWORD, &[mechanism.as_bytes(), &[0], &len, data]);
}

/// Appends a SASLResponse.
pub fn write_sasl_response(out: &mut Vec<u8>, data: &[u8]) {
    frame(out, PASSWORD, &[data]);
}

/// Appends a Query. A NUL in `text` would end it early for the server, so it must have none.
pub fn write_query(out: &mut Vec<u8>, text: &str) {
    frame(out, b'Q', &[text.as_bytes(), &[0]]);
}

/// Appends a Terminate.
pub fn write_terminate(out: &mut Vec<u8>) {
    frame(out, b'X', &[]);
}

/// Appends a Sync.
pub fn write_sync(out: &mut Vec<u8>) {
    frame(out, b'S', &[]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::whole;

    #[test]
    fn sasl_messages_read_back() {
        let mut out = Vec::new();
        write_sasl_initial_response(&mut out, "SCRAM-SHA-256", b"n,,n=,r=abc");
        write_sasl_response(&mut out, b"c=biws");
        let (tag, body, len) = whole(&out, 1000).unwrap().unwrap();
        let initial = sasl_initial_response(tag, body).unwrap();
        assert_eq!((initial.mechanism, initial.data), ("SCRAM-SHA-256", &b"n,,n=,r=abc"[..]));
        let (tag, body, _) = whole(&out[len..], 1000).unwrap().unwrap();
        assert_eq!(sasl_response(tag, body).unwrap(), b"c=biws");
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        for body in [&b""[..], b"M\0", b"M\0\0\0\0\x05abc", b"M\0\xff\xff\xff\xff", b"\xff\0\0\0\0\0"] {
            assert!(sasl_initial_response(b'p', body).is_err(), "{body:?}");
        }
        assert!(sasl_initial_response(b'Q', b"M\0\0\0\0\0").is_err());
    }
}
