//! The Heartwatch controller: from a beat to a failover.

pub mod api;
pub mod config;
pub mod control;
pub mod ctl;
pub mod delivery;
pub mod event;
pub mod metrics;
pub mod store;
pub mod view;
