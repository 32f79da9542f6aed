//! The door: clients speak the Postgres protocol with it, and it finds, wakes and connects the database that they mean.
//!
//! A connection travels through the modules in this order:
//!
//! 1. `listener`: accepted, counted (`limits`), handed to a worker thread;
//! 2. `startup`: TLS (`tls`), the startup packet; a cancel request goes to `cancel` and ends there;
//! 3. `authenticate`: which database and role are meant (`route`), and does the client know the password;
//! 4. `session`: the database is woken (`ladder`), a server session opened (`roost-pool`);
//! 5. `relay`: bytes go both ways until somebody leaves, or the database or node goes away (`interrupt`).
//!
//! `connection` leads through these stages. Whatever goes wrong is one `error::ErrorKind`, which alone decides what the
//! client, the log and the `metrics` are told.
//!
//! Invariants:
//! - nothing that has not authenticated wakes a database;
//! - a client's bytes reach only the database that it authenticated for, as the role that it authenticated as;
//! - what one connection can take (memory, time, attempts) is bounded before it has proved anything.

#![forbid(unsafe_code)]

mod authenticate;
mod buffer;
mod cancel;
mod client;
pub mod config;
mod connection;
mod door;
mod error;
mod gateway;
mod interrupt;
mod ladder;
mod limits;
mod listener;
mod metrics;
mod relay;
mod route;
mod session;
mod shortage;
mod startup;
mod tls;
mod traffic;

pub use config::{CertificateSource, GatewayConfig, LimitsConfig, ListenerConfig};
pub use gateway::{BindError, Gateway, Serving};
pub use ladder::Ladder;
pub use limits::Rate;
pub use tls::TlsError;
