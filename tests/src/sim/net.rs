//! The simulated network, and somebody in it who records and replays.
//!
//! A host can be cut from everybody (its own link), or from the controller alone (its way there), each in
//! either direction.

use std::net::SocketAddr;
use std::time::Duration;

use heartwatch_common::time::Instant;
use rand::RngExt;
use rand::rngs::StdRng;

use super::fault::Plan;
use super::host::{BEATS, PROBES};
use super::{Happening, World};

/// Directions between a host and the controller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ways {
    pub(super) up: bool,
    pub(super) down: bool,
}

/// Loss, delay and cuts between hosts and the controller.
pub(super) struct Net {
    loss: f64,
    duplicate: f64,
    jitter_us: u64,
    tail: f64,
    /// The controller's own link is cut.
    pub(super) cut_link: bool,
    pub(super) cut_up: Vec<bool>,
    pub(super) cut_down: Vec<bool>,
    /// Since when, and in which directions, the way between a host and the controller is cut.
    pub(super) cut_off: Vec<Option<(Instant, Ways)>>,
    /// Datagrams that somebody recorded.
    recorded: Vec<(SocketAddr, Vec<u8>)>,
    records: bool,
}

impl Net {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            loss: plan.loss,
            duplicate: plan.duplicate,
            jitter_us: plan.jitter_us,
            tail: plan.tail,
            cut_link: false,
            cut_up: vec![false; 256],
            cut_down: vec![false; 256],
            cut_off: vec![None; 256],
            recorded: Vec::new(),
            records: plan.replays,
        }
    }

    pub(super) fn heal(&mut self) {
        (self.loss, self.duplicate, self.tail) = (0.0, 0.0, 0.0);
        self.cut_link = false;
        self.cut_up.fill(false);
        self.cut_down.fill(false);
        self.cut_off.fill(None);
    }

    /// Whether datagrams may come so late that they look as if the link worked.
    pub(super) fn has_tail(&self) -> bool {
        self.tail > 0.0
    }

    fn delay(&self, rng: &mut StdRng) -> Duration {
        let mut us = 100 + rng.random_range(0..=self.jitter_us);
        if rng.random_bool(self.tail) {
            us += rng.random_range(0..1_500_000);
        }
        Duration::from_micros(us)
    }

    /// How long a datagram takes from a host to the controller; `None`: lost.
    pub(super) fn towards_controller(&self, host: usize, rng: &mut StdRng) -> Option<Duration> {
        let cut =
            self.cut_link || self.cut_up[host] || self.cut_off[host].is_some_and(|(_, w)| w.up);
        (!cut && !rng.random_bool(self.loss)).then(|| self.delay(rng))
    }

    fn towards_host(&self, host: usize, rng: &mut StdRng) -> Option<Duration> {
        let cut =
            self.cut_link || self.cut_down[host] || self.cut_off[host].is_some_and(|(_, w)| w.down);
        (!cut && !rng.random_bool(self.loss)).then(|| self.delay(rng))
    }

    /// How long a datagram takes from one host to another; `None`: lost.
    pub(super) fn between(&self, from: usize, to: usize, rng: &mut StdRng) -> Option<Duration> {
        let cut = self.cut_up[from] || self.cut_down[to];
        (!cut && !rng.random_bool(self.loss)).then(|| self.delay(rng))
    }

    /// Whether nothing is lost or long delayed but by cuts.
    pub(super) fn is_clear(&self) -> bool {
        self.loss == 0.0 && self.tail == 0.0 && !self.cut_link
    }

    /// Whether a host's own link is cut in any direction.
    pub(super) fn is_isolated(&self, host: usize) -> bool {
        self.cut_up[host] || self.cut_down[host]
    }

    /// Since when a host's way to the controller alone is cut in any direction.
    pub(super) fn is_cut_off(&self, host: usize) -> Option<Instant> {
        self.cut_off[host].map(|(since, _)| since)
    }
}

impl World {
    /// A host sends to one of the controller's sockets.
    pub(super) fn send_to_controller(&mut self, host: usize, probes: bool, bytes: Vec<u8>) {
        let from = self.hosts[host].address();
        self.overhear(host, &bytes);
        // Who sits on the controller's side of a cut link hears nothing new there either.
        if self.net.records && !probes && !self.net.cut_link {
            if self.net.recorded.len() >= 500 {
                let at = self.rng.random_range(0..500);
                self.net.recorded.swap_remove(at);
            }
            self.net.recorded.push((from, bytes.clone()));
        }
        if let Some(delay) = self.net.towards_controller(host, &mut self.rng) {
            let copies = 1 + usize::from(self.rng.random_bool(self.net.duplicate));
            for copy in 0..copies {
                let extra = Duration::from_micros(self.rng.random_range(0..2_000)) * copy as u32;
                let original = (copy == 0).then_some(host);
                let bytes = bytes.clone();
                let what = Happening::ToController { from, probes, bytes, original };
                self.at(self.now + delay + extra, what);
            }
        }
    }

    /// The controller sends to a host's address.
    pub(super) fn send_to_host(&mut self, to: SocketAddr, probes: bool, bytes: Vec<u8>) {
        let SocketAddr::V4(v4) = to else { return };
        let host = usize::from(v4.ip().octets()[3]).wrapping_sub(1);
        if host >= self.hosts.len() {
            return;
        }
        let from: SocketAddr =
            if probes { PROBES } else { BEATS }.parse().expect("these are addresses");
        if let Some(delay) = self.net.towards_host(host, &mut self.rng) {
            self.at(self.now + delay, Happening::ToHost { host, to, from, probes, bytes });
        }
    }

    /// Somebody sends recorded datagrams again: the newest of a host most of all, since that is the one
    /// that a window that is off by one would take. They sit on the controller's side of its link, and
    /// go on while that is cut: noise must not pass for a link that works.
    pub(super) fn replay(&mut self, host: usize) {
        self.hosts[host].replayed_at = self.now;
        let ip = self.hosts[host].address().ip();
        let of_host: Vec<_> =
            self.net.recorded.iter().filter(|(from, _)| from.ip() == ip).cloned().collect();
        let newest = of_host.last().cloned();
        for (from, bytes) in newest.into_iter().chain(of_host.into_iter().rev().take(4)) {
            let delay = Duration::from_micros(self.rng.random_range(100..50_000));
            let what = Happening::ToController { from, probes: false, bytes, original: None };
            self.at(self.now + delay, what);
        }
    }
}
