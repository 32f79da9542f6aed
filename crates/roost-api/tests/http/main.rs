//! The management API over a node without Postgres.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its set-up too")]

mod api;
mod client;
mod node;
