//! What every request is answered from: the catalog, the machine, and the node's constants.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus_client::registry::Registry;
use roost_catalog::id::{DatabaseId, ProjectId};
use roost_catalog::model::{Database, Name, Project};
use roost_catalog::{Catalog, Moment, Subject};
use roost_postgres::volume::Layout;

use crate::error::ApiError;
use crate::machine::Machine;
use crate::resource::{Check, Verdict};

/// The node's constants, as the API tells them.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// Roost's version.
    pub version: &'static str,
    /// Host of connection URLs.
    pub host: String,
    /// Port of connection URLs.
    pub port: u16,
    /// Where Postgres clients connect.
    pub listen: Vec<SocketAddr>,
    /// Where /health, /ready and /metrics are.
    pub http: Option<SocketAddr>,
    /// The directory of all data.
    pub data: PathBuf,
    /// The Postgres version of a new database, where the operator chose one; otherwise the newest of this machine.
    pub default_major: Option<u16>,
    /// How long a deleted database can be undeleted.
    pub purge_after: Duration,
    /// How long a wake by hand may take.
    pub wake_timeout: Duration,
    /// How long a stop by hand may take.
    pub stop_timeout: Duration,
    /// What `doctor` tells besides the warden's findings.
    pub checks: Vec<Check>,
}

/// What every request is answered from.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) config: ApiConfig,
    pub(crate) catalog: Catalog,
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) started_at: Moment,
    ready: AtomicBool,
}

impl Context {
    pub(crate) fn new(
        config: ApiConfig,
        catalog: Catalog,
        machine: Arc<dyn Machine>,
        registry: Arc<Registry>,
    ) -> Self {
        Self { config, catalog, machine, registry, started_at: Moment::now(), ready: AtomicBool::new(false) }
    }

    /// Whether clients are accepted.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// A live database by id, `NAME` (of the default project) or `NAME--PROJECT`.
    pub(crate) async fn database(&self, reference: &str) -> Result<Database, ApiError> {
        let missing = || ApiError::NotFound { subject: Subject::Database, reference: reference.to_owned() };
        let database = match DatabaseReference::parse(reference).ok_or_else(missing)? {
            DatabaseReference::Id(id) => self.catalog.database(&id).await?,
            DatabaseReference::Name { project, name } => {
                self.catalog.database_by_name(&project, &name).await?
            }
        };
        database.filter(|database| database.deleted_at.is_none()).ok_or_else(missing)
    }

    /// A database by id, deleted or not; or a live one by name.
    pub(crate) async fn any_database(&self, reference: &str) -> Result<Database, ApiError> {
        if let Some(DatabaseReference::Id(id)) = DatabaseReference::parse(reference)
            && let Some(database) = self.catalog.database(&id).await?
        {
            return Ok(database);
        }
        self.database(reference).await
    }

    /// A project by id or name.
    pub(crate) async fn project(&self, reference: &str) -> Result<Project, ApiError> {
        let missing = || ApiError::NotFound { subject: Subject::Project, reference: reference.to_owned() };
        let project = match (reference.parse::<ProjectId>(), reference.parse::<Name>()) {
            (Ok(id), _) => self.catalog.project(&id).await?,
            (Err(_), Ok(name)) => self.catalog.project_by_name(&name).await?,
            (Err(_), Err(_)) => None,
        };
        project.ok_or_else(missing)
    }

    /// The name of the project that something new goes to.
    pub(crate) async fn project_name(&self, reference: Option<&str>) -> Result<Name, ApiError> {
        match reference {
            None => Ok(Name::default_project()),
            // It is made with its first database.
            Some(reference) if reference == Name::default_project().as_str() => Ok(Name::default_project()),
            Some(reference) => self.project(reference).await.map(|project| project.name),
        }
    }

    /// The major version that a request asks for, or the default one. It is installed here.
    pub(crate) fn major(&self, version: Option<&str>) -> Result<u16, ApiError> {
        let versions = &self.machine.capabilities().versions;
        let installed = || {
            let majors: Vec<String> = versions.iter().map(|version| version.major.to_string()).collect();
            if majors.is_empty() { "none".to_owned() } else { majors.join(", ") }
        };
        let wanted = match version {
            Some(text) => match text.parse::<u16>() {
                Ok(major) => major,
                Err(_) => {
                    let problem = format!("version `{text}` is not a major version of Postgres such as 17");
                    return Err(ApiError::Invalid(problem));
                }
            },
            None => match self.default_major() {
                Some(major) => major,
                None => return Err(ApiError::Invalid("no Postgres is installed on this machine".to_owned())),
            },
        };
        if versions.iter().any(|version| version.major == wanted) {
            Ok(wanted)
        } else {
            Err(ApiError::Invalid(format!(
                "Postgres {wanted} is not installed here; there is: {}",
                installed()
            )))
        }
    }

    /// The major version of a new database.
    pub(crate) fn default_major(&self) -> Option<u16> {
        let newest = || self.machine.capabilities().versions.iter().map(|version| version.major).max();
        self.config.default_major.or_else(newest)
    }

    /// A database's log file.
    pub(crate) fn log_path(&self, id: &DatabaseId) -> Option<PathBuf> {
        Some(Layout::new(&self.config.data).log(&id.to_string().parse().ok()?))
    }

    /// Everything that `doctor` tells.
    pub(crate) fn checks(&self) -> Vec<Check> {
        let capabilities = self.machine.capabilities();
        let mut checks: Vec<Check> = capabilities
            .versions
            .iter()
            .map(|version| Check {
                subject: "postgres".to_owned(),
                verdict: Verdict::Good,
                detail: format!("Postgres {} in {}", version.version, version.bin.display()),
                hint: None,
            })
            .collect();
        if checks.is_empty() {
            checks.push(Check {
                subject: "postgres".to_owned(),
                verdict: Verdict::Bad,
                detail: "no Postgres was found on this machine".to_owned(),
                hint: Some(
                    "Install one (`apt install postgresql`), or name it in postgres.installations."
                        .to_owned(),
                ),
            });
        }
        checks.extend(capabilities.findings.iter().map(Check::from));
        checks.extend(self.config.checks.iter().cloned());
        checks
    }
}

/// How a request names a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DatabaseReference {
    /// By its id.
    Id(DatabaseId),
    /// By its name in a project.
    Name {
        /// The project's name.
        project: Name,
        /// The database's name.
        name: Name,
    },
}

impl DatabaseReference {
    /// `None` for a text that can name no database.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if let Ok(id) = text.parse() {
            return Some(Self::Id(id));
        }
        let (name, project) = match text.split_once("--") {
            Some((name, project)) => (name, project.parse().ok()?),
            None => (text, Name::default_project()),
        };
        Some(Self::Name { project, name: name.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_named_by_id_by_name_or_by_name_and_project() {
        let id = DatabaseId::generate();
        let named = |project: &str, name: &str| {
            Some(DatabaseReference::Name { project: project.parse().unwrap(), name: name.parse().unwrap() })
        };
        assert_eq!(DatabaseReference::parse(&id.to_string()), Some(DatabaseReference::Id(id)));
        assert_eq!(DatabaseReference::parse("shop"), named("default", "shop"));
        assert_eq!(DatabaseReference::parse("shop--team-a"), named("team-a", "shop"));
    }

    #[test]
    fn what_can_name_no_database_is_refused() {
        for text in ["", "--", "a--", "--b", "a--b--c", "Shop", "postgres", "db_short", "../x"] {
            assert_eq!(DatabaseReference::parse(text), None, "{text}");
        }
    }
}
