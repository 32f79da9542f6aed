//! Postgres on this machine: what is installed, the templates that databases begin as, the volumes that hold their
//! files, the configuration that they run with, and the control of one running instance.
//!
//! Nothing here is privileged by itself and nothing starts an instance: the warden does, with what this crate tells it.
//!
//! | module | question it answers |
//! | --- | --- |
//! | [`installation`] | which Postgres servers does this machine have, and what do they need to run? |
//! | [`template`] | how is an immutable, freshly initialised cluster made? |
//! | [`volume`] | where are a database's files, and what were they made from? |
//! | [`control_file`] | what does a cluster say of itself while no Postgres runs on it? |
//! | [`settings`] | which configuration does an instance get? |
//! | [`module`] | which extensions and libraries does an operator add? |
//! | [`log`] | what does an instance's log say, and how is it kept small? |
//! | [`control`] | Roost's own connection to a running instance |
//! | [`maintenance`] | the work that autovacuum had no time for |

pub mod control;
pub mod control_file;
pub mod installation;
pub mod log;
pub mod maintenance;
pub mod module;
pub mod settings;
pub mod template;
pub mod volume;

mod session;

pub use installation::Installation;

/// The oldest supported major version.
pub const OLDEST_MAJOR: u16 = 14;
/// The newest supported major version.
pub const NEWEST_MAJOR: u16 = 18;

/// The bootstrap superuser of every instance: Roost's own role, which no client can become.
pub const CONTROL_ROLE: &str = "_roost";
/// The database of Roost's own queries. Tenants may not connect to it.
pub const CONTROL_DATABASE: &str = "_roost";
/// The tenant's role: it owns [`OWNER_DATABASE`], may create databases and roles, and is no superuser.
pub const OWNER_ROLE: &str = "postgres";
/// The database that a tenant finds.
pub const OWNER_DATABASE: &str = "postgres";
/// The port that names the socket file (`.s.PGSQL.5432`); nothing listens on TCP.
pub const SOCKET_PORT: u16 = 5432;
