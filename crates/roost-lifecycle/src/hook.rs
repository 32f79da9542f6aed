//! Bounded steps of other parts at turns of the ladder, wired by the binary: the pool closes parked connections, a
//! stream drains.

use std::fmt;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use roost_catalog::id::DatabaseId;

/// What a hook is told about.
#[derive(Debug, Clone, Copy)]
pub struct HookContext<'a> {
    /// The database.
    pub database: &'a DatabaseId,
    /// The directory of its socket.
    pub socket_dir: &'a Path,
}

/// A hook's answer.
pub type HookFuture<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// Steps at turns of the ladder. Each is given [`Hook::bound`] at most; one that fails or takes longer before a step down
/// is logged and the step goes on, after a start it fails the start.
pub trait Hook: fmt::Debug + Send + Sync {
    /// The name for logs and errors.
    fn name(&self) -> &'static str;

    /// The longest that one of its steps may take.
    fn bound(&self) -> Duration {
        Duration::from_secs(2)
    }

    /// Before sessions enter a fresh instance.
    fn after_start<'a>(&'a self, _context: HookContext<'a>) -> HookFuture<'a> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Before an idle instance is frozen.
    fn before_freeze<'a>(&'a self, _context: HookContext<'a>) -> HookFuture<'a> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Before an instance is shut down.
    fn before_stop<'a>(&'a self, _context: HookContext<'a>) -> HookFuture<'a> {
        Box::pin(std::future::ready(Ok(())))
    }
}
