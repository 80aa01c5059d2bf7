//! Hosts among themselves: probes that they pass on, peers that lie about them, and what must come of it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use heartwatch_common::id::{Boot, Generation, HostId, KeyId, Seq};
use heartwatch_common::time::Instant;
use heartwatch_common::wire::{self, Header, Message, Probe, ProbeReply, Stamp};
use heartwatch_controller::event::State;
use rand::RngExt;

use super::host::secret;
use super::{Happening, Truth, World};
use crate::invariants::Voucher;

/// True answers of one host that liars remember.
const RECORDED_MAX: usize = 16;
/// A host that was cut off from the controller is known to be unreachable after this.
const KNOWN_AFTER: Duration = Duration::from_secs(20);
/// A dead host is down after this, whatever is said of it.
const DOWN_AFTER: Duration = Duration::from_secs(25);
/// A beat that somebody carries over a cut is good for no longer than this.
const CARRIED_OVER: Duration = Duration::from_secs(15);
/// What stood undisturbed for so long is as it should be.
const SETTLED: Duration = Duration::from_secs(10);

/// When to look, and at what.
#[derive(Clone, Copy, Debug)]
pub(super) enum Look {
    /// Is the host, whose path was cut then, known to be unreachable?
    CutOff { host: usize, at: Instant },
    /// Is the host, which died then, down?
    Dead { host: usize, at: Instant },
}

/// What liars have overheard.
#[derive(Default)]
pub(super) struct Overheard(BTreeMap<HostId, VecDeque<Vec<u8>>>);

impl Overheard {
    fn record(&mut self, host: HostId, bytes: &[u8]) {
        let of_host = self.0.entry(host).or_default();
        if of_host.len() == RECORDED_MAX {
            of_host.pop_front();
        }
        of_host.push_back(bytes.to_vec());
    }
}

impl World {
    /// A host sends to another host's address.
    pub(super) fn send_between(&mut self, host: usize, to: SocketAddr, bytes: Vec<u8>) {
        let SocketAddr::V4(v4) = to else { return };
        let other = usize::from(v4.ip().octets()[3]).wrapping_sub(1);
        if other >= self.hosts.len() {
            return;
        }
        self.overhear(host, &bytes);
        let from = self.hosts[host].address();
        if let Some(delay) = self.net.between(host, other, &mut self.rng) {
            let what = Happening::ToHost { host: other, to, from, probes: false, bytes };
            self.at(self.now + delay, what);
        }
    }

    /// Somebody who lies keeps the true answers of others.
    pub(super) fn overhear(&mut self, host: usize, bytes: &[u8]) {
        if self.hosts.iter().any(|h| h.liar)
            && let Ok(datagram) = wire::decode(bytes)
            && datagram.header.host == self.hosts[host].id
            && matches!(datagram.message, Message::ProbeReply(_))
        {
            self.overheard.record(datagram.header.host, bytes);
        }
    }

    /// Whether a datagram that reached a host asks it to pass a probe on, and it lies instead: it forges
    /// the answer under its own key and without one, plays true answers of the past, with the nonce put
    /// right too, and answers in its own name.
    pub(super) fn lies(&mut self, host: usize, from: SocketAddr, bytes: &[u8]) -> bool {
        if !self.hosts[host].liar || self.rng.random_bool(0.3) {
            return false;
        }
        let Ok(datagram) = wire::decode(bytes) else { return false };
        let Message::ProbeVia(via) = datagram.message else { return false };
        let Ok(inner) = wire::decode(via.probe) else { return false };
        let Message::Probe(probe) = inner.message else { return false };
        let (liar, about) = (self.hosts[host].id, inner.header.host);
        let own = secret().host_key(liar, Generation(0));
        let mut lies: Vec<Vec<u8>> = Vec::new();
        for name in [about, liar] {
            let mut lie = reply_of(name, &probe, self.now);
            own.seal(&mut lie);
            lies.push(lie.to_vec());
        }
        let mut unsealed = reply_of(about, &probe, self.now);
        self.rng.fill(&mut unsealed[wire::BODY_LEN..]);
        lies.push(unsealed.to_vec());
        for old in self.overheard.0.get(&about).into_iter().flatten() {
            let mut patched = old.clone();
            patched[wire::BODY_LEN - 16..wire::BODY_LEN].copy_from_slice(&probe.nonce);
            lies.extend([old.clone(), patched]);
        }
        for lie in lies {
            if let Some(delay) = self.net.towards_controller(host, &mut self.rng) {
                let later = Duration::from_micros(self.rng.random_range(0..300_000));
                let what = Happening::ToController {
                    from: self.hosts[host].address(),
                    probes: from.to_string() == super::host::PROBES,
                    bytes: lie,
                    original: None,
                };
                self.at(self.now + delay + later, what);
            }
        }
        true
    }

    /// Something happened to a host beside its way to the controller.
    pub(super) fn disturb(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        h.calm_since = h.stopped_until.map_or(self.now, |u| u.max(self.now));
    }

    pub(super) fn look_later(&mut self, look: Look) {
        let after = match look {
            Look::CutOff { .. } => KNOWN_AFTER,
            Look::Dead { .. } => DOWN_AFTER,
        };
        self.at(self.now + after, Happening::Look(look));
    }

    pub(super) fn look(&mut self, look: Look) {
        // Losses and long delays on four ways in a row, and own drops, are excuses that no time limits.
        let clear = self.net.is_clear() && !self.controller.has_dropped();
        let undisturbed = |since: Instant| {
            self.controller.running && self.controller.calm_since + SETTLED <= since
        };
        match look {
            Look::CutOff { host, at } => {
                let h = &self.hosts[host];
                let still = self.net.is_cut_off(host) == Some(at) && h.calm_since + SETTLED <= at;
                // A beat that was lost on the cut way, recorded, and carried over at once, does prove life:
                // the host is alive for as long as that beat promised.
                let carried_over = h.replayed_at + CARRIED_OVER > self.now;
                if carried_over || !still || h.truth != Truth::Running || !clear || !undisturbed(at)
                {
                    return;
                }
                if self.voucher(host).is_some_and(|v| v.since + SETTLED <= at) {
                    let recorded = self.controller.row(h.id);
                    self.ledger.check_known_unreachable(&self.hosts[host], recorded);
                }
            }
            Look::Dead { host, at } => {
                let h = &self.hosts[host];
                let dead = matches!(h.truth, Truth::AgentDead | Truth::MachineDead);
                if dead && h.since == at && clear && undisturbed(at) {
                    let recorded = self.controller.row(h.id);
                    self.ledger.check_dead_is_down(&self.hosts[host], recorded);
                }
            }
        }
    }

    /// Whether somebody must be able to vouch for a host at this moment, and since when: an honest peer in
    /// another rack that the controller hears and that reaches the host, where those that could be asked
    /// in its stead are too few to take all the places.
    pub(super) fn voucher(&self, host: usize) -> Option<Voucher> {
        let h = &self.hosts[host];
        let here = |i: usize| {
            let other = &self.hosts[i];
            let row = self.controller.row(other.id);
            other.truth == Truth::Running
                && other.stopped_until.is_none_or(|u| u <= self.now)
                && row.is_some_and(|r| r.address == Some(other.address()))
                && !self.net.is_isolated(i)
        };
        if !here(host) || !self.net.is_clear() || self.controller.has_dropped() {
            return None;
        }
        let (mut since, mut others) = (None, 0);
        for (i, other) in self.hosts.iter().enumerate() {
            let asked = i % 3 != host % 3 && self.controller.holds_alive(other.id);
            if !asked {
                continue;
            }
            if here(i) && !other.liar && self.net.is_cut_off(i).is_none() {
                let calm = other.calm_since;
                since = Some(since.map_or(calm, |s: Instant| s.min(calm)));
            } else {
                others += 1;
            }
        }
        let since = since.filter(|_| others < 3)?;
        let since = since.max(h.calm_since).max(self.controller.calm_since);
        Some(Voucher { since })
    }

    /// What the ledger must know when a host's story turns.
    pub(super) fn settled_voucher(&self, host: usize) -> Option<Voucher> {
        self.voucher(host).filter(|v| v.since + SETTLED <= self.now)
    }

    /// Whether the controller holds a host to be alive right now.
    pub(super) fn is_held_alive(&self, id: HostId) -> bool {
        self.controller.row(id).is_some_and(|r| r.state == State::Alive)
    }
}

/// A probe reply in the name of a host, unsealed.
fn reply_of(host: HostId, probe: &Probe, now: Instant) -> wire::Fixed {
    let header = Header { host, key_id: KeyId(1), generation: Generation(0), flags: 0 };
    let stamp = Stamp {
        boot: Boot(probe.boot.0),
        seq: Seq(u32::MAX / 2),
        sent: now,
        gap: Duration::from_secs(1),
        epoch: probe.epoch,
    };
    ProbeReply { stamp, nonce: probe.nonce }.encode(&header)
}
