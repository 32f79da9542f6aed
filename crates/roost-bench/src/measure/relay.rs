//! The relay: processor time for each transaction of `pgbench -S -M prepared`, beside PgBouncer in session mode.
//!
//! The bar is held against a PgBouncer before the same instance, so that nothing but the relay differs: to wake a
//! confined server costs its waker more than to wake a bare one, whoever relays. What PgBouncer takes before a bare server
//! is printed beside it, and so is throughput without anything in between. Both reach their server by a unix socket, and
//! clients log in to both by SCRAM over TCP without TLS. Processor time is that of the one process that relays.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use super::wake::connect;
use crate::bench::Bench;
use crate::machine::cpu_time;
use crate::peer::Original;
use crate::pgbouncer::{PASSWORD, PgBouncer, Pgbench, Target, USER};
use crate::report::{Limit, number};
use crate::samples::Samples;

/// Processor time for each transaction over PgBouncer's.
const RATIO: f64 = 1.0;
/// Numbers of clients.
const CLIENTS: [u32; 3] = [1, 16, 64];

/// What is measured of one way to a server.
#[derive(Debug, Default)]
struct Way {
    /// Microseconds of processor time for each transaction.
    cpu: Samples,
    /// Transactions a second.
    rate: Samples,
}

/// Measures, and holds the result against the bars.
pub(crate) fn measure(bench: &mut Bench) -> Result<()> {
    bench
        .report
        .section("relay: processor time for each transaction (pgbench -S -M prepared), beside PgBouncer");
    let Some(program) = PgBouncer::program() else {
        bench.report.skip("relay", "PgBouncer is not installed");
        return Ok(());
    };
    let rounds = bench.count(7, 1);
    let duration = Duration::from_secs(if bench.is_quick() { 2 } else { 4 });
    let scratch = bench.scratch()?;
    // In session mode PgBouncer keeps its server sessions for a while: room for those and for Roost's.
    let node = bench.node(&scratch, "relay").with(&["--defaults-max-connections", "300"]).start()?;
    let tenant = node.create("relay")?;
    let original = Original::of(&node, &tenant, &scratch)?;
    let cluster = original.peer(&scratch, "relay")?;
    let server = cluster.start()?;
    connect(&node, &tenant)?;
    let instance = node.socket_directory(&tenant.id);
    let bouncer = PgBouncer::start(&program, &scratch, "pgbouncer", &instance)?;
    let bare_bouncer = PgBouncer::start(&program, &scratch, "pgbouncer-bare", cluster.socket_directory())?;
    let pgbench = Pgbench::beside(&original.recipe.program)?;

    let target = |address: SocketAddr, user: &str, password: &str| Target {
        host: address.ip().to_string(),
        port: address.port(),
        user: user.to_owned(),
        password: password.to_owned(),
    };
    let roost = target(node.address(), tenant.credentials.user(), tenant.credentials.password());
    let peer = target(bouncer.address(), USER, PASSWORD);
    let bare_peer = target(bare_bouncer.address(), USER, PASSWORD);
    let host = cluster.socket_directory().display().to_string();
    let direct = Target { host, port: 5432, user: "postgres".to_owned(), password: String::new() };
    pgbench.initialize(&roost)?;
    pgbench.initialize(&direct)?;
    let ways = [
        (&roost, Some(node.process())),
        (&peer, Some(bouncer.process())),
        (&bare_peer, Some(bare_bouncer.process())),
        (&direct, None),
    ];

    for clients in CLIENTS {
        let mut measured: [Way; 4] = Default::default();
        for (target, _) in ways {
            pgbench.select(target, clients, Duration::from_secs(1))?;
        }
        for round in 0..rounds {
            for at in 0..ways.len() {
                // Each comes first as often as last.
                let at = if round % 2 == 0 { at } else { ways.len() - 1 - at };
                let ((target, process), way) = (ways[at], &mut measured[at]);
                let before = process.map(cpu_time).transpose()?;
                let transactions = pgbench.select(target, clients, duration)? as f64;
                let after = process.map(cpu_time).transpose()?;
                way.rate.push_value(transactions / duration.as_secs_f64());
                if let (Some(before), Some(after)) = (before, after) {
                    way.cpu.push_value((after - before).as_secs_f64() * 1e6 / transactions);
                }
            }
        }
        print(bench, clients, &measured);
    }
    drop((bouncer, bare_bouncer));
    server.stop()
}

fn print(bench: &mut Bench, clients: u32, [roost, peer, bare_peer, direct]: &[Way; 4]) {
    let row = |name: &str, way: &Way| {
        let cpu = if way.cpu.len() == 0 { "-".to_owned() } else { number(way.cpu.median()) };
        vec![name.to_owned(), cpu, number(way.rate.median()), way.rate.len().to_string()]
    };
    let report = &mut bench.report;
    let title = format!("{clients} clients");
    report.table(
        &[&title, "cpu us/transaction", "transactions/s", "rounds"],
        &[
            row("roost", roost),
            row("pgbouncer, same instance", peer),
            row("pgbouncer, bare server", bare_peer),
            row("nothing, bare server", direct),
        ],
    );
    let ratio = roost.cpu.median() / peer.cpu.median();
    let what = format!("relay, {clients} clients: cpu a transaction / PgBouncer's");
    report.bar(what, ratio, Limit::AtMost(RATIO), "x");
}
