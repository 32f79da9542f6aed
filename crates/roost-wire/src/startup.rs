//! The first packets of a connection, which have no type byte: requests for TLS or GSS encryption, cancel requests, and
//! the startup message.
//!
//! Source: PostgreSQL documentation, "Start-up", "Canceling Requests in Progress", "Message Formats".

use crate::backend::{c_string, integer};

/// The longest first packet, in bytes (Postgres' `MAX_STARTUP_PACKET_LENGTH`).
pub const MAX_STARTUP_LEN: usize = 10_000;

const CANCEL_REQUEST: i32 = (1234 << 16) | 5678;
const SSL_REQUEST: i32 = (1234 << 16) | 5679;
const GSS_REQUEST: i32 = (1234 << 16) | 5680;

/// A protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProtocolVersion {
    /// 3 for everything that Roost speaks.
    pub major: u16,
    /// 0, or 2 since Postgres 18.
    pub minor: u16,
}

impl ProtocolVersion {
    /// What every client speaks.
    pub const V3_0: Self = Self { major: 3, minor: 0 };
    /// Postgres 18: longer cancel keys.
    pub const V3_2: Self = Self { major: 3, minor: 2 };
}

/// The first thing that a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstPacket<'a> {
    /// SSLRequest.
    Ssl,
    /// GSSENCRequest.
    Gss,
    /// CancelRequest.
    Cancel {
        /// The process id that the client was given.
        pid: i32,
        /// The key that it was given, 4 to 256 bytes.
        key: &'a [u8],
    },
    /// StartupMessage.
    Startup(StartupMessage<'a>),
}

/// Why a first packet was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// Its length is impossible or over the limit.
    #[error("a startup packet of {0} bytes (at most {MAX_STARTUP_LEN})")]
    Length(i64),
    /// The protocol's major version is not 3.
    #[error("unsupported protocol version {}.{}: Roost speaks 3.0 and 3.2", .0.major, .0.minor)]
    Version(ProtocolVersion),
    /// A cancel request without a proper key.
    #[error("a cancel key has 4 to 256 bytes")]
    CancelKey,
    /// Parameters that do not end, or are not UTF-8.
    #[error("malformed startup parameters: {0}")]
    Parameters(&'static str),
}

/// A StartupMessage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupMessage<'a> {
    /// The protocol version that the client asks for.
    pub version: ProtocolVersion,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> StartupMessage<'a> {
    /// All parameters in order, without the protocol's own (`_pq_.`).
    pub fn parameters(&self) -> impl Iterator<Item = (&'a str, &'a str)> + '_ {
        self.parameters.iter().copied().filter(|(name, _)| !is_protocol_option(name))
    }

    /// A parameter's value; the last one where it is given twice, as in Postgres.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.parameters.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    /// The names of protocol options (`_pq_.`), none of which Roost knows.
    pub fn protocol_options(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.parameters.iter().map(|(name, _)| *name).filter(|name| is_protocol_option(name))
    }
}

fn is_protocol_option(name: &str) -> bool {
    name.starts_with("_pq_.")
}

/// Reads the first packet at the start of `buf`, and how many bytes it takes. `None` means that more are needed.
///
/// # Errors
///
/// When it is malformed, too long, or of another protocol version.
pub fn parse(buf: &[u8]) -> Result<Option<(FirstPacket<'_>, usize)>, StartupError> {
    let Some((claimed, rest)) = integer(buf) else { return Ok(None) };
    let len = match usize::try_from(claimed) {
        Ok(len) if (8..=MAX_STARTUP_LEN).contains(&len) => len,
        _ => return Err(StartupError::Length(i64::from(claimed))),
    };
    let Some(body) = rest.get(..len - 4) else { return Ok(None) };
    let Some((code, body)) = integer(body) else { return Ok(None) };
    let packet = match code {
        SSL_REQUEST if body.is_empty() => FirstPacket::Ssl,
        GSS_REQUEST if body.is_empty() => FirstPacket::Gss,
        CANCEL_REQUEST => {
            let (pid, key) = integer(body).ok_or(StartupError::CancelKey)?;
            if !(4..=256).contains(&key.len()) {
                return Err(StartupError::CancelKey);
            }
            FirstPacket::Cancel { pid, key }
        }
        _ => {
            let [a, b, c, d] = code.to_be_bytes();
            let version =
                ProtocolVersion { major: u16::from_be_bytes([a, b]), minor: u16::from_be_bytes([c, d]) };
            if version.major != 3 {
                return Err(StartupError::Version(version));
            }
            FirstPacket::Startup(StartupMessage { version, parameters: parameters(body)? })
        }
    };
    Ok(Some((packet, len)))
}

fn parameters(body: &[u8]) -> Result<Vec<(&str, &str)>, StartupError> {
    let broken = StartupError::Parameters("a name or value is not NUL-terminated UTF-8");
    let mut parameters = Vec::new();
    let mut rest = body;
    loop {
        let (name, after) = c_string(rest).ok_or_else(|| broken.clone())?;
        if name.is_empty() {
            return if after.is_empty() {
                Ok(parameters)
            } else {
                Err(StartupError::Parameters("bytes follow the terminator"))
            };
        }
        let (value, after) = c_string(after).ok_or_else(|| broken.clone())?;
        parameters.push((name, value));
        rest = after;
    }
}

/// Appends a StartupMessage.
pub fn write_startup<'a>(
    out: &mut Vec<u8>,
    version: ProtocolVersion,
    parameters: impl IntoIterator<Item = (&'a str, &'a str)>,
) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&version.major.to_be_bytes());
    out.extend_from_slice(&version.minor.to_be_bytes());
    for text in parameters.into_iter().flat_map(|(name, value)| [name, value]) {
        out.extend(text.bytes().filter(|byte| *byte != 0));
        out.push(0);
    }
    out.push(0);
    let len = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(start..start + 4) {
        field.copy_from_slice(&len.to_be_bytes());
    }
}

/// Appends an SSLRequest.
pub fn write_ssl_request(out: &mut Vec<u8>) {
    out.extend_from_slice(&8_i32.to_be_bytes());
    out.extend_from_slice(&SSL_REQUEST.to_be_bytes());
}

/// Appends a CancelRequest.
pub fn write_cancel(out: &mut Vec<u8>, pid: i32, key: &[u8]) {
    let len = u32::try_from(12 + key.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&CANCEL_REQUEST.to_be_bytes());
    out.extend_from_slice(&pid.to_be_bytes());
    out.extend_from_slice(key);
}

/// What the startup parameter `options` says, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionWord {
    /// `-c name=value` or `--name=value`; hyphens in the name stand for underscores.
    Setting {
        /// The setting's name.
        name: String,
        /// Its value.
        value: String,
    },
    /// `endpoint=NAME`: which database is meant. It is Roost's, and not handed on.
    Endpoint(String),
    /// Another command-line switch of Postgres, which is handed on as it is.
    Other(String),
}

/// Splits the startup parameter `options` as Postgres does (`pg_split_opts`): at white space, with a backslash taking the
/// next character as it is.
pub fn parse_options(options: &str) -> Vec<OptionWord> {
    let mut words = split(options).into_iter().peekable();
    let mut parsed = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word.as_str() {
            // Without `=` the two stay what they are, for Postgres to complain about.
            "-c" => words.next_if(|next| next.contains('=')),
            _ => word.strip_prefix("-c").or_else(|| word.strip_prefix("--")).map(str::to_owned),
        };
        parsed.push(match setting.as_deref().and_then(|setting| setting.split_once('=')) {
            Some((name, value)) => {
                OptionWord::Setting { name: name.replace('-', "_"), value: value.to_owned() }
            }
            None => match word.strip_prefix("endpoint=") {
                Some(name) => OptionWord::Endpoint(name.to_owned()),
                None => OptionWord::Other(word),
            },
        });
    }
    parsed
}

/// Puts words together again so that Postgres splits them the same way.
pub fn write_options(words: &[OptionWord]) -> String {
    let mut text = String::new();
    let mut add = |word: &str| {
        if !text.is_empty() {
            text.push(' ');
        }
        for character in word.chars() {
            if is_space(character) || character == '\\' {
                text.push('\\');
            }
            text.push(character);
        }
    };
    for word in words {
        match word {
            OptionWord::Setting { name, value } => {
                add("-c");
                add(&format!("{name}={value}"));
            }
            OptionWord::Other(word) => add(word),
            OptionWord::Endpoint(_) => {}
        }
    }
    text
}

/// `isspace()` in the C locale, which has the vertical tab that [`char::is_ascii_whitespace`] leaves out.
const fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

fn split(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = options.chars();
    while let Some(character) = characters.next() {
        match character {
            space if is_space(space) => words.extend(word.take()),
            // A backslash with nothing behind it is no word.
            '\\' => {
                if let Some(next) = characters.next() {
                    word.get_or_insert_default().push(next);
                }
            }
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        write_startup(&mut out, ProtocolVersion::V3_0, parameters.iter().copied());
        out
    }

    #[test]
    fn a_startup_message_reads_back() {
        let bytes = startup(&[("user", "a"), ("database", "b"), ("_pq_.x", "1"), ("user", "c")]);
        let Some((FirstPacket::Startup(message), len)) = parse(&bytes).unwrap() else { panic!() };
        assert_eq!(len, bytes.len());
        assert_eq!(message.get("user"), Some("c"));
        assert_eq!(message.parameters().count(), 3);
        assert_eq!(message.protocol_options().collect::<Vec<_>>(), ["_pq_.x"]);
    }

    #[test]
    fn every_prefix_needs_more() {
        let bytes = startup(&[("user", "a")]);
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), Ok(None), "{end}");
        }
    }

    #[test]
    fn requests_are_told_apart() {
        let mut ssl = Vec::new();
        write_ssl_request(&mut ssl);
        assert_eq!(parse(&ssl), Ok(Some((FirstPacket::Ssl, 8))));
        let mut cancel = Vec::new();
        write_cancel(&mut cancel, 7, &[9; 32]);
        assert_eq!(parse(&cancel), Ok(Some((FirstPacket::Cancel { pid: 7, key: &[9; 32] }, 44))));
        assert!(matches!(parse(b"\0\0\0\x08\x04\xd2\x16\x30"), Ok(Some((FirstPacket::Gss, 8)))));
    }

    #[test]
    fn bounds_hold() {
        for bytes in
            [&b"\0\0\0\x07...."[..], b"\0\0\x27\x11....", b"\xff\xff\xff\xff....", b"GET / HTTP/1.1\r\n"]
        {
            assert!(matches!(parse(bytes), Err(StartupError::Length(_))), "{bytes:?}");
        }
        assert!(matches!(parse(b"\0\0\0\x09\0\x02\0\0\0"), Err(StartupError::Version(_))));
        assert!(matches!(parse(b"\0\0\0\x0a\0\x03\0\0a\0"), Err(StartupError::Parameters(_))));
        assert!(matches!(parse(b"\0\0\0\x0d\0\x03\0\0\xff\0a\0\0"), Err(StartupError::Parameters(_))));
        assert!(matches!(parse(b"\0\0\0\x0b\0\x03\0\0\0ab"), Err(StartupError::Parameters(_))));
        let mut short = Vec::new();
        write_cancel(&mut short, 7, &[1, 2, 3]);
        assert_eq!(parse(&short), Err(StartupError::CancelKey));
    }

    #[test]
    fn options_are_split_as_postgres_splits_them() {
        let words = parse_options(r"-c a=1 -cb=2 --c-d=3\ 4 endpoint=shop -E   --e=x\\y");
        let setting =
            |name: &str, value: &str| OptionWord::Setting { name: name.into(), value: value.into() };
        assert_eq!(
            words,
            [
                setting("a", "1"),
                setting("b", "2"),
                setting("c_d", "3 4"),
                OptionWord::Endpoint("shop".into()),
                OptionWord::Other("-E".into()),
                setting("e", r"x\y"),
            ]
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn options_survive_being_written(name in "[a-z_]{1,8}", value in "[ a-z\\\\=\t\x0b]{0,12}") {
            let words = [OptionWord::Setting { name, value }];
            prop_assert_eq!(parse_options(&write_options(&words)), words);
        }
    }
}
