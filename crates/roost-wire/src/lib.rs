//! The Postgres frontend/backend protocol, version 3, without any I/O: bytes in, values out, and the other way round.
//!
//! Everything here works on slices and `Vec<u8>` that the caller owns, so it serves any runtime and is tested without
//! one. Nothing panics on input, nothing indexes unchecked, and nothing allocates per frame.
//!
//! Source: PostgreSQL documentation, chapter "Frontend/Backend Protocol".
#![forbid(unsafe_code)]

pub mod backend;
pub mod error;
pub mod frame;
pub mod frontend;
pub mod owed;
pub mod scram;
pub mod startup;
