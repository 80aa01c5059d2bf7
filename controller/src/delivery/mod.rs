//! From the outbox to a receiver.

mod breaker;
pub mod outcome;
mod queue;
pub mod schedule;
pub mod sign;
pub mod webhook;
