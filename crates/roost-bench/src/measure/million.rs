//! A million registered databases: how long registering takes, and what they cost a node that starts, sits there and
//! wakes one of them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use roost_api::resource::{CreateDatabases, MAX_BULK};

use super::wake::{connect, wake};
use crate::bench::Bench;
use crate::node::Node;
use crate::report::Limit;
use crate::samples::Samples;

const REGISTER_SECONDS: f64 = 300.0;
const READY_SECONDS: f64 = 2.0;
const RESIDENT_MEGABYTES: f64 = 150.0;
/// Median wake over that of a node with few databases.
const WAKE_RATIO: f64 = 1.1;
/// What few databases are.
const FEW: usize = 10;

/// Measures, and holds the result against the bars.
pub(crate) fn measure(bench: &mut Bench) -> Result<()> {
    let many = bench.count(1_000_000, 100_000);
    bench.report.section(&format!("{many} registered databases"));
    let samples = bench.count(150, 15);
    let scratch = bench.scratch()?;
    let node = bench.node(&scratch, "many").start()?;
    let (registered, took) = register(&node, many)?;
    bench.report.note(&format!("registered by calls of at most {MAX_BULK} each"));
    let setup = node.stop()?;
    let node = setup.start()?;
    let resident = node.resident()?;

    let few = bench.node(&scratch, "few").start()?;
    let (registered_few, _) = register(&few, FEW)?;
    let (of_many, of_few) = (node.connection(&registered)?, few.connection(&registered_few)?);
    connect(&node, &of_many)?;
    connect(&few, &of_few)?;
    let (mut many_times, mut few_times) = (Samples::default(), Samples::default());
    for sample in 0..samples {
        if sample % 2 == 0 {
            few_times.push(wake(&few, &of_few)?.took);
        }
        many_times.push(wake(&node, &of_many)?.took);
        if sample % 2 == 1 {
            few_times.push(wake(&few, &of_few)?.took);
        }
    }
    let report = &mut bench.report;
    let names = [format!("node with {many}"), format!("node with {FEW}")];
    report.durations("stopped to first row", &[(&names[0], &many_times), (&names[1], &few_times)]);
    let after_wakes = node.resident()? as f64 / 1e6;
    report.note(&format!("resident after {} wakes: {after_wakes:.1} MB", many_times.len()));
    report.bar(format!("registering {many}"), took.as_secs_f64(), Limit::AtMost(REGISTER_SECONDS), "s");
    report.bar("restart until ready", node.ready_after.as_secs_f64(), Limit::AtMost(READY_SECONDS), "s");
    report.bar("resident, warden and node", resident as f64 / 1e6, Limit::AtMost(RESIDENT_MEGABYTES), "MB");
    let ratio = many_times.median() / few_times.median();
    report.bar(format!("wake: median / node with {FEW}"), ratio, Limit::AtMost(WAKE_RATIO), "x");
    Ok(())
}

/// Registers databases. Returns the id of one in the middle, and how long that took.
fn register(node: &Node, count: usize) -> Result<(String, Duration)> {
    let mut chosen = None;
    let begun = Instant::now();
    for first in (0..count).step_by(MAX_BULK) {
        let names = (first..count.min(first + MAX_BULK)).map(|number| format!("tenant-{number}").parse());
        let names = names.collect::<Result<_, _>>()?;
        let request = CreateDatabases { names, ..CreateDatabases::default() };
        let made = node.request(async |api| api.create_databases(&request).await)?;
        if first <= count / 2 {
            chosen = made.ids.get((count / 2 - first).min(made.ids.len().saturating_sub(1))).copied();
        }
    }
    Ok((chosen.context("nothing was registered")?.to_string(), begun.elapsed()))
}
