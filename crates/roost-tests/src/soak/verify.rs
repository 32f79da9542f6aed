//! Looking for what was acknowledged, and checking the files.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Soak, population};
use crate::cold::ColdCopy;
use crate::ledger::{Findings, Writer};
use crate::machine;
use crate::session::Session;

/// How long one database may take to be reachable while many are asked for.
const PATIENCE: Duration = Duration::from_secs(180);
/// Databases that are looked at side by side.
const AT_ONCE: usize = 6;

/// Compares every database with the ledger while all writers are at rest.
#[allow(clippy::print_stdout, reason = "the report is what this is for")]
pub(super) async fn look(soak: &Arc<Soak>) -> Result<Findings> {
    let guard = soak.at_rest.write().await;
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    let mut findings = Findings::default();
    for number in 0..soak.tenants.len() {
        if tasks.len() >= AT_ONCE {
            findings.add(tasks.join_next().await.context("no task")???);
        }
        let soak = Arc::clone(soak);
        tasks.spawn(async move { look_at(&soak, number).await });
    }
    while let Some(found) = tasks.join_next().await {
        findings.add(found??);
    }
    drop(guard);
    println!(
        "soak: looked at every row in {:?}: {} sound, {} acknowledged in all",
        begun.elapsed(),
        findings.sound,
        soak.ledger.acknowledged()
    );
    Ok(findings)
}

/// One database; a fault in between is met by another try.
async fn look_at(soak: &Soak, number: usize) -> Result<Findings> {
    let tenant = soak.tenants.get(number).context("no such tenant")?;
    let end = Instant::now() + PATIENCE;
    loop {
        let attempt = async {
            let session = Session::open_within(&tenant.database.url, PATIENCE).await?;
            Writer::prepare(&session).await?;
            let mut findings = soak.ledger.compare(&tenant.database.id, &session).await?;
            findings.lost.extend(population::check_filling(tenant, &session).await?);
            session.close().await;
            anyhow::Ok(findings)
        };
        match attempt.await {
            Ok(findings) => return Ok(findings),
            Err(error) if Instant::now() > end => return Err(error.context(tenant.database.name.clone())),
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}

/// Stops every database, and checks every page and every index of a flattened copy.
#[allow(clippy::print_stdout, reason = "the report is what this is for")]
pub(super) async fn check_files(soak: &Arc<Soak>) -> Result<()> {
    let node = soak.node.lock().await;
    let installation = machine::debian_postgres()?;
    let begun = Instant::now();
    for (number, tenant) in soak.tenants.iter().enumerate() {
        let database = &tenant.database;
        tokio::task::block_in_place(|| -> Result<()> {
            node.cli(&["stop", &database.name])?;
            let copy = ColdCopy::take(&node, database, &installation, node.scratch())?;
            copy.check_page_checksums()?;
            copy.check_structure()
        })
        .with_context(|| format!("files of {} ({})", database.name, database.id))?;
        if (number + 1) % 20 == 0 {
            println!("soak: files of {} databases are whole after {:?}", number + 1, begun.elapsed());
        }
    }
    Ok(())
}
