//! HTTP: the management API on the node's unix socket; health, readiness and metrics on its HTTP address.
//!
//! A request travels: [`socket`] (who is it?) or a TCP listener, `server` (bounded connections), `route` (what is
//! asked?), `context` (which database is meant?), then the catalog and the [`machine`]. Answers are the objects of
//! [`resource`] in the frames of [`envelope`]; `error` gives every failure its status, code and sentence. The
//! [`client`] is the other side, for the command line.
//!
//! Invariants:
//! - a secret is in exactly the answer that made it; nothing here logs or keeps one;
//! - nothing but `wake` wakes a database;
//! - every request is bounded: its head, its body, the time it may take, the page it may ask for.

pub mod client;
mod context;
pub mod envelope;
mod error;
mod extract;
pub mod machine;
mod purge;
pub mod resource;
mod route;
mod secret;
mod server;
mod settings;
pub mod socket;
mod stream;
pub mod timestamp;
pub mod units;
mod view;

use std::fmt;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use roost_catalog::Catalog;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use context::ApiConfig;
pub use settings::MIN_STORAGE_BYTES;

use context::Context;
use machine::Machine;
use socket::ApiSocket;

/// The API of a node. A cheap handle.
#[derive(Clone)]
pub struct Api {
    context: Arc<Context>,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("config", &self.context.config).finish_non_exhaustive()
    }
}

impl Api {
    /// An API that answers from a catalog and a machine, with all metrics of a registry.
    pub fn new(
        config: ApiConfig,
        catalog: Catalog,
        machine: Arc<dyn Machine>,
        registry: Arc<Registry>,
    ) -> Self {
        Self { context: Arc::new(Context::new(config, catalog, machine, registry)) }
    }

    /// Says whether Postgres clients are accepted, for `/ready`.
    pub fn set_ready(&self, ready: bool) {
        self.context.set_ready(ready);
    }

    /// The router of the unix socket: everything.
    pub fn management(&self) -> axum::Router {
        route::management(self.context.clone())
    }

    /// The router of the HTTP address: `/health`, `/ready` and `/metrics`.
    pub fn public(&self) -> axum::Router {
        route::public(self.context.clone())
    }

    /// Serves everything on the unix socket until `shutdown` is true and all requests are answered.
    pub async fn serve_management(&self, socket: ApiSocket, shutdown: watch::Receiver<bool>) {
        server::serve(socket, self.management(), shutdown).await;
    }

    /// Serves health and metrics on an address until `shutdown` is true and all requests are answered.
    pub async fn serve_public(&self, listener: TcpListener, shutdown: watch::Receiver<bool>) {
        server::serve(listener, self.public(), shutdown).await;
    }

    /// Removes all databases whose time to be undeleted is over; returns how many.
    ///
    /// # Errors
    ///
    /// When the catalog fails. A database that could not be removed is logged, and tried again with the next call.
    pub async fn purge_expired(&self) -> Result<usize, PurgeError> {
        purge::purge_expired(&self.context).await.map_err(|error| PurgeError(error.to_string()))
    }
}

/// Why expired deletions could not be purged.
#[derive(Debug, thiserror::Error)]
#[error("could not purge deleted databases: {0}")]
pub struct PurgeError(String);
