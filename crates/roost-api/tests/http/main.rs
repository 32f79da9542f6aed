//! The management API over a node without Postgres.

mod api;
mod client;
mod node;
