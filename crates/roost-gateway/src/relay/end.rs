//! How a session ended, and what is done about it on both sides.

use std::time::Duration;

use roost_lifecycle::{ClosingReason, WakeError};
use roost_pool::{CancelTarget, Hold, Socket};
use roost_wire::frame::FrameError;

use crate::cancel::CANCEL_DEADLINE;
use crate::error::ErrorKind;

/// Why a relay stopped.
#[derive(Debug)]
pub(crate) enum End {
    /// The client said Terminate.
    ClientLeft,
    /// The client's connection ended without that.
    ClientGone,
    /// The server's connection ended, and all that it said was handed on.
    ServerClosed,
    /// The instance is taken away.
    Closing(ClosingReason),
    /// The node shuts down.
    Drained,
    /// The frozen database could not be thawed.
    Thaw(WakeError),
    /// The client sent a frame that cannot be.
    ClientProtocol(FrameError),
    /// The server did.
    ServerProtocol(FrameError),
}

/// A session that has ended.
#[derive(Debug)]
pub(crate) struct Finished<C, H> {
    pub(super) end: End,
    pub(super) client: C,
    pub(super) server: Socket,
    pub(super) hold: H,
    /// The client has whole frames, so it can be told something.
    pub(super) between_frames: bool,
    /// The server's last frame was an error.
    pub(super) server_said_why: bool,
    /// The server works on something.
    pub(super) server_owes: bool,
    /// The server has whole frames, so it can be told something.
    pub(super) client_frames_whole: bool,
}

/// How long after the server's end its reason is waited for: the exit of a postmaster is known a moment later.
const REASON_WAIT: Duration = Duration::from_millis(500);

/// How long a server may take to end after what it ran was cancelled.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Terminate, whole.
const TERMINATE_FRAME: [u8; 5] = [b'X', 0, 0, 0, 4];

impl<C, H: Hold> Finished<C, H> {
    /// Closes the server's side, and says what the session is counted as, with the client if there is something left to
    /// tell it.
    pub(crate) async fn conclude(self, cancel: CancelTarget) -> (Option<C>, Result<&'static str, ErrorKind>) {
        let tell = self.between_frames.then_some(self.client);
        let (server, hold) = (self.server, self.hold);
        match self.end {
            // Terminate follows the last request; Postgres finishes what it has begun, as it would without Roost.
            End::ClientLeft => {
                terminate(&server, self.client_frames_whole);
                (None, Ok("served"))
            }
            End::ClientGone if self.server_owes => {
                abandon(server, hold, cancel);
                (None, Err(ErrorKind::ClientGone))
            }
            End::ClientGone => {
                terminate(&server, self.client_frames_whole);
                (None, Ok("served"))
            }
            // The client is still told goodbye: dropping its socket while a request of its lies unread there would reset
            // the connection, and Postgres' last words with it.
            End::ServerClosed if self.server_said_why => (tell, Ok("closed_by_server")),
            End::ServerClosed => {
                let reason = tokio::time::timeout(REASON_WAIT, hold.closing()).await;
                (tell, Err(reason.map_or(ErrorKind::ServerLost, ErrorKind::Closing)))
            }
            End::Closing(reason) => (tell, Err(ErrorKind::Closing(reason))),
            End::Drained if self.server_owes => {
                abandon(server, hold, cancel);
                (tell, Err(ErrorKind::ShuttingDown))
            }
            End::Drained => {
                terminate(&server, self.client_frames_whole);
                (tell, Err(ErrorKind::ShuttingDown))
            }
            End::Thaw(WakeError::Closing(reason)) => (tell, Err(ErrorKind::Closing(reason))),
            End::Thaw(error) => (tell, Err(ErrorKind::Thaw(error))),
            End::ClientProtocol(error) => {
                abandon(server, hold, cancel);
                (tell, Err(ErrorKind::Protocol(error.to_string())))
            }
            End::ServerProtocol(error) => (None, Err(ErrorKind::ServerGarbled(error.to_string()))),
        }
    }
}

/// Says Terminate if the server is between frames and there is room for it; the end of the stream that follows says the
/// same.
fn terminate(server: &Socket, between_frames: bool) {
    if between_frames {
        let _ = server.try_write(&TERMINATE_FRAME);
    }
}

/// Cancels what a session runs, since nobody waits for the answer, and waits for the backend to notice that it is alone.
/// The lease stays held meanwhile, so that the instance is not frozen with the request in its queue. All of it has a
/// deadline, and the client's connection ends without waiting for it.
fn abandon<H: Hold>(mut server: Socket, hold: H, cancel: CancelTarget) {
    tokio::spawn(async move {
        if let Err(error) = cancel.cancel(CANCEL_DEADLINE).await {
            tracing::debug!(%error, "an abandoned query was not cancelled");
        }
        // A backend that has finished its query sees the end of the stream next.
        let _ = server.finish();
        let mut rest = vec![0; 4096];
        let ended = async { while matches!(server.read(&mut rest).await, Ok(count) if count > 0) {} };
        let _ = tokio::time::timeout(LAST_WORDS, ended).await;
        drop(hold);
    });
}
