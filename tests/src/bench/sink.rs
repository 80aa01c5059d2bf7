//! The bare loop that the controller is measured against: `recvmmsg`, count, again.
//!
//! Its socket is the controller's own, with the same options, buffers and steering; it looks at
//! nothing that it receives. It waits in `poll` when nothing is there, as the controller does.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use heartwatch_controller::ingest::socket::{BatchSocket, Role};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::bare::Bare;
use crate::machine;

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    received: AtomicU64,
    dropped: AtomicU64,
    cpu_ns: AtomicU64,
}

/// A running sink; ends when dropped.
pub struct Sink {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Where it listens.
    pub address: SocketAddr,
}

/// What a sink has counted.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// Datagrams read.
    pub received: u64,
    /// Datagrams dropped at its socket.
    pub dropped: u64,
    /// CPU time used.
    pub cpu: Duration,
}

impl Sink {
    /// Starts one, on a core of its own if one is named.
    pub fn start(core: Option<usize>) -> Result<Self> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let socket = BatchSocket::bind(any, Role::Beats).context("cannot bind the sink")?;
        socket.steer(1).context("cannot steer the sink")?;
        let address = socket.local_addr()?;
        let shared = Arc::new(Shared::default());
        let (ours, (tell, told)) = (Arc::clone(&shared), channel());
        let thread = std::thread::Builder::new().name("sink".into()).spawn(move || {
            drop(tell.send(machine::stay_on(core)));
            swallow(&socket, &ours);
        })?;
        told.recv().context("the sink has died")??;
        Ok(Self { shared, thread: Some(thread), address })
    }

    /// What it has counted so far.
    pub fn counted(&self) -> Counted {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counted {
            received: of(&self.shared.received),
            dropped: of(&self.shared.dropped),
            cpu: Duration::from_nanos(of(&self.shared.cpu_ns)),
        }
    }
}

fn swallow(socket: &BatchSocket, shared: &Shared) {
    let mut bare = Bare::new();
    let mut passes = 0u32;
    while !shared.stop.load(Ordering::Relaxed) {
        let got = bare.receive(socket.as_fd());
        shared.received.fetch_add(got as u64, Ordering::Relaxed);
        passes += 1;
        if got == 0 || passes.is_multiple_of(256) {
            shared.dropped.store(socket.drops().unwrap_or(0), Ordering::Relaxed);
            shared.cpu_ns.store(machine::thread_time().as_nanos() as u64, Ordering::Relaxed);
        }
        if got == 0 {
            let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(20u16)).unwrap_or(0);
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the sink has panicked");
        }
    }
}
