//! Errors of Postgres whose reason Roost knows better: writes that are refused while the database is read-only for want of
//! storage are told as what they are, and a shutdown is recognised.
//!
//! Postgres knows only that the transaction is read-only (25006). The client is to read that storage is short (53100),
//! which bound was reached, and the way out. So while a database is short of storage, and only then, its session's relay
//! reads ErrorResponse frames. Such a frame is withheld until it is whole; everything else passes as it is.
//!
//! A backend that is shut down says no more than that (57P01). The relay asks here whether a last frame says it, while the
//! instance is taken away, and only then.

use roost_lifecycle::Shortage;
use roost_wire::backend;
use roost_wire::error::{SqlState, raw_fields};
use roost_wire::frame::{self, Header, MAX_FRAME_LEN};

use super::ERROR;
use crate::shortage;

/// The longest ErrorResponse that is read, in bytes: a refusal has some hundred. A longer one passes as it is.
const LONGEST: usize = 16 * 1024;

/// The refusals of one session.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// The beginning of a frame: less than its header, or less than a whole ErrorResponse.
    withheld: Vec<u8>,
}

impl Refusals {
    #[inline]
    pub(super) fn is_withholding(&self) -> bool {
        !self.withheld.is_empty()
    }

    /// What the client is told in place of `bytes`, the next ones of the server. `left` of them belong to a frame that the
    /// client has the beginning of; `None` means that not even that frame's header is whole.
    pub(super) fn retell(
        &mut self,
        left: Option<usize>,
        bytes: &[u8],
        shortage: Option<Shortage>,
    ) -> Vec<u8> {
        let left = if self.is_withholding() { Some(0) } else { left };
        let mut stream = std::mem::take(&mut self.withheld);
        stream.extend_from_slice(bytes);
        // The shortage began in the middle of a header; the frames after it are read from the next bytes on.
        let Some(left) = left else { return stream };
        let (begun, mut rest) = stream.split_at(left.min(stream.len()));
        let mut told = begun.to_vec();
        while !rest.is_empty() {
            let (tag, len) = match frame::header(rest, MAX_FRAME_LEN) {
                Ok(Some(Header { tag, len })) => (tag, len),
                Ok(None) => break,
                // The relay's own scan of these bytes ends the session.
                Err(_) => return stream,
            };
            let is_read = tag == ERROR && len <= LONGEST;
            if is_read && rest.len() < len {
                break;
            }
            let (frame, after) = rest.split_at(len.min(rest.len()));
            match shortage.filter(|_| is_read && is_refusal(body(frame))) {
                Some(shortage) => rewrite(&mut told, body(frame), shortage),
                None => told.extend_from_slice(frame),
            }
            rest = after;
        }
        self.withheld = rest.to_vec();
        told
    }
}

fn body(frame: &[u8]) -> &[u8] {
    frame.get(5..).unwrap_or_default()
}

fn has_field(body: &[u8], tag: u8, value: &str) -> bool {
    raw_fields(body).any(|field| field == (tag, value.as_bytes()))
}

fn is_refusal(body: &[u8]) -> bool {
    has_field(body, b'C', SqlState::READ_ONLY_TRANSACTION.as_str())
}

/// Whether this is one whole ErrorResponse, by which a backend says that it is shut down.
pub(super) fn is_shutdown(frame: &[u8]) -> bool {
    let body = body(frame);
    matches!(frame::header(frame, MAX_FRAME_LEN), Ok(Some(Header { tag: ERROR, len })) if len == frame.len())
        && has_field(body, b'V', "FATAL")
        && has_field(body, b'C', SqlState::ADMIN_SHUTDOWN.as_str())
}

/// Appends a refusal with its bound's code, message and hint. Postgres' own message becomes the detail: it says what was
/// refused, also where the client itself had asked for a read-only transaction.
fn rewrite(out: &mut Vec<u8>, body: &[u8], shortage: Shortage) {
    let warning = shortage::warning(shortage);
    let mut fields: Vec<(u8, &[u8])> = Vec::new();
    for (tag, value) in raw_fields(body) {
        match tag {
            b'C' => fields.push((tag, warning.code.as_str().as_bytes())),
            b'M' => fields.extend([(b'M', warning.message.as_bytes()), (b'D', value)]),
            b'D' | b'H' => {}
            _ => fields.push((tag, value)),
        }
    }
    fields.extend(warning.hint.as_deref().map(|hint| (b'H', hint.as_bytes())));
    backend::error_response_of(out, &fields);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use roost_wire::backend::BackendMessage;
    use roost_wire::error::{ErrorFields, Severity};
    use roost_wire::frame::{Scanner, Side, TransactionStatus};

    use super::*;

    const SHORTAGE: Option<Shortage> = Some(Shortage::Limit { bytes: 96 << 20 });

    /// An ErrorResponse as Postgres words it.
    fn error(code: &str, message: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let fields = [
            (b'S', "FEHLER"),
            (b'V', "ERROR"),
            (b'C', code),
            (b'M', message),
            (b'F', "utility.c"),
            (b'L', "414"),
            (b'R', "PreventCommandIfReadOnly"),
        ];
        backend::error_response_of(&mut out, &fields.map(|(tag, text)| (tag, text.as_bytes())));
        out
    }

    fn refusal() -> Vec<u8> {
        error("25006", "cannot execute INSERT in a read-only transaction")
    }

    fn ready() -> Vec<u8> {
        let mut out = Vec::new();
        backend::ready_for_query(&mut out, TransactionStatus::Idle);
        out
    }

    /// A frame of 300 bytes whose body looks like refusals.
    fn row() -> Vec<u8> {
        let body: Vec<u8> = refusal().into_iter().cycle().take(295).collect();
        [&b"D"[..], &299_u32.to_be_bytes(), &body].concat()
    }

    /// Bytes on their way through a relay, cut into slices.
    fn relayed(slices: &[&[u8]], shortage: impl Fn(usize) -> Option<Shortage>) -> Vec<u8> {
        let (mut refusals, mut scanner) = (Refusals::default(), Scanner::new(Side::Backend));
        let mut told = Vec::new();
        for (number, slice) in slices.iter().enumerate() {
            let shortage = shortage(number);
            if shortage.is_some() || refusals.is_withholding() {
                told.extend(refusals.retell(scanner.left_of_frame(), slice, shortage));
            } else {
                told.extend_from_slice(slice);
            }
            scanner.feed(slice, MAX_FRAME_LEN, |_| ()).unwrap();
        }
        assert!(!refusals.is_withholding() || !scanner.at_boundary());
        told
    }

    fn messages(bytes: &[u8]) -> Vec<BackendMessage<'_>> {
        let mut messages = Vec::new();
        let mut rest = bytes;
        while let Some((tag, body, len)) = frame::whole(rest, MAX_FRAME_LEN).unwrap() {
            messages.push(BackendMessage::parse(tag, body).unwrap());
            rest = &rest[len..];
        }
        assert!(rest.is_empty());
        messages
    }

    #[test]
    fn a_refusal_names_the_bound_its_value_its_setting_and_the_way_out() {
        let told = relayed(&[&refusal()], |_| SHORTAGE);
        let fields: Vec<(u8, String)> = raw_fields(body(&told))
            .map(|(tag, value)| (tag, String::from_utf8(value.to_vec()).unwrap()))
            .collect();
        let tags: Vec<u8> = fields.iter().map(|(tag, _)| *tag).collect();
        assert_eq!(tags, b"SVCMDFLRH");
        let warning = shortage::warning(SHORTAGE.unwrap());
        assert!(warning.message.contains("storage limit of 96 MiB (storage)"), "{}", warning.message);
        assert!(warning.hint.as_ref().is_some_and(|hint| hint.contains("BEGIN READ WRITE")));
        assert_eq!(
            ErrorFields::parse(body(&told)),
            ErrorFields {
                severity: Severity::Error,
                code: SqlState::DISK_FULL,
                message: warning.message,
                detail: Some("cannot execute INSERT in a read-only transaction".to_owned()),
                hint: warning.hint,
            }
        );
        assert_eq!(fields[0].1, "FEHLER");
        assert_eq!(fields[7].1, "PreventCommandIfReadOnly");
    }

    #[test]
    fn a_refusal_is_found_however_the_stream_is_cut() {
        let stream = [row(), refusal(), ready(), row(), refusal(), refusal(), ready()].concat();
        let whole = relayed(&[&stream], |_| SHORTAGE);
        let is_disk_full = |message: &&BackendMessage<'_>| matches!(message, BackendMessage::Error(fields) if fields.code == SqlState::DISK_FULL);
        assert_eq!(messages(&whole).iter().filter(is_disk_full).count(), 3);
        assert_eq!(messages(&whole).len(), 7);
        assert_eq!(whole[..300], row());
        for cut in 1..stream.len() {
            let (one, other) = stream.split_at(cut);
            assert_eq!(relayed(&[one, other], |_| SHORTAGE), whole, "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(relayed(&bytes, |_| SHORTAGE), whole);
    }

    #[test]
    fn a_shortage_that_begins_or_ends_anywhere_leaves_whole_frames() {
        let stream = [row(), refusal(), ready(), error("42601", "syntax error"), refusal(), ready()].concat();
        for cut in 1..stream.len() {
            let (one, other) = stream.split_at(cut);
            for short in [0, 1] {
                let told = relayed(&[one, other], |number| SHORTAGE.filter(|_| number == short));
                let tags: Vec<u8> = messages(&told)
                    .iter()
                    .map(|message| match message {
                        BackendMessage::Error(_) => b'E',
                        BackendMessage::ReadyForQuery(_) => b'Z',
                        _ => b'D',
                    })
                    .collect();
                assert_eq!(tags, b"DEZEEZ", "cut at {cut}, short in {short}");
            }
        }
    }

    #[test]
    fn other_errors_and_those_that_are_too_long_pass_as_they_are() {
        let long = error("25006", &"x".repeat(LONGEST));
        let stream = [error("42601", "25006"), error("53100", "full"), long, ready()].concat();
        for size in [1, 7, 4096, stream.len()] {
            let slices: Vec<&[u8]> = stream.chunks(size).collect();
            assert_eq!(relayed(&slices, |_| SHORTAGE), stream, "slices of {size}");
        }
    }

    #[test]
    fn an_error_without_an_end_is_not_kept_without_end() {
        let mut refusals = Refusals::default();
        let header = [&b"E"[..], &0x3fff_0000_u32.to_be_bytes()].concat();
        assert_eq!(refusals.retell(Some(0), &header, SHORTAGE), header);
        assert!(!refusals.is_withholding());
        let half = refusal();
        let half = &half[..half.len() / 2];
        assert!(refusals.retell(Some(0), half, SHORTAGE).is_empty());
        assert_eq!(refusals.withheld, half);
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_without_a_shortage_none_change(
            slices in prop::collection::vec(prop::collection::vec(prop_oneof![Just(0), Just(b'E'), any::<u8>()], 0..30), 0..20),
            left in 0_usize..40,
        ) {
            for shortage in [None, SHORTAGE] {
                let mut refusals = Refusals::default();
                let mut told = Vec::new();
                for (number, slice) in slices.iter().enumerate() {
                    told.extend(refusals.retell(if number == 0 { Some(left) } else { Some(0) }, slice, shortage));
                }
                prop_assert!(refusals.withheld.len() <= LONGEST);
                told.extend(refusals.withheld);
                prop_assert!(shortage.is_some() || told == slices.concat());
            }
        }
    }
}
