//! What a sleeping database costs: nothing but bytes on disk when it is stopped; its memory, and no processor, when it
//! is frozen.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use roost_api::client::Step;

use super::frozen::settle;
use super::wake::connect;
use crate::bench::Bench;
use crate::machine::{Footprint, Groups, footprint};
use crate::node::Node;
use crate::report::{Limit, number};
use crate::zram::{Fill, Zram};

/// What a frozen database may take, in MiB: charged memory, the kernel's included, and compressed swap.
const FROZEN_MEBIBYTES: f64 = 4.5;
/// How long a frozen database is watched for processor time.
const WATCH: Duration = Duration::from_secs(10);
/// How long the node has to let go of what a stop and its requests took.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many databases are stopped.
const STOPPED: usize = 10;
/// How many are frozen: the compressed pages of a single one would leave the allocator's own pages half empty.
const FROZEN: usize = 16;

/// Measures, and holds the result against the bars.
pub(crate) fn measure(bench: &mut Bench) -> Result<()> {
    bench.report.section("idle: what a stopped and a frozen database cost");
    stopped(bench)?;
    match Zram::start() {
        Ok(zram) => {
            frozen(bench, Some(&zram))?;
        }
        Err(error) => {
            bench.report.skip("memory of a frozen database with compressed swap", &format!("{error:#}"));
            frozen(bench, None)?;
        }
    }
    Ok(())
}

fn stopped(bench: &mut Bench) -> Result<()> {
    let scratch = bench.scratch()?;
    let node = bench.node(&scratch, "stopped").start()?;
    // What the node opens once and keeps, such as its template and catalog, is not the databases'.
    for round in ["warm", "measured"] {
        let before = settled_footprint(&node, &[])?;
        let tenants = (0..STOPPED).map(|number| node.create(&format!("{round}-{number}")));
        let tenants = tenants.collect::<Result<Vec<_>>>()?;
        let ids: Vec<String> = tenants.iter().map(|tenant| tenant.id.clone()).collect();
        for tenant in &tenants {
            connect(&node, tenant)?;
        }
        let awake = footprint(&node.processes(), &ids)?;
        for id in &ids {
            node.stop_database(id)?;
        }
        let after = settled_footprint(&node, &ids)?;
        if round == "measured" {
            print_stopped(bench, before, awake, after);
        }
    }
    Ok(())
}

/// The smallest footprint within a while: descriptors of finished requests are closed a little later.
fn settled_footprint(node: &Node, databases: &[String]) -> Result<Footprint> {
    let end = Instant::now() + PATIENCE;
    let mut least = footprint(&node.processes(), databases)?;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100));
        let now = footprint(&node.processes(), databases)?;
        least.processes = least.processes.min(now.processes);
        least.descriptors = least.descriptors.min(now.descriptors);
        least.mounts = least.mounts.min(now.mounts);
        least.groups = least.groups.min(now.groups);
    }
    Ok(least)
}

fn print_stopped(bench: &mut Bench, before: Footprint, awake: Footprint, after: Footprint) {
    let report = &mut bench.report;
    let of = |counts: fn(&Footprint) -> usize| [&before, &awake, &after].map(counts);
    let rows = [
        ("processes", of(|footprint| footprint.processes)),
        ("descriptors of warden and node", of(|footprint| footprint.descriptors)),
        ("mounts", of(|footprint| footprint.mounts)),
        ("control groups", of(|footprint| footprint.groups)),
    ];
    let cells = rows.map(|(name, counts)| {
        let counts = counts.iter().map(usize::to_string);
        [name.to_owned()].into_iter().chain(counts).collect()
    });
    let title = format!("{STOPPED} databases");
    report.table(&[&title, "before", "running", "stopped"], &cells);
    for (name, [before, _, after]) in rows {
        let left = after as f64 - before as f64;
        report.bar(format!("stopped: {name} of {STOPPED} databases"), left, Limit::AtMost(0.0), "");
    }
}

fn frozen(bench: &mut Bench, zram: Option<&Zram>) -> Result<()> {
    let scratch = bench.scratch()?;
    let node = bench.node(&scratch, "frozen").start()?;
    let tenants =
        (0..FROZEN).map(|number| node.create(&format!("frozen-{number}"))).collect::<Result<Vec<_>>>()?;
    for tenant in &tenants {
        connect(&node, tenant)?;
    }
    // The servers' ends of the sessions are gone by the time that a database counts as idle.
    std::thread::sleep(PATIENCE);
    let mut all = Vec::new();
    for tenant in &tenants {
        node.step(&tenant.id, Step::Freeze)?;
        let groups = Groups::of(&tenant.id);
        ensure!(!groups.processes().is_empty(), "a frozen database has no processes in a control group");
        settle(&groups)?;
        all.push(groups);
    }
    // Nearly all of the device's content is the databases'.
    let ratio = zram.map(Zram::fill).transpose()?.map_or(1.0, Fill::ratio);
    let cpu = || all.iter().map(Groups::cpu).sum::<Result<Duration>>();
    let before = cpu()?;
    std::thread::sleep(WATCH);
    let used = cpu()?.saturating_sub(before);

    let mean = |of: &dyn Fn(&Groups) -> Result<u64>| -> Result<f64> {
        let total = all.iter().map(of).sum::<Result<u64>>()?;
        Ok(total as f64 / all.len() as f64 / f64::from(1 << 20))
    };
    let (memory, swap) = (mean(&Groups::memory)?, mean(&Groups::swap)?);
    let kernel = mean(&|groups| Ok(groups.kernel_memory()))?;
    let compressed = swap * ratio;
    let processes =
        all.iter().map(|groups| groups.processes().len()).sum::<usize>() as f64 / all.len() as f64;
    let report = &mut bench.report;
    report.note(&format!(
        "frozen, mean of {FROZEN}: {} processes, {} MiB charged (of which kernel {}), {} MiB in swap, {} compressed",
        number(processes),
        number(memory),
        number(kernel),
        number(swap),
        number(compressed),
    ));
    let what = format!("frozen: processor time of {FROZEN} databases in {} s", WATCH.as_secs());
    report.bar(what, used.as_secs_f64() * 1e3, Limit::AtMost(0.0), "ms");
    if zram.is_some() {
        let what = "frozen: memory and compressed swap of one database";
        report.bar(what, memory + compressed, Limit::AtMost(FROZEN_MEBIBYTES), "MiB");
    }
    Ok(())
}
