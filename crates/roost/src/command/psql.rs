//! `roost psql`: psql with a credential of its own.

use anyhow::Result;
use roost_api::client::Client;

use super::program::{Credential, find, version};
use crate::cli::PsqlArgs;
use crate::terminal::Terminal;

pub(super) async fn psql(client: &Client, terminal: &Terminal, arguments: &PsqlArgs) -> Result<()> {
    let database = client.database(&arguments.database).await?;
    let psql = find(client, "psql", version(&database)?).await?;
    let credential = Credential::make(client, &database, "roost psql").await?;
    let mut command = psql.command(&credential, None);
    command.args(&arguments.arguments);
    let result = psql.run(command).await;
    credential.delete(terminal).await;
    result
}
