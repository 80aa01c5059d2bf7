//! A shard: one thread that owns its sockets and its hosts. No lock, no queue, no other core on the
//! way of a beat.

pub mod core;
pub mod foreign;
pub mod notices;
pub mod rest;
pub mod route;
pub mod watch;
pub mod worker;
