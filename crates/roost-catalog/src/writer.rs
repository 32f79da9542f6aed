//! The one thread that changes the file: group commit of changes, history and usage along the way.
//!
//! Changes come in through a bounded queue. The writer takes all that wait, runs each in a savepoint of one
//! transaction, commits, forgets what the changes made stale in the memories, and then answers. So an answer is never
//! older than the disk, and a hundred callers share one sync.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::cache::{Memories, Stale};
use crate::error::CatalogError;
use crate::records::{self, Record, Ring};

/// Changes that share one commit at most.
const MAX_GROUP: usize = 256;
/// Records that are written along with changes, whose callers wait for the commit.
const RECORDS_WITH_CHANGES: usize = 512;
/// How long it must be quiet before the write-ahead log is moved into the file.
const QUIET: Duration = Duration::from_secs(2);
/// How often SQLite may look whether the planner's statistics are worth renewing.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(3_600);

/// What the writer is asked for.
pub(crate) enum Command {
    /// A change, answered after its commit.
    Change(Box<dyn Change>),
    /// A large change, in a transaction of its own: in a savepoint, SQLite would keep a copy of every page it touches.
    Alone(Box<dyn Change>),
    /// Write all records that wait now, then answer.
    Flush(oneshot::Sender<Result<(), CatalogError>>),
    /// Records wait in the ring.
    Look,
}

/// A change with its caller, whatever its type of result.
pub(crate) trait Change: Send {
    /// Runs the statements. An error undoes them and only them.
    fn run(&mut self, connection: &Connection) -> Result<(), CatalogError>;
    /// Forgets what the change made stale and answers the caller. `committed` is the group's fate.
    fn answer(self: Box<Self>, memories: &Memories, committed: &Result<(), CatalogError>);
}

/// A [`Change`] from a closure.
pub(crate) struct Work<T, F> {
    pub(crate) statements: Option<F>,
    pub(crate) outcome: Result<T, CatalogError>,
    pub(crate) stale: Stale,
    pub(crate) caller: oneshot::Sender<Result<T, CatalogError>>,
}

impl<T, F> Work<T, F>
where
    F: FnOnce(&Connection, &mut Stale) -> Result<T, CatalogError>,
{
    pub(crate) fn new(statements: F, caller: oneshot::Sender<Result<T, CatalogError>>) -> Self {
        let outcome = Err(CatalogError::Closed);
        Self { statements: Some(statements), outcome, stale: Stale::default(), caller }
    }
}

impl<T, F> Change for Work<T, F>
where
    T: Send,
    F: FnOnce(&Connection, &mut Stale) -> Result<T, CatalogError> + Send,
{
    fn run(&mut self, connection: &Connection) -> Result<(), CatalogError> {
        if let Some(statements) = self.statements.take() {
            self.outcome = statements(connection, &mut self.stale);
        }
        self.outcome.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    fn answer(self: Box<Self>, memories: &Memories, committed: &Result<(), CatalogError>) {
        // Also when the commit failed: forgetting costs a read, and an error may leave open what reached the disk.
        memories.forget(&self.stale);
        // What the change found inside a transaction that came to nothing says nothing.
        let outcome = committed.clone().and(self.outcome);
        // A caller who has gone away does not want to know.
        let _ = self.caller.send(outcome);
    }
}

/// The writer's side of the queues.
pub(crate) struct Writer {
    pub(crate) connection: Connection,
    pub(crate) commands: Receiver<Command>,
    pub(crate) ring: Arc<Ring>,
    pub(crate) memories: Arc<Memories>,
    pub(crate) record_interval: Duration,
}

impl Writer {
    /// Serves until every sender is gone, then writes what still waits and closes the file.
    pub(crate) fn run(mut self) {
        let mut due = Due { records: None, checkpoint: None, upkeep: Instant::now() + UPKEEP_INTERVAL };
        loop {
            if self.ring.len() == 0 {
                due.records = None;
            } else {
                due.records.get_or_insert_with(|| Instant::now() + self.record_interval);
            }
            match self.commands.recv_timeout(due.next().saturating_duration_since(Instant::now())) {
                Ok(command) => {
                    self.serve_group(command);
                    due.checkpoint = Some(Instant::now() + QUIET);
                }
                Err(RecvTimeoutError::Timeout) => self.do_what_is_due(&mut due),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        while self.ring.len() > 0 {
            self.commit_records();
        }
        self.optimize();
        if let Err((_, error)) = self.connection.close() {
            tracing::warn!(%error, "closing the catalog");
        }
    }

    fn do_what_is_due(&mut self, due: &mut Due) {
        let now = Instant::now();
        if due.records.is_some_and(|at| at <= now) {
            self.commit_records();
            due.checkpoint = Some(now + QUIET);
        }
        if due.checkpoint.is_some_and(|at| at <= now) {
            due.checkpoint = None;
            self.upkeep("PRAGMA wal_checkpoint(passive)");
        }
        if due.upkeep <= now {
            due.upkeep = now + UPKEEP_INTERVAL;
            self.optimize();
        }
    }

    fn commit_records(&mut self) {
        let records = self.ring.take(self.ring.len());
        // There is nobody to tell; a failure is logged and counted.
        let _ = self.commit(&mut [], records);
    }

    /// Serves one command and those that wait behind it.
    fn serve_group(&mut self, first: Command) {
        let mut changes = Vec::new();
        let mut flushes = Vec::new();
        let mut alone = None;
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                Command::Change(change) => changes.push(change),
                Command::Alone(change) => {
                    alone = Some(change);
                    break;
                }
                Command::Flush(caller) => flushes.push(caller),
                Command::Look => {}
            }
            next = if changes.len() < MAX_GROUP { self.commands.try_recv().ok() } else { None };
        }
        let records = if !flushes.is_empty() || self.ring.is_crowded() {
            self.ring.take(self.ring.len())
        } else if !changes.is_empty() {
            self.ring.take(RECORDS_WITH_CHANGES)
        } else {
            Vec::new()
        };
        let committed = self.commit(&mut changes, records);
        for change in changes {
            change.answer(&self.memories, &committed);
        }
        for caller in flushes {
            let _ = caller.send(committed.clone());
        }
        if let Some(mut change) = alone {
            let committed = self.commit_alone(change.as_mut());
            change.answer(&self.memories, &committed);
        }
    }

    /// Runs one change in a transaction of its own, which its error undoes.
    fn commit_alone(&self, change: &mut dyn Change) -> Result<(), CatalogError> {
        let connection = &self.connection;
        let committed = connection
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(CatalogError::from)
            .and_then(|()| change.run(connection))
            .and_then(|()| Ok(connection.execute_batch("COMMIT")?));
        if committed.is_err() {
            self.roll_back();
        }
        committed
    }

    fn roll_back(&self) {
        if !self.connection.is_autocommit() {
            // The error of a rollback says nothing new; the next BEGIN would fail and be reported.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }

    /// Runs everything in one transaction. Its error is the fate of the whole group; a single change's error is kept
    /// by the change.
    fn commit(&mut self, changes: &mut [Box<dyn Change>], records: Vec<Record>) -> Result<(), CatalogError> {
        if changes.is_empty() && records.is_empty() {
            return Ok(());
        }
        let record_count = records.len();
        let committed = self.transact(changes, records);
        if let Err(error) = &committed {
            tracing::error!(%error, changes = changes.len(), records = record_count, "catalog commit failed");
            self.ring.count_lost(record_count);
            self.roll_back();
        }
        committed
    }

    fn transact(&self, changes: &mut [Box<dyn Change>], records: Vec<Record>) -> Result<(), CatalogError> {
        let connection = &self.connection;
        connection.execute_batch("BEGIN IMMEDIATE")?;
        for change in changes {
            savepoint(connection, || change.run(connection))?;
        }
        if !records.is_empty() {
            let record_count = records.len();
            if let Fate::Undone(error) = savepoint(connection, || records::write(connection, records))? {
                tracing::error!(%error, records = record_count, "history and usage could not be written");
                self.ring.count_lost(record_count);
            }
        }
        connection.execute_batch("COMMIT")?;
        Ok(())
    }

    /// Lets SQLite renew the planner's statistics where the file has changed much; it looks at no more than
    /// `analysis_limit` rows of an index.
    fn optimize(&self) {
        self.upkeep("PRAGMA optimize");
    }

    fn upkeep(&self, statement: &str) {
        if let Err(error) = self.connection.execute_batch(statement) {
            tracing::warn!(%error, statement, "catalog upkeep failed");
        }
    }
}

/// When the writer has something to do without being asked.
struct Due {
    /// Records wait since before this.
    records: Option<Instant>,
    /// Something was committed, and then it became quiet: the write-ahead log is moved into the file now, so that a
    /// later commit need not do it while its callers wait.
    checkpoint: Option<Instant>,
    upkeep: Instant,
}

impl Due {
    fn next(&self) -> Instant {
        [self.records, self.checkpoint].into_iter().flatten().fold(self.upkeep, Instant::min)
    }
}

/// What became of statements in a savepoint.
enum Fate {
    Kept,
    Undone(CatalogError),
}

/// Runs statements so that their error undoes them alone. An `Err` means that the transaction itself is lost: SQLite
/// rolls all of it back on some errors (a full disk, a failed read or write).
fn savepoint(
    connection: &Connection,
    statements: impl FnOnce() -> Result<(), CatalogError>,
) -> Result<Fate, CatalogError> {
    connection.execute_batch("SAVEPOINT change")?;
    match statements() {
        Ok(()) => {
            connection.execute_batch("RELEASE change")?;
            Ok(Fate::Kept)
        }
        Err(error) if connection.is_autocommit() => Err(error),
        Err(error) => {
            connection.execute_batch("ROLLBACK TO change; RELEASE change")?;
            Ok(Fate::Undone(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::cache::Memory;

    type Answer = oneshot::Receiver<Result<(), CatalogError>>;

    fn writer() -> (Writer, std::sync::mpsc::SyncSender<Command>) {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE t (a UNIQUE)").unwrap();
        let (sender, commands) = sync_channel(16);
        let memories = Memories { logins: Memory::new(10), routes: Memory::new(10) };
        let writer = Writer {
            connection,
            commands,
            ring: Arc::new(Ring::new(10)),
            memories: Arc::new(memories),
            record_interval: Duration::from_millis(1),
        };
        (writer, sender)
    }

    fn change(sql: &'static str) -> (Box<dyn Change>, Answer) {
        let (caller, answer) = oneshot::channel();
        let statements = move |connection: &Connection, _: &mut Stale| Ok(connection.execute_batch(sql)?);
        (Box::new(Work::new(statements, caller)), answer)
    }

    fn rows(writer: &Writer) -> i64 {
        writer.connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }

    /// Serves the statements as one group and gives each one's answer.
    fn serve(
        writer: &mut Writer,
        sender: &std::sync::mpsc::SyncSender<Command>,
        sql: &[&'static str],
    ) -> Vec<bool> {
        let answers: Vec<_> = sql
            .iter()
            .map(|sql| {
                let (change, answer) = change(sql);
                sender.try_send(Command::Change(change)).ok().unwrap();
                answer
            })
            .collect();
        let first = writer.commands.recv().unwrap();
        writer.serve_group(first);
        answers.into_iter().map(|mut answer| answer.try_recv().unwrap().is_ok()).collect()
    }

    #[test]
    fn a_failing_change_undoes_all_of_itself_and_nothing_else() {
        let (mut writer, sender) = writer();
        let half = "INSERT INTO t VALUES (2); INSERT INTO t VALUES (1)";
        let answers =
            serve(&mut writer, &sender, &["INSERT INTO t VALUES (1)", half, "INSERT INTO t VALUES (3)"]);
        assert_eq!(answers, [true, false, true]);
        assert_eq!(rows(&writer), 2);
    }

    /// What SQLite does on a full disk or a failed read: the whole transaction is gone.
    #[test]
    fn when_the_transaction_is_lost_no_change_of_the_group_is_acknowledged() {
        let (mut writer, sender) = writer();
        let loss = "ROLLBACK; SELECT no_such_function()";
        let answers =
            serve(&mut writer, &sender, &["INSERT INTO t VALUES (1)", loss, "INSERT INTO t VALUES (3)"]);
        assert_eq!(answers, [false, false, false]);
        assert_eq!(rows(&writer), 0);
        assert_eq!(serve(&mut writer, &sender, &["INSERT INTO t VALUES (4)"]), [true]);
        assert_eq!(rows(&writer), 1);
    }

    #[test]
    fn a_change_that_runs_alone_comes_after_those_before_it_and_undoes_itself() {
        let (mut writer, sender) = writer();
        let (before, mut before_answer) = change("INSERT INTO t VALUES (1)");
        let (alone, mut alone_answer) = change("INSERT INTO t VALUES (2); INSERT INTO t VALUES (1)");
        sender.try_send(Command::Change(before)).ok().unwrap();
        sender.try_send(Command::Alone(alone)).ok().unwrap();
        let first = writer.commands.recv().unwrap();
        writer.serve_group(first);
        assert!(before_answer.try_recv().unwrap().is_ok());
        assert!(alone_answer.try_recv().unwrap().is_err());
        assert_eq!(rows(&writer), 1);
        assert!(writer.connection.is_autocommit());
    }
}
