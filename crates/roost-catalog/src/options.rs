//! The catalog's bounds, each with its default.

use std::time::Duration;

/// Bounds and sizes of an open catalog.
#[derive(Debug, Clone, Copy)]
pub struct CatalogOptions {
    /// Reader threads, each with a connection of its own.
    pub readers: usize,
    /// Changes that may wait for the writer; one more is answered with
    /// [`Overloaded`](crate::CatalogError::Overloaded).
    pub waiting_changes: usize,
    /// Reads that may wait for a reader; one more is answered with [`Overloaded`](crate::CatalogError::Overloaded).
    pub waiting_reads: usize,
    /// History and usage records that may wait to be written; one more drops the oldest.
    pub waiting_records: usize,
    /// How long history and usage wait at most before they are written.
    pub record_interval: Duration,
    /// Logins that are remembered, known and unknown ones together.
    pub cached_logins: u64,
    /// Routes (a project's and a database's name) that are remembered, known and unknown ones together.
    pub cached_routes: u64,
    /// SQLite's page cache of the writer, in KiB.
    pub writer_cache_kib: u32,
    /// SQLite's page cache of each reader, in KiB.
    pub reader_cache_kib: u32,
    /// How long to wait for a lock that another program holds on the file.
    pub busy_timeout: Duration,
}

impl Default for CatalogOptions {
    fn default() -> Self {
        Self {
            readers: 2,
            waiting_changes: 4_096,
            waiting_reads: 16_384,
            waiting_records: 8_192,
            record_interval: Duration::from_millis(500),
            cached_logins: 100_000,
            cached_routes: 100_000,
            writer_cache_kib: 8 * 1024,
            reader_cache_kib: 2 * 1024,
            busy_timeout: Duration::from_secs(5),
        }
    }
}
