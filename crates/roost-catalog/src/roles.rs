//! Roles that a tenant made with SQL, as they were at the database's last stop: what lets such a role wake a sleeping
//! database. Its source is a tenant's `pg_authid`, so everything is bounded.

use rusqlite::{OptionalExtension, params};

use crate::MAX_ROLES_PER_DATABASE;
use crate::catalog::Catalog;
use crate::column::Instant;
use crate::connections::{MAX_ROLE, MAX_VERIFIER};
use crate::databases::Place;
use crate::error::CatalogError;
use crate::id::DatabaseId;
use crate::model::RoleLogin;

impl Catalog {
    /// Replaces what is known of a database's roles, and gives how many were kept: the first
    /// [`MAX_ROLES_PER_DATABASE`] whose name and verifier are no longer than Postgres makes them. A role that is not
    /// kept can log in while its database is awake, but not wake it.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`]; when the file cannot be written or the writer is overloaded.
    pub async fn put_roles(&self, id: &DatabaseId, roles: Vec<RoleLogin>) -> Result<usize, CatalogError> {
        let id = *id;
        self.change(move |connection, _| {
            let place = Place::of(connection, &id)?;
            connection.prepare_cached("DELETE FROM roles WHERE database = ?1")?.execute([place.key])?;
            let mut statement = connection.prepare_cached(
                "INSERT INTO roles (database, role, verifier, can_login, valid_until) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (database, role) DO NOTHING",
            )?;
            let mut kept = 0;
            for role in roles.iter().filter(|role| fits(role)).take(MAX_ROLES_PER_DATABASE) {
                let valid_until = role.valid_until.map(Instant);
                kept += statement.execute(params![
                    place.key,
                    role.role,
                    role.verifier,
                    role.can_login,
                    valid_until
                ])?;
            }
            Ok(kept)
        })
        .await
    }

    /// A role of a live database as it was last read.
    ///
    /// # Errors
    /// When the file cannot be read or the readers are overloaded.
    pub async fn role(&self, id: &DatabaseId, role: &str) -> Result<Option<RoleLogin>, CatalogError> {
        let (id, role) = (*id, role.to_owned());
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT r.role, r.verifier, r.can_login, r.valid_until
                 FROM databases d CROSS JOIN roles r ON r.database = d.key
                 WHERE d.id = ?1 AND d.deleted_at IS NULL AND r.role = ?2",
            )?;
            let login = statement.query_row(params![id, role], |row| {
                Ok(RoleLogin {
                    role: row.get(0)?,
                    verifier: row.get(1)?,
                    can_login: row.get(2)?,
                    valid_until: row.get::<_, Option<Instant>>(3)?.map(|time| time.0),
                })
            });
            Ok(login.optional()?)
        })
        .await
    }
}

fn fits(role: &RoleLogin) -> bool {
    role.role.len() <= MAX_ROLE
        && role.verifier.as_ref().is_none_or(|verifier| verifier.len() <= MAX_VERIFIER)
}
