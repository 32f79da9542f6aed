//! The one place that speaks to io_uring: many sends in one system call, none of which outlives it.

#![expect(
    unsafe_code,
    reason = "the kernel is handed descriptors and addresses, which only the caller can vouch for"
)]

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use io_uring::{IoUring, opcode, types};
use rustix::net::SendFlags;

/// Sends in one system call.
const ENTRIES: u32 = 256;

/// Never wait for room, and no SIGPIPE when the reader is gone.
const FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// A submission and a completion queue that are empty between two calls of [`send`](Ring::send).
pub(super) struct Ring {
    /// `None` once the kernel has refused it.
    ring: Option<IoUring>,
}

impl Ring {
    /// Asks the kernel for the queues.
    ///
    /// # Errors
    ///
    /// When the kernel has no io_uring or this process may not use it.
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().setup_single_issuer().setup_defer_taskrun().build(ENTRIES);
        // Kernels before 6.1 do not know of those two, which are but faster.
        Ok(Self { ring: Some(ring.or_else(|_| IoUring::builder().dontfork().build(ENTRIES))?) })
    }

    /// One that the kernel has refused.
    #[cfg(test)]
    pub(super) const fn refused() -> Self {
        Self { ring: None }
    }

    /// Sends each piece to its socket, as much of it as there is room for, and tells what came of it by position: how many
    /// bytes were sent, or why none. All descriptors must be open.
    pub(super) fn send<'a>(
        &mut self,
        mut pieces: impl ExactSizeIterator<Item = (RawFd, &'a [u8])>,
        mut told: impl FnMut(usize, io::Result<usize>),
    ) {
        let mut first = 0;
        while pieces.len() > 1 && self.ring.is_some() {
            let some = pieces.by_ref().take(ENTRIES as usize);
            first += self.send_together(first, some, &mut told);
        }
        // For a single one the common call costs less.
        for (position, (socket, bytes)) in (first..).zip(pieces) {
            told(position, send_alone(socket, bytes));
        }
    }

    /// Sends at most [`ENTRIES`] pieces, of which the first has the position `first`; returns how many.
    fn send_together<'a>(
        &mut self,
        first: usize,
        pieces: impl Iterator<Item = (RawFd, &'a [u8])>,
        told: &mut impl FnMut(usize, io::Result<usize>),
    ) -> usize {
        let Some(ring) = &mut self.ring else { return 0 };
        let mut open = Vec::with_capacity(ENTRIES as usize);
        for (socket, bytes) in pieces {
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let entry = opcode::Send::new(types::Fd(socket), bytes.as_ptr(), length)
                .flags(FLAGS.bits().cast_signed())
                .build()
                .user_data(open.len() as u64);
            // SAFETY: the descriptor is open, by the caller's word, and the bytes are borrowed for longer than the kernel
            // uses them: it answers a send that does not wait before the call that hands it over returns, and this
            // function returns when all answers are read, or when the kernel has refused to take the entries.
            let is_open = unsafe { ring.submission().push(&entry) }.is_ok();
            if !is_open {
                // There is room for as many as are sent together; if there were none, the piece would be sent later.
                told(first + open.len(), Err(io::ErrorKind::WouldBlock.into()));
            }
            open.push(is_open);
        }
        let mut unanswered = open.iter().filter(|is_open| **is_open).count();
        while unanswered > 0 {
            let submitted = ring.submit_and_wait(unanswered);
            for answer in ring.completion() {
                let position = answer.user_data() as usize;
                if let Some(is_open @ true) = open.get_mut(position) {
                    *is_open = false;
                    unanswered -= 1;
                    told(first + position, bytes_or_error(answer.result()));
                }
            }
            match submitted.map_err(|error| (error.kind(), error)) {
                Ok(_)
                | Err((
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy,
                    _,
                )) => {}
                // It has taken nothing that it has not answered, and gets nothing any more.
                Err((_, error)) => {
                    self.ring = None;
                    for (position, _) in open.iter().enumerate().filter(|(_, is_open)| **is_open) {
                        told(first + position, Err(error.kind().into()));
                    }
                    break;
                }
            }
        }
        open.len()
    }
}

fn send_alone(socket: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the caller of `Ring::send` vouches that the descriptor is open, and nothing keeps it for longer than this.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    loop {
        match rustix::net::send(socket, bytes, FLAGS) {
            Err(rustix::io::Errno::INTR) => {}
            sent => return Ok(sent?),
        }
    }
}

/// What a completion says (io_uring_enter(2)): a count, or a negated errno.
fn bytes_or_error(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()))
}
