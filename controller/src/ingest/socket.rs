//! Batched UDP: many datagrams per system call, with kernel receive times, drop counts and ICMP errors.
//!
//! The only system calls of the product that need `unsafe`, beside advice on memory. `recvmmsg` is wrapped
//! here rather than taken from `nix`, whose reused headers keep the control length of the batch before and
//! so lose control data exactly when it
//! matters (nix-rust/nix pull request 2813).
//!
//! Every call is non-blocking and bounded by [`BATCH_LEN`], or by [`SUPERS_LEN`] super-packets.
//!
//! # Super-packets
//!
//! With `UDP_GRO` (udp(7), Linux 5.0) the kernel hands over datagrams of one flow that came together, and
//! are of one size, as one piece of memory. Hosts that beat from addresses of their own have a flow each, so
//! for them nothing changes; a gateway, relay or load generator that sends many datagrams by one socket
//! costs a tenth. What comes out of a socket is the same datagrams either way.
#![expect(unsafe_code, reason = "recvmmsg, sendmmsg, MSG_ERRQUEUE and SO_MEMINFO need libc")]

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use heartwatch_common::wire::DATAGRAM_LEN_MAX;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Datagrams per system call.
pub const BATCH_LEN: usize = 128;
/// Room per datagram; one byte more than any true one, so that longer ones show.
const ROOM: usize = DATAGRAM_LEN_MAX + 1;
/// Room for control data per datagram: a timestamp and a segment size, with a margin.
const CONTROL_ROOM: usize = 64;
/// Super-packets per system call, and room for each: as long as a datagram of the internet can be.
pub const SUPERS_LEN: usize = 32;
const SUPER_ROOM: usize = 65_536;
/// `SOL_UDP` and `UDP_GRO` (linux/udp.h): to ask for super-packets, and the size of their pieces.
const SOL_UDP: libc::c_int = 17;
const UDP_GRO: libc::c_int = 104;
/// Receive buffer that is asked for; the kernel may grant less.
const RECEIVE_BUFFER_WANTED: usize = 64 << 20;
/// `getsockopt` number and word of `SO_MEMINFO` (linux/sock_diag.h: `SK_MEMINFO_DROPS`,
/// `SK_MEMINFO_RMEM_ALLOC`, `SK_MEMINFO_RCVBUF`).
const SO_MEMINFO: libc::c_int = 55;
const MEMINFO_WORDS: usize = 9;
const MEMINFO_WAITING: usize = 0;
const MEMINFO_BUFFER: usize = 1;
const MEMINFO_DROPS: usize = 8;

/// One datagram of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// Its bytes; one longer than allowed shows as [`DATAGRAM_LEN_MAX`] + 1 bytes.
    pub bytes: &'a [u8],
    /// Where it came from.
    pub from: SocketAddr,
    /// When the kernel received it, nanoseconds of wall-clock time; `None` if it did not say.
    pub stamp_ns: Option<i64>,
}

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_ROOM]);

/// What came with a message: a datagram, or a super-packet.
#[derive(Clone, Copy, Debug)]
struct Message {
    from: Option<SocketAddr>,
    stamp_ns: Option<i64>,
}

/// Where a datagram of the last batch lies.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u32,
    len: u16,
    message: u16,
}

/// A UDP socket with its batch of buffers.
pub struct BatchSocket {
    socket: UdpSocket,
    /// Messages per system call, and room for each in `buffer`.
    calls: usize,
    room: usize,
    buffer: Vec<u8>,
    controls: Vec<Control>,
    names: Vec<libc::sockaddr_storage>,
    iovecs: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
    messages: Vec<Message>,
    pieces: Vec<Piece>,
    drained: bool,
    /// The kernel's drop counter when it was taken over.
    drops_before: u32,
}

// SAFETY: the raw pointers in `iovecs` and `headers` point only into this value's own heap buffers,
// are written anew before every call, and are never read otherwise.
unsafe impl Send for BatchSocket {}

fn check(result: libc::c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Receives beats; shares its port with the other shards' sockets.
    Beats,
    /// Sends probes and hears their answers and ICMP errors; an ephemeral port of its own.
    Probes,
}

impl BatchSocket {
    /// Binds a socket. Beat sockets share their address with each other (`SO_REUSEPORT`); IPv6
    /// wildcard sockets take IPv4 too.
    pub fn bind(address: SocketAddr, role: Role) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        if role == Role::Beats {
            socket.set_reuse_port(true)?;
        }
        equip(&socket)?;
        if role == Role::Probes {
            set_option(socket.as_raw_fd(), libc::SOL_IP, libc::IP_RECVERR, 1)?;
            if address.is_ipv6() {
                set_option(socket.as_raw_fd(), libc::SOL_IPV6, libc::IPV6_RECVERR, 1)?;
            }
        }
        socket.bind(&SockAddr::from(address))?;
        Ok(Self::new(socket.into()))
    }

    /// Goes on with a beat socket of the process before, which is bound and may hold datagrams that came
    /// since. Drops of the time before are not counted again.
    pub fn take_over(socket: UdpSocket) -> io::Result<Self> {
        equip(&socket2::SockRef::from(&socket))?;
        let mut taken = Self::new(socket);
        // Super-packets that wait could not be told from datagrams that are too long.
        taken.gather();
        taken.drops_before = taken.meminfo()?[MEMINFO_DROPS];
        Ok(taken)
    }

    fn new(socket: UdpSocket) -> Self {
        // SAFETY: all-zero is a valid value of these plain C structures.
        let (name, iovec, header) = unsafe {
            (
                mem::zeroed::<libc::sockaddr_storage>(),
                mem::zeroed::<libc::iovec>(),
                mem::zeroed::<libc::mmsghdr>(),
            )
        };
        Self {
            socket,
            calls: BATCH_LEN,
            room: ROOM,
            buffer: vec![0; BATCH_LEN * ROOM],
            controls: vec![Control([0; CONTROL_ROOM]); BATCH_LEN],
            names: vec![name; BATCH_LEN],
            iovecs: vec![iovec; BATCH_LEN],
            headers: vec![header; BATCH_LEN],
            messages: Vec::with_capacity(BATCH_LEN),
            pieces: Vec::with_capacity(BATCH_LEN),
            drained: false,
            drops_before: 0,
        }
    }

    /// Asks the kernel for super-packets. A kernel that has none hands over single datagrams as ever.
    pub fn gather(&mut self) {
        if set_option(self.socket.as_raw_fd(), SOL_UDP, UDP_GRO, 1).is_ok() {
            (self.calls, self.room) = (SUPERS_LEN, SUPER_ROOM);
            // Untouched pages of it take no memory.
            self.buffer = vec![0; SUPERS_LEN * SUPER_ROOM];
        }
    }

    /// The address that it is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The receive buffer as the kernel granted it, bytes.
    pub fn receive_buffer(&self) -> io::Result<usize> {
        socket2::SockRef::from(&self.socket).recv_buffer_size()
    }

    /// Receives what is there, at most [`BATCH_LEN`] datagrams or [`SUPERS_LEN`] super-packets. Answers how
    /// many datagrams; 0 if nothing is there.
    pub fn receive(&mut self) -> io::Result<usize> {
        let (calls, room) = (self.calls, self.room);
        for (i, buffer) in self.buffer.chunks_exact_mut(room).enumerate() {
            self.iovecs[i] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: room };
            // Written whole before every call: the kernel overwrites the lengths.
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = ptr::from_mut(&mut self.names[i]).cast();
            header.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut self.iovecs[i];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[i].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_ROOM as _;
            header.msg_flags = 0;
        }
        self.messages.clear();
        self.pieces.clear();
        // SAFETY: every header points to live buffers of the stated lengths, owned by self.
        let result = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                calls as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let count = match check(result) {
            Ok(n) => n,
            Err(e) if would_wait(&e) => 0,
            Err(e) => return Err(e),
        };
        self.drained = count < calls;
        for i in 0..count {
            let (stamp_ns, segment) = self.control(i);
            self.messages.push(Message { from: address_of(&self.names[i]), stamp_ns });
            self.cut(i, segment);
        }
        Ok(self.pieces.len())
    }

    /// Notes where the datagrams of message `i` lie, which is in pieces of `segment` bytes if that is given.
    fn cut(&mut self, i: usize, segment: Option<usize>) {
        let header = &self.headers[i];
        let whole = if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            self.room
        } else {
            header.msg_len as usize
        };
        let segment = segment.filter(|len| *len > 0).unwrap_or(whole);
        let (mut at, end) = (0, whole.min(self.room));
        loop {
            let len = segment.min(end - at);
            let start = (i * self.room + at) as u32;
            self.pieces.push(Piece { start, len: len.min(ROOM) as u16, message: i as u16 });
            at += len;
            if at >= end {
                return;
            }
        }
    }

    /// Whether the last [`Self::receive`] found all that was there.
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// The bytes of datagram `i` of the last batch.
    ///
    /// # Panics
    /// If `i` is not below what [`Self::receive`] answered.
    pub fn bytes(&self, i: usize) -> &[u8] {
        let piece = self.pieces[i];
        &self.buffer[piece.start as usize..][..usize::from(piece.len)]
    }

    /// Datagram `i` of the last batch; `None` if its source is no internet address.
    ///
    /// # Panics
    /// If `i` is not below what [`Self::receive`] answered.
    pub fn get(&self, i: usize) -> Option<Received<'_>> {
        let message = self.messages[usize::from(self.pieces[i].message)];
        Some(Received { bytes: self.bytes(i), from: message.from?, stamp_ns: message.stamp_ns })
    }

    /// When the kernel received message `i`, and the size of its pieces if it is a super-packet.
    fn control(&self, i: usize) -> (Option<i64>, Option<usize>) {
        let header = &self.headers[i].msg_hdr;
        let (mut stamp_ns, mut segment) = (None, None);
        // SAFETY: the header was filled by recvmmsg and its control buffer lives in self.
        let mut control = unsafe { libc::CMSG_FIRSTHDR(header) };
        while !control.is_null() {
            // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR answer null or a header inside the buffer.
            let c = unsafe { &*control };
            if c.cmsg_level == libc::SOL_SOCKET && c.cmsg_type == libc::SCM_TIMESTAMPNS {
                // SAFETY: the kernel wrote a timespec there; it may be unaligned.
                let t =
                    unsafe { libc::CMSG_DATA(control).cast::<libc::timespec>().read_unaligned() };
                stamp_ns = Some(t.tv_sec.saturating_mul(1_000_000_000).saturating_add(t.tv_nsec));
            }
            if c.cmsg_level == SOL_UDP && c.cmsg_type == UDP_GRO {
                // SAFETY: the kernel wrote an int there; it may be unaligned.
                let size =
                    unsafe { libc::CMSG_DATA(control).cast::<libc::c_int>().read_unaligned() };
                segment = usize::try_from(size).ok();
            }
            // SAFETY: as above.
            control = unsafe { libc::CMSG_NXTHDR(header, control) };
        }
        (stamp_ns, segment)
    }

    /// Datagrams that the kernel has dropped at this socket since it was made or taken over.
    pub fn drops(&self) -> io::Result<u64> {
        // The counter is 32 bits wide and wraps.
        Ok(u64::from(self.meminfo()?[MEMINFO_DROPS].wrapping_sub(self.drops_before)))
    }

    /// Bytes of memory that datagrams take which wait to be read.
    pub fn waiting(&self) -> io::Result<u64> {
        Ok(u64::from(self.meminfo()?[MEMINFO_WAITING]))
    }

    /// The share of its receive buffer that is taken by them.
    pub fn fill(&self) -> io::Result<f64> {
        let words = self.meminfo()?;
        Ok(f64::from(words[MEMINFO_WAITING]) / f64::from(words[MEMINFO_BUFFER].max(1)))
    }

    fn meminfo(&self) -> io::Result<[u32; MEMINFO_WORDS]> {
        let mut words = [0u32; MEMINFO_WORDS];
        let mut len = mem::size_of_val(&words) as libc::socklen_t;
        // SAFETY: the buffer is live and `len` is its size.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_MEMINFO,
                words.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        check(result)?;
        Ok(words)
    }

    /// Sends datagrams, many per system call. Answers how many the kernel did not take.
    pub fn send<B: AsRef<[u8]>>(&mut self, datagrams: &[(SocketAddr, B)]) -> usize {
        let mut failed = 0;
        for chunk in datagrams.chunks(BATCH_LEN) {
            failed += self.send_chunk(chunk);
        }
        failed
    }

    fn send_chunk<B: AsRef<[u8]>>(&mut self, chunk: &[(SocketAddr, B)]) -> usize {
        let v6 = self.local_addr().is_ok_and(|a| a.is_ipv6());
        let names: Vec<SockAddr> = chunk.iter().map(|(to, _)| target(*to, v6)).collect();
        for (i, ((_, bytes), name)) in chunk.iter().zip(&names).enumerate() {
            let bytes = bytes.as_ref();
            self.iovecs[i] =
                libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = name.as_ptr().cast_mut().cast();
            header.msg_namelen = name.len();
            header.msg_iov = &raw mut self.iovecs[i];
            header.msg_iovlen = 1;
            header.msg_control = ptr::null_mut();
            header.msg_controllen = 0;
            header.msg_flags = 0;
        }
        let (mut done, mut failed) = (0, 0);
        while done < chunk.len() {
            // SAFETY: headers done.. point to `names` and `chunk`, which outlive the call; the kernel
            // only reads them.
            let result = unsafe {
                libc::sendmmsg(
                    self.socket.as_raw_fd(),
                    self.headers.as_mut_ptr().add(done),
                    (chunk.len() - done) as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            };
            match check(result) {
                Ok(0) => {
                    failed += chunk.len() - done;
                    break;
                }
                Ok(n) => done += n,
                // A pending ICMP error or an unreachable target: that one is lost, the rest goes on.
                Err(e) if !would_wait(&e) => {
                    failed += 1;
                    done += 1;
                }
                Err(_) => {
                    failed += chunk.len() - done;
                    break;
                }
            }
        }
        failed
    }

    /// The next "port unreachable" that the network reported for a datagram sent from here: the bytes
    /// of it that were quoted, at most `into.len()`, and whom it was sent to. `None`: no more errors.
    /// Other errors are skipped.
    pub fn unreachable<'b>(
        &self,
        into: &'b mut [u8],
    ) -> io::Result<Option<(&'b [u8], SocketAddr)>> {
        loop {
            match self.next_error(into)? {
                None => return Ok(None),
                Some((len, to, true)) => return Ok(Some((&into[..len], to))),
                Some(_) => {}
            }
        }
    }

    fn next_error(&self, into: &mut [u8]) -> io::Result<Option<(usize, SocketAddr, bool)>> {
        // SAFETY: all-zero is a valid value of these plain C structures.
        let (mut name, mut header) =
            unsafe { (mem::zeroed::<libc::sockaddr_storage>(), mem::zeroed::<libc::msghdr>()) };
        let mut control = [Control([0; CONTROL_ROOM]); 8];
        let mut iovec = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
        header.msg_name = ptr::from_mut(&mut name).cast();
        header.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        header.msg_iov = &raw mut iovec;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = mem::size_of_val(&control) as _;
        // SAFETY: all buffers are live and of the stated lengths.
        let result = unsafe {
            libc::recvmsg(
                self.socket.as_raw_fd(),
                &raw mut header,
                libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT,
            )
        };
        let len = match usize::try_from(result) {
            Ok(n) => n.min(into.len()),
            Err(_) => {
                let e = io::Error::last_os_error();
                return if would_wait(&e) { Ok(None) } else { Err(e) };
            }
        };
        let mut port_unreachable = false;
        // SAFETY: the header was filled by recvmsg and its control buffer is live.
        let mut at = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
        while !at.is_null() {
            // SAFETY: null or a header inside the buffer.
            let c = unsafe { &*at };
            let v4 = c.cmsg_level == libc::SOL_IP && c.cmsg_type == libc::IP_RECVERR;
            let v6 = c.cmsg_level == libc::SOL_IPV6 && c.cmsg_type == libc::IPV6_RECVERR;
            if v4 || v6 {
                // SAFETY: the kernel wrote a sock_extended_err there; it may be unaligned.
                let e = unsafe {
                    libc::CMSG_DATA(at).cast::<libc::sock_extended_err>().read_unaligned()
                };
                port_unreachable |= match e.ee_origin {
                    // RFC 792: destination unreachable (3), port unreachable (3).
                    libc::SO_EE_ORIGIN_ICMP => (e.ee_type, e.ee_code) == (3, 3),
                    // RFC 4443: destination unreachable (1), port unreachable (4).
                    libc::SO_EE_ORIGIN_ICMP6 => (e.ee_type, e.ee_code) == (1, 4),
                    _ => false,
                };
            }
            // SAFETY: as above.
            at = unsafe { libc::CMSG_NXTHDR(&raw const header, at) };
        }
        let to = address_of(&name).unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        Ok(Some((len, to, port_unreachable)))
    }

    /// Makes the kernel choose the socket of a `SO_REUSEPORT` group by the host id in the datagram.
    /// The program computes exactly [`crate::shard::route::shard_of`].
    pub fn steer(&self, shards: u16) -> io::Result<()> {
        let mut program = crate::shard::route::steering_program(shards);
        let filter =
            libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_mut_ptr() };
        // SAFETY: the kernel copies the program during the call.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_REUSEPORT_CBPF,
                ptr::from_ref(&filter).cast(),
                mem::size_of_val(&filter) as libc::socklen_t,
            )
        };
        check(result).map(|_| ())
    }
}

impl AsFd for BatchSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What every socket is given, new or taken over.
fn equip(socket: &Socket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    // The forced variant needs CAP_NET_ADMIN; without it net.core.rmem_max caps what is granted.
    let forced = set_option(
        socket.as_raw_fd(),
        libc::SOL_SOCKET,
        libc::SO_RCVBUFFORCE,
        RECEIVE_BUFFER_WANTED as libc::c_int,
    );
    if forced.is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER_WANTED)?;
    }
    set_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)
}

fn would_wait(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn set_option(
    fd: libc::c_int,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the kernel reads one int during the call.
    let result = unsafe {
        libc::setsockopt(
            fd,
            level,
            option,
            ptr::from_ref(&value).cast(),
            mem::size_of_val(&value) as libc::socklen_t,
        )
    };
    check(result).map(|_| ())
}

/// The address as a socket of the given family takes it.
fn target(to: SocketAddr, v6_socket: bool) -> SockAddr {
    match to {
        SocketAddr::V4(v4) if v6_socket => {
            SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())).into()
        }
        other => other.into(),
    }
}

/// Reads an address that the kernel wrote; IPv4 in IPv6's clothes is undressed.
fn address_of(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the kernel wrote a sockaddr_in, which is smaller than and
            // no more strictly aligned than sockaddr_storage.
            let v4 = unsafe { &*ptr::from_ref(name).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: likewise, a sockaddr_in6.
            let v6 = unsafe { &*ptr::from_ref(name).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Some(match ip.to_ipv4_mapped() {
                Some(ip) => SocketAddrV4::new(ip, port).into(),
                None => SocketAddrV6::new(ip, port, 0, v6.sin6_scope_id).into(),
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (BatchSocket, UdpSocket) {
        let socket = BatchSocket::bind("127.0.0.1:0".parse().unwrap(), Role::Beats).unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        (socket, peer)
    }

    #[test]
    fn a_super_packet_comes_out_as_its_datagrams() {
        let (mut socket, peer) = pair();
        socket.gather();
        let to = socket.local_addr().unwrap();
        peer.connect(to).unwrap();
        // Sent as one: 20 pieces of 80 bytes and a shorter one.
        set_option(peer.as_raw_fd(), SOL_UDP, 103, 80).unwrap();
        let bytes: Vec<u8> = (0..20 * 80 + 33).map(|i| (i / 80) as u8).collect();
        peer.send(&bytes).unwrap();
        set_option(peer.as_raw_fd(), SOL_UDP, 103, 0).unwrap();
        peer.send(&[77; 100]).unwrap();
        peer.send(&[]).unwrap();
        peer.send(&[78; DATAGRAM_LEN_MAX + 500]).unwrap();
        let mut got = Vec::new();
        let mut calls = 0;
        while got.len() < 24 {
            for i in 0..socket.receive().unwrap() {
                let one = socket.get(i).unwrap();
                assert_eq!(one.from, peer.local_addr().unwrap());
                assert!(one.stamp_ns.is_some());
                got.push((one.bytes.len(), one.bytes.first().copied()));
            }
            assert!(socket.is_drained());
            calls += 1;
        }
        let mut wanted: Vec<_> = (0..20).map(|i| (80, Some(i))).collect();
        wanted.extend([(33, Some(20)), (100, Some(77)), (0, None)]);
        wanted.push((DATAGRAM_LEN_MAX + 1, Some(78)));
        assert_eq!((got, calls), (wanted, 1));
        assert_eq!(socket.receive().unwrap(), 0);
    }

    #[test]
    fn a_batch_comes_with_sources_kernel_times_and_true_lengths() {
        let (mut socket, peer) = pair();
        let to = socket.local_addr().unwrap();
        assert_eq!(socket.receive().unwrap(), 0);
        for len in [1usize, 80, DATAGRAM_LEN_MAX, DATAGRAM_LEN_MAX + 500] {
            peer.send_to(&vec![7; len], to).unwrap();
        }
        let got = socket.receive().unwrap();
        assert_eq!(got, 4);
        let lens: Vec<usize> = (0..got).map(|i| socket.get(i).unwrap().bytes.len()).collect();
        assert_eq!(lens, [1, 80, DATAGRAM_LEN_MAX, DATAGRAM_LEN_MAX + 1]);
        let first = socket.get(0).unwrap();
        assert_eq!(first.from, peer.local_addr().unwrap());
        assert!(first.stamp_ns.unwrap() > 1_700_000_000_000_000_000);
    }

    #[test]
    fn drops_are_counted_and_control_data_survives_them() {
        let (mut socket, peer) = pair();
        socket2::SockRef::from(&socket.socket).set_recv_buffer_size(4_096).unwrap();
        let to = socket.local_addr().unwrap();
        for _ in 0..500 {
            peer.send_to(&[1; 80], to).unwrap();
        }
        let dropped = socket.drops().unwrap();
        let mut received = 0;
        loop {
            let n = socket.receive().unwrap();
            if n == 0 {
                break;
            }
            assert!((0..n).all(|i| socket.get(i).unwrap().stamp_ns.is_some()));
            received += n as u64;
        }
        assert!(dropped > 0);
        assert_eq!(received + dropped, 500);
        peer.send_to(&[1; 80], to).unwrap();
        assert_eq!(socket.receive().unwrap(), 1);
        assert!(socket.get(0).unwrap().stamp_ns.is_some());
    }

    #[test]
    fn a_socket_that_is_taken_over_gives_what_waited_and_counts_its_own_drops_alone() {
        let (socket, peer) = pair();
        let to = socket.local_addr().unwrap();
        socket2::SockRef::from(&socket.socket).set_recv_buffer_size(4_096).unwrap();
        for _ in 0..100 {
            peer.send_to(&[1; 80], to).unwrap();
        }
        let dropped = socket.drops().unwrap();
        assert!(dropped > 0);
        // As a service manager holds it while its owner is replaced.
        let kept = socket.socket.try_clone().unwrap();
        drop(socket);
        let mut socket = BatchSocket::take_over(kept).unwrap();
        assert_eq!((socket.local_addr().unwrap(), socket.drops().unwrap()), (to, 0));
        assert!(socket.waiting().unwrap() > 0);
        let share = socket.waiting().unwrap() as f64 / socket.receive_buffer().unwrap() as f64;
        assert_eq!(socket.fill().unwrap(), share);
        for _ in 0..100 {
            peer.send_to(&[2; 80], to).unwrap();
        }
        let mut got = Vec::new();
        loop {
            let n = socket.receive().unwrap();
            got.extend((0..n).map(|i| socket.get(i).unwrap()).map(|g| (g.bytes[0], g.stamp_ns)));
            if n == 0 {
                break;
            }
        }
        assert!(got.iter().all(|(_, stamp)| stamp.is_some()));
        let of = |kind| got.iter().filter(|(first, _)| *first == kind).count() as u64;
        assert_eq!((of(1) + dropped, of(2), socket.drops().unwrap()), (100, 100, 0));
        assert_eq!(socket.waiting().unwrap(), 0);
    }

    #[test]
    fn a_closed_port_is_told_with_the_datagram_quoted() {
        let mut socket = BatchSocket::bind("127.0.0.1:0".parse().unwrap(), Role::Probes).unwrap();
        let closed = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = closed.local_addr().unwrap();
        drop(closed);
        assert_eq!(socket.send(&[(to, [0x5a; 80])]), 0);
        let mut room = [0; 128];
        let (quoted, target) = socket.unreachable(&mut room).unwrap().expect("an ICMP error");
        assert_eq!((quoted, target), (&[0x5a; 80][..], to));
        assert!(socket.unreachable(&mut room).unwrap().is_none());
        assert_eq!(socket.receive().unwrap(), 0);
    }

    #[test]
    fn batches_reach_ipv4_targets_from_an_ipv6_wildcard_socket() {
        let Ok(mut socket) = BatchSocket::bind("[::]:0".parse().unwrap(), Role::Probes) else {
            return; // no IPv6 on this machine
        };
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = peer.local_addr().unwrap();
        let many: Vec<_> = (0..BATCH_LEN + 3).map(|i| (to, [i as u8; 80])).collect();
        assert_eq!(socket.send(&many), 0);
        let mut buffer = [0; 100];
        for i in 0..many.len() {
            let (n, _) = peer.recv_from(&mut buffer).unwrap();
            assert_eq!((n, buffer[0]), (80, i as u8));
        }
    }
}
