//! What the Heartwatch agent and controller must agree on.
//!
//! Read in this order: [`id`] (who), [`time`] (when), [`load`] (how busy), [`wire`] (the datagrams
//! that carry them), [`auth`] (why to believe one), [`enrol`] (how a host gets its key), [`backoff`] (when
//! to try again), [`config`] (how a file becomes settings), [`secret`]
//! (what must not be shown), [`words`] (how many of what), [`daemon`] (how a process lives under systemd
//! or a shell), [`cli`] (manual pages and completions), [`fdstore`] (what the service manager keeps over a
//! restart).
//!
//! `id`, `load`, `wire` and `backoff` are values: they open nothing, read no clock and draw no ambient
//! randomness. Only [`time::SystemClock`] reads the operating system's clocks.

pub mod auth;
pub mod backoff;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod enrol;
pub mod fdstore;
pub mod id;
pub mod load;
pub mod secret;
pub mod time;
pub mod wire;
pub mod words;
