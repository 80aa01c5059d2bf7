//! `recvmmsg` and nothing else: nix reads the results of every message, and the yardstick must not.
#![expect(unsafe_code, reason = "a bare recvmmsg is what is measured against")]

use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use heartwatch_common::wire::DATAGRAM_LEN_MAX;
use heartwatch_controller::ingest::socket::BATCH_LEN;

/// Room per datagram, as the controller has it.
const ROOM: usize = DATAGRAM_LEN_MAX + 1;
/// Room for a timestamp, as the controller has it.
const CONTROL_ROOM: usize = 64;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_ROOM]);

/// Buffers for one call.
pub(super) struct Bare {
    _buffers: Vec<[u8; ROOM]>,
    _controls: Vec<Control>,
    _names: Vec<libc::sockaddr_storage>,
    _iovecs: Vec<libc::iovec>,
    /// As they must stand before a call; the kernel overwrites the lengths.
    fresh: Vec<libc::mmsghdr>,
    headers: Vec<libc::mmsghdr>,
}

impl Bare {
    pub(super) fn new() -> Self {
        // SAFETY: all-zero is a valid value of these plain C structures.
        let (name, header) =
            unsafe { (mem::zeroed::<libc::sockaddr_storage>(), mem::zeroed::<libc::mmsghdr>()) };
        let mut buffers = vec![[0; ROOM]; BATCH_LEN];
        let mut controls = vec![Control([0; CONTROL_ROOM]); BATCH_LEN];
        let mut names = vec![name; BATCH_LEN];
        let mut iovecs: Vec<libc::iovec> = buffers
            .iter_mut()
            .map(|b| libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: ROOM })
            .collect();
        let mut fresh = vec![header; BATCH_LEN];
        let parts = names.iter_mut().zip(&mut iovecs).zip(&mut controls);
        for (header, ((name, iovec), control)) in fresh.iter_mut().zip(parts) {
            let header = &mut header.msg_hdr;
            header.msg_name = ptr::from_mut(name).cast();
            header.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = ptr::from_mut(iovec);
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_ROOM as _;
        }
        let headers = fresh.clone();
        Self {
            _buffers: buffers,
            _controls: controls,
            _names: names,
            _iovecs: iovecs,
            fresh,
            headers,
        }
    }

    /// Receives what is there, at most a batch, without waiting; answers how many.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> usize {
        self.headers.copy_from_slice(&self.fresh);
        // SAFETY: every header points to heap buffers of the stated lengths that live in self and are
        // never moved or resized.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                BATCH_LEN as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        usize::try_from(got).unwrap_or(0)
    }
}
