//! The checks that the fuzz targets run: the same that `crates/roost-wire/tests/hostile_input.rs` drives.

#[path = "../../crates/roost-wire/tests/properties/mod.rs"]
pub mod properties;
