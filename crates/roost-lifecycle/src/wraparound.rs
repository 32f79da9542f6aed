//! Databases that sleep seconds after each burst never meet autovacuum, which looks once a minute, and Postgres stops
//! taking writes when its oldest transaction id becomes too old. So the age that was read at the last step down is looked
//! at from time to time, and a database where it is dangerous is woken and held awake until it has been vacuumed.
//!
//! The owner's tables are vacuumed as their owner. What is nobody's (templates, Roost's own database) is left to
//! autovacuum, the only one that may safely run as superuser everywhere. It would begin with one database after a minute
//! and go on to the next a minute later, so it is told to hurry meanwhile.

use std::sync::atomic::Ordering;
use std::time::Duration;

use roost_catalog::id::DatabaseId;
use roost_catalog::model::UsageDelta;
use roost_postgres::control::Control;
use roost_postgres::maintenance;
use tokio::time::Instant;

use crate::Lifecycle;
use crate::entry::Entry;
use crate::prepare::no_usage;
use crate::presence::Presence;

/// The pause before the first look at the catalog: a node that was down for long is late, but its clients come first.
const FIRST: Duration = Duration::from_secs(5);
/// The pause between two looks.
const INTERVAL: Duration = Duration::from_secs(600);
/// How many databases are taken care of, one after the other, after one look.
const AT_ONCE: u32 = 32;
/// How long a database may take to wake for this.
const WAKE: Duration = Duration::from_secs(600);
/// How long it is held awake at most. What is not done then goes on after the next look.
const HELD: Duration = Duration::from_secs(3600);
/// What maintenance by Roost itself may take of that: the tables of the owner. Autovacuum does the catalogs.
const OWN_TABLES: Duration = Duration::from_secs(600);
/// The pause between two looks at the age.
const PROGRESS: Duration = Duration::from_secs(2);
/// What makes autovacuum begin at once and go on from database to database, whatever was configured.
pub(crate) const HURRY: [(&str, &str); 2] = [("autovacuum", "on"), ("autovacuum_naptime", "1s")];

impl Lifecycle {
    /// Wakes databases that have to be vacuumed, for as long as the node lives.
    pub(crate) async fn prevent_wraparound(self) {
        let mut pause = FIRST;
        loop {
            tokio::time::sleep(std::mem::replace(&mut pause, INTERVAL)).await;
            if self.shared.shutting_down.load(Ordering::Acquire) {
                return;
            }
            let limit = self.shared.config.xid_age_limit;
            let old = match self.shared.catalog.databases_of_xid_age(limit, AT_ONCE).await {
                Ok(old) => old,
                Err(error) => {
                    tracing::error!(%error, "the ages of transaction ids could not be read");
                    continue;
                }
            };
            for id in old {
                self.hold_until_vacuumed(&id, limit).await;
            }
        }
    }

    async fn hold_until_vacuumed(&self, id: &DatabaseId, limit: u64) {
        tracing::warn!(database = %id, "its oldest transaction id is dangerously old: it is woken and vacuumed");
        let presence = match self.acquire(id, Instant::now() + WAKE).await {
            Ok(presence) => presence,
            Err(error) => {
                tracing::error!(database = %id, %error, "it could not be woken to be vacuumed");
                return;
            }
        };
        let closing = presence.closing();
        self.let_autovacuum_hurry(presence.entry(), true).await;
        let vacuuming = self.vacuum(&presence, limit);
        tokio::select! {
            age = vacuuming => tracing::info!(database = %id, ?age, "vacuumed"),
            reason = closing => tracing::warn!(database = %id, ?reason, "ended while it was vacuumed"),
            _ = tokio::time::sleep(HELD) => tracing::error!(database = %id, "not vacuumed after {HELD:?}"),
        }
        self.let_autovacuum_hurry(presence.entry(), false).await;
    }

    async fn let_autovacuum_hurry(&self, entry: &Entry, hurries: bool) {
        entry.autovacuum_hurries.store(hurries, Ordering::SeqCst);
        entry.reload_due.store(true, Ordering::SeqCst);
        if let Err(error) = self.reload_if_due(entry).await {
            tracing::error!(database = %entry.id, %error, hurries, "autovacuum's pace could not be changed");
        }
    }

    /// Returns the age once it is well below the limit.
    async fn vacuum(&self, presence: &Presence, limit: u64) -> u64 {
        let report = maintenance::run(presence.socket_dir(), OWN_TABLES).await;
        tracing::info!(database = %presence.database(), ?report, "maintenance against wraparound");
        loop {
            let age = async {
                Control::connect(presence.socket_dir(), Instant::now() + PROGRESS).await?.xid_age().await
            };
            match age.await {
                Ok(age) => {
                    let usage = UsageDelta { xid_age: Some(age), ..no_usage(presence.entry()) };
                    self.shared.catalog.record_usage(usage);
                    if age < limit / 4 * 3 {
                        return age;
                    }
                }
                Err(error) => tracing::warn!(database = %presence.database(), %error, "no age could be read"),
            }
            tokio::time::sleep(PROGRESS).await;
        }
    }
}
