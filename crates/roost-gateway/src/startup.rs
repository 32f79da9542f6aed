//! The first packets of a connection (protocol: "Start-up", "SSL Session Encryption", "GSSAPI Session Encryption",
//! "Canceling Requests in Progress"): TLS is negotiated, and a startup packet or a cancel request comes out.
//!
//! At most one request for TLS and one for GSSAPI encryption is answered. Bytes that arrive between a request for TLS
//! and its answer are refused: they would be taken for encrypted ones later.

use roost_pool::Socket;
use roost_wire::startup::{
    FirstPacket, OptionWord, StartupError, StartupMessage, parse, parse_options, write_options,
};

use crate::client::{Client, Stream};
use crate::error::ErrorKind;
use crate::metrics::Security;
use crate::tls::{self, HANDSHAKE_RECORD, IdentityStore};

/// The newest minor version of protocol 3 that is spoken here.
const NEWEST_MINOR: u16 = 2;

/// What a client wants.
#[derive(Debug)]
pub(crate) enum Opening {
    /// A session.
    Session(Greeting),
    /// To cancel what another session runs.
    Cancel { pid: i32, key: Vec<u8> },
}

/// A startup packet, sorted.
#[derive(Debug)]
pub(crate) struct Greeting {
    /// The minor version of protocol 3 that is spoken from here on.
    pub(crate) minor: u16,
    /// What must be said about versions and options that are not known here.
    pub(crate) negotiation: Option<Negotiation>,
    pub(crate) user: String,
    pub(crate) database: Option<String>,
    /// `options=endpoint=NAME`.
    pub(crate) endpoint: Option<String>,
    /// Parameters for the server: settings of the session, and `options` without what was meant for Roost.
    pub(crate) settings: Vec<(String, String)>,
}

/// The content of NegotiateProtocolVersion.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Negotiation {
    pub(crate) minor: u16,
    pub(crate) unknown_options: Vec<String>,
}

/// A client whose first packets have been read.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) client: Client,
    pub(crate) opening: Opening,
    pub(crate) security: Security,
    pub(crate) server_name: Option<String>,
    pub(crate) end_point: Option<std::sync::Arc<[u8]>>,
}

/// A client that failed before it had a session, with its stream if it can still be told why.
pub(crate) type Failure = (Option<Client>, ErrorKind);

/// Reads the first packets of a connection.
///
/// # Errors
///
/// When they are malformed, ask for what is not supported, or the client goes away.
pub(crate) async fn open(
    stream: Socket,
    identities: &IdentityStore,
    requires_tls: bool,
) -> Result<Opened, Failure> {
    let mut opened = Opened {
        client: Client::new(Stream::Plain(stream)),
        opening: Opening::Cancel { pid: 0, key: Vec::new() },
        security: Security::Plain,
        server_name: None,
        end_point: None,
    };
    if begins_with_handshake(&opened.client).await {
        opened = secure(opened, identities, Security::Direct).await?;
    }
    let mut gss_asked = false;
    loop {
        let packet = match next_packet(&mut opened.client).await {
            Ok(packet) => packet,
            Err(error) => return Err((Some(opened.client), error)),
        };
        let refusal = match packet {
            Packet::Tls if opened.security != Security::Plain => ErrorKind::RepeatedNegotiation("TLS"),
            Packet::Tls if !opened.client.inbox.is_empty() => ErrorKind::PlaintextAfterTlsRequest,
            Packet::Tls => {
                opened = secure(opened, identities, Security::Requested).await?;
                continue;
            }
            Packet::Gss if gss_asked => ErrorKind::RepeatedNegotiation("GSSAPI encryption"),
            Packet::Gss => {
                gss_asked = true;
                match opened.client.send(b"N").await {
                    Ok(()) => continue,
                    Err(error) => error,
                }
            }
            // Old clients cancel without TLS whatever their session has; the key is all that it gives away.
            Packet::Cancel { pid, key } => {
                opened.opening = Opening::Cancel { pid, key };
                return Ok(opened);
            }
            Packet::Session(_) if requires_tls && opened.security == Security::Plain => {
                ErrorKind::TlsRequired
            }
            Packet::Session(greeting) => {
                opened.opening = Opening::Session(greeting);
                return Ok(opened);
            }
            Packet::Refused(error) => error,
        };
        return Err((Some(opened.client), refusal));
    }
}

/// Whether a client begins with TLS instead of a request for it. Leaves the byte where it is.
async fn begins_with_handshake(client: &Client) -> bool {
    match &client.stream {
        Stream::Plain(stream) => matches!(stream.peek().await, Ok(Some(HANDSHAKE_RECORD))),
        Stream::Tls(_) => false,
    }
}

async fn secure(opened: Opened, identities: &IdentityStore, security: Security) -> Result<Opened, Failure> {
    let mut client = opened.client;
    if security == Security::Requested
        && let Err(error) = client.send(b"S").await
    {
        return Err((None, error));
    }
    let Stream::Plain(stream) = client.stream else {
        return Err((None, ErrorKind::RepeatedNegotiation("TLS")));
    };
    match tls::accept(&identities.current(), stream).await {
        Ok(secured) => {
            let client = Client::new(Stream::Tls(secured.stream));
            // Without the name, a handshake meant for another protocol could be sent here by somebody in between.
            if security == Security::Direct && !secured.alpn {
                return Err((Some(client), ErrorKind::AlpnMissing));
            }
            Ok(Opened {
                client,
                opening: opened.opening,
                security,
                server_name: secured.server_name,
                end_point: secured.end_point,
            })
        }
        Err(error) => Err((None, ErrorKind::TlsHandshake(error))),
    }
}

/// One of the packets without a tag.
enum Packet {
    Tls,
    Gss,
    Cancel { pid: i32, key: Vec<u8> },
    Session(Greeting),
    Refused(ErrorKind),
}

async fn next_packet(client: &mut Client) -> Result<Packet, ErrorKind> {
    loop {
        let parsed = parse(&client.inbox).map_err(|error| match error {
            StartupError::Version(version) => {
                ErrorKind::UnsupportedProtocol { major: version.major, minor: version.minor }
            }
            malformed => ErrorKind::Protocol(malformed.to_string()),
        })?;
        if let Some((packet, consumed)) = parsed {
            let packet = match packet {
                FirstPacket::Ssl => Packet::Tls,
                FirstPacket::Gss => Packet::Gss,
                FirstPacket::Cancel { pid, key } => Packet::Cancel { pid, key: key.to_vec() },
                FirstPacket::Startup(message) => match greeting(&message) {
                    Ok(greeting) => Packet::Session(greeting),
                    Err(error) => Packet::Refused(error),
                },
            };
            client.inbox.drain(..consumed);
            return Ok(packet);
        }
        client.read_more().await?;
    }
}

/// Sorts a startup packet's parameters.
fn greeting(message: &StartupMessage<'_>) -> Result<Greeting, ErrorKind> {
    let minor = message.version.minor;
    let mut greeting = Greeting {
        minor: minor.min(NEWEST_MINOR),
        negotiation: None,
        user: String::new(),
        database: None,
        endpoint: None,
        settings: Vec::new(),
    };
    for (name, value) in message.parameters() {
        match name {
            "user" => value.clone_into(&mut greeting.user),
            "database" => greeting.database = Some(value.to_owned()),
            "replication" if is_off(value) => {}
            "replication" => return Err(ErrorKind::Replication),
            "options" => {
                let words = parse_options(value);
                greeting.endpoint = words.iter().rev().find_map(endpoint).or(greeting.endpoint);
                greeting.settings.push((name.to_owned(), write_options(&words)));
            }
            _ => greeting.settings.push((name.to_owned(), value.to_owned())),
        }
    }
    if greeting.user.is_empty() {
        return Err(ErrorKind::NoUser);
    }
    let unknown_options: Vec<String> = message.protocol_options().map(str::to_owned).collect();
    if minor > NEWEST_MINOR || !unknown_options.is_empty() {
        greeting.negotiation = Some(Negotiation { minor: greeting.minor, unknown_options });
    }
    Ok(greeting)
}

fn endpoint(word: &OptionWord) -> Option<String> {
    match word {
        OptionWord::Endpoint(name) => Some(name.clone()),
        OptionWord::Setting { .. } | OptionWord::Other(_) => None,
    }
}

/// Whether a `replication` parameter says that none is wanted, in one of the ways in which Postgres reads a boolean.
fn is_off(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "false" | "off" | "no" | "0" | "f" | "n")
}

#[cfg(test)]
mod tests {
    use roost_wire::startup::{ProtocolVersion, write_startup};

    use super::*;

    fn read(version: ProtocolVersion, parameters: &[(&str, &str)]) -> Result<Greeting, ErrorKind> {
        let mut bytes = Vec::new();
        write_startup(&mut bytes, version, parameters.iter().copied());
        match parse(&bytes) {
            Ok(Some((FirstPacket::Startup(message), _))) => greeting(&message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_are_passed_on_without_what_is_meant_for_roost() {
        let options = "-c statement_timeout=5s endpoint=shop --work-mem=4MB -c search_path=a\\ b";
        let greeting = read(ProtocolVersion::V3_0, &[("user", "u"), ("options", options)]).unwrap();
        assert_eq!(greeting.endpoint.as_deref(), Some("shop"));
        let (name, value) = greeting.settings.first().unwrap();
        assert_eq!(name, "options");
        assert!(!value.contains("endpoint"), "{value}");
        assert_eq!(
            parse_options(value),
            parse_options("-c statement_timeout=5s -c work_mem=4MB -c search_path=a\\ b")
        );
    }

    #[test]
    fn the_newest_minor_version_and_no_unknown_option_is_agreed_on() {
        let minor = |minor| ProtocolVersion { major: 3, minor };
        assert_eq!(read(minor(0), &[("user", "u")]).unwrap().negotiation, None);
        assert_eq!(read(minor(2), &[("user", "u")]).unwrap().negotiation, None);
        let newer = read(minor(9999), &[("user", "u")]).unwrap();
        assert_eq!(
            (newer.minor, newer.negotiation),
            (2, Some(Negotiation { minor: 2, unknown_options: vec![] }))
        );
        let asking = read(minor(0), &[("user", "u"), ("_pq_.shiny", "1")]).unwrap();
        let unknown_options = vec!["_pq_.shiny".to_owned()];
        assert_eq!(asking.negotiation, Some(Negotiation { minor: 0, unknown_options }));
        assert!(asking.settings.is_empty());
    }

    #[test]
    fn replication_is_refused_unless_it_is_off() {
        for value in ["true", "on", "database", "1", "yes", "nonsense"] {
            let result = read(ProtocolVersion::V3_0, &[("user", "u"), ("replication", value)]);
            assert!(matches!(result, Err(ErrorKind::Replication)), "{value}");
        }
        assert!(read(ProtocolVersion::V3_0, &[("user", "u"), ("replication", "off")]).is_ok());
    }

    #[test]
    fn a_user_is_needed() {
        assert!(matches!(read(ProtocolVersion::V3_0, &[]), Err(ErrorKind::NoUser)));
        assert!(matches!(read(ProtocolVersion::V3_0, &[("user", "")]), Err(ErrorKind::NoUser)));
    }
}
