//! Both messages of a SASL exchange, parted by a NUL, to either side; and verifiers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| roost_fuzz::properties::scram(bytes));
