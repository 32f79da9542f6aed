//! The first packets: TLS in both ways, GSSAPI, versions, and what is refused.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use roost_wire::startup::{ProtocolVersion, write_ssl_request, write_startup};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::support::door::{HOST, SECRET, refusal};
use super::support::{Conversation, Door, DoorOptions};

/// GSSENCRequest.
const GSS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

fn secured(requires_tls: bool) -> DoorOptions {
    DoorOptions { requires_tls, ..DoorOptions::default() }
}

async fn handshake(door: &Door, stream: TcpStream, alpn: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(door.certificate()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from(HOST).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

async fn ask_for_tls(door: &Door) -> TcpStream {
    let mut stream = TcpStream::connect(door.address).await.unwrap();
    let mut request = Vec::new();
    write_ssl_request(&mut request);
    stream.write_all(&request).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'S');
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_on_request_and_from_the_first_byte_both_lead_to_a_session() {
    let door = Door::open_with(secured(true)).await;
    door.add_role("postgres", "right", |_| {});
    let requested = ask_for_tls(&door).await;
    let direct = TcpStream::connect(door.address).await.unwrap();
    for (stream, alpn) in [(requested, &[][..]), (direct, &[&b"postgresql"[..]][..])] {
        let mut session = Conversation::new(handshake(&door, stream, alpn).await.unwrap());
        // The server name routes.
        session.start(&[("user", "postgres")]).await;
        session.log_in("right").await;
        session.query("select 1").await;
        assert_eq!(session.read_until(b'Z').await.len(), 4);
    }
    let metrics = door.metrics();
    assert!(
        metrics.contains("transport=\"tls\"} 1") && metrics.contains("transport=\"direct_tls\"} 1"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_tls_needs_the_protocols_name() {
    let door = Door::open_with(secured(true)).await;
    let stream = TcpStream::connect(door.address).await.unwrap();
    let mut nameless = Conversation::new(handshake(&door, stream, &[]).await.unwrap());
    assert_eq!(nameless.read_error().await[&'C'], "08P01");
    let stream = TcpStream::connect(door.address).await.unwrap();
    assert!(handshake(&door, stream, &[b"http/1.1"]).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_client_is_told_to_use_tls_where_it_is_required() {
    let door = Door::open_with(secured(true)).await;
    let (code, text) = refusal(&door.config()).await;
    assert_eq!((code.as_str(), text.as_str()), ("28000", "this address takes TLS connections only"));
    assert_eq!(door.stage.acquired.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_binds_its_password_to_the_certificate() {
    let door = Door::open_with(secured(true)).await;
    let run = |binding: &str, password: &str| {
        let target = format!(
            "host=localhost hostaddr=127.0.0.1 port={} user={} sslmode=verify-full sslrootcert={} channel_binding={binding}",
            door.address.port(),
            door.connection,
            door.certificate().display(),
        );
        let output = Command::new("psql")
            .args(["-X", "-At", "-c", "select 6 * 7", &target])
            .env("PGPASSWORD", password)
            .output()
            .unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let run = |binding, password| tokio::task::block_in_place(|| run(binding, password));
    for binding in ["require", "prefer", "disable"] {
        assert_eq!(run(binding, SECRET), ("42\n".to_owned(), String::new()), "{binding}");
    }
    let (_, error) = run("require", "wrong");
    assert!(error.contains("password authentication failed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_between_a_request_for_tls_and_its_answer_are_refused() {
    let door = Door::open().await;
    let mut conversation = door.converse().await;
    let mut bytes = Vec::new();
    write_ssl_request(&mut bytes);
    write_startup(&mut bytes, ProtocolVersion::V3_0, [("user", "postgres")]);
    conversation.send(&bytes).await;
    let error = conversation.read_error().await;
    assert_eq!(
        (error[&'C'].as_str(), error[&'M'].as_str()),
        ("08P01", "received unencrypted data after the request for TLS")
    );
    assert!(conversation.is_over().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn gssapi_encryption_is_declined_once() {
    let door = Door::open().await;
    let mut conversation = door.converse().await;
    conversation.send(&GSS_REQUEST).await;
    assert_eq!(conversation.stream.read_u8().await.unwrap(), b'N');
    conversation.start(&[("user", &door.connection.to_string())]).await;
    conversation.log_in(SECRET).await;

    let mut insisting = door.converse().await;
    insisting.send(&GSS_REQUEST).await;
    assert_eq!(insisting.stream.read_u8().await.unwrap(), b'N');
    insisting.send(&GSS_REQUEST).await;
    assert_eq!(insisting.read_error().await[&'C'], "08P01");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_inside_tls_is_refused() {
    let door = Door::open().await;
    let stream = ask_for_tls(&door).await;
    let mut inner = Conversation::new(handshake(&door, stream, &[]).await.unwrap());
    let mut request = Vec::new();
    write_ssl_request(&mut request);
    inner.send(&request).await;
    assert_eq!(inner.read_error().await[&'M'], "TLS was requested twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_versions_and_unknown_options_are_negotiated_down() {
    let door = Door::open().await;
    let mut modern = door.converse().await;
    let user = door.connection.to_string();
    let version = ProtocolVersion { major: 3, minor: 9999 };
    modern.start_version(version, &[("user", &user), ("_pq_.shiny", "yes")]).await;
    let (tag, body) = modern.read().await.unwrap();
    assert_eq!((tag, &body[..8]), (b'v', &[0, 3, 0, 2, 0, 0, 0, 1][..]));
    assert_eq!(&body[8..], b"_pq_.shiny\0");
    modern.log_in(SECRET).await;
    assert_eq!(modern.key.1.len(), 32);

    let classic = door.session().await;
    assert_eq!(classic.key.1.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_protocols_and_replication_are_refused_with_a_sentence() {
    let door = Door::open().await;
    let mut ancient = door.converse().await;
    ancient.start_version(ProtocolVersion { major: 2, minor: 0 }, &[("user", "a")]).await;
    assert_eq!(ancient.read_error().await[&'C'], "0A000");

    let mut replica = door.converse().await;
    replica.start(&[("user", "a"), ("replication", "database")]).await;
    let error = replica.read_error().await;
    assert_eq!(
        (error[&'C'].as_str(), error[&'M'].as_str()),
        ("0A000", "replication connections are not supported")
    );

    let mut nobody = door.converse().await;
    nobody.start(&[("database", "shop")]).await;
    assert_eq!(nobody.read_error().await[&'C'], "28000");
}
