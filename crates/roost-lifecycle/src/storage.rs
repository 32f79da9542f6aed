//! Storage limits, kept by a watcher: a database over its limit becomes read-only by default (its owner may still override
//! that to delete), and one that goes on growing is stopped. When the node's own file system runs short, every running
//! database becomes read-only, and those that go on growing are stopped, before a Postgres that cannot write its log
//! panics.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use crate::Lifecycle;
use crate::entry::{ClosingReason, Entry};
use crate::ladder::Phase;

/// How often free space is looked at.
const FREE_SPACE_INTERVAL: Duration = Duration::from_millis(250);
/// How many of those lie between two measurements of volumes.
const VOLUME_TICKS: u32 = 8;
/// How many volumes are measured at most each time.
const VOLUMES_AT_ONCE: usize = 64;
/// How far a database may overrun its limit while it is read-only before it is stopped: this much, and a tenth.
const HARD_MARGIN: u64 = 64 << 20;
/// How long a database that is stopped for want of storage is waited for.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

impl Lifecycle {
    /// Watches free space and volumes for as long as the node lives.
    pub(crate) async fn watch_storage(self) {
        let mut ticks = tokio::time::interval(FREE_SPACE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0_u32;
        loop {
            ticks.tick().await;
            if self.shared.shutting_down.load(Ordering::Acquire) {
                return;
            }
            count = count.wrapping_add(1);
            let short = self.check_free_space().await;
            if short || count.is_multiple_of(VOLUME_TICKS) {
                self.check_volumes(short).await;
            }
        }
    }

    /// Looks at the file system; true while it is so short that growing databases must be stopped.
    async fn check_free_space(&self) -> bool {
        let Some((free, total)) = file_system_space(&self.shared.config.data) else { return false };
        let reserve = match self.shared.config.storage_reserve_bytes {
            0 => 0,
            bytes => bytes.max(total / 20),
        };
        let was_short = self.shared.storage_short.load(Ordering::Relaxed);
        // Relief is granted only with some room to spare, or the node would flap.
        let is_short = if was_short { free < reserve + reserve / 10 } else { free < reserve };
        if is_short != was_short {
            self.shared.storage_short.store(is_short, Ordering::Relaxed);
            tracing::warn!(free, reserve, is_short, "free space against the node's reserve");
            for entry in self.running() {
                self.apply_read_only(&entry).await;
            }
        }
        free < reserve / 2
    }

    async fn check_volumes(&self, stop_growing: bool) {
        for entry in self.running().into_iter().take(VOLUMES_AT_ONCE) {
            let activity = entry.gate.last_active();
            let measured = entry.measured_at.swap(activity, Ordering::Relaxed);
            if measured == activity && entry.gate.leases() == 0 && !stop_growing {
                continue;
            }
            let before = entry.volume_bytes.load(Ordering::Relaxed);
            let Some(bytes) = self.measure(&entry).await else { continue };
            let limit = self.shared.config.storage(&entry.lock().settings);
            let over = bytes > limit;
            let was_over = entry.read_only.load(Ordering::Relaxed);
            if over != was_over && (over || bytes < limit - limit / 20) {
                entry.read_only.store(over, Ordering::Relaxed);
                tracing::warn!(database = %entry.id, bytes, limit, over, "volume against its storage limit");
                self.apply_read_only(&entry).await;
            }
            let far_over = bytes > limit.saturating_add(limit / 10).saturating_add(HARD_MARGIN);
            let growing = stop_growing && before > 0 && bytes > before.saturating_add(HARD_MARGIN / 4);
            if far_over && bytes > before || growing {
                let lifecycle = self.clone();
                tokio::spawn(async move {
                    let deadline = Instant::now() + STOP_PATIENCE;
                    let stop = lifecycle.stop_entry(&entry, ClosingReason::StorageFull, deadline);
                    if let Err(error) = stop.await {
                        tracing::error!(database = %entry.id, %error, "a growing database could not be stopped");
                    }
                });
            }
        }
    }

    fn running(&self) -> Vec<Arc<Entry>> {
        let entries = self.shared.entries.pin();
        entries.values().filter(|entry| entry.lock().ladder.phase() == Phase::Running).cloned().collect()
    }

    async fn apply_read_only(&self, entry: &Entry) {
        if let Err(error) = self.reload(entry).await {
            tracing::error!(database = %entry.id, %error, "the read-only default could not be changed");
        }
    }
}

/// Free and total bytes of the file system of a path.
fn file_system_space(path: &std::path::Path) -> Option<(u64, u64)> {
    let space = rustix::fs::statvfs(path).ok()?;
    Some((space.f_bavail.saturating_mul(space.f_frsize), space.f_blocks.saturating_mul(space.f_frsize)))
}
