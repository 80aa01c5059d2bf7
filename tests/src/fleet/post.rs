//! The sockets of a mass of hosts: beats go out in super-packets, mail comes in by batches.
//!
//! A super-packet (`UDP_SEGMENT`) is many datagrams of equal length that pass the kernel as one: it is
//! cut up only at the receiving socket, *after* that socket was chosen, and by its first datagram. All
//! datagrams of one therefore share source address and shard; a bundle holds those of one socket and
//! one shard.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use heartwatch_common::wire::DATAGRAM_LEN;
use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg,
};
use socket2::SockRef;

/// Datagrams in one super-packet, as Linux allows (`UDP_MAX_SEGMENTS`).
pub(super) const SEGMENTS_MAX: usize = 64;
/// Datagrams taken by one system call.
const BATCH_LEN: usize = 64;
/// Room for one: nothing longer than a `probe-via` comes to an agent.
const ROOM: usize = 192;
/// Buffers that are asked for, bytes.
const RECEIVE_BUFFER: usize = 8 << 20;

/// What was received by one call.
pub(super) struct Batch {
    buffers: Vec<[u8; ROOM]>,
    got: Vec<(usize, SocketAddr)>,
    headers: MultiHeaders<SockaddrStorage>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            buffers: vec![[0; ROOM]; BATCH_LEN],
            got: Vec::with_capacity(BATCH_LEN),
            headers: MultiHeaders::preallocate(BATCH_LEN, None),
        }
    }

    /// The datagrams, with their senders.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], SocketAddr)> {
        self.got.iter().zip(&self.buffers).map(|((len, from), bytes)| (&bytes[..*len], *from))
    }
}

/// The sockets.
pub(super) struct Post {
    sockets: Vec<UdpSocket>,
    controller: SocketAddr,
    shards: usize,
    segments: usize,
    /// By socket, then shard: whole datagrams one behind the other.
    bundles: Vec<Vec<u8>>,
    headers: MultiHeaders<SockaddrStorage>,
    addresses: Vec<Option<SockaddrStorage>>,
    /// Datagrams that the kernel did not take.
    pub(super) errors: u64,
}

impl Post {
    /// Sockets on the side of the controller's address from which it is reached. `segments` of 1
    /// sends every datagram by itself.
    pub(super) fn open(
        controller: SocketAddr,
        sockets: usize,
        shards: u16,
        segments: usize,
    ) -> io::Result<Self> {
        let any: SocketAddr = match controller {
            SocketAddr::V4(v4) if v4.ip().is_loopback() => (Ipv4Addr::LOCALHOST, 0).into(),
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(v6) if v6.ip().is_loopback() => (*v6.ip(), 0).into(),
            SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let sockets = (0..sockets.max(1))
            .map(|_| {
                let socket = UdpSocket::bind(any)?;
                socket.set_nonblocking(true)?;
                SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER)?;
                Ok(socket)
            })
            .collect::<io::Result<Vec<_>>>()?;
        let shards = usize::from(shards.max(1));
        let segments = segments.clamp(1, SEGMENTS_MAX);
        let room = segments * DATAGRAM_LEN;
        let per_call = shards.max(SEGMENTS_MAX);
        Ok(Self {
            bundles: vec![Vec::with_capacity(room); sockets.len() * shards],
            sockets,
            controller,
            shards,
            segments,
            headers: MultiHeaders::preallocate(per_call, Some(cmsg_space!(u16))),
            addresses: vec![Some(SockaddrStorage::from(controller)); per_call],
            errors: 0,
        })
    }

    /// How many sockets.
    pub(super) fn sockets(&self) -> usize {
        self.sockets.len()
    }

    /// Room for one more beat by that socket to that shard, to be written and sealed in place. Goes out
    /// with its bundle, at the latest by [`Self::flush`].
    pub(super) fn beat(&mut self, socket: usize, shard: u16) -> &mut [u8] {
        let at = socket * self.shards + usize::from(shard) % self.shards;
        if self.bundles[at].len() >= self.segments.max(SEGMENTS_MAX / 4) * DATAGRAM_LEN {
            self.send_socket(socket);
        }
        let bundle = &mut self.bundles[at];
        let end = bundle.len();
        bundle.resize(end + DATAGRAM_LEN, 0);
        &mut bundle[end..]
    }

    /// Sends all bundles.
    pub(super) fn flush(&mut self) {
        (0..self.sockets.len()).for_each(|socket| self.send_socket(socket));
    }

    fn send_socket(&mut self, socket: usize) {
        let Self { sockets, bundles, headers, addresses, .. } = self;
        let mine = &mut bundles[socket * self.shards..(socket + 1) * self.shards];
        let piece = self.segments * DATAGRAM_LEN;
        let slices: Vec<[IoSlice<'_>; 1]> =
            mine.iter().flat_map(|b| b.chunks(piece)).map(|c| [IoSlice::new(c)]).collect();
        let segment = DATAGRAM_LEN as u16;
        let gso = [ControlMessage::UdpGsoSegments(&segment)];
        let fd = sockets[socket].as_raw_fd();
        let mut rest = slices.as_slice();
        while !rest.is_empty() {
            let now = rest.len().min(addresses.len());
            let sent =
                sendmmsg(fd, headers, &rest[..now], &addresses[..now], gso, MsgFlags::empty());
            let done = match sent {
                Ok(results) => results.count().max(1),
                Err(_) => {
                    self.errors += (rest[0][0].len() / DATAGRAM_LEN) as u64;
                    1
                }
            };
            rest = &rest[done..];
        }
        mine.iter_mut().for_each(Vec::clear);
    }

    /// Sends one datagram by itself; to the controller unless said otherwise.
    pub(super) fn send(&mut self, socket: usize, bytes: &[u8], to: Option<SocketAddr>) {
        if self.sockets[socket].send_to(bytes, to.unwrap_or(self.controller)).is_err() {
            self.errors += 1;
        }
    }

    /// Receives what a socket holds, at most [`BATCH_LEN`]. Answers whether there may be more.
    pub(super) fn receive(&self, socket: usize, batch: &mut Batch) -> bool {
        let Batch { buffers, got, headers } = batch;
        got.clear();
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
        let fd = self.sockets[socket].as_raw_fd();
        // Nothing there is the usual error; others show as datagrams that never come.
        if let Ok(results) = recvmmsg(fd, headers, &mut slices, MsgFlags::MSG_DONTWAIT, None) {
            got.extend(results.map(|r| (r.bytes.min(ROOM), address(r.address))));
        }
        got.len() == BATCH_LEN
    }
}

fn address(storage: Option<SockaddrStorage>) -> SocketAddr {
    let v4 = storage.and_then(|s| s.as_sockaddr_in().map(|a| (a.ip(), a.port()).into()));
    let v6 = || storage.and_then(|s| s.as_sockaddr_in6().map(|a| (a.ip(), a.port()).into()));
    v4.or_else(v6).unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use heartwatch_controller::ingest::socket::{BatchSocket, Role};

    #[test]
    fn a_super_packet_arrives_as_whole_datagrams_from_one_socket() {
        let mut sink = BatchSocket::bind("127.0.0.1:0".parse().unwrap(), Role::Beats).unwrap();
        let mut post = Post::open(sink.local_addr().unwrap(), 2, 1, SEGMENTS_MAX).unwrap();
        for n in 0..150u8 {
            post.beat(usize::from(n % 2), 0).fill(n);
        }
        post.flush();
        let (mut first, mut count) = (Vec::new(), 0);
        loop {
            let n = sink.receive().unwrap();
            for i in 0..n {
                let got = sink.get(i).unwrap();
                assert_eq!(got.bytes.len(), DATAGRAM_LEN);
                first.push((got.bytes[0], got.from));
            }
            count += n;
            if n == 0 {
                break;
            }
        }
        assert_eq!((count, post.errors), (150, 0));
        let ports: std::collections::BTreeSet<_> = first.iter().map(|(_, from)| *from).collect();
        assert_eq!(ports.len(), 2);
        first.sort_unstable();
        assert!(first.iter().enumerate().all(|(i, (n, _))| i == usize::from(*n)));
    }

    /// Why bundles are kept by shard.
    #[test]
    fn the_kernel_steers_a_super_packet_by_its_first_datagram() {
        let any = "127.0.0.1:0".parse().unwrap();
        let mut zero = BatchSocket::bind(any, Role::Beats).unwrap();
        let mut one = BatchSocket::bind(zero.local_addr().unwrap(), Role::Beats).unwrap();
        zero.steer(2).unwrap();
        let ids: Vec<_> = (0..64).map(super::super::mass_id).collect();
        let shard = |n: usize| heartwatch_controller::shard::route::shard_of(ids[n], 2);
        let leader = (0..64).find(|n| shard(*n) == 1).unwrap();
        let mut post = Post::open(zero.local_addr().unwrap(), 1, 1, SEGMENTS_MAX).unwrap();
        for n in [leader].into_iter().chain(0..63) {
            post.beat(0, 0)[8..24].copy_from_slice(&ids[n].0);
        }
        post.flush();
        assert_eq!((zero.receive().unwrap(), one.receive().unwrap()), (0, 64));
    }
}
