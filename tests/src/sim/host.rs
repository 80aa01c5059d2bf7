//! A simulated host: a machine, a kernel, and the production agent.

use std::net::SocketAddr;
use std::time::Duration;

use heartwatch_agent::core::{Core, Outgoing, Settings, To};
use heartwatch_common::auth::FleetSecret;
use heartwatch_common::id::{Boot, Generation, HostId, KeyId};
use heartwatch_common::load::LoadSample;
use heartwatch_common::time::Instant;
use heartwatch_common::wire::LeaveReason;
use rand::RngExt;
use rand::rngs::StdRng;

use super::peers::Look;
use super::{Happening, World};

/// Where beats go.
pub(crate) const BEATS: &str = "10.255.0.1:2328";
/// Where probes come from.
pub(crate) const PROBES: &str = "10.255.0.1:40000";

/// The fleet's secret in the simulated world.
pub(crate) fn secret() -> FleetSecret {
    FleetSecret::new(KeyId(1), [7; 32])
}

/// How a host fares, in truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// Never started.
    Unborn,
    /// Its agent runs.
    Running,
    /// Its agent crashed; its kernel still answers.
    AgentDead,
    /// The machine is off or cut from power.
    MachineDead,
    /// Its agent said goodbye and stopped.
    Left,
}

/// One host.
pub struct SimHost {
    /// Who.
    pub id: HostId,
    /// How it fares.
    pub truth: Truth,
    /// When that began.
    pub since: Instant,
    /// Lives of its agent so far.
    pub life: u32,
    /// Whether the controller ever heard it live, as far as the policy knows.
    pub joined: bool,
    /// Asked to pass a probe on, it mostly lies.
    pub liar: bool,
    /// Since when nothing has happened to it, beside its way to the controller.
    pub(super) calm_since: Instant,
    /// When somebody last sent something of it that was recorded.
    pub(super) replayed_at: Instant,
    pub(super) index: usize,
    /// Something was done to it a moment ago.
    pub(super) disturbed_until: Instant,
    boot_base: u32,
    clock_offset: Duration,
    core: Option<Core>,
    /// Until when the agent's process is stopped.
    pub(super) stopped_until: Option<Instant>,
}

impl SimHost {
    pub(super) fn new(index: usize, liars: f64, rng: &mut StdRng) -> Self {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&rng.random::<u64>().to_be_bytes());
        id[15] = index as u8;
        Self {
            id: HostId(id),
            truth: Truth::Unborn,
            since: Instant(0),
            life: 0,
            joined: false,
            liar: rng.random_bool(liars),
            calm_since: Instant(0),
            replayed_at: Instant(0),
            index,
            disturbed_until: Instant(0),
            boot_base: rng.random_range(100..1_000_000),
            clock_offset: Duration::from_millis(rng.random_range(0..100_000_000)),
            core: None,
            stopped_until: None,
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        let port = 20_000 + (self.life % 40_000) as u16;
        SocketAddr::from(([10, 0, 0, self.index as u8 + 1], port))
    }

    /// The host's own monotonic clock.
    fn clock(&self, now: Instant) -> Instant {
        now + self.clock_offset
    }

    fn start(&mut self, now: Instant, forgets_boot: bool, rng: &mut StdRng) {
        self.life += 1;
        if self.truth == Truth::MachineDead {
            // The machine's clock counts from its start.
            self.clock_offset = Duration::from_millis(rng.random_range(0..100_000_000));
        }
        // Of a number that it had before, the ledger could not tell which datagrams are fresh.
        let base = if forgets_boot { self.boot_base / 2 } else { self.boot_base };
        let boot = base + self.life;
        let settings = Settings {
            host: self.id,
            key: secret().host_key(self.id, Generation(0)),
            boot: Boot(boot),
            interval: Duration::from_secs(1),
            jitter: 0.2,
            interval_min: Duration::from_millis(100),
            interval_max: Duration::from_secs(60),
            ack_every: 10,
            name: format!("host-{}", self.index),
            os: "simulated".to_owned(),
            labels: [("rack".to_owned(), format!("r{}", self.index % 3))].into(),
            controllers: 1,
        };
        self.core = Core::new(settings, self.clock(now), rng).ok();
        self.truth = Truth::Running;
        self.since = now;
        self.stopped_until = None;
    }
}

impl World {
    pub(super) fn start_host(&mut self, host: usize, forgets_boot: bool) {
        let h = &mut self.hosts[host];
        h.start(self.now, forgets_boot, &mut self.rng);
        let life = h.life;
        self.ledger.begun(h.id);
        self.disturb(host);
        self.at(self.now, Happening::Wake { host, life });
    }

    pub(super) fn end_host(&mut self, host: usize, truth: Truth) {
        let h = &mut self.hosts[host];
        h.core = None;
        h.truth = truth;
        h.since = self.now;
        self.disturb(host);
        if self.is_held_alive(self.hosts[host].id) {
            self.look_later(Look::Dead { host, at: self.now });
        }
    }

    /// A polite goodbye, said twice as the agent does.
    pub(super) fn leave_host(&mut self, host: usize) {
        for _ in 0..2 {
            let mut out = Vec::new();
            let h = &mut self.hosts[host];
            let clock = h.clock(self.now);
            if let Some(core) = &mut h.core {
                core.leave(LeaveReason::Shutdown, Duration::ZERO, clock, &mut out);
            }
            self.send_from(host, out);
        }
        self.end_host(host, Truth::Left);
    }

    /// SIGSTOP of the agent.
    pub(super) fn stop_agent(&mut self, host: usize, span: Duration) {
        self.hosts[host].stopped_until = Some(self.now + span);
        self.hosts[host].calm_since = self.now + span;
    }

    /// The agent's state is lost but its life goes on: a restored snapshot of the machine.
    pub(super) fn restore_snapshot(&mut self, host: usize, earlier: Core) {
        self.hosts[host].core = Some(earlier);
        self.disturb(host);
    }

    pub(super) fn snapshot(&self, host: usize) -> Option<Core> {
        self.hosts[host].core.clone()
    }

    pub(super) fn wake(&mut self, host: usize, life: u32) {
        let h = &mut self.hosts[host];
        if h.life != life {
            return;
        }
        if let Some(until) = h.stopped_until.filter(|u| *u > self.now) {
            return self.at(until, Happening::Wake { host, life });
        }
        let clock = h.clock(self.now);
        let offset = h.clock_offset;
        let Some(core) = &mut h.core else { return };
        let mut out = Vec::new();
        core.tick(clock, &LoadSample::UNKNOWN, 0, &mut self.rng, &mut out);
        let next = core.next_wake();
        self.send_from(host, out);
        if next != Instant::FAR {
            let next = (next - offset).max(self.now + Duration::from_micros(100));
            self.at(next, Happening::Wake { host, life });
        }
    }

    fn send_from(&mut self, host: usize, out: Vec<Outgoing>) {
        for one in out {
            let bytes = one.bytes.as_slice().to_vec();
            match one.to {
                To::Controller(_) => self.send_to_controller(host, false, bytes),
                To::Addr(to) => match to.to_string().as_str() {
                    BEATS => self.send_to_controller(host, false, bytes),
                    PROBES => self.send_to_controller(host, true, bytes),
                    _ => self.send_between(host, to, bytes),
                },
            }
        }
    }

    pub(super) fn reach_host(
        &mut self,
        host: usize,
        to: SocketAddr,
        from: SocketAddr,
        probes: bool,
        bytes: Vec<u8>,
    ) {
        let h = &mut self.hosts[host];
        match h.truth {
            Truth::MachineDead | Truth::Unborn => {}
            Truth::Running if to == h.address() => {
                if let Some(until) = h.stopped_until.filter(|u| *u > self.now) {
                    // It lies in the agent's socket until the agent goes on.
                    let what = Happening::ToHost { host, to, from, probes, bytes };
                    return self.at(until, what);
                }
                if self.lies(host, from, &bytes) {
                    return;
                }
                let h = &mut self.hosts[host];
                let clock = h.clock(self.now);
                let Some(core) = &mut h.core else { return };
                let mut out = Vec::new();
                let controller = (from.to_string() == BEATS).then_some(0);
                core.receive(from, controller, &bytes, clock, &mut out);
                self.send_from(host, out);
                // An ack may have moved the next wake forward.
                let life = self.hosts[host].life;
                self.at(self.now, Happening::Wake { host, life });
            }
            // Nobody listens there: the kernel says so, quoting the datagram; only the probe socket
            // listens to that.
            Truth::Running | Truth::AgentDead | Truth::Left => {
                if probes && let Some(delay) = self.net.towards_controller(host, &mut self.rng) {
                    self.at(self.now + delay, Happening::Unreachable { quoted: bytes });
                }
            }
        }
    }
}
