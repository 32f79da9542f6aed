//! Why a request was not answered with what it asked for: the one place that gives each reason its HTTP status, its
//! code for programs, its sentence and its hint for people.

use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use roost_catalog::{CatalogError, Subject};
use roost_lifecycle::{StepError, WakeError};
use roost_warden::WardenError;

use crate::envelope::{ErrorBody, ErrorEnvelope};
use crate::units::{about_duration, about_size};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The request's body is larger than allowed.
    #[error("the request's body is larger than {} bytes", .limit)]
    TooLarge {
        /// The bound, in bytes.
        limit: usize,
    },
    /// The request's body did not arrive in time.
    #[error("the request's body did not arrive within {}", about_duration(*.0))]
    Slow(Duration),
    /// No such path.
    #[error("there is nothing at {0}")]
    NoSuchPath(String),
    /// The path exists, but not for this method.
    #[error("this path does not answer this method")]
    NoSuchMethod,
    /// What was named does not exist.
    #[error("there is no {subject} `{reference}`")]
    NotFound {
        /// What kind of thing.
        subject: Subject,
        /// How it was named.
        reference: String,
    },
    /// It must be stopped for this, and is not.
    #[error("the database must be stopped for this")]
    NotStopped,
    /// It has no files yet.
    #[error("the database was never woken, and has no files yet")]
    NoFiles,
    /// It has no log yet.
    #[error("the database has no log yet")]
    NoLog,
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The ladder.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The warden.
    #[error(transparent)]
    Warden(#[from] WardenError),
    /// Something that is not the client's business; it is logged.
    #[error("the node failed to answer")]
    Internal(#[source] std::io::Error),
}

impl From<std::io::Error> for ApiError {
    fn from(error: std::io::Error) -> Self {
        Self::Internal(error)
    }
}

/// How a failure is told.
struct Telling {
    status: StatusCode,
    code: &'static str,
    /// Told in place of the error's own text.
    message: Option<String>,
    hint: Option<String>,
}

impl Telling {
    const fn new(status: StatusCode, code: &'static str) -> Self {
        Self { status, code, message: None, hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn message(mut self, message: impl Into<String>) -> Self {
        self.message = Some(message.into());
        self
    }
}

impl ApiError {
    fn telling(&self) -> Telling {
        match self {
            Self::Invalid(_) => Telling::new(StatusCode::BAD_REQUEST, "invalid-request"),
            Self::TooLarge { .. } => Telling::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
            Self::Slow(_) => Telling::new(StatusCode::REQUEST_TIMEOUT, "request-timeout"),
            Self::NoSuchPath(_) => Telling::new(StatusCode::NOT_FOUND, "no-such-path"),
            Self::NoSuchMethod => Telling::new(StatusCode::METHOD_NOT_ALLOWED, "no-such-method"),
            Self::NotFound { subject, .. } => not_found(*subject),
            Self::NotStopped => {
                Telling::new(StatusCode::CONFLICT, "not-stopped").hint("Stop it first: `roost stop NAME`.")
            }
            Self::NoFiles => Telling::new(StatusCode::CONFLICT, "no-files")
                .hint("Its first connection, or `roost wake`, makes them."),
            Self::NoLog => {
                Telling::new(StatusCode::NOT_FOUND, "no-log").hint("It begins with its first wake.")
            }
            Self::Catalog(error) => catalog(error),
            Self::Step(error) => step(error),
            Self::Warden(error) => warden(error),
            Self::Internal(_) => Telling::new(StatusCode::INTERNAL_SERVER_ERROR, "internal")
                .hint("The node's log has the details."),
        }
    }
}

fn not_found(subject: Subject) -> Telling {
    let telling = |code| Telling::new(StatusCode::NOT_FOUND, code);
    match subject {
        Subject::Project => telling("project-not-found"),
        Subject::Connection => telling("connection-not-found"),
        Subject::Database => telling("database-not-found")
            .hint("A database outside the default project is named NAME--PROJECT."),
    }
}

fn catalog(error: &CatalogError) -> Telling {
    use CatalogError as E;
    match error {
        E::NameTaken { name } => Telling::new(StatusCode::CONFLICT, "name-taken")
            .message(format!("the name `{name}` is taken"))
            .hint("Choose another name."),
        E::IdTaken(_) => Telling::new(StatusCode::CONFLICT, "id-taken"),
        E::NotFound(subject) => not_found(*subject),
        E::Deleted => {
            Telling::new(StatusCode::CONFLICT, "deleted").hint("Undelete it first: `roost undelete ID`.")
        }
        E::NotDeleted => Telling::new(StatusCode::CONFLICT, "not-deleted"),
        E::Purging => Telling::new(StatusCode::GONE, "purging"),
        E::ProjectNotEmpty { .. } => Telling::new(StatusCode::BAD_REQUEST, "project-not-empty")
            .hint("Delete its databases for ever first: `roost delete --purge NAME--PROJECT`."),
        E::InvalidCursor => Telling::new(StatusCode::BAD_REQUEST, "invalid-cursor"),
        E::TooMany { .. } => Telling::new(StatusCode::BAD_REQUEST, "too-many"),
        E::Overloaded { .. } | E::Busy => {
            Telling::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded").hint("Try again in a moment.")
        }
        E::DiskFull => Telling::new(StatusCode::INSUFFICIENT_STORAGE, "storage-full")
            .hint("Make room on the file system of the node's data."),
        E::Closed => Telling::new(StatusCode::SERVICE_UNAVAILABLE, "shutting-down"),
        _ => Telling::new(StatusCode::INTERNAL_SERVER_ERROR, "catalog-failed")
            .message("the node's catalog failed")
            .hint("The node's log has the details."),
    }
}

fn step(error: &StepError) -> Telling {
    match error {
        StepError::Wake(error) => wake(error),
        StepError::Busy { active } => Telling::new(StatusCode::CONFLICT, "busy")
            .message(format!("{active} of the database's sessions are active"))
            .hint("Try again when they are idle, or stop it: `roost stop NAME`."),
        StepError::WrongState { .. } => Telling::new(StatusCode::CONFLICT, "wrong-state"),
        StepError::Warden(error) => warden(error),
        StepError::Deadline(waited) => Telling::new(StatusCode::GATEWAY_TIMEOUT, "deadline")
            .message(format!("not done after {}; it goes on", about_duration(*waited))),
    }
}

fn wake(error: &WakeError) -> Telling {
    match error {
        WakeError::NotFound => Telling::new(StatusCode::NOT_FOUND, "database-not-found"),
        WakeError::Deadline { waited, state } => Telling::new(StatusCode::GATEWAY_TIMEOUT, "deadline")
            .message(format!("the database is still {state} after {}; it goes on", about_duration(*waited))),
        WakeError::Failed { retry_in, .. } => {
            Telling::new(StatusCode::BAD_GATEWAY, "start-failed").hint(format!(
                "`roost logs NAME` shows why. The next start is tried in {} at the earliest.",
                about_duration(*retry_in)
            ))
        }
        WakeError::Admission { needed_bytes, budget_bytes } => {
            Telling::new(StatusCode::SERVICE_UNAVAILABLE, "no-memory")
                .message(format!(
                    "no memory for another database: it needs {} within a budget of {}",
                    about_size(*needed_bytes),
                    about_size(*budget_bytes)
                ))
                .hint("Stop another database, or raise limits.memory_budget.")
        }
        WakeError::Closing(_) => Telling::new(StatusCode::CONFLICT, "wrong-state"),
        WakeError::ShuttingDown => Telling::new(StatusCode::SERVICE_UNAVAILABLE, "shutting-down"),
    }
}

fn warden(error: &WardenError) -> Telling {
    use WardenError as E;
    match error {
        E::VolumeInUse { .. } | E::AlreadyRunning { .. } => {
            Telling::new(StatusCode::CONFLICT, "not-stopped").message("the database's files are in use")
        }
        E::VolumeMissing { .. } => {
            Telling::new(StatusCode::CONFLICT, "no-files").message("the database has no files")
        }
        E::VolumeExists { .. } => Telling::new(StatusCode::CONFLICT, "has-files"),
        E::VolumeDamaged { .. } => Telling::new(StatusCode::INTERNAL_SERVER_ERROR, "volume-damaged"),
        E::NoSuchVersion { .. } => Telling::new(StatusCode::BAD_REQUEST, "no-such-version"),
        E::StorageFull { .. } => Telling::new(StatusCode::INSUFFICIENT_STORAGE, "storage-full")
            .hint("Make room on the file system of the node's data."),
        E::InvalidRequest { .. } => Telling::new(StatusCode::BAD_REQUEST, "invalid-request"),
        E::Unsupported { .. } => Telling::new(StatusCode::NOT_IMPLEMENTED, "not-supported"),
        E::Deadline { .. } | E::StartDeadline { .. } => Telling::new(StatusCode::GATEWAY_TIMEOUT, "deadline"),
        E::Closed => Telling::new(StatusCode::SERVICE_UNAVAILABLE, "shutting-down"),
        _ => Telling::new(StatusCode::BAD_GATEWAY, "warden-failed"),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Telling { status, code, message, hint } = self.telling();
        if status.is_server_error() {
            tracing::warn!(code, error = &self as &dyn std::error::Error, "a request to the API failed");
        }
        let message = message.unwrap_or_else(|| self.to_string());
        let body = ErrorBody { code: code.to_owned(), message: sentence(&message), hint };
        (status, Json(ErrorEnvelope { error: body })).into_response()
    }
}

/// Begins with a capital letter and ends with a full stop.
fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(char::to_uppercase).into_iter().flatten();
    let mut sentence: String = first.chain(characters).collect();
    if !sentence.ends_with(['.', '!', '?']) {
        sentence.push('.');
    }
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_a_status_and_a_code_for_programs() {
        let failures: Vec<(ApiError, u16, &str)> = vec![
            (ApiError::Invalid("no".into()), 400, "invalid-request"),
            (
                ApiError::NotFound { subject: Subject::Database, reference: "x".into() },
                404,
                "database-not-found",
            ),
            (
                ApiError::NotFound { subject: Subject::Project, reference: "x".into() },
                404,
                "project-not-found",
            ),
            (
                ApiError::NotFound { subject: Subject::Connection, reference: "x".into() },
                404,
                "connection-not-found",
            ),
            (CatalogError::NameTaken { name: "shop".parse().unwrap() }.into(), 409, "name-taken"),
            (CatalogError::DiskFull.into(), 507, "storage-full"),
            (StepError::Wake(WakeError::NotFound).into(), 404, "database-not-found"),
            (StepError::Busy { active: 2 }.into(), 409, "busy"),
            (StepError::Deadline(Duration::from_secs(3)).into(), 504, "deadline"),
            (WardenError::Closed.into(), 503, "shutting-down"),
            (std::io::Error::other("secret path").into(), 500, "internal"),
        ];
        for (failure, status, code) in failures {
            let telling = failure.telling();
            assert_eq!((telling.status.as_u16(), telling.code), (status, code), "{failure}");
        }
    }

    #[test]
    fn internals_are_not_told_to_clients() {
        let error = ApiError::from(std::io::Error::other("/secret/path"));
        assert!(!error.to_string().contains("secret"));
        let error = ApiError::from(CatalogError::Corrupt { detail: "page 7".into() });
        assert_eq!(error.telling().message.as_deref(), Some("the node's catalog failed"));
    }

    #[test]
    fn messages_are_sentences() {
        assert_eq!(sentence("the name is taken"), "The name is taken.");
        assert_eq!(sentence("Done."), "Done.");
        assert_eq!(sentence(""), ".");
    }
}
