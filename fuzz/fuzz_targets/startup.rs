//! The first packet of a connection.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| roost_fuzz::properties::startup(bytes));
