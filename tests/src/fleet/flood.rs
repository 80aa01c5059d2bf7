//! An attacker's flood: datagrams in the shape of beats that prove nothing, as many a second as are wanted,
//! each of them by itself (no super-packets), from a few addresses.
//!
//! One thread keeps time in milliseconds. What it is behind it makes up for within [`DEBT_MAX`], and
//! forgets beyond: [`FloodCounts::sent`] tells what was reached.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use heartwatch_common::auth::FleetSecret;
use heartwatch_common::id::{Boot, Epoch, Generation, HostId, KeyId, Seq};
use heartwatch_common::load::LoadSample;
use heartwatch_common::time::{Clock, Instant, SystemClock};
use heartwatch_common::wire::{
    Beat, DATAGRAM_LEN, FLAG_ACK_WANTED, Fixed, HOST_ID_OFFSET, Header, RoundTrip, Stamp, TAG_LEN,
};

use super::mix::Draws;
use super::post::Post;
use crate::machine;

/// What is owed of this long a time is sent late; what is older is forgotten.
const DEBT_MAX: Duration = Duration::from_millis(50);
/// Datagrams between two looks at the clock.
const BURST: u64 = 512;

/// What an attacker sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgery {
    /// A beat of a known host, under a wrong tag: he knows ids and the format, but no key.
    WrongTag,
    /// The same of hosts that do not exist.
    Stranger,
    /// Noise.
    Garbage,
    /// A true beat, recorded a while ago: it authenticates, and proves nothing.
    Replay,
}

impl Forgery {
    /// All kinds, in equal parts of a mixed flood.
    pub const ALL: [Self; 4] = [Self::WrongTag, Self::Stranger, Self::Garbage, Self::Replay];
}

/// What a flood is made of.
#[derive(Clone, Debug)]
pub struct FloodSetup {
    /// Whom to flood.
    pub controller: SocketAddr,
    /// For the recordings alone.
    pub secret: FleetSecret,
    /// Ids of hosts that exist: those forged.
    pub hosts: Vec<HostId>,
    /// Those of whom there are recordings.
    pub recorded: Vec<HostId>,
    /// The epoch at which they were made.
    pub epoch: Epoch,
    /// Datagrams a second, of all kinds together.
    pub rate: u32,
    /// Which kinds, in equal parts.
    pub kinds: Vec<Forgery>,
    /// Source ports.
    pub sockets: usize,
    /// Where all that is random comes from.
    pub seed: u64,
}

/// Counters of a flood since its start.
#[derive(Debug, Default)]
pub struct FloodCounts {
    /// Datagrams sent.
    pub sent: AtomicU64,
    /// Of those, not taken by the kernel.
    pub errors: AtomicU64,
    /// CPU time of its thread, microseconds.
    pub cpu_us: AtomicU64,
}

/// A flood; ends when dropped.
pub struct Flood {
    counts: Arc<FloodCounts>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Starts it.
    pub fn start(setup: FloodSetup) -> Result<Self> {
        let counts = Arc::new(FloodCounts::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (ours, told) = (Arc::clone(&counts), Arc::clone(&stop));
        let (ready, is_ready) = channel();
        let thread = std::thread::Builder::new()
            .name("flood".into())
            .spawn(move || match Engine::new(setup) {
                Ok(mut engine) => {
                    // An error means that nobody waits for it any more.
                    drop(ready.send(Ok(())));
                    engine.run(&ours, &told);
                }
                Err(e) => drop(ready.send(Err(e))),
            })
            .context("cannot start the flood's thread")?;
        is_ready.recv().context("the flood's thread has died")??;
        Ok(Self { counts, stop, thread: Some(thread) })
    }

    /// Its counters.
    pub fn counts(&self) -> &FloodCounts {
        &self.counts
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the flood's thread has panicked");
        }
    }
}

/// A beat of that host that begins its first boot, not sealed.
fn beat_of(host: HostId, epoch: Epoch, sent: Instant) -> Fixed {
    let header =
        Header { host, key_id: KeyId(1), generation: Generation(0), flags: FLAG_ACK_WANTED };
    let gap = Duration::from_secs(1);
    let stamp = Stamp { boot: Boot(1), seq: Seq(1), sent, gap, epoch };
    let (load, round_trip) = (LoadSample::UNKNOWN, RoundTrip::UNKNOWN);
    Beat { stamp, late_ms: 0, checks: 0, load, round_trip }.encode(&header)
}

struct Engine {
    setup: FloodSetup,
    post: Post,
    recordings: Vec<(HostId, Fixed)>,
    template: Fixed,
    draws: Draws,
}

impl Engine {
    fn new(setup: FloodSetup) -> io::Result<Self> {
        // One shard: every datagram goes by itself, so nothing is bundled by where it goes.
        let post = Post::open(setup.controller, setup.sockets, 1, 1)?;
        let now = SystemClock.boottime();
        let record = |host: &HostId| {
            let mut bytes = beat_of(*host, setup.epoch, now);
            setup.secret.host_key(*host, Generation(0)).seal(&mut bytes);
            (*host, bytes)
        };
        let recordings = setup.recorded.iter().map(record).collect();
        let template = beat_of(HostId([0; 16]), setup.epoch, now);
        let draws = Draws::new(setup.seed);
        Ok(Self { setup, post, recordings, template, draws })
    }

    fn run(&mut self, counts: &FloodCounts, stop: &AtomicBool) {
        let rate = f64::from(self.setup.rate);
        let mut settled = SystemClock.boottime();
        while !stop.load(Ordering::Relaxed) {
            let now = SystemClock.boottime();
            settled = settled.max(now - DEBT_MAX);
            let owed = (now.since(settled).as_secs_f64() * rate) as u64;
            let burst = owed.min(BURST);
            for _ in 0..burst {
                self.one();
            }
            self.post.flush();
            settled = settled + Duration::from_secs_f64(burst as f64 / rate);
            counts.sent.fetch_add(burst, Ordering::Relaxed);
            counts.errors.store(self.post.errors, Ordering::Relaxed);
            let cpu = machine::thread_time().as_micros() as u64;
            counts.cpu_us.store(cpu, Ordering::Relaxed);
            if owed <= BURST {
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
    }

    fn one(&mut self) {
        let Self { setup, post, recordings, template, draws } = self;
        let below = |draws: &mut Draws, n: usize| draws.below(n as u32) as usize;
        let kind = setup.kinds[below(draws, setup.kinds.len())];
        let socket = below(draws, setup.sockets);
        let room = post.beat(socket, 0);
        match kind {
            Forgery::Replay if !recordings.is_empty() => {
                room.copy_from_slice(&recordings[below(draws, recordings.len())].1);
            }
            Forgery::Garbage => noise(draws, room),
            _ => {
                room.copy_from_slice(template);
                let id = &mut room[HOST_ID_OFFSET..HOST_ID_OFFSET + 16];
                match kind {
                    Forgery::WrongTag if !setup.hosts.is_empty() => {
                        id.copy_from_slice(&setup.hosts[below(draws, setup.hosts.len())].0);
                    }
                    _ => noise(draws, id),
                }
                noise(draws, &mut room[DATAGRAM_LEN - TAG_LEN..]);
            }
        }
    }
}

fn noise(draws: &mut Draws, bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(4) {
        let drawn = (draws.draw() as u32).to_ne_bytes();
        chunk.copy_from_slice(&drawn[..chunk.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heartwatch_common::auth::Keyring;
    use heartwatch_common::wire;
    use heartwatch_controller::ingest::admit::admit;
    use heartwatch_controller::ingest::socket::{BatchSocket, Role};
    use heartwatch_controller::metrics::Reject;

    #[test]
    fn each_kind_is_what_it_says() {
        let mut sink = BatchSocket::bind("127.0.0.1:0".parse().unwrap(), Role::Beats).unwrap();
        let secret = FleetSecret::new(KeyId(1), [9; 32]);
        let ring = Keyring::new(vec![secret.clone()]).unwrap();
        let known = HostId([7; 16]);
        for kind in Forgery::ALL {
            let setup = FloodSetup {
                controller: sink.local_addr().unwrap(),
                secret: secret.clone(),
                hosts: vec![known],
                recorded: vec![known],
                epoch: Epoch(5),
                rate: 1_000,
                kinds: vec![kind],
                sockets: 2,
                seed: 1,
            };
            let mut engine = Engine::new(setup).unwrap();
            (0..20).for_each(|_| engine.one());
            engine.post.flush();
            let n = sink.receive().unwrap();
            assert_eq!(n, 20, "{kind:?}");
            for i in 0..n {
                let bytes = sink.bytes(i);
                let decoded = wire::decode(bytes);
                let admitted = match &decoded {
                    Ok(datagram) => admit(datagram, &ring, None, |_| Generation(0)),
                    Err(why) => Err(Reject::from(*why)),
                };
                let admitted = admitted.map(|a| a.stamp.epoch);
                let host = decoded.as_ref().ok().map(|d| d.header.host);
                match kind {
                    Forgery::Replay => assert_eq!(admitted, Ok(Epoch(5))),
                    Forgery::WrongTag => {
                        assert_eq!((admitted, host), (Err(Reject::Unauthentic), Some(known)));
                    }
                    Forgery::Stranger => {
                        assert_eq!(admitted, Err(Reject::Unauthentic));
                        assert_ne!(host, Some(known));
                    }
                    Forgery::Garbage => assert!(admitted.is_err()),
                }
            }
        }
    }
}
