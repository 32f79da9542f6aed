//! The file's format, as a numbered list of scripts. The file knows how many it has seen (`PRAGMA user_version`);
//! opening it runs the rest, each in a transaction of its own. A script that was released is never changed.

use rusqlite::{Connection, TransactionBehavior};

use crate::error::CatalogError;

/// Marks an SQLite file as a catalog of Roost (`PRAGMA application_id`, "Rost").
const APPLICATION_ID: i32 = 0x526f_7374;

/// Script number n brings a file from format n - 1 to format n; the first one is number 1.
pub(crate) const MIGRATIONS: [&str; 5] = [
    include_str!("migrations/0001_registry.sql"),
    include_str!("migrations/0002_usage_and_history.sql"),
    include_str!("migrations/0003_xid_age.sql"),
    include_str!("migrations/0004_live_key.sql"),
    include_str!("migrations/0005_retention.sql"),
];

/// Brings the file to the newest format.
///
/// # Errors
/// [`CatalogError::TooNew`] when it has a newer format than `migrations` reach, [`CatalogError::Corrupt`] when it is
/// no catalog.
pub(crate) fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<(), CatalogError> {
    let supported = u32::try_from(migrations.len()).unwrap_or(u32::MAX);
    loop {
        // The format is read inside the write transaction: what it says holds until the commit.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found = format(&transaction)?;
        if found > supported {
            return Err(CatalogError::TooNew { found, supported });
        }
        let Some(script) = usize::try_from(found).ok().and_then(|index| migrations.get(index)) else {
            return Ok(());
        };
        transaction.execute_batch(script)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", found + 1)?;
        transaction.commit()?;
        tracing::info!(format = found + 1, "catalog migrated");
    }
}

/// The format of the file: 0 for an empty one.
fn format(connection: &Connection) -> Result<u32, CatalogError> {
    let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let format: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let filled: bool =
        connection.query_row("SELECT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))?;
    if application == APPLICATION_ID && format > 0 && filled || application == 0 && format == 0 && !filled {
        Ok(format)
    } else {
        Err(CatalogError::Corrupt { detail: "an SQLite file, but not a catalog of Roost".to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format_1() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, &MIGRATIONS[..1]).unwrap();
        connection
            .execute_batch(
                "INSERT INTO projects VALUES (1, 'aaaaaaaaaaaaaaaaaaaa', 'default', 0);
                 INSERT INTO databases (key, id, project, name, major, created_at)
                     VALUES (1, 'bbbbbbbbbbbbbbbbbbbb', 1, 'shop', 17, 0);",
            )
            .unwrap();
        connection
    }

    #[test]
    fn a_file_of_format_1_migrates_and_keeps_its_rows() {
        let mut connection = format_1();
        migrate(&mut connection, &MIGRATIONS).unwrap();
        assert_eq!(format(&connection).unwrap(), 5);
        connection.execute("INSERT INTO usage VALUES (1, 0, 0, 0, 0, 0, NULL, NULL, NULL)", []).unwrap();
        let name: String = connection.query_row("SELECT name FROM databases", [], |row| row.get(0)).unwrap();
        assert_eq!(name, "shop");
    }

    #[test]
    fn migrating_twice_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, &MIGRATIONS).unwrap();
        migrate(&mut connection, &MIGRATIONS).unwrap();
    }

    #[test]
    fn a_newer_file_is_refused_with_both_numbers() {
        let mut connection = format_1();
        connection.pragma_update(None, "user_version", 99).unwrap();
        let error = migrate(&mut connection, &MIGRATIONS).unwrap_err();
        assert!(matches!(error, CatalogError::TooNew { found: 99, supported: 5 }), "{error}");
        assert!(error.to_string().contains("format 99"));
    }

    #[test]
    fn a_script_that_fails_leaves_the_format_before_it() {
        let mut connection = format_1();
        let broken = [MIGRATIONS[0], "CREATE TABLE half (a); SELECT no_such_function()"];
        assert!(migrate(&mut connection, &broken).is_err());
        assert_eq!(format(&connection).unwrap(), 1);
        migrate(&mut connection, &MIGRATIONS).unwrap();
    }

    #[test]
    fn another_programs_file_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE theirs (a)").unwrap();
        assert!(matches!(migrate(&mut connection, &MIGRATIONS), Err(CatalogError::Corrupt { .. })));
    }
}
