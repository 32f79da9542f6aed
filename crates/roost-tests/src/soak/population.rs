//! The databases of a soak: most are small, a few are large.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::Mutex;

use super::Scale;
use super::Soak;
use crate::ledger::{Ledger, Writer};
use crate::node::{Database, Node};
use crate::random::Random;
use crate::session::Session;

/// Rows of filling, each about 1 KB, that one statement inserts.
const FILL_ROWS: u64 = 5000;
/// First row of external clients, far from the in-process writer's.
pub(super) const EXTERNAL_ROWS: i64 = 1 << 40;

/// One database with its writer.
pub(super) struct Tenant {
    /// The database.
    pub(super) database: Database,
    /// Its only in-process writer; whoever holds it writes.
    pub(super) writer: Mutex<Writer>,
    /// The next row for an external client.
    pub(super) next_external_row: Mutex<i64>,
    /// How much filling it gets, in MB.
    target_mb: u64,
    /// Rows of filling that were acknowledged.
    pub(super) filled: AtomicU64,
}

/// Registers the databases and makes their tables.
pub(super) fn create(
    node: &mut Node,
    ledger: &Ledger,
    scale: &Scale,
    random: &mut Random,
) -> Result<Vec<Tenant>> {
    (0..scale.databases)
        .map(|number| {
            let memory = random.pick(&["memory=128MiB", "memory=256MiB", "memory=512MiB"]);
            let database = node.create_with(&format!("t{number}"), &["--set", memory])?;
            let writer = Writer::new(ledger.clone(), database.id.clone(), 0, random.fork());
            // The fourth power makes most of them small: about a tenth of the largest on average.
            let position = random.below(1001) as f64 / 1000.0;
            let target_mb = (10.0 * (scale.largest_mb as f64 / 10.0).powf(position.powi(4))) as u64;
            Ok(Tenant {
                database,
                writer: Mutex::new(writer),
                next_external_row: Mutex::new(EXTERNAL_ROWS),
                target_mb,
                filled: AtomicU64::new(0),
            })
        })
        .collect()
}

/// Fills the databases to their sizes, one after the other, while everything else goes on. What a fault interrupts is
/// done again: the filling's key tells what is there.
pub(super) async fn fill(soak: Arc<Soak>, mut random: Random) -> Result<()> {
    let mut left: Vec<usize> = (0..soak.tenants.len()).collect();
    while !left.is_empty() && !soak.is_over() {
        let number = left.swap_remove(random.below(left.len() as u64) as usize);
        let Some(tenant) = soak.tenants.get(number) else { continue };
        if fill_one(&soak, tenant).await.is_err() {
            left.push(number);
            soak.sleep(Duration::from_millis(500)).await;
        }
    }
    Ok(())
}

async fn fill_one(soak: &Soak, tenant: &Tenant) -> Result<()> {
    let guard = soak.at_rest.read().await;
    let session = Session::open_within(&tenant.database.url, Duration::from_secs(60)).await?;
    session
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS filling (n bigint PRIMARY KEY, payload text NOT NULL); \
             CREATE INDEX IF NOT EXISTS filling_payload ON filling (substr(payload, 1, 16))",
        )
        .await?;
    drop(guard);
    let target = tenant.target_mb * 1000;
    while tenant.filled.load(Ordering::Relaxed) < target && !soak.is_over() {
        let guard = soak.at_rest.read().await;
        let first = tenant.filled.load(Ordering::Relaxed).cast_signed();
        let last = first + FILL_ROWS.cast_signed();
        session
            .execute(
                "INSERT INTO filling SELECT n, md5(n::text || $3) || repeat('.', 900) \
                 FROM generate_series($1::bigint, $2 - 1) n ON CONFLICT DO NOTHING",
                &[&first, &last, &tenant.database.id],
            )
            .await
            .context("filling")?;
        tenant.filled.store(last.cast_unsigned(), Ordering::Relaxed);
        drop(guard);
    }
    session.close().await;
    Ok(())
}

/// Whether all acknowledged filling is there, and is this database's own.
pub(super) async fn check_filling(tenant: &Tenant, session: &Session) -> Result<Option<String>> {
    let filled = tenant.filled.load(Ordering::Relaxed).cast_signed();
    if filled == 0 {
        return Ok(None);
    }
    let row = session
        .query_one(
            "SELECT count(*), count(*) FILTER (WHERE payload <> md5(n::text || $2) || repeat('.', 900)) \
             FROM filling WHERE n < $1",
            &[&filled, &tenant.database.id],
        )
        .await
        .with_context(|| format!("counting the filling of {}", tenant.database.name))?;
    let (found, wrong): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    Ok((found != filled || wrong != 0).then(|| {
        format!("{}: {found} of {filled} rows of filling, {wrong} of them wrong", tenant.database.name)
    }))
}
