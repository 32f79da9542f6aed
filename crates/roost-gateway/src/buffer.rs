//! Relay buffers, lent by a pool of the worker's thread: a session holds one only while bytes are on their way, so an
//! idle session holds none.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Bytes read at once: what a Postgres backend writes at once (8 KiB) twice over.
pub(crate) const BUFFER_BYTES: usize = 16 * 1024;

/// Buffers that a thread keeps for the next session; more are given back to the allocator.
const KEPT: usize = 64;

thread_local! {
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`BUFFER_BYTES`] on loan, or bytes of the session's own. A loan's content is what the last borrower left:
/// read only what you wrote.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
}

impl Buffer {
    /// Borrows a buffer.
    #[inline]
    pub(crate) fn borrow() -> Self {
        let kept = POOL.with_borrow_mut(Vec::pop);
        Self { bytes: kept.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice()) }
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes: bytes.into_boxed_slice() }
    }
}

impl Drop for Buffer {
    #[inline]
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // A thread that is ending has no pool any more; the buffer is then simply freed.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT && bytes.len() == BUFFER_BYTES {
                pool.push(bytes);
            }
        });
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_a_bounded_number_of_buffers() {
        let many: Vec<Buffer> = (0..3 * KEPT).map(|_| Buffer::borrow()).collect();
        assert!(many.iter().all(|buffer| buffer.len() == BUFFER_BYTES));
        drop(many);
        assert_eq!(POOL.with_borrow(Vec::len), KEPT);
        let _one = Buffer::borrow();
        assert_eq!(POOL.with_borrow(Vec::len), KEPT - 1);
        drop(Buffer::from(vec![1, 2, 3]));
        assert_eq!(POOL.with_borrow(Vec::len), KEPT - 1);
    }
}
