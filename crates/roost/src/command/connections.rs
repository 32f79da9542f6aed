//! `roost connections`: the credentials of a database.

use anyhow::Result;
use roost_api::client::Client;
use roost_catalog::id::ConnectionId;
use serde_json::{Value, json};

use super::databases::ago;
use super::{print_url, shown};
use crate::cli::{ConnectionArgs, ConnectionsCommand};
use crate::exit::UsageError;
use crate::terminal::{Cell, Terminal};

pub(super) async fn run(client: &Client, terminal: &Terminal, command: ConnectionsCommand) -> Result<()> {
    match command {
        ConnectionsCommand::List(arguments) => list(client, terminal, &arguments.database).await,
        ConnectionsCommand::Create { database, name } => {
            let connection = client.create_connection(&database, &name).await?;
            print_url(terminal, &connection, json!({ "name": connection.name }))
        }
        ConnectionsCommand::Rotate(arguments) => {
            let connection = client.rotate_connection(&id(&arguments)?).await?;
            print_url(terminal, &connection, json!({ "name": connection.name }))
        }
        ConnectionsCommand::Delete(arguments) => {
            let id = id(&arguments)?;
            client.delete_connection(&id).await?;
            if terminal.json {
                return terminal.json(&json!({ "connectionId": id, "deleted": true }));
            }
            terminal.line(format!("{id} is deleted"))
        }
    }
}

async fn list(client: &Client, terminal: &Terminal, database: &str) -> Result<()> {
    let connections = client.connections(database).await?;
    if terminal.json {
        let list: Vec<Value> = connections.iter().map(shown).collect::<Result<_>>()?;
        return terminal.json(&list);
    }
    let rows: Vec<Vec<Cell>> = connections
        .iter()
        .map(|connection| {
            vec![
                connection.id.to_string().into(),
                connection.name.clone().into(),
                connection.role.clone().into(),
                ago(Some(&connection.created_at)).into(),
                ago(connection.rotated_at.as_deref()).into(),
            ]
        })
        .collect();
    terminal.table(&["ID", "NAME", "ROLE", "MADE", "ROTATED"], &rows, "No connections.")
}

fn id(arguments: &ConnectionArgs) -> Result<ConnectionId> {
    let text = &arguments.connection;
    text.parse().map_err(|error| UsageError(format!("`{text}`: {error}")).into())
}
