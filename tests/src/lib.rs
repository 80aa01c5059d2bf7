//! What proves Heartwatch: real processes in [`world`], a fleet in one process in [`fleet`], and what
//! both share. End-to-end tests are in `tests/tests/e2e_*.rs`, each named after the behaviour it proves.

pub mod beatpath;
pub mod bench;
pub mod chart;
pub mod eval;
pub mod fleet;
pub mod fuzzing;
pub mod invariants;
pub mod machine;
pub mod sim;
pub mod storms;
pub mod vectors;
pub mod world;
