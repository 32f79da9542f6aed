//! Why a database could not be had. The gateway maps each kind to an SQLSTATE and a text in one place.

use std::sync::Arc;
use std::time::Duration;

use roost_catalog::CatalogError;
use roost_catalog::model::State;
use roost_warden::WardenError;

use crate::entry::ClosingReason;

/// Why a session did not get its database.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WakeError {
    /// No such database, or it was deleted.
    #[error("the database does not exist")]
    NotFound,
    /// It did not run in time.
    #[error("the database was still {state} after {waited:?}")]
    Deadline {
        /// How long the session waited.
        waited: Duration,
        /// What the database was doing.
        state: State,
    },
    /// Postgres did not start.
    #[error("the database did not start: {cause}")]
    Failed {
        /// What went wrong.
        cause: Arc<StartFailure>,
        /// When the next start is allowed.
        retry_in: Duration,
    },
    /// Memory is short and no other database could go down a rung.
    #[error(
        "no memory for another database: {needed_bytes} bytes are needed within a budget of {budget_bytes} bytes"
    )]
    Admission {
        /// What the start needs.
        needed_bytes: u64,
        /// The node's budget (`limits.memory_budget`).
        budget_bytes: u64,
    },
    /// The run that the session belongs to was taken away, or died.
    #[error("the database was taken away from the session: {0:?}")]
    Closing(ClosingReason),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
}

/// Why a start failed.
#[derive(Debug, thiserror::Error)]
pub enum StartFailure {
    /// The warden could not start it, or Postgres refused.
    #[error(transparent)]
    Warden(#[from] WardenError),
    /// The catalog could not be read or written.
    #[error("the catalog failed: {0}")]
    Catalog(#[from] CatalogError),
    /// A hook that must succeed before sessions enter did not.
    #[error("{hook} failed: {detail}")]
    Hook {
        /// The hook's name.
        hook: &'static str,
        /// Why.
        detail: String,
    },
    /// Memory was short, and no other database could go down a rung.
    #[error("no memory: {needed_bytes} bytes are needed within a budget of {budget_bytes} bytes")]
    Admission {
        /// What the start needs.
        needed_bytes: u64,
        /// The node's budget (`limits.memory_budget`).
        budget_bytes: u64,
    },
    /// The reserve of free disk space is nearly used up, and this database is one of those that went on growing.
    #[error(
        "free disk space is far below the reserve of {reserve_bytes} bytes, and the database went on growing"
    )]
    Reserve {
        /// The reserve (`limits.storage_reserve`).
        reserve_bytes: u64,
    },
    /// It was deleted while it waited for its turn.
    #[error("the database was deleted")]
    Deleted,
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
}

/// Why a step asked for by hand was not made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StepError {
    /// It could not be woken.
    #[error(transparent)]
    Wake(#[from] WakeError),
    /// Sessions are active.
    #[error("{active} of its sessions are active")]
    Busy {
        /// Activity leases that are out.
        active: u64,
    },
    /// The state does not allow the step.
    #[error("the database is {state}")]
    WrongState {
        /// What it is.
        state: State,
    },
    /// The warden failed.
    #[error("{0}")]
    Warden(Arc<WardenError>),
    /// The step did not end in time.
    #[error("not done after {0:?}")]
    Deadline(Duration),
}
