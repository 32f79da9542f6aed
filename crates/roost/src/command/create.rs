//! Making databases and connection URLs.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use roost_api::client::Client;
use roost_api::resource::{CreateDatabase, CreateDatabases};
use roost_catalog::model::Name;
use serde_json::json;

use super::{name, print_url, settings};
use crate::cli::{CreateArgs, UrlArgs};
use crate::exit::UsageError;
use crate::terminal::Terminal;

/// Databases that are registered with one request.
const BATCH: usize = 20_000;

pub(super) async fn create(client: &Client, terminal: &Terminal, arguments: CreateArgs) -> Result<()> {
    let settings = settings::settings(&arguments.settings)?;
    if let Some(path) = &arguments.names_from {
        let request = CreateDatabases {
            project_id: arguments.project,
            version: arguments.postgres,
            settings,
            names: Vec::new(),
        };
        return create_many(client, terminal, &read_names(path)?, request).await;
    }
    let request = CreateDatabase {
        project_id: arguments.project,
        name: arguments.name.as_deref().map(name).transpose()?,
        version: arguments.postgres,
        settings,
        ..CreateDatabase::default()
    };
    let database = {
        let _progress = terminal.spinner("making a database");
        client.create_database(&request).await?
    };
    let connection = database.connections.first().context("the node made no connection")?;
    let further = json!({
        "id": database.id,
        "name": database.name,
        "project": database.project.name,
        "version": database.version,
        "state": database.state,
    });
    print_url(terminal, connection, further)
}

/// Registers the names of a file, batch by batch.
async fn create_many(
    client: &Client,
    terminal: &Terminal,
    names: &[Name],
    request: CreateDatabases,
) -> Result<()> {
    for batch in names.chunks(BATCH) {
        let request = CreateDatabases { names: batch.to_vec(), ..request.clone() };
        client.create_databases(&request).await?;
    }
    if terminal.json {
        terminal.json(&json!({ "created": names.len() }))
    } else {
        terminal.line(format!("{} databases registered", names.len()))
    }
}

fn read_names(path: &Path) -> Result<Vec<Name>> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text)?;
    } else {
        text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(name).collect()
}

pub(super) async fn url(client: &Client, terminal: &Terminal, arguments: &UrlArgs) -> Result<()> {
    let database = client.database(&arguments.database).await?;
    if !arguments.new {
        let problem = format!(
            "the secrets of `{}` were shown when they were made, and nobody has them but their owners; \
             `roost url {} --new` makes another connection",
            database.name, arguments.database
        );
        return Err(UsageError(problem).into());
    }
    let connection = client.create_connection(&arguments.database, &arguments.name).await?;
    print_url(terminal, &connection, json!({ "id": database.id, "name": database.name }))
}
