//! Any bytes as a datagram, guided by coverage.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| heartwatch_tests::fuzzing::datagram(bytes));
