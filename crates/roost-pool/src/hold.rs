//! What a server session holds on the ladder while it lives.

use std::future::Future;
use std::path::Path;

use roost_lifecycle::{ClosingReason, Presence, Shortage, WakeError};
use tokio::time::Instant;

/// A presence hold on a database, with an activity lease that comes and goes. Dropping it releases both.
///
/// The lease is taken before the first byte of a request goes to Postgres and given back when Postgres owes nothing, so
/// [`try_begin`](Hold::try_begin) and [`end`](Hold::end) are on the path of every transaction.
pub trait Hold: Send + 'static {
    /// The directory that the instance's unix socket lies in.
    fn socket_dir(&self) -> &Path;

    /// Takes the activity lease if the database is running; `false` means that [`begin`](Hold::begin) must thaw it.
    fn try_begin(&mut self) -> bool;

    /// Takes the activity lease, waiting until the database runs.
    fn begin(&mut self, deadline: Instant) -> impl Future<Output = Result<(), WakeError>> + Send;

    /// Gives the activity lease back.
    fn end(&mut self);

    /// Whether the activity lease is held.
    fn is_active(&self) -> bool;

    /// Why the database is read-only for want of storage, if it is. Asked for every packet of the server.
    fn shortage(&self) -> Option<Shortage>;

    /// Whether the instance is taken away from this session. Known before its Postgres is shut down.
    fn is_closing(&self) -> bool;

    /// Resolves when the instance is taken away from this session.
    fn closing(&self) -> impl Future<Output = ClosingReason> + Send + 'static;
}

impl Hold for Presence {
    fn socket_dir(&self) -> &Path {
        Presence::socket_dir(self)
    }

    #[inline]
    fn try_begin(&mut self) -> bool {
        Presence::try_begin(self)
    }

    fn begin(&mut self, deadline: Instant) -> impl Future<Output = Result<(), WakeError>> + Send {
        Presence::begin(self, deadline)
    }

    #[inline]
    fn end(&mut self) {
        Presence::end(self);
    }

    #[inline]
    fn is_active(&self) -> bool {
        Presence::is_active(self)
    }

    #[inline]
    fn shortage(&self) -> Option<Shortage> {
        Presence::shortage(self)
    }

    fn is_closing(&self) -> bool {
        Presence::is_closing(self)
    }

    fn closing(&self) -> impl Future<Output = ClosingReason> + Send + 'static {
        Presence::closing(self)
    }
}
