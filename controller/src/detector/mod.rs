//! Decides from proofs of life alone which hosts are alive, suspect or down.
//!
//! The detector is a value: callers pass `now` and the watermark and get back the turns that time has
//! made true. Two detectors given the same calls answer alike, which is how the simulator replays a
//! fleet from one seed.
//!
//! Picture a night porter with a few rows of bells, one row per degree of patience. A bell that is hung
//! goes to the right end of its row, so the leftmost is the one that hung longest, and he looks along a
//! row only until he meets one whose time has not come. A bell that has rung meanwhile he hangs anew.
//! When one has been silent too long he first asks himself whether he slept ([`doubt`]), then knocks
//! three times ([`confirm`]), has neighbours of other houses knock too ([`peers`]), and only then calls
//! for help.
//!
//! Invariants (checked by [`Detector::check`] in tests):
//! - a tracked host is in exactly one row, but for suspects, which are in the probe plan, and pending,
//!   left or down ones with nothing to wait for;
//! - `Down` ends only with a proof of life;
//! - nothing expires whose deadline lies behind the watermark: mail that may lie unread is read first;
//! - judging costs O(rows + hosts looked at), not O(hosts known).

pub mod confirm;
pub mod dice;
pub mod doubt;
pub mod host;
pub mod knobs;
pub mod lru;
pub mod peers;
pub mod timeout;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hashbrown::HashMap;
use heartwatch_common::id::{Boot, HostId};
use heartwatch_common::load::LoadSample;
use heartwatch_common::time::Instant;
use heartwatch_common::wire::{Leave, RoundTrip, Stamp};

use crate::control::{ExcuseWhy, HostWhy, KnobsWhy, OverdueBin, ProbeWhy};
use crate::event::{Cause, State};
use crate::ingest::admit::Seen;
use crate::intervals::CLASSES_MAX;
use confirm::{Confirm, ProbePlan, Step, Tally};
use dice::Dice;
use doubt::{Doubt, Excuse, Overdue, Pass, Waking};
use host::{Evidence, Excused, Host, Known, Transition, Turn};
use knobs::{AllKnobs, Profile, Turned};
use lru::Rows;
use timeout::{Context, GroupId, LEARN_MAX, Learned, MarginSource, Patience, Siblings};

/// Most hosts of one detector.
pub const HOSTS_MAX: usize = 4_000_000;
/// How long after a change of boot the return of the other one means that two are alive.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(600);
/// A suspect's datagram may be this late and still prove life.
const SUSPECT_TOLERANCE: Duration = Duration::from_secs(1);
/// How often wished rates of mistakes are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Hosts looked at to find one by which to try a silent link.
const TRY_LINK_LOOKS: usize = 256;

/// What a detector decides by.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Longest announced gap that is believed.
    pub gap_max: Duration,
    /// Probing.
    pub plan: ProbePlan,
    /// How long after its expected beat a host that has come back before may be probed.
    pub confirm_max: Duration,
    /// How long own losses may excuse a host.
    pub doubt_max: Duration,
    /// Known hosts must be heard within this after a start.
    pub restart_grace: Duration,
    /// Expected hosts are missing after this.
    pub missing_after: Duration,
    /// Left and down hosts may be forgotten after this.
    pub forget_after: Duration,
}

impl Settings {
    /// From the checked config.
    pub fn new(c: &crate::config::DetectorConfig) -> Self {
        Self {
            gap_max: c.gap_max,
            plan: ProbePlan {
                probes: c.probes,
                spacing: c.probe_spacing,
                rate_max: c.probe_rate_max,
                peers: c.peers,
            },
            confirm_max: c.confirm_max,
            doubt_max: c.doubt_max,
            restart_grace: c.restart_grace,
            missing_after: c.missing_after,
            forget_after: c.forget_after,
        }
    }
}

/// A proof of life.
#[derive(Clone, Copy, Debug)]
pub struct Proof<'a> {
    /// What it says of itself.
    pub stamp: &'a Stamp,
    /// When the kernel received it, on the shard's clock.
    pub arrival: Instant,
    /// Where it came from.
    pub from: SocketAddr,
    /// How late the agent's timer fired, milliseconds.
    pub late_ms: u16,
    /// The load it carries.
    pub load: Option<&'a LoadSample>,
    /// It answers a probe: the beat that was due has not come yet, and the next is `stamp.gap` away.
    pub asked: bool,
    /// It answers a nonce: whatever was known of numbers and clocks begins anew with it.
    pub rebase: bool,
}

/// What a proof of life changed, beside turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Numbers skipped since the one before: datagrams lost on the way (or still coming).
    pub lost: u32,
    /// The host was suspect or down and its boot is the same.
    pub mistake: Option<State>,
    /// It came from another address than the one before.
    pub moved: bool,
}

/// What judging brought about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Judged {
    /// A host's story turned.
    Turn(Transition),
    /// A probe is to be sent.
    Probe {
        /// Whom.
        host: HostId,
        /// Where it was last heard from.
        to: SocketAddr,
        /// The boot that is known.
        boot: Boot,
        /// Number of the probe, from 1.
        number: u16,
        /// To be sent back.
        nonce: [u8; 16],
    },
    /// A peer is to be asked to probe a suspect.
    Ask {
        /// The peer.
        peer: HostId,
        /// Where the peer was last heard from.
        peer_at: SocketAddr,
        /// Whom it shall probe.
        host: HostId,
        /// Where that one was last heard from.
        to: SocketAddr,
        /// The boot of it that is known.
        boot: Boot,
        /// Number of the probe that goes out together with the request.
        number: u16,
        /// For the suspect to send back: of this request alone.
        nonce: [u8; 16],
    },
    /// A deadline passed, but our own losses excuse the host for now.
    Excused,
}

/// Watches the hosts of one shard.
#[derive(Clone, Debug)]
pub struct Detector {
    settings: Settings,
    hosts: Vec<Option<Host>>,
    free: Vec<u32>,
    index: HashMap<HostId, u32>,
    rows: Rows,
    confirm: Confirm,
    doubt: Doubt,
    siblings: Siblings,
    groups: HashMap<u64, GroupId>,
    /// Margins by [`Profile::knobs`]; never empty.
    knobs: Vec<Turned>,
    /// Hosts that may beat at any moment, by [`Profile::class`].
    classes: [u64; CLASSES_MAX],
    look_at: Instant,
    /// Addresses of the controller's own machine.
    local: Vec<IpAddr>,
    /// Whether probes prove nothing right now: nobody is called down.
    holds: bool,
    /// How long our clock stood still in all, while the agents' went on, nanoseconds.
    asleep_ns: u64,
    /// When a cut link is next tried by a probe.
    try_link_at: Instant,
    link_nonce: [u8; 16],
    /// What slots are filed by: the newest watermark. It never falls, and a deadline is looked at when
    /// the *watermark* has passed it, so filing by `now` would look late whenever reading lags behind.
    clock: Instant,
    dice: Dice,
    /// Room for slots to be filed again after a pass.
    again: Vec<(u32, Instant)>,
}

impl Detector {
    /// A detector without hosts. `seed` drives the rounding of learned counters and the nonces; in
    /// production it comes from the operating system's generator.
    pub fn new(settings: Settings, knobs: &AllKnobs, seed: u64, now: Instant) -> Self {
        Self {
            settings,
            hosts: Vec::new(),
            free: Vec::new(),
            index: HashMap::new(),
            rows: Rows::default(),
            confirm: Confirm::new(settings.plan, now),
            doubt: Doubt::new(now, settings.doubt_max),
            siblings: Siblings::default(),
            groups: HashMap::new(),
            knobs: Turned::all(knobs, now),
            classes: [0; CLASSES_MAX],
            look_at: now,
            local: Vec::new(),
            holds: false,
            asleep_ns: 0,
            try_link_at: now,
            link_nonce: [0; 16],
            clock: now,
            dice: Dice::new(seed),
            again: Vec::new(),
        }
    }

    /// Takes what a host's labels make of it.
    pub fn set_profile(&mut self, slot: u32, profile: Profile) {
        let group = self.group(profile.group);
        let knobs = profile.knobs.min((self.knobs.len() - 1) as u8);
        self.count(slot, |alive, one| alive - one);
        let h = self.host_mut(slot);
        (h.group, h.knobs) = (group, knobs);
        h.class = profile.class.min((CLASSES_MAX - 1) as u8);
        self.count(slot, |alive, one| alive + one);
    }

    fn group(&mut self, name: u64) -> GroupId {
        if name == 0 {
            return GroupId(0);
        }
        if let Some(known) = self.groups.get(&name) {
            return *known;
        }
        let group = self.siblings.add_group();
        // Names beyond the last group are not remembered: whoever invents labels gets no memory for it.
        if group != GroupId(0) {
            self.groups.insert(name, group);
        }
        group
    }

    /// Keeps a host's margin where an operator wants it, or lets it learn again. It holds from the
    /// present deadline on.
    pub fn freeze(&mut self, slot: u32, margin: Option<Duration>) {
        self.host_mut(slot).frozen = margin;
        let h = self.host(slot);
        if h.state == State::Alive && h.last_arrival.is_some() {
            let deadline = h.expected + self.margin(h).0;
            self.host_mut(slot).deadline = deadline;
            self.rows.hasten(slot, deadline, self.clock);
        }
    }

    /// Counts a host in or out of those alive under its knobs, and of those of its class that may beat.
    fn count(&mut self, slot: u32, change: impl Fn(u64, u64) -> u64) {
        let h = self.hosts[slot as usize].as_ref().expect("slot is live: the index owns it");
        let alive = &mut self.knobs[usize::from(h.knobs)].alive;
        *alive = change(*alive, u64::from(h.state == State::Alive));
        let may_beat = matches!(h.state, State::Alive | State::Suspect | State::Down);
        let class = &mut self.classes[usize::from(h.class)];
        *class = change(*class, u64::from(may_beat));
    }

    /// The slot of a host.
    pub fn slot(&self, id: HostId) -> Option<u32> {
        self.index.get(&id).copied()
    }

    /// How many hosts of each class may beat at any moment: they are alive, suspect or down.
    pub fn classes(&self) -> &[u64; CLASSES_MAX] {
        &self.classes
    }

    /// How many hosts are tracked.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// How many are being probed.
    pub fn probing(&self) -> usize {
        self.confirm.len()
    }

    /// This shard's record of its own losses.
    pub fn doubt(&self) -> &Doubt {
        &self.doubt
    }

    /// Takes note of how time went by while the shell waited; before any mail is read.
    pub fn wake(&mut self, now: Instant, waking: &Waking) {
        let asleep = u64::try_from(waking.suspended.as_nanos()).unwrap_or(u64::MAX);
        self.asleep_ns = self.asleep_ns.wrapping_add(asleep);
        self.doubt.wake(now, waking);
    }

    /// Something that was sent just now arrived: a proof of life, or an answer to a nonce of ours. What
    /// might be a recording does not count, or somebody who replays could hide that the link is cut.
    pub fn hear(&mut self, from: SocketAddr, arrival: Instant) {
        if !self.is_local(from) {
            self.doubt.hear(arrival);
        }
    }

    /// Records what a pass over the sockets received and what the kernel dropped, as of the watermark
    /// `seen`.
    pub fn heard(&mut self, now: Instant, seen: Instant, received: u64, dropped: u64) {
        let alive = self.knobs.iter().map(|k| k.alive).sum();
        self.doubt.record(now, &Pass { seen, received, dropped, alive });
    }

    /// Says which addresses are the controller's own machine's: hosts there say nothing about its link,
    /// nor its link about them.
    pub fn set_local(&mut self, addresses: Vec<IpAddr>) {
        self.local = addresses;
    }

    fn is_local(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        ip.is_loopback() || self.local.contains(&ip)
    }

    fn host(&self, slot: u32) -> &Host {
        self.hosts[slot as usize].as_ref().expect("slot is live: the index owns it")
    }

    fn host_mut(&mut self, slot: u32) -> &mut Host {
        self.hosts[slot as usize].as_mut().expect("slot is live: the index owns it")
    }

    /// A host's record; for the shard.
    pub(crate) fn record(&mut self, slot: u32) -> &mut Host {
        self.host_mut(slot)
    }

    /// What a host has proved so far.
    pub fn seen(&self, slot: u32) -> Seen {
        let mut seen = self.host(slot).seen();
        // Baselines are kept as if our clock had never stood still: otherwise a recording that is as old
        // as a suspend was long would look fresh.
        let asleep = self.asleep_ns as i64;
        seen.baseline_ns = seen.baseline_ns.map(|b| b.wrapping_sub(asleep));
        seen
    }

    /// How far off the usual a datagram's time may be to prove life: `timeout_max`; but for a suspect or
    /// down host no more than a second. What somebody kept from us and sends now would
    /// otherwise revive the dead for a moment; a live host that is only slow answers the challenge.
    pub fn tolerance(&self, slot: u32) -> Duration {
        match self.host(slot).state {
            State::Suspect | State::Down => SUSPECT_TOLERANCE.min(self.patience(slot).max),
            _ => self.patience(slot).max,
        }
    }

    fn patience(&self, slot: u32) -> &Patience {
        &self.knobs[usize::from(self.host(slot).knobs)].patience
    }

    fn roll(&mut self) -> u32 {
        self.dice.roll()
    }

    /// Registers a host, or answers the slot that it has. `None`: [`HOSTS_MAX`] are tracked.
    ///
    /// One that was alive or suspect gets a fresh deadline in the second half of `restart_grace`, spread
    /// by its id, so that a restart of the controller neither convicts in its own shadow nor judges all
    /// at once.
    pub fn register(&mut self, known: Known, now: Instant) -> Option<u32> {
        if let Some(slot) = self.slot(known.id) {
            return Some(slot);
        }
        if self.index.len() >= HOSTS_MAX {
            return None;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.hosts.push(None);
            (self.hosts.len() - 1) as u32
        });
        let s = &self.settings;
        let due = match known.state {
            State::Alive | State::Suspect => {
                let half = s.restart_grace / 2;
                let spread = u32::from_be_bytes([
                    known.id.0[12],
                    known.id.0[13],
                    known.id.0[14],
                    known.id.0[15],
                ]);
                Some(now + half + half.mul_f64(f64::from(spread) / f64::from(u32::MAX)))
            }
            State::Pending if known.missing_reported => None,
            // The grace at least, should the wall clock by which `in_state` was told be wrong.
            State::Pending => {
                let left = s.missing_after.saturating_sub(known.in_state);
                Some(now + left.max(s.restart_grace.min(s.missing_after)))
            }
            State::Down | State::Left => {
                let left = s.forget_after.saturating_sub(known.in_state);
                Some(now + left.max(s.restart_grace.min(s.forget_after)))
            }
        };
        let host = Host {
            id: known.id,
            state: known.state,
            boot: known.boot,
            boot_max: known.boot,
            seq: Default::default(),
            sent: Instant(0),
            generation: known.generation,
            address: known.address,
            expected: due.unwrap_or(now),
            deadline: due.unwrap_or(Instant::FAR),
            last_arrival: None,
            gap: Duration::from_secs(1),
            learned: Learned::default(),
            group: GroupId(0),
            knobs: 0,
            class: 0,
            frozen: known.frozen,
            mean_us: 0,
            deviation_us: 0,
            p99_us: 0,
            recent: [0; host::RECENT],
            recent_len: 0,
            recent_late: [0; host::RECENT],
            late_ms: 0,
            mistakes: 0,
            challenged_until: Instant(0),
            challenge_next: Instant(0),
            nonce_next: Instant(0),
            hello_wanted: known.state == State::Pending,
            facts_hash: 0,
            other_boot: Boot(0),
            other_until: if known.duplicate { now + DUPLICATE_WINDOW } else { Instant(0) },
            duplicate: known.duplicate,
            missing_reported: known.missing_reported,
            excused: None,
            key: None,
            listen: 0,
            domain: known.domain,
            round_trip: RoundTrip::UNKNOWN,
            live: known.live,
        };
        self.hosts[slot as usize] = Some(host);
        self.count(slot, |alive, one| alive + one);
        self.set_profile(slot, known.profile);
        self.index.insert(known.id, slot);
        if let Some(due) = due {
            self.rows.file(slot, due, self.clock);
        }
        Some(slot)
    }

    /// Forgets a host. `false` if it was not tracked.
    pub fn remove(&mut self, id: HostId) -> bool {
        let Some(slot) = self.index.remove(&id) else { return false };
        self.rows.unfile(slot);
        self.confirm.end(slot);
        self.count(slot, |alive, one| alive - one);
        self.hosts[slot as usize] = None;
        self.free.push(slot);
        true
    }

    fn set_state(&mut self, slot: u32, state: State) {
        self.count(slot, |alive, one| alive - one);
        self.host_mut(slot).state = state;
        self.count(slot, |alive, one| alive + one);
    }

    fn turn(&self, slot: u32, turn: Turn, at: Instant, evidence: Evidence) -> Transition {
        let h = self.host(slot);
        Transition {
            host: h.id,
            turn,
            state: h.state,
            boot: h.boot,
            address: h.address,
            at,
            duplicate: h.duplicate,
            evidence,
        }
    }

    fn evidence(&self, slot: u32, at: Instant) -> Evidence {
        let h = self.host(slot);
        let (margin, source) = self.margin(h);
        let tally = self.confirm.get(slot).map(|s| s.tally).unwrap_or_default();
        Evidence {
            silence_ms: h.last_arrival.map_or(0, |a| at.since(a).as_millis() as u64),
            overdue_ms: ms_between(h.expected, at),
            margin_ms: margin.as_secs_f64() * 1e3,
            margin_source: source.as_str(),
            gap_ms: h.gap.as_millis() as u64,
            last_seq: h.seq.0,
            probes_sent: tally.sent,
            probes_unreachable: tally.unreachable,
            peers_asked: tally.asked,
            testimonies: tally.testimonies,
            drop_ppm: self.doubt.drop_ppm(),
            judged_in_doubt: false,
            excused_by: h.excused.map_or("", |e| e.why.as_str()),
            excused_ms: h.excused.map_or(0, |e| e.span(self.clock).as_millis() as u64),
            mistakes: h.mistakes,
        }
    }

    fn margin(&self, h: &Host) -> (Duration, MarginSource) {
        h.margin(&self.knobs[usize::from(h.knobs)].patience)
    }

    /// Takes a proof of life: pushes the turns that it makes true (none for a beat like any other).
    pub fn observe(
        &mut self,
        slot: u32,
        proof: &Proof<'_>,
        turns: &mut Vec<Transition>,
    ) -> Observed {
        let evidence = match self.host(slot).state {
            // Nothing was expected of them, so there is nothing to tell.
            State::Alive | State::Pending => Evidence::default(),
            _ => self.evidence(slot, proof.arrival),
        };
        let h = self.host(slot);
        let lost = proof.stamp.seq.0.saturating_sub(h.seq.0).saturating_sub(1);
        // A gap that our own pause, cut or drops made teaches nothing about the host.
        let dropped =
            h.last_arrival.is_some_and(|last| self.doubt.explains(last, h.expected, lost));
        let dice = self.roll();
        let sent = Instant(proof.stamp.sent.0.wrapping_sub(self.asleep_ns));
        let Self { hosts, settings, siblings, knobs, .. } = self;
        let h = hosts[slot as usize].as_mut().expect("slot is live: the index owns it");
        let knobs = &mut knobs[usize::from(h.knobs)];
        let patience = knobs.patience;
        let mut observed = Observed::default();
        let arrival = h.last_arrival.map_or(proof.arrival, |last| last.max(proof.arrival));
        let same_boot = h.boot == proof.stamp.boot;
        let old_boot = h.boot;
        let continues = same_boot && !proof.rebase;

        if continues {
            observed.lost = lost;
            if let Some(last) = h.last_arrival {
                h.inter_arrival(arrival.since(last));
            }
            if h.learned.baseline_ns().is_some() {
                let overdue_ns = arrival.0.wrapping_sub(h.expected.0) as i64;
                // Left alone, it would have been overdue until its next beat. Learning what our own probe
                // cut short would keep the margin as short as it was wrong.
                let cut_short = if proof.asked {
                    proof.stamp.gap.min(settings.gap_max)
                } else {
                    Duration::ZERO
                };
                let overdue_ns = overdue_ns.saturating_add(cut_short.as_nanos() as i64);
                h.remember_overdue(overdue_ns, proof.late_ms);
                if !dropped && overdue_ns < LEARN_MAX.as_nanos() as i64 {
                    h.learned.learn(overdue_ns, &patience, siblings, h.group, dice);
                }
            }
        } else {
            h.learned.rebase();
            h.mean_us = 0;
        }
        h.boot = proof.stamp.boot;
        h.boot_max = h.boot_max.max(h.boot);
        h.seq = proof.stamp.seq;
        h.sent = proof.stamp.sent;
        h.gap = proof.stamp.gap.min(settings.gap_max);
        h.late_ms = proof.late_ms;
        h.expected = h.learned.expect(arrival, sent, h.gap);
        if !continues || h.recent_len == 0 {
            h.learned.choose(&patience, siblings.prior(h.group));
        }
        h.deadline = h.expected + h.margin(&patience).0;
        h.last_arrival = Some(arrival);
        h.missing_reported = false;
        h.excused = None;
        observed.moved = h.address != Some(proof.from);
        h.address = Some(proof.from);
        h.live.beat(arrival, h.gap.as_micros() as u64);
        if let Some(load) = proof.load {
            h.live.load(load);
        }
        let (state, deadline) = (h.state, h.deadline);

        if h.duplicate && arrival > h.other_until {
            // The other one has not answered for a long while.
            h.duplicate = false;
        }
        let mut two_alive = None;
        if !same_boot && old_boot != Boot(0) {
            if h.other_boot == h.boot && arrival <= h.other_until && !h.duplicate {
                h.duplicate = true;
                two_alive = Some(old_boot);
            }
            h.other_boot = old_boot;
            h.other_until = arrival + DUPLICATE_WINDOW;
            h.hello_wanted = true;
        }
        // Of an unreachable host we said that it lives.
        let known_to_live = self.confirm.is_unreachable(slot);
        let given_up = matches!(state, State::Suspect | State::Down);
        if same_boot && given_up && !known_to_live {
            h.mistakes = h.mistakes.saturating_add(1);
            knobs.mistake();
            observed.mistake = Some(state);
        }
        if state == State::Alive {
            self.rows.hasten(slot, deadline, self.clock);
        } else {
            self.confirm.end(slot);
            self.rows.file(slot, deadline, self.clock);
            self.set_state(slot, State::Alive);
        }
        let turn = match state {
            State::Pending => Some(Turn::Joined),
            State::Alive if !same_boot => Some(Turn::Restarted),
            State::Alive => None,
            State::Left if !same_boot => Some(Turn::Restarted),
            State::Suspect | State::Down | State::Left => Some(Turn::Recovered { same_boot }),
        };
        turns.extend(turn.map(|t| self.turn(slot, t, arrival, evidence)));
        if let Some(other) = two_alive {
            turns.push(self.turn(slot, Turn::Duplicate { other }, arrival, evidence));
        }
        observed
    }

    /// Takes a goodbye that is also a proof of life.
    pub fn leave(
        &mut self,
        slot: u32,
        leave: &Leave,
        proof: &Proof<'_>,
        now: Instant,
        turns: &mut Vec<Transition>,
    ) {
        if self.host(slot).state != State::Left {
            let before = turns.len();
            self.observe(slot, proof, turns);
            // The goodbye says all: whatever it proved on the way is not worth a word of its own.
            turns.truncate(before);
        } else {
            let h = self.host_mut(slot);
            (h.boot, h.seq, h.sent) = (proof.stamp.boot, proof.stamp.seq, proof.stamp.sent);
            h.boot_max = h.boot_max.max(h.boot);
            return;
        }
        self.set_state(slot, State::Left);
        let forget = now + self.settings.forget_after;
        self.host_mut(slot).deadline = forget;
        self.rows.file(slot, forget, self.clock);
        let evidence = self.evidence(slot, proof.arrival);
        let turn = Turn::Left { reason: leave.reason, expected: leave.expected };
        turns.push(self.turn(slot, turn, proof.arrival, evidence));
    }

    /// Whether `nonce`, which came back at `arrival`, answers a probe of a suspect in time.
    pub fn answers_probe(&self, slot: u32, nonce: &[u8; 16], arrival: Instant) -> bool {
        self.confirm.answers(slot, nonce, arrival)
    }

    /// Takes an answer to a probe that a peer brought back, sealed by the suspect itself. It proves that
    /// the host lived when the peer was asked, and nothing else: it came from another address than the
    /// host's, and we still cannot hear it. `false` if we wait for no such nonce.
    pub fn testify(&mut self, slot: u32, nonce: &[u8; 16]) -> bool {
        self.confirm.testify(slot, nonce)
    }

    /// Something sealed by a suspect has come in, and it was asked for proof: see [`Confirm::hear_out`].
    pub fn hear_out(&mut self, slot: u32, now: Instant) {
        self.confirm.hear_out(slot, now);
    }

    /// How many hosts are unreachable from here, but alive.
    pub fn unreachable_len(&self) -> usize {
        self.confirm.unreachable_len()
    }

    /// A host's kernel says that nobody listens, quoting a nonce. `false` if it is not one of ours.
    pub fn unreachable(&mut self, slot: u32, nonce: &[u8; 16], now: Instant) -> bool {
        let tried = self.holds && *nonce == self.link_nonce;
        let suspect = self.confirm.unreachable(slot, nonce);
        if tried || suspect {
            // A kernel that answers is heard, too.
            self.doubt.hear(now);
        }
        tried || suspect
    }

    /// Judges what is due, as of the watermarks: everything that arrived at the beat sockets before
    /// `seen`, and at the probe socket before `seen_probes`, has been observed.
    pub fn judge(
        &mut self,
        seen: Instant,
        seen_probes: Instant,
        now: Instant,
        out: &mut Vec<Judged>,
    ) {
        self.clock = self.clock.max(seen);
        let seen = self.clock;
        if now >= self.look_at {
            self.look_at = now + LOOK_EVERY;
            self.knobs.iter_mut().for_each(|k| k.look(now));
        }
        let mut again = std::mem::take(&mut self.again);
        while let Some(slot) = self.rows.pop_due(seen) {
            let deadline = self.host(slot).deadline;
            if deadline > seen {
                again.push((slot, deadline));
                continue;
            }
            match self.host(slot).state {
                State::Alive | State::Suspect => {
                    again.extend(self.overdue(slot, seen, now, out).map(|at| (slot, at)));
                }
                State::Pending => {
                    let h = self.host_mut(slot);
                    h.missing_reported = true;
                    h.deadline = Instant::FAR;
                    let evidence = self.evidence(slot, now);
                    out.push(Judged::Turn(self.turn(slot, Turn::Missing, now, evidence)));
                }
                State::Down | State::Left => {
                    // Asked again in an hour, should the registry not have forgotten it by then.
                    let again = now + Duration::from_secs(3_600);
                    self.host_mut(slot).deadline = again;
                    self.rows.file(slot, again, self.clock);
                    let turn = self.turn(slot, Turn::Forgettable, now, Evidence::default());
                    out.push(Judged::Turn(turn));
                }
            }
        }
        for (slot, at) in again.drain(..) {
            self.rows.file(slot, at, self.clock);
        }
        self.again = again;
        let held = std::mem::replace(&mut self.holds, self.doubt.holds_verdicts(seen));
        if self.holds {
            return self.try_link(now, out);
        }
        if held {
            // What was unanswered while nothing could be heard proves nothing.
            self.confirm.restart(now);
        }
        while let Some(step) = self.confirm.step(now, seen.min(seen_probes), &mut self.dice) {
            match step {
                Step::Probe { slot, number, nonce, peers } => {
                    let h = self.host(slot);
                    if let Some(to) = h.address {
                        out.push(Judged::Probe { host: h.id, to, boot: h.boot, number, nonce });
                        self.ask_peers(slot, to, number, peers, now, out);
                    }
                }
                Step::Unreachable { slot } => {
                    let evidence = self.evidence(slot, now);
                    out.push(Judged::Turn(self.turn(slot, Turn::Unreachable, now, evidence)));
                }
                Step::Down { slot, cause, tally } => self.down(slot, cause, tally, now, out),
            }
        }
    }

    /// Has at most `count` peers asked about the suspect in `slot`, who was last heard from `to`.
    fn ask_peers(
        &mut self,
        slot: u32,
        to: SocketAddr,
        number: u16,
        count: u8,
        now: Instant,
        out: &mut Vec<Judged>,
    ) {
        if count == 0 {
            return;
        }
        let (asked, witness) = self.confirm.peers_of(slot);
        let asked: Vec<u32> = asked.collect();
        let Self { hosts, dice, clock, .. } = self;
        let chosen = peers::choose(hosts, slot, usize::from(count), *clock, &asked, witness, dice);
        for peer in chosen {
            let nonce = self.dice.nonce();
            let (h, p) = (self.host(slot), self.host(peer));
            let Some(peer_at) = p.address else { continue };
            let (peer_id, host, boot) = (p.id, h.id, h.boot);
            let trip = trip_of(h) + trip_of(p);
            self.confirm.asked(slot, peer, nonce, trip, now);
            out.push(Judged::Ask { peer: peer_id, peer_at, host, to, boot, number, nonce });
        }
    }

    /// Judges a host whose deadline has passed. `Some`: excused until then.
    fn overdue(
        &mut self,
        slot: u32,
        seen: Instant,
        now: Instant,
        out: &mut Vec<Judged>,
    ) -> Option<Instant> {
        let h = self.host(slot);
        let restored = h.state == State::Suspect;
        let excused = h.excused;
        let overdue = Overdue {
            expected: h.expected,
            gap: h.gap,
            margin: self.margin(h).0,
            last: h.last_arrival,
            local: h.address.is_some_and(|a| self.is_local(a)),
            excused_since: excused.map(|e| e.since),
        };
        let in_doubt = match self.doubt.judge(&overdue, seen) {
            Excuse::None => false,
            Excuse::Exhausted(_) => true,
            Excuse::Until(at, why) => {
                let since = excused.map_or(seen, |e| e.since);
                self.host_mut(slot).excused = Some(Excused { since, until: at, why });
                out.push(Judged::Excused);
                return Some(at);
            }
        };
        let trip = trip_of(self.host(slot));
        let mut evidence = self.evidence(slot, now);
        evidence.judged_in_doubt = in_doubt;
        let h = self.host(slot);
        let given = h.learned.given_time().min(self.settings.confirm_max);
        let until = h.expected + given;
        self.confirm.begin(slot, trip, until, now);
        self.set_state(slot, State::Suspect);
        if !restored {
            out.push(Judged::Turn(self.turn(slot, Turn::Suspect, now, evidence)));
        }
        None
    }

    /// While nothing at all is heard, one host after the other is asked: whatever answers, be it a kernel
    /// whose agent is gone, tells that the link works and that the silence is the hosts' own.
    fn try_link(&mut self, now: Instant, out: &mut Vec<Judged>) {
        if now < self.try_link_at || self.hosts.is_empty() {
            return;
        }
        self.try_link_at = now + self.settings.plan.spacing;
        self.link_nonce = self.dice.nonce();
        let nonce = self.link_nonce;
        let count = self.hosts.len();
        let start = self.roll() as usize % count;
        let mut remote = (0..count.min(TRY_LINK_LOOKS)).filter_map(|i| {
            let h = self.hosts[(start + i) % count].as_ref()?;
            let to = h.address.filter(|a| !self.is_local(*a))?;
            matches!(h.state, State::Alive | State::Suspect).then_some((h.id, to, h.boot))
        });
        if let Some((host, to, boot)) = remote.next() {
            out.push(Judged::Probe { host, to, boot, number: 0, nonce });
        }
    }

    fn down(&mut self, slot: u32, cause: Cause, tally: Tally, now: Instant, out: &mut Vec<Judged>) {
        let mut evidence = self.evidence(slot, now);
        // `step` has taken the suspect out of the plan with its verdict.
        (evidence.probes_sent, evidence.probes_unreachable) = (tally.sent, tally.unreachable);
        (evidence.peers_asked, evidence.testimonies) = (tally.asked, tally.testimonies);
        self.set_state(slot, State::Down);
        let forget = now + self.settings.forget_after;
        self.host_mut(slot).deadline = forget;
        self.rows.file(slot, forget, self.clock);
        out.push(Judged::Turn(self.turn(slot, Turn::Down(cause), now, evidence)));
    }

    /// When judging has something to do next.
    pub fn next_due(&self) -> Option<Instant> {
        let probing = if self.holds { Some(self.try_link_at) } else { self.confirm.next_due() };
        match (self.rows.next_due(), probing) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// What is known of a host right now, for people.
    pub fn why(&self, slot: u32, shard: u16, now: Instant, lag: Duration) -> HostWhy {
        let h = self.host(slot);
        let (margin, source) = self.margin(h);
        let timed = matches!(h.state, State::Alive) && h.last_arrival.is_some();
        // Of one that has not been heard, or has left, no beat is expected.
        let expects = h.last_arrival.is_some() && !matches!(h.state, State::Pending | State::Left);
        HostWhy {
            state: h.state,
            shard,
            boot: h.boot,
            seq: h.seq,
            silence_ms: h.last_arrival.map(|a| now.since(a).as_millis() as u64),
            expected_in_ms: expects.then(|| ms_between(now, h.expected)),
            margin_ms: expects.then_some(margin.as_secs_f64() * 1e3),
            margin_source: source.as_str().to_owned(),
            deadline_in_ms: timed.then(|| ms_between(now, h.deadline)),
            gap_ms: h.gap.as_millis() as u64,
            inter_arrival_mean_ms: f64::from(h.mean_us) / 1e3,
            inter_arrival_deviation_ms: f64::from(h.deviation_us) / 1e3,
            inter_arrival_p99_ms: f64::from(h.p99_us) / 1e3,
            overdue: overdue_bins(h, Context::Calm),
            overdue_disturbed: overdue_bins(h, Context::Disturbed),
            context: h.learned.context().as_str().to_owned(),
            margin_calm_ms: h.learned.chosen(Context::Calm).as_secs_f64() * 1e3,
            margin_disturbed_ms: h.learned.chosen(Context::Disturbed).as_secs_f64() * 1e3,
            mistakes_foreseen_per_day: self.foreseen(h),
            knobs: self.knobs_why(h),
            beats_learned: f64::from(h.learned.beats()),
            group: String::new(),
            group_beats: self.siblings.beats(h.group),
            last_overdue_ms: h.recent_ms(),
            last_late_ms: h.recent_late_ms(),
            late_ms: h.late_ms,
            mistakes: h.mistakes,
            probes: self.confirm.get(slot).map(|p| ProbeWhy {
                sent: p.tally.sent,
                of: self.confirm.plan().probes,
                unreachable: p.tally.unreachable,
                peers_asked: p.tally.asked,
                testimonies: p.tally.testimonies,
                spacing_ms: p.spacing.as_millis() as u64,
            }),
            excuse: h.excused.map(|e| ExcuseWhy {
                reason: e.why,
                since_ms: now.since(e.since).as_millis() as u64,
                remaining_ms: e.until.since(now).as_millis() as u64,
            }),
            shard_drop_ppm: self.doubt.drop_ppm(),
            shard_lag_ms: lag.as_millis() as u64,
        }
    }

    /// Suspicions of a living host to be foreseen in a day: the chance of one a beat, times its beats.
    fn foreseen(&self, h: &Host) -> Option<f64> {
        let interval = h.learned.interval();
        if interval.is_zero() || h.frozen.is_some() {
            return None;
        }
        let chance = f64::from(h.learned.chance(self.siblings.prior(h.group)));
        Some(chance * 86_400.0 / interval.as_secs_f64())
    }

    fn knobs_why(&self, h: &Host) -> KnobsWhy {
        let knobs = &self.knobs[usize::from(h.knobs)];
        KnobsWhy {
            name: knobs.name.clone(),
            false_suspicion_cost_s: f64::from(knobs.patience.cost_s),
            max_mistakes_per_host_day: knobs.target.as_ref().map(|t| t.per_host_day()),
            timeout_min_ms: knobs.patience.min.as_millis() as u64,
            timeout_max_ms: knobs.patience.max.as_millis() as u64,
            frozen_ms: h.frozen.map(|f| f.as_millis() as u64),
        }
    }

    /// A host's state; for tests and the simulator.
    pub fn state(&self, id: HostId) -> Option<State> {
        self.slot(id).map(|slot| self.host(slot).state)
    }

    /// Checks the invariants; for tests.
    ///
    /// # Panics
    /// If one does not hold.
    pub fn check(&self) {
        self.rows.check();
        let mut alive = vec![0; self.knobs.len()];
        let mut classes = [0; CLASSES_MAX];
        for (id, slot) in self.index.iter() {
            let host = self.host(*slot);
            assert_eq!(host.id, *id);
            alive[usize::from(host.knobs)] += u64::from(host.state == State::Alive);
            let may_beat = matches!(host.state, State::Alive | State::Suspect | State::Down);
            classes[usize::from(host.class)] += u64::from(may_beat);
            let probed = self.confirm.get(*slot).is_some();
            assert!(!probed || host.state == State::Suspect, "{id} is probed but {}", host.state);
        }
        assert!(alive.iter().eq(self.knobs.iter().map(|k| &k.alive)));
        assert_eq!(classes, self.classes);
        assert_eq!(self.hosts.iter().flatten().count(), self.index.len());
    }
}

fn overdue_bins(h: &Host, context: Context) -> Vec<OverdueBin> {
    let bin = |(above, count): (Duration, f32)| OverdueBin {
        above_ms: above.as_secs_f64() * 1e3,
        count: f64::from(count),
    };
    h.learned.histogram(context).map(bin).collect()
}

/// A host's round trip; zero if it is not known.
fn trip_of(h: &Host) -> Duration {
    h.round_trip.duration().unwrap_or_default()
}

/// Milliseconds from `from` to `to`, negative if `to` is earlier.
fn ms_between(from: Instant, to: Instant) -> i64 {
    let ns = i128::from(to.0) - i128::from(from.0);
    i64::try_from(ns / 1_000_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
