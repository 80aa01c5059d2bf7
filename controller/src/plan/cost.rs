//! What the controller costs. One place, so that a new measurement changes the plan.
//!
//! [`BEAT_NS`] is what it is built to stay within at a million hosts, not yet a measurement of that many;
//! [`HOST_BYTES`] and [`BASE_BYTES`] were measured. The benchmarks named tell what yours takes.

/// CPU time of a beat, all of it: the kernel's receive path, admission, detector, its share of the acks.
/// Nanoseconds; compare `controller_ns` of `cargo xtask bench ingest`.
pub const BEAT_NS: f64 = 1_000.0;
/// Resident memory of a host with name and three labels, bytes: what `cargo xtask bench memory` said of each
/// of a million on a busy machine, 452 in all, without [`BASE_BYTES`]. Where they are: ADR 27.
pub const HOST_BYTES: f64 = 432.0;
/// Resident memory without any host, bytes: 15 MB of code, and some for threads and buffers.
pub const BASE_BYTES: f64 = 20e6;
/// No core should be busier than this: what comes in bursts must wait for room. With random arrivals the
/// mean wait at 0.7 is 1.2 service times (M/D/1: ρ / 2(1 − ρ)).
pub const BUSY_MAX: f64 = 0.7;
/// What a datagram of up to 192 bytes takes of a receive buffer, bytes: its structures count too. Counted
/// with `SO_RCVBUF` = 212,992, which holds 256 of them (Linux 6, loopback); network drivers that give each
/// datagram a page take up to 4,352.
pub const DATAGRAM_BUFFER_BYTES: f64 = 832.0;

/// A beat (`wire::DATAGRAM_LEN`), or an ack, which is 6 bytes shorter.
pub const DATAGRAM_BYTES: f64 = 80.0;
/// UDP's header (RFC 768), IPv4's (RFC 791) and Ethernet's: addresses, type, checksum, preamble and gap
/// (IEEE 802.3: 14 + 4 + 8 + 12).
pub const OVERHEAD_BYTES: f64 = 8.0 + 20.0 + 38.0;
/// IPv6's header is longer by this (RFC 8200).
pub const IPV6_MORE_BYTES: f64 = 20.0;
