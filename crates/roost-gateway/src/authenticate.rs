//! Authentication: SCRAM-SHA-256, and -PLUS over TLS (RFC 5802, 7677; protocol: "SASL Authentication"), against a
//! verifier that the catalog or a running database tells. Nothing here wakes a database.
//!
//! An unknown name runs the same exchange against a verifier made up for it and fails at the same place with the same
//! words as a wrong password. Bounds on failed logins are looked at before any of this.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use roost_catalog::id::DatabaseId;
use roost_lifecycle::RoleSource;
use roost_wire::scram::{
    ChannelBinding, MECHANISM, MECHANISM_PLUS, ScramError, ServerFirst, Verified, Verifier, fresh_nonce,
};
use roost_wire::{backend, frontend};

use crate::client::Client;
use crate::door::Door;
use crate::error::ErrorKind;
use crate::ladder::Ladder;
use crate::route::{self, Account, Keys, Route};
use crate::startup::Greeting;

/// The longest SASL message of a client, as in Postgres; a SCRAM message is far shorter.
const MAX_SASL_LEN: usize = 1024;

/// The role that belongs to Roost in every database. Nobody logs in as it.
const RESERVED_ROLE: &str = "_roost";

/// What a client proves itself with besides the password.
#[derive(Debug, Clone)]
pub(crate) struct Circumstances {
    pub(crate) peer: IpAddr,
    pub(crate) server_name: Option<String>,
    pub(crate) end_point: Option<Arc<[u8]>>,
}

/// A client that has proved who it is.
#[derive(Debug)]
pub(crate) struct Authenticated {
    pub(crate) database: DatabaseId,
    /// The Postgres role.
    pub(crate) role: String,
    /// The Postgres database.
    pub(crate) postgres_database: String,
    /// Set if the verifier came from a copy that may be stale: it must be what the running database has.
    pub(crate) recheck: Option<Verifier>,
}

/// What a login is checked against.
#[derive(Debug)]
struct Credential {
    verifier: Verifier,
    role: String,
    can_login: bool,
    /// Whether the verifier is a kept copy.
    kept: bool,
}

/// Authenticates a client.
///
/// # Errors
///
/// When it cannot prove who it is, may not log in, or has failed too often.
pub(crate) async fn authenticate<L: Ladder>(
    door: &Door<L>,
    client: &mut Client,
    greeting: &Greeting,
    circumstances: &Circumstances,
) -> Result<Authenticated, ErrorKind> {
    let began = Instant::now();
    let result = check(door, client, greeting, circumstances).await;
    door.metrics.authenticated(began.elapsed());
    result
}

async fn check<L: Ladder>(
    door: &Door<L>,
    client: &mut Client,
    greeting: &Greeting,
    circumstances: &Circumstances,
) -> Result<Authenticated, ErrorKind> {
    let peer = circumstances.peer;
    door.limits.check_address(peer)?;
    let keys = Keys {
        user: &greeting.user,
        database: greeting.database.as_deref(),
        endpoint: greeting.endpoint.as_deref(),
        server_name: circumstances.server_name.as_deref(),
    };
    let catalog_failed = |error: roost_catalog::CatalogError| ErrorKind::Catalog(error.to_string());
    let route = route::resolve(&door.catalog, keys).await.map_err(catalog_failed)?;
    let database = route.as_ref().map(|route| route.database);
    if let Some(database) = database {
        door.limits.check_database(peer, database)?;
        tokio::time::sleep(door.limits.delay(peer, database)).await;
    }
    let credential = match &route {
        Some(route) => credential(door, route).await?,
        None => None,
    };
    let verifier = credential.as_ref().map(|known| known.verifier.clone());
    let proved = exchange(door, client, &greeting.user, verifier, circumstances.end_point.as_deref()).await?;
    let (Some(_), Some(route), Some(credential)) = (proved, route, credential) else {
        door.limits.login_failed(peer, database);
        return Err(ErrorKind::WrongPassword { user: greeting.user.clone() });
    };
    door.limits.login_succeeded(peer, route.database);
    if !credential.can_login {
        return Err(ErrorKind::LoginNotPermitted { role: credential.role });
    }
    if let Some((first, second)) = route.disagreement {
        return Err(ErrorKind::KeysDisagree { first, second });
    }
    Ok(Authenticated {
        database: route.database,
        role: credential.role,
        postgres_database: route.postgres_database,
        recheck: credential.kept.then_some(credential.verifier),
    })
}

/// The verifier to check a login against; `None` if no password can be right.
async fn credential<L: Ladder>(door: &Door<L>, route: &Route) -> Result<Option<Credential>, ErrorKind> {
    match &route.account {
        Account::Connection(login) => {
            let verifier = login.verifier.parse().map_err(|_| {
                ErrorKind::Catalog(format!("the verifier of {} is malformed", login.connection))
            })?;
            Ok(Some(Credential { verifier, role: login.role.clone(), can_login: true, kept: false }))
        }
        Account::Role(role) => role_credential(door, &route.database, role).await,
    }
}

async fn role_credential<L: Ladder>(
    door: &Door<L>,
    database: &DatabaseId,
    role: &str,
) -> Result<Option<Credential>, ErrorKind> {
    if role == RESERVED_ROLE {
        return Ok(None);
    }
    let (login, source) = door
        .ladder
        .role_login(database, role)
        .await
        .map_err(|error| ErrorKind::RolesUnavailable(error.to_string()))?;
    let Some(login) = login else { return Ok(None) };
    // Postgres, too, lets an expired password fail as a wrong one.
    if login.valid_until.is_some_and(|until| until <= SystemTime::now()) {
        return Ok(None);
    }
    let Some(stored) = login.verifier else { return Ok(None) };
    match stored.parse() {
        Ok(verifier) => Ok(Some(Credential {
            verifier,
            role: login.role,
            can_login: login.can_login,
            kept: source == RoleSource::Kept,
        })),
        Err(_) if stored.starts_with("md5") => Err(ErrorKind::Md5Password { role: login.role }),
        Err(_) => Ok(None),
    }
}

/// Checks a verifier that came from a kept copy against the running database.
///
/// # Errors
///
/// When the password was changed, the role may not log in any more, or the database does not answer.
pub(crate) async fn recheck<L: Ladder>(
    door: &Door<L>,
    authenticated: &Authenticated,
    user: &str,
) -> Result<(), ErrorKind> {
    let Some(used) = &authenticated.recheck else { return Ok(()) };
    match role_credential(door, &authenticated.database, &authenticated.role).await? {
        Some(live) if live.verifier == *used && live.can_login => Ok(()),
        Some(live) if live.verifier == *used => Err(ErrorKind::LoginNotPermitted { role: live.role }),
        _ => Err(ErrorKind::WrongPassword { user: user.to_owned() }),
    }
}

/// Runs the SASL exchange. The result is a proof that the client knows the password of `verifier`, and the client has then
/// been sent AuthenticationOk; `None` is a wrong password, or no verifier.
async fn exchange<L: Ladder>(
    door: &Door<L>,
    client: &mut Client,
    user: &str,
    verifier: Option<Verifier>,
    end_point: Option<&[u8]>,
) -> Result<Option<Verified>, ErrorKind> {
    let genuine = verifier.is_some();
    let verifier = verifier.unwrap_or_else(|| Verifier::mock(user, &door.mock_secret));
    let binding = end_point.map_or(ChannelBinding::Unavailable, ChannelBinding::Available);

    let mut out = Vec::with_capacity(256);
    backend::authentication_sasl(&mut out, mechanisms(end_point.is_some()));
    client.send(&out).await?;

    let body = client.read_message(frontend::PASSWORD, MAX_SASL_LEN).await?;
    let initial = frontend::sasl_initial_response(frontend::PASSWORD, &body)
        .map_err(|error| ErrorKind::Protocol(error.to_string()))?;
    let first = ServerFirst::new(verifier, binding, fresh_nonce());
    let (last, challenge) = first.client_first(initial.mechanism, initial.data).map_err(refused)?;
    out.clear();
    backend::sasl_continue(&mut out, &challenge);
    client.send(&out).await?;

    let body = client.read_message(frontend::PASSWORD, MAX_SASL_LEN).await?;
    match last.client_final(&body) {
        Ok((verified, signature)) if genuine => {
            out.clear();
            backend::sasl_final(&mut out, &signature);
            backend::authentication_ok(&mut out);
            client.send(&out).await?;
            Ok(Some(verified))
        }
        Ok(_) | Err(ScramError::InvalidProof) => Ok(None),
        Err(error) => Err(refused(error)),
    }
}

fn refused(error: ScramError) -> ErrorKind {
    ErrorKind::Protocol(error.to_string())
}

/// The mechanisms to offer, best first.
const fn mechanisms(channel_binding: bool) -> &'static [&'static str] {
    if channel_binding { &[MECHANISM_PLUS, MECHANISM] } else { &[MECHANISM] }
}
