//! What all connections share.

use std::sync::Arc;

use roost_catalog::Catalog;
use roost_pool::CancelMap;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::GatewayConfig;
use crate::ladder::Ladder;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::tls::IdentityStore;
use crate::traffic::Ledger;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Door<L> {
    pub(crate) config: GatewayConfig,
    pub(crate) catalog: Catalog,
    pub(crate) ladder: L,
    pub(crate) identities: Arc<IdentityStore>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) cancels: CancelMap,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) metrics: Metrics,
    /// Makes the verifiers of unknown users the same at every attempt and after a restart.
    pub(crate) mock_secret: [u8; 32],
    /// Until when sessions may go on; set when the node begins to shut down.
    pub(crate) drain: watch::Sender<Option<Instant>>,
}

impl<L: Ladder> Door<L> {
    /// Resolves when the node begins to shut down.
    pub(crate) async fn closing(&self) {
        // The sender lives in this very value, so waiting ends only with a deadline.
        let _ = self.drain.subscribe().wait_for(Option::is_some).await;
    }
}
