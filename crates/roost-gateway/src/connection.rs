//! One client's connection from its first byte to its last, stage by stage: startup, authentication, the wait for the
//! database, the session. How it ended is counted and logged here, and only here.

use std::net::IpAddr;
use std::sync::Arc;

use roost_pool::Socket;
use roost_wire::backend;
use roost_wire::error::ErrorFields;
use tokio::time::Instant;
use tracing::Level;

use crate::authenticate::{self, Authenticated, Circumstances};
use crate::cancel;
use crate::client::Client;
use crate::door::Door;
use crate::error::ErrorKind;
use crate::ladder::Ladder;
use crate::limits::{SessionPermit, StrangerPermit};
use crate::session;
use crate::startup::{self, Greeting, Opened, Opening};

/// A connection that was accepted and counted.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) stream: Socket,
    pub(crate) peer: IpAddr,
    pub(crate) requires_tls: bool,
    pub(crate) permit: SessionPermit,
    pub(crate) stranger: StrangerPermit,
}

/// How a stage failed, with the client if it can be told.
pub(crate) type Failure = (Option<Client>, ErrorKind);

/// Serves one client until it is gone.
pub(crate) async fn serve<L: Ladder>(door: Arc<Door<L>>, arrival: Arrival) {
    let _open = door.metrics.connection_opened();
    let peer = arrival.peer;
    let Arrival { stream, requires_tls, permit, stranger, .. } = arrival;
    let result = match Box::pin(admit(&door, stream, peer, requires_tls, stranger)).await {
        Ok(Some((client, greeting, authenticated))) => {
            session::serve(&door, client, &greeting, authenticated).await
        }
        Ok(None) => Ok("cancel"),
        Err((client, error)) => Err((client, error)),
    };
    let (client, result) = match result {
        Ok(label) => (None, Ok(label)),
        Err((client, error)) => (client, Err(error)),
    };
    door.metrics.connection_ended(&result);
    if let Err(error) = result {
        log(peer, &error);
        if let Some(client) = client.filter(|_| error.reaches_the_client()) {
            client.dismiss(&error_response(&error)).await;
        }
    }
    drop(permit);
}

/// Startup and authentication, within the startup deadline. `None` was a cancel request.
async fn admit<L: Ladder>(
    door: &Door<L>,
    stream: Socket,
    peer: IpAddr,
    requires_tls: bool,
    stranger: StrangerPermit,
) -> Result<Option<(Client, Greeting, Authenticated)>, Failure> {
    let limit = door.config.startup_deadline;
    let deadline = Instant::now() + limit;
    let opened = tokio::select! {
        opened = startup::open(stream, &door.identities, requires_tls) => opened?,
        () = tokio::time::sleep_until(deadline) => return Err((None, ErrorKind::StartupDeadline { limit })),
        () = door.closing() => return Err((None, ErrorKind::ShuttingDown)),
    };
    let Opened { mut client, opening, security, server_name, end_point } = opened;
    let greeting = match opening {
        Opening::Session(greeting) => greeting,
        Opening::Cancel { pid, key } => {
            cancel::handle(door, peer, pid, &key).await;
            return Ok(None);
        }
    };
    door.metrics.transport(security);
    let circumstances = Circumstances { peer, server_name, end_point };
    let authentication = async {
        negotiate(&mut client, &greeting).await?;
        authenticate::authenticate(door, &mut client, &greeting, &circumstances).await
    };
    let result = tokio::select! {
        result = authentication => result,
        () = tokio::time::sleep_until(deadline) => Err(ErrorKind::StartupDeadline { limit }),
        () = door.closing() => Err(ErrorKind::ShuttingDown),
    };
    drop(stranger);
    match result {
        Ok(authenticated) => Ok(Some((client, greeting, authenticated))),
        Err(error) => Err((Some(client), error)),
    }
}

/// Tells the client which of its wishes are not known here.
async fn negotiate(client: &mut Client, greeting: &Greeting) -> Result<(), ErrorKind> {
    let Some(negotiation) = &greeting.negotiation else { return Ok(()) };
    let unknown: Vec<&str> = negotiation.unknown_options.iter().map(String::as_str).collect();
    let mut out = Vec::new();
    backend::negotiate_protocol_version(&mut out, negotiation.minor, &unknown);
    client.send(&out).await
}

/// The last words for a client.
pub(crate) fn error_response(error: &ErrorKind) -> Vec<u8> {
    let fields =
        ErrorFields { hint: error.hint(), ..ErrorFields::fatal(error.sqlstate(), error.to_string()) };
    let mut out = Vec::with_capacity(256);
    backend::error_response(&mut out, &fields);
    out
}

fn log(peer: IpAddr, error: &ErrorKind) {
    let detail = error.internal_detail().unwrap_or_default();
    let outcome = error.label();
    // The level of an event is fixed where it is written, so there is one for each.
    match error.level() {
        Level::ERROR => tracing::error!(%peer, outcome, detail, "{error}"),
        Level::WARN => tracing::warn!(%peer, outcome, detail, "{error}"),
        Level::INFO => tracing::info!(%peer, outcome, detail, "{error}"),
        _ => tracing::debug!(%peer, outcome, detail, "{error}"),
    }
}
