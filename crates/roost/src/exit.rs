//! How a command ends: its exit code, and what it says about a failure.

use std::process::ExitCode;

use roost_api::client::ClientError;
use roost_api::envelope::{ErrorBody, ErrorEnvelope};

use crate::terminal::Terminal;

/// Anything that went wrong.
const FAILED: u8 = 1;
/// Wrong usage, or a request that the node calls wrong. Also clap's code.
const USAGE: u8 = 2;
/// What was named does not exist.
const NOT_FOUND: u8 = 3;
/// No node answers.
const UNREACHABLE: u8 = 4;
/// The name is taken, or the state does not allow it.
const CONFLICT: u8 = 5;
/// Overloaded, out of time or memory.
const NOT_NOW: u8 = 6;

/// A command line that clap lets through and that is wrong all the same.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// A program that was run in the command's place ended with this code, after it said why.
#[derive(Debug, thiserror::Error)]
#[error("{program} ended with code {code}")]
pub(crate) struct ProgramFailed {
    /// Which program.
    pub(crate) program: String,
    /// Its exit code.
    pub(crate) code: u8,
}

/// The exit code for an error.
fn code(error: &anyhow::Error) -> u8 {
    if let Some(failed) = error.downcast_ref::<ProgramFailed>() {
        return failed.code;
    }
    if error.downcast_ref::<UsageError>().is_some() {
        return USAGE;
    }
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Unreachable { .. }) => UNREACHABLE,
        Some(ClientError::Refused { status, .. }) => match status {
            400 | 405 | 413 => USAGE,
            404 | 410 => NOT_FOUND,
            409 => CONFLICT,
            408 | 503 | 504 | 507 => NOT_NOW,
            _ => FAILED,
        },
        _ => FAILED,
    }
}

/// Tells the error and gives the exit code.
pub(crate) fn fail(error: &anyhow::Error, terminal: &Terminal) -> ExitCode {
    let code = code(error);
    let body = describe(error);
    if terminal.json {
        terminal.complain_json(&ErrorEnvelope { error: body });
    } else if !error.is::<ProgramFailed>() {
        terminal.complain(&body.message, body.hint.as_deref());
    }
    ExitCode::from(code)
}

fn describe(error: &anyhow::Error) -> ErrorBody {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Refused { body, .. }) => body.clone(),
        Some(ClientError::Unreachable { source, .. }) => ErrorBody {
            code: "unreachable".to_owned(),
            message: format!("{error}"),
            hint: Some(match source.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    "The node belongs to another user: use sudo, or be the user who started it with sudo."
                        .to_owned()
                }
                _ => "Start one with `roost up`, or name its directory with --run or ROOST_RUN.".to_owned(),
            }),
        },
        _ => ErrorBody { code: "failed".to_owned(), message: with_causes(error), hint: None },
    }
}

/// An error and its causes in one line. A cause that the text ends with already is not told twice.
fn with_causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| {
        if text.is_empty() {
            cause
        } else if text.ends_with(&cause) {
            text
        } else {
            format!("{text}: {cause}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16) -> anyhow::Error {
        let body = ErrorBody { code: "x".into(), message: "X.".into(), hint: Some("Y.".into()) };
        ClientError::Refused { status, body }.into()
    }

    #[test]
    fn each_kind_of_failure_has_an_exit_code_of_its_own() {
        let unreachable = ClientError::Unreachable {
            socket: "/run/roost/api.sock".into(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        assert_eq!(code(&unreachable.into()), UNREACHABLE);
        let codes = [400, 404, 409, 503, 500].map(|status| code(&refused(status)));
        assert_eq!(codes, [USAGE, NOT_FOUND, CONFLICT, NOT_NOW, FAILED]);
        assert_eq!(code(&UsageError("no".into()).into()), USAGE);
        assert_eq!(code(&ProgramFailed { program: "psql".into(), code: 3 }.into()), 3);
        assert_eq!(code(&anyhow::anyhow!("else")), FAILED);
    }

    #[test]
    fn causes_are_told_once() {
        let error =
            anyhow::anyhow!("the disk is full").context("cannot write: the disk is full").context("no");
        assert_eq!(with_causes(&error), "no: cannot write: the disk is full");
    }

    #[test]
    fn a_context_does_not_hide_the_kind() {
        assert_eq!(code(&refused(404).context("while looking")), NOT_FOUND);
        assert_eq!(describe(&refused(404).context("while looking")).message, "X.");
    }
}
