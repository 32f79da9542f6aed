//! What a client is told of a database that is read-only for want of storage: when it connects, and when a write of its
//! is refused.

use roost_lifecycle::Shortage;
use roost_wire::error::{ErrorFields, Severity, SqlState};

/// The way out, which works for the owner of the data: a transaction may ask to write, and VACUUM is always allowed.
const MAKE_ROOM: &str = "Make room: BEGIN READ WRITE begins a transaction that may DROP, TRUNCATE or DELETE (after \
                         DELETE, VACUUM gives the room back).";

/// A warning that names the bound, its value, the setting that changes it, and the way out.
pub(crate) fn warning(shortage: Shortage) -> ErrorFields {
    let (message, otherwise) = match shortage {
        Shortage::Limit { bytes } => (
            format!(
                "the database is read-only: it is over its storage limit of {} (storage)",
                mebibytes(bytes)
            ),
            "Or have the limit raised: roost set NAME storage=SIZE.",
        ),
        Shortage::Reserve { bytes } => (
            format!(
                "the database is read-only: the machine's free disk space is below the reserve of {} \
                 (limits.storage_reserve), and this database grew",
                mebibytes(bytes)
            ),
            "Or have the machine's operator make room.",
        ),
    };
    ErrorFields {
        severity: Severity::Warning,
        code: SqlState::DISK_FULL,
        message,
        detail: None,
        hint: Some(format!("{MAKE_ROOM} {otherwise}")),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
