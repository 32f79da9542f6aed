//! Commands that speak to a node.

mod connections;
mod counted;
mod create;
mod databases;
mod doctor;
mod dump;
mod logs;
mod program;
mod projects;
mod psql;
mod restore;
mod settings;
mod show;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use roost_api::client::{Client, Step};
use roost_api::resource::Connection;
use roost_catalog::model::Name;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::Command;
use crate::config;
use crate::exit::UsageError;
use crate::terminal::Terminal;

/// The name of the API's socket in the run directory.
pub(crate) const SOCKET: &str = "api.sock";

/// Carries out a command of the node's clients.
pub(crate) fn run(command: Command, run: Option<PathBuf>, terminal: &Terminal) -> Result<()> {
    let run = run.unwrap_or_else(config::default_run);
    let client = Client::new(run.join(SOCKET));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(dispatch(command, &client, terminal, &run))
}

async fn dispatch(command: Command, client: &Client, terminal: &Terminal, run: &Path) -> Result<()> {
    match command {
        Command::Create(arguments) => create::create(client, terminal, arguments).await,
        Command::Url(arguments) => create::url(client, terminal, &arguments).await,
        Command::List(arguments) => databases::list(client, terminal, &arguments).await,
        Command::Show(arguments) => show::show(client, terminal, &arguments.database).await,
        Command::Wake(arguments) => databases::step(client, terminal, &arguments.database, Step::Wake).await,
        Command::Freeze(arguments) => {
            databases::step(client, terminal, &arguments.database, Step::Freeze).await
        }
        Command::Stop(arguments) => databases::step(client, terminal, &arguments.database, Step::Stop).await,
        Command::Set(arguments) => databases::set(client, terminal, &arguments).await,
        Command::Rename(arguments) => databases::rename(client, terminal, &arguments).await,
        Command::Delete(arguments) => databases::delete(client, terminal, &arguments).await,
        Command::Undelete(arguments) => databases::undelete(client, terminal, &arguments).await,
        Command::Psql(arguments) => psql::psql(client, terminal, &arguments).await,
        Command::Logs(arguments) => logs::logs(client, &arguments).await,
        Command::Dump(arguments) => dump::dump(client, terminal, &arguments).await,
        Command::Restore(arguments) => restore::restore(client, terminal, &arguments).await,
        Command::Connections(command) => connections::run(client, terminal, command).await,
        Command::Projects(command) => projects::run(client, terminal, command).await,
        Command::Doctor => doctor::doctor(client, terminal, run).await,
        Command::Status => doctor::status(client, terminal).await,
        // Taken care of before there was a client.
        Command::Up(_) | Command::Node | Command::Completions { .. } => Ok(()),
    }
}

/// A name as typed.
fn name(text: &str) -> Result<Name> {
    text.parse().map_err(|error| UsageError(format!("`{text}` cannot be a name: {error}")).into())
}

/// An object of the API as the command line shows it: without `url`, which is a path of the API.
fn shown(object: &impl Serialize) -> Result<Value> {
    let mut value = serde_json::to_value(object)?;
    if let Value::Object(fields) = &mut value {
        fields.remove("url");
    }
    Ok(value)
}

/// The answer of everything that makes a secret: the URL on a line of its own, or an object.
fn print_url(terminal: &Terminal, connection: &Connection, further: Value) -> Result<()> {
    let url = connection.connection_string.as_ref().context("the node gave no URL")?.expose();
    if !terminal.json {
        return terminal.line(url);
    }
    let mut answer = json!({ "url": url, "connectionId": connection.id });
    if let (Value::Object(answer), Value::Object(further)) = (&mut answer, further) {
        answer.extend(further);
    }
    terminal.json(&answer)
}
