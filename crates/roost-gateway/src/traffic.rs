//! Bytes of open sessions, counted where they flow and added up elsewhere: a session writes plain numbers that nobody
//! else writes; the ledger reads them for the catalog now and then, and for metrics when they are scraped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use papaya::HashMap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Unit;
use roost_catalog::Catalog;
use roost_catalog::id::DatabaseId;
use roost_catalog::model::UsageDelta;

use crate::config::SHORTEST_INTERVAL;

/// Bytes in both directions, since something began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Bytes {
    from_client: u64,
    to_client: u64,
}

/// One session's numbers. Only its relay adds to them.
#[derive(Debug)]
pub(crate) struct Traffic {
    database: DatabaseId,
    from_client: AtomicU64,
    to_client: AtomicU64,
    /// Whether the server works on something for this session.
    busy: Arc<AtomicBool>,
    /// How much of it the catalog knows.
    recorded: [AtomicU64; 2],
}

impl Traffic {
    /// Counts bytes that the client sent.
    #[inline]
    pub(crate) fn received(&self, bytes: usize) {
        add(&self.from_client, bytes);
    }

    /// Counts bytes that the client was sent.
    #[inline]
    pub(crate) fn sent(&self, bytes: usize) {
        add(&self.to_client, bytes);
    }

    /// Says whether the server works on something for this session, which is when a cancel request makes sense.
    #[inline]
    pub(crate) fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Release);
    }

    fn bytes(&self) -> Bytes {
        Bytes {
            from_client: self.from_client.load(Ordering::Relaxed),
            to_client: self.to_client.load(Ordering::Relaxed),
        }
    }

    /// What the catalog does not know yet; it is taken to know it from now on.
    fn take_unrecorded(&self) -> Bytes {
        let Bytes { from_client, to_client } = self.bytes();
        let [known_from, known_to] = &self.recorded;
        // The timer and the session's end may be here at once; the later one must not count back.
        Bytes {
            from_client: from_client.saturating_sub(known_from.fetch_max(from_client, Ordering::Relaxed)),
            to_client: to_client.saturating_sub(known_to.fetch_max(to_client, Ordering::Relaxed)),
        }
    }
}

/// An addition without a lock prefix: there is one writer.
#[inline]
fn add(counter: &AtomicU64, bytes: usize) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(bytes as u64), Ordering::Relaxed);
}

/// All open sessions' numbers, and the sum of the closed ones'.
#[derive(Debug)]
pub(crate) struct Ledger {
    catalog: Catalog,
    open: HashMap<u64, Arc<Traffic>>,
    next: AtomicU64,
    closed_from_client: AtomicU64,
    closed_to_client: AtomicU64,
}

impl Ledger {
    pub(crate) fn new(catalog: Catalog) -> Arc<Self> {
        Arc::new(Self {
            catalog,
            open: HashMap::new(),
            next: AtomicU64::new(0),
            closed_from_client: AtomicU64::new(0),
            closed_to_client: AtomicU64::new(0),
        })
    }

    /// Opens the account of a session. `busy` is the flag that cancel requests look at.
    pub(crate) fn open(self: &Arc<Self>, database: DatabaseId, busy: Arc<AtomicBool>) -> Account {
        let traffic = Arc::new(Traffic {
            database,
            from_client: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
            busy,
            recorded: [AtomicU64::new(0), AtomicU64::new(0)],
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.pin().insert(id, traffic.clone());
        self.record(database, 1, Bytes::default());
        Account { ledger: self.clone(), id, traffic }
    }

    /// How many sessions are open.
    pub(crate) fn sessions(&self) -> usize {
        self.open.len()
    }

    /// Records the bytes of open sessions in the catalog until the task is dropped.
    pub(crate) async fn keep(self: Arc<Self>, every: Duration) {
        let mut ticks = tokio::time::interval(every.max(SHORTEST_INTERVAL));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.record_open();
        }
    }

    /// Records the bytes of open sessions in the catalog.
    pub(crate) fn record_open(&self) {
        for traffic in self.open.pin().values() {
            let bytes = traffic.take_unrecorded();
            if bytes != Bytes::default() {
                self.record(traffic.database, 0, bytes);
            }
        }
    }

    fn record(&self, database: DatabaseId, sessions: u64, bytes: Bytes) {
        self.catalog.record_usage(UsageDelta {
            database,
            sessions,
            bytes_in: bytes.from_client,
            bytes_out: bytes.to_client,
            cpu: Duration::ZERO,
            running: Duration::ZERO,
            last_used_at: Some(SystemTime::now()),
            size_bytes: None,
            xid_age: None,
        });
    }

    fn totals(&self) -> Bytes {
        let mut sum = Bytes {
            from_client: self.closed_from_client.load(Ordering::Relaxed),
            to_client: self.closed_to_client.load(Ordering::Relaxed),
        };
        for traffic in self.open.pin().values() {
            let bytes = traffic.bytes();
            sum.from_client = sum.from_client.wrapping_add(bytes.from_client);
            sum.to_client = sum.to_client.wrapping_add(bytes.to_client);
        }
        sum
    }
}

/// A session's account, closed and recorded when it is dropped.
#[derive(Debug)]
pub(crate) struct Account {
    ledger: Arc<Ledger>,
    id: u64,
    traffic: Arc<Traffic>,
}

impl Account {
    /// The numbers to write.
    pub(crate) fn traffic(&self) -> Arc<Traffic> {
        self.traffic.clone()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.ledger.open.pin().remove(&self.id);
        let total = self.traffic.bytes();
        self.ledger.closed_from_client.fetch_add(total.from_client, Ordering::Relaxed);
        self.ledger.closed_to_client.fetch_add(total.to_client, Ordering::Relaxed);
        self.ledger.record(self.traffic.database, 0, self.traffic.take_unrecorded());
    }
}

/// Scrapes the totals.
#[derive(Debug)]
pub(crate) struct TrafficCollector(pub(crate) Arc<Ledger>);

impl Collector for TrafficCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let totals = self.0.totals();
        let directions = [
            ("roost_gateway_received", "Bytes that clients sent in sessions", totals.from_client),
            ("roost_gateway_sent", "Bytes that clients were sent in sessions", totals.to_client),
        ];
        for (name, help, value) in directions {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(
                name,
                help,
                Some(&Unit::Bytes),
                counter.metric_type(),
            )?)?;
        }
        Ok(())
    }
}
