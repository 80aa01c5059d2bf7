//! The sockets of a mass of hosts: beats go out in super-packets, mail comes in by batches.
//!
//! A super-packet (`UDP_SEGMENT`) is many datagrams of equal length that pass the kernel as one: it is
//! cut up only at the receiving socket, *after* that socket was chosen, and by its first datagram. All
//! datagrams of one therefore share source address and shard; a bundle holds those of one socket and
//! one shard.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use heartwatch_common::wire::{DATAGRAM_LEN, Fixed};
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
/// Super-packets in one system call.
const PER_CALL: usize = 64;
/// Addresses to which answers wait at once.
const TARGETS_MAX: usize = 64;
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

/// Datagrams of one length to one address, one behind the other.
struct Bundle {
    to: SocketAddr,
    segment: usize,
    bytes: Vec<u8>,
}

/// A socket and what waits to be sent by it: beats by shard, hellos by shard, then answers by address.
struct Outlet {
    socket: UdpSocket,
    bundles: Vec<Bundle>,
}

/// The sockets.
pub(super) struct Post {
    outlets: Vec<Outlet>,
    controller: SocketAddr,
    shards: usize,
    segments: usize,
    headers: MultiHeaders<SockaddrStorage>,
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
        let shards = usize::from(shards.max(1));
        let outlets = (0..sockets.max(1))
            .map(|_| {
                let socket = UdpSocket::bind(any)?;
                socket.set_nonblocking(true)?;
                SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER)?;
                let fresh = || Bundle { to: controller, segment: DATAGRAM_LEN, bytes: Vec::new() };
                let bundles = (0..2 * shards).map(|_| fresh()).collect();
                Ok(Outlet { socket, bundles })
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            outlets,
            controller,
            shards,
            segments: segments.clamp(1, SEGMENTS_MAX),
            headers: MultiHeaders::preallocate(PER_CALL, Some(cmsg_space!(u16))),
            errors: 0,
        })
    }

    /// Where its datagrams come from.
    pub(super) fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.outlets.iter().map(|outlet| outlet.socket.local_addr()).collect()
    }

    /// How many sockets.
    pub(super) fn sockets(&self) -> usize {
        self.outlets.len()
    }

    /// Room for one more beat, or answer to a beat socket, by that socket to that shard, to be written and
    /// sealed in place. Goes out with its bundle, at the latest by [`Self::flush`].
    pub(super) fn beat(&mut self, socket: usize, shard: u16) -> &mut [u8] {
        let at = usize::from(shard) % self.shards;
        self.room(socket, at, DATAGRAM_LEN)
    }

    /// Sends a hello in a bundle of those that are as long.
    pub(super) fn hello(&mut self, socket: usize, shard: u16, hello: &[u8]) {
        let at = self.shards + usize::from(shard) % self.shards;
        self.room(socket, at, hello.len()).copy_from_slice(hello);
    }

    /// Sends a datagram of usual length to anybody.
    pub(super) fn answer(&mut self, socket: usize, to: SocketAddr, shard: u16, bytes: &Fixed) {
        if to == self.controller {
            return self.beat(socket, shard).copy_from_slice(bytes);
        }
        let first = 2 * self.shards;
        let bundles = &mut self.outlets[socket].bundles;
        let at = match bundles[first..].iter().position(|b| b.to == to) {
            Some(at) => first + at,
            None if bundles.len() < first + TARGETS_MAX => {
                bundles.push(Bundle { to, segment: DATAGRAM_LEN, bytes: Vec::new() });
                bundles.len() - 1
            }
            None => {
                self.send_socket(socket);
                self.outlets[socket].bundles[first].to = to;
                first
            }
        };
        self.room(socket, at, DATAGRAM_LEN).copy_from_slice(bytes);
    }

    fn room(&mut self, socket: usize, at: usize, len: usize) -> &mut [u8] {
        let bundle = &self.outlets[socket].bundles[at];
        let full = bundle.bytes.len() >= SEGMENTS_MAX * bundle.segment;
        if full || (bundle.segment != len && !bundle.bytes.is_empty()) {
            self.send_socket(socket);
        }
        let bundle = &mut self.outlets[socket].bundles[at];
        bundle.segment = len;
        let end = bundle.bytes.len();
        bundle.bytes.resize(end + len, 0);
        &mut bundle.bytes[end..]
    }

    /// Sends all bundles.
    pub(super) fn flush(&mut self) {
        (0..self.outlets.len()).for_each(|socket| self.send_socket(socket));
    }

    fn send_socket(&mut self, socket: usize) {
        let Self { outlets, headers, segments, errors, .. } = self;
        let Outlet { socket, bundles } = &mut outlets[socket];
        // One call says one segment length, so bundles of another length wait for the next.
        while let Some(segment) = bundles.iter().find(|b| !b.bytes.is_empty()).map(|b| b.segment) {
            let mine = |b: &&Bundle| b.segment == segment;
            let piece = *segments * segment;
            let pieces = |b: &'_ Bundle| b.bytes.len().div_ceil(piece);
            let addresses: Vec<Option<SockaddrStorage>> = bundles
                .iter()
                .filter(mine)
                .flat_map(|b| std::iter::repeat_n(Some(b.to.into()), pieces(b)))
                .collect();
            let slices: Vec<[IoSlice<'_>; 1]> = bundles
                .iter()
                .filter(mine)
                .flat_map(|b| b.bytes.chunks(piece).map(|c| [IoSlice::new(c)]))
                .collect();
            *errors += send_all(socket, headers, &slices, &addresses, segment);
            for bundle in bundles.iter_mut().filter(|b| b.segment == segment) {
                bundle.bytes.clear();
            }
        }
    }

    /// Receives what a socket holds, at most [`BATCH_LEN`]. Answers whether there may be more.
    pub(super) fn receive(&self, socket: usize, batch: &mut Batch) -> bool {
        let Batch { buffers, got, headers } = batch;
        got.clear();
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
        let fd = self.outlets[socket].socket.as_raw_fd();
        // Nothing there is the usual error; others show as datagrams that never come.
        if let Ok(results) = recvmmsg(fd, headers, &mut slices, MsgFlags::MSG_DONTWAIT, None) {
            got.extend(results.map(|r| (r.bytes.min(ROOM), address(r.address))));
        }
        got.len() == BATCH_LEN
    }
}

/// Sends super-packets; answers how many datagrams the kernel did not take.
fn send_all(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<SockaddrStorage>,
    slices: &[[IoSlice<'_>; 1]],
    addresses: &[Option<SockaddrStorage>],
    segment: usize,
) -> u64 {
    let (fd, mut done, mut errors) = (socket.as_raw_fd(), 0, 0);
    let length = segment as u16;
    let gso = [ControlMessage::UdpGsoSegments(&length)];
    while done < slices.len() {
        let end = slices.len().min(done + PER_CALL);
        let (now, to) = (&slices[done..end], &addresses[done..end]);
        done += match sendmmsg(fd, headers, now, to, gso, MsgFlags::empty()) {
            Ok(results) => results.count().max(1),
            Err(_) => {
                errors += (now[0][0].len() / segment) as u64;
                1
            }
        };
    }
    errors
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

    #[test]
    fn hellos_answers_and_beats_travel_together_each_to_its_own() {
        let any = "127.0.0.1:0".parse().unwrap();
        let mut sink = BatchSocket::bind(any, Role::Beats).unwrap();
        let mut other = BatchSocket::bind(any, Role::Probes).unwrap();
        let (to, elsewhere) = (sink.local_addr().unwrap(), other.local_addr().unwrap());
        let mut post = Post::open(to, 1, 2, SEGMENTS_MAX).unwrap();
        for n in 0..10u8 {
            post.beat(0, u16::from(n % 2)).fill(n);
            post.hello(0, 0, &[n; 150]);
            post.answer(0, to, 0, &[n; DATAGRAM_LEN]);
            post.answer(0, elsewhere, 0, &[n; DATAGRAM_LEN]);
        }
        // Of another length: those that wait go first.
        post.hello(0, 0, &[99; 151]);
        post.flush();
        let lens = |socket: &mut BatchSocket| {
            let n = socket.receive().unwrap();
            let mut lens: Vec<_> = (0..n).map(|i| socket.get(i).unwrap().bytes.len()).collect();
            lens.sort_unstable();
            lens
        };
        let wanted: Vec<_> = [vec![80; 20], vec![150; 10], vec![151]].concat();
        assert_eq!((lens(&mut sink), lens(&mut other)), (wanted, vec![80; 10]));
        assert_eq!(post.errors, 0);
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
