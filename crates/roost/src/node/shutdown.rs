//! How the node ends.
//!
//! A clean end has this order, each step with its deadline:
//!
//! 1. `/ready` says no, and no client is accepted any more;
//! 2. sessions end: idle ones at once, busy ones when they are idle, all of them after `shutdown.drain`;
//! 3. all databases stop cleanly, many at a time, within `shutdown.deadline`;
//! 4. requests to the API are finished, for [`API_DEADLINE`] at most;
//! 5. the catalog writes what it has not written yet.
//!
//! What does not stop in time runs on and is adopted by the next `roost up`; the exit code is then 1.

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Parts, ready};
use crate::command::SOCKET;

/// How long requests to the API may finish.
const API_DEADLINE: Duration = Duration::from_secs(2);
/// How long the catalog may write.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);
/// How long sessions may finish what they are doing when another node takes over.
const HAND_OVER: Duration = Duration::from_secs(1);

/// Ends everything.
pub(super) async fn clean(parts: Parts) -> ExitCode {
    let shutdown = &parts.spec.config.shutdown;
    tracing::info!(drain = %shutdown.drain, deadline = %shutdown.deadline, "ending");
    parts.api.set_ready(false);
    let broken_off = parts.gateway.shutdown(shutdown.drain.0).await;
    if broken_off > 0 {
        tracing::warn!(sessions = broken_off, "did not end within shutdown.drain");
    }
    let running = parts.lifecycle.shut_down_all(Instant::now() + shutdown.deadline.0).await;
    if running > 0 {
        tracing::error!(databases = running, "did not stop within shutdown.deadline, and run on");
    }
    let rest = Rest { stop_api: parts.stop_api, servers: parts.servers, catalog: parts.catalog };
    rest.end().await;
    let run = &parts.spec.config.run;
    ready::withdraw(run);
    // One that is gone already is as good.
    let _ = std::fs::remove_file(run.join(SOCKET));
    if running > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Makes room for the next node. Databases run on.
pub(super) async fn hand_over(parts: Parts) -> ExitCode {
    tracing::info!("making room for another node");
    parts.api.set_ready(false);
    parts.lifecycle.refuse_sessions();
    parts.gateway.shutdown(HAND_OVER).await;
    Rest { stop_api: parts.stop_api, servers: parts.servers, catalog: parts.catalog }.end().await;
    ExitCode::SUCCESS
}

/// What ends last.
struct Rest {
    stop_api: tokio::sync::watch::Sender<bool>,
    servers: tokio::task::JoinSet<()>,
    catalog: roost_catalog::Catalog,
}

impl Rest {
    async fn end(mut self) {
        self.stop_api.send_replace(true);
        let served = async { while self.servers.join_next().await.is_some() {} };
        if timeout(API_DEADLINE, served).await.is_err() {
            tracing::info!("requests to the API were broken off");
        }
        match timeout(FLUSH_DEADLINE, self.catalog.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the catalog could not write everything"),
            Err(_) => tracing::error!("the catalog did not write everything in time"),
        }
    }
}
