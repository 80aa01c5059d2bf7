//! Any bytes as a body or query of the API, guided by coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heartwatch_tests::fuzzing::asked(bytes));
