//! The gateway in front of a real Postgres, with real clients and hostile ones. The ladder is played by the test: it holds
//! one Postgres that always runs, and records what the gateway asks of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends at its first surprise")]

mod abuse;
mod bounds;
mod cancelling;
mod closing;
mod leases;
mod login;
mod negotiation;
mod relaying;
mod shortage;
mod support;
