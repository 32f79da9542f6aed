//! What is in the catalog's file, read past the catalog.

use std::collections::BTreeMap;

use roost_catalog::id::{ConnectionId, DatabaseId};
use rusqlite::Connection;

use crate::model::Facts;
use crate::world::Loss;

/// Every database with its connections.
pub(crate) fn read(file: &Connection) -> rusqlite::Result<BTreeMap<DatabaseId, Facts>> {
    let mut found = BTreeMap::new();
    let mut databases = file.prepare(
        "SELECT id, name, deleted_at IS NOT NULL, settings, system_identifier, key FROM databases",
    )?;
    let mut logins = file.prepare("SELECT id, verifier FROM connections WHERE database = ?1")?;
    let mut rows = databases.query([])?;
    while let Some(row) = rows.next()? {
        let settings: Option<String> = row.get(3)?;
        let logins = logins
            .query_map([row.get::<_, i64>(5)?], |row| Ok((row.get::<_, ConnectionId>(0)?, row.get(1)?)))?;
        let facts = Facts {
            name: row.get(1)?,
            deleted: row.get(2)?,
            settings: settings.map_or_else(Default::default, |text| serde_json::from_str(&text).unwrap()),
            system_identifier: row.get::<_, Option<i64>>(4)?.map(i64::cast_unsigned),
            logins: logins.collect::<Result<_, _>>()?,
        };
        found.insert(row.get(0)?, facts);
    }
    Ok(found)
}

/// An error when the file is damaged, or its parts do not fit together.
pub(crate) fn require_sound(file: &Connection) -> Result<(), Loss> {
    let one = |sql: &str| {
        file.query_row(sql, [], |row| row.get::<_, String>(0)).map_err(|error| format!("{sql}: {error}"))
    };
    let answer = one("PRAGMA integrity_check")?;
    if answer != "ok" {
        return Err(format!("the file is damaged: {answer}"));
    }
    let strays = one("SELECT count(*) || '' FROM pragma_foreign_key_check")?;
    if strays != "0" {
        return Err(format!("{strays} rows belong to nothing"));
    }
    let counted = one("SELECT concat_ws(' ', projects, databases, deleted, connections) FROM tally")?;
    let there = one("SELECT concat_ws(' ', (SELECT count(*) FROM projects), count(*) - count(deleted_at),
                            count(deleted_at), (SELECT count(*) FROM connections)) FROM databases")?;
    if counted == there { Ok(()) } else { Err(format!("counted {counted} rows, and {there} are there")) }
}
