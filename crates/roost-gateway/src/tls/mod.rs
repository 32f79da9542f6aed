//! TLS: the certificate that clients see, its reloading, and its binding to SCRAM.
//!
//! Every handshake takes the identity of the moment, so new files serve new connections and open ones are not touched.
//! Session tickets are off, as Postgres clients do not use them.

mod end_point;
mod identity;
mod self_signed;

use std::io;
use std::sync::Arc;

use roost_pool::Socket;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use identity::TlsError;
pub(crate) use identity::{Identity, IdentityStore};

/// The ALPN protocol name of Postgres.
pub(crate) const ALPN: &[u8] = b"postgresql";

/// The first byte of a TLS handshake record, which no startup packet begins with: its length would exceed the bound.
pub(crate) const HANDSHAKE_RECORD: u8 = 0x16;

/// A finished handshake.
#[derive(Debug)]
pub(crate) struct Secured {
    pub(crate) stream: Box<TlsStream<Socket>>,
    /// What the client's SCRAM exchange may be bound to; `None` if RFC 5929 defines nothing for this certificate.
    pub(crate) end_point: Option<Arc<[u8]>>,
    /// The name that the client asked for.
    pub(crate) server_name: Option<String>,
    /// Whether the client and the gateway agreed on [`ALPN`].
    pub(crate) alpn: bool,
}

/// Does the handshake with a client that is about to begin one.
///
/// # Errors
///
/// When the client goes away or no parameters suit both.
pub(crate) async fn accept(identity: &Identity, stream: Socket) -> io::Result<Secured> {
    let stream = TlsAcceptor::from(identity.config.clone()).accept(stream).await?;
    let (_, session) = stream.get_ref();
    let server_name = session.server_name().map(str::to_ascii_lowercase);
    let alpn = session.alpn_protocol() == Some(ALPN);
    Ok(Secured { stream: Box::new(stream), end_point: identity.end_point.clone(), server_name, alpn })
}
