//! A few threads that read, each with a read-only connection, fed by one bounded queue.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::Connection;

use crate::error::CatalogError;
use crate::file;
use crate::options::CatalogOptions;

/// One read, with its caller inside.
type Read = Box<dyn FnOnce(&Connection) + Send>;

/// The reader threads. Dropping it ends and joins them, after the reads that wait.
pub(crate) struct Readers {
    queue: Option<SyncSender<Read>>,
    threads: Vec<JoinHandle<()>>,
    limit: usize,
}

impl Readers {
    pub(crate) fn start(path: &Path, options: &CatalogOptions) -> Result<Self, CatalogError> {
        let (queue, receiver) = sync_channel(options.waiting_reads);
        let receiver = Arc::new(Mutex::new(receiver));
        // From here on, an error drops the pool, which joins what was started.
        let mut readers = Self { queue: Some(queue), threads: Vec::new(), limit: options.waiting_reads };
        for number in 0..options.readers.max(1) {
            let connection = file::open_reader(path, options)?;
            let receiver = Arc::clone(&receiver);
            let thread = std::thread::Builder::new()
                .name(format!("catalog-read-{number}"))
                .spawn(move || serve(&connection, &receiver))
                .map_err(CatalogError::io("start a thread for", path))?;
            readers.threads.push(thread);
        }
        Ok(readers)
    }

    /// Queues a read.
    pub(crate) fn submit(&self, read: Read) -> Result<(), CatalogError> {
        let queue = self.queue.as_ref().ok_or(CatalogError::Closed)?;
        queue.try_send(read).map_err(|error| match error {
            TrySendError::Full(_) => {
                CatalogError::Overloaded { queue: "reads", limit: self.limit, setting: "waiting_reads" }
            }
            TrySendError::Disconnected(_) => CatalogError::Closed,
        })
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a catalog reader ended in a panic");
            }
        }
    }
}

fn serve(connection: &Connection, queue: &Mutex<Receiver<Read>>) {
    loop {
        // One reader waits in the queue, the others wait for its lock: a read wakes exactly one of them.
        let read = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match read {
            Ok(read) => read(connection),
            Err(_) => return,
        }
    }
}
