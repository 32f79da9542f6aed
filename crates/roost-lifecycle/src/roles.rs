//! Logins of roles that a tenant made with SQL: read live from a running database, from the kept copy otherwise.

use std::time::Duration;

use roost_catalog::CatalogError;
use roost_catalog::id::DatabaseId;
use roost_catalog::model::RoleLogin;
use roost_postgres::control::{Control, SessionError};
use tokio::time::Instant;

use crate::Lifecycle;

/// Where a role's verifier was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleSource {
    /// From the running database, just now.
    Live,
    /// From the copy kept at the last step down; it must be checked again once the database runs.
    Kept,
}

/// Why a role could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RoleUnavailable {
    /// The running database did not answer.
    #[error("the database did not tell its roles: {0}")]
    Control(#[from] SessionError),
    /// The catalog failed.
    #[error("the catalog failed: {0}")]
    Catalog(#[from] CatalogError),
    /// It took too long.
    #[error("the database did not tell its roles within {0:?}")]
    Deadline(Duration),
}

/// How long a running database has for telling a role.
const DEADLINE: Duration = Duration::from_secs(5);

impl Lifecycle {
    /// A role's verifier and validity. Never wakes the database.
    ///
    /// # Errors
    ///
    /// When neither the running database nor the catalog answers.
    pub async fn role_login(
        &self,
        id: &DatabaseId,
        role: &str,
    ) -> Result<(Option<RoleLogin>, RoleSource), RoleUnavailable> {
        let entry = self.shared.entries.pin().get(id).cloned();
        if let Some(entry) = entry
            && entry.gate.enter()
        {
            // The lease keeps the database from being frozen under the query.
            let answer = match entry.run() {
                Some(run) => tokio::time::timeout(DEADLINE, ask(&run.socket_dir, role)).await,
                None => Ok(Ok(None)),
            };
            // Whoever asks has proved nothing yet, and must not keep a database awake by asking.
            entry.gate.leave_unnoticed();
            return match answer {
                Ok(login) => Ok((login?, RoleSource::Live)),
                Err(_) => Err(RoleUnavailable::Deadline(DEADLINE)),
            };
        }
        Ok((self.shared.catalog.role(id, role).await?, RoleSource::Kept))
    }
}

async fn ask(socket_dir: &std::path::Path, role: &str) -> Result<Option<RoleLogin>, SessionError> {
    let control = Control::connect(socket_dir, Instant::now() + DEADLINE).await?;
    Ok(control.role(role).await?.map(|row| RoleLogin {
        role: row.name,
        verifier: row.verifier,
        can_login: row.can_login,
        valid_until: row.valid_until,
    }))
}
