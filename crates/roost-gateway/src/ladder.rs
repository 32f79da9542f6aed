//! What the gateway asks of the ladder.

use std::future::Future;

use roost_catalog::id::DatabaseId;
use roost_catalog::model::RoleLogin;
use roost_lifecycle::{Lifecycle, Presence, RoleSource, RoleUnavailable, WakeError};
use roost_pool::Hold;
use tokio::time::Instant;

/// Whoever wakes databases: the node's [`Lifecycle`].
pub trait Ladder: Clone + Send + Sync + 'static {
    /// A session's hold on a database.
    type Hold: Hold;

    /// Wakes a database if need be and holds it for a session, with the activity lease taken.
    fn acquire(
        &self,
        database: &DatabaseId,
        deadline: Instant,
    ) -> impl Future<Output = Result<Self::Hold, WakeError>> + Send;

    /// The password verifier of a role that was made with SQL. Never wakes the database.
    fn role_login(
        &self,
        database: &DatabaseId,
        role: &str,
    ) -> impl Future<Output = Result<(Option<RoleLogin>, RoleSource), RoleUnavailable>> + Send;
}

impl Ladder for Lifecycle {
    type Hold = Presence;

    fn acquire(
        &self,
        database: &DatabaseId,
        deadline: Instant,
    ) -> impl Future<Output = Result<Presence, WakeError>> + Send {
        Lifecycle::acquire(self, database, deadline)
    }

    fn role_login(
        &self,
        database: &DatabaseId,
        role: &str,
    ) -> impl Future<Output = Result<(Option<RoleLogin>, RoleSource), RoleUnavailable>> + Send {
        Lifecycle::role_login(self, database, role)
    }
}
