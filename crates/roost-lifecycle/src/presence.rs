//! What a session holds while it uses a database: a presence hold for as long as the [`Presence`] lives, and an activity
//! lease whenever Postgres owes it something.

use std::path::Path;
use std::sync::Arc;

use roost_catalog::id::DatabaseId;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Lifecycle;
use crate::entry::{ClosingReason, Entry, Run};
use crate::error::WakeError;
use crate::shortage::Shortage;

/// A session's hold on a database. Dropping it releases the lease and the hold.
#[derive(Debug)]
pub struct Presence {
    lifecycle: Lifecycle,
    entry: Arc<Entry>,
    run: Option<Arc<Run>>,
    active: bool,
}

impl Presence {
    /// Counts a hold on an entry that its caller has already marked under the entry's lock.
    pub(crate) const fn held(lifecycle: Lifecycle, entry: Arc<Entry>) -> Self {
        Self { lifecycle, entry, run: None, active: false }
    }

    /// Binds the hold to the run that serves it, with a lease taken.
    pub(crate) fn entered(&mut self, run: Arc<Run>) {
        self.run = Some(run);
        self.active = true;
    }

    pub(crate) const fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// The database.
    pub fn database(&self) -> &DatabaseId {
        &self.entry.id
    }

    /// The directory of the instance's unix socket. Empty until the database was woken, which [`Lifecycle::acquire`]
    /// did before it handed this out.
    pub fn socket_dir(&self) -> &Path {
        self.run.as_ref().map_or(Path::new(""), |run| &run.socket_dir)
    }

    /// Takes the activity lease if the database is running: two atomic operations, no lock.
    #[inline]
    pub fn try_begin(&mut self) -> bool {
        if !self.active {
            self.active = self.entry.gate.enter();
        }
        self.active
    }

    /// Takes the activity lease, thawing the database if need be.
    ///
    /// # Errors
    ///
    /// When the database cannot be thawed by `deadline`, or is not the run that this session belongs to any more.
    pub async fn begin(&mut self, deadline: Instant) -> Result<(), WakeError> {
        if self.active {
            return Ok(());
        }
        self.lifecycle.enter(&self.entry, self.run.as_deref(), deadline).await?;
        self.active = true;
        Ok(())
    }

    /// Gives the activity lease back: Postgres owes this session nothing.
    #[inline]
    pub fn end(&mut self) {
        if self.active {
            self.active = false;
            self.entry.gate.leave(Instant::now());
        }
    }

    /// Whether the activity lease is held.
    pub const fn is_active(&self) -> bool {
        self.active
    }

    /// Why the database is read-only for want of storage, if it is: one load while it is not.
    #[inline]
    pub fn shortage(&self) -> Option<Shortage> {
        self.entry.shortage.get()
    }

    /// Whether the instance is taken away from this session. Known before its Postgres is shut down.
    pub fn is_closing(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.closing.borrow().is_some())
    }

    /// Resolves when the instance is taken away from this session, with the reason.
    pub fn closing(&self) -> impl Future<Output = ClosingReason> + Send + 'static {
        let receiver: Option<watch::Receiver<Option<ClosingReason>>> =
            self.run.as_ref().map(|run| run.closing.subscribe());
        async move {
            let Some(mut receiver) = receiver else { return std::future::pending().await };
            // A dropped sender means that the run is over and was forgotten, which only a crash's clean-up does first.
            receiver
                .wait_for(Option::is_some)
                .await
                .ok()
                .and_then(|reason| *reason)
                .unwrap_or(ClosingReason::Crashed)
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.end();
        self.lifecycle.release_hold(&self.entry);
    }
}
