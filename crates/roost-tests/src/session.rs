//! Client sessions in this process, with tokio-postgres.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::task::JoinHandle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls};

/// An open session. Dropping it closes the connection.
pub struct Session {
    client: Client,
    task: JoinHandle<()>,
}

impl std::ops::Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl std::ops::DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Session {
    /// Connects once.
    pub async fn open(url: &str) -> Result<Self, tokio_postgres::Error> {
        Self::with(&url.parse()?).await
    }

    /// Connects once, with settings.
    pub async fn with(config: &Config) -> Result<Self, tokio_postgres::Error> {
        let (client, connection) = config.connect(NoTls).await?;
        let task = tokio::spawn(async move {
            // The client sees the same error at its next call.
            let _ = connection.await;
        });
        Ok(Self { client, task })
    }

    /// Connects, trying again until `deadline`: what a client does whose server is being restarted.
    pub async fn open_within(url: &str, deadline: Duration) -> Result<Self> {
        let end = Instant::now() + deadline;
        loop {
            let attempt = tokio::time::timeout(deadline, Self::open(url)).await;
            let error = match attempt {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(error)) => anyhow::Error::new(error),
                Err(_) => anyhow::anyhow!("no answer"),
            };
            if Instant::now() > end {
                return Err(error.context(format!("no session after {deadline:?}")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits for the connection to be closed on the wire too.
    pub async fn close(self) {
        let Self { client, task } = self;
        // Without its client the connection's task sends Terminate and ends.
        drop(client);
        let _ = tokio::time::timeout(Duration::from_secs(5), task).await;
    }

    /// One value of one row.
    pub async fn value<T>(&self, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<T>
    where
        T: for<'a> tokio_postgres::types::FromSql<'a>,
    {
        let row = self.client.query_one(query, parameters).await.with_context(|| query.to_owned())?;
        Ok(row.try_get(0)?)
    }

    /// Runs statements that must fail, and returns the SQLSTATE.
    pub async fn sqlstate_of(&self, statements: &str) -> Result<String> {
        match self.client.batch_execute(statements).await {
            Ok(()) => bail!("this succeeded: {statements}"),
            Err(error) => Ok(sqlstate(&error).to_owned()),
        }
    }
}

/// The SQLSTATE that the server sent, or nothing if the error is not the server's.
pub fn sqlstate(error: &tokio_postgres::Error) -> &str {
    error.code().map_or("", |code| code.code())
}

/// The message that the server sent, or the client library's own.
pub fn message(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

/// `url` with another value of one of its parts.
pub fn url_with(url: &str, change: impl FnOnce(&mut Url)) -> Result<String> {
    let mut parts = Url::parse(url)?;
    change(&mut parts);
    Ok(parts.to_string())
}

/// The parts of `postgres://USER:PASSWORD@HOST:PORT/DATABASE?PARAMETERS`; Roost's need no percent-encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
    /// Host and port.
    pub address: String,
    /// The Postgres database.
    pub database: String,
    /// What comes after `?`.
    pub parameters: Vec<String>,
}

impl Url {
    /// Takes a URL apart.
    pub fn parse(url: &str) -> Result<Self> {
        let rest = url.split_once("://").context("no scheme")?.1;
        let (login, rest) = rest.split_once('@').context("no user")?;
        let (user, password) = login.split_once(':').context("no password")?;
        let (address, rest) = rest.split_once('/').context("no database")?;
        let (database, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        Ok(Self {
            user: user.to_owned(),
            password: password.to_owned(),
            address: address.to_owned(),
            database: database.to_owned(),
            parameters: parameters.split('&').filter(|text| !text.is_empty()).map(str::to_owned).collect(),
        })
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { user, password, address, database, parameters } = self;
        write!(f, "postgres://{user}:{password}@{address}/{database}")?;
        if parameters.is_empty() { Ok(()) } else { write!(f, "?{}", parameters.join("&")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_survives_being_taken_apart() -> Result<()> {
        let url = "postgres://con_a:secret@localhost:7432/postgres?sslmode=require&connect_timeout=5";
        assert_eq!(Url::parse(url)?.to_string(), url);
        let other = url_with(url, |url| url.database = "shop".to_owned())?;
        assert!(other.contains("/shop?"));
        Ok(())
    }
}
