//! The grammar that all SCRAM messages share: attributes `a=value`, separated by commas (RFC 5802 section 7).

use super::{MAX_MESSAGE_LEN, ScramError};

/// A message as text: within the limit, UTF-8, and without NUL, which no value may hold.
pub(super) fn text(message: &[u8]) -> Result<&str, ScramError> {
    if message.len() > MAX_MESSAGE_LEN {
        return Err(ScramError::TooLong { len: message.len() });
    }
    let text = std::str::from_utf8(message).map_err(|_| ScramError::Malformed("not UTF-8"))?;
    if text.contains('\0') {
        return Err(ScramError::Malformed("a NUL byte"));
    }
    Ok(text)
}

/// Reads the attributes of a message, in order.
#[derive(Debug, Clone)]
pub(super) struct Attributes<'a> {
    /// What has not been read; `None` after the last attribute.
    rest: Option<&'a str>,
}

impl<'a> Attributes<'a> {
    pub(super) const fn new(text: &'a str) -> Self {
        Self { rest: Some(text) }
    }

    /// The value of the next attribute, which has to be `name`; `what` says what is missing otherwise.
    ///
    /// An `m=` in its place is told apart: it means that the peer insists on an extension.
    pub(super) fn expect(&mut self, name: char, what: &'static str) -> Result<&'a str, ScramError> {
        match self.next()? {
            Some((found, value)) if found == name => Ok(value),
            Some(('m', _)) => Err(ScramError::MandatoryExtension),
            _ => Err(ScramError::Malformed(what)),
        }
    }

    /// The next attribute, or `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(char, &'a str)>, ScramError> {
        let Some(text) = self.rest else { return Ok(None) };
        let (attribute, rest) = match text.split_once(',') {
            Some((attribute, rest)) => (attribute, Some(rest)),
            None => (text, None),
        };
        self.rest = rest;
        let mut characters = attribute.chars();
        match (characters.next(), characters.next()) {
            (Some(name), Some('=')) if name.is_ascii_alphabetic() => Ok(Some((name, characters.as_str()))),
            _ => Err(ScramError::Malformed("an attribute is not a letter, `=` and a value")),
        }
    }

    /// Reads what is left: extensions, which are ignored unless they are mandatory.
    pub(super) fn ignore_extensions(mut self) -> Result<(), ScramError> {
        while let Some((name, _)) = self.next()? {
            if name == 'm' {
                return Err(ScramError::MandatoryExtension);
            }
        }
        Ok(())
    }
}

/// Whether this can be a nonce: printable ASCII without a comma, and not empty.
pub(super) fn is_nonce(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
}
