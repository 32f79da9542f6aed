//! Postgres' client programs: where they are, and running one with a credential that ends with it.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, Result, bail};
use roost_api::client::Client;
use roost_api::resource::{Connection, Database};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::ProgramFailed;
use crate::terminal::Terminal;

/// A database's major version.
pub(super) fn version(database: &Database) -> Result<u16> {
    database.version.parse().with_context(|| format!("`{}` is no major version", database.version))
}

/// One of Postgres' client programs.
#[derive(Debug)]
pub(super) struct Program {
    name: &'static str,
    path: PathBuf,
}

/// Finds a program that is not older than the server: with the installations of the node first (the oldest that will
/// do), then in `PATH`.
pub(super) async fn find(client: &Client, name: &'static str, major: u16) -> Result<Program> {
    let mut installations = client.node().await?.installations;
    installations.sort_by_key(|installation| installation.major);
    let suitable = installations.into_iter().filter(|installation| installation.major >= major);
    let mut candidates = suitable.map(|installation| Path::new(&installation.bin).join(name));
    if let Some(path) = candidates.find(|path| path.is_file()) {
        return Ok(Program { name, path });
    }
    let variable = std::env::var_os("PATH").unwrap_or_default();
    for folder in std::env::split_paths(&variable) {
        let path = folder.join(name);
        if path.is_file() && major_of(&path).await.is_some_and(|found| found >= major) {
            return Ok(Program { name, path });
        }
    }
    bail!(
        "no {name} of version {major} or newer: neither with the Postgres installations of the node nor in PATH \
         (Debian: apt install postgresql-client)"
    )
}

/// The major version that a client program says it has: `psql (PostgreSQL) 17.5`.
async fn major_of(path: &Path) -> Option<u16> {
    let output = Command::new(path).arg("--version").output().await.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_once("(PostgreSQL) ")?.1;
    version.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

impl Program {
    /// The program with the credential in its environment, where other users of the machine don't see it.
    pub(super) fn command(&self, credential: &Credential, dbname: Option<&str>) -> Command {
        let mut command = Command::new(&self.path);
        let endpoint = &credential.connection.endpoints.direct;
        command
            .env("PGHOST", &endpoint.host)
            .env("PGPORT", endpoint.port.to_string())
            .env("PGUSER", credential.connection.id.to_string())
            .env("PGPASSWORD", &credential.secret)
            .env("PGDATABASE", dbname.unwrap_or(roost_postgres::OWNER_DATABASE));
        command
    }

    /// Runs the program to its end. Signals of the terminal are its business.
    pub(super) async fn run(&self, mut command: Command) -> Result<()> {
        let _ignored = IgnoredSignals::new()?;
        let status = command.status().await.with_context(|| format!("cannot run {}", self.path.display()))?;
        self.check(status)
    }

    /// An error that carries the program's exit code, unless it succeeded.
    pub(super) fn check(&self, status: ExitStatus) -> Result<()> {
        if status.success() {
            return Ok(());
        }
        // A program that a signal ended has no code; shells use 128 and the signal's number.
        let signal = std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0);
        let code = status.code().unwrap_or(128 + signal);
        Err(ProgramFailed { program: self.name.to_owned(), code: u8::try_from(code).unwrap_or(1) }.into())
    }
}

/// While this lives, SIGINT, SIGQUIT, SIGTERM and SIGHUP do not end this process: whatever is under way ends with the
/// program that got them too, and is cleaned up.
#[derive(Debug)]
pub(super) struct IgnoredSignals {
    _streams: Vec<tokio::signal::unix::Signal>,
}

impl IgnoredSignals {
    pub(super) fn new() -> Result<Self> {
        let kinds =
            [SignalKind::interrupt(), SignalKind::quit(), SignalKind::terminate(), SignalKind::hangup()];
        let streams = kinds.into_iter().map(signal).collect::<std::io::Result<_>>()?;
        Ok(Self { _streams: streams })
    }
}

/// A connection that is deleted when what it was made for is done.
#[derive(Debug)]
pub(super) struct Credential {
    client: Client,
    connection: Connection,
    secret: String,
}

impl Credential {
    /// Makes one.
    pub(super) async fn make(client: &Client, database: &Database, name: &str) -> Result<Self> {
        let connection = client.create_connection(&database.id.to_string(), name).await?;
        let secret = connection.pass.as_ref().context("the node gave no secret")?.expose().to_owned();
        Ok(Self { client: client.clone(), connection, secret })
    }

    /// Deletes it. If that fails it stays in the list of connections, where a person can delete it; its secret is
    /// known to nobody.
    pub(super) async fn delete(self, terminal: &Terminal) {
        if let Err(error) = self.client.delete_connection(&self.connection.id).await {
            let id = self.connection.id;
            terminal.note(&format!("The temporary connection {id} could not be deleted: {error}"));
        }
    }
}
