//! Roost's own connection to a running instance: role `_roost` in database `_roost`, where no tenant can leave anything
//! in the way of a query. Every name is qualified all the same.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use tokio_postgres::Row;

use crate::session::{Identity, Session};
use crate::{CONTROL_DATABASE, CONTROL_ROLE};

pub use crate::session::SessionError;

/// How long the server may work on one control query.
const STATEMENT_TIMEOUT: &str = "10s";
/// How long a control query may go without an answer: longer than [`STATEMENT_TIMEOUT`], after which a server that still
/// lives has answered.
const ANSWER_WITHIN: Duration = Duration::from_secs(12);

/// How many roles, and how many databases, are read of one instance.
pub const MAX_ROWS: usize = 10_000;

/// The longest password verifier that is read, in bytes. A role with a longer one is reported without any.
const MAX_VERIFIER_BYTES: i32 = 1024;

/// A control connection. Dropping it closes it.
pub struct Control {
    session: Session,
}

/// A role that a tenant made, or the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleRow {
    /// Its name.
    pub name: String,
    /// `rolpassword`: a SCRAM verifier, an md5 hash, or nothing.
    pub verifier: Option<String>,
    /// `rolcanlogin`.
    pub can_login: bool,
    /// `rolvaliduntil`; `None` is for ever.
    pub valid_until: Option<SystemTime>,
}

/// What an instance's sessions are doing, Roost's own left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Activity {
    /// Client sessions.
    pub sessions: u32,
    /// Those that run a statement.
    pub active: u32,
    /// Those that are inside a transaction and wait for their client.
    pub idle_in_transaction: u32,
    /// Background processes that work on the data: autovacuum workers and parallel workers.
    pub workers: u32,
    /// The age of the oldest transaction of a client session.
    pub oldest_transaction: Option<Duration>,
}

/// A database inside an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseRow {
    /// Its name.
    pub name: String,
    /// The name of the role that owns it.
    pub owner: String,
    /// Whether anybody may connect to it at all (`datallowconn`).
    pub allows_connections: bool,
    /// Whether it may be copied by everybody (`datistemplate`).
    pub is_template: bool,
}

impl Control {
    /// Connects to the instance whose socket is in `socket_dir`, and waits for it while it starts.
    ///
    /// # Errors
    /// [`SessionError::Deadline`] when that takes longer than until `deadline`, [`SessionError::Connect`] when it is
    /// refused.
    pub async fn connect(socket_dir: &Path, deadline: Instant) -> Result<Self, SessionError> {
        let identity = Identity {
            role: CONTROL_ROLE,
            database: CONTROL_DATABASE,
            settings: &[
                ("search_path", "pg_catalog"),
                ("statement_timeout", STATEMENT_TIMEOUT),
                ("lock_timeout", "2s"),
                ("default_transaction_read_only", "on"),
                ("jit", "off"),
                ("max_parallel_workers_per_gather", "0"),
            ],
        };
        Ok(Self { session: Session::open(socket_dir, &identity, deadline).await? })
    }

    /// Ends the connection, and waits a moment for the server to have ended its side. Who puts an instance to sleep does
    /// not want to have a session's process frozen while it exits.
    pub async fn close(self) {
        self.session.close().await;
    }

    /// Whether the connection has ended, because the instance did or the session was ended.
    pub fn is_closed(&self) -> bool {
        self.session.is_closed()
    }

    /// The roles of the tenant: all but Roost's own and the predefined ones, at most [`MAX_ROWS`], those that may log in
    /// first. Roles whose names are not UTF-8 are left out: no client could name them here.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn roles(&self) -> Result<Vec<RoleRow>, SessionError> {
        let sql = format!(
            "{ROLES} ORDER BY r.rolcanlogin DESC, r.rolname LIMIT {MAX_ROWS}",
            ROLES = roles_sql("r.rolname !~ '^pg_'")
        );
        let rows = self.session.query(&sql, &[], ANSWER_WITHIN).await?;
        rows.iter().filter_map(|row| role_row(row).transpose()).collect()
    }

    /// One role of the tenant by name.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn role(&self, name: &str) -> Result<Option<RoleRow>, SessionError> {
        // Postgres cuts longer names off, and would then find another role.
        if name.len() > 63 || name.starts_with("pg_") || name.contains('\0') {
            return Ok(None);
        }
        let rows = self.session.query(&roles_sql("r.rolname = $1"), &[&name], ANSWER_WITHIN).await?;
        rows.first().map_or(Ok(None), role_row)
    }

    /// What the instance's sessions are doing.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn activity(&self) -> Result<Activity, SessionError> {
        const SQL: &str = "\
            SELECT pg_catalog.count(*) FILTER (WHERE a.client), \
                   pg_catalog.count(*) FILTER (WHERE a.client AND a.state IN ('active', 'fastpath function call')), \
                   pg_catalog.count(*) FILTER (WHERE a.client AND a.state LIKE 'idle in transaction%'), \
                   pg_catalog.count(*) FILTER (WHERE a.backend_type IN ('autovacuum worker', 'parallel worker')), \
                   (EXTRACT(EPOCH FROM pg_catalog.max(pg_catalog.clock_timestamp() - a.xact_start) \
                        FILTER (WHERE a.client)) * 1000)::pg_catalog.int8 \
              FROM (SELECT s.*, s.backend_type = 'client backend' AND s.usename IS DISTINCT FROM '_roost' AS client \
                      FROM pg_catalog.pg_stat_activity s) a";
        let row = self.one(SQL).await?;
        let count = |column| -> Result<u32, SessionError> {
            Ok(u32::try_from(row.try_get::<_, i64>(column)?).unwrap_or(u32::MAX))
        };
        let oldest: Option<i64> = row.try_get(4)?;
        Ok(Activity {
            sessions: count(0)?,
            active: count(1)?,
            idle_in_transaction: count(2)?,
            workers: count(3)?,
            oldest_transaction: oldest.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0))),
        })
    }

    /// The age of the oldest transaction id of any database, in transactions. Postgres stops taking writes before it
    /// reaches two thousand million.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn xid_age(&self) -> Result<u64, SessionError> {
        const SQL: &str = "SELECT pg_catalog.max(pg_catalog.age(d.datfrozenxid))::pg_catalog.int8 \
                             FROM pg_catalog.pg_database d";
        self.number(SQL).await
    }

    /// The size of all databases of the instance, without WAL, in bytes.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn size_bytes(&self) -> Result<u64, SessionError> {
        const SQL: &str = "SELECT pg_catalog.sum(pg_catalog.pg_database_size(d.oid))::pg_catalog.int8 \
                             FROM pg_catalog.pg_database d";
        self.number(SQL).await
    }

    /// The databases of the instance, Roost's own and the templates included, at most [`MAX_ROWS`], the owner's own
    /// first. Those whose names, or whose owners' names, are not UTF-8 are left out.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn databases(&self) -> Result<Vec<DatabaseRow>, SessionError> {
        let sql = format!(
            "SELECT pg_catalog.namesend(d.datname), pg_catalog.namesend(r.rolname), d.datallowconn, d.datistemplate \
               FROM pg_catalog.pg_database d JOIN pg_catalog.pg_authid r ON r.oid = d.datdba \
              ORDER BY d.datname <> 'postgres', d.oid LIMIT {MAX_ROWS}"
        );
        let rows = self.session.query(&sql, &[], ANSWER_WITHIN).await?;
        rows.iter()
            .filter_map(|row| {
                let read = || -> Result<_, SessionError> {
                    let (Some(name), Some(owner)) = (name_at(row, 0)?, name_at(row, 1)?) else {
                        return Ok(None);
                    };
                    let (allows_connections, is_template) = (row.try_get(2)?, row.try_get(3)?);
                    Ok(Some(DatabaseRow { name, owner, allows_connections, is_template }))
                };
                read().transpose()
            })
            .collect()
    }

    /// Ends every session of the tenant; their clients get SQLSTATE 57P01. Returns how many there were.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn terminate_sessions(&self) -> Result<u64, SessionError> {
        const SQL: &str = "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(a.pid))::pg_catalog.int8 \
                             FROM pg_catalog.pg_stat_activity a \
                            WHERE a.backend_type = 'client backend' AND a.usename IS DISTINCT FROM '_roost'";
        self.number(SQL).await
    }

    async fn one(&self, sql: &str) -> Result<Row, SessionError> {
        let rows = self.session.query(sql, &[], ANSWER_WITHIN).await?;
        rows.into_iter().next().ok_or(SessionError::Answer("one row was asked for, and none came"))
    }

    async fn number(&self, sql: &str) -> Result<u64, SessionError> {
        let number: Option<i64> = self.one(sql).await?.try_get(0)?;
        u64::try_from(number.unwrap_or(0)).map_err(|_| SessionError::Answer("a count is negative"))
    }
}

/// Names come as bytes: a role or a database that was named in a database of another encoding may have a name that is
/// not UTF-8, and must not make the whole list unreadable.
fn roles_sql(condition: &str) -> String {
    format!(
        "SELECT pg_catalog.namesend(r.rolname), \
                CASE WHEN pg_catalog.octet_length(r.rolpassword) <= {MAX_VERIFIER_BYTES} \
                     THEN pg_catalog.textsend(r.rolpassword) END, \
                r.rolcanlogin, \
                CASE WHEN r.rolvaliduntil IS NULL OR r.rolvaliduntil = 'infinity' THEN NULL \
                     WHEN r.rolvaliduntil <= '1970-01-01 00:00:00+00' THEN 0 \
                     ELSE (EXTRACT(EPOCH FROM r.rolvaliduntil) * 1000)::pg_catalog.int8 END \
           FROM pg_catalog.pg_authid r \
          WHERE r.rolname <> '{CONTROL_ROLE}' AND {condition}"
    )
}

fn role_row(row: &Row) -> Result<Option<RoleRow>, SessionError> {
    let Some(name) = name_at(row, 0)? else { return Ok(None) };
    let verifier: Option<Vec<u8>> = row.try_get(1)?;
    let valid_until: Option<i64> = row.try_get(3)?;
    let valid_until = valid_until
        .and_then(|ms| u64::try_from(ms).ok())
        .and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
    Ok(Some(RoleRow {
        name,
        verifier: verifier.and_then(|bytes| String::from_utf8(bytes).ok()),
        can_login: row.try_get(2)?,
        valid_until,
    }))
}

fn name_at(row: &Row, column: usize) -> Result<Option<String>, SessionError> {
    Ok(String::from_utf8(row.try_get(column)?).ok())
}
