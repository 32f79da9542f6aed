//! A gateway on a loopback port, with a catalog of one database `shop` and one connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::registry::Registry;
use roost_catalog::id::{ConnectionId, DatabaseId};
use roost_catalog::model::{Name, NewConnection, NewDatabase, RoleLogin, Settings};
use roost_catalog::{Catalog, CatalogOptions};
use roost_gateway::{CertificateSource, Gateway, GatewayConfig, LimitsConfig, ListenerConfig, Serving};
use roost_wire::scram::{Verifier, fresh_salt};
use tokio_postgres::{Client, Config, NoTls};

use super::client::Conversation;
use super::ladder::{Stage, TestLadder};
use super::postgres::Postgres;

/// The secret of the connection.
pub(crate) const SECRET: &str = "correct horse battery staple";

/// A host name that routes to the database `shop`, and that the certificate is for.
pub(crate) const HOST: &str = "shop.db.example.com";

/// What a test wants different.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DoorOptions {
    pub(crate) requires_tls: bool,
    pub(crate) startup_deadline: Duration,
    pub(crate) connect_deadline: Duration,
    pub(crate) limits: LimitsConfig,
    pub(crate) workers: usize,
}

impl Default for DoorOptions {
    fn default() -> Self {
        Self {
            requires_tls: false,
            startup_deadline: Duration::from_secs(10),
            connect_deadline: Duration::from_secs(30),
            limits: LimitsConfig::default(),
            workers: 2,
        }
    }
}

/// A gateway that serves.
pub(crate) struct Door {
    pub(crate) stage: Arc<Stage>,
    pub(crate) catalog: Catalog,
    pub(crate) database: DatabaseId,
    pub(crate) connection: ConnectionId,
    pub(crate) registry: Registry,
    pub(crate) address: SocketAddr,
    pub(crate) serving: Option<Serving<TestLadder>>,
    _directory: tempfile::TempDir,
}

impl Drop for Door {
    /// Ends the gateway first, and Postgres when nobody uses it any more; the process would not wait for either.
    fn drop(&mut self) {
        drop(self.serving.take());
        let began = std::time::Instant::now();
        while Arc::strong_count(&self.stage) > 1 && began.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.stage.postgres.stop();
    }
}

impl Door {
    pub(crate) async fn open() -> Self {
        Self::open_with(DoorOptions::default()).await
    }

    pub(crate) async fn open_with(options: DoorOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let catalog =
            Catalog::open(&directory.path().join("catalog.sqlite"), CatalogOptions::default()).unwrap();
        let database = DatabaseId::generate();
        let connection = ConnectionId::generate();
        let new = NewDatabase {
            id: database,
            project: Name::default_project(),
            name: "shop".parse().unwrap(),
            major: 15,
            settings: Settings::default(),
            created_at: SystemTime::now(),
            connection: Some(NewConnection {
                id: connection,
                database,
                name: "default".to_owned(),
                role: "postgres".to_owned(),
                verifier: Verifier::from_password(SECRET, &fresh_salt(), 4096).to_string(),
                created_at: SystemTime::now(),
            }),
        };
        catalog.create_database(new).await.unwrap();
        let ladder = TestLadder::new(Postgres::start());
        let stage = ladder.0.clone();
        let listener =
            ListenerConfig { address: ([127, 0, 0, 1], 0).into(), require_tls: Some(options.requires_tls) };
        let config = GatewayConfig {
            workers: Some(options.workers),
            startup_deadline: options.startup_deadline,
            connect_deadline: options.connect_deadline,
            limits: options.limits,
            certificate: CertificateSource::SelfSigned {
                directory: directory.path().join("tls"),
                names: vec![HOST.to_owned()],
            },
            ..GatewayConfig::new(vec![listener], directory.path().join("tls"))
        };
        let mut registry = Registry::default();
        let gateway = Gateway::bind(config, catalog.clone(), ladder, &mut registry).await.unwrap();
        let serving = gateway.serve().unwrap();
        let address = serving.addresses()[0];
        Self {
            stage,
            catalog,
            database,
            connection,
            registry,
            address,
            serving: Some(serving),
            _directory: directory,
        }
    }

    /// The certificate that the gateway made.
    pub(crate) fn certificate(&self) -> std::path::PathBuf {
        self._directory.path().join("tls/server.crt")
    }

    /// Adds a role made with SQL, as the running database tells it.
    pub(crate) fn add_role(&self, name: &str, password: &str, change: impl FnOnce(&mut RoleLogin)) {
        let mut login = RoleLogin {
            role: name.to_owned(),
            verifier: Some(Verifier::from_password(password, &fresh_salt(), 4096).to_string()),
            can_login: true,
            valid_until: None,
        };
        change(&mut login);
        self.stage.roles.lock().unwrap().insert(name.to_owned(), login);
    }

    /// How a client of tokio-postgres is configured for the connection.
    pub(crate) fn config(&self) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.address.port()).user(self.connection.to_string()).password(SECRET);
        config
    }

    /// A session with the connection's secret.
    pub(crate) async fn connect(&self) -> Client {
        connect(&self.config()).await.unwrap()
    }

    /// A conversation on the level of bytes.
    pub(crate) async fn converse(&self) -> Conversation {
        Conversation::new(tokio::net::TcpStream::connect(self.address).await.unwrap())
    }

    /// A conversation that has logged in with the connection's secret.
    pub(crate) async fn session(&self) -> Conversation {
        let mut conversation = self.converse().await;
        conversation.start(&[("user", &self.connection.to_string())]).await;
        conversation.log_in(SECRET).await;
        conversation
    }

    /// What a scrape of the metrics shows.
    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

/// Connects, with the connection's task in the background.
pub(crate) async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The SQLSTATE and text of a failed login.
pub(crate) async fn refusal(config: &Config) -> (String, String) {
    let Err(error) = connect(config).await else { panic!("the login succeeds") };
    let error = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    (error.code().code().to_owned(), error.message().to_owned())
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
