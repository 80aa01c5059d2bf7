//! The Heartwatch agent: tells the controllers that this host lives, and how busy it is.
//!
//! Read in this order: [`schedule`] (when the next beat is due), [`core`] (the whole protocol as a
//! value), then the shells around it: [`sampler`] (load), [`identity`] (who this host is),
//! [`config`], [`enrol`] (how it gets its key), [`transport`] (sockets and names), [`status`] (what a
//! person asks), [`control`] (what a person says), [`app`] (the loop).
//!
//! `schedule` and `core` are values: they open nothing, read no clock and draw no ambient
//! randomness, so the simulator drives the very code that runs on hosts.

pub mod app;
pub mod config;
pub mod control;
pub mod core;
pub mod enrol;
pub mod identity;
pub mod resist;
pub mod sampler;
pub mod schedule;
pub mod status;
pub mod transport;
