//! From an authenticated client to its session's end: the database is woken, a server session opened, the client told
//! that it is ready, and the bytes are relayed.

use std::time::Duration;

use roost_lifecycle::Shortage;
use roost_pool::{
    CancelRegistration, CancelTarget, Hold, KeyLength, OpenError, ServerSession, ServerTarget, Socket,
};
use roost_wire::backend;
use roost_wire::frame::TransactionStatus;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::authenticate::{self, Authenticated};
use crate::client::{Client, Stream};
use crate::connection::Failure;
use crate::door::Door;
use crate::error::ErrorKind;
use crate::interrupt::Watch;
use crate::ladder::Ladder;
use crate::relay::Relay;
use crate::shortage;
use crate::startup::Greeting;

/// How long after a session could not be opened its database's end is waited for.
const REASON_WAIT: Duration = Duration::from_millis(500);

/// Serves an authenticated client.
pub(crate) async fn serve<L: Ladder>(
    door: &Door<L>,
    mut client: Client,
    greeting: &Greeting,
    authenticated: Authenticated,
) -> Result<&'static str, Failure> {
    let length = if greeting.minor >= 2 { KeyLength::Long } else { KeyLength::Short };
    let opened = Box::pin(open(door, &client, greeting, &authenticated)).await;
    let session = match opened {
        Ok(Ok(session)) => session,
        Ok(Err(frames)) => {
            // Postgres says best itself why it does not take the session.
            client.dismiss(&frames).await;
            return Err((None, ErrorKind::ServerRefused));
        }
        Err(error) => return Err((Some(client), error)),
    };
    let registration = door.cancels.register(session.cancel.clone(), length);
    let shortage = session.hold.shortage();
    if let Err(error) = client.send(&ready(session.greeting, shortage, &registration)).await {
        return Err((None, error));
    }
    let _counted = door.metrics.session_opened();
    let cancel = session.cancel;
    let account = door.ledger.open(authenticated.database, cancel.busy_flag());
    let watch = Watch::new(session.hold.closing(), door.drain.subscribe());
    let Client { stream, inbox } = client;
    let parts = Parts { server: session.socket, hold: session.hold, watch, inbox, cancel };
    match stream {
        Stream::Plain(stream) => relay(door, stream, parts, account.traffic()).await,
        Stream::Tls(stream) => relay(door, stream, parts, account.traffic()).await,
    }
}

/// What a relay is made of, besides the client.
struct Parts<H> {
    server: Socket,
    hold: H,
    watch: Watch,
    inbox: Vec<u8>,
    cancel: CancelTarget,
}

async fn relay<L: Ladder, C>(
    door: &Door<L>,
    stream: C,
    parts: Parts<L::Hold>,
    traffic: std::sync::Arc<crate::traffic::Traffic>,
) -> Result<&'static str, Failure>
where
    C: AsyncRead + AsyncWrite + Unpin + Into<Stream>,
{
    let Parts { server, hold, watch, inbox, cancel } = parts;
    let thaw_deadline = door.config.connect_deadline;
    let relay = Relay::new(stream, server, hold, watch, traffic, door.metrics.clone(), thaw_deadline);
    let finished = relay.run(&inbox).await;
    match Box::pin(finished.conclude(cancel)).await {
        (stream, Ok(label)) => {
            if let Some(stream) = stream {
                Box::pin(Client::new(stream.into()).dismiss(&[])).await;
            }
            Ok(label)
        }
        (stream, Err(error)) => Err((stream.map(|stream| Client::new(stream.into())), error)),
    }
}

/// Wakes the database and opens a session on it, unless the client goes away or the node shuts down meanwhile. The inner
/// error is what Postgres said when it refused the session.
async fn open<L: Ladder>(
    door: &Door<L>,
    client: &Client,
    greeting: &Greeting,
    authenticated: &Authenticated,
) -> Result<Result<ServerSession<L::Hold>, Vec<u8>>, ErrorKind> {
    let deadline = Instant::now() + door.config.connect_deadline;
    let opening = async {
        loop {
            let began = Instant::now();
            let acquired = door.ladder.acquire(&authenticated.database, deadline).await;
            door.metrics.woken(began.elapsed());
            let hold = acquired.map_err(ErrorKind::Wake)?;
            authenticate::recheck(door, authenticated, &greeting.user).await?;
            let target = ServerTarget {
                role: &authenticated.role,
                database: &authenticated.postgres_database,
                settings: &greeting.settings,
            };
            let closing = hold.closing();
            let opened = ServerSession::open(hold, target, deadline).await;
            let patience = match &opened {
                Ok(_) => return Ok(opened),
                Err(OpenError::Refused(_)) => Duration::ZERO,
                // The exit of a postmaster is known a moment after its sockets are closed.
                Err(_) => REASON_WAIT,
            };
            // The instance was taken away while the session opened. Nothing was relayed, so the client waits for the next
            // one, like those that came a moment later.
            if tokio::time::timeout(patience, closing).await.is_err() || Instant::now() >= deadline {
                return Ok::<_, ErrorKind>(opened);
            }
        }
    };
    let opened = tokio::select! {
        opened = opening => opened?,
        () = client.gone() => return Err(ErrorKind::ClientGone),
        () = door.closing() => return Err(ErrorKind::ShuttingDown),
    };
    match opened {
        Ok(session) => Ok(Ok(session)),
        Err(OpenError::Refused(frames)) => Ok(Err(frames)),
        Err(error) => Err(ErrorKind::ServerUnreachable(error.to_string())),
    }
}

/// What the client reads once its session is open.
fn ready(mut greeting: Vec<u8>, shortage: Option<Shortage>, registration: &CancelRegistration) -> Vec<u8> {
    if let Some(shortage) = shortage {
        backend::notice_response(&mut greeting, &shortage::warning(shortage));
    }
    backend::backend_key_data(&mut greeting, registration.pid(), registration.key().as_bytes());
    backend::ready_for_query(&mut greeting, TransactionStatus::Idle);
    greeting
}
