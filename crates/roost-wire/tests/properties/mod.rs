//! What has to hold for whatever bytes a peer sends. The property tests and the fuzz targets drive these same checks: the
//! former with bytes that are nearly right, the latter with bytes that coverage leads to.
//!
//! Each check takes any bytes and panics, by an assertion, when an invariant does not hold.

use roost_wire::backend::BackendMessage;
use roost_wire::frame::{self, FrameError, Scanner, Seen, Side, TransactionStatus};
use roost_wire::frontend;
use roost_wire::owed::OwedReplies;
use roost_wire::scram::{
    ChannelBinding, ClientExchange, ClientKeys, Credentials, MECHANISM, MECHANISM_PLUS, ServerFirst, Verifier,
};
use roost_wire::startup::{self, FirstPacket, MAX_STARTUP_LEN, OptionWord};

/// The limit on a frame here, in bytes: low, so that both sides of it are met.
const MAX_FRAME_LEN: usize = 4096;

/// A first packet is read whole or not at all, within its bytes, and reads the same when it is written again.
pub fn startup(bytes: &[u8]) {
    let Ok(Some((packet, len))) = startup::parse(bytes) else { return };
    assert!((8..=MAX_STARTUP_LEN.min(bytes.len())).contains(&len), "{len} of {} bytes", bytes.len());
    let (own, _) = bytes.split_at(len);
    assert_eq!(startup::parse(own), Ok(Some((packet.clone(), len))), "what follows makes no difference");
    let (short, _) = bytes.split_at(len - 1);
    assert_eq!(startup::parse(short), Ok(None), "one byte is missing");

    let mut written = Vec::new();
    match &packet {
        FirstPacket::Ssl => startup::write_ssl_request(&mut written),
        FirstPacket::Gss => return,
        FirstPacket::Cancel { pid, key } => startup::write_cancel(&mut written, *pid, key),
        FirstPacket::Startup(message) => {
            let protocol_options = message.protocol_options().count();
            startup::write_startup(&mut written, message.version, message.parameters());
            if protocol_options > 0 {
                return;
            }
        }
    }
    assert_eq!(written, own);
}

/// A stream of a client's frames is walked the same however it is cut.
pub fn frontend_stream(bytes: &[u8]) {
    stream(Side::Frontend, bytes);
    for_whole_frames(bytes, |tag, body| {
        if let Ok(initial) = frontend::sasl_initial_response(tag, body) {
            let mut written = Vec::new();
            frontend::write_sasl_initial_response(&mut written, initial.mechanism, initial.data);
            let read = frame::whole(&written, usize::MAX);
            assert_eq!(read, Ok(Some((tag, body, written.len()))));
        }
        assert_eq!(frontend::sasl_response(tag, body).is_ok(), tag == frontend::PASSWORD);
    });
}

/// A stream of a server's frames is walked the same however it is cut.
pub fn backend_stream(bytes: &[u8]) {
    stream(Side::Backend, bytes);
    for_whole_frames(bytes, |tag, body| {
        let _ = BackendMessage::parse(tag, body);
    });
}

/// Calls `on` for each frame that is there as a whole, up to the first that is not.
fn for_whole_frames(bytes: &[u8], mut on: impl FnMut(u8, &[u8])) {
    let mut rest = bytes;
    while let Ok(Some((tag, body, len))) = frame::whole(rest, MAX_FRAME_LEN) {
        on(tag, body);
        rest = rest.get(len..).unwrap_or_default();
    }
}

/// The first byte says how the others are cut.
fn stream(side: Side, bytes: &[u8]) {
    let Some((&cut, bytes)) = bytes.split_first() else { return };
    let expected = walk(side, bytes);
    assert_eq!(scan(side, [bytes]), expected, "in one slice");

    let cut_up = scan(side, bytes.chunks(usize::from(cut).max(1)));
    assert_eq!(cut_up.seen, expected.seen, "in slices of {cut} bytes");
    if expected.end == End::Refused {
        // A ReadyForQuery in pieces is looked at when all of it is there.
        assert_ne!(cut_up.end, End::Boundary, "in slices of {cut} bytes");
    } else {
        assert_eq!(cut_up.end, expected.end, "in slices of {cut} bytes");
    }
}

/// What was seen in a stream, and where it ended.
#[derive(Debug, PartialEq, Eq)]
struct Walk {
    seen: Vec<Seen>,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Boundary,
    WithinFrame,
    Refused,
}

/// What a scanner sees. The replies owed are kept along with it.
fn scan<'a>(side: Side, slices: impl IntoIterator<Item = &'a [u8]>) -> Walk {
    let mut scanner = Scanner::new(side);
    let mut owed = OwedReplies::new();
    let mut seen = Vec::new();
    let fed: Result<(), FrameError> = slices.into_iter().try_for_each(|slice| {
        scanner.feed(slice, MAX_FRAME_LEN, |event| {
            seen.push(event);
            match (side, event) {
                (Side::Frontend, Seen::Frame { tag, .. }) => owed.frontend(tag),
                (Side::Frontend, Seen::Ready(_)) => {}
                (Side::Backend, event) => owed.backend(event),
            }
            let _ = owed.is_idle();
        })
    });
    let end = match fed {
        Err(_) => End::Refused,
        Ok(()) if scanner.at_boundary() => End::Boundary,
        Ok(()) => End::WithinFrame,
    };
    Walk { seen, end }
}

/// What a scanner should see, by the description of the protocol: slow and plain.
fn walk(side: Side, bytes: &[u8]) -> Walk {
    let mut seen = Vec::new();
    let mut rest = bytes;
    let end = loop {
        let &[tag, a, b, c, d, ref body @ ..] = rest else {
            break if rest.is_empty() { End::Boundary } else { End::WithinFrame };
        };
        let len = match usize::try_from(i32::from_be_bytes([a, b, c, d])) {
            Ok(len) if (4..MAX_FRAME_LEN).contains(&len) => len + 1,
            _ => break End::Refused,
        };
        if side == Side::Backend && tag == b'Z' {
            let Some(&status) = body.first() else { break End::WithinFrame };
            match TransactionStatus::from_byte(status) {
                Some(status) if len == 6 => seen.push(Seen::Ready(status)),
                _ => break End::Refused,
            }
        } else {
            seen.push(Seen::Frame { tag, len });
        }
        match rest.get(len..) {
            Some(after) => rest = after,
            None => break End::WithinFrame,
        }
    };
    Walk { seen, end }
}

/// Nobody gets in by guessing, in either direction. A NUL in `bytes` parts a peer's first message from its second.
pub fn scram(bytes: &[u8]) {
    let mut messages = bytes.splitn(2, |byte| *byte == 0);
    let first = messages.next().unwrap_or_default();
    let second = messages.next().unwrap_or_default();

    let verifier = Verifier { iterations: 4096, salt: vec![1; 16], stored_key: [2; 32], server_key: [3; 32] };
    for (mechanism, binding) in [
        (MECHANISM, ChannelBinding::Unavailable),
        (MECHANISM, ChannelBinding::Available(b"certificate")),
        (MECHANISM_PLUS, ChannelBinding::Available(b"certificate")),
        (MECHANISM_PLUS, ChannelBinding::Unavailable),
    ] {
        let server = ServerFirst::new(verifier.clone(), binding, "server".to_owned());
        let Ok((server, answer)) = server.client_first(mechanism, first) else { continue };
        assert!(mechanism == MECHANISM || binding != ChannelBinding::Unavailable, "PLUS was not offered");
        assert!(answer.starts_with(b"r=") && answer.ends_with(b"server,s=AQEBAQEBAQEBAQEBAQEBAQ==,i=4096"));
        assert!(server.client_final(second).is_err(), "verified without the password");
    }

    let keys = ClientKeys { client_key: [4; 32], server_key: [5; 32] };
    let mut client = ClientExchange::new(Credentials::Keys(keys), "client".to_owned());
    let _ = client.challenge(first);
    assert!(client.verify(second).is_err(), "a server verified without the password");

    if let Some(verifier) = text(first).and_then(|text| text.parse::<Verifier>().ok()) {
        assert_eq!(verifier.to_string().parse(), Ok(verifier));
    }
}

/// What is understood of the `options` parameter means the same to Postgres when it is handed on.
pub fn options(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let words = startup::parse_options(text);
    let handed_on: Vec<_> =
        words.into_iter().filter(|word| !matches!(word, OptionWord::Endpoint(_))).collect();
    let written = startup::write_options(&handed_on);
    assert_eq!(startup::parse_options(&written), handed_on, "{written:?}");
}

/// The bytes as text that a NUL-terminated string can hold.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}
