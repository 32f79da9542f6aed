//! The gate between sessions and an instance: one atomic word that holds "open" and the number of activity leases.
//!
//! A session takes a lease before it sends a byte and gives it back when Postgres owes nothing, millions of times a
//! second on a busy node, so this is two atomic additions and no lock. Freezing closes the gate with a compare-exchange
//! that succeeds only when it is open and no lease is out; so a lease holder never meets a frozen process.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::{Duration, Instant};

const OPEN: u64 = 1 << 63;
const LEASES: u64 = OPEN - 1;

/// Whether sessions may use an instance now, and how many do.
#[derive(Debug)]
pub struct Gate {
    word: AtomicU64,
    /// When activity last ended, in microseconds after `origin`.
    last_active: AtomicU64,
    origin: Instant,
}

impl Gate {
    /// A closed gate.
    pub fn new(now: Instant) -> Self {
        Self { word: AtomicU64::new(0), last_active: AtomicU64::new(0), origin: now }
    }

    /// Takes a lease if the gate is open.
    #[inline]
    pub fn enter(&self) -> bool {
        // Acquire: what the opener wrote (the instance stands) is visible to whoever enters.
        if self.word.fetch_add(1, Ordering::Acquire) & OPEN != 0 {
            return true;
        }
        self.word.fetch_sub(1, Ordering::Release);
        false
    }

    /// Gives a lease back.
    #[inline]
    pub fn leave(&self, now: Instant) {
        self.touch(now);
        self.word.fetch_sub(1, Ordering::Release);
    }

    /// Gives a lease back that was no activity of a session's: the idle time goes on.
    pub fn leave_unnoticed(&self) {
        self.word.fetch_sub(1, Ordering::Release);
    }

    /// Counts this moment as activity.
    #[inline]
    pub fn touch(&self, now: Instant) {
        let micros = now.saturating_duration_since(self.origin).as_micros();
        self.last_active.fetch_max(u64::try_from(micros).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Lets sessions in.
    pub fn open(&self, now: Instant) {
        self.touch(now);
        self.word.fetch_or(OPEN, Ordering::Release);
    }

    /// Closes the gate if it is open and nobody is inside. A session that is just trying a closed gate makes this fail,
    /// which is right: it wants the database.
    pub fn close_if_empty(&self) -> bool {
        self.word.compare_exchange(OPEN, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Closes the gate whoever is inside; their leases end as they leave.
    pub fn close(&self) {
        self.word.fetch_and(LEASES, Ordering::AcqRel);
    }

    /// How many leases are out.
    pub fn leases(&self) -> u64 {
        self.word.load(Ordering::Relaxed) & LEASES
    }

    /// The moment of the latest activity, as a number that only grows.
    pub fn last_active(&self) -> u64 {
        self.last_active.load(Ordering::Relaxed)
    }

    /// How long nothing has been active: zero while a lease is out.
    pub fn idle_for(&self, now: Instant) -> Duration {
        if self.leases() > 0 {
            return Duration::ZERO;
        }
        let last = self.origin + Duration::from_micros(self.last_active());
        now.saturating_duration_since(last)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_closed_gate_lets_nobody_in() {
        let gate = Gate::new(Instant::now());
        assert!(!gate.enter());
        gate.open(Instant::now());
        assert!(gate.enter());
        assert!(!gate.close_if_empty());
        gate.leave(Instant::now());
        assert!(gate.close_if_empty());
        assert_eq!(gate.leases(), 0);
    }

    #[test]
    fn nobody_is_inside_a_gate_that_closed_empty() {
        let gate = Arc::new(Gate::new(Instant::now()));
        let frozen = Arc::new(AtomicBool::new(true));
        let done = Arc::new(AtomicBool::new(false));
        let sessions: Vec<_> = (0..3)
            .map(|_| {
                let (gate, frozen, done) = (gate.clone(), frozen.clone(), done.clone());
                std::thread::spawn(move || {
                    let mut entered = 0_u64;
                    while !done.load(Ordering::Relaxed) {
                        if gate.enter() {
                            assert!(!frozen.load(Ordering::SeqCst), "a lease was held on a frozen instance");
                            entered += 1;
                            gate.leave(Instant::now());
                        }
                        std::thread::yield_now();
                    }
                    entered
                })
            })
            .collect();
        for _ in 0..20_000 {
            frozen.store(false, Ordering::SeqCst);
            gate.open(Instant::now());
            while !gate.close_if_empty() {
                std::hint::spin_loop();
            }
            frozen.store(true, Ordering::SeqCst);
        }
        done.store(true, Ordering::Relaxed);
        for session in sessions {
            session.join().unwrap();
        }
        assert_eq!(gate.leases(), 0);
    }
}
