#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pygmy::fuzzing::config(bytes));
