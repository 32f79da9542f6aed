//! Counters and histograms of the ladder.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use roost_catalog::model::State;

use crate::Lifecycle;

/// A step's labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Step {
    from: &'static str,
    to: &'static str,
}

/// What the lifecycle counts.
#[derive(Debug)]
pub(crate) struct LifecycleMetrics {
    steps: Family<Step, Histogram>,
    start_failures: Counter,
    crashes: Counter,
    maintenance: Histogram,
}

impl Default for LifecycleMetrics {
    fn default() -> Self {
        Self {
            steps: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.000_25, 2.0, 18))),
            start_failures: Counter::default(),
            crashes: Counter::default(),
            maintenance: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
        }
    }
}

impl LifecycleMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("lifecycle");
        registry.register_with_unit("step", "Time of steps on the ladder", Unit::Seconds, self.steps.clone());
        registry.register("start_failures", "Starts that failed", self.start_failures.clone());
        registry.register("crashes", "Instances that died unasked", self.crashes.clone());
        let help = "Time of maintenance before sleep";
        registry.register_with_unit("maintenance", help, Unit::Seconds, self.maintenance.clone());
    }

    pub(crate) fn step(&self, from: State, to: State, took: Duration) {
        let labels = Step { from: from.as_str(), to: to.as_str() };
        self.steps.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub(crate) fn start_failed(&self) {
        self.start_failures.inc();
    }

    pub(crate) fn crashed(&self) {
        self.crashes.inc();
    }

    pub(crate) fn maintained(&self, took: Duration) {
        self.maintenance.observe(took.as_secs_f64());
    }
}

/// A state's label.
#[derive(Debug, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

/// The census is taken at each scrape: a gauge kept by hand could drift from the truth.
impl Collector for Lifecycle {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let census = self.census();
        let help = "Databases in memory by state; the rest are stopped";
        let mut metric = encoder.encode_descriptor("lifecycle_databases", help, None, MetricType::Gauge)?;
        for (state, count) in census.states {
            let gauge = ConstGauge::new(count);
            gauge.encode(metric.encode_family(&InState { state })?)?;
        }
        let help = "Sessions that use or wait for a database";
        let metric = encoder.encode_descriptor("lifecycle_holds", help, None, MetricType::Gauge)?;
        ConstGauge::new(census.sessions).encode(metric)
    }
}
