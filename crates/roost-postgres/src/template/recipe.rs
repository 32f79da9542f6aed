//! What is done to a fresh cluster before it becomes a template: `initdb`'s arguments and SQL for single-user Postgres.
//!
//! The recipe is text that depends on nothing but the major version, so that its hash can be part of a template's name:
//! any change here makes new templates, and databases made from old ones keep theirs.

/// SQL for one database of the new cluster, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The database to run it in.
    pub database: &'static str,
    /// The statements, without semicolons.
    pub statements: Vec<&'static str>,
}

/// A WAL segment's size: small, because a volume over a template holds a segment or two of its own from its first start,
/// and large enough that a segment is worth archiving.
pub const WAL_SEGMENT_MIB: u32 = 4;

/// The roles whose members read, write and run anything as the server's operating system user.
const SERVER_ROLES_BECOME_SUPERUSERS: &str = "UPDATE pg_catalog.pg_authid SET rolsuper = true \
     WHERE rolname IN ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program')";

/// `initdb`'s arguments, without the data directory.
///
/// Authentication in the cluster's own `pg_hba.conf` is `reject`: Roost starts Postgres with a file of its own, and
/// somebody who starts a copy by hand without one lets nobody in by accident.
pub fn initdb_arguments(major: u16) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--username=_roost",
        "--auth=reject",
        "--encoding=UTF8",
        "--lc-messages=C",
        "--data-checksums",
        // The whole tree is synced when it is complete.
        "--no-sync",
        "--no-instructions",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(format!("--wal-segsize={WAL_SEGMENT_MIB}"));
    // The order of C.UTF-8 is that of code points, and is the same wherever it comes from; the builtin one cannot change
    // with the machine's libraries.
    arguments.push("--locale=C.UTF-8".to_owned());
    if major >= 17 {
        arguments.push("--locale-provider=builtin".to_owned());
    } else if major >= 15 {
        arguments.push("--locale-provider=libc".to_owned());
    }
    arguments
}

/// The SQL of the recipe.
pub fn steps(major: u16) -> Vec<Step> {
    let mut first = vec![
        "CREATE ROLE postgres NOSUPERUSER CREATEDB CREATEROLE INHERIT LOGIN NOREPLICATION NOBYPASSRLS",
        "ALTER DATABASE postgres OWNER TO postgres",
        "CREATE DATABASE _roost OWNER _roost",
        "REVOKE ALL ON DATABASE _roost FROM PUBLIC",
        // CREATE DATABASE copies template1 without connecting to it, so this takes nothing from the tenant. It keeps
        // clients out of a database that every later one is a copy of, and that only a superuser may change.
        "REVOKE ALL ON DATABASE template1 FROM PUBLIC",
        // What the administrator of a hosted Postgres expects to see and do, for itself and to hand on. None of these
        // leads out of the database: the three pg_*_server_* roles do, and are given to nobody.
        "GRANT pg_monitor, pg_signal_backend TO postgres WITH ADMIN OPTION",
    ];
    if major >= 15 {
        first.push("GRANT pg_checkpoint TO postgres WITH ADMIN OPTION");
    }
    if major >= 16 {
        first.push("GRANT pg_use_reserved_connections TO postgres WITH ADMIN OPTION");
        // To hand on only: a member would read every role's verifier in pg_authid without meaning to. Before 16,
        // CREATEROLE is enough to grant them.
        first.push(
            "GRANT pg_read_all_data, pg_write_all_data TO postgres WITH ADMIN TRUE, INHERIT FALSE, SET FALSE",
        );
    } else {
        // Before 16, CREATEROLE may grant every role that is not a superuser, to itself too, and from
        // pg_execute_server_program it is one `COPY ... FROM PROGRAM` to superuser. Roles marked as superusers can be
        // granted by superusers only; having no login and no members, the marked ones can do nothing with it.
        first.push(SERVER_ROLES_BECOME_SUPERUSERS);
    }
    if major >= 17 {
        first.push("GRANT pg_maintain TO postgres WITH ADMIN OPTION");
    }
    if major >= 18 {
        first.push("GRANT pg_signal_autovacuum_worker TO postgres WITH ADMIN OPTION");
    }

    let mut steps = vec![
        Step { database: "postgres", statements: first },
        Step { database: "_roost", statements: vec!["REVOKE ALL ON SCHEMA public FROM PUBLIC"] },
    ];
    if major == 14 {
        // The rules of 15 and later: the public schema belongs to whoever owns the database, also in databases that the
        // tenant makes from template1, and others create in it only when they are told they may.
        for database in ["template1", "postgres"] {
            let statements = vec![
                "ALTER SCHEMA public OWNER TO pg_database_owner",
                "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
            ];
            steps.push(Step { database, statements });
        }
    }
    // All of the above is WAL that no database needs: the next segment holds nothing but the final checkpoint.
    steps.push(Step {
        database: "postgres",
        statements: vec!["CHECKPOINT", "SELECT pg_catalog.pg_switch_wal()"],
    });
    steps
}

/// The whole recipe of a major as text, to be hashed.
pub fn text(major: u16) -> String {
    let mut text = initdb_arguments(major).join("\n");
    for step in steps(major) {
        text.push_str("\n\\connect ");
        text.push_str(step.database);
        text.push('\n');
        text.push_str(&step.script());
    }
    text
}

impl Step {
    /// The statements as `postgres --single -j` reads them: each ends with a semicolon and an empty line.
    pub fn script(&self) -> String {
        self.statements.iter().map(|statement| format!("{statement};\n\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NEWEST_MAJOR, OLDEST_MAJOR};

    #[test]
    fn the_owner_gets_no_role_that_leads_out_of_the_database() {
        for major in OLDEST_MAJOR..=NEWEST_MAJOR {
            for step in steps(major) {
                for statement in step.statements {
                    assert!(
                        !(statement.starts_with("GRANT") && statement.contains("_server_")),
                        "{statement}"
                    );
                }
            }
        }
    }

    #[test]
    fn roles_that_reach_the_server_are_closed_where_createrole_could_grant_them() {
        for major in OLDEST_MAJOR..=NEWEST_MAJOR {
            assert_eq!(text(major).contains("rolsuper = true"), major < 16, "{major}");
        }
    }

    #[test]
    fn statements_are_written_as_single_user_postgres_reads_them() {
        let step = Step { database: "postgres", statements: vec!["SELECT 1", "SELECT 2"] };
        assert_eq!(step.script(), "SELECT 1;\n\nSELECT 2;\n\n");
        for major in OLDEST_MAJOR..=NEWEST_MAJOR {
            for statement in steps(major).into_iter().flat_map(|step| step.statements) {
                assert!(!statement.contains(';') && !statement.contains('\n'), "{statement}");
            }
        }
    }

    #[test]
    fn the_builtin_locale_is_used_as_soon_as_there_is_one() {
        assert!(text(17).contains("--locale-provider=builtin"));
        assert!(text(16).contains("--locale-provider=libc"));
        assert!(!text(14).contains("--locale-provider"));
    }
}
