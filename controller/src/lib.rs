//! The Heartwatch controller: from a beat to a failover.

pub mod api;
pub mod app;
pub mod config;
pub mod control;
pub mod ctl;
pub mod delivery;
pub mod detector;
pub mod event;
pub mod ingest;
pub mod metrics;
pub mod policy;
pub mod shard;
pub mod store;
pub mod view;
