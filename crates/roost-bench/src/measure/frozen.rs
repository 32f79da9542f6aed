//! Frozen to first row: on a session that was open all the while and on a new connection, with the database's memory
//! where it was, and pushed out to compressed swap. Beside it, the same on a database that is running.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use roost_api::client::Step;

use super::wake::connect;
use crate::bench::Bench;
use crate::client::Session;
use crate::machine::Groups;
use crate::node::{Node, Tenant};
use crate::report::Limit;
use crate::samples::Samples;
use crate::zram::Zram;

/// Bars in milliseconds: on an open session, on a new connection.
const RESIDENT: [f64; 2] = [1.5, 7.0];
/// The same with the memory in zram.
const SWAPPED: [f64; 2] = [3.0, 12.0];

/// How long memory may take to go out.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures, and holds the result against the bars.
pub(crate) fn measure(bench: &mut Bench) -> Result<()> {
    bench.report.section("frozen -> first row, beside the same on a running database");
    measure_one(bench, "resident", RESIDENT, None)?;
    match Zram::start() {
        Ok(zram) => {
            bench.report.note(&format!("zram: {}", zram.compressor()));
            // The node sees swap space when it starts.
            measure_one(bench, "zram", SWAPPED, Some(&zram))?;
        }
        Err(error) => bench.report.skip("frozen, pushed out to zram", &format!("{error:#}")),
    }
    Ok(())
}

fn measure_one(bench: &mut Bench, name: &str, bars: [f64; 2], zram: Option<&Zram>) -> Result<()> {
    let samples = if zram.is_some() { bench.count(100, 10) } else { bench.count(300, 30) };
    let scratch = bench.scratch()?;
    let node = bench.node(&scratch, name).start()?;
    let tenant = node.create("frozen")?;
    // Derives the client's keys.
    connect(&node, &tenant)?;
    let (mut session, _) = Session::log_in(node.address(), &tenant.credentials)?;
    session.first_row()?;
    let mut times: [Samples; 4] = Default::default();
    let mut swapped = Samples::default();
    for _ in 0..samples {
        let [frozen_open, frozen_new, running_open, running_new] = &mut times;
        freeze(&node, &tenant, zram, &mut swapped)?;
        frozen_open.push(row_after(&mut session)?);
        running_open.push(row_after(&mut session)?);
        freeze(&node, &tenant, zram, &mut swapped)?;
        frozen_new.push(connect(&node, &tenant)?.took);
        running_new.push(connect(&node, &tenant)?.took);
    }
    session.close();
    let [frozen_open, frozen_new, running_open, running_new] = &times;
    let report = &mut bench.report;
    report.durations(
        name,
        &[
            ("frozen, open session", frozen_open),
            ("running, open session", running_open),
            ("frozen, new connection", frozen_new),
            ("running, new connection", running_new),
        ],
    );
    if zram.is_some() {
        report.note(&format!("in swap before each thaw: {:.1} MiB (median, uncompressed)", swapped.median()));
    }
    let [open, new] = bars;
    let what = format!("frozen ({name}) to first row, open session: median");
    report.bar(what, frozen_open.median(), Limit::AtMost(open), "ms");
    let what = format!("frozen ({name}) to first row, new connection: median");
    report.bar(what, frozen_new.median(), Limit::AtMost(new), "ms");
    Ok(())
}

fn row_after(session: &mut Session<std::net::TcpStream>) -> Result<Duration> {
    let begun = Instant::now();
    Ok(session.first_row()?.duration_since(begun))
}

/// Freezes a database and, where there is swap, waits until its memory has gone out.
fn freeze(node: &Node, tenant: &Tenant, zram: Option<&Zram>, swapped: &mut Samples) -> Result<()> {
    node.step(&tenant.id, Step::Freeze)?;
    if zram.is_some() {
        let groups = Groups::of(&tenant.id);
        settle(&groups)?;
        let swap = groups.swap()?;
        ensure!(swap > 0, "nothing of the frozen database went to swap");
        swapped.push_value(swap as f64 / f64::from(1 << 20));
    }
    Ok(())
}

/// Waits until the memory of a database no longer shrinks.
pub(crate) fn settle(groups: &Groups) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    let (mut last, mut steady) = (groups.memory()?, 0);
    while steady < 10 {
        std::thread::sleep(Duration::from_millis(10));
        let memory = groups.memory().context("the database is not frozen any more")?;
        steady = if memory < last { 0 } else { steady + 1 };
        last = memory;
        ensure!(Instant::now() < end, "memory still shrinks after {PATIENCE:?}");
    }
    Ok(())
}
