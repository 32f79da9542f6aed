//! What the catalog and the machine know, as the objects of the API.

use std::time::SystemTime;

use roost_catalog::Page;
use roost_catalog::id::{ConnectionId, DatabaseId};
use roost_catalog::model::{self, Name, State};

use crate::context::Context;
use crate::error::ApiError;
use crate::resource::{
    Check, Connection, Database, DirectConnection, Endpoint, Endpoints, Project, Reference, SecretText,
    Source, Status, Verdict, WakeReport, Workspace,
};
use crate::{settings, timestamp};
use roost_warden::protocol::{Finding, Standing};

/// Connections that are shown with their database.
const SHOWN_CONNECTIONS: u32 = 100;

impl Context {
    /// A database for a list, with its connections.
    pub(crate) async fn view_database(&self, database: &model::Database) -> Result<Database, ApiError> {
        let page = Page { cursor: None, limit: SHOWN_CONNECTIONS };
        let connections = self.catalog.connections(&database.id, page).await?;
        let mut view = self.view_bare_database(database);
        let view_connection = |connection| self.view_connection(connection, &database.name, None);
        view.connections = connections.items.iter().map(view_connection).collect();
        view.default_connection_id = view.connections.first().map(|connection| connection.id);
        Ok(view)
    }

    /// A database for a list, without its connections: nothing has to be looked up for it.
    pub(crate) fn view_bare_database(&self, database: &model::Database) -> Database {
        let snapshot = self.machine.snapshot(&database.id);
        Database {
            id: database.id,
            kind: "database".to_owned(),
            url: format!("/v1/databases/{}", database.id),
            name: database.name.clone(),
            status: if snapshot.state == State::Failed { Status::Failure } else { Status::Ready },
            created_at: timestamp::format(database.created_at),
            is_default: false,
            default_connection_id: None,
            connections: Vec::new(),
            project: Reference {
                id: database.project,
                url: format!("/v1/projects/{}", database.project),
                name: database.project_name.clone(),
            },
            region: None,
            source: Source::Empty,
            branch_id: None,
            logical_id: None,
            state: snapshot.state,
            version: database.major.to_string(),
            size_bytes: database.size_bytes,
            last_used_at: database.last_used_at.map(timestamp::format),
            sessions: snapshot.sessions.into(),
            memory_bytes: snapshot.memory_bytes,
            settings: settings::report(&database.settings, self.machine.config()),
            deleted_at: database.deleted_at.map(timestamp::format),
            purge_at: database.deleted_at.map(|at| timestamp::format(later(at, self.config.purge_after))),
            wakes: None,
            failure: snapshot.failure,
        }
    }

    /// A database with all that there is to say about it.
    pub(crate) async fn view_whole_database(&self, database: &model::Database) -> Result<Database, ApiError> {
        let mut view = self.view_database(database).await?;
        let wakes = self.catalog.wake_stats(&database.id).await?;
        view.wakes = Some(wakes.into_iter().map(WakeReport::from).collect());
        Ok(view)
    }

    /// A connection; with its secret only where that was just made.
    pub(crate) fn view_connection(
        &self,
        connection: &model::Connection,
        database: &Name,
        secret: Option<&SecretText>,
    ) -> Connection {
        let id = connection.id;
        let url = secret.map(|secret| self.connection_url(&id, secret));
        let host_and_port = self.host_and_port();
        Connection {
            id,
            type_name: "connection".to_owned(),
            url: format!("/v1/connections/{id}"),
            name: connection.name.clone(),
            created_at: timestamp::format(connection.created_at),
            rotated_at: connection.rotated_at.map(timestamp::format),
            kind: "postgres".to_owned(),
            endpoints: Endpoints {
                direct: Endpoint {
                    host: self.config.host.clone(),
                    port: self.config.port,
                    connection_string: url.clone(),
                },
            },
            direct_connection: secret.map(|secret| DirectConnection {
                host: host_and_port.clone(),
                pass: secret.clone(),
                user: id.to_string(),
            }),
            database: reference_to(&connection.database, database),
            role: connection.role.clone(),
            connection_string: url,
            host: secret.map(|_| host_and_port),
            pass: secret.cloned(),
            user: secret.map(|_| id.to_string()),
        }
    }

    /// The URL that a client connects with.
    fn connection_url(&self, id: &ConnectionId, secret: &SecretText) -> SecretText {
        let owner_database = roost_postgres::OWNER_DATABASE;
        SecretText::new(format!(
            "postgres://{id}:{}@{}/{owner_database}",
            secret.expose(),
            self.host_and_port()
        ))
    }

    fn host_and_port(&self) -> String {
        let (host, port) = (&self.config.host, self.config.port);
        // An IPv6 address is bracketed in a URL (RFC 3986, section 3.2.2).
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

fn reference_to(id: &DatabaseId, name: &Name) -> Reference<DatabaseId> {
    Reference { id: *id, url: format!("/v1/databases/{id}"), name: name.clone() }
}

/// A point in time after another one; the same where that cannot be told.
fn later(at: SystemTime, by: std::time::Duration) -> SystemTime {
    at.checked_add(by).unwrap_or(at)
}

/// A project.
pub(crate) fn project(project: &model::Project) -> Project {
    Project {
        id: project.id,
        kind: "project".to_owned(),
        url: format!("/v1/projects/{}", project.id),
        name: project.name.clone(),
        logical_id: None,
        created_at: timestamp::format(project.created_at),
        default_region: None,
        workspace: Workspace { id: "node".to_owned(), url: "/v1/node".to_owned(), name: "node".to_owned() },
        database: None,
    }
}

impl From<&Finding> for Check {
    fn from(finding: &Finding) -> Self {
        let verdict = match finding.standing {
            Standing::Enforced => Verdict::Good,
            Standing::Partial | Standing::Missing => Verdict::Weak,
        };
        Self { subject: finding.name.clone(), verdict, detail: finding.detail.clone(), hint: None }
    }
}
