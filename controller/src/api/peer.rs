//! Who is at the other end of a connection: where it comes from, and by what it is protected.

use std::net::{IpAddr, SocketAddr};

/// What is known of a connection before a byte of HTTP is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it comes from; an IPv4 address that was mapped into IPv6 is IPv4 again.
    pub address: IpAddr,
    /// Whether it comes from this machine itself.
    pub local: bool,
    /// Whether it is TLS.
    pub tls: bool,
    /// Whether it showed a certificate by one of `api.client_ca_file`'s authorities.
    pub certificate: bool,
}

impl Peer {
    /// A plain connection from loopback.
    pub const LOCAL: Self = Self {
        address: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        local: true,
        tls: false,
        certificate: false,
    };
    /// Nobody knows who: what is believed of a request that came by no connection of ours.
    pub const STRANGER: Self = Self { local: false, tls: true, ..Self::LOCAL };
}

/// Whether both ends of a connection are this machine: from loopback, or from the very address that it goes
/// to. TCP's handshake has seen to it that answers to that address arrive, and they never leave the machine.
pub(super) fn is_local(peer: SocketAddr, own: SocketAddr) -> bool {
    let (peer, own) = (peer.ip().to_canonical(), own.ip().to_canonical());
    peer.is_loopback() || peer == own
}
