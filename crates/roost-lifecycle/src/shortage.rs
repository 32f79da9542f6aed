//! Why a database is read-only for want of storage, told to the sessions whose writes Postgres refuses for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The bound that a database's storage has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// It is larger than its own limit.
    Limit {
        /// The limit, in bytes.
        bytes: u64,
    },
    /// It grew while the free space of the node's file system was below the reserve.
    Reserve {
        /// The reserve, in bytes.
        bytes: u64,
    },
}

/// A database's shortage, as its sessions see it.
///
/// They ask for every packet, so that there is none costs them one load.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    is_there: AtomicBool,
    shortage: Mutex<Option<Shortage>>,
}

impl Shown {
    #[inline]
    pub(crate) fn get(&self) -> Option<Shortage> {
        if self.is_there.load(Ordering::Acquire) { *self.lock() } else { None }
    }

    pub(crate) fn set(&self, shortage: Option<Shortage>) {
        let mut shown = self.lock();
        *shown = shortage;
        self.is_there.store(shortage.is_some(), Ordering::Release);
    }

    /// Forgets it, unless by now it `holds` again.
    pub(crate) fn clear_unless(&self, holds: &AtomicBool) {
        let mut shown = self.lock();
        if !holds.load(Ordering::SeqCst) {
            *shown = None;
            self.is_there.store(false, Ordering::Release);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Shortage>> {
        self.shortage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_that_came_back_stays_shown() {
        let (shown, holds) = (Shown::default(), AtomicBool::new(true));
        assert_eq!(shown.get(), None);
        let limit = Some(Shortage::Limit { bytes: 1 });
        shown.set(limit);
        shown.clear_unless(&holds);
        assert_eq!(shown.get(), limit);
        holds.store(false, Ordering::SeqCst);
        shown.clear_unless(&holds);
        assert_eq!(shown.get(), None);
    }
}
