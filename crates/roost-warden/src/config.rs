//! What a warden is run with.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use roost_postgres::Installation;
use roost_postgres::module::Modules;

/// The user and group id that owns every volume on disk, on every machine, so that volumes move without a chown. No
/// process runs as it except while a template is built.
pub const VOLUME_UID: u32 = 1_900_000_001;

/// The user and group id of a node that root started, unless it is configured otherwise.
pub const NODE_UID: u32 = 1_900_000_000;

/// What a warden is run with.
#[derive(Debug, Clone)]
pub struct WardenConfig {
    /// The directory of everything that outlives a reboot.
    pub data: PathBuf,
    /// The directory of sockets and what else does not.
    pub run: PathBuf,
    /// The node's program and arguments; it finds its end of the socket pair at descriptor 3.
    pub node_command: Vec<OsString>,
    /// The user that the node runs as, if the warden is root.
    pub node_uid: u32,
    /// The group that the node runs as, if the warden is root.
    pub node_gid: u32,
    /// The Postgres installations, one for each major version.
    pub installations: Vec<Installation>,
    /// What the operator adds to the installations' own.
    pub modules: Modules,
    /// How long the node may take to stop everything after SIGTERM.
    pub stop_deadline: Duration,
}
