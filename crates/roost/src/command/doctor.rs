//! `roost doctor` and `roost status`: the machine and the node.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use roost_api::client::{Client, ClientError};
use roost_api::resource::{Check, DoctorReport, Verdict};
use roost_api::units::about_duration;
use roost_postgres::installation::{DiscoverOptions, discover};

use crate::terminal::{Cell, Colour, Terminal};

/// What the machine can do, as the node's warden found; without a node, what can be told without one.
pub(super) async fn doctor(client: &Client, terminal: &Terminal, run: &Path) -> Result<()> {
    let report = match client.doctor().await {
        Ok(report) => report,
        Err(error @ ClientError::Unreachable { .. }) => without_node(run, &error),
        Err(error) => return Err(error.into()),
    };
    if terminal.json {
        return terminal.json(&report);
    }
    let mut rows = Vec::new();
    for check in &report.checks {
        let verdict = match check.verdict {
            Verdict::Good => Cell::coloured("good", Colour::Green),
            Verdict::Weak => Cell::coloured("weak", Colour::Yellow),
            Verdict::Bad => Cell::coloured("bad", Colour::Red),
        };
        rows.push(vec![check.subject.clone().into(), verdict, check.detail.clone().into()]);
        if let Some(hint) = &check.hint {
            rows.push(vec!["".into(), "".into(), Cell::coloured(format!("→ {hint}"), Colour::Dim)]);
        }
    }
    terminal.table(&["SUBJECT", "VERDICT", "FINDING"], &rows, "Nothing was checked.")
}

/// What can be told while no node runs.
fn without_node(run: &Path, error: &ClientError) -> DoctorReport {
    let mut checks = vec![Check {
        subject: "node".to_owned(),
        verdict: Verdict::Bad,
        detail: format!("{error}"),
        hint: Some(format!(
            "`roost up` starts one; isolation, volumes and limits are told by the node in {}.",
            run.display()
        )),
    }];
    let installations = discover(&DiscoverOptions::default());
    checks.extend(installations.iter().map(|installation| Check {
        subject: "postgres".to_owned(),
        verdict: Verdict::Good,
        detail: format!("Postgres {} in {}", installation.version, installation.bin.display()),
        hint: None,
    }));
    if installations.is_empty() {
        checks.push(no_postgres());
    }
    DoctorReport { checks }
}

fn no_postgres() -> Check {
    Check {
        subject: "postgres".to_owned(),
        verdict: Verdict::Bad,
        detail: "no Postgres was found on this machine".to_owned(),
        hint: Some(
            "Install one (Debian: apt install postgresql), or name it in postgres.installations.".to_owned(),
        ),
    }
}

/// The node.
pub(super) async fn status(client: &Client, terminal: &Terminal) -> Result<()> {
    let node = client.node().await?;
    if terminal.json {
        return terminal.json(&node);
    }
    let versions: Vec<String> = node.installations.iter().map(|one| one.version.clone()).collect();
    terminal.pairs(&[
        ("version", node.version.into()),
        ("process", node.pid.to_string().into()),
        ("up for", about_duration(Duration::from_secs(node.uptime_seconds)).into()),
        ("postgres on", node.listen.join(", ").into()),
        ("http on", node.http.unwrap_or_else(|| "off".to_owned()).into()),
        ("data", node.data.into()),
        ("postgres", versions.join(", ").into()),
        ("default version", node.default_version.unwrap_or_else(|| "none".to_owned()).into()),
        ("projects", node.counts.projects.to_string().into()),
        ("databases", node.counts.databases.to_string().into()),
        ("awake", awake(&node.counts.states).into()),
        ("sessions", node.counts.sessions.to_string().into()),
        ("deleted", node.counts.deleted.to_string().into()),
        ("connections", node.counts.connections.to_string().into()),
    ])
}

/// The states of the databases that are not simply stopped, in a few words.
fn awake(states: &BTreeMap<String, u64>) -> String {
    if states.is_empty() {
        return "none".to_owned();
    }
    states.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ")
}
