//! Stopped to first row: a new TCP connection with SCRAM through the gateway, beside a bare start.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::bare::BareCluster;
use crate::bench::Bench;
use crate::client::{Login, Session};
use crate::node::{Node, Tenant};
use crate::peer::Original;
use crate::report::{Limit, Report};
use crate::samples::Samples;

/// Median of Roost's over the bare peer's.
const MEDIAN_RATIO: f64 = 1.3;
/// 99th percentile over the median.
const TAIL_RATIO: f64 = 2.0;

/// What a stop leaves behind for the kernel to finish is not a start's.
const REST: Duration = Duration::from_millis(20);

/// Measures, and holds the result against the bars.
pub(crate) fn measure(bench: &mut Bench) -> Result<()> {
    bench
        .report
        .section("wake: stopped -> first row (TCP, SCRAM, gateway), beside a bare start (unix socket)");
    let samples = bench.count(300, 30);
    let scratch = bench.scratch()?;
    let node = bench.node(&scratch, "wake").start()?;
    let tenant = node.create("wake")?;
    let bare = Original::of(&node, &tenant, &scratch)?.peer(&scratch, "wake")?;
    let mut phases = Phases::default();
    let (mut roost_times, mut bare_times) = (Samples::default(), Samples::default());
    for _ in 0..3 {
        bare_start(&bare)?;
        wake(&node, &tenant)?;
    }
    for sample in 0..samples {
        // Each comes first as often as the other.
        if sample % 2 == 0 {
            bare_times.push(bare_start(&bare)?);
        }
        let wake = wake(&node, &tenant)?;
        roost_times.push(wake.took);
        phases.add(&wake);
        if sample % 2 == 1 {
            bare_times.push(bare_start(&bare)?);
        }
    }
    let report = &mut bench.report;
    report.durations("to first row", &[("roost", &roost_times), ("bare", &bare_times)]);
    phases.print(report);
    for wakes in node.show(&tenant.id)?.wakes.into_iter().flatten() {
        let (from, count) = (wakes.from.as_str(), wakes.count);
        let (p50, p90, p99) = (wakes.p50_ms, wakes.p90_ms, wakes.p99_ms);
        report.note(&format!(
            "by the node: from {from} {p50:.2} ms, p90 {p90:.2}, p99 {p99:.2} ({count} wakes)"
        ));
    }
    let ratio = roost_times.median() / bare_times.median();
    report.bar("stopped to first row: median / bare median", ratio, Limit::AtMost(MEDIAN_RATIO), "x");
    let tail = roost_times.p99() / roost_times.median();
    report.bar("stopped to first row: p99 / median", tail, Limit::AtMost(TAIL_RATIO), "x");
    Ok(())
}

/// One wake, as the client saw it.
#[derive(Debug)]
pub(crate) struct Wake {
    login: Login,
    /// From before the connection until the first row, without the client's derivation of its keys.
    pub(crate) took: Duration,
}

/// Makes sure that a database is stopped, and wakes it by a new connection.
pub(crate) fn wake(node: &Node, tenant: &Tenant) -> Result<Wake> {
    node.stop_database(&tenant.id)?;
    std::thread::sleep(REST);
    connect(node, tenant)
}

/// From a new connection to its first row.
pub(crate) fn connect(node: &Node, tenant: &Tenant) -> Result<Wake> {
    let begun = Instant::now();
    let (mut session, login) = Session::log_in(node.address(), &tenant.credentials)?;
    let row = session.first_row()?;
    session.close();
    Ok(Wake { took: row.duration_since(begun).saturating_sub(login.deriving), login })
}

/// From the start of a bare server to its first row; the server is stopped again.
pub(crate) fn bare_start(cluster: &BareCluster) -> Result<Duration> {
    std::thread::sleep(REST);
    let begun = Instant::now();
    let server = cluster.start()?;
    let mut session = server.connect()?;
    let row = session.first_row()?;
    session.close();
    server.stop()?;
    Ok(row.duration_since(begun))
}

/// Where the time of wakes went, as the client saw it.
#[derive(Debug, Default)]
struct Phases {
    connect: Samples,
    authenticate: Samples,
    ready: Samples,
    row: Samples,
}

impl Phases {
    fn add(&mut self, wake: &Wake) {
        let Login { connected, authenticated, ready, deriving, .. } = wake.login;
        self.connect.push(connected);
        self.authenticate.push(authenticated.saturating_sub(connected).saturating_sub(deriving));
        self.ready.push(ready.saturating_sub(authenticated));
        self.row.push((wake.took + deriving).saturating_sub(ready));
    }

    fn print(&self, report: &Report) {
        report.durations(
            "of which",
            &[
                ("TCP connection", &self.connect),
                ("startup and SCRAM", &self.authenticate),
                ("wake and server session", &self.ready),
                ("query", &self.row),
            ],
        );
    }
}
