//! Sends of a worker, made together.
//!
//! A send wakes its reader, and on a busy machine the reader takes the sender's processor at the sender's next return
//! from the kernel. A worker that sends once for each packet is therefore pushed aside once for each packet; one that hands
//! the kernel all sends of a round in a single call is pushed aside once for all of them. Measured with `pgbench -S` at 16
//! and at 64 clients, that is a third of everything that the relay costs.
//!
//! So sockets of a thread on which [`serve`] runs leave what they have to send in an [`Outbox`]. Tokio runs the tasks that
//! are ready in turn; the first one to leave something wakes the task of [`serve`], which thus runs after all the others
//! that were ready, and sends everything by one `io_uring_enter(2)`.
//!
//! Invariants:
//! - bytes of one outbox are sent in the order in which they were left, and nothing is sent past them;
//! - a descriptor is sent to only while the socket that left it is alive: a socket that is dropped sends first;
//! - no send outlives the call that made it: the sends do not wait for room, and their results are collected before the
//!   call returns. What there was no room for goes back to its outbox, whose task is woken.
//!
//! Where io_uring is not to be had, or on any other thread, nothing is left: sockets send at once.

mod ring;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use ring::Ring;

/// The longest piece that is left for later. Longer ones are sent at once: their readers are woken seldom for what they
/// read, and copying them would cost more than is gained.
const LONGEST: usize = 4096;

/// Buffers that a thread keeps for the next round; more are given back to the allocator.
const KEPT: usize = 256;

thread_local! {
    static BATCH: RefCell<Option<Batch>> = const { RefCell::new(None) };
}

/// Serves the outboxes of this thread, for as long as the future lives. Returns at once, and nothing is left in outboxes
/// then, when the kernel offers no io_uring.
///
/// To be run as a task of the single-threaded runtime whose tasks own the sockets.
pub async fn serve() {
    let Ok(ring) = Ring::new() else { return };
    let batch = Batch { ring, queued: Vec::new(), spare: Vec::new(), server: Waker::noop().clone() };
    BATCH.set(Some(batch));
    let _ending = Ending;
    poll_fn(|cx| {
        flush();
        BATCH.with_borrow_mut(|batch| {
            if let Some(batch) = batch {
                batch.server.clone_from(cx.waker());
            }
        });
        Poll::<()>::Pending
    })
    .await;
}

/// Whether this kernel lets this process make its sends together.
pub fn is_available() -> bool {
    Ring::new().is_ok()
}

/// Sends what is left when the task of [`serve`] ends; from then on sockets send at once.
struct Ending;

impl Drop for Ending {
    fn drop(&mut self) {
        flush();
        let _ = BATCH.try_with(RefCell::take);
    }
}

/// What a thread's sockets have left.
struct Batch {
    ring: Ring,
    queued: Vec<Letter>,
    spare: Vec<Vec<u8>>,
    server: Waker,
}

/// Bytes to be sent, and to where.
struct Letter {
    socket: RawFd,
    bytes: Vec<u8>,
    from: Arc<Slot>,
}

/// What a socket has to send and its thread has not sent yet.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    slot: Option<Arc<Slot>>,
}

/// Shared by an outbox and, while something is queued, its thread's batch.
#[derive(Debug)]
struct Slot(Mutex<State>);

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct State {
    content: Content,
    /// The task that is told when a send did not go through as a whole.
    task: Waker,
}

#[derive(Debug)]
enum Content {
    Nothing,
    /// In the thread's batch, at this position.
    Queued(usize),
    /// There was no room for these bytes, from the given one on.
    Unsent(Vec<u8>, usize),
    /// The send failed.
    Failed(io::Error),
}

impl Outbox {
    /// Takes bytes for `socket`, which must be open until this outbox is dropped: to be sent with the others of this round,
    /// or at once by `send` if that is better. Bytes that were left before go first, by `send` too if they must wait for
    /// room.
    ///
    /// # Errors
    ///
    /// When this send or an earlier one failed.
    #[inline]
    pub(crate) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        socket: BorrowedFd<'_>,
        bytes: &[u8],
        mut send: impl FnMut(&mut Context<'_>, &[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if bytes.len() <= LONGEST {
            ready!(self.poll_unsent(cx, &mut send))?;
            if self.leave(cx, socket, bytes) {
                return Poll::Ready(Ok(bytes.len()));
            }
        }
        self.flush();
        ready!(self.poll_unsent(cx, &mut send))?;
        send(cx, bytes)
    }

    /// Sends what had to wait for room, by `send`. What is queued needs no help.
    ///
    /// # Errors
    ///
    /// When this send or an earlier one failed.
    #[inline]
    pub(crate) fn poll_unsent(
        &mut self,
        cx: &mut Context<'_>,
        send: &mut impl FnMut(&mut Context<'_>, &[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        let Some(slot) = &self.slot else { return Poll::Ready(Ok(())) };
        let mut state = slot.lock();
        loop {
            match &mut state.content {
                Content::Nothing | Content::Queued(_) => return Poll::Ready(Ok(())),
                Content::Unsent(bytes, sent) => {
                    let rest = bytes.get(*sent..).unwrap_or_default();
                    if !rest.is_empty() {
                        match ready!(send(cx, rest))? {
                            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                            count => *sent += count,
                        }
                        continue;
                    }
                }
                Content::Failed(_) => {}
            }
            return Poll::Ready(match std::mem::replace(&mut state.content, Content::Nothing) {
                Content::Failed(error) => Err(error),
                _ => Ok(()),
            });
        }
    }

    /// Sends what is queued, with all that others have queued: to be called before the socket is used in another way.
    pub(crate) fn flush(&self) {
        if self.slot.as_ref().is_some_and(|slot| matches!(slot.lock().content, Content::Queued(_))) {
            flush();
        }
    }

    /// Whether everything that was taken has been sent.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.slot.as_ref().is_none_or(|slot| matches!(slot.lock().content, Content::Nothing))
    }

    /// Leaves bytes for the end of the round, if there is one and they fit to what is queued.
    fn leave(&mut self, cx: &Context<'_>, socket: BorrowedFd<'_>, bytes: &[u8]) -> bool {
        let left = BATCH.try_with(|batch| {
            let Ok(mut batch) = batch.try_borrow_mut() else { return false };
            let Some(batch) = batch.as_mut() else { return false };
            let slot = self.slot.get_or_insert_with(|| {
                Arc::new(Slot(Mutex::new(State { content: Content::Nothing, task: Waker::noop().clone() })))
            });
            let mut state = slot.lock();
            if let Content::Queued(position) = state.content {
                let Some(letter) = batch.queued.get_mut(position) else { return false };
                let fits = letter.bytes.len() + bytes.len() <= LONGEST;
                if fits {
                    letter.bytes.extend_from_slice(bytes);
                }
                return fits;
            }
            if !state.task.will_wake(cx.waker()) {
                state.task.clone_from(cx.waker());
            }
            state.content = Content::Queued(batch.queued.len());
            let mut letter = batch.spare.pop().unwrap_or_default();
            letter.extend_from_slice(bytes);
            batch.queued.push(Letter { socket: socket.as_raw_fd(), bytes: letter, from: slot.clone() });
            if batch.queued.len() == 1 {
                batch.server.wake_by_ref();
            }
            true
        });
        left.unwrap_or(false)
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Sends all that the sockets of this thread have left.
fn flush() {
    // A thread that is ending has no batch any more, and its sockets have sent at once.
    let stalled = BATCH.try_with(|batch| batch.borrow_mut().as_mut().map(Batch::send)).ok().flatten();
    // Only now: a task that is woken may be dropped by that, and its sockets with it.
    stalled.into_iter().flatten().for_each(Waker::wake);
}

impl Batch {
    /// Sends everything; returns the tasks whose sends did not go through as a whole.
    fn send(&mut self) -> Vec<Waker> {
        let mut stalled = Vec::new();
        let Self { ring, queued, spare, .. } = self;
        ring.send(
            queued.iter().map(|letter| (letter.socket, letter.bytes.as_slice())),
            |position, result| {
                let Some(letter) = queued.get(position) else { return };
                let mut state = letter.from.lock();
                state.content = match result {
                    Ok(count) if count == letter.bytes.len() => Content::Nothing,
                    Ok(count) => Content::Unsent(letter.bytes.clone(), count),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        Content::Unsent(letter.bytes.clone(), 0)
                    }
                    Err(error) => Content::Failed(error),
                };
                if !matches!(state.content, Content::Nothing) {
                    stalled.push(state.task.clone());
                }
            },
        );
        for letter in queued.drain(..) {
            let mut bytes = letter.bytes;
            if spare.len() < KEPT {
                bytes.clear();
                spare.push(bytes);
            }
        }
        stalled
    }
}

#[cfg(test)]
mod tests;
