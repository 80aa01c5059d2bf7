//! `probe-via`: "ask that host for me". The byte table stands in [`crate::wire`].

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BODY_LEN, DATAGRAM_LEN, DecodeError, Fixed, Header, Kind, TAG_LEN, raw_header};
use crate::id::{ControllerId, Epoch};

/// Length of a probe-via: a body, the probe to be passed on, the tag.
pub const VIA_LEN: usize = BODY_LEN + DATAGRAM_LEN + TAG_LEN;

/// One sealed or unsealed probe-via.
pub type ViaDatagram = [u8; VIA_LEN];

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawVia {
    reserved: U32,
    number: U32,
    controller: U64,
    port: U16,
    reserved_2: U16,
    epoch: U32,
    address: [u8; 16],
    probe: [u8; DATAGRAM_LEN],
}

/// "Ask that host for me, and bring me its answer." The peer can neither read more out of the probe than
/// whom it is for and which nonce it carries, nor answer it: it is sealed under the other host's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeVia<'a> {
    /// Number of the request, for people who read captures.
    pub number: u32,
    /// Which controller asks.
    pub controller: ControllerId,
    /// Its present epoch.
    pub epoch: Epoch,
    /// Where the other host was last heard from; IPv4 where it can be.
    pub to: SocketAddr,
    /// A whole probe, sealed under the other host's key.
    pub probe: &'a Fixed,
}

/// Reads what follows the header.
pub(super) fn decode(bytes: &[u8]) -> Result<ProbeVia<'_>, DecodeError> {
    let (v, _) = RawVia::ref_from_prefix(bytes).map_err(|_| DecodeError::TooShort)?;
    Ok(ProbeVia {
        number: v.number.get(),
        controller: ControllerId(v.controller.get()),
        epoch: Epoch(v.epoch.get()),
        to: SocketAddr::new(Ipv6Addr::from(v.address).to_canonical(), v.port.get()),
        probe: &v.probe,
    })
}

impl ProbeVia<'_> {
    /// The unsealed datagram.
    pub fn encode(&self, header: &Header) -> ViaDatagram {
        let address = match self.to {
            SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped(),
            SocketAddr::V6(v6) => *SocketAddrV6::ip(&v6),
        };
        let raw = RawVia {
            reserved: 0.into(),
            number: self.number.into(),
            controller: self.controller.0.into(),
            port: self.to.port().into(),
            reserved_2: 0.into(),
            epoch: self.epoch.0.into(),
            address: address.octets(),
            probe: *self.probe,
        };
        let mut out = [0; VIA_LEN];
        let head = raw_header(Kind::ProbeVia, header, 0);
        let parts = head.as_bytes().iter().chain(raw.as_bytes());
        out.iter_mut().zip(parts).for_each(|(to, from)| *to = *from);
        out
    }
}
