//! Opening and closing the door as a whole.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus_client::registry::Registry;
use roost_catalog::{Catalog, CatalogError};
use roost_pool::{CancelMap, batch};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::{GatewayConfig, ListenerConfig};
use crate::door::Door;
use crate::ladder::Ladder;
use crate::limits::Limits;
use crate::listener::{self, Workers};
use crate::metrics::Metrics;
use crate::tls::{IdentityStore, TlsError};
use crate::traffic::Ledger;

/// Under which name the catalog keeps what the verifiers of unknown users are made from.
const MOCK_SECRET: &str = "gateway.mock_secret";

/// How long after the drain's deadline connections may take to say goodbye.
const GOODBYES: Duration = Duration::from_secs(5);

/// Why the gateway cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address (`gateway.listen`).
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The certificate cannot be used.
    #[error("certificate: {0}")]
    Tls(#[from] TlsError),
    /// The catalog failed.
    #[error("catalog: {0}")]
    Catalog(#[from] CatalogError),
    /// A thread cannot be started.
    #[error("cannot start a worker thread: {0}")]
    Worker(io::Error),
}

/// A gateway whose addresses are bound. Clients that connect wait in the kernel's queue until it serves.
#[derive(Debug)]
pub struct Gateway<L> {
    door: Arc<Door<L>>,
    listeners: Vec<(TcpListener, ListenerConfig)>,
}

impl<L: Ladder> Gateway<L> {
    /// Binds the addresses, loads or makes the certificate, and registers the metrics.
    ///
    /// # Errors
    ///
    /// When an address, the certificate or the catalog cannot be used.
    pub async fn bind(
        config: GatewayConfig,
        catalog: Catalog,
        ladder: L,
        registry: &mut Registry,
    ) -> Result<Self, BindError> {
        let identities = Arc::new(IdentityStore::open(&config.certificate)?);
        let listeners = config.listeners.iter().map(bind).collect::<Result<Vec<_>, _>>()?;
        let mock_secret = mock_secret(&catalog).await?;
        let ledger = Ledger::new(catalog.clone());
        let metrics = Metrics::new();
        metrics.register(registry, &ledger);
        let door = Arc::new(Door {
            limits: Limits::new(config.limits),
            catalog,
            ladder,
            identities,
            cancels: CancelMap::new(),
            ledger,
            metrics,
            mock_secret,
            drain: watch::Sender::new(None),
            config,
        });
        Ok(Self { door, listeners })
    }

    /// The addresses that are bound, with the ports that the system picked.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|(_, config)| config.address).collect()
    }

    /// Starts serving, on threads of its own. To be called on a runtime, which does what is to be done at intervals: a
    /// worker without timers waits for its sockets alone, which costs it less each time.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started.
    pub fn serve(self) -> Result<Serving<L>, BindError> {
        let addresses = self.addresses();
        let mut workers = Vec::new();
        for index in 0..self.door.config.worker_count() {
            workers.push(Worker::start(index).map_err(BindError::Worker)?);
        }
        let handles: Vec<Handle> = workers.iter().map(|worker| worker.handle.clone()).collect();
        let (alive, ended) = mpsc::channel(1);
        if let Some(first) = handles.first().cloned() {
            let shared = Arc::new(Workers::new(handles));
            for (socket, config) in self.listeners {
                first.spawn(listener::accept(
                    self.door.clone(),
                    socket,
                    config,
                    shared.clone(),
                    alive.clone(),
                ));
            }
        }
        let mut chores = JoinSet::new();
        chores.spawn(self.door.identities.clone().follow(self.door.config.certificate_interval));
        chores.spawn(self.door.ledger.clone().keep(self.door.config.usage_interval));
        Ok(Serving { door: self.door, workers, ended, addresses, _chores: chores })
    }
}

fn bind(config: &ListenerConfig) -> Result<(TcpListener, ListenerConfig), BindError> {
    let failed = |source| BindError::Listen { address: config.address, source };
    let listener = listener::bind(config.address).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, ListenerConfig { address, ..config.clone() }))
}

async fn mock_secret(catalog: &Catalog) -> Result<[u8; 32], CatalogError> {
    let mut fresh = [0; 32];
    aws_lc_rs::rand::fill(&mut fresh).expect("the operating system's random generator works");
    let kept = catalog.ensure_meta(MOCK_SECRET, &fresh).await?;
    // A value of another length was not put there by a gateway; this run does with its own.
    Ok(kept.try_into().unwrap_or(fresh))
}

/// A gateway that serves. Dropping it ends all sessions at once; [`shutdown`](Serving::shutdown) lets them finish.
#[derive(Debug)]
pub struct Serving<L> {
    door: Arc<Door<L>>,
    workers: Vec<Worker>,
    ended: mpsc::Receiver<()>,
    addresses: Vec<SocketAddr>,
    /// What is done at intervals, until this is dropped.
    _chores: JoinSet<()>,
}

impl<L: Ladder> Serving<L> {
    /// The addresses that are served.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// How many sessions are open to a database.
    pub fn sessions(&self) -> usize {
        self.door.ledger.sessions()
    }

    /// Stops accepting and ends sessions: idle ones at once, busy ones when they become idle, all of them after `drain`.
    /// Returns how many connections did not even end then.
    pub async fn shutdown(mut self, drain: Duration) -> usize {
        let deadline = Instant::now() + drain;
        self.door.drain.send_replace(Some(deadline));
        // Nobody ever sends; the channel closes when the last acceptor and the last connection are gone.
        let all_ended = tokio::time::timeout_at(deadline + GOODBYES, self.ended.recv()).await.is_ok();
        let left = if all_ended { 0 } else { self.door.limits.sessions() };
        self.door.ledger.record_open();
        let workers = std::mem::take(&mut self.workers);
        // Joining waits for threads, which is not for an async worker.
        let _ = tokio::task::spawn_blocking(move || workers.into_iter().for_each(Worker::join)).await;
        left
    }
}

/// A thread with a runtime.
#[derive(Debug)]
struct Worker {
    handle: Handle,
    /// Dropped to end the thread.
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Worker {
    fn start(index: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name(format!("roost-door-{index}")).spawn(move || {
            runtime.spawn(batch::serve());
            // Either way of ending means the same.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { handle, stop, thread })
    }

    fn join(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("a worker thread of the gateway panicked");
        }
    }
}
