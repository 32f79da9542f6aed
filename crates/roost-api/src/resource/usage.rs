//! What a database did: usage, steps on the ladder, wake times.

use roost_catalog::model::{State, WakeStats};
use serde::{Deserialize, Serialize};

/// Wake times from one state, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WakeReport {
    /// The state that the wakes started from.
    pub from: State,
    /// How many there were, over the kept history.
    pub count: u64,
    /// The latest.
    pub last_ms: f64,
    /// The median.
    pub p50_ms: f64,
    /// The 90th percentile.
    pub p90_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
}

impl From<WakeStats> for WakeReport {
    fn from(stats: WakeStats) -> Self {
        let WakeStats { from, count, last_ms, p50_ms, p90_ms, p99_ms } = stats;
        Self { from, count, last_ms, p50_ms, p90_ms, p99_ms }
    }
}

/// One step on the ladder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TransitionReport {
    /// When the step was complete.
    pub at: String,
    /// The state before.
    pub from: State,
    /// The state after.
    pub to: State,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
    /// Why.
    pub reason: String,
}

/// A database's usage since it was made. As in the reference, it has no `data` around it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageReport {
    /// What the counters cover.
    pub period: Period,
    /// The counters.
    pub metrics: UsageMetrics,
    /// When the report was made.
    pub generated_at: String,
}

/// A span of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Period {
    /// Its beginning.
    pub start: String,
    /// Its end.
    pub end: String,
}

/// A database's counters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageMetrics {
    /// Sessions that were opened, under the reference's name: queries pass through unparsed and are not counted.
    pub operations: Measured,
    /// The size of its files when last measured.
    pub storage: Measured,
    /// Sessions that were opened.
    pub sessions: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// Processor time, in seconds.
    pub cpu_seconds: f64,
    /// Time spent running, in seconds.
    pub running_seconds: f64,
}

/// A figure and its unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The figure.
    pub used: f64,
    /// Its unit.
    pub unit: String,
}
