//! What the gateway counts, under `roost_gateway_`.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::error::ErrorKind;
use crate::traffic::{Ledger, TrafficCollector};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Transport {
    transport: &'static str,
}

/// How a connection was secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Security {
    Plain,
    /// TLS after a request for it.
    Requested,
    /// TLS from the first byte.
    Direct,
}

/// What became of a cancel request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CancelOutcome {
    Sent,
    UnknownKey,
    TooMany,
    Failed,
}

/// The gateway's counters. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    connections: Family<Outcome, Counter>,
    cancels: Family<Outcome, Counter>,
    transports: Family<Transport, Counter>,
    open_connections: Gauge,
    sessions: Gauge,
    authentication: Histogram,
    wake: Histogram,
    thaw: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        // 0.25 ms to about 33 s.
        let durations = || Histogram::new(exponential_buckets(0.000_25, 2.0, 18));
        Self {
            connections: Family::default(),
            cancels: Family::default(),
            transports: Family::default(),
            open_connections: Gauge::default(),
            sessions: Gauge::default(),
            authentication: durations(),
            wake: durations(),
            thaw: durations(),
        }
    }

    /// Makes the numbers visible to a scrape.
    pub(crate) fn register(&self, registry: &mut Registry, ledger: &Arc<Ledger>) {
        let own = registry.sub_registry_with_prefix("roost_gateway");
        own.register("connections", "Client connections that ended, by outcome", self.connections.clone());
        own.register("cancels", "Cancel requests, by outcome", self.cancels.clone());
        own.register("transports", "Client connections that sent a startup packet", self.transports.clone());
        own.register("open_connections", "Client connections of all kinds", self.open_connections.clone());
        own.register("sessions", "Sessions that are open to a database", self.sessions.clone());
        let seconds = || Unit::Seconds;
        own.register_with_unit(
            "authentication",
            "Time from the startup packet to the end of authentication, failures included",
            seconds(),
            self.authentication.clone(),
        );
        own.register_with_unit(
            "wake_wait",
            "Time that authenticated clients waited for their database",
            seconds(),
            self.wake.clone(),
        );
        own.register_with_unit(
            "thaw_wait",
            "Time that open sessions waited for their frozen database",
            seconds(),
            self.thaw.clone(),
        );
        registry.register_collector(Box::new(TrafficCollector(ledger.clone())));
    }

    /// Counts a connection until the result is dropped.
    pub(crate) fn connection_opened(&self) -> Open {
        Open::count(&self.open_connections)
    }

    /// Counts a session until the result is dropped.
    pub(crate) fn session_opened(&self) -> Open {
        Open::count(&self.sessions)
    }

    pub(crate) fn connection_ended(&self, result: &Result<&'static str, ErrorKind>) {
        let outcome = match result {
            Ok(label) => label,
            Err(error) => error.label(),
        };
        self.connections.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn transport(&self, security: Security) {
        let transport = match security {
            Security::Plain => "plain",
            Security::Requested => "tls",
            Security::Direct => "direct_tls",
        };
        self.transports.get_or_create(&Transport { transport }).inc();
    }

    pub(crate) fn cancel(&self, outcome: CancelOutcome) {
        let outcome = match outcome {
            CancelOutcome::Sent => "sent",
            CancelOutcome::UnknownKey => "unknown_key",
            CancelOutcome::TooMany => "too_many",
            CancelOutcome::Failed => "failed",
        };
        self.cancels.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn authenticated(&self, took: Duration) {
        self.authentication.observe(took.as_secs_f64());
    }

    pub(crate) fn woken(&self, took: Duration) {
        self.wake.observe(took.as_secs_f64());
    }

    pub(crate) fn thawed(&self, took: Duration) {
        self.thaw.observe(took.as_secs_f64());
    }
}

/// Something that a gauge counts while it lives.
#[derive(Debug)]
pub(crate) struct Open(Gauge);

impl Open {
    fn count(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
