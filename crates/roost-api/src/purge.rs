//! Removing deleted databases for ever.

use roost_catalog::Moment;
use roost_catalog::id::DatabaseId;
use roost_lifecycle::ClosingReason;
use tokio::time::Instant;

use crate::context::Context;
use crate::error::ApiError;

/// Removes a deleted database for ever: it can no longer be undeleted, then its files go, then its row. What is
/// interrupted shows up among the expired deletions again.
pub(crate) async fn purge(context: &Context, id: &DatabaseId) -> Result<(), ApiError> {
    context.catalog.begin_purge(id).await?;
    let deadline = Instant::now() + context.config.stop_timeout;
    context.machine.stop(id, ClosingReason::Deleted, deadline).await?;
    context.machine.delete_files(id).await?;
    context.catalog.purge_database(id).await?;
    tracing::info!(database = %id, "purged");
    Ok(())
}

/// Removes all databases whose time to be undeleted is over; returns how many.
///
/// One that fails does not keep the others; it is tried again with the next call.
pub(crate) async fn purge_expired(context: &Context) -> Result<usize, ApiError> {
    let expired = context.catalog.expired_deletions(Moment::now(), context.config.purge_after).await?;
    let mut purged = 0;
    for id in &expired {
        match purge(context, id).await {
            Ok(()) => purged += 1,
            Err(error) => tracing::warn!(database = %id, %error, "could not purge a database"),
        }
    }
    Ok(purged)
}
