//! Hours of load and faults, with every acknowledged write accounted for.
//!
//! Many databases of very different sizes; clients of several kinds that come and go, so that databases sleep and wake all
//! the time; and faults: the node replaced and killed, the warden killed, postmasters killed, everything killed, too little
//! memory, a disk that fills. A [`Ledger`] that knows nothing of Roost records what Postgres acknowledged. At intervals
//! and at the end every row of it is looked for, and at the end every page and index of every database is checked.

mod client;
mod external;
mod fault;
mod population;
mod verify;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::sync::{Mutex, RwLock};

use crate::command_line::CommandLine;
use crate::ledger::{Findings, Ledger};
use crate::machine;
use crate::node::{Node, Setup};
use crate::random::Random;

use crate::disk::Disk;
use population::Tenant;

/// How big a soak is.
#[derive(Debug, Clone)]
pub struct Scale {
    /// How long load and faults go on.
    pub duration: Duration,
    /// How many databases there are.
    pub databases: usize,
    /// The largest database, in MB; the smallest has 10.
    pub largest_mb: u64,
    /// The size of the file system that everything lives on, in bytes.
    pub disk_bytes: u64,
    /// How many clients there are at a time.
    pub clients: usize,
}

impl Scale {
    /// From `ROOST_SOAK_MINUTES`, `ROOST_SOAK_DATABASES`, `ROOST_SOAK_LARGEST_MB` and `ROOST_SOAK_DISK_GB`.
    pub fn from_environment() -> Self {
        let number = |name: &str, default: u64| {
            std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
        };
        Self {
            duration: Duration::from_secs(60 * number("ROOST_SOAK_MINUTES", 45)),
            databases: number("ROOST_SOAK_DATABASES", 200) as usize,
            largest_mb: number("ROOST_SOAK_LARGEST_MB", 1000).max(10),
            disk_bytes: number("ROOST_SOAK_DISK_GB", 40) << 30,
            clients: number("ROOST_SOAK_CLIENTS", 24) as usize,
        }
    }
}

/// What happened, in numbers.
#[derive(Debug, Default)]
struct Tally {
    sessions: AtomicU64,
    refusals: Counts,
    faults: Counts,
}

type Counts = std::sync::Mutex<BTreeMap<String, u64>>;

impl Tally {
    fn refused(&self, kind: &str) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        *refusals.entry(kind.to_owned()).or_default() += 1;
    }

    fn fault(&self, kind: &str) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        *faults.entry(kind.to_owned()).or_default() += 1;
    }
}

/// What all tasks of a soak share.
struct Soak {
    scale: Scale,
    node: Mutex<Node>,
    command_line: CommandLine,
    tenants: Vec<Tenant>,
    ledger: Ledger,
    tally: Tally,
    disk: Disk,
    over: AtomicBool,
    /// Held by whoever writes; taken by whoever compares.
    at_rest: RwLock<()>,
}

impl Soak {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Sleeps at most `duration`, less when the soak is over.
    async fn sleep(&self, duration: Duration) {
        let end = Instant::now() + duration;
        while !self.is_over() && Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(Duration::from_millis(200))).await;
        }
    }
}

/// Runs a whole soak. An error, also one at the end, means that a promise was broken.
#[allow(clippy::print_stdout, reason = "the report is what this is for")]
pub async fn run(scale: Scale) -> Result<()> {
    ensure!(machine::is_root(), "a soak mounts a file system of its own, which needs root");
    machine::allow_open_files(8192)?;
    let mut random = Random::from_environment("soak");
    println!("soak: {scale:?}");
    let disk = Disk::create(scale.disk_bytes)?;
    let setup = Setup::default().with_data(&disk.folder().join("d"));
    // Little memory for so many databases: going down the ladder early is part of the load.
    let mut node = setup
        .with([
            "--limits-memory-budget",
            "4GiB",
            "--defaults-idle-freeze",
            "2s",
            "--defaults-idle-stop",
            "20s",
        ])
        .start()?;
    let ledger = Ledger::create(&disk.folder().join("ledger"))?;
    let tenants = population::create(&mut node, &ledger, &scale, &mut random)?;
    let soak = Arc::new(Soak {
        command_line: node.command_line(),
        node: Mutex::new(node),
        tenants,
        ledger,
        tally: Tally::default(),
        disk,
        over: AtomicBool::new(false),
        at_rest: RwLock::new(()),
        scale,
    });
    let begun = Instant::now();
    let outcome = load(&soak, &mut random).await;
    soak.over.store(true, Ordering::Relaxed);
    let findings = outcome?;
    println!("soak: load and faults are over after {:?}; checking files", begun.elapsed());
    verify::check_files(&soak).await?;
    let took = soak.node.lock().await.stop().context("the node's end")?;
    report(&soak, &findings, took);
    ensure!(findings.is_clean(), "rows were lost, stale or foreign");
    Ok(())
}

/// Load, faults and interim looks until the time is over; the last look's findings.
async fn load(soak: &Arc<Soak>, random: &mut Random) -> Result<Findings> {
    let fill = tokio::spawn(population::fill(Arc::clone(soak), random.fork()));
    let clients: Vec<_> = (0..soak.scale.clients)
        .map(|number| tokio::spawn(client::run(Arc::clone(soak), number, random.fork())))
        .collect();
    let faults = tokio::spawn(fault::run(Arc::clone(soak), random.fork()));
    let end = Instant::now() + soak.scale.duration;
    let interval = (soak.scale.duration / 6).max(Duration::from_secs(60));
    let mut next_look = Instant::now() + interval;
    while Instant::now() < end {
        soak.sleep(Duration::from_secs(1)).await;
        ensure!(!faults.is_finished(), "the faults ended early: {:?}", faults.await);
        soak.ledger.sync()?;
        if Instant::now() > next_look {
            let findings = verify::look(soak).await?;
            ensure!(findings.is_clean(), "{findings:#?}");
            next_look = Instant::now() + interval;
        }
    }
    soak.over.store(true, Ordering::Relaxed);
    faults.await??;
    for client in clients {
        client.await??;
    }
    fill.await??;
    soak.ledger.sync()?;
    verify::look(soak).await
}

#[allow(clippy::print_stdout, reason = "the report is what this is for")]
fn report(soak: &Soak, findings: &Findings, end_took: Duration) {
    println!("soak: acknowledged writes   {}", soak.ledger.acknowledged());
    println!("soak: sessions              {}", soak.tally.sessions.load(Ordering::Relaxed));
    println!("soak: rows found sound      {}", findings.sound);
    for (what, rows) in [("lost", &findings.lost), ("stale", &findings.stale), ("foreign", &findings.foreign)]
    {
        println!("soak: rows {what:<16} {}", rows.len());
        rows.iter().take(20).for_each(|row| println!("    {row}"));
    }
    let counts = |of: &Counts| of.lock().unwrap_or_else(PoisonError::into_inner).clone();
    println!("soak: faults                {:?}", counts(&soak.tally.faults));
    println!("soak: what clients were told {:?}", counts(&soak.tally.refusals));
    println!("soak: SIGTERM took          {end_took:?}");
}
