//! The clients of a soak: each picks a database, does a burst of work as an application would, and leaves it to sleep.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::population::Tenant;
use super::{Soak, external};
use crate::ledger::Writer;
use crate::psql;
use crate::random::Random;
use crate::session::{self, Session};

/// How long a client waits for its database: longer than a crash recovery on a busy machine takes.
const PATIENCE: Duration = Duration::from_secs(180);

/// Works until the soak is over. Fails when a database contradicts the ledger or cannot be reached for too long.
pub(super) async fn run(soak: Arc<Soak>, number: usize, mut random: Random) -> Result<()> {
    while !soak.is_over() {
        // Some databases are visited often and some seldom, so that all rungs of the ladder are used.
        let position = random.below(1 << 20) as f64 / f64::from(1 << 20);
        let chosen = (position * position * soak.tenants.len() as f64) as usize;
        let Some(tenant) = soak.tenants.get(chosen) else { continue };
        let guard = soak.at_rest.read().await;
        soak.tally.sessions.fetch_add(1, Ordering::Relaxed);
        match number % 6 {
            0 => external::burst(&soak, tenant, external::Kind::Psycopg, &mut random).await?,
            1 => external::burst(&soak, tenant, external::Kind::Pg, &mut random).await?,
            2 => external::burst(&soak, tenant, external::Kind::Psql, &mut random).await?,
            _ => burst(&soak, tenant, &mut random).await?,
        }
        drop(guard);
        if random.once_in(20) {
            by_hand(&soak, tenant, &mut random).await;
        }
        soak.sleep(random.within(Duration::from_millis(400))).await;
    }
    Ok(())
}

/// A session of the in-process writer, with pauses in which its database may freeze.
async fn burst(soak: &Soak, tenant: &Tenant, random: &mut Random) -> Result<()> {
    let mut writer = tenant.writer.lock().await;
    let session = Session::open_within(&tenant.database.url, PATIENCE).await?;
    if let Err(error) = Writer::prepare(&session).await {
        told(soak, &error);
        return Ok(());
    }
    for _ in 0..=random.below(30) {
        if let Err(error) = writer.write(&session).await {
            ensure!(!error.to_string().starts_with("LOST"), error);
            told(soak, &error);
            break;
        }
        if random.once_in(40) {
            soak.sleep(random.within(Duration::from_secs(4))).await;
        }
    }
    if random.once_in(15) {
        greedy(soak, &session).await;
    }
    session.close().await;
    Ok(())
}

/// A query that wants more memory than its database has: it is to fail, and nothing else is.
async fn greedy(soak: &Soak, session: &Session) {
    let query = "SELECT length(string_agg(repeat('x', 1000), '')) FROM generate_series(1, 700000)";
    if let Err(error) = session.query_one(query, &[]).await {
        soak.tally.refused(&format!("memory: {}", session::sqlstate(&error)));
    }
}

/// What a person would type meanwhile. That the node may be away just then is part of the soak.
async fn by_hand(soak: &Soak, tenant: &Tenant, random: &mut Random) {
    let command_line = soak.command_line.clone();
    let name = tenant.database.name.clone();
    let url = tenant.database.url.clone();
    let choice = random.below(7);
    let done = tokio::task::spawn_blocking(move || match choice {
        0 => command_line.run(&["freeze", &name]),
        1 => command_line.run(&["stop", &name]),
        2 => command_line.run(&["wake", &name]),
        3 => command_line.run(&["show", &name]),
        4 => command_line.run(&["list"]),
        5 => command_line.run(&["url", &name, "--new"]),
        _ => psql::run(&url, "SELECT count(*) FROM pg_class"),
    });
    if !matches!(done.await, Ok(Ok(_))) {
        soak.tally.refused("command line");
    }
}

/// Counts what a client was told.
pub(super) fn told(soak: &Soak, error: &anyhow::Error) {
    let database = error.downcast_ref::<tokio_postgres::Error>();
    match database.map(session::sqlstate) {
        Some("") | None => soak.tally.refused("connection lost"),
        Some(sqlstate) => soak.tally.refused(sqlstate),
    }
}
