//! Create to first row: a request of the API and the first connection, the first start of a new volume included, beside
//! the wake of a stopped database.

use std::time::Instant;

use anyhow::Result;

use super::wake::{connect, wake};
use crate::bench::Bench;
use crate::report::Limit;
use crate::samples::Samples;

/// Median of creating over the median of waking.
const RATIO: f64 = 2.0;

/// Measures, and holds the result against the bar.
pub(crate) fn measure(bench: &mut Bench) -> Result<()> {
    bench.report.section("create -> first row, beside the wake of a stopped database");
    let samples = bench.count(100, 10);
    let scratch = bench.scratch()?;
    let node = bench.node(&scratch, "create").start()?;
    let stopped = node.create("stopped")?;
    connect(&node, &stopped)?;
    let (mut creates, mut requests, mut wakes) = (Samples::default(), Samples::default(), Samples::default());
    for sample in 0..samples {
        wakes.push(wake(&node, &stopped)?.took);
        let begun = Instant::now();
        let tenant = node.create(&format!("new-{sample}"))?;
        let made = begun.elapsed();
        requests.push(made);
        creates.push(made + connect(&node, &tenant)?.took);
        node.stop_database(&tenant.id)?;
        node.purge(&tenant.id)?;
    }
    let report = &mut bench.report;
    let rows =
        [("create to first row", &creates), ("of which the request", &requests), ("stopped wake", &wakes)];
    report.durations("to first row", &rows);
    let ratio = creates.median() / wakes.median();
    report.bar("create to first row: median / stopped wake", ratio, Limit::AtMost(RATIO), "x");
    Ok(())
}
