//! What the API asks of the node besides the catalog: steps on the ladder, and the files of databases.
//!
//! [`Lifecycle`] is the real one; tests have their own.

use std::fmt;
use std::os::fd::OwnedFd;
use std::pin::Pin;

use roost_catalog::id::DatabaseId;
use roost_lifecycle::{Census, ClosingReason, Lifecycle, LifecycleConfig, Snapshot, StepError};
use roost_postgres::volume::VolumeId;
use roost_warden::WardenError;
use roost_warden::protocol::Capabilities;
use tokio::time::Instant;

/// An answer that takes a while.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The ladder of a node and the files below it.
pub trait Machine: fmt::Debug + Send + Sync {
    /// The node's defaults.
    fn config(&self) -> &LifecycleConfig;
    /// What the warden can do here.
    fn capabilities(&self) -> &Capabilities;
    /// What is known of a database without waking it.
    fn snapshot(&self, id: &DatabaseId) -> Snapshot;

    /// The databases in memory by state.
    fn census(&self) -> Census;
    /// Wakes a database.
    fn wake<'a>(&'a self, id: &'a DatabaseId, deadline: Instant) -> Answer<'a, Result<(), StepError>>;
    /// Freezes a database.
    fn freeze<'a>(&'a self, id: &'a DatabaseId) -> Answer<'a, Result<(), StepError>>;
    /// Stops a database; its sessions are told why.
    fn stop<'a>(
        &'a self,
        id: &'a DatabaseId,
        reason: ClosingReason,
        deadline: Instant,
    ) -> Answer<'a, Result<(), StepError>>;
    /// Puts changed settings into force, as far as that needs no restart.
    fn settings_changed<'a>(&'a self, id: &'a DatabaseId) -> Answer<'a, Result<(), StepError>>;
    /// Removes a stopped database's files for ever.
    fn delete_files<'a>(&'a self, id: &'a DatabaseId) -> Answer<'a, Result<(), WardenError>>;
    /// Writes a stopped database's files as a tar stream.
    fn export<'a>(&'a self, id: &'a DatabaseId, to: OwnedFd) -> Answer<'a, Result<u64, WardenError>>;
    /// Makes a database's files of such a stream.
    fn import<'a>(
        &'a self,
        id: &'a DatabaseId,
        major: u16,
        system_identifier: u64,
        from: OwnedFd,
    ) -> Answer<'a, Result<u64, WardenError>>;
}

/// A database's volume has its name.
fn volume(id: &DatabaseId) -> Result<VolumeId, WardenError> {
    id.to_string()
        .parse()
        .map_err(|_| WardenError::InvalidRequest { detail: format!("{id} names no volume") })
}

impl Machine for Lifecycle {
    fn config(&self) -> &LifecycleConfig {
        Lifecycle::config(self)
    }

    fn capabilities(&self) -> &Capabilities {
        Lifecycle::capabilities(self)
    }

    fn snapshot(&self, id: &DatabaseId) -> Snapshot {
        Lifecycle::snapshot(self, id)
    }

    fn census(&self) -> Census {
        Lifecycle::census(self)
    }

    fn wake<'a>(&'a self, id: &'a DatabaseId, deadline: Instant) -> Answer<'a, Result<(), StepError>> {
        Box::pin(async move { Lifecycle::wake(self, id, deadline).await.map_err(StepError::Wake) })
    }

    fn freeze<'a>(&'a self, id: &'a DatabaseId) -> Answer<'a, Result<(), StepError>> {
        Box::pin(Lifecycle::freeze(self, id))
    }

    fn stop<'a>(
        &'a self,
        id: &'a DatabaseId,
        reason: ClosingReason,
        deadline: Instant,
    ) -> Answer<'a, Result<(), StepError>> {
        Box::pin(Lifecycle::stop(self, id, reason, deadline))
    }

    fn settings_changed<'a>(&'a self, id: &'a DatabaseId) -> Answer<'a, Result<(), StepError>> {
        Box::pin(Lifecycle::settings_changed(self, id))
    }

    fn delete_files<'a>(&'a self, id: &'a DatabaseId) -> Answer<'a, Result<(), WardenError>> {
        Box::pin(async move { self.warden().delete_volume(&volume(id)?).await })
    }

    fn export<'a>(&'a self, id: &'a DatabaseId, to: OwnedFd) -> Answer<'a, Result<u64, WardenError>> {
        Box::pin(async move { self.warden().export(&volume(id)?, to).await })
    }

    fn import<'a>(
        &'a self,
        id: &'a DatabaseId,
        major: u16,
        system_identifier: u64,
        from: OwnedFd,
    ) -> Answer<'a, Result<u64, WardenError>> {
        Box::pin(async move { self.warden().import(&volume(id)?, major, system_identifier, from).await })
    }
}
