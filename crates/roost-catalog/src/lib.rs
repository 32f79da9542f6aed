//! What exists on a node: projects, databases, connections, settings, usage and history, in one SQLite file.
//!
//! [`Catalog`] is the only way in. Its invariants:
//!
//! - **No SQLite call ever runs on an async worker.** Changes go to one writer thread through a bounded queue; reads
//!   go to a few reader threads, each with a read-only connection. Async methods only wait for an answer.
//! - **An acknowledged change survives a power cut.** The writer takes all changes that wait, runs each in a savepoint
//!   of one transaction, commits once with `synchronous = FULL`, and answers only then. A change that fails undoes
//!   itself alone.
//! - **History and usage may lose a moment.** They are recorded without blocking into a bounded ring, and written with
//!   the next commit or at most half a second later. A full ring drops its oldest record and counts it.
//! - **Logins and routes are answered from memory** after the first time, unknown ones too, and never with a value
//!   that was already replaced when the replacing call returned.
//! - **No jump of the clock deletes anything**: what is kept for a time is kept for that much time that passed.
//! - **A database that nobody uses costs a row**: opening the file, listing a page and counting do not scan.
//! - **One process per file**: a second one would answer logins from a memory that the first one's writes don't reach.

mod cache;
mod catalog;
mod column;
mod connections;
mod databases;
mod deletion;
mod error;
mod file;
mod history;
pub mod id;
mod meta;
pub mod model;
mod options;
mod page;
mod projects;
mod readers;
mod records;
mod retention;
mod roles;
mod schema;
mod settings_patch;
mod writer;

pub use catalog::Catalog;
pub use databases::DatabaseFilter;
pub use error::{CatalogError, Subject};
pub use meta::Counts;
pub use options::CatalogOptions;
pub use page::{Listing, MAX_PAGE, Page};
pub use retention::{MOST_FOR_A_STOP, Moment};
pub use settings_patch::SettingsPatch;

/// Connections that one database may have.
pub const MAX_CONNECTIONS_PER_DATABASE: u32 = 1_000;
/// Databases that one bulk call may register: they share one transaction, and other changes wait for it.
pub const MAX_BULK: usize = 100_000;
/// Steps on the ladder that are kept per database, the latest ones.
pub const MAX_HISTORY_PER_DATABASE: u32 = 200;
/// Roles made with SQL that are kept per database.
pub const MAX_ROLES_PER_DATABASE: usize = 1_000;
