//! The handle that everything else uses: opens the file, starts the threads, and passes work to them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::cache::{Memories, Memory, Stale};
use crate::error::CatalogError;
use crate::file::{self, Lock};
use crate::model::{Transition, UsageDelta};
use crate::options::CatalogOptions;
use crate::readers::Readers;
use crate::records::{Record, Ring};
use crate::retention::Retention;
use crate::writer::{Command, Work, Writer};

/// An open catalog. Cloning is cheap and gives another handle of the same one.
///
/// Dropping the last handle writes what still waits and ends the threads; that blocks for a moment, so it belongs at
/// the end of the program, not inside a task.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    readers: Option<Readers>,
    commands: Option<SyncSender<Command>>,
    waiting_changes: usize,
    writer: Option<JoinHandle<()>>,
    ring: Arc<Ring>,
    memories: Arc<Memories>,
    retention: Arc<Retention>,
    /// Let go after the threads have ended, by being the last field.
    _lock: Lock,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The readers first: SQLite tidies the write-ahead log away when its last connection closes, and only one
        // that may write can do that.
        self.readers = None;
        self.commands = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the catalog's writer ended in a panic");
        }
    }
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl Catalog {
    /// Opens the catalog at `path`, making it if there is none and migrating it if it is older than this program.
    /// Blocks for some milliseconds, however many rows there are.
    ///
    /// # Errors
    /// [`CatalogError::InUse`] when another process has it open, [`CatalogError::TooNew`],
    /// [`CatalogError::Corrupt`], [`CatalogError::Io`].
    pub fn open(path: &Path, options: CatalogOptions) -> Result<Self, CatalogError> {
        let lock = file::claim(path)?;
        let connection = file::open_writer(path, &options)?;
        let retention = Arc::new(Retention::open(&connection)?);
        let readers = Readers::start(path, &options)?;
        let ring = Arc::new(Ring::new(options.waiting_records));
        let memories = Arc::new(Memories {
            logins: Memory::new(options.cached_logins),
            routes: Memory::new(options.cached_routes),
        });
        let (commands, receiver) = sync_channel(options.waiting_changes);
        let writer = Writer {
            connection,
            commands: receiver,
            ring: Arc::clone(&ring),
            memories: Arc::clone(&memories),
            record_interval: options.record_interval,
        };
        let writer = std::thread::Builder::new()
            .name("catalog-write".to_owned())
            .spawn(move || writer.run())
            .map_err(CatalogError::io("start a thread for", path))?;
        let inner = Inner {
            path: path.to_owned(),
            readers: Some(readers),
            commands: Some(commands),
            waiting_changes: options.waiting_changes,
            writer: Some(writer),
            ring,
            memories,
            retention,
            _lock: lock,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Adds a step on the ladder to a database's history, soon. Never blocks; under pressure the oldest waiting record
    /// is dropped and counted in [`dropped_records`](Self::dropped_records).
    pub fn record_transition(&self, transition: Transition) {
        self.record(Record::Transition(transition));
    }

    /// Adds to a database's usage, soon. Never blocks, like [`record_transition`](Self::record_transition).
    pub fn record_usage(&self, delta: UsageDelta) {
        self.record(Record::Usage(delta));
    }

    /// History and usage records that were dropped since the catalog was opened: the ring was full, or the file could
    /// not be written.
    pub fn dropped_records(&self) -> u64 {
        self.inner.ring.dropped()
    }

    /// Writes all history and usage that was recorded before this call.
    ///
    /// # Errors
    /// When they cannot be written or the writer is overloaded.
    pub async fn flush(&self) -> Result<(), CatalogError> {
        let (caller, answer) = oneshot::channel();
        self.send(Command::Flush(caller))?;
        answer.await.unwrap_or(Err(CatalogError::Closed))
    }

    fn record(&self, record: Record) {
        if self.inner.ring.push(record) {
            // A full queue is no loss: the writer looks at the ring after every group of changes.
            let _ = self.send(Command::Look);
        }
    }

    /// Has the writer run `statements` and answers after their commit. Once queued, a change is made even if the
    /// caller goes away.
    pub(crate) async fn change<T, F>(&self, statements: F) -> Result<T, CatalogError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection, &mut Stale) -> Result<T, CatalogError> + Send + 'static,
    {
        let (caller, answer) = oneshot::channel();
        self.send(Command::Change(Box::new(Work::new(statements, caller))))?;
        answer.await.unwrap_or(Err(CatalogError::Closed))
    }

    /// Like [`change`](Self::change), in a transaction that it shares with no other.
    pub(crate) async fn change_alone<T, F>(&self, statements: F) -> Result<T, CatalogError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection, &mut Stale) -> Result<T, CatalogError> + Send + 'static,
    {
        let (caller, answer) = oneshot::channel();
        self.send(Command::Alone(Box::new(Work::new(statements, caller))))?;
        answer.await.unwrap_or(Err(CatalogError::Closed))
    }

    /// Has a reader run `statements`. They see one moment of the file each, not all the same one.
    pub(crate) async fn read<T, F>(&self, statements: F) -> Result<T, CatalogError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, CatalogError> + Send + 'static,
    {
        let (caller, answer) = oneshot::channel();
        let readers = self.inner.readers.as_ref().ok_or(CatalogError::Closed)?;
        readers.submit(Box::new(move |connection| {
            if !caller.is_closed() {
                let _ = caller.send(statements(connection));
            }
        }))?;
        answer.await.unwrap_or(Err(CatalogError::Closed))
    }

    pub(crate) fn retention(&self) -> &Arc<Retention> {
        &self.inner.retention
    }

    pub(crate) fn memories(&self) -> &Memories {
        &self.inner.memories
    }

    fn send(&self, command: Command) -> Result<(), CatalogError> {
        let commands = self.inner.commands.as_ref().ok_or(CatalogError::Closed)?;
        commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => CatalogError::Overloaded {
                queue: "changes",
                limit: self.inner.waiting_changes,
                setting: "waiting_changes",
            },
            TrySendError::Disconnected(_) => CatalogError::Closed,
        })
    }
}
