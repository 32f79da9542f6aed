//! Every way in which a client's connection can end badly, in one closed list. One place decides, for each: the
//! SQLSTATE, what the client reads, how loud the log is, and the label that metrics count it under.
//!
//! A text for a client says what happened and what to do. What went wrong inside the node (paths, causes, other
//! tenants) goes to the log only.

use std::io;
use std::time::Duration;

use roost_lifecycle::{ClosingReason, StartFailure, WakeError};
use roost_warden::WardenError;
use roost_wire::error::SqlState;
use tracing::Level;

use crate::limits::Rate;

/// A part of a connection's startup that says which database is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// A connection id as user name.
    Connection,
    /// The part of the user name after its last dot.
    UserSuffix,
    /// `options=endpoint=NAME`.
    Endpoint,
    /// The first label of the TLS server name.
    ServerName,
    /// The startup parameter `database`.
    Database,
}

impl Key {
    /// How a client's owner knows it.
    const fn words(self) -> &'static str {
        match self {
            Self::Connection => "the connection id in the user name",
            Self::UserSuffix => "the part of the user name after its last dot",
            Self::Endpoint => "the endpoint option",
            Self::ServerName => "the host name",
            Self::Database => "the database parameter",
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ErrorKind {
    // What the client sent.
    /// The client's bytes do not follow the protocol.
    #[error("malformed message: {0}")]
    Protocol(String),
    /// A protocol version that is not spoken here.
    #[error("protocol {major}.{minor} is not supported, only 3.0 to 3.2")]
    UnsupportedProtocol {
        /// Its major number.
        major: u16,
        /// Its minor number.
        minor: u16,
    },
    /// Bytes followed a request for TLS before its answer: somebody may have put them there.
    #[error("received unencrypted data after the request for TLS")]
    PlaintextAfterTlsRequest,
    /// The same negotiation twice.
    #[error("{0} was requested twice")]
    RepeatedNegotiation(&'static str),
    /// Direct TLS without the protocol's name.
    #[error("TLS without a request for it needs the ALPN protocol \"postgresql\"")]
    AlpnMissing,
    /// The TLS handshake failed; nothing can be said to the client any more.
    #[error("TLS handshake failed: {0}")]
    TlsHandshake(io::Error),
    /// This listener takes no plain connections.
    #[error("this address takes TLS connections only")]
    TlsRequired,
    /// The walsender protocol.
    #[error("replication connections are not supported")]
    Replication,
    /// Startup and authentication took too long.
    #[error("the connection did not authenticate within {limit:?} (gateway.startup_deadline)")]
    StartupDeadline {
        /// The bound.
        limit: Duration,
    },

    // Who the client is.
    /// No user name.
    #[error("no user name was given")]
    NoUser,
    /// A wrong password, an unknown user, an unknown database: the client cannot tell which.
    #[error("password authentication failed for user \"{user}\"")]
    WrongPassword {
        /// The user name as given.
        user: String,
    },
    /// A password stored as an md5 hash, which SCRAM cannot check.
    #[error("the password of role \"{role}\" is stored as an md5 hash, which cannot be used to log in")]
    Md5Password {
        /// The role.
        role: String,
    },
    /// A role with NOLOGIN.
    #[error("role \"{role}\" is not permitted to log in")]
    LoginNotPermitted {
        /// The role.
        role: String,
    },
    /// Two keys mean different databases.
    #[error("{} and {} mean different databases", .first.words(), .second.words())]
    KeysDisagree {
        /// The key that the client was authenticated for.
        first: Key,
        /// The other one.
        second: Key,
    },

    // Bounds.
    /// Too many connections.
    #[error("sorry, too many clients: at most {limit} at once (limits.max_sessions)")]
    TooManySessions {
        /// The bound.
        limit: usize,
    },
    /// Too many connections from one address that have not authenticated.
    #[error(
        "too many connections from this address are authenticating: at most {limit} (limits.unauthenticated_per_address)"
    )]
    TooManyUnauthenticated {
        /// The bound.
        limit: u32,
    },
    /// Too many failed logins.
    #[error(
        "too many failed logins from this address: at most {} at once and one more every {:?} ({setting})",
        .rate.burst, .rate.every
    )]
    TooManyFailedLogins {
        /// The setting that changes the bound.
        setting: &'static str,
        /// The bound.
        rate: Rate,
        /// When the next login is looked at.
        retry_in: Duration,
    },

    // The database.
    /// The ladder did not give the database.
    #[error("{}", wake_text(.0))]
    Wake(WakeError),
    /// A sleeping database could not be thawed for an open session.
    #[error("terminating connection: {}", wake_text(.0))]
    Thaw(WakeError),
    /// The roles of a running database could not be read.
    #[error("the database did not answer")]
    RolesUnavailable(String),
    /// The instance's socket failed before a session was open.
    #[error("the database closed the connection before it was ready")]
    ServerUnreachable(String),
    /// Postgres refused the session; the client got its words.
    #[error("the database refused the session")]
    ServerRefused,
    /// The instance is taken away.
    #[error("{}", closing_text(*.0))]
    Closing(ClosingReason),
    /// Postgres closed the session without a word.
    #[error("terminating connection because the server process ended unexpectedly")]
    ServerLost,
    /// Postgres sent something that is not the protocol.
    #[error("the database sent a malformed message")]
    ServerGarbled(String),

    // The node.
    /// The catalog could not be read.
    #[error("the node could not look this login up")]
    Catalog(String),
    /// The node stops taking connections.
    #[error("terminating connection: this Roost node is shutting down")]
    ShuttingDown,
    /// The client went away; nobody is left to tell.
    #[error("the client went away")]
    ClientGone,
}

impl ErrorKind {
    /// The SQLSTATE that the client gets.
    pub(crate) fn sqlstate(&self) -> SqlState {
        match self {
            Self::Protocol(_)
            | Self::PlaintextAfterTlsRequest
            | Self::RepeatedNegotiation(_)
            | Self::AlpnMissing
            | Self::TlsHandshake(_)
            | Self::ServerGarbled(_) => SqlState::PROTOCOL_VIOLATION,
            Self::UnsupportedProtocol { .. } | Self::Replication => SqlState::FEATURE_NOT_SUPPORTED,
            Self::StartupDeadline { .. } => SqlState::QUERY_CANCELED,
            Self::TlsRequired | Self::NoUser | Self::LoginNotPermitted { .. } | Self::KeysDisagree { .. } => {
                SqlState::INVALID_AUTHORIZATION
            }
            Self::WrongPassword { .. } | Self::Md5Password { .. } => SqlState::INVALID_PASSWORD,
            Self::TooManySessions { .. }
            | Self::TooManyUnauthenticated { .. }
            | Self::TooManyFailedLogins { .. } => SqlState::TOO_MANY_CONNECTIONS,
            Self::Wake(error) => wake_sqlstate(error),
            // An open session that ends is "terminated" to its client, whatever the cause.
            Self::Thaw(_) | Self::ShuttingDown => SqlState::ADMIN_SHUTDOWN,
            Self::RolesUnavailable(_) | Self::ServerUnreachable(_) | Self::ServerRefused => {
                SqlState::CANNOT_CONNECT_NOW
            }
            Self::Closing(ClosingReason::Crashed) | Self::ServerLost => SqlState::CRASH_SHUTDOWN,
            Self::Closing(ClosingReason::StorageFull | ClosingReason::NodeStorageShort) => {
                SqlState::DISK_FULL
            }
            Self::Closing(_) => SqlState::ADMIN_SHUTDOWN,
            Self::Catalog(_) => SqlState::SYSTEM_ERROR,
            Self::ClientGone => SqlState::CONNECTION_FAILURE,
        }
    }

    /// What the client can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            Self::TlsRequired => "Connect with sslmode=require.".to_owned(),
            Self::Replication => {
                "Connect without the replication parameter; pg_dump and logical decoding by SQL functions work.".to_owned()
            }
            Self::Md5Password { role } => {
                format!("Set it again with password_encryption = 'scram-sha-256': ALTER ROLE \"{role}\" PASSWORD ...")
            }
            Self::KeysDisagree { .. } => "Remove one of them, or make both name the same database.".to_owned(),
            Self::TooManyFailedLogins { retry_in, .. } => {
                format!("Try again in {} seconds.", retry_in.as_secs().saturating_add(1))
            }
            Self::Wake(error) | Self::Thaw(error) => return wake_hint(error),
            Self::RolesUnavailable(_)
            | Self::ServerUnreachable(_)
            | Self::Closing(ClosingReason::Stopped | ClosingReason::Crashed | ClosingReason::MemoryPressure)
            | Self::ServerLost
            | Self::Catalog(_)
            | Self::ShuttingDown => "Connect again in a moment.".to_owned(),
            Self::Closing(ClosingReason::StorageFull) => {
                "Connect again and remove data, or raise the database's storage limit.".to_owned()
            }
            Self::Closing(ClosingReason::NodeStorageShort) => "Connect again and remove data.".to_owned(),
            _ => return None,
        })
    }

    /// What only the log says.
    pub(crate) fn internal_detail(&self) -> Option<String> {
        Some(match self {
            Self::RolesUnavailable(detail)
            | Self::ServerUnreachable(detail)
            | Self::ServerGarbled(detail)
            | Self::Catalog(detail) => detail.clone(),
            Self::Wake(error) | Self::Thaw(error) => error.to_string(),
            _ => return None,
        })
    }

    /// How loud the log is: what an operator must act on is a warning or an error, what clients do is not.
    pub(crate) const fn level(&self) -> Level {
        match self {
            Self::Catalog(_) => Level::ERROR,
            Self::Wake(
                WakeError::Failed { .. } | WakeError::Admission { .. } | WakeError::Deadline { .. },
            )
            | Self::Thaw(_)
            | Self::TooManySessions { .. }
            | Self::RolesUnavailable(_)
            | Self::ServerUnreachable(_)
            | Self::ServerLost
            | Self::ServerGarbled(_)
            | Self::Closing(
                ClosingReason::Crashed | ClosingReason::StorageFull | ClosingReason::NodeStorageShort,
            ) => Level::WARN,
            Self::WrongPassword { .. }
            | Self::TooManyFailedLogins { .. }
            | Self::TooManyUnauthenticated { .. }
            | Self::KeysDisagree { .. }
            | Self::Md5Password { .. } => Level::INFO,
            _ => Level::DEBUG,
        }
    }

    /// The label that metrics count it under.
    pub(crate) const fn label(&self) -> &'static str {
        match self {
            Self::Protocol(_) => "protocol",
            Self::UnsupportedProtocol { .. } => "unsupported_protocol",
            Self::PlaintextAfterTlsRequest => "plaintext_after_tls_request",
            Self::RepeatedNegotiation(_) => "repeated_negotiation",
            Self::AlpnMissing => "alpn_missing",
            Self::TlsHandshake(_) => "tls_handshake",
            Self::TlsRequired => "tls_required",
            Self::Replication => "replication",
            Self::StartupDeadline { .. } => "startup_deadline",
            Self::NoUser => "no_user",
            Self::WrongPassword { .. } => "wrong_password",
            Self::Md5Password { .. } => "md5_password",
            Self::LoginNotPermitted { .. } => "login_not_permitted",
            Self::KeysDisagree { .. } => "keys_disagree",
            Self::TooManySessions { .. } => "too_many_sessions",
            Self::TooManyUnauthenticated { .. } => "too_many_unauthenticated",
            Self::TooManyFailedLogins { .. } => "too_many_failed_logins",
            Self::Wake(WakeError::NotFound) => "database_deleted",
            Self::Wake(WakeError::Deadline { .. }) => "wake_deadline",
            Self::Wake(WakeError::Failed { .. }) => "wake_failed",
            Self::Wake(WakeError::Admission { .. }) => "wake_no_memory",
            Self::Wake(WakeError::Closing(_)) => "wake_closing",
            Self::Wake(WakeError::ShuttingDown) | Self::ShuttingDown => "shutting_down",
            Self::Thaw(_) => "thaw_failed",
            Self::RolesUnavailable(_) => "roles_unavailable",
            Self::ServerUnreachable(_) => "server_unreachable",
            Self::ServerRefused => "server_refused",
            Self::Closing(ClosingReason::Stopped) => "closed_stopped",
            Self::Closing(ClosingReason::MemoryPressure) => "closed_memory_pressure",
            Self::Closing(ClosingReason::StorageFull) => "closed_storage_full",
            Self::Closing(ClosingReason::NodeStorageShort) => "closed_node_storage_short",
            Self::Closing(ClosingReason::Crashed) => "closed_crashed",
            Self::Closing(ClosingReason::Deleted) => "closed_deleted",
            Self::Closing(ClosingReason::ShuttingDown) => "closed_shutting_down",
            Self::ServerLost => "server_lost",
            Self::ServerGarbled(_) => "server_garbled",
            Self::Catalog(_) => "catalog",
            Self::ClientGone => "client_gone",
        }
    }

    /// Whether a client is there to be told.
    pub(crate) const fn reaches_the_client(&self) -> bool {
        !matches!(self, Self::ClientGone | Self::TlsHandshake(_) | Self::ServerRefused)
    }
}

impl From<io::Error> for ErrorKind {
    /// The client's socket failed: whatever the system calls it, the client is gone.
    fn from(_: io::Error) -> Self {
        Self::ClientGone
    }
}

const fn closing_text(reason: ClosingReason) -> &'static str {
    match reason {
        ClosingReason::Stopped => "terminating connection: the database was stopped by its operator",
        ClosingReason::MemoryPressure => {
            "terminating connection: memory is short and this database's settings allow stopping it under sessions"
        }
        ClosingReason::StorageFull => {
            "terminating connection: the database grew on although it is over its storage limit (storage)"
        }
        ClosingReason::NodeStorageShort => {
            "terminating connection: the machine's free disk space is below the reserve (limits.storage_reserve) and this \
             database grew on"
        }
        ClosingReason::Crashed => {
            "terminating connection because the database crashed; it is being started again"
        }
        ClosingReason::Deleted => "terminating connection: the database was deleted",
        ClosingReason::ShuttingDown => "terminating connection: this Roost node is shutting down",
    }
}

fn wake_text(error: &WakeError) -> String {
    match error {
        WakeError::NotFound => "the database was deleted".to_owned(),
        WakeError::Deadline { waited, state } => format!(
            "the database did not wake in time: it was still {state} after {:.1} s (gateway.connect_deadline)",
            waited.as_secs_f64()
        ),
        WakeError::Failed { cause, .. } => format!("the database did not start: {}", start_text(cause)),
        WakeError::Admission { needed_bytes, budget_bytes } => {
            format!("the database cannot wake: {}", no_memory_text(*needed_bytes, *budget_bytes))
        }
        WakeError::Closing(reason) => closing_text(*reason).to_owned(),
        WakeError::ShuttingDown => "this Roost node is shutting down".to_owned(),
    }
}

fn no_memory_text(needed_bytes: u64, budget_bytes: u64) -> String {
    format!(
        "not enough memory: {} MiB are needed and the node's budget of {} MiB is in use (limits.memory_budget)",
        needed_bytes >> 20,
        budget_bytes >> 20
    )
}

fn wake_hint(error: &WakeError) -> Option<String> {
    Some(match error {
        WakeError::NotFound => return None,
        WakeError::Deadline { .. }
        | WakeError::Admission { .. }
        | WakeError::Closing(_)
        | WakeError::ShuttingDown => "Connect again in a moment.".to_owned(),
        WakeError::Failed { retry_in, .. } => format!(
            "The next start is tried after {:.1} s. The operator finds the cause with `roost logs`.",
            retry_in.as_secs_f64()
        ),
    })
}

fn wake_sqlstate(error: &WakeError) -> SqlState {
    match error {
        WakeError::NotFound => SqlState::INVALID_CATALOG_NAME,
        WakeError::Deadline { .. } | WakeError::Closing(_) | WakeError::ShuttingDown => {
            SqlState::CANNOT_CONNECT_NOW
        }
        WakeError::Admission { .. } => SqlState::OUT_OF_MEMORY,
        WakeError::Failed { cause, .. } => match &**cause {
            StartFailure::Warden(error) => warden_sqlstate(error),
            StartFailure::Catalog(_) | StartFailure::Hook { .. } => SqlState::SYSTEM_ERROR,
            StartFailure::Admission { .. } => SqlState::OUT_OF_MEMORY,
            StartFailure::Reserve { .. } => SqlState::DISK_FULL,
            StartFailure::Deleted => SqlState::INVALID_CATALOG_NAME,
            StartFailure::ShuttingDown => SqlState::CANNOT_CONNECT_NOW,
        },
    }
}

const fn warden_sqlstate(error: &WardenError) -> SqlState {
    match error {
        WardenError::VolumeDamaged { .. } | WardenError::VolumeMissing { .. } => SqlState::DATA_CORRUPTED,
        WardenError::StorageFull { .. } => SqlState::DISK_FULL,
        WardenError::NoSuchVersion { .. } | WardenError::Unsupported { .. } => {
            SqlState::FEATURE_NOT_SUPPORTED
        }
        WardenError::TemplateFailed { .. } | WardenError::SetUpFailed { .. } | WardenError::System { .. } => {
            SqlState::SYSTEM_ERROR
        }
        _ => SqlState::CANNOT_CONNECT_NOW,
    }
}

/// A start's failure without what only the operator may see.
fn start_text(cause: &StartFailure) -> String {
    match cause {
        StartFailure::Warden(error) => match error {
            WardenError::VolumeDamaged { .. } => "its files are damaged".to_owned(),
            WardenError::VolumeMissing { .. } => "its files are missing".to_owned(),
            WardenError::StorageFull { .. } => "the node's disk is full".to_owned(),
            WardenError::NoSuchVersion { major, .. } => {
                format!("Postgres {major} is not installed on the node")
            }
            WardenError::StartFailed { .. } => "Postgres ended before it was ready".to_owned(),
            WardenError::StartDeadline { waited, .. } => {
                format!("Postgres was not ready within {} s", waited.as_secs())
            }
            WardenError::VolumeInUse { .. } | WardenError::AlreadyRunning { .. } => {
                "another instance still holds its files".to_owned()
            }
            _ => "the node could not set it up".to_owned(),
        },
        StartFailure::Catalog(_) => "the node's catalog failed".to_owned(),
        StartFailure::Hook { hook, .. } => format!("{hook} failed"),
        StartFailure::Admission { needed_bytes, budget_bytes } => {
            no_memory_text(*needed_bytes, *budget_bytes)
        }
        StartFailure::Reserve { reserve_bytes } => format!(
            "the machine's free disk space is far below the reserve of {} MiB (limits.storage_reserve), and this \
             database went on growing",
            reserve_bytes >> 20
        ),
        StartFailure::Deleted => "it was deleted".to_owned(),
        StartFailure::ShuttingDown => "this Roost node is shutting down".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_clients_text_names_the_bound_and_its_setting() {
        let text = ErrorKind::TooManySessions { limit: 7 }.to_string();
        assert!(text.contains('7') && text.contains("limits.max_sessions"), "{text}");
        let rate = Rate { burst: 3, every: Duration::from_secs(5) };
        let error =
            ErrorKind::TooManyFailedLogins { setting: "limits.x", rate, retry_in: Duration::from_secs(4) };
        assert_eq!(error.sqlstate(), SqlState::TOO_MANY_CONNECTIONS);
        assert!(error.to_string().contains("at most 3 at once and one more every 5s (limits.x)"), "{error}");
        assert_eq!(error.hint().as_deref(), Some("Try again in 5 seconds."));
    }

    #[test]
    fn internals_stay_in_the_log() {
        let volume = "db_abcdefghijklmnopqrst".parse().unwrap();
        let cause =
            StartFailure::Warden(WardenError::VolumeDamaged { volume, detail: "/secret/path".to_owned() });
        let error =
            ErrorKind::Wake(WakeError::Failed { cause: Arc::new(cause), retry_in: Duration::from_secs(2) });
        assert_eq!(error.sqlstate(), SqlState::DATA_CORRUPTED);
        assert_eq!(error.to_string(), "the database did not start: its files are damaged");
        assert!(!error.hint().unwrap_or_default().contains("secret"));
        assert!(error.internal_detail().unwrap_or_default().contains("/secret/path"));
        assert_eq!(error.level(), Level::WARN);
    }

    #[test]
    fn a_crash_and_a_stop_have_their_own_codes() {
        assert_eq!(ErrorKind::Closing(ClosingReason::Crashed).sqlstate(), SqlState::CRASH_SHUTDOWN);
        assert_eq!(ErrorKind::Closing(ClosingReason::Stopped).sqlstate(), SqlState::ADMIN_SHUTDOWN);
    }
}
