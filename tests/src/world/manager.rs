//! A service manager's part, played by the harness: it keeps the descriptors that a process hands over, and
//! passes them to the next one (sd_notify(3), sd_listen_fds(3)).
#![expect(unsafe_code, reason = "descriptors are received, and put in place between fork and exec")]

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::cmsg_space;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::World;

/// Most descriptors that one message may carry (the kernel's `SCM_MAX_FD`).
const FDS_MAX: usize = 253;
/// Copies for a child get numbers from here on, so that none lies where another has to go.
const HIGH: RawFd = 500;
/// Longest message.
const WORDS_MAX: usize = 4_096;

type Store = Vec<(String, OwnedFd)>;

/// See the module's doc.
pub struct Manager {
    path: PathBuf,
    store: Arc<Mutex<Store>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Manager {
    /// A manager that keeps nothing yet.
    pub fn start(world: &World) -> Result<Self> {
        let path = world.path("notify");
        let socket = UnixDatagram::bind(&path).context("cannot bind the manager's socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let store = Arc::new(Mutex::new(Store::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, told) = (Arc::clone(&store), Arc::clone(&stop));
        let listen = move || {
            while !told.load(Ordering::Relaxed) {
                if let Some((words, fds)) = hear(&socket) {
                    obey(&words, fds, &mut theirs.lock().unwrap_or_else(PoisonError::into_inner));
                }
            }
        };
        let thread = std::thread::Builder::new().name("manager".into()).spawn(listen)?;
        Ok(Self { path, store, stop, thread: Some(thread) })
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of what it keeps, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.store().iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// Keeps something else, as if the process had asked for it.
    pub fn put(&self, name: &str, fd: OwnedFd) {
        self.store().push((name.to_owned(), fd));
    }

    /// A command that starts `program` with what is kept, and tells it where to notify. The descriptors that
    /// come with it must live until it was spawned.
    pub(super) fn command(&self, program: &Path) -> Result<(Command, Vec<OwnedFd>)> {
        let store = self.store();
        let mut copies = Vec::with_capacity(store.len());
        for (_, fd) in store.iter() {
            let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(HIGH)).context("cannot copy")?;
            // SAFETY: made just now, and owned by nobody else.
            copies.push(unsafe { OwnedFd::from_raw_fd(copy) });
        }
        let names: Vec<&str> = store.iter().map(|(name, _)| name.as_str()).collect();
        // Its own id is known only to the child. `exec` keeps it.
        let script = format!(
            "NOTIFY_SOCKET='{}' LISTEN_FDS={} LISTEN_FDNAMES='{}' LISTEN_PID=$$ exec \"$0\" \"$@\"",
            self.path.display(),
            names.len(),
            names.join(":"),
        );
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(program);
        let raw: Vec<RawFd> = copies.iter().map(AsRawFd::as_raw_fd).collect();
        let place = move || {
            for (at, fd) in (3..).zip(&raw) {
                nix::errno::Errno::result(
                    // SAFETY: a plain system call on numbers; allowed between fork and exec.
                    unsafe { libc::dup2(*fd, at) },
                )?;
            }
            Ok(())
        };
        // SAFETY: it calls nothing but dup2, and allocates nothing.
        unsafe { command.pre_exec(place) };
        Ok((command, copies))
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the manager's thread has panicked");
        }
    }
}

/// The next message with its descriptors, if one comes in time.
fn hear(socket: &UnixDatagram) -> Option<(String, Vec<OwnedFd>)> {
    let mut bytes = [0; WORDS_MAX];
    let mut room = cmsg_space!([RawFd; FDS_MAX]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let got = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut room), flags).ok()?;
    let mut fds = Vec::new();
    for message in got.cmsgs().ok()? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel made them for this message alone.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let len = got.bytes;
    Some((String::from_utf8_lossy(&bytes[..len]).into_owned(), fds))
}

fn obey(words: &str, fds: Vec<OwnedFd>, store: &mut Store) {
    let says = |what: &str| words.lines().any(|line| line == what);
    let name = words.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
    if says("FDSTOREREMOVE=1") {
        store.retain(|(kept, _)| kept != name);
    } else if says("FDSTORE=1") {
        store.extend(fds.into_iter().map(|fd| (name.to_owned(), fd)));
    }
    // Anything else that came along, such as the end of a barrier's pipe, is closed here.
}
