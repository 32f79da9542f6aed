//! What a server owes a session: the accounting by which a relay knows whether a session is busy.
//!
//! Query, FunctionCall and Sync each are answered by one ReadyForQuery. Extended-protocol messages without a Sync yet keep
//! the session busy, because the server has been given work and may be holding its answer back. COPY FROM STDIN needs
//! care: while the server is in copy-in mode it ignores Sync and Flush, so the Syncs that a client had already sent behind
//! the Execute which began the copy are absorbed and will never be answered ("COPY Operations", "Extended Query").
//!
//! Memory is constant: runs of equal requests are counted, and there are at most as many runs kept as
//! [`MAX_RUNS`]; a session that exceeds even that is simply counted as busy until everything is answered.

use std::collections::VecDeque;

use crate::frame::{Seen, TransactionStatus};

/// Runs of requests of alternating kinds that are told apart.
const MAX_RUNS: usize = 1024;

/// What kind of request a ReadyForQuery will answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Query or FunctionCall: answered whatever happens.
    Simple,
    /// Sync: ignored by a server in copy-in mode.
    Sync,
}

/// The replies that a session is owed.
#[derive(Debug, Clone, Default)]
pub struct OwedReplies {
    /// Requests in order, equal neighbours counted together.
    runs: VecDeque<(Kind, u64)>,
    /// Extended-protocol messages were sent since the last Sync.
    unsynced: bool,
    /// The server told us that it reads copy data.
    copy_in: bool,
    status: TransactionStatus,
}

impl OwedReplies {
    /// A session that has just got its first ReadyForQuery.
    pub fn new() -> Self {
        Self::default()
    }

    /// The client sent a frame.
    #[inline]
    pub fn frontend(&mut self, tag: u8) {
        match tag {
            b'Q' | b'F' => {
                self.unsynced = false;
                self.owe(Kind::Simple);
            }
            b'S' => {
                self.unsynced = false;
                if self.copy_in {
                    // Read as part of the copy, and ignored; the one after CopyDone counts.
                    return;
                }
                self.owe(Kind::Sync);
            }
            // CopyDone and CopyFail end the copy; what follows is read as usual again. A server that gave the copy up
            // before ignores them.
            b'c' | b'f' if self.copy_in => {
                self.copy_in = false;
                if self.runs.is_empty() {
                    self.unsynced = true;
                }
            }
            // Parse, Bind, Describe, Execute, Close.
            b'P' | b'B' | b'D' | b'E' | b'C' => self.unsynced = true,
            // CopyData and Flush owe nothing by themselves; Terminate ends everything.
            _ => {}
        }
    }

    /// The server sent a frame.
    #[inline]
    pub fn backend(&mut self, seen: Seen) {
        match seen {
            Seen::Ready(status) => {
                self.status = status;
                self.copy_in = false;
                self.settle();
            }
            Seen::Frame { tag: b'G', .. } => self.copy_began(),
            // An error ends a copy: the server discards copy data up to the Sync that the client sends next.
            Seen::Frame { tag: b'E', .. } if self.copy_in => {
                self.copy_in = false;
                if self.runs.is_empty() {
                    self.unsynced = true;
                }
            }
            Seen::Frame { .. } => {}
        }
    }

    /// CopyInResponse: Syncs that were sent ahead of the copy data are ignored by the server.
    fn copy_began(&mut self) {
        self.copy_in = true;
        if let Some((Kind::Sync, _)) = self.runs.front() {
            self.runs.pop_front();
            self.unsynced = true;
        }
    }

    fn owe(&mut self, kind: Kind) {
        // Beyond the bound alternations are not told apart; what is lost is only which of them a copy would absorb.
        let full = self.runs.len() >= MAX_RUNS;
        match self.runs.back_mut() {
            Some((last, count)) if *last == kind || full => *count = count.saturating_add(1),
            _ => self.runs.push_back((kind, 1)),
        }
    }

    fn settle(&mut self) {
        match self.runs.front_mut() {
            Some((_, count)) if *count > 1 => *count -= 1,
            Some(_) => drop(self.runs.pop_front()),
            // The server answered a Sync that was taken for absorbed (a pipeline behind a copy that failed at once): it
            // is the server's word that counts.
            None => self.unsynced = false,
        }
    }

    /// Whether the server owes nothing and has been given nothing to do.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.runs.is_empty() && !self.unsynced && !self.copy_in
    }

    /// The transaction status of the last ReadyForQuery.
    pub const fn status(&self) -> TransactionStatus {
        self.status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(owed: &mut OwedReplies, tags: &[u8]) {
        for tag in tags {
            owed.backend(match tag {
                b'Z' => Seen::Ready(TransactionStatus::Idle),
                tag => Seen::Frame { tag: *tag, len: 5 },
            });
        }
    }

    fn frontend(owed: &mut OwedReplies, tags: &[u8]) {
        tags.iter().for_each(|tag| owed.frontend(*tag));
    }

    #[test]
    fn a_simple_query_is_owed_one_ready() {
        let mut owed = OwedReplies::new();
        frontend(&mut owed, b"Q");
        assert!(!owed.is_idle());
        backend(&mut owed, b"TDC");
        assert!(!owed.is_idle());
        backend(&mut owed, b"Z");
        assert!(owed.is_idle());
    }

    #[test]
    fn a_pipeline_is_busy_until_its_last_sync_is_answered() {
        let mut owed = OwedReplies::new();
        for _ in 0..1_000_000 {
            frontend(&mut owed, b"PBESQ");
        }
        assert!(owed.runs.len() <= MAX_RUNS);
        for _ in 0..1_999_999 {
            backend(&mut owed, b"Z");
        }
        assert!(!owed.is_idle());
        backend(&mut owed, b"Z");
        assert!(owed.is_idle());
    }

    #[test]
    fn work_without_a_sync_keeps_a_session_busy() {
        let mut owed = OwedReplies::new();
        frontend(&mut owed, b"PBEH");
        backend(&mut owed, b"12DC");
        assert!(!owed.is_idle());
        frontend(&mut owed, b"S");
        backend(&mut owed, b"Z");
        assert!(owed.is_idle());
    }

    #[test]
    fn a_copy_by_a_simple_query_is_owed_one_ready() {
        let mut owed = OwedReplies::new();
        frontend(&mut owed, b"Q");
        backend(&mut owed, b"G");
        frontend(&mut owed, b"ddddc");
        assert!(!owed.is_idle());
        backend(&mut owed, b"CZ");
        assert!(owed.is_idle());
    }

    #[test]
    fn a_copy_by_the_extended_protocol_absorbs_the_sync_sent_before_it() {
        let mut owed = OwedReplies::new();
        frontend(&mut owed, b"PBDES");
        backend(&mut owed, b"12nG");
        assert!(!owed.is_idle(), "the copy goes on");
        frontend(&mut owed, b"dddcS");
        backend(&mut owed, b"CZ");
        assert!(owed.is_idle());
    }

    #[test]
    fn a_sync_within_the_copy_is_ignored_too() {
        let mut owed = OwedReplies::new();
        frontend(&mut owed, b"PBE");
        backend(&mut owed, b"12G");
        frontend(&mut owed, b"dSdHd");
        assert!(!owed.is_idle(), "the copy goes on");
        frontend(&mut owed, b"cS");
        backend(&mut owed, b"CZ");
        assert!(owed.is_idle());
    }

    #[test]
    fn the_end_of_a_copy_that_had_failed_is_owed_nothing() {
        let mut owed = OwedReplies::new();
        frontend(&mut owed, b"Q");
        backend(&mut owed, b"G");
        frontend(&mut owed, b"dd");
        backend(&mut owed, b"EZ");
        assert!(owed.is_idle());
        frontend(&mut owed, b"ddc");
        assert!(owed.is_idle());
    }

    #[test]
    fn a_copy_that_fails_waits_for_the_sync_after_the_error() {
        let mut owed = OwedReplies::new();
        frontend(&mut owed, b"PBDES");
        backend(&mut owed, b"12nG");
        frontend(&mut owed, b"dd");
        backend(&mut owed, b"E");
        assert!(!owed.is_idle());
        frontend(&mut owed, b"dcS");
        backend(&mut owed, b"Z");
        assert!(owed.is_idle());
    }

    #[test]
    fn the_last_transaction_status_is_remembered() {
        let mut owed = OwedReplies::new();
        frontend(&mut owed, b"Q");
        owed.backend(Seen::Ready(TransactionStatus::Failed));
        assert_eq!(owed.status(), TransactionStatus::Failed);
        assert!(owed.is_idle());
    }
}
