//! Frames: a type byte, a big-endian length that counts itself, a body.
//!
//! A relay passes most bytes through unread. [`Scanner`] walks the frame headers of one direction in whatever slices the
//! socket delivers, and copies nothing but headers that are split across slices.
//!
//! Source: PostgreSQL documentation, "Message Formats".

/// The bytes before a frame's body: type and length.
const HEADER_LEN: usize = 5;
/// The backend's ReadyForQuery.
const READY_FOR_QUERY: u8 = b'Z';

/// The largest frame that Postgres itself would send or accept (`MaxAllocSize`, just under 1 GiB), header included.
pub const MAX_FRAME_LEN: usize = 0x3fff_ffff;

/// A frame that cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length does not even count itself.
    #[error("frame '{}' has an impossible length of {len} bytes", .tag.escape_ascii())]
    TooShort {
        /// Its type byte.
        tag: u8,
        /// The length it claims.
        len: i64,
    },
    /// The length is over the limit.
    #[error("frame '{}' of {len} bytes is over the limit of {max} bytes", .tag.escape_ascii())]
    TooLong {
        /// Its type byte.
        tag: u8,
        /// The length it claims.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A body is not what its type byte promises.
    #[error("frame '{}' is malformed: {what}", .tag.escape_ascii())]
    Malformed {
        /// Its type byte.
        tag: u8,
        /// What is wrong.
        what: &'static str,
    },
}

/// A frame's type, and its length with the type byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The type byte.
    pub tag: u8,
    /// The whole frame's length in bytes: type, length field and body.
    pub len: usize,
}

/// Reads the header at the start of `buf`. `None` means that more bytes are needed.
///
/// # Errors
///
/// When the length is below its own size or the frame is longer than `max_len` bytes.
#[inline]
pub fn header(buf: &[u8], max_len: usize) -> Result<Option<Header>, FrameError> {
    let Some((&[tag, a, b, c, d], _)) = buf.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let claimed = i32::from_be_bytes([a, b, c, d]);
    let len = match usize::try_from(claimed) {
        Ok(len) if len >= 4 => len + 1,
        _ => return Err(FrameError::TooShort { tag, len: i64::from(claimed) }),
    };
    if len > max_len {
        return Err(FrameError::TooLong { tag, len, max: max_len });
    }
    Ok(Some(Header { tag, len }))
}

/// A frame's type, its body, and how many bytes it takes as a whole.
pub type Whole<'a> = (u8, &'a [u8], usize);

/// A whole frame at the start of `buf`. `None` means that more bytes are needed.
///
/// # Errors
///
/// As [`header`].
pub fn whole(buf: &[u8], max_len: usize) -> Result<Option<Whole<'_>>, FrameError> {
    let Some(Header { tag, len }) = header(buf, max_len)? else { return Ok(None) };
    Ok(buf.get(HEADER_LEN..len).map(|body| (tag, body, len)))
}

/// The transaction status that ReadyForQuery carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransactionStatus {
    /// Not in a transaction (`I`).
    #[default]
    Idle,
    /// In a transaction (`T`).
    InTransaction,
    /// In a failed transaction (`E`).
    Failed,
}

impl TransactionStatus {
    /// The byte on the wire.
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::InTransaction => b'T',
            Self::Failed => b'E',
        }
    }

    /// From the byte on the wire.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::InTransaction),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }
}

/// What a [`Scanner`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The header of a frame.
    Frame {
        /// The type byte.
        tag: u8,
        /// The whole frame's length in bytes.
        len: usize,
    },
    /// A ReadyForQuery of the backend, whole.
    Ready(TransactionStatus),
}

/// Which side's frames a [`Scanner`] walks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What a client sends.
    Frontend,
    /// What a server sends; `Z` is reported as [`Seen::Ready`].
    Backend,
}

/// Walks the frames of one direction of a connection.
#[derive(Debug, Clone)]
pub struct Scanner {
    side: Side,
    /// Bytes of the current frame's body that are still to come.
    remaining: usize,
    /// A header, or ReadyForQuery, that was split across slices.
    partial: [u8; HEADER_LEN + 1],
    partial_len: usize,
}

impl Scanner {
    /// A scanner at a frame boundary.
    pub const fn new(side: Side) -> Self {
        Self { side, remaining: 0, partial: [0; HEADER_LEN + 1], partial_len: 0 }
    }

    /// Whether the bytes so far end where a frame ends.
    #[inline]
    pub const fn at_boundary(&self) -> bool {
        self.remaining == 0 && self.partial_len == 0
    }

    /// How many bytes are still to come of the frame that has begun; `None` inside a header, which says it.
    pub const fn left_of_frame(&self) -> Option<usize> {
        match self.partial_len {
            0 => Some(self.remaining),
            // A ReadyForQuery without its status.
            HEADER_LEN => Some(1),
            _ => None,
        }
    }

    /// Takes the next bytes of the stream and reports each frame once.
    ///
    /// # Errors
    ///
    /// When a length is impossible or over `max_len` bytes, or a ReadyForQuery carries no status. The scanner is of no
    /// use after that.
    #[inline]
    pub fn feed(&mut self, bytes: &[u8], max_len: usize, mut on: impl FnMut(Seen)) -> Result<(), FrameError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.remaining > 0 {
                let step = self.remaining.min(rest.len());
                self.remaining -= step;
                rest = rest.get(step..).unwrap_or_default();
            } else if self.partial_len > 0 {
                rest = self.complete(rest, max_len, &mut on)?;
            } else {
                let Some(Header { tag, len }) = header(rest, max_len)? else {
                    self.keep(rest);
                    return Ok(());
                };
                if tag == READY_FOR_QUERY && self.side == Side::Backend {
                    let Some(&status) = rest.get(HEADER_LEN) else {
                        self.keep(rest);
                        return Ok(());
                    };
                    on(ready(status, len)?);
                } else {
                    on(Seen::Frame { tag, len });
                }
                match rest.get(len..) {
                    Some(after) => rest = after,
                    None => {
                        self.remaining = len - rest.len();
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) {
        for (slot, byte) in self.partial.iter_mut().zip(bytes) {
            *slot = *byte;
        }
        self.partial_len = bytes.len();
    }

    /// Goes on with a split header; returns what follows the bytes that it took.
    fn complete<'a>(
        &mut self,
        bytes: &'a [u8],
        max_len: usize,
        on: &mut impl FnMut(Seen),
    ) -> Result<&'a [u8], FrameError> {
        let [tag, ..] = self.partial;
        let is_ready = tag == READY_FOR_QUERY && self.side == Side::Backend;
        let wanted = if is_ready { HEADER_LEN + 1 } else { HEADER_LEN };
        let mut taken = 0;
        for (slot, byte) in
            self.partial.iter_mut().skip(self.partial_len).zip(bytes).take(wanted - self.partial_len)
        {
            *slot = *byte;
            taken += 1;
        }
        self.partial_len += taken;
        if self.partial_len == wanted
            && let Some(Header { tag, len }) = header(&self.partial, max_len)?
        {
            if is_ready {
                let [.., status] = self.partial;
                on(ready(status, len)?);
            } else {
                on(Seen::Frame { tag, len });
            }
            self.remaining = len - wanted;
            self.partial_len = 0;
        }
        Ok(bytes.get(taken..).unwrap_or_default())
    }
}

fn ready(status: u8, len: usize) -> Result<Seen, FrameError> {
    if len != HEADER_LEN + 1 {
        return Err(FrameError::Malformed { tag: READY_FOR_QUERY, what: "its body is not one byte" });
    }
    TransactionStatus::from_byte(status)
        .map(Seen::Ready)
        .ok_or(FrameError::Malformed { tag: READY_FOR_QUERY, what: "unknown transaction status" })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(side: Side, slices: &[&[u8]]) -> Result<(Vec<Seen>, bool), FrameError> {
        let mut scanner = Scanner::new(side);
        let mut seen = Vec::new();
        for slice in slices {
            scanner.feed(slice, 1000, |event| seen.push(event))?;
        }
        Ok((seen, scanner.at_boundary()))
    }

    #[test]
    fn frames_are_seen_as_soon_as_their_header_is() {
        let (seen, boundary) = scan(Side::Frontend, &[b"Q\0\0\0\x08ab"]).unwrap();
        assert_eq!(seen, [Seen::Frame { tag: b'Q', len: 9 }]);
        assert!(!boundary);
    }

    #[test]
    fn a_ready_for_query_carries_its_status() {
        let (seen, boundary) = scan(Side::Backend, &[b"C\0\0\0\x04Z\0\0\0\x05", b"T"]).unwrap();
        assert_eq!(seen, [Seen::Frame { tag: b'C', len: 5 }, Seen::Ready(TransactionStatus::InTransaction)]);
        assert!(boundary);
    }

    #[test]
    fn what_is_left_of_a_frame_is_known_once_its_header_is() {
        let bytes = b"C\0\0\0\x06abZ\0\0\0\x05I";
        let mut scanner = Scanner::new(Side::Backend);
        let mut left = vec![scanner.left_of_frame()];
        for byte in bytes {
            scanner.feed(&[*byte], 1000, |_| ()).unwrap();
            left.push(scanner.left_of_frame());
        }
        let header = [None; 4];
        let wanted = [&[Some(0)], &header[..], &[Some(2), Some(1), Some(0)], &header, &[Some(1), Some(0)]];
        assert_eq!(left, wanted.concat());
    }

    #[test]
    fn impossible_lengths_are_refused() {
        assert!(matches!(scan(Side::Frontend, &[b"Q\0\0\0\x03"]), Err(FrameError::TooShort { len: 3, .. })));
        assert!(matches!(
            scan(Side::Frontend, &[b"Q\xff\xff\xff\xff"]),
            Err(FrameError::TooShort { len: -1, .. })
        ));
        assert!(matches!(
            scan(Side::Frontend, &[b"Q\x7f\xff", b"\xff\xff"]),
            Err(FrameError::TooLong { .. })
        ));
        assert!(scan(Side::Backend, &[b"Z\0\0\0\x05X"]).is_err());
        assert!(scan(Side::Backend, &[b"Z\0\0\0\x04", b"X"]).is_err());
    }

    fn frames() -> impl Strategy<Value = Vec<u8>> {
        let status = prop_oneof![Just(b'I'), Just(b'T'), Just(b'E')];
        let frame = prop_oneof![
            (prop::sample::select(b"QSDXpBEdc".to_vec()), prop::collection::vec(any::<u8>(), 0..40))
                .prop_map(|(tag, body)| {
                    let len = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
                    [vec![tag], len.to_vec(), body].concat()
                }),
            status.prop_map(|status| vec![b'Z', 0, 0, 0, 5, status]),
        ];
        prop::collection::vec(frame, 0..30).prop_map(|frames| frames.concat())
    }

    proptest! {
        #[test]
        fn how_a_stream_is_cut_makes_no_difference(bytes in frames(), cuts in prop::collection::vec(0_usize..200, 0..20)) {
            let whole = scan(Side::Backend, &[&bytes]).unwrap();
            prop_assert!(whole.1);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut slices = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                slices.push(&bytes[from..cut]);
                from = cut;
            }
            prop_assert_eq!(scan(Side::Backend, &slices).unwrap(), whole);
        }

        #[test]
        fn no_bytes_panic(slices in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 0..20)) {
            let slices: Vec<&[u8]> = slices.iter().map(Vec::as_slice).collect();
            let _ = scan(Side::Backend, &slices);
            let _ = scan(Side::Frontend, &slices);
        }
    }
}
