//! The measurements, one module for each row of the table of bars in SPECIFICATION.md.

pub(crate) mod create;
pub(crate) mod frozen;
pub(crate) mod idle;
pub(crate) mod million;
pub(crate) mod relay;
pub(crate) mod storm;
pub(crate) mod wake;
