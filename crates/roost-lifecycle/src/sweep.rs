//! The idle policy: every sweep looks at each database in memory and starts the step down that is due.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use roost_catalog::model::IdleAfter;
use tokio::time::{Duration, Instant, MissedTickBehavior};

use crate::Lifecycle;
use crate::entry::Entry;
use crate::ladder::Phase;

/// A failed database is forgotten this long after its back-off ended.
const FORGET_FAILURE: Duration = Duration::from_secs(60);

/// What an idle database is due for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Nothing,
    Freeze,
    Stop,
    Forget,
}

impl Lifecycle {
    /// Looks for idle databases for as long as the node lives.
    pub(crate) async fn sweep(self) {
        let mut ticks = tokio::time::interval(self.shared.config.sweep_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.shared.shutting_down.load(Ordering::Acquire) {
                return;
            }
            let now = Instant::now();
            let due: Vec<_> = (self.shared.entries.pin().values())
                .map(|entry| (entry, self.due(entry, now)))
                .filter(|(_, due)| *due != Due::Nothing)
                .map(|(entry, due)| (entry.clone(), due))
                .collect();
            for (entry, due) in due {
                let lifecycle = self.clone();
                tokio::spawn(async move { lifecycle.step_down(&entry, due).await });
            }
        }
    }

    fn due(&self, entry: &Entry, now: Instant) -> Due {
        let idle = entry.gate.idle_for(now);
        let inner = entry.lock();
        let over = |limit| matches!(limit, IdleAfter::After(limit) if idle >= limit);
        let stop = inner.holds == 0 && over(self.shared.config.idle_stop(&inner.settings));
        match inner.ladder.phase() {
            Phase::Running if entry.gate.leases() > 0 => Due::Nothing,
            Phase::Running | Phase::Frozen if stop => Due::Stop,
            Phase::Running if over(self.shared.config.idle_freeze(&inner.settings)) => Due::Freeze,
            Phase::BackingOff { until } if inner.holds == 0 && now >= until + FORGET_FAILURE => Due::Forget,
            _ => Due::Nothing,
        }
    }

    async fn step_down(&self, entry: &Arc<Entry>, due: Due) {
        // Whoever makes a step already will be followed by the next sweep.
        let Ok(_step) = entry.steps.try_lock() else { return };
        match due {
            Due::Nothing => {}
            Due::Forget => {
                let deadline = Instant::now() + Duration::from_secs(1);
                let _ = self.stop_entry(entry, crate::ClosingReason::Stopped, deadline).await;
            }
            Due::Freeze => {
                self.prepare(entry).await;
                if self.due(entry, Instant::now()) == Due::Freeze {
                    self.try_freeze(entry);
                }
            }
            Due::Stop => {
                if entry.lock().ladder.phase() == Phase::Running {
                    self.prepare(entry).await;
                }
                if self.due(entry, Instant::now()) == Due::Stop {
                    self.try_stop(entry);
                }
            }
        }
    }
}
