//! Benchmarks.

pub mod observe;
