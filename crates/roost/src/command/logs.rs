//! `roost logs`: a database's Postgres log.

use std::io::{self, Write};

use anyhow::{Context, Result};
use http_body_util::BodyExt;
use roost_api::client::Client;

use crate::cli::LogsArgs;

pub(super) async fn logs(client: &Client, arguments: &LogsArgs) -> Result<()> {
    let mut body = client.logs(&arguments.database, arguments.lines, arguments.follow).await?;
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the node went away")?;
        if let Some(bytes) = frame.data_ref() {
            let mut stdout = io::stdout().lock();
            match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
                // Whoever read this has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                result => result?,
            }
        }
    }
    Ok(())
}
