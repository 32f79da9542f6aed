//! From what the kernel says to what the node is told.

use std::io;

use crate::protocol::WardenError;

/// Names the step that a system call failed in.
pub(crate) trait Step<T> {
    /// The error for the node, with the step's name in it.
    fn step(self, step: &str) -> Result<T, WardenError>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, step: &str) -> Result<T, WardenError> {
        self.map_err(|error| refused(step, &error))
    }
}

/// The error of a step that failed; a full file system is told apart, because something can be done about it.
pub(crate) fn refused(step: &str, error: &io::Error) -> WardenError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            WardenError::StorageFull { step: step.to_owned() }
        }
        _ => WardenError::SetUpFailed { step: step.to_owned(), detail: error.to_string() },
    }
}

/// The error of a request that failed outside of a start.
pub(crate) fn system(step: &str, error: &io::Error) -> WardenError {
    match refused(step, error) {
        WardenError::SetUpFailed { step, detail } => WardenError::System { step, detail },
        other => other,
    }
}
