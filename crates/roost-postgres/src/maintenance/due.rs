//! Which tables of a database are due, by autovacuum's formulas.

use std::time::Duration;

use crate::control::SessionError;
use crate::session::Session;

/// How many tables of one database are taken on in one run; the others are due again at the next.
const MAX_TABLES: usize = 1000;

/// A table that something is due for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) analyze: bool,
    pub(super) vacuum: bool,
}

impl Table {
    pub(super) fn quoted_name(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }
}

/// An identifier in double quotes: exact, whatever is in it.
fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// The tables that something is due for, most urgent first.
pub(super) async fn tables(session: &Session, within: Duration) -> Result<Vec<Table>, SessionError> {
    let rows = match session.query(&sql(), &[&true], within).await {
        // Somebody holds a lock on a table, and asking for its size would wait for it: then without sizes.
        Err(error) if error.code() == Some("55P03") => session.query(&sql(), &[&false], within).await?,
        other => other?,
    };
    rows.iter()
        .map(|row| {
            Ok(Table {
                schema: row.try_get(0)?,
                name: row.try_get(1)?,
                analyze: row.try_get(2)?,
                vacuum: row.try_get(3)?,
            })
        })
        .collect()
}

/// `$1` says whether to look at the sizes of files.
///
/// Whether a table was ever analysed is asked of the cumulative statistics, which `CREATE INDEX` leaves alone (it sets
/// `reltuples`). They are forgotten in a crash, and everything is then analysed once more. For catalogs, which the template
/// brings analysed, and for partitioned tables, `reltuples` tells.
///
/// Ordinary tables and materialised views; partitioned tables too, which autovacuum never analyses, but only once: nothing
/// counts changes to them. Temporary tables are their session's, foreign ones are elsewhere, shared catalogs are not the
/// owner's to vacuum. Catalogs of the database come last.
fn sql() -> String {
    // A storage parameter of the table, else the setting of the server.
    let number = |option: &str| {
        format!(
            "COALESCE((SELECT o.option_value FROM pg_catalog.pg_options_to_table(c.reloptions) o \
                        WHERE o.option_name = '{option}'), pg_catalog.current_setting('{option}'))::pg_catalog.float8"
        )
    };
    format!(
        "WITH sized AS MATERIALIZED ( \
            SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpages, c.reltuples, \
                   GREATEST(c.reltuples, 0) AS rows, \
                   pg_catalog.age(c.relfrozenxid) AS age, \
                   COALESCE(CASE WHEN $1::pg_catalog.bool THEN pg_catalog.pg_relation_size(c.oid) END \
                       / pg_catalog.current_setting('block_size')::pg_catalog.int8, c.relpages) AS pages, \
                   COALESCE(pg_catalog.pg_stat_get_last_analyze_time(c.oid), \
                       pg_catalog.pg_stat_get_last_autoanalyze_time(c.oid)) AS analyzed, \
                   COALESCE(pg_catalog.pg_stat_get_last_vacuum_time(c.oid), \
                       pg_catalog.pg_stat_get_last_autovacuum_time(c.oid)) AS vacuumed, \
                   pg_catalog.pg_stat_get_mod_since_analyze(c.oid) AS modified, \
                   pg_catalog.pg_stat_get_dead_tuples(c.oid) AS dead, \
                   pg_catalog.pg_stat_get_ins_since_vacuum(c.oid) AS inserted, \
                   {analyze_threshold} AS analyze_threshold, {analyze_scale} AS analyze_scale, \
                   {vacuum_threshold} AS vacuum_threshold, {vacuum_scale} AS vacuum_scale, \
                   {insert_threshold} AS insert_threshold, {insert_scale} AS insert_scale, \
                   {freeze_max_age} AS freeze_max_age, \
                   COALESCE((SELECT o.option_value::pg_catalog.bool \
                               FROM pg_catalog.pg_options_to_table(c.reloptions) o \
                              WHERE o.option_name = 'autovacuum_enabled'), true) AS enabled \
              FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'm', 'p') AND c.relpersistence <> 't' AND NOT c.relisshared \
         ), judged AS ( \
            SELECT s.*, \
                   CASE WHEN s.relkind = 'p' THEN s.reltuples < 0 \
                        WHEN s.nspname = 'pg_catalog' THEN s.reltuples < 0 AND s.pages > 0 \
                        ELSE s.analyzed IS NULL AND s.pages > 0 END AS never, \
                   s.pages > s.relpages + GREATEST(10, s.relpages * s.analyze_scale) AS grown \
              FROM sized s \
         ), due AS ( \
            SELECT j.*, \
                   j.enabled AND (j.never OR j.grown \
                       OR j.modified > j.analyze_threshold + j.analyze_scale * j.rows) AS analyze_due, \
                   j.relkind <> 'p' AND (j.age > j.freeze_max_age OR (j.enabled AND ( \
                       (j.vacuumed IS NULL AND j.pages > 128 AND j.nspname <> 'pg_catalog') \
                       OR j.dead > j.vacuum_threshold + j.vacuum_scale * j.rows \
                       OR (j.insert_threshold >= 0 \
                           AND j.inserted > j.insert_threshold + j.insert_scale * j.rows)))) AS vacuum_due \
              FROM judged j \
         ) \
         SELECT d.nspname::pg_catalog.text, d.relname::pg_catalog.text, d.analyze_due, d.vacuum_due \
           FROM due d WHERE d.analyze_due OR d.vacuum_due \
          ORDER BY d.nspname = 'pg_catalog', d.age > d.freeze_max_age DESC NULLS LAST, d.never DESC, \
                   d.modified / (d.rows + 1) DESC, d.oid \
          LIMIT {MAX_TABLES}",
        analyze_threshold = number("autovacuum_analyze_threshold"),
        analyze_scale = number("autovacuum_analyze_scale_factor"),
        vacuum_threshold = number("autovacuum_vacuum_threshold"),
        vacuum_scale = number("autovacuum_vacuum_scale_factor"),
        insert_threshold = number("autovacuum_vacuum_insert_threshold"),
        insert_scale = number("autovacuum_vacuum_insert_scale_factor"),
        freeze_max_age = number("autovacuum_freeze_max_age"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_exactly() {
        let table =
            Table { schema: "My Schema".into(), name: "a\"; DROP".into(), analyze: true, vacuum: false };
        assert_eq!(table.quoted_name(), "\"My Schema\".\"a\"\"; DROP\"");
    }
}
