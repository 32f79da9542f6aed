//! psql and the other client programs of Debian's Postgres package, as a user runs them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::{self, Finished};

/// How long one run may take.
const DEADLINE: Duration = Duration::from_secs(900);

/// `psql` without a user's own settings, connecting by `connection` (a URL or `key=value` pairs).
pub fn command(connection: &str) -> Command {
    let mut command = client_program(&crate::machine::program("psql"));
    command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", connection]);
    command
}

/// A client program of Postgres, without a user's own settings.
pub fn client_program(program: &Path) -> Command {
    let mut command = Command::new(program);
    for variable in
        ["PGPASSFILE", "PGSERVICE", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGOPTIONS"]
    {
        command.env_remove(variable);
    }
    command.env("PGCONNECT_TIMEOUT", "60").env("PGTZ", "UTC");
    command
}

/// Runs `psql` with statements on its standard input, whatever comes of it.
pub fn try_run(connection: &str, statements: &str) -> Result<Finished> {
    command::run(command(connection).arg("-At"), statements.as_bytes(), DEADLINE)
}

/// Runs statements that must succeed; returns unaligned rows (`a|b`), one a line.
pub fn run(connection: &str, statements: &str) -> Result<String> {
    let start: String = statements.chars().take(200).collect();
    Ok(try_run(connection, statements)?.success().with_context(|| format!("psql: {start}"))?.text())
}

/// Runs a file of statements that must succeed.
pub fn run_file(connection: &str, file: &Path) -> Result<String> {
    let finished = command::run(command(connection).arg("-At").arg("-f").arg(file), b"", DEADLINE)?;
    Ok(finished.success().with_context(|| file.display().to_string())?.text())
}

/// What a database holds, as one text: every table's rows, counted and hashed in the order of their text.
pub fn fingerprint(connection: &str) -> Result<String> {
    let tables = run(
        connection,
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables \
         WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1",
    )?;
    let queries: String = tables
        .lines()
        .map(|table| {
            format!(
                "SELECT '{table}', count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} t;\n"
            )
        })
        .collect();
    run(connection, &queries)
}
