//! The frames that a client sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| roost_fuzz::properties::frontend_stream(bytes));
