//! A million hosts in one process and one thread: real authenticated datagrams, sent in time.
//!
//! [`Mass::start`] starts the thread; the handle tells it who dies, pauses, leaves, restarts or loses
//! datagrams, and reads its counters. What a host does stands in `member`, when in `wheel`, how its
//! datagrams travel in `post`.
//!
//! Hosts are chosen by *place* in an order in which neighbours have nothing in common, so the first
//! tenth of all places is a fair sample of racks, pools and shards, and two spans that do not overlap
//! name different hosts.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heartwatch_common::auth::FleetSecret;
use heartwatch_common::id::HostId;

use super::engine::Engine;
use super::mix::{Shuffle, mass_id, mass_number};
use crate::machine;

/// Most hosts of one mass.
pub const HOSTS_MAX: usize = 10_000_000;

/// What a mass is made of.
#[derive(Clone, Debug)]
pub struct MassSetup {
    /// Whom all beat to.
    pub controller: SocketAddr,
    /// Where their keys come from.
    pub secret: FleetSecret,
    /// How many, at most [`HOSTS_MAX`].
    pub hosts: usize,
    /// Time between two beats of a host, 1 ms to 60 s, unless the controller assigns another.
    pub interval: Duration,
    /// Width of the jitter, as a share of the interval.
    pub jitter: f64,
    /// Over how long the first hellos are spread.
    pub join: Duration,
    /// Number of the first boot.
    pub boot: u32,
    /// How they begin.
    pub first: First,
    /// Source ports; each is shared by many hosts.
    pub sockets: usize,
    /// Shards of the controller: datagrams of one super-packet go to one shard.
    pub shards: u16,
    /// Datagrams in a super-packet, 1 to 64.
    pub segments: usize,
    /// The core on which its thread stays.
    pub core: Option<usize>,
    /// Where all that is random comes from.
    pub seed: u64,
}

impl MassSetup {
    /// A mass with usual values: one beat a second, 20 % jitter, 16 ports, super-packets of up to 64.
    pub fn new(controller: SocketAddr, secret: FleetSecret, hosts: usize) -> Self {
        Self {
            controller,
            secret,
            hosts,
            interval: Duration::from_secs(1),
            jitter: 0.2,
            join: Duration::from_secs_f64(1.0f64.max(hosts as f64 / 25_000.0)),
            boot: 1,
            first: First::Hello,
            sockets: 16,
            shards: 1,
            segments: 64,
            core: None,
            seed: 20_261_122,
        }
    }
}

/// How hosts begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// With a hello, as after a boot.
    Hello,
    /// With beats, as those whose session goes on: an ack wanted now and then.
    Beat,
    /// With beats that want an ack, until one comes: as known hosts whose controller has been away.
    BeatUntilAcked,
}

/// What to do to hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The power fails.
    Kill,
    /// It stands still, and answers nothing.
    Pause,
    /// It goes on after a pause.
    Resume,
    /// A polite goodbye, said twice.
    Leave,
    /// A new boot, within the interval or 5 s.
    Restart,
    /// Of 256 datagrams so many are lost, in each direction.
    Loss(u8),
}

/// An order to the thread.
#[derive(Debug)]
pub(super) enum Order {
    Act(Act, Range<usize>),
    Interval(Duration),
    Stop,
}

macro_rules! counts {
    ($($(#[$doc:meta])* $field:ident,)*) => {
        /// Counters of a mass since its start; those marked "gauge" also fall.
        #[derive(Debug, Default)]
        pub struct Counts {
            $($(#[$doc])* pub $field: AtomicU64,)*
        }

        impl Counts {
            /// Every counter's name and value.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counts! {
    /// Beats sent.
    beats,
    /// Hellos sent.
    hellos,
    /// Goodbyes sent.
    leaves,
    /// Acks wanted.
    acks_wanted,
    /// Acks taken.
    acks,
    /// Of those, acks that said "what you sent proved nothing".
    challenges,
    /// Acks that answered nothing of late.
    acks_unmatched,
    /// Probes answered.
    probes_answered,
    /// Probes passed on for the controller.
    probes_passed_on,
    /// Answers of others brought back.
    replies_brought_back,
    /// Datagrams that came for hosts that are dead, paused or have left.
    for_the_dead,
    /// Datagrams that came and were no valid ones.
    invalid,
    /// Datagrams lost on purpose, either way.
    lost,
    /// Datagrams that the kernel did not take.
    send_errors,
    /// Beats that went out more than 5 ms late: the generator could not keep up.
    beats_late,
    /// How late the latest beat of all was, microseconds.
    late_max_us,
    /// CPU time of its thread, microseconds.
    cpu_us,
    /// Gauge: how late the latest beat was since somebody set this to 0, microseconds.
    late_us,
    /// Gauge: hosts that have sent a beat with the newest epoch of the controller: proof of life.
    shown,
    /// Gauge: hosts that live.
    alive,
    /// Gauge: hosts whose hello was acked and that know the controller's epoch.
    settled,
}

/// Reads a counter.
pub fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// A running mass; ends when dropped.
pub struct Mass {
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
    counts: Arc<Counts>,
    shuffle: Shuffle,
    interval: Duration,
    addresses: Vec<SocketAddr>,
}

impl Mass {
    /// Makes all keys, opens the sockets and starts the hosts.
    pub fn start(setup: &MassSetup) -> Result<Self> {
        ensure!((1..=HOSTS_MAX).contains(&setup.hosts), "1 to {HOSTS_MAX} hosts are possible");
        let counts = Arc::new(Counts::default());
        let shuffle = Shuffle::new(setup.hosts);
        let (orders, inbox) = channel();
        let (ready, is_ready) = channel();
        let (interval, core) = (setup.interval, setup.core);
        let (setup, shared) = (setup.clone(), Arc::clone(&counts));
        let thread = std::thread::Builder::new()
            .name("mass".into())
            .spawn(move || {
                let engine = machine::stay_on(core)
                    .and_then(|()| Engine::new(setup, shuffle, shared).context("the sockets"))
                    .and_then(|engine| Ok((engine.addresses()?, engine)));
                match engine {
                    Ok((addresses, engine)) => {
                        drop(ready.send(Ok(addresses)));
                        engine.run(&inbox);
                    }
                    Err(e) => drop(ready.send(Err(e))),
                }
            })
            .context("cannot start the fleet's thread")?;
        let addresses = is_ready.recv().context("the fleet's thread has died")??;
        Ok(Self { orders, thread: Some(thread), counts, shuffle, interval, addresses })
    }

    /// Its counters.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Where host number `n` beats from.
    pub fn address(&self, n: usize) -> SocketAddr {
        self.addresses[n % self.addresses.len()]
    }

    /// The id of the host at a place.
    pub fn id(&self, place: usize) -> HostId {
        mass_id(self.shuffle.host(place))
    }

    /// The place of the host with that id; `None` if it is none of these.
    pub fn place(&self, id: &HostId) -> Option<usize> {
        let host = mass_number(id).filter(|n| *n < self.shuffle.count())?;
        Some(self.shuffle.place(host))
    }

    /// Does something to the hosts at these places, soon and in one go.
    pub fn act(&self, act: Act, places: Range<usize>) {
        self.order(Order::Act(act, places));
    }

    /// Another interval for all hosts, each from its next beat on. Answers the one before it, within which
    /// all have changed but for jitter.
    pub fn set_interval(&mut self, interval: Duration) -> Duration {
        self.order(Order::Interval(interval));
        std::mem::replace(&mut self.interval, interval)
    }

    fn order(&self, order: Order) {
        // Fails only if the thread has panicked, which `drop` reports.
        drop(self.orders.send(order));
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Mass {
    fn drop(&mut self) {
        self.order(Order::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the fleet's thread has panicked");
        }
    }
}
