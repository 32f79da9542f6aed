//! How a session ended, and what is done about it on both sides.

use std::time::Duration;

use roost_lifecycle::{ClosingReason, WakeError};
use roost_pool::{CancelTarget, Hold, ServerSocket};
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
    pub(super) server: ServerSocket,
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
    pub(crate) async fn conclude(
        self,
        cancel: &CancelTarget,
    ) -> (Option<C>, Result<&'static str, ErrorKind>) {
        let Self { end, client, server, hold, .. } = self;
        let tell = (self.between_frames && !self.server_said_why).then_some(client);
        match end {
            End::ClientLeft => {
                // Terminate follows the last request; Postgres finishes what it has begun, as it would without Roost.
                if self.client_frames_whole {
                    terminate(&server);
                }
                (None, Ok("served"))
            }
            End::ClientGone if self.server_owes => {
                // Nobody waits for the answer, so it is not worked out.
                abandon(server, cancel).await;
                (None, Err(ErrorKind::ClientGone))
            }
            End::ClientGone => {
                if self.client_frames_whole {
                    terminate(&server);
                }
                (None, Ok("served"))
            }
            End::ServerClosed if self.server_said_why => (None, Ok("closed_by_server")),
            End::ServerClosed => {
                let reason = tokio::time::timeout(REASON_WAIT, hold.closing()).await;
                (tell, Err(reason.map_or(ErrorKind::ServerLost, ErrorKind::Closing)))
            }
            End::Closing(reason) => (tell, Err(ErrorKind::Closing(reason))),
            End::Drained => {
                terminate(&server);
                (tell, Err(ErrorKind::ShuttingDown))
            }
            End::Thaw(error) => (tell, Err(ErrorKind::Thaw(error))),
            End::ClientProtocol(error) => (tell, Err(ErrorKind::Protocol(error.to_string()))),
            End::ServerProtocol(error) => (None, Err(ErrorKind::ServerGarbled(error.to_string()))),
        }
    }
}

/// Says Terminate if there is room for it; the end of the stream that follows says the same.
fn terminate(server: &ServerSocket) {
    let _ = server.try_write(&TERMINATE_FRAME);
}

/// Cancels what a session runs, and waits until its backend has noticed that it is alone. The caller's lease is held
/// meanwhile, so the instance is not frozen with a request in its queue.
async fn abandon(mut server: ServerSocket, cancel: &CancelTarget) {
    if let Err(error) = cancel.cancel(CANCEL_DEADLINE).await {
        tracing::debug!(%error, "an abandoned query was not cancelled");
    }
    // Closed for writing first: a backend that finishes its query sees the end of the stream next.
    let _ = server.finish();
    let drained = async {
        let mut rest = [0; 4096];
        while matches!(server.read(&mut rest).await, Ok(count) if count > 0) {}
    };
    let _ = tokio::time::timeout(LAST_WORDS, drained).await;
}
