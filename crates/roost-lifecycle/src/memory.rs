//! Memory: a start is admitted only when the budget and the machine have room for it; otherwise the longest-idle
//! databases go down a rung first.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::Lifecycle;
use crate::entry::{ClosingReason, Entry};
use crate::error::{StartFailure, WakeError};
use crate::ladder::Phase;

/// What an instance is taken to need until it was measured.
const FIRST_ESTIMATE: u64 = 24 << 20;
/// Free memory that the machine keeps, in thousandths of its whole.
const MACHINE_FLOOR_PERMILLE: u64 = 50;
/// How long a start waits for others to go down.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often memory is looked at again meanwhile.
const RETRY: Duration = Duration::from_millis(50);

/// What may be done to a database for memory's sake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relief {
    /// Freeze it and push it out.
    Freeze,
    /// Stop it cleanly; nobody holds it.
    Stop,
    /// Stop it although sessions hold it: its owner allows that.
    StopUnderSessions,
}

impl Lifecycle {
    /// Waits until there is memory for a start, taking other databases down if need be.
    ///
    /// # Errors
    ///
    /// When nothing could be taken down in time.
    pub(crate) async fn make_room(&self, entry: &Arc<Entry>) -> Result<(), StartFailure> {
        let needed = entry.memory().max(FIRST_ESTIMATE);
        let budget_bytes = self.shared.config.memory_budget_bytes;
        let began = Instant::now();
        loop {
            if self.shared.shutting_down.load(Ordering::Acquire) {
                return Err(StartFailure::ShuttingDown);
            }
            if self.has_room(needed) {
                entry.lacks_memory.store(false, Ordering::Relaxed);
                entry.admitted.store(true, Ordering::Relaxed);
                return Ok(());
            }
            entry.lacks_memory.store(true, Ordering::Relaxed);
            // What can never be, or nobody waits for any more, must not hold up those behind it.
            let hopeless = needed > budget_bytes || entry.lock().holds == 0;
            if hopeless || began.elapsed() >= PATIENCE {
                entry.lacks_memory.store(false, Ordering::Relaxed);
                return Err(StartFailure::Admission { needed_bytes: needed, budget_bytes });
            }
            if !self.relieve(entry).await {
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// The error of a session that waited in vain for memory.
    pub(crate) fn lacking_memory(&self, entry: &Entry) -> Option<WakeError> {
        entry.lacks_memory.load(Ordering::Relaxed).then(|| WakeError::Admission {
            needed_bytes: entry.memory().max(FIRST_ESTIMATE),
            budget_bytes: self.shared.config.memory_budget_bytes,
        })
    }

    fn has_room(&self, needed: u64) -> bool {
        let mut used = 0_u64;
        for entry in self.shared.entries.pin().values() {
            if entry.admitted.load(Ordering::Relaxed) || entry.run().is_some() {
                used = used.saturating_add(entry.memory().max(FIRST_ESTIMATE));
            }
        }
        let total = self.shared.capabilities.memory_bytes;
        let floor = total / 1000 * MACHINE_FLOOR_PERMILLE;
        let machine = available_memory().is_none_or(|available| available >= needed.saturating_add(floor));
        machine && used.saturating_add(needed) <= self.shared.config.memory_budget_bytes
    }

    /// Takes the database that has been idle longest down a rung. False when none may go.
    async fn relieve(&self, newcomer: &Arc<Entry>) -> bool {
        let now = Instant::now();
        let mut candidates: Vec<_> = (self.shared.entries.pin().values())
            .filter(|entry| !Arc::ptr_eq(entry, newcomer))
            .filter_map(|entry| Some((entry.gate.idle_for(now), self.relief(entry)?, entry.clone())))
            .collect();
        candidates.sort_by_key(|(idle, _, _)| std::cmp::Reverse(*idle));
        for (_, relief, entry) in candidates {
            let Ok(_step) = entry.steps.try_lock() else { continue };
            let deadline = now + PATIENCE;
            let went = match relief {
                Relief::Freeze => self.freeze_for_memory(&entry).await,
                Relief::Stop => {
                    if entry.lock().ladder.phase() == Phase::Running {
                        self.prepare(&entry).await;
                    }
                    self.try_stop(&entry)
                        && self.stop_entry(&entry, ClosingReason::MemoryPressure, deadline).await.is_ok()
                }
                Relief::StopUnderSessions => {
                    self.stop_entry(&entry, ClosingReason::MemoryPressure, deadline).await.is_ok()
                }
            };
            if went {
                return true;
            }
        }
        false
    }

    fn relief(&self, entry: &Entry) -> Option<Relief> {
        if entry.gate.leases() > 0 {
            return None;
        }
        let inner = entry.lock();
        let yields = inner.settings.stop_under_sessions == Some(true);
        one_rung_down(inner.ladder.phase(), self.shared.capabilities.swap_bytes > 0, inner.holds > 0, yields)
    }

    async fn freeze_for_memory(&self, entry: &Arc<Entry>) -> bool {
        self.prepare(entry).await;
        if !self.try_freeze(entry) {
            return false;
        }
        let before = entry.memory();
        let mut changes = entry.subscribe();
        while matches!(entry.lock().ladder.phase(), Phase::Freezing { .. }) {
            if changes.changed().await.is_err() {
                return false;
            }
        }
        // The task that froze it pushes its memory out too; only when it is out is there room.
        self.push_out(entry).await;
        entry.memory() < before
    }
}

/// The step of an idle database that gives memory back and costs its users least. `yields` says whether it may be stopped
/// although sessions hold it. Freezing gives nothing back where there is no swap to push the memory out to.
fn one_rung_down(phase: Phase, has_swap: bool, is_held: bool, yields: bool) -> Option<Relief> {
    match phase {
        Phase::Running if has_swap => Some(Relief::Freeze),
        Phase::Running | Phase::Frozen if !is_held => Some(Relief::Stop),
        Phase::Running | Phase::Frozen if yields => Some(Relief::StopUnderSessions),
        _ => None,
    }
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_swap_a_running_database_is_frozen_whoever_holds_it_and_stopped_only_from_there() {
        for (is_held, yields) in [(false, false), (true, false), (true, true)] {
            assert_eq!(one_rung_down(Phase::Running, true, is_held, yields), Some(Relief::Freeze));
        }
        assert_eq!(one_rung_down(Phase::Frozen, true, false, false), Some(Relief::Stop));
    }

    #[test]
    fn without_swap_only_a_stop_gives_memory_back() {
        for phase in [Phase::Running, Phase::Frozen] {
            assert_eq!(one_rung_down(phase, false, false, false), Some(Relief::Stop));
        }
    }

    #[test]
    fn sessions_keep_a_database_unless_its_owner_lets_it_go() {
        for has_swap in [true, false] {
            assert_eq!(one_rung_down(Phase::Frozen, has_swap, true, false), None);
            assert_eq!(one_rung_down(Phase::Frozen, has_swap, true, true), Some(Relief::StopUnderSessions));
        }
        assert_eq!(one_rung_down(Phase::Running, false, true, false), None);
    }

    #[test]
    fn what_is_on_its_way_already_is_left_alone() {
        let now = Instant::now();
        for phase in [Phase::Stopped, Phase::Starting, Phase::Thawing, Phase::BackingOff { until: now }] {
            assert_eq!(one_rung_down(phase, true, false, true), None, "{phase:?}");
        }
    }
}
