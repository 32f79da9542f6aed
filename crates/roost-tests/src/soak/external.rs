//! Clients in other languages: each inserts the rows that it is told, one transaction each, and says which were committed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Soak;
use super::population::Tenant;
use crate::command;
use crate::ledger::Ledger;
use crate::machine::{crate_folder, program, python};
use crate::psql;
use crate::random::Random;

/// Which client.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Python's psycopg.
    Psycopg,
    /// Node's pg.
    Pg,
    /// psql.
    Psql,
}

/// A session of an external client. What it does not confirm stays unknown in the ledger.
pub(super) async fn burst(soak: &Soak, tenant: &Tenant, kind: Kind, random: &mut Random) -> Result<()> {
    let count = 1 + random.below(20);
    let first = {
        let mut next = tenant.next_external_row.lock().await;
        let first = *next;
        *next += count.cast_signed();
        first
    };
    let rows: Vec<(i64, i64, String)> = (first..first + count.cast_signed())
        .map(|row| (row, random.number().cast_signed(), random.text(400)))
        .collect();
    let (ledger, id, url) = (soak.ledger.clone(), tenant.database.id.clone(), tenant.database.url.clone());
    let confirmed = tokio::task::spawn_blocking(move || insert(kind, &ledger, &id, &url, &rows)).await?;
    if confirmed? < count {
        soak.tally.refused("external client");
    }
    Ok(())
}

/// The program with its arguments.
fn client(kind: Kind, id: &str, url: &str) -> Result<Command> {
    Ok(match kind {
        Kind::Psycopg => {
            let mut command = Command::new(python()?);
            command.arg(crate_folder().join("clients/python/soak_psycopg.py")).args([url, id]);
            command
        }
        Kind::Pg => {
            let mut command = Command::new(program("node"));
            command.arg(crate_folder().join("clients/node/soak_pg.mjs")).args([url, id]);
            command
        }
        Kind::Psql => {
            let mut command = psql::command(url);
            command.arg("-At");
            command
        }
    })
}

/// Inserts rows one by one, each noted before it is sent and after it was confirmed; how many were.
fn insert(kind: Kind, ledger: &Ledger, id: &str, url: &str, rows: &[(i64, i64, String)]) -> Result<u64> {
    let mut child = client(kind, id, url)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("{kind:?}"))?;
    let mut input = child.stdin.take().context("no standard input")?;
    let mut output = BufReader::new(child.stdout.take().context("no standard output")?).lines();
    let mut confirmed = 0;
    if matches!(kind, Kind::Psql) {
        // A psql that cannot write ends by itself, and then no row is confirmed.
        let _ = writeln!(input, "SET client_min_messages = warning; {};", crate::ledger::TABLE);
    }
    for (row, nonce, payload) in rows {
        ledger.attempt_row(id, *row, 1, *nonce, payload)?;
        let sent = match kind {
            Kind::Psql => writeln!(
                input,
                "INSERT INTO ledger VALUES ({row}, '{id}', 1, {nonce}, '{payload}') RETURNING row;"
            ),
            Kind::Psycopg | Kind::Pg => writeln!(input, "{row} {nonce} {payload}"),
        };
        if sent.is_err() || input.flush().is_err() {
            break;
        }
        match output.next() {
            Some(Ok(line)) if line == row.to_string() => {
                ledger.acknowledge_row(id, *row)?;
                confirmed += 1;
            }
            _ => break,
        }
    }
    drop(input);
    if command::wait(&mut child, Duration::from_secs(60)).is_err() {
        child.kill()?;
        child.wait()?;
    }
    Ok(confirmed)
}
