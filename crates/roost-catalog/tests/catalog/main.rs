//! The catalog as the rest of Roost sees it: through its public methods, on real files.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

mod bounds;
mod crash;
mod deletion;
mod fixture;
mod logins;
mod opening;
mod registry;
mod usage;
