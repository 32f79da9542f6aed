//! Adoption: instances of an earlier node that still run become entries of this one, as they are.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use roost_catalog::id::DatabaseId;
use roost_catalog::model::State;
use roost_warden::{Instance, WardenError};
use tokio::time::Instant;

use crate::Lifecycle;
use crate::entry::{ClosingReason, Entry};
use crate::ladder::Event;

/// How long an instance whose database is gone has to stop.
const ORPHAN_STOP: Duration = Duration::from_secs(120);

impl Lifecycle {
    /// Adopts whatever runs.
    pub(crate) async fn adopt(&self) -> Result<(), WardenError> {
        for instance in self.shared.warden.instances().await? {
            self.adopt_instance(instance).await;
        }
        Ok(())
    }

    async fn adopt_instance(&self, instance: Instance) {
        let Ok(id) = instance.volume.as_str().parse::<DatabaseId>() else { return };
        let now = Instant::now();
        let Some(entry) = Entry::new(id, now) else { return };
        let entry = Arc::new(entry);
        let database = self.shared.catalog.database(&id).await.ok().flatten();
        let wanted = database.as_ref().is_some_and(|database| database.deleted_at.is_none());
        let settings = database.map(|database| database.settings).unwrap_or_default();
        let frozen = instance.frozen;
        tracing::info!(database = %id, pid = instance.pid, frozen, wanted, "an instance is adopted");
        let run = self.install(&entry, instance, Arc::new(settings));
        // Nobody knows what the earlier node last told it.
        entry.reload_due.store(true, Ordering::SeqCst);
        let mut inner = entry.lock();
        inner.run = Some(run.clone());
        let event = if frozen { Event::AdoptedFrozen } else { Event::AdoptedRunning };
        let command = entry.on(&mut inner, event, now);
        drop(inner);
        let _ = self.shared.entries.pin().insert(id, entry.clone());
        self.carry_out(&entry, command);
        if *run.exited.borrow() {
            self.exited(&entry, run.generation);
        }
        let state = if frozen { State::Frozen } else { State::Running };
        self.record(&entry, state, state, Duration::ZERO, "adopted");
        let lifecycle = self.clone();
        if wanted {
            tokio::spawn(async move {
                if let Err(error) = lifecycle.reload_if_due(&entry).await {
                    tracing::error!(database = %id, %error, "settings did not reach an adopted instance");
                }
            });
        } else {
            tokio::spawn(async move {
                let deadline = Instant::now() + ORPHAN_STOP;
                let _ = lifecycle.stop_entry(&entry, ClosingReason::Deleted, deadline).await;
            });
        }
    }
}
