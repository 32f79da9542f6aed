//! What is known of a volume's size, and what follows from it: the pure part of the storage limits.
//!
//! Two bounds can be hit. A database's own limit makes it read-only by default, and a hard line beyond that stops it when
//! it goes on growing. While the node's file system is short, each database may still grow by an allowance; then it too
//! becomes read-only, and is stopped when it grows on. A database that does not grow is never touched, whoever it was
//! that used the disk up.

use tokio::time::Instant;

use crate::entry::ClosingReason;

/// How far a database may overrun its limit while it is read-only before it is stopped: this much, and a tenth.
const HARD_MARGIN: u64 = 64 << 20;
/// How much a database that began a run beyond that line may grow, so that its owner can make room: deleting writes too.
const ROOM_TO_DELETE: u64 = 16 << 20;
/// How much a database that became read-only for the node's sake may still grow.
const SHORTAGE_MARGIN: u64 = 32 << 20;

/// When a volume was measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    pub(crate) at: Instant,
    /// What all databases together had written by then.
    pub(crate) written: u64,
    /// The database's activity up to then.
    pub(crate) activity: u64,
}

/// A volume's size and its history during one run.
#[derive(Debug, Default)]
pub(crate) struct Size {
    bytes: u64,
    last: Option<Mark>,
    /// Growth at the last measurement, in bytes per second.
    rate: u64,
    /// The smallest size since the run began.
    least: Option<u64>,
    over_limit: bool,
    /// The size at the beginning of the node's shortage.
    at_shortage: Option<u64>,
    /// The size at which it became read-only for the node's sake.
    held_at: Option<u64>,
    /// It was held before, in an earlier run.
    known_grower: bool,
}

/// What is to be done about a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Verdict {
    pub(crate) read_only: bool,
    /// It is larger than its own limit.
    pub(crate) over_limit: bool,
    /// It made the node's disk short, and is to be remembered for that.
    pub(crate) is_grower: bool,
    pub(crate) stop: Option<ClosingReason>,
}

impl Size {
    /// A run begins, read-only if the volume was over its limit when it was last measured, or its database a grower.
    pub(crate) fn begin_run(&mut self, over_limit: bool, known_grower: bool) {
        *self = Self { over_limit, known_grower, ..Self::default() };
    }

    /// Takes an earlier run's measurement for one of the moment `mark`.
    pub(crate) const fn assume(&mut self, bytes: u64, mark: Mark) {
        self.bytes = bytes;
        self.last = Some(mark);
    }

    /// Takes a measurement.
    pub(crate) fn measured(&mut self, bytes: u64, mark: Mark) {
        if let Some(last) = self.last {
            let micros = mark.at.saturating_duration_since(last.at).as_micros().max(1_000);
            let grown = u128::from(bytes.saturating_sub(self.bytes));
            self.rate = u64::try_from(grown * 1_000_000 / micros).unwrap_or(u64::MAX);
        }
        self.bytes = bytes;
        self.least = Some(self.least.map_or(bytes, |least| least.min(bytes)));
        self.last = Some(mark);
    }

    /// The next look measures it, whatever it does.
    pub(crate) const fn forget_measurement(&mut self) {
        self.last = None;
    }

    pub(crate) const fn last(&self) -> Option<Mark> {
        self.last
    }

    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) const fn rate(&self) -> u64 {
        self.rate
    }

    /// What it can grow by before something has to be done about it, in bytes.
    pub(crate) fn slack(&self, limit: u64) -> u64 {
        let next = if self.over_limit { hard_line(limit) } else { limit };
        next.saturating_sub(self.bytes)
    }

    /// What it has grown by since the node's disk became short, in bytes.
    pub(crate) fn grown_in_shortage(&self) -> u64 {
        self.at_shortage.map_or(0, |before| self.bytes.saturating_sub(before))
    }

    /// Decides by the latest measurement. `allowance` is what a database may grow by while the node's disk is short;
    /// `None` while it is not.
    pub(crate) fn judge(&mut self, limit: u64, allowance: Option<u64>) -> Verdict {
        // Relief is granted only with some room to spare, or it would flap.
        let line = if self.over_limit { limit - limit / 20 } else { limit };
        self.over_limit = self.bytes > line;
        match allowance {
            None => (self.at_shortage, self.held_at, self.known_grower) = (None, None, false),
            Some(allowance) => {
                let before = *self.at_shortage.get_or_insert(self.bytes);
                if self.known_grower || self.bytes.saturating_sub(before) > allowance {
                    self.held_at.get_or_insert(self.bytes);
                }
            }
        }
        let least = self.least.unwrap_or(self.bytes);
        let too_far = self.bytes > hard_line(limit) && self.bytes > least.saturating_add(ROOM_TO_DELETE);
        let held = self.held_at.map(|held_at| self.bytes > held_at.saturating_add(SHORTAGE_MARGIN));
        let stop = if too_far {
            Some(ClosingReason::StorageFull)
        } else {
            held.filter(|grows| *grows).map(|_| ClosingReason::NodeStorageShort)
        };
        Verdict {
            read_only: self.over_limit || held.is_some(),
            over_limit: self.over_limit,
            is_grower: held.is_some(),
            stop,
        }
    }
}

/// Where a database that grows on is stopped.
const fn hard_line(limit: u64) -> u64 {
    limit.saturating_add(limit / 10).saturating_add(HARD_MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const LIMIT: u64 = 100 * MIB;

    fn look(size: &mut Size, mebibytes: u64, allowance: Option<u64>) -> Verdict {
        size.measured(mebibytes * MIB, Mark { at: Instant::now(), written: 0, activity: 0 });
        size.judge(LIMIT, allowance)
    }

    #[test]
    fn over_the_limit_is_read_only_until_there_is_room_to_spare() {
        let mut size = Size::default();
        assert_eq!(look(&mut size, 100, None), Verdict::default());
        let over = look(&mut size, 101, None);
        assert!(over.read_only && over.over_limit);
        assert!(look(&mut size, 99, None).read_only);
        assert!(!look(&mut size, 94, None).read_only);
    }

    #[test]
    fn beyond_the_hard_line_growing_ends_the_run_and_shrinking_does_not() {
        let mut size = Size::default();
        look(&mut size, 10, None);
        assert_eq!(look(&mut size, 170, None).stop, None);
        assert_eq!(look(&mut size, 180, None).stop, Some(ClosingReason::StorageFull));
        size.begin_run(true, false);
        for mebibytes in [180, 190, 196, 120, 60] {
            assert_eq!(look(&mut size, mebibytes, None).stop, None, "{mebibytes}");
        }
        assert!(!look(&mut size, 60, None).read_only);
    }

    #[test]
    fn a_run_that_began_beyond_the_hard_line_may_not_grow_much() {
        let mut size = Size::default();
        size.begin_run(true, false);
        look(&mut size, 180, None);
        assert_eq!(look(&mut size, 197, None).stop, Some(ClosingReason::StorageFull));
    }

    #[test]
    fn a_size_from_an_earlier_run_bounds_the_growth_until_the_first_look() {
        let mut size = Size::default();
        size.begin_run(false, false);
        let woken = Mark { at: Instant::now(), written: 5, activity: 0 };
        size.assume(90 * MIB, woken);
        assert_eq!(size.last().map(|mark| mark.written), Some(5));
        assert_eq!(size.slack(LIMIT), 10 * MIB);
        assert_eq!(look(&mut size, 95, None), Verdict::default());
        assert!(size.rate() > 0);
    }

    #[test]
    fn in_a_shortage_only_those_that_grow_are_held() {
        let (mut quiet, mut greedy) = (Size::default(), Size::default());
        for size in [&mut quiet, &mut greedy] {
            assert_eq!(look(size, 10, Some(20 * MIB)), Verdict::default());
        }
        assert_eq!(look(&mut quiet, 18, Some(20 * MIB)), Verdict::default());
        let held = look(&mut greedy, 31, Some(20 * MIB));
        assert!(held.read_only && held.is_grower && held.stop.is_none() && !held.over_limit);
        assert_eq!(look(&mut greedy, 64, Some(20 * MIB)).stop, Some(ClosingReason::NodeStorageShort));
        assert_eq!(look(&mut greedy, 64, None), Verdict::default());
    }

    #[test]
    fn a_known_grower_starts_held() {
        let mut size = Size::default();
        size.begin_run(false, true);
        assert!(look(&mut size, 50, Some(u64::MAX)).read_only);
        assert_eq!(look(&mut size, 83, Some(u64::MAX)).stop, Some(ClosingReason::NodeStorageShort));
    }
}
