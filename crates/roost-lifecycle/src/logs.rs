//! Size-capped logs: Postgres appends to a plain file, because a pipe would stop it when its reader dies, so somebody has
//! to keep the file short.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::Lifecycle;

/// How often logs are looked at. Between two looks a database writes what its disk takes, at the most.
const INTERVAL: Duration = Duration::from_secs(1);

impl Lifecycle {
    /// Keeps the logs of running databases short for as long as the node lives.
    pub(crate) async fn cap_logs(self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.shared.shutting_down.load(Ordering::Acquire) {
                return;
            }
            let logs: Vec<_> = (self.shared.entries.pin().values())
                .filter_map(|entry| Some((entry.id, entry.run()?.log.clone())))
                .collect();
            let limit = self.shared.config.log_bytes;
            let capping = tokio::task::spawn_blocking(move || {
                for (database, log) in logs {
                    if let Err(error) = roost_postgres::log::cap(&log, limit) {
                        tracing::error!(%database, %error, "a log could not be kept short");
                    }
                }
            });
            // A panic in there was reported where it happened; the next look is a fresh one.
            let _ = capping.await;
        }
    }
}
