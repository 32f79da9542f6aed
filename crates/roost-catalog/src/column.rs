//! How values look in columns: identifiers without their prefix, times as microseconds since the Unix epoch, unsigned
//! numbers as the same 64 bits or held at the largest signed one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::ToSql;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};

use crate::id::{ConnectionId, DatabaseId, ProjectId};
use crate::model::{Name, State};

macro_rules! text_column {
    ($name:ident, $write:expr, $read:expr) => {
        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(ToSqlOutput::Borrowed(ValueRef::Text($write(self).as_bytes())))
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                $read(value.as_str()?).map_err(|error| FromSqlError::Other(Box::new(error)))
            }
        }
    };
}

text_column!(DatabaseId, DatabaseId::suffix, DatabaseId::from_suffix);
text_column!(ProjectId, ProjectId::suffix, ProjectId::from_suffix);
text_column!(ConnectionId, ConnectionId::suffix, ConnectionId::from_suffix);
text_column!(Name, Name::as_str, str::parse::<Name>);
text_column!(State, |state: &State| state.as_str(), str::parse::<State>);

/// A point in time, to the microsecond. What lies outside of 64 bits is held at their end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instant(pub(crate) SystemTime);

impl ToSql for Instant {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let micros = match self.0.duration_since(UNIX_EPOCH) {
            Ok(after) => micros(after),
            Err(before) => -micros(before.duration()),
        };
        Ok(micros.into())
    }
}

impl FromSql for Instant {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let micros = value.as_i64()?;
        let distance = Duration::from_micros(micros.unsigned_abs());
        let time =
            if micros < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
        time.map(Self).ok_or(FromSqlError::OutOfRange(micros))
    }
}

/// A duration's whole microseconds, held at the largest that fits.
pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// A duration from a column; a negative one reads as zero.
pub(crate) fn duration(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// A counter for a column, held at the largest that fits.
pub(crate) fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A counter from a column; a negative one reads as zero.
pub(crate) fn uncount(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::Connection;

    use super::*;

    fn through_sqlite(time: SystemTime) -> SystemTime {
        let connection = Connection::open_in_memory().unwrap();
        connection.query_row("SELECT ?1", [Instant(time)], |row| row.get::<_, Instant>(0)).unwrap().0
    }

    proptest! {
        #[test]
        fn a_time_keeps_its_microseconds(micros in -(1_i64 << 60)..(1_i64 << 60)) {
            let distance = Duration::from_micros(micros.unsigned_abs());
            let time = if micros < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance };
            prop_assert_eq!(through_sqlite(time), time);
        }
    }

    #[test]
    fn a_time_after_the_end_of_the_column_is_held_at_its_end() {
        // The end of Postgres' timestamps lies a little after 2^63 microseconds since 1970.
        let end = UNIX_EPOCH + Duration::from_micros(9_224_318_016_000_000_000);
        assert_eq!(through_sqlite(end), UNIX_EPOCH + Duration::from_micros(i64::MAX.unsigned_abs()));
    }

    #[test]
    fn an_identifier_is_stored_without_its_prefix() {
        let connection = Connection::open_in_memory().unwrap();
        let id = DatabaseId::generate();
        let read = |sql| connection.query_row(sql, [id], |row| row.get::<_, String>(0)).unwrap();
        assert_eq!(read("SELECT ?1"), id.suffix());
        let back: DatabaseId = connection.query_row("SELECT ?1", [id], |row| row.get(0)).unwrap();
        assert_eq!(back, id);
    }

    #[test]
    fn a_column_that_holds_no_identifier_is_reported_as_damage() {
        let connection = Connection::open_in_memory().unwrap();
        let error = connection.query_row("SELECT 'x'", [], |row| row.get::<_, DatabaseId>(0)).unwrap_err();
        assert!(matches!(crate::CatalogError::from(error), crate::CatalogError::Corrupt { .. }));
    }
}
