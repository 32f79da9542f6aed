//! What is done before a database goes down a rung: roles are read so that their logins can be checked while it sleeps,
//! statistics are brought up to date because autovacuum never gets a minute in a database that sleeps after seconds, and
//! its size and the age of its oldest transaction id are noted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use roost_catalog::model::{RoleLogin, UsageDelta};
use roost_postgres::control::Control;
use roost_postgres::maintenance;
use tokio::time::Instant;

use crate::Lifecycle;
use crate::entry::{Entry, Run};
use crate::hook::HookContext;

/// How long reading roles may take.
const CONTROL_DEADLINE: Duration = Duration::from_secs(5);

impl Lifecycle {
    /// Prepares a running database for sleep, unless nothing was active since that was last done.
    pub(crate) async fn prepare(&self, entry: &Arc<Entry>) {
        let Some(run) = entry.run() else { return };
        let activity = entry.gate.last_active();
        if entry.prepared_at.load(Ordering::Relaxed) == activity {
            return;
        }
        for hook in &self.shared.hooks {
            let context = HookContext { database: &entry.id, socket_dir: &run.socket_dir };
            let step = tokio::time::timeout(hook.bound(), hook.before_freeze(context));
            if !matches!(step.await, Ok(Ok(()))) {
                tracing::warn!(database = %entry.id, hook = hook.name(), "a hook before the step down failed");
            }
        }
        self.read_roles(entry, &run).await;
        let budget = self.shared.config.maintenance_budget;
        let began = Instant::now();
        let report = maintenance::run(&run.socket_dir, budget).await;
        self.shared.metrics.maintained(began.elapsed());
        tracing::debug!(database = %entry.id, ?report, "maintenance before sleep");
        self.measure(entry).await;
        entry.prepared_at.store(activity, Ordering::Relaxed);
    }

    /// Keeps the roles' verifiers and the oldest transaction id's age in the catalog.
    pub(crate) async fn read_roles(&self, entry: &Entry, run: &Run) {
        let read = async {
            let control = Control::connect(&run.socket_dir, Instant::now() + CONTROL_DEADLINE).await?;
            let found = (control.roles().await?, control.xid_age().await?);
            control.close().await;
            Ok::<_, roost_postgres::control::SessionError>(found)
        };
        match tokio::time::timeout(CONTROL_DEADLINE, read).await {
            Ok(Ok((roles, xid_age))) => {
                let roles = roles
                    .into_iter()
                    .map(|role| RoleLogin {
                        role: role.name,
                        verifier: role.verifier,
                        can_login: role.can_login,
                        valid_until: role.valid_until,
                    })
                    .collect();
                if let Err(error) = self.shared.catalog.put_roles(&entry.id, roles).await {
                    tracing::error!(database = %entry.id, %error, "roles were not kept");
                }
                self.shared.catalog.record_usage(UsageDelta { xid_age: Some(xid_age), ..no_usage(entry) });
            }
            Ok(Err(error)) => tracing::warn!(database = %entry.id, %error, "roles could not be read"),
            Err(_) => tracing::warn!(database = %entry.id, "roles were not read in time"),
        }
    }

    /// Notes the size of the volume and the memory of the instance.
    pub(crate) async fn measure(&self, entry: &Entry) -> Option<u64> {
        if let Ok(usage) = self.shared.warden.usage(&entry.volume).await {
            entry.memory_bytes.store(usage.memory_bytes, Ordering::Relaxed);
        }
        let mark = self.shared.storage.mark(entry);
        let bytes = self.shared.warden.volume_bytes(&entry.volume).await.ok()?;
        entry.size().measured(bytes, mark);
        self.shared.catalog.record_usage(UsageDelta { size_bytes: Some(bytes), ..no_usage(entry) });
        Some(bytes)
    }
}

/// A usage record that adds nothing.
pub(crate) fn no_usage(entry: &Entry) -> UsageDelta {
    UsageDelta {
        database: entry.id,
        sessions: 0,
        bytes_in: 0,
        bytes_out: 0,
        cpu: Duration::ZERO,
        running: Duration::ZERO,
        last_used_at: None,
        size_bytes: None,
        xid_age: None,
    }
}
