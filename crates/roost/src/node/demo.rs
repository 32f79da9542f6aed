//! The database `demo` of `roost up --demo`.

use anyhow::{Context, Result};
use roost_api::client::{Client, ClientError};
use roost_api::resource::CreateDatabase;

use super::{Parts, ready};
use crate::command::SOCKET;

/// Its name.
const NAME: &str = "demo";
/// What the catalog remembers once it was made, so that one that was deleted does not come back.
const MADE: &str = "node.demo";

/// Makes the database on the first start and prints its URL; later says how to get one.
pub(super) async fn offer(parts: &Parts) -> Result<()> {
    let client = Client::new(parts.spec.config.run.join(SOCKET));
    if parts.catalog.meta(MADE).await?.is_some() {
        if client.database(NAME).await.is_ok() {
            ready::say("roost: the database `demo` is there; `roost url demo --new` prints a URL for it")?;
        }
        return Ok(());
    }
    let request = CreateDatabase { name: Some(NAME.parse()?), ..CreateDatabase::default() };
    match client.create_database(&request).await {
        Ok(database) => {
            let url =
                database.connections.first().and_then(|connection| connection.connection_string.as_ref());
            let url = url.context("the node made no connection")?.expose();
            ready::say(&format!("roost: the database `demo` was made; its URL is shown only now:\n{url}"))?;
        }
        // Somebody made one of this name by hand.
        Err(ClientError::Refused { status: 409, .. }) => {}
        Err(error) => return Err(error.into()),
    }
    parts.catalog.put_meta(MADE, b"made").await?;
    Ok(())
}
