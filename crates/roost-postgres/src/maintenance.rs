//! Maintenance before sleep: the ANALYZE and VACUUM that autovacuum would have done, had the database stayed awake.
//!
//! Autovacuum looks at a database once a minute. One that sleeps seconds after each burst would never be analysed, and its
//! plans would be bad for ever. So before a rung down, what is due is done here, within a budget.
//!
//! **It never runs as superuser.** Functions in index expressions, and whatever else a tenant can put in the way, run
//! inside the session that analyses or vacuums the table. Postgres guards against that, and has been wrong about it
//! before. A session that began as the database's owner has nothing that the owner does not have anyway; one that began as
//! superuser and switched could be switched back. A database whose owner may not log in is therefore left to autovacuum,
//! and the report says so.
//!
//! What is due follows autovacuum's own formulas and per-table settings, and two things besides, because counters of
//! changes are written late (a session that just ended, or is still open, may not have reported what it did): a table that
//! was never analysed and is not empty, and one whose file has grown a lot since.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::CONTROL_ROLE;
use crate::control::{Control, DatabaseRow, SessionError};
use crate::session::{Identity, Session};

mod due;

use due::Table;

/// How many problems a report holds.
const MAX_PROBLEMS: usize = 16;
/// A statement that would have less time than this is not begun.
const LEAST_TIME: Duration = Duration::from_millis(20);
/// How much longer than its statement timeout a server may take to answer.
const GRACE: Duration = Duration::from_secs(2);

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MaintenanceReport {
    /// Databases that were looked into.
    pub databases: u32,
    /// Tables that were analysed.
    pub analyzed: u32,
    /// Tables that were vacuumed.
    pub vacuumed: u32,
    /// Whether the budget ended before the work did.
    pub unfinished: bool,
    /// What went wrong, or was left out and why; the first few.
    pub problems: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

impl MaintenanceReport {
    fn problem(&mut self, database: &str, what: impl std::fmt::Display) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(format!("{database}: {what}"));
        }
    }
}

/// Does what is due in the instance whose socket is in `socket_dir`, for at most `budget` (and the moment that the server
/// needs to stop a statement at its timeout). Failures are part of the report: none of them is a reason not to sleep.
///
/// Dropping the future closes its session; a statement that runs then ends by itself when the budget does.
pub async fn run(socket_dir: &Path, budget: Duration) -> MaintenanceReport {
    let begun = Instant::now();
    let mut report = MaintenanceReport::default();
    let mut pass = Pass { socket_dir, deadline: begun + budget, report: &mut report };
    match pass.databases().await {
        Ok(databases) => {
            for database in databases {
                if pass.is_over() {
                    break;
                }
                pass.database(&database).await;
            }
        }
        Err(error) => report.problem("the list of databases", error),
    }
    report.took = begun.elapsed();
    report
}

/// One run under way.
struct Pass<'a> {
    socket_dir: &'a Path,
    deadline: Instant,
    report: &'a mut MaintenanceReport,
}

/// What is done to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Analyze,
    Vacuum,
}

impl Pass<'_> {
    /// The databases to look into. Only their names are read as superuser, in Roost's own database.
    async fn databases(&self) -> Result<Vec<DatabaseRow>, SessionError> {
        let control = Control::connect(self.socket_dir, self.deadline).await?;
        let databases = control.databases().await;
        control.close().await;
        let mut databases = databases?;
        databases.retain(|database| database.allows_connections && database.owner != CONTROL_ROLE);
        Ok(databases)
    }

    fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Whether no time is left to begin anything; then the report says so.
    fn is_over(&mut self) -> bool {
        let over = self.remaining() < LEAST_TIME;
        self.report.unfinished |= over;
        over
    }

    async fn database(&mut self, database: &DatabaseRow) {
        let name = database.name.as_str();
        let session = match self.connect(database).await {
            Ok(session) => session,
            Err(error) => return self.report.problem(name, error),
        };
        self.report.databases += 1;
        self.tables(name, &session).await;
        session.close().await;
    }

    /// Does what is due in one database.
    async fn tables(&mut self, name: &str, session: &Session) {
        let tables = match due::tables(session, self.remaining()).await {
            Ok(tables) => tables,
            Err(error) => return self.report.problem(name, error),
        };
        // Statistics first: they are quick to make, and plans suffer most without them.
        let analyses = tables.iter().filter(|table| table.analyze).map(|table| (table, Work::Analyze));
        let vacuums = tables.iter().filter(|table| table.vacuum).map(|table| (table, Work::Vacuum));
        for (table, work) in analyses.chain(vacuums) {
            if self.is_over() || session.is_closed() {
                return;
            }
            match self.table(session, table, work).await {
                Ok(()) if work == Work::Analyze => self.report.analyzed += 1,
                Ok(()) => self.report.vacuumed += 1,
                Err(error) if is_cancelled(&error) => {
                    self.report.unfinished = true;
                    return;
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => self.report.problem(name, error),
            }
        }
    }

    async fn connect(&self, database: &DatabaseRow) -> Result<Session, SessionError> {
        let timeout = self.remaining().as_millis().max(1).to_string();
        let identity = Identity {
            role: &database.owner,
            database: &database.name,
            settings: &[
                ("search_path", "pg_catalog"),
                // A tenant may have set another role, or anything else, for its own sessions.
                ("role", "none"),
                ("statement_timeout", &timeout),
                ("lock_timeout", "100ms"),
                ("vacuum_cost_delay", "0"),
                ("max_parallel_maintenance_workers", "0"),
                ("max_parallel_workers_per_gather", "0"),
                ("jit", "off"),
            ],
        };
        Session::open(self.socket_dir, &identity, self.deadline).await
    }

    async fn table(&self, session: &Session, table: &Table, work: Work) -> Result<(), SessionError> {
        let remaining = self.remaining();
        let timeout = format!("SET statement_timeout TO {}", remaining.as_millis().max(1));
        session.execute(&timeout, remaining + GRACE).await?;
        let name = table.quoted_name();
        let statement = match work {
            Work::Analyze => format!("ANALYZE (SKIP_LOCKED) {name}"),
            Work::Vacuum => format!("VACUUM (SKIP_LOCKED) {name}"),
        };
        session.execute(&statement, remaining + GRACE).await
    }
}

/// Ended by the statement timeout.
fn is_cancelled(error: &SessionError) -> bool {
    error.code() == Some("57014") || matches!(error, SessionError::Unanswered(_))
}

/// The table was dropped meanwhile.
fn is_gone(error: &SessionError) -> bool {
    matches!(error.code(), Some("42P01" | "3F000"))
}
