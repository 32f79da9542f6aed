//! The frames that a server sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| roost_fuzz::properties::backend_stream(bytes));
