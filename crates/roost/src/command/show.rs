//! `roost show`: one database.

use anyhow::Result;
use roost_api::client::Client;
use roost_api::resource::{Database, UsageMetrics};
use roost_api::units::{about_duration, about_size, format_cores, format_size};
use serde_json::Value;
use std::time::Duration;

use super::databases::{ago, full_name};
use super::shown;
use crate::terminal::{self, Cell, Terminal};

/// Steps of the history that are shown.
const STEPS: u32 = 10;

pub(super) async fn show(client: &Client, terminal: &Terminal, reference: &str) -> Result<()> {
    let database = client.database(reference).await?;
    // By its id, in case that it is renamed meanwhile.
    let id = database.id.to_string();
    let usage = client.usage(&id).await?;
    let history = client.history(&id, STEPS).await?;
    if terminal.json {
        let mut value = shown(&database)?;
        if let Value::Object(fields) = &mut value {
            fields.insert("usage".to_owned(), serde_json::to_value(&usage.metrics)?);
            fields.insert("history".to_owned(), serde_json::to_value(&history)?);
        }
        return terminal.json(&value);
    }
    terminal.pairs(&about(&database))?;
    section(terminal, "Settings")?;
    terminal.table(&["KEY", "VALUE", ""], &settings(&database), "")?;
    if !database.connections.is_empty() {
        section(terminal, "Connections")?;
        let row = |connection: &roost_api::resource::Connection| {
            let made = ago(Some(&connection.created_at));
            vec![
                connection.id.to_string().into(),
                connection.name.clone().into(),
                connection.role.clone().into(),
                made.into(),
            ]
        };
        let rows: Vec<Vec<Cell>> = database.connections.iter().map(row).collect();
        terminal.table(&["ID", "NAME", "ROLE", "MADE"], &rows, "")?;
    }
    section(terminal, "Usage")?;
    terminal.pairs(&used(&usage.metrics))?;
    if let Some(wakes) = database.wakes.as_ref().filter(|wakes| !wakes.is_empty()) {
        section(terminal, "Wakes")?;
        let rows: Vec<Vec<Cell>> = wakes
            .iter()
            .map(|wake| {
                let figures = [wake.last_ms, wake.p50_ms, wake.p90_ms, wake.p99_ms];
                let mut row = vec![terminal::state(wake.from), wake.count.to_string().into()];
                row.extend(figures.map(|ms| Cell::from(format!("{ms:.1} ms"))));
                row
            })
            .collect();
        terminal.table(&["FROM", "COUNT", "LAST", "MEDIAN", "P90", "P99"], &rows, "")?;
    }
    if !history.is_empty() {
        section(terminal, "Last steps")?;
        let rows: Vec<Vec<Cell>> = history
            .iter()
            .map(|step| {
                let took = format!("{:.1} ms", step.took_ms);
                vec![
                    ago(Some(&step.at)).into(),
                    terminal::state(step.from),
                    terminal::state(step.to),
                    took.into(),
                    step.reason.clone().into(),
                ]
            })
            .collect();
        terminal.table(&["WHEN", "FROM", "TO", "TOOK", "WHY"], &rows, "")?;
    }
    Ok(())
}

fn section(terminal: &Terminal, title: &str) -> Result<()> {
    terminal.line(format!("\n{title}"))
}

fn about(database: &Database) -> Vec<(&'static str, Cell)> {
    let mut pairs = vec![
        ("name", full_name(database).into()),
        ("id", database.id.to_string().into()),
        ("state", terminal::state(database.state)),
        ("version", database.version.clone().into()),
        ("size", database.size_bytes.map_or("none yet".to_owned(), about_size).into()),
        ("made", ago(Some(&database.created_at)).into()),
        ("last used", ago(database.last_used_at.as_deref()).into()),
        ("sessions", database.sessions.to_string().into()),
    ];
    if let Some(bytes) = database.memory_bytes {
        pairs.push(("memory", about_size(bytes).into()));
    }
    if let Some(failure) = &database.failure {
        pairs.push(("failure", Cell::coloured(failure.clone(), terminal::Colour::Red)));
    }
    if let Some(at) = &database.purge_at {
        pairs.push((
            "deleted",
            format!("{}; can be undeleted until {at}", ago(database.deleted_at.as_deref())).into(),
        ));
    }
    pairs
}

/// Settings as `roost set` takes them, with a remark on those that the database has of its own.
fn settings(database: &Database) -> Vec<Vec<Cell>> {
    let (own, effective) = (&database.settings.own, &database.settings.effective);
    let text = |value: Option<String>| value.unwrap_or_default();
    let rows: [(&str, String, bool); 8] = [
        ("idle-freeze", text(effective.idle_freeze.map(String::from)), own.idle_freeze.is_some()),
        ("idle-stop", text(effective.idle_stop.map(String::from)), own.idle_stop.is_some()),
        ("memory", text(effective.memory_bytes.map(format_size)), own.memory_bytes.is_some()),
        ("storage", text(effective.storage_bytes.map(format_size)), own.storage_bytes.is_some()),
        ("cpu", format_cores(effective.cpu_millicores), own.cpu_millicores.is_some()),
        (
            "max-connections",
            text(effective.max_connections.map(|count| count.to_string())),
            own.max_connections.is_some(),
        ),
        (
            "wal-level",
            text(effective.wal_level.map(|level| format!("{level:?}").to_lowercase())),
            own.wal_level.is_some(),
        ),
        (
            "stop-under-sessions",
            text(effective.stop_under_sessions.map(|allowed| allowed.to_string())),
            own.stop_under_sessions.is_some(),
        ),
    ];
    let mut cells: Vec<Vec<Cell>> =
        rows.into_iter().map(|(key, value, own)| vec![key.into(), value.into(), origin(own)]).collect();
    for (name, value) in &own.postgres {
        cells.push(vec![format!("postgres.{name}").into(), value.clone().into(), origin(true)]);
    }
    cells
}

fn origin(own: bool) -> Cell {
    if own { "set".into() } else { Cell::coloured("default", terminal::Colour::Dim) }
}

fn used(metrics: &UsageMetrics) -> Vec<(&'static str, Cell)> {
    let time = |seconds: f64| Duration::try_from_secs_f64(seconds).map_or("-".to_owned(), about_duration);
    vec![
        ("sessions opened", metrics.sessions.to_string().into()),
        ("bytes in", about_size(metrics.bytes_in).into()),
        ("bytes out", about_size(metrics.bytes_out).into()),
        ("processor time", time(metrics.cpu_seconds).into()),
        ("time running", time(metrics.running_seconds).into()),
    ]
}
