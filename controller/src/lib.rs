//! The Heartwatch controller: from a beat to a failover.

pub mod config;
pub mod event;
pub mod store;
