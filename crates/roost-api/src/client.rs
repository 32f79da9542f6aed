//! A client of the management API over the node's unix socket, as the command line uses it.
//!
//! Each request has a connection of its own. Answers are bounded by [`MAX_ANSWER`], except streams.

use std::io;
use std::path::{Path, PathBuf};

use axum::body::HttpBody;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;

use roost_catalog::id::ConnectionId;

use crate::envelope::{Data, ErrorBody, ErrorEnvelope, MAX_PAGE, Page};
use crate::resource::{
    BulkCreated, Connection, CreateConnection, CreateDatabase, CreateDatabases, CreateProject, Database,
    DoctorReport, Node, Project, TransitionReport, UndeleteDatabase, UpdateDatabase, UsageReport,
};
use crate::stream::stream;

/// Bytes that the answer to one request may have.
pub const MAX_ANSWER: usize = 64 << 20;

/// Bytes of a stream that are sent at once.
const CHUNK: usize = 256 * 1024;
/// The content type of requests.
const JSON: &str = "application/json";
/// The content type of cold copies.
const TAR: &str = "application/x-tar";

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens on the socket, or it may not be opened.
    #[error("no node answers on {}: {source}", socket.display())]
    Unreachable {
        /// The socket's path.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The node refused the request.
    #[error("{}", body.message)]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The error's code, message and hint.
        body: ErrorBody,
    },
    /// The connection ended, or the answer was not what it should be.
    #[error("the node's answer could not be read: {0}")]
    Broken(String),
}

impl ClientError {
    fn broken(error: impl std::fmt::Display) -> Self {
        Self::Broken(error.to_string())
    }

    /// Whether the node says that what was named does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}

/// A client of one node.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the node whose API listens on `socket`. Connects with each request.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The node.
    pub async fn node(&self) -> Result<Node, ClientError> {
        self.get("/v1/node").await
    }

    /// What the machine can do.
    pub async fn doctor(&self) -> Result<DoctorReport, ClientError> {
        self.get("/v1/doctor").await
    }

    /// A page of the databases of one project or of all, the oldest first; deleted ones instead if so asked. Their
    /// connections are left out. It begins where the page before ended (`cursor`) and has [`MAX_PAGE`] items at most.
    pub async fn databases(
        &self,
        project: Option<&str>,
        deleted: bool,
        cursor: Option<&str>,
        limit: u32,
    ) -> Result<Page<Database>, ClientError> {
        let mut path = format!("/v1/databases?connections=false&deleted={deleted}&limit={limit}");
        for (key, value) in [("projectId", project), ("cursor", cursor)] {
            if let Some(value) = value {
                path.push_str(&format!("&{key}={}", escape(value)));
            }
        }
        let body = self.exchange(Method::GET, &path, None).await?;
        serde_json::from_slice(&body).map_err(ClientError::broken)
    }

    /// One database, by id, name or `name--project`.
    pub async fn database(&self, database: &str) -> Result<Database, ClientError> {
        self.get(&database_path(database, "")).await
    }

    /// Makes a database. The answer has the first connection's URL with its secret, the only time that it is shown.
    pub async fn create_database(&self, request: &CreateDatabase) -> Result<Database, ClientError> {
        self.send(Method::POST, "/v1/databases", Some(request)).await
    }

    /// Registers many databases in one step.
    pub async fn create_databases(&self, request: &CreateDatabases) -> Result<BulkCreated, ClientError> {
        self.send(Method::POST, "/v1/databases:bulk", Some(request)).await
    }

    /// Renames a database or changes its settings.
    pub async fn update_database(
        &self,
        database: &str,
        change: &UpdateDatabase,
    ) -> Result<Database, ClientError> {
        self.send(Method::PATCH, &database_path(database, ""), Some(change)).await
    }

    /// Deletes a database, for ever with `purge`.
    pub async fn delete_database(&self, database: &str, purge: bool) -> Result<(), ClientError> {
        let purge = if purge { "?purge=true" } else { "" };
        self.done(Method::DELETE, &database_path(database, purge)).await
    }

    /// Takes a deletion back.
    pub async fn undelete_database(
        &self,
        database: &str,
        request: &UndeleteDatabase,
    ) -> Result<Database, ClientError> {
        self.send(Method::POST, &database_path(database, "/undelete"), Some(request)).await
    }

    /// Makes a step on the ladder by hand: `wake`, `freeze` or `stop`. Returns when it is done.
    pub async fn step(&self, database: &str, step: Step) -> Result<Database, ClientError> {
        self.send(Method::POST, &database_path(database, step.path()), None::<&()>).await
    }

    /// A database's steps on the ladder, latest first.
    pub async fn history(&self, database: &str, limit: u32) -> Result<Vec<TransitionReport>, ClientError> {
        self.get(&database_path(database, &format!("/history?limit={limit}"))).await
    }

    /// A database's usage.
    pub async fn usage(&self, database: &str) -> Result<UsageReport, ClientError> {
        let body = self.exchange(Method::GET, &database_path(database, "/usage"), None).await?;
        serde_json::from_slice(&body).map_err(ClientError::broken)
    }

    /// A database's log: its last `tail` lines, and what is added from then on with `follow`.
    pub async fn logs(&self, database: &str, tail: u32, follow: bool) -> Result<Incoming, ClientError> {
        let path = database_path(database, &format!("/logs?tail={tail}&follow={follow}"));
        self.open(Method::GET, &path, None).await.map(Response::into_body)
    }

    /// A stopped database's files as a tar stream.
    pub async fn export(&self, database: &str) -> Result<Incoming, ClientError> {
        self.open(Method::GET, &database_path(database, "/export"), None).await.map(Response::into_body)
    }

    /// Makes the files of a database that was never woken of a tar stream that [`Client::export`] gave.
    pub async fn import(
        &self,
        database: &str,
        mut from: impl AsyncRead + Unpin + Send + 'static,
    ) -> Result<Database, ClientError> {
        let (sender, body) = stream();
        let reading = tokio::spawn(async move {
            loop {
                let mut chunk = Vec::with_capacity(CHUNK);
                let read = from.read_buf(&mut chunk).await;
                let (chunk, more) = match read {
                    Ok(0) => return,
                    Ok(_) => (Ok(Bytes::from(chunk)), true),
                    Err(error) => (Err(error), false),
                };
                if sender.send(chunk).await.is_err() || !more {
                    return;
                }
            }
        });
        let response = self.open_with(Method::POST, &database_path(database, "/import"), TAR, body).await;
        // After the answer, whatever it is, nobody wants the rest.
        reading.abort();
        let answer = collect(response?.into_body()).await?;
        let envelope: Data<Database> = serde_json::from_slice(&answer).map_err(ClientError::broken)?;
        Ok(envelope.data)
    }

    /// All connections of a database.
    pub async fn connections(&self, database: &str) -> Result<Vec<Connection>, ClientError> {
        self.all(&database_path(database, "/connections?")).await
    }

    /// Makes a connection. The answer has its URL with the secret, the only time that it is shown.
    pub async fn create_connection(&self, database: &str, name: &str) -> Result<Connection, ClientError> {
        let request = CreateConnection { name: name.to_owned(), database_id: None };
        self.send(Method::POST, &database_path(database, "/connections"), Some(&request)).await
    }

    /// Gives a connection a new secret.
    pub async fn rotate_connection(&self, connection: &ConnectionId) -> Result<Connection, ClientError> {
        self.send(Method::POST, &format!("/v1/connections/{connection}/rotate"), None::<&()>).await
    }

    /// Deletes a connection.
    pub async fn delete_connection(&self, connection: &ConnectionId) -> Result<(), ClientError> {
        self.done(Method::DELETE, &format!("/v1/connections/{connection}")).await
    }

    /// All projects.
    pub async fn projects(&self) -> Result<Vec<Project>, ClientError> {
        self.all("/v1/projects?").await
    }

    /// Makes a project.
    pub async fn create_project(&self, request: &CreateProject) -> Result<Project, ClientError> {
        self.send(Method::POST, "/v1/projects", Some(request)).await
    }

    /// Deletes a project without databases, by id or name.
    pub async fn delete_project(&self, project: &str) -> Result<(), ClientError> {
        self.done(Method::DELETE, &format!("/v1/projects/{}", escape(project))).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(Method::GET, path, None::<&()>).await
    }

    /// All pages of a list; `path` ends within its query.
    async fn all<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ClientError> {
        let mut items = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = format!("{path}&limit={MAX_PAGE}&cursor={}", escape(&cursor));
            let body = self.exchange(Method::GET, &page, None).await?;
            let page: Page<T> = serde_json::from_slice(&body).map_err(ClientError::broken)?;
            items.extend(page.data);
            match page.pagination.next_cursor {
                Some(next) if next != cursor => cursor = next,
                _ => return Ok(items),
            }
        }
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let body = body.map(serde_json::to_vec).transpose().map_err(ClientError::broken)?;
        let answer = self.exchange(method, path, body).await?;
        let envelope: Data<T> = serde_json::from_slice(&answer).map_err(ClientError::broken)?;
        Ok(envelope.data)
    }

    async fn done(&self, method: Method, path: &str) -> Result<(), ClientError> {
        self.exchange(method, path, None).await.map(drop)
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Bytes, ClientError> {
        collect(self.open(method, path, body).await?.into_body()).await
    }

    /// Sends a request; the answer's head is read, and is one of success.
    async fn open(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Response<Incoming>, ClientError> {
        self.open_with(method, path, JSON, Full::new(Bytes::from(body.unwrap_or_default()))).await
    }

    async fn open_with<B>(
        &self,
        method: Method,
        path: &str,
        kind: &'static str,
        body: B,
    ) -> Result<Response<Incoming>, ClientError>
    where
        B: HttpBody<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static,
    {
        let unreachable = |source| ClientError::Unreachable { socket: self.socket.clone(), source };
        let socket = UnixStream::connect(&self.socket).await.map_err(unreachable)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(socket)).await.map_err(ClientError::broken)?;
        // Ends with the request: when the answer was read, or when nobody reads it any more.
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header(header::HOST, "roost");
        let request = request.header(header::CONTENT_TYPE, kind).body(body).map_err(ClientError::broken)?;
        let response = sender.send_request(request).await.map_err(ClientError::broken)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = collect(response.into_body()).await?;
        let body =
            serde_json::from_slice::<ErrorEnvelope>(&text).map_or_else(|_| plain_error(status), |e| e.error);
        Err(ClientError::Refused { status: status.as_u16(), body })
    }
}

/// A step on the ladder that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// To running.
    Wake,
    /// To frozen.
    Freeze,
    /// To stopped.
    Stop,
}

impl Step {
    const fn path(self) -> &'static str {
        match self {
            Self::Wake => "/wake",
            Self::Freeze => "/freeze",
            Self::Stop => "/stop",
        }
    }
}

async fn collect(body: Incoming) -> Result<Bytes, ClientError> {
    Limited::new(body, MAX_ANSWER).collect().await.map(|body| body.to_bytes()).map_err(ClientError::broken)
}

/// An error for an answer that has none of its own, such as one of the HTTP layer itself.
fn plain_error(status: StatusCode) -> ErrorBody {
    ErrorBody { code: "http".to_owned(), message: format!("the node answered {status}"), hint: None }
}

fn database_path(database: &str, rest: &str) -> String {
    format!("/v1/databases/{}{rest}", escape(database))
}

/// Percent-encodes everything but what is unreserved in a URI (RFC 3986, section 2.3).
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_place_in_a_path() {
        assert_eq!(database_path("../../x?y#z", "/wake"), "/v1/databases/..%2F..%2Fx%3Fy%23z/wake");
        assert_eq!(escape("shop--team"), "shop--team");
        assert_eq!(escape("é"), "%C3%A9");
    }

    #[tokio::test]
    async fn a_missing_node_is_told_from_a_node_that_refuses() {
        let folder = tempfile::tempdir().unwrap();
        let error = Client::new(folder.path().join("api.sock")).node().await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
        assert!(!error.is_not_found());
    }
}
