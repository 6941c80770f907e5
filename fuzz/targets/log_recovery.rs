#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pygmy_catalog::fuzzing::log_recovery(bytes));
