//! The privileged side of a node: mounts, confines, starts, freezes, stops and adopts instances.
//!
//! Two halves share this crate and one [`protocol`]. The [`client`] belongs to the node, an ordinary process that
//! speaks with the world; it asks for things by name over a `SOCK_SEQPACKET` socket pair. The server ([`run`]) belongs
//! to the warden, a small single-threaded process with the machine's privileges; it checks each request again, holds
//! what the kernel enforces, and never reads a byte that a database's client sent.

pub mod client;
pub mod config;
pub mod protocol;

mod cgroup;
mod channel;
mod confine;
mod failure;
mod findings;
mod idmap;
mod isolation;
mod job;
mod landlock;
mod mounts;
mod node;
mod premises;
mod process;
mod processes;
mod reactor;
mod seccomp;
mod server;
mod sys;
mod transfer;
mod uids;
mod unprivileged;
mod volumes;
mod warden;

pub use client::{Instance, Warden};
pub use config::WardenConfig;
pub use protocol::{
    Capabilities, ExitReport, ExitStatus, InstanceUsage, Limits, ShutdownMode, StartPhases, StartSpec,
    VolumeReport, WardenError,
};
pub use reactor::ended;
pub use warden::{RunError, run};
