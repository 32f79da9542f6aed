//! The relay: bytes between a client and its server session, as they are (protocol: "Message Flow").
//!
//! One future per session moves bytes both ways. For each direction there is at most one chunk on its way: it is read,
//! its frame headers are looked at, and it is written; only when all of it is written is the next one read. So a slow
//! reader stops the other side (back-pressure), a session's memory is bounded by two buffers, and an idle session has
//! none.
//!
//! Invariants:
//! - no byte of a request goes to the server without the activity lease, and the lease is given back as soon as the
//!   server owes nothing;
//! - bytes reach each side in order, and none is lost or made up, except that the refusal of a write for want of storage
//!   is reworded, and that Roost's reason for a shutdown takes the place of Postgres' word that there is one; an error of
//!   Roost's own is written only between two frames of the server;
//! - what costs something per packet is the two system calls, the scan of the headers, and the lease.

mod end;
mod refusal;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use roost_pool::{Hold, Socket};
use roost_wire::frame::{MAX_FRAME_LEN, Scanner, Seen, Side, TransactionStatus};
use roost_wire::owed::OwedReplies;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

pub(crate) use end::{End, Finished};

use crate::buffer::Buffer;
use crate::interrupt::{Interrupt, Watch};
use crate::metrics::Metrics;
use crate::traffic::Traffic;
use refusal::Refusals;

/// The tag of Terminate.
const TERMINATE: u8 = b'X';
/// The tag of ErrorResponse.
const ERROR: u8 = b'E';

/// A chunk of bytes on its way.
#[derive(Debug)]
struct Chunk {
    buffer: Buffer,
    sent: usize,
    filled: usize,
}

impl Chunk {
    const fn new(buffer: Buffer, filled: usize) -> Self {
        Self { buffer, sent: 0, filled }
    }

    fn of(bytes: Vec<u8>) -> Self {
        Self { sent: 0, filled: bytes.len(), buffer: bytes.into() }
    }

    #[inline]
    fn rest(&self) -> &[u8] {
        self.buffer.get(self.sent..self.filled).unwrap_or_default()
    }
}

/// What interrupts the flow of bytes.
enum Step {
    /// The database is frozen and the client has sent something.
    Thaw,
    End(End),
}

/// A session between a client and a server, both of which owe nothing at the beginning.
pub(crate) struct Relay<C, H> {
    client: C,
    server: Socket,
    hold: H,
    watch: Watch,
    traffic: Arc<Traffic>,
    metrics: Metrics,
    thaw_deadline: Duration,

    owed: OwedReplies,
    from_client: Option<Chunk>,
    client_frames: Scanner,
    from_server: Option<Chunk>,
    server_frames: Scanner,
    refusals: Refusals,
    /// The server takes no more bytes; what it has said is still to be read.
    server_deaf: bool,
    /// The client has said Terminate.
    leaving: bool,
    /// The length of the server's latest frame in bytes if it was an error, otherwise 0.
    last_error: usize,
    /// The session ends as soon as it is idle.
    draining: bool,
}

impl<C, H> Relay<C, H>
where
    C: AsyncRead + AsyncWrite + Unpin,
    H: Hold,
{
    /// Puts a client and a server together. The hold's activity lease is given back when the relay starts to run.
    pub(crate) fn new(
        client: C,
        server: Socket,
        hold: H,
        watch: Watch,
        traffic: Arc<Traffic>,
        metrics: Metrics,
        thaw_deadline: Duration,
    ) -> Self {
        Self {
            client,
            server,
            hold,
            watch,
            traffic,
            metrics,
            thaw_deadline,
            owed: OwedReplies::new(),
            from_client: None,
            client_frames: Scanner::new(Side::Frontend),
            from_server: None,
            server_frames: Scanner::new(Side::Backend),
            refusals: Refusals::default(),
            server_deaf: false,
            leaving: false,
            last_error: 0,
            draining: false,
        }
    }

    /// Relays until the session ends. `early` is what the client sent before the session was open.
    pub(crate) async fn run(mut self, early: &[u8]) -> Finished<C, H> {
        self.hold.end();
        let mut step = self.take_early(early);
        loop {
            let next = match step.take() {
                Some(step) => step,
                None => poll_fn(|cx| self.poll(cx)).await,
            };
            match next {
                Step::Thaw => {
                    let began = Instant::now();
                    if let Err(error) = self.hold.begin(began + self.thaw_deadline).await {
                        return self.finish(End::Thaw(error));
                    }
                    self.metrics.thawed(began.elapsed());
                    self.traffic.set_busy(true);
                }
                Step::End(end) => return self.finish(end),
            }
        }
    }

    fn take_early(&mut self, early: &[u8]) -> Option<Step> {
        let mut buffer = Buffer::borrow();
        let space = buffer.get_mut(..early.len()).filter(|space| !space.is_empty())?;
        space.copy_from_slice(early);
        self.take_from_client(buffer, early.len())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if let Poll::Ready(step) = self.poll_from_client(cx) {
            return Poll::Ready(step);
        }
        if let Poll::Ready(step) = self.poll_from_server(cx) {
            return Poll::Ready(step);
        }
        while let Poll::Ready(interrupt) = self.watch.poll(cx) {
            match interrupt {
                Interrupt::Closing(reason) => return Poll::Ready(Step::End(End::Closing(reason))),
                Interrupt::DrainOver => return Poll::Ready(Step::End(End::Drained)),
                Interrupt::Drain(deadline) => {
                    self.draining = true;
                    self.watch.draining_until(deadline);
                }
            }
        }
        if self.draining && self.is_at_rest() {
            return Poll::Ready(Step::End(End::Drained));
        }
        Poll::Pending
    }

    /// Whether nothing is on its way and no transaction is open.
    fn is_at_rest(&self) -> bool {
        self.owed.is_idle()
            && self.owed.status() == TransactionStatus::Idle
            && self.from_client.is_none()
            && self.from_server.is_none()
    }

    /// Moves bytes from the client to the server until one of them has to be waited for.
    fn poll_from_client(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        loop {
            if !self.server.is_flushed() {
                // What there was no room for goes first; nothing more is read meanwhile.
                self.server_deaf |= ready!(self.server.poll_flush(cx)).is_err();
                self.rest_if_idle();
            }
            while let Some(chunk) = &mut self.from_client {
                match ready!(self.server.poll_write(cx, chunk.rest())) {
                    Ok(count) if count > 0 => chunk.sent += count,
                    // Its end of the stream comes after what it still has to say.
                    Ok(_) | Err(_) => {
                        self.server_deaf = true;
                        chunk.sent = chunk.filled;
                    }
                }
                if chunk.sent == chunk.filled {
                    self.from_client = None;
                    self.rest_if_idle();
                }
            }
            if self.server_deaf {
                return Poll::Pending;
            }
            let mut buffer = Buffer::borrow();
            let mut space = ReadBuf::new(&mut buffer);
            let result = ready!(Pin::new(&mut self.client).poll_read(cx, &mut space));
            let count = space.filled().len();
            if result.is_err() || count == 0 {
                return Poll::Ready(Step::End(if self.leaving { End::ClientLeft } else { End::ClientGone }));
            }
            if let Some(step) = self.take_from_client(buffer, count) {
                return Poll::Ready(step);
            }
        }
    }

    /// Takes a chunk that the client sent: it may be written to the server when this returns `None`.
    #[inline]
    fn take_from_client(&mut self, buffer: Buffer, count: usize) -> Option<Step> {
        let bytes = buffer.get(..count).unwrap_or_default();
        self.traffic.received(count);
        if bytes.first() == Some(&TERMINATE) && self.client_frames.at_boundary() && self.owed.is_idle() {
            // A frozen database is not thawed to hear that nothing is wanted of it: closing the socket says the same.
            return Some(Step::End(End::ClientLeft));
        }
        let (owed, leaving) = (&mut self.owed, &mut self.leaving);
        let scanned = self.client_frames.feed(bytes, MAX_FRAME_LEN, |seen| {
            if let Seen::Frame { tag, .. } = seen {
                owed.frontend(tag);
                *leaving |= tag == TERMINATE;
            }
        });
        if let Err(error) = scanned {
            return Some(Step::End(End::ClientProtocol(error)));
        }
        self.from_client = Some(Chunk::new(buffer, count));
        if !self.hold.is_active() {
            if !self.hold.try_begin() {
                return Some(Step::Thaw);
            }
            self.traffic.set_busy(true);
        }
        None
    }

    /// Moves bytes from the server to the client until one of them has to be waited for.
    fn poll_from_server(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        loop {
            while let Some(chunk) = &mut self.from_server {
                match ready!(Pin::new(&mut self.client).poll_write(cx, chunk.rest())) {
                    Ok(count) if count > 0 => chunk.sent += count,
                    Ok(_) | Err(_) => return Poll::Ready(Step::End(End::ClientGone)),
                }
                if chunk.sent == chunk.filled {
                    self.from_server = None;
                }
            }
            // What there was no room for goes first, here too.
            if ready!(Pin::new(&mut self.client).poll_flush(cx)).is_err() {
                return Poll::Ready(Step::End(End::ClientGone));
            }
            let mut buffer = Buffer::borrow();
            let Ok(count @ 1..) = ready!(self.server.poll_read(cx, &mut buffer)) else {
                return Poll::Ready(Step::End(End::ServerClosed));
            };
            if let Some(step) = self.take_from_server(buffer, count) {
                return Poll::Ready(step);
            }
        }
    }

    /// Takes a chunk that the server sent.
    #[inline]
    fn take_from_server(&mut self, buffer: Buffer, count: usize) -> Option<Step> {
        let bytes = buffer.get(..count).unwrap_or_default();
        self.traffic.sent(count);
        let shortage = self.hold.shortage();
        let retold = (shortage.is_some() || self.refusals.is_withholding())
            .then(|| self.refusals.retell(self.server_frames.left_of_frame(), bytes, shortage));
        let (owed, last_error) = (&mut self.owed, &mut self.last_error);
        let scanned = self.server_frames.feed(bytes, MAX_FRAME_LEN, |seen| {
            *last_error = if let Seen::Frame { tag: ERROR, len } = seen { len } else { 0 };
            owed.backend(seen);
        });
        if let Err(error) = scanned {
            return Some(Step::End(End::ServerProtocol(error)));
        }
        self.from_server = match retold {
            None => Some(Chunk::new(buffer, count)),
            Some(told) => Some(Chunk::of(told)).filter(|chunk| chunk.filled > 0),
        };
        if self.last_error > 0 && self.hold.is_closing() {
            self.withhold_goodbye();
        }
        self.rest_if_idle();
        None
    }

    /// Takes back a backend's last words: that it is shut down. Why it is was known before, and is what the client is told
    /// when the session ends next.
    fn withhold_goodbye(&mut self) {
        let Some(chunk) = &mut self.from_server else { return };
        let Some(before) = chunk.filled.checked_sub(self.last_error) else { return };
        if refusal::is_shutdown(chunk.buffer.get(before..chunk.filled).unwrap_or_default()) {
            self.last_error = 0;
            chunk.filled = before;
            self.from_server.take_if(|chunk| chunk.filled == 0);
        }
    }

    /// Gives the activity lease back if the server owes nothing and is to be sent nothing.
    #[inline]
    fn rest_if_idle(&mut self) {
        if self.owed.is_idle() && self.from_client.is_none() && self.hold.is_active() {
            // Frames that owe no reply may still wait for the end of the worker's round.
            self.server.flush_now();
            if !self.server.is_flushed() {
                return;
            }
            self.server.settle();
            self.traffic.set_busy(false);
            self.hold.end();
        }
    }

    fn finish(self, end: End) -> Finished<C, H> {
        Finished {
            // What is half written is a frame's end as far as the client is concerned only if nothing is left of it.
            between_frames: self.server_frames.at_boundary() && self.from_server.is_none(),
            server_said_why: self.last_error > 0,
            server_owes: !self.owed.is_idle(),
            client_frames_whole: self.client_frames.at_boundary()
                && self.from_client.is_none()
                && !self.server_deaf,
            end,
            client: self.client,
            server: self.server,
            hold: self.hold,
        }
    }
}
