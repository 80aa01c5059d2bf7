//! Descriptors that the service manager keeps while this process is not there: sd_notify(3), `FDSTORE=1`,
//! and sd_listen_fds(3).
//!
//! A descriptor that was handed over stays open when the process ends, however it ends; the next one finds
//! it again, under the name that it was given. So datagrams that arrive in between wait in the kernel.
//! Without a service manager nothing of this does anything.
//!
//! Written here rather than taken from `sd-notify`, which needs another crate to send descriptors, sends
//! none to managers with abstract addresses, and fails as a whole if one descriptor is not open.
#![expect(unsafe_code, reason = "numbers in the environment become descriptors that are owned")]

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};

/// Number of the first descriptor that a manager passes (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// Most descriptors that are taken: systemd's own default bound of open files.
const TAKEN_MAX: usize = 4_096;
/// Longest name that a manager takes (systemd: `FDNAME_MAX`), bytes.
pub const NAME_LEN_MAX: usize = 255;

/// What the manager has kept, with names: once in the life of a process, nothing after that. Descriptors
/// are closed when other programs are started.
pub fn take() -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Vec::new();
    }
    let get = |name| std::env::var(name).ok();
    let (pid, count, names) = (get("LISTEN_PID"), get("LISTEN_FDS"), get("LISTEN_FDNAMES"));
    let names = announced(std::process::id(), pid.as_deref(), count.as_deref(), names.as_deref());
    let mut kept = Vec::with_capacity(names.len());
    for (fd, name) in (FIRST..).zip(names) {
        // SAFETY: borrowed for this call alone, which fails if it is not open.
        let open = unsafe { BorrowedFd::borrow_raw(fd) };
        if let Err(e) = fcntl(open, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
            log::warn!("the service manager announced descriptor {fd} ({name}), but: {e}");
            continue;
        }
        // SAFETY: it is open, the manager made it for this process, and nobody else takes it: this code
        // runs once.
        kept.push((name, unsafe { OwnedFd::from_raw_fd(fd) }));
    }
    kept
}

/// Names of the descriptors that the environment announces to the process `pid`, in their order.
fn announced(
    pid: u32,
    listen_pid: Option<&str>,
    count: Option<&str>,
    names: Option<&str>,
) -> Vec<String> {
    // A child inherits the variables, but they are not meant for it.
    if listen_pid.and_then(|p| p.parse().ok()) != Some(pid) {
        return Vec::new();
    }
    let count = count.and_then(|n| n.parse::<usize>().ok()).unwrap_or(0).min(TAKEN_MAX);
    let mut names = names.filter(|n| !n.is_empty()).map(|n| n.split(':'));
    let mut next = || names.as_mut().and_then(Iterator::next).unwrap_or("unknown").to_owned();
    (0..count).map(|_| next()).collect()
}

/// Has the manager keep `fd` under `name` (ASCII without control characters and `:`, at most
/// [`NAME_LEN_MAX`] bytes). Answers whether there is a manager; whether it keeps the descriptor it does
/// not say.
pub fn keep(name: &str, fd: BorrowedFd<'_>) -> io::Result<bool> {
    // FDPOLL: an error that waits at a socket is no reason to let go of it.
    send(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n"), &[fd.as_raw_fd()])
}

/// Has the manager close what it keeps under `name`. It does so when it comes to it: see [`settle`].
pub fn forget(name: &str) -> io::Result<bool> {
    send(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), &[])
}

/// Waits until the manager has done all that was asked of it before, but no longer than `patience`: it
/// closes a descriptor that comes last. Answers whether it did.
pub fn settle(patience: Duration) -> io::Result<bool> {
    let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    if !send("BARRIER=1\n", &[theirs.as_raw_fd()])? {
        return Ok(true);
    }
    drop(theirs);
    let ms = u16::try_from(patience.as_millis()).unwrap_or(u16::MAX);
    let mut fds = [PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::from(ms))? > 0)
}

fn send(message: &str, fds: &[RawFd]) -> io::Result<bool> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(false) };
    send_to(path.as_bytes(), message, fds).map(|()| true)
}

fn send_to(path: &[u8], message: &str, fds: &[RawFd]) -> io::Result<()> {
    let address = match path {
        [b'@', name @ ..] => UnixAddr::new_abstract(name)?,
        path => UnixAddr::new(path)?,
    };
    let from = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let rights = [ControlMessage::ScmRights(fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
    let words = [IoSlice::new(message.as_bytes())];
    sendmsg(from.as_raw_fd(), &words, rights, MsgFlags::MSG_NOSIGNAL, Some(&address))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::IoSliceMut;
    use std::os::unix::net::UnixDatagram;

    use nix::cmsg_space;
    use nix::sys::socket::{ControlMessageOwned, recvmsg};

    #[test]
    fn what_is_announced_to_this_process_is_named_in_order() {
        let of = |pid, count, names| announced(7, pid, count, names);
        assert_eq!(of(Some("7"), Some("2"), Some("a:b")), ["a", "b"]);
        assert_eq!(of(Some("7"), Some("3"), Some("a")), ["a", "unknown", "unknown"]);
        assert_eq!(of(Some("7"), Some("1"), None), ["unknown"]);
        assert_eq!(of(Some("7"), Some("1"), Some("")), ["unknown"]);
        for (pid, count) in [
            (Some("8"), Some("2")),
            (None, Some("2")),
            (Some("x"), Some("2")),
            (Some("7"), None),
            (Some("7"), Some("-1")),
            (Some("7"), Some("0")),
        ] {
            assert!(of(pid, count, Some("a:b")).is_empty(), "{pid:?} {count:?}");
        }
        assert_eq!(of(Some("7"), Some("999999999"), None).len(), TAKEN_MAX);
    }

    #[test]
    fn a_descriptor_travels_with_its_message_also_to_an_abstract_address() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let kept = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (there, raw) = (path.as_os_str().as_bytes(), kept.as_raw_fd());
        send_to(there, "FDSTORE=1\nFDNAME=x\n", &[raw]).unwrap();
        send_to(there, "FDSTOREREMOVE=1\nFDNAME=x\n", &[]).unwrap();
        let hear = |socket: &UnixDatagram| {
            let mut bytes = [0; 100];
            let mut room = cmsg_space!([RawFd; 4]);
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let none = MsgFlags::empty();
            let got = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut room), none);
            let got = got.unwrap();
            let fds = got.cmsgs().unwrap().find_map(|c| match c {
                ControlMessageOwned::ScmRights(fds) => Some(fds),
                _ => None,
            });
            let len = got.bytes;
            (String::from_utf8(bytes[..len].to_vec()).unwrap(), fds.unwrap_or_default())
        };
        let (words, fds) = hear(&manager);
        assert_eq!((words.as_str(), fds.len()), ("FDSTORE=1\nFDNAME=x\n", 1));
        // SAFETY: it was received just now and is owned by nobody else.
        let twin = std::net::UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fds[0]) });
        assert_eq!(twin.local_addr().unwrap(), kept.local_addr().unwrap());
        assert_eq!(hear(&manager), ("FDSTOREREMOVE=1\nFDNAME=x\n".into(), vec![]));

        use std::os::linux::net::SocketAddrExt;
        let name = format!("heartwatch-test-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        send_to(format!("@{name}").as_bytes(), "BARRIER=1\n", &[]).unwrap();
        assert_eq!(hear(&manager).0, "BARRIER=1\n");
    }
}
