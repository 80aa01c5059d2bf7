//! Many hosts in one process. [`Fleet`] is a few hundred, each of them the agent's own protocol value,
//! behind one real socket; [`Mass`] is up to millions, whose protocol is a compact copy of it.
//!
//! All hosts of a [`Fleet`] share one socket, and those of a [`Mass`] a few, so a host that dies leaves
//! nothing that could answer for it: its controller finds it `silent`, as after a power cut. Hosts are
//! named by number, and each start of one is a new boot.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use heartwatch_agent::core::{Core, Outgoing, Settings, To};
use heartwatch_common::auth::FleetSecret;
use heartwatch_common::id::{Boot, Generation, HostId};
use heartwatch_common::load::{LoadSample, Share};
use heartwatch_common::time::{Clock, Instant, SystemClock};
use heartwatch_common::wire::{DATAGRAM_LEN_MAX, HOST_ID_OFFSET, LeaveReason};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::world::host_id;
pub use facts::MassFacts;
pub use flood::{Flood, FloodCounts, FloodSetup, Forgery};
pub use mass::{Act, Counts, First, HOSTS_MAX, Mass, MassSetup, count};
pub use mix::{mass_id, mass_number};

mod engine;
mod facts;
mod flood;
mod mass;
mod member;
mod mix;
mod post;
mod wheel;

/// The thread looks at its commands at least this often.
const NAP_MAX: Duration = Duration::from_millis(20);
/// Datagrams taken between two looks at the clock.
const BATCH_LEN_MAX: usize = 256;

/// What a fleet is made of.
#[derive(Clone, Debug)]
pub struct FleetSetup {
    /// Whom all beat to.
    pub controller: SocketAddr,
    /// Where their keys come from.
    pub secret: FleetSecret,
    /// How many.
    pub hosts: usize,
    /// Time between two beats of a host.
    pub interval: Duration,
    /// Where all that is random comes from.
    pub seed: u64,
}

enum Command {
    Kill(usize),
    Start(usize),
    Leave(usize),
    Stop,
}

/// A running fleet; ends when dropped.
pub struct Fleet {
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
    ids: Vec<HostId>,
}

impl Fleet {
    /// Starts a fleet of which every host lives.
    pub fn start(setup: &FleetSetup) -> Result<Self> {
        let any = if setup.controller.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" };
        let socket = UdpSocket::bind(any).context("cannot bind the fleet's socket")?;
        let (commands, inbox) = channel();
        let ids = (0..setup.hosts).map(fleet_id).collect();
        let mut engine = Engine::new(setup.clone(), socket);
        let thread = std::thread::Builder::new()
            .name("fleet".into())
            .spawn(move || engine.run(&inbox))
            .context("cannot start the fleet's thread")?;
        Ok(Self { commands, thread: Some(thread), ids })
    }

    /// Ids of all hosts, by number.
    pub fn ids(&self) -> &[HostId] {
        &self.ids
    }

    /// A crash: no goodbye.
    pub fn kill(&self, host: usize) {
        self.say(Command::Kill(host));
    }

    /// A new boot of a host that was killed or left.
    pub fn revive(&self, host: usize) {
        self.say(Command::Start(host));
    }

    /// A polite leave.
    pub fn leave(&self, host: usize) {
        self.say(Command::Leave(host));
    }

    fn say(&self, command: Command) {
        // Fails only if the thread has panicked, which `drop` reports.
        drop(self.commands.send(command));
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.say(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the fleet's thread has panicked");
        }
    }
}

/// The id of host number `n`.
pub fn fleet_id(n: usize) -> HostId {
    host_id(&format!("fleet-{n}"))
}

struct Host {
    core: Option<Core>,
    boot: u32,
}

struct Engine {
    setup: FleetSetup,
    socket: UdpSocket,
    hosts: Vec<Host>,
    index: BTreeMap<[u8; 16], usize>,
    rng: StdRng,
    out: Vec<Outgoing>,
}

impl Engine {
    fn new(setup: FleetSetup, socket: UdpSocket) -> Self {
        let rng = StdRng::seed_from_u64(setup.seed);
        let index = (0..setup.hosts).map(|n| (fleet_id(n).0, n)).collect();
        let hosts = (0..setup.hosts).map(|_| Host { core: None, boot: 0 }).collect();
        let mut engine = Self { setup, socket, hosts, index, rng, out: Vec::new() };
        let now = SystemClock.boottime();
        (0..engine.hosts.len()).for_each(|n| engine.boot(n, now));
        engine
    }

    fn boot(&mut self, n: usize, now: Instant) {
        let id = fleet_id(n);
        self.hosts[n].boot += 1;
        let labels = [("pool", ["web", "db"][n % 2]), ("zone", ["a", "b", "c"][n % 3])];
        let settings = Settings {
            host: id,
            key: self.setup.secret.host_key(id, Generation(0)),
            boot: Boot(self.hosts[n].boot),
            interval: self.setup.interval,
            jitter: 0.2,
            interval_min: Duration::from_millis(50),
            interval_max: Duration::from_secs(60),
            ack_every: 5,
            name: format!("fleet-{n}"),
            os: "made up".into(),
            labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            controllers: 1,
        };
        let core = Core::new(settings, now, &mut self.rng);
        self.hosts[n].core = Some(core.expect("names and labels this short fit a hello"));
    }

    fn run(&mut self, inbox: &Receiver<Command>) {
        let mut buffer = [0; DATAGRAM_LEN_MAX + 1];
        loop {
            let now = SystemClock.boottime();
            for command in inbox.try_iter() {
                match command {
                    Command::Kill(n) => self.hosts[n].core = None,
                    Command::Start(n) => self.boot(n, now),
                    Command::Leave(n) => {
                        if let Some(mut core) = self.hosts[n].core.take() {
                            let reason = LeaveReason::Shutdown;
                            core.leave(reason, Duration::ZERO, now, &mut self.out);
                            core.leave(reason, Duration::ZERO, now, &mut self.out);
                        }
                    }
                    Command::Stop => return self.flush(),
                }
            }
            self.tick(now);
            self.flush();
            self.hear(&mut buffer);
            self.flush();
        }
    }

    fn tick(&mut self, now: Instant) {
        let load = LoadSample {
            cpu_busy: Share::from_ratio(self.rng.random()),
            memory_used: Share::from_ratio(0.5),
            ..LoadSample::UNKNOWN
        };
        for core in self.hosts.iter_mut().filter_map(|h| h.core.as_mut()) {
            if core.next_wake() <= now {
                core.tick(now, &load, 0, &mut self.rng, &mut self.out);
            }
        }
    }

    /// Waits for datagrams until somebody has something to send.
    fn hear(&mut self, buffer: &mut [u8]) {
        let wake = self.hosts.iter().filter_map(|h| h.core.as_ref()).map(Core::next_wake).min();
        let now = SystemClock.boottime();
        let nap = wake.map_or(NAP_MAX, |w| w.since(now)).min(NAP_MAX);
        for taken in 0..BATCH_LEN_MAX {
            // Only the first receive of a batch waits.
            let patience = if taken == 0 { nap } else { Duration::ZERO };
            let patience = patience.max(Duration::from_micros(100));
            if self.socket.set_read_timeout(Some(patience)).is_err() {
                return;
            }
            // Nothing came, or an ICMP answer: the controller is away for the moment.
            let Ok((len, from)) = self.socket.recv_from(buffer) else { return };
            let bytes = &buffer[..len];
            let Some(id) = bytes.get(HOST_ID_OFFSET..).and_then(|b| b.first_chunk::<16>()) else {
                continue;
            };
            let Some(core) = self.index.get(id).and_then(|n| self.hosts[*n].core.as_mut()) else {
                continue;
            };
            core.receive(from, Some(0), bytes, SystemClock.boottime(), &mut self.out);
        }
    }

    fn flush(&mut self) {
        for outgoing in self.out.drain(..) {
            let to = match outgoing.to {
                To::Controller(_) => self.setup.controller,
                To::Addr(addr) => addr,
            };
            // What can't be sent is lost, as on any network.
            drop(self.socket.send_to(outgoing.bytes.as_slice(), to));
        }
    }
}
