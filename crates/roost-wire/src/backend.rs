//! What a server says while a session begins: writers for the gateway's own words to a client, and a reader for those of
//! a Postgres behind it.
//!
//! Source: PostgreSQL documentation, "Message Formats".

use crate::error::ErrorFields;
use crate::frame::{FrameError, TransactionStatus};

/// Appends a frame whose body `write` makes.
fn frame(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    // Bodies are written from bounded values; one that is too long for the field would be refused by any reader.
    let len = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(start..start + 4) {
        field.copy_from_slice(&len.to_be_bytes());
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    // A NUL would end the string for its reader and shift everything behind it.
    out.extend(text.bytes().filter(|byte| *byte != 0));
    out.push(0);
}

/// AuthenticationOk.
pub fn authentication_ok(out: &mut Vec<u8>) {
    frame(out, b'R', |out| out.extend_from_slice(&0_i32.to_be_bytes()));
}

/// AuthenticationSASL with the mechanisms on offer, best first.
pub fn authentication_sasl(out: &mut Vec<u8>, mechanisms: &[&str]) {
    frame(out, b'R', |out| {
        out.extend_from_slice(&10_i32.to_be_bytes());
        mechanisms.iter().for_each(|mechanism| string(out, mechanism));
        out.push(0);
    });
}

/// AuthenticationSASLContinue with the server-first message.
pub fn sasl_continue(out: &mut Vec<u8>, data: &[u8]) {
    frame(out, b'R', |out| {
        out.extend_from_slice(&11_i32.to_be_bytes());
        out.extend_from_slice(data);
    });
}

/// AuthenticationSASLFinal with the server-final message.
pub fn sasl_final(out: &mut Vec<u8>, data: &[u8]) {
    frame(out, b'R', |out| {
        out.extend_from_slice(&12_i32.to_be_bytes());
        out.extend_from_slice(data);
    });
}

/// ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    frame(out, b'S', |out| {
        string(out, name);
        string(out, value);
    });
}

/// BackendKeyData: 4 bytes of key in protocol 3.0, 4 to 256 in 3.2.
pub fn backend_key_data(out: &mut Vec<u8>, pid: i32, key: &[u8]) {
    frame(out, b'K', |out| {
        out.extend_from_slice(&pid.to_be_bytes());
        out.extend_from_slice(key);
    });
}

/// ReadyForQuery.
pub fn ready_for_query(out: &mut Vec<u8>, status: TransactionStatus) {
    frame(out, b'Z', |out| out.push(status.to_byte()));
}

/// NegotiateProtocolVersion: the newest minor version on offer, and the `_pq_.` options that are not known.
pub fn negotiate_protocol_version(out: &mut Vec<u8>, minor: u16, unrecognized: &[&str]) {
    frame(out, b'v', |out| {
        out.extend_from_slice(&(u32::from(minor) | 3 << 16).to_be_bytes());
        out.extend_from_slice(&u32::try_from(unrecognized.len()).unwrap_or(u32::MAX).to_be_bytes());
        unrecognized.iter().for_each(|name| string(out, name));
    });
}

/// ErrorResponse.
pub fn error_response(out: &mut Vec<u8>, fields: &ErrorFields) {
    frame(out, b'E', |out| report(out, fields));
}

/// ErrorResponse of these fields, each with its type byte. No value may contain a NUL.
pub fn error_response_of(out: &mut Vec<u8>, fields: &[(u8, &[u8])]) {
    frame(out, b'E', |out| {
        for (tag, value) in fields {
            out.push(*tag);
            out.extend_from_slice(value);
            out.push(0);
        }
        out.push(0);
    });
}

/// NoticeResponse.
pub fn notice_response(out: &mut Vec<u8>, fields: &ErrorFields) {
    frame(out, b'N', |out| report(out, fields));
}

fn report(out: &mut Vec<u8>, fields: &ErrorFields) {
    let mut field = |tag: u8, text: &str| {
        out.push(tag);
        string(out, text);
    };
    field(b'S', fields.severity.as_str());
    field(b'V', fields.severity.as_str());
    field(b'C', fields.code.as_str());
    field(b'M', &fields.message);
    if let Some(detail) = &fields.detail {
        field(b'D', detail);
    }
    if let Some(hint) = &fields.hint {
        field(b'H', hint);
    }
    out.push(0);
}

/// A message of a server's start-up phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendMessage<'a> {
    /// AuthenticationOk.
    AuthenticationOk,
    /// AuthenticationSASL and its mechanisms.
    AuthenticationSasl(Vec<&'a str>),
    /// AuthenticationSASLContinue.
    SaslContinue(&'a [u8]),
    /// AuthenticationSASLFinal.
    SaslFinal(&'a [u8]),
    /// Another Authentication request, by its number.
    AuthenticationOther(i32),
    /// ParameterStatus.
    ParameterStatus {
        /// The parameter.
        name: &'a str,
        /// Its value.
        value: &'a str,
    },
    /// BackendKeyData.
    BackendKeyData {
        /// The server process.
        pid: i32,
        /// The secret key.
        key: &'a [u8],
    },
    /// ReadyForQuery.
    ReadyForQuery(TransactionStatus),
    /// ErrorResponse.
    Error(ErrorFields),
    /// NoticeResponse.
    Notice(ErrorFields),
    /// NegotiateProtocolVersion.
    NegotiateProtocolVersion,
    /// Something else, by its type byte.
    Other(u8),
}

impl<'a> BackendMessage<'a> {
    /// Reads the body of a frame.
    ///
    /// # Errors
    ///
    /// When the body is not what its type byte promises.
    pub fn parse(tag: u8, body: &'a [u8]) -> Result<Self, FrameError> {
        let malformed = |what| FrameError::Malformed { tag, what };
        Ok(match tag {
            b'R' => {
                let (kind, data) = integer(body).ok_or(malformed("no authentication type"))?;
                match kind {
                    0 => Self::AuthenticationOk,
                    10 => {
                        let mut mechanisms = Vec::new();
                        let mut rest = data;
                        while let Some((mechanism, after)) = c_string(rest) {
                            if mechanism.is_empty() {
                                break;
                            }
                            mechanisms.push(mechanism);
                            rest = after;
                        }
                        Self::AuthenticationSasl(mechanisms)
                    }
                    11 => Self::SaslContinue(data),
                    12 => Self::SaslFinal(data),
                    other => Self::AuthenticationOther(other),
                }
            }
            b'S' => {
                let (name, rest) = c_string(body).ok_or(malformed("no parameter name"))?;
                let (value, _) = c_string(rest).ok_or(malformed("no parameter value"))?;
                Self::ParameterStatus { name, value }
            }
            b'K' => {
                let (pid, key) = integer(body).ok_or(malformed("no process id"))?;
                if !(4..=256).contains(&key.len()) {
                    return Err(malformed("a key has 4 to 256 bytes"));
                }
                Self::BackendKeyData { pid, key }
            }
            b'Z' => match body {
                [status] => Self::ReadyForQuery(
                    TransactionStatus::from_byte(*status).ok_or(malformed("unknown transaction status"))?,
                ),
                _ => return Err(malformed("its body is not one byte")),
            },
            b'E' => Self::Error(ErrorFields::parse(body)),
            b'N' => Self::Notice(ErrorFields::parse(body)),
            b'v' => Self::NegotiateProtocolVersion,
            other => Self::Other(other),
        })
    }
}

/// A big-endian integer at the start of `bytes`, and what follows it.
pub(crate) fn integer(bytes: &[u8]) -> Option<(i32, &[u8])> {
    let (value, rest) = bytes.split_first_chunk::<4>()?;
    Some((i32::from_be_bytes(*value), rest))
}

/// A NUL-terminated UTF-8 string at the start of `bytes`, and what follows it.
pub(crate) fn c_string(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let text = std::str::from_utf8(bytes.get(..end)?).ok()?;
    Some((text, bytes.get(end + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Severity, SqlState};
    use crate::frame::whole;

    #[test]
    fn what_is_written_reads_back() {
        let fields = ErrorFields::fatal(SqlState::INVALID_PASSWORD, "no").with_detail("d").with_hint("h");
        let mut out = Vec::new();
        authentication_ok(&mut out);
        authentication_sasl(&mut out, &["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]);
        sasl_continue(&mut out, b"r=1");
        sasl_final(&mut out, b"v=1");
        parameter_status(&mut out, "TimeZone", "UTC");
        backend_key_data(&mut out, -7, &[1, 2, 3, 4]);
        ready_for_query(&mut out, TransactionStatus::Failed);
        error_response(&mut out, &fields);
        let mut messages = Vec::new();
        let mut rest = out.as_slice();
        while let Some((tag, body, len)) = whole(rest, 1000).unwrap() {
            messages.push(BackendMessage::parse(tag, body).unwrap());
            rest = &rest[len..];
        }
        assert_eq!(
            messages,
            [
                BackendMessage::AuthenticationOk,
                BackendMessage::AuthenticationSasl(vec!["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]),
                BackendMessage::SaslContinue(b"r=1"),
                BackendMessage::SaslFinal(b"v=1"),
                BackendMessage::ParameterStatus { name: "TimeZone", value: "UTC" },
                BackendMessage::BackendKeyData { pid: -7, key: &[1, 2, 3, 4] },
                BackendMessage::ReadyForQuery(TransactionStatus::Failed),
                BackendMessage::Error(fields),
            ]
        );
        assert!(rest.is_empty());
    }

    #[test]
    fn a_text_with_a_nul_cannot_shift_the_fields_behind_it() {
        let mut out = Vec::new();
        error_response(&mut out, &ErrorFields::fatal(SqlState::INTERNAL_ERROR, "a\0CXXXXX"));
        let (_, body, _) = whole(&out, 1000).unwrap().unwrap();
        let fields = ErrorFields::parse(body);
        assert_eq!((fields.code, fields.message.as_str()), (SqlState::INTERNAL_ERROR, "aCXXXXX"));
        assert_eq!(fields.severity, Severity::Fatal);
    }

    #[test]
    fn truncated_bodies_are_errors() {
        for (tag, body) in [
            (b'R', &b"\0\0"[..]),
            (b'S', b"a"),
            (b'S', b"a\0b"),
            (b'K', b"\0\0\0\x01ab"),
            (b'Z', b""),
            (b'Z', b"X"),
        ] {
            assert!(BackendMessage::parse(tag, body).is_err(), "{tag}");
        }
    }
}
