//! Which database a client means, and as whom it wants in. Looks in the catalog only; nothing here wakes anything.
//!
//! There are up to five keys. In order of precedence: a connection id as user name; the part of the user name after its
//! last dot, if a database has that name; `options=endpoint=NAME`; the first label of the TLS server name, if the name
//! has a dot and a database has that label as its name; and, only when none of these is there, the startup parameter
//! `database`.
//!
//! The client authenticates for the first key that is there. That another key means another database is told only after
//! that, and a key that means nothing leads to a failed login: a stranger learns no names here.

use std::str::FromStr;
use std::sync::Arc;

use roost_catalog::id::{ConnectionId, DatabaseId};
use roost_catalog::model::{Login, Name};
use roost_catalog::{Catalog, CatalogError};

use crate::error::Key;

/// The Postgres database that a session gets when it names none.
const DEFAULT_POSTGRES_DATABASE: &str = "postgres";

/// What a client sent that may say which database is meant.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Keys<'a> {
    pub(crate) user: &'a str,
    pub(crate) database: Option<&'a str>,
    pub(crate) endpoint: Option<&'a str>,
    pub(crate) server_name: Option<&'a str>,
}

/// As whom a client wants in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Account {
    /// With a connection's secret.
    Connection(Arc<Login>),
    /// As a role that was made with SQL.
    Role(String),
}

/// Where a client goes once it has authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) database: DatabaseId,
    pub(crate) account: Account,
    /// The name of the Postgres database in it.
    pub(crate) postgres_database: String,
    /// Two keys that mean different databases: an error, once the client has authenticated.
    pub(crate) disagreement: Option<(Key, Key)>,
}

/// A database as a client writes it: its name, `NAME--PROJECT`, or its id.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Selector {
    Id(DatabaseId),
    Named { project: Name, name: Name },
}

impl FromStr for Selector {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        let (name, project) = match text.split_once("--") {
            Some((name, project)) => (name, project.parse().map_err(|_| ())?),
            None => (text, Name::default_project()),
        };
        Ok(Self::Named { project, name: name.parse().map_err(|_| ())? })
    }
}

async fn find(catalog: &Catalog, text: &str) -> Result<Option<DatabaseId>, CatalogError> {
    match text.parse() {
        Ok(Selector::Id(id)) => Ok(Some(id)),
        Ok(Selector::Named { project, name }) => catalog.route(&project, &name).await,
        Err(()) => Ok(None),
    }
}

/// Finds the database that a client means. `None` is a client that can only fail to authenticate.
///
/// # Errors
///
/// When the catalog fails.
pub(crate) async fn resolve(catalog: &Catalog, keys: Keys<'_>) -> Result<Option<Route>, CatalogError> {
    let mut account = Account::Role(keys.user.to_owned());
    let mut found: Vec<(Key, Option<DatabaseId>)> = Vec::with_capacity(4);

    if let Ok(id) = keys.user.parse::<ConnectionId>() {
        let Some(login) = catalog.login(&id).await? else { return Ok(None) };
        found.push((Key::Connection, Some(login.database)));
        account = Account::Connection(login);
    } else if let Some((role, suffix)) = keys.user.rsplit_once('.')
        && !role.is_empty()
        && let Some(database) = find(catalog, suffix).await?
    {
        found.push((Key::UserSuffix, Some(database)));
        account = Account::Role(role.to_owned());
    }
    if let Some(endpoint) = keys.endpoint {
        found.push((Key::Endpoint, find(catalog, endpoint).await?));
    }
    if let Some(label) = keys.server_name.and_then(first_label)
        && let Some(database) = find(catalog, label).await?
    {
        found.push((Key::ServerName, Some(database)));
    }
    let named = keys.database.filter(|name| !name.is_empty() && *name != keys.user);
    let mut postgres_database = named.unwrap_or(DEFAULT_POSTGRES_DATABASE);
    if found.is_empty()
        && let Some(name) = keys.database
    {
        found.push((Key::Database, find(catalog, name).await?));
        postgres_database = DEFAULT_POSTGRES_DATABASE;
    }

    let Some((first, Some(database))) = found.first().copied() else { return Ok(None) };
    let disagreement =
        found.iter().skip(1).find(|(_, other)| *other != Some(database)).map(|(second, _)| (first, *second));
    Ok(Some(Route { database, account, postgres_database: postgres_database.to_owned(), disagreement }))
}

/// The first label of a host name that has more than one.
fn first_label(host: &str) -> Option<&str> {
    host.split_once('.').map(|(label, _)| label)
}

#[cfg(test)]
mod tests;
