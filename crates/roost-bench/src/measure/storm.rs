//! A storm: many stopped databases that are connected to at the same moment, beside a bare starter that starts as many
//! at once as the node does.
//!
//! Both find their files in the page cache: they are read right before, because some machines drop what was not used
//! for seconds, and a disk is not what is compared.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::wake::connect;
use crate::bare::BareCluster;
use crate::bench::Bench;
use crate::client::Session;
use crate::machine::read_files;
use crate::node::{Node, Tenant};
use crate::peer::Original;
use crate::report::Limit;
use crate::samples::Samples;
use crate::scratch::Scratch;

/// Starts a second over the bare starter's.
const RATE_RATIO: f64 = 0.8;
/// 99th percentile over queue length / rate.
const TAIL_RATIO: f64 = 1.2;

/// One client's experience, as times since the moment of the storm.
#[derive(Debug, Clone, Copy)]
struct Served {
    /// When it was about to prove its password, before which it could not wait for its database.
    proving: Duration,
    /// When it was told that it is authenticated, by which it waited.
    told: Duration,
    /// When it had its first row.
    row: Duration,
}

/// Measures, and holds the result against the bars.
pub(crate) fn measure(bench: &mut Bench) -> Result<()> {
    let databases = bench.count(500, 60);
    let at_once = std::thread::available_parallelism()?.get() * 2;
    bench.report.section(&format!(
        "storm: {databases} stopped databases at the same moment, {at_once} starts at once"
    ));
    let rounds = bench.count(3, 1);
    let scratch = bench.scratch()?;
    let starts = at_once.to_string();
    let setup = bench.node(&scratch, "storm").with(&[
        "--limits-concurrent-starts",
        &starts,
        "--gateway-connect-deadline",
        "5m",
        "--limits-memory-budget",
        "64GiB",
    ]);
    let node = setup.start()?;
    let tenants =
        (0..databases).map(|number| node.create(&format!("storm-{number}"))).collect::<Result<Vec<_>>>()?;
    for tenant in &tenants {
        connect(&node, tenant)?;
        node.stop_database(&tenant.id)?;
    }
    let first = tenants.first().context("no databases")?;
    let original = Original::of(&node, first, &scratch)?;
    let clusters = (0..databases)
        .map(|number| original.peer(&scratch, &format!("s{number}")))
        .collect::<Result<Vec<_>>>()?;
    node.stop()?;

    let [mut rates, mut bare_rates, mut ratios, mut tails, mut overtaken, mut waits]: [Samples; 6] =
        Default::default();
    for _ in 0..rounds {
        let before = bare_storm(&scratch, &clusters, at_once)?;
        let node = setup.start()?;
        read_files(setup.data())?;
        let served = storm(&node, &tenants)?;
        node.stop()?;
        let after = bare_storm(&scratch, &clusters, at_once)?;

        let rows: Vec<Duration> = served.iter().map(|client| client.row).collect();
        let (rate, bare_rate) = (steady_rate(&rows), f64::midpoint(before, after));
        rates.push_value(rate);
        bare_rates.push_value(bare_rate);
        ratios.push_value(rate / bare_rate);
        let mut round_waits = Samples::default();
        rows.iter().for_each(|&row| round_waits.push(row));
        rows.iter().for_each(|&row| waits.push(row));
        tails.push_value(round_waits.p99() / 1e3 / (served.len() as f64 / rate));
        overtaken.push_value(most_overtaken(&served) as f64);
    }
    let report = &mut bench.report;
    report.durations("moment of the storm to first row", &[("roost", &waits)]);
    report.note(&format!(
        "starts/s: roost {:.1}, bare {:.1}; medians of {rounds} rounds",
        rates.median(),
        bare_rates.median(),
    ));
    report.bar(
        "storm: starts a second / bare parallel starter",
        ratios.median(),
        Limit::AtLeast(RATE_RATIO),
        "x",
    );
    report.bar("storm: p99 / (queue length / rate)", tails.median(), Limit::AtMost(TAIL_RATIO), "x");
    // What is started at once may finish in any order.
    let slack = (4 * at_once) as f64;
    report.bar(
        "storm: later arrivals served before one, at most",
        overtaken.quantile(1.0),
        Limit::AtMost(slack),
        "",
    );
    Ok(())
}

/// Connects to every database at the same moment. Fails unless all are served.
fn storm(node: &Node, tenants: &[Tenant]) -> Result<Vec<Served>> {
    let moment = Barrier::new(tenants.len());
    let address = node.address();
    let clients = std::thread::scope(|scope| {
        let clients: Vec<_> = tenants
            .iter()
            .map(|tenant| {
                let client = || {
                    moment.wait();
                    let (mut session, login) = Session::log_in(address, &tenant.credentials)?;
                    let row = session.first_row()?;
                    anyhow::Ok((session, login, row))
                };
                std::thread::Builder::new().stack_size(256 * 1024).spawn_scoped(scope, client)
            })
            .collect();
        let mut served = Vec::new();
        for client in clients {
            let Ok(client) = client?.join() else { bail!("a client panicked") };
            served.push(client?);
        }
        Ok(served)
    })?;
    let begun = clients.iter().map(|(_, login, _)| login.begun).min().context("no clients")?;
    let served = clients.into_iter().map(|(session, login, row)| {
        session.close();
        let since = login.begun - begun;
        Served { proving: since + login.proving, told: since + login.authenticated, row: row - begun }
    });
    Ok(served.collect())
}

/// Starts all clusters, `at_once` at the same time, and returns the steady rate of first rows in starts a second.
fn bare_storm(scratch: &Scratch, clusters: &[BareCluster], at_once: usize) -> Result<f64> {
    read_files(&scratch.data().join("bare"))?;
    let next = AtomicUsize::new(0);
    let begun = Instant::now();
    let servers = std::thread::scope(|scope| {
        let starters: Vec<_> = (0..at_once)
            .map(|_| {
                scope.spawn(|| {
                    let mut started = Vec::new();
                    while let Some(cluster) = clusters.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let server = cluster.start()?;
                        let mut session = server.connect()?;
                        let row = session.first_row()?.duration_since(begun);
                        started.push((row, session, server));
                    }
                    anyhow::Ok(started)
                })
            })
            .collect();
        let mut all = Vec::new();
        for starter in starters {
            let Ok(started) = starter.join() else { bail!("a starter panicked") };
            all.extend(started?);
        }
        Ok(all)
    })?;
    let rows: Vec<Duration> = servers.iter().map(|(row, _, _)| *row).collect();
    for (_, session, server) in servers {
        session.close();
        server.stop()?;
    }
    Ok(steady_rate(&rows))
}

/// First rows a second between the first and the last tenth of them.
fn steady_rate(rows: &[Duration]) -> f64 {
    let mut rows = rows.to_vec();
    rows.sort_unstable();
    let (from, to) = (rows.len() / 10, rows.len() - rows.len() / 10 - 1);
    match (rows.get(from), rows.get(to)) {
        (Some(first), Some(last)) if last > first => (to - from) as f64 / (*last - *first).as_secs_f64(),
        _ => f64::NAN,
    }
}

/// The largest number of clients that surely arrived after one and were served before it. Hundreds of clients on a few
/// cores notice late what has happened, so the order is sure only where one's latest moment is before another's earliest.
fn most_overtaken(served: &[Served]) -> usize {
    let overtakers =
        |one: &Served| served.iter().filter(|other| other.proving > one.told && other.row < one.row).count();
    served.iter().map(overtakers).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(proving: u64, told: u64, row: u64) -> Served {
        let [proving, told, row] = [proving, told, row].map(Duration::from_millis);
        Served { proving, told, row }
    }

    #[test]
    fn nobody_is_overtaken_in_a_fair_queue() {
        assert_eq!(most_overtaken(&[served(0, 9, 100), served(10, 20, 200), served(21, 30, 300)]), 0);
        assert_eq!(most_overtaken(&[served(0, 9, 400), served(10, 20, 200), served(21, 30, 300)]), 2);
        assert_eq!(most_overtaken(&[served(0, 9, 400), served(5, 20, 200), served(21, 30, 300)]), 1);
    }

    #[test]
    fn the_rate_is_that_of_the_middle() {
        let rows: Vec<Duration> = (1..=100).map(|number| Duration::from_millis(number * 100)).collect();
        assert!((steady_rate(&rows) - 10.0).abs() < 1e-9);
    }
}
