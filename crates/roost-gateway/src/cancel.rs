//! Cancel requests (protocol: "Canceling Requests in Progress"): the key finds a session's backend, and Postgres is asked
//! to cancel what runs there. The client hears nothing but the end of the stream, and that no sooner for a wrong key
//! than for a right one.

use std::net::IpAddr;
use std::time::Duration;

use crate::door::Door;
use crate::ladder::Ladder;
use crate::metrics::CancelOutcome;

/// How long Postgres has for taking a cancel request.
pub(crate) const CANCEL_DEADLINE: Duration = Duration::from_secs(5);

/// The least time until a cancel request's connection ends, longer than Postgres usually takes.
const ANSWER_AFTER: Duration = Duration::from_millis(10);

/// Handles a cancel request. The caller closes the connection afterwards, whatever came of it.
pub(crate) async fn handle<L: Ladder>(door: &Door<L>, peer: IpAddr, pid: i32, key: &[u8]) {
    let answer_at = tokio::time::Instant::now() + ANSWER_AFTER;
    let outcome = if !door.limits.admit_cancel(peer) {
        CancelOutcome::TooMany
    } else if let Some(target) = door.cancels.find(pid, key) {
        match target.cancel(CANCEL_DEADLINE).await {
            Ok(()) => CancelOutcome::Sent,
            Err(error) => {
                tracing::warn!(%error, "a cancel request was not delivered");
                CancelOutcome::Failed
            }
        }
    } else {
        CancelOutcome::UnknownKey
    };
    door.metrics.cancel(outcome);
    tokio::time::sleep_until(answer_at).await;
}
