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
mod excuses;
pub mod host;
mod hush;
mod index;
pub mod knobs;
pub mod lru;
mod observe;
pub mod peers;
mod records;
mod slab;
pub mod timeout;
mod twins;
mod why;

pub use records::Ahead;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashMap};
use heartwatch_common::id::{Boot, HostId};
use heartwatch_common::load::LoadSample;
use heartwatch_common::time::{Instant, micros};
use heartwatch_common::wire::{Leave, Stamp};

use crate::event::{Cause, State};
use crate::intervals::CLASSES_MAX;
use crate::view::LiveTable;
use confirm::{Confirm, ProbePlan, Step, Tally};
use dice::Dice;
use doubt::{Doubt, Excuse, Overdue, Pass, Waking};
use excuses::{Excused, Excuses};
use host::{
    AWAITED, DUPLICATE, EXCUSED, Evidence, HUSHED, Host, MISSING_REPORTED, Rare, Transition, Turn,
};
use hush::Hush;
use index::Index;
use knobs::{AllKnobs, Turned};
use lru::Rows;
use slab::Slab;
use timeout::{GroupId, MarginSource, Siblings};

/// Most hosts of one detector.
pub const HOSTS_MAX: usize = 4_000_000;

const _: () = assert!(HOSTS_MAX <= index::SLOTS_MAX && index::SLOTS_MAX <= lru::SLOTS_MAX);

/// How long after a change of boot the return of the other one means that two are alive, and how long the
/// other of two must be silent to be taken for gone. Not shorter: a clone that was paused, or whose path is
/// cut for some minutes, is still there, and what is ordered meanwhile may start a second copy of what it
/// runs.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(600);
/// How often two must have taken turns to be two. A machine that is restored from a snapshot comes back as an
/// older boot once, and after that never as the newer.
const TWINS_TURNS: u8 = 2;
/// A suspect's datagram may be this late and still prove life.
const SUSPECT_TOLERANCE: Duration = Duration::from_secs(1);
/// How often wished rates of mistakes are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How many looks ahead the records of hosts are fetched.
const JUDGE_AHEAD: usize = 6;
/// Hosts that are judged in one pass, and steps towards suspects: a few milliseconds' worth.
const JUDGED_MAX: usize = 1_024;
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
    /// Known hosts are not judged before this after a start; see `grace_of`.
    pub restart_grace: Duration,
    /// Expected hosts are missing after this.
    pub missing_after: Duration,
    /// Longest absence that a goodbye may announce.
    pub leave_max: Duration,
    /// How much later than it announced a host is overdue.
    pub leave_grace: Duration,
    /// Left and down hosts may be forgotten after this.
    pub forget_after: Duration,
}

impl Settings {
    /// How long after a start it takes until each known host has been judged, and who is dead called down, if
    /// the controller assigns intervals of up to `gap`: their grace, the eighth by which it is spread, their
    /// probes, and a second for margins.
    pub fn chance(&self, gap: Duration) -> Duration {
        let probing = self.plan.spacing * (u32::from(self.plan.probes) + 1);
        self.grace_for(gap) * 9 / 8 + probing + Duration::from_secs(1)
    }

    /// How long a known host whose beats are `gap` apart is not judged after a start.
    fn grace_for(&self, gap: Duration) -> Duration {
        self.restart_grace.max(gap * 3 / 2)
    }

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
            leave_max: c.leave_max,
            leave_grace: c.leave_grace,
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
    hosts: Slab,
    index: Index,
    hashes: DefaultHashBuilder,
    /// What is known of few hosts.
    rare: HashMap<u32, Rare>,
    excuses: Excuses,
    rows: Rows,
    confirm: Confirm,
    doubt: Doubt,
    hush: Hush,
    /// When we began to listen.
    begun: Instant,
    siblings: Siblings,
    groups: HashMap<u64, GroupId>,
    /// Margins by [`Profile::knobs`]; never empty.
    knobs: Vec<Turned>,
    /// [`Settings::gap_max`] in microseconds.
    gap_max_us: u32,
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
            hosts: Slab::default(),
            index: Index::default(),
            hashes: DefaultHashBuilder::default(),
            rare: HashMap::new(),
            excuses: Excuses::default(),
            rows: Rows::default(),
            confirm: Confirm::new(settings.plan, now),
            doubt: Doubt::new(now, settings.doubt_max),
            hush: Hush::new(now),
            begun: now,
            siblings: Siblings::default(),
            groups: HashMap::new(),
            knobs: Turned::all(knobs, now),
            gap_max_us: micros(settings.gap_max),
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

    /// Publishes live figures there from now on, in this lane, which no other detector may have.
    ///
    /// # Panics
    /// If hosts were registered before.
    pub fn publish_to(&mut self, live: Arc<LiveTable>, lane: u16) {
        self.hosts.publish_to(live, lane);
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
        self.index.len() == 0
    }

    /// How many are being probed.
    pub fn probing(&self) -> usize {
        self.confirm.len()
    }

    /// This shard's record of its own losses.
    pub fn doubt(&self) -> &Doubt {
        &self.doubt
    }

    /// Begins to listen: what came before says nothing about our hearing.
    pub fn begin(&mut self, now: Instant) {
        self.begun = now;
        self.doubt = Doubt::new(now, self.settings.doubt_max);
        self.hush = Hush::new(now);
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
        self.hush.hear(arrival);
        if !self.is_local(from) {
            self.doubt.hear(arrival);
        }
    }

    /// Records what a pass over the sockets received and what the kernel dropped, as of the watermark
    /// `seen`.
    pub fn heard(&mut self, now: Instant, seen: Instant, received: u64, dropped: u64) {
        let alive = self.knobs.iter().map(|k| k.alive).sum();
        self.doubt.record(now, &Pass { seen, received, dropped, alive });
        self.hush.pass(now);
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

    fn roll(&mut self) -> u32 {
        self.dice.roll()
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
            address: h.address.get(),
            at,
            duplicate: h.is(DUPLICATE),
            evidence,
        }
    }

    fn evidence(&self, slot: u32, at: Instant) -> Evidence {
        let h = self.host(slot);
        let (margin, source) = self.margin(h);
        let tally = self.confirm.get(slot).map(|s| s.tally).unwrap_or_default();
        let excused = self.excused(slot);
        Evidence {
            silence_ms: at.since(h.last_arrival().unwrap_or(self.begun)).as_millis() as u64,
            unheard: h.last_arrival().is_none(),
            overdue_ms: ms_between(h.expected, at),
            margin_ms: margin.as_secs_f64() * 1e3,
            margin_source: source.as_str(),
            gap_ms: h.gap().as_millis() as u64,
            last_seq: h.seq.0,
            probes_sent: tally.sent,
            probes_unreachable: tally.unreachable,
            peers_asked: tally.asked,
            testimonies: tally.testimonies,
            drop_ppm: self.doubt.drop_ppm(),
            judged_in_doubt: false,
            agent_lost: false,
            excused_by: excused.map_or("", |e| e.why.as_str()),
            excused_ms: excused.map_or(0, |e| e.span(self.clock).as_millis() as u64),
            mistakes: h.mistakes.into(),
        }
    }

    /// What excuses a host's silence, or did before it was judged.
    fn excused(&self, slot: u32) -> Option<Excused> {
        if !self.host(slot).is(EXCUSED) {
            return None;
        }
        self.excuses.get(slot)
    }

    fn margin(&self, h: &Host) -> (Duration, MarginSource) {
        h.margin(&self.knobs[usize::from(h.knobs)].patience)
    }

    /// Takes a goodbye that is also a proof of life. While there are two machines it ends the watch over one
    /// of them only: the host is `left` when both have said goodbye, or the other has been silent for
    /// [`DUPLICATE_WINDOW`].
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
            if self.may_other_live(slot) {
                return self.leave_to_other(slot, leave, proof.arrival, turns);
            }
            // The goodbye says all: whatever it proved on the way is not worth a word of its own.
            turns.truncate(before);
        } else {
            let h = self.host_mut(slot);
            (h.boot, h.seq, h.sent) = (proof.stamp.boot, proof.stamp.seq, proof.stamp.sent);
            h.boot_max = h.boot_max.max(h.boot);
            return;
        }
        self.set_state(slot, State::Left);
        let expected = leave.expected.min(self.settings.leave_max);
        let awaited = !expected.is_zero();
        let until = match awaited {
            true => now + expected + self.settings.leave_grace,
            false => now + self.settings.forget_after,
        };
        let h = self.host_mut(slot);
        h.until = until;
        h.flag(AWAITED, awaited);
        self.file(slot, until);
        let evidence = self.evidence(slot, proof.arrival);
        let turn = Turn::Left { reason: leave.reason, expected };
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
    /// `seen`, and at the probe socket before `seen_probes`, has been observed. A bounded number of hosts:
    /// whatever falls silent, the mail is read meanwhile. Answers whether the bound was met, so that more may
    /// be due.
    pub fn judge(
        &mut self,
        seen: Instant,
        seen_probes: Instant,
        now: Instant,
        out: &mut Vec<Judged>,
    ) -> bool {
        self.clock = self.clock.max(seen);
        let seen = self.clock;
        if now >= self.look_at {
            self.look_at = now + LOOK_EVERY;
            self.knobs.iter_mut().for_each(|k| k.look(now));
        }
        let mut again = std::mem::take(&mut self.again);
        let mut more = true;
        for _ in 0..JUDGED_MAX {
            let Some(slot) = self.rows.pop_due(seen) else {
                more = false;
                break;
            };
            if let Some(coming) = self.rows.coming(JUDGE_AHEAD) {
                self.hosts.prefetch_look(coming);
            }
            let deadline = self.deadline(slot);
            if deadline > seen {
                again.push((slot, deadline));
                continue;
            }
            match self.host(slot).state {
                State::Alive | State::Duplicate | State::Suspect => {
                    again.extend(self.overdue(slot, seen, now, out).map(|at| (slot, at)));
                }
                State::Pending => {
                    let h = self.host_mut(slot);
                    h.flag(MISSING_REPORTED, true);
                    h.until = Instant::FAR;
                    let evidence = self.evidence(slot, now);
                    out.push(Judged::Turn(self.turn(slot, Turn::Missing, now, evidence)));
                }
                State::Left if self.host(slot).is(AWAITED) => {
                    again.extend(self.overdue(slot, seen, now, out).map(|at| (slot, at)));
                }
                State::Down if self.host(slot).is(DUPLICATE) => {
                    // While nothing at all is heard, that the other is not says nothing.
                    if self.holds {
                        let until = seen + LOOK_EVERY;
                        self.host_mut(slot).until = until;
                        again.push((slot, until));
                        continue;
                    }
                    out.push(Judged::Turn(self.outlast(slot, now)));
                }
                State::Down | State::Left => {
                    // Asked again in an hour, should the registry not have forgotten it by then.
                    let again = now + Duration::from_secs(3_600);
                    self.host_mut(slot).until = again;
                    self.file(slot, again);
                    let turn = self.turn(slot, Turn::Forgettable, now, Evidence::default());
                    out.push(Judged::Turn(turn));
                }
            }
        }
        for (slot, at) in again.drain(..) {
            self.file(slot, at);
        }
        self.again = again;
        let held = std::mem::replace(&mut self.holds, self.doubt.holds_verdicts(seen));
        if self.holds {
            self.try_link(now, out);
            return more;
        }
        if held {
            // What was unanswered while nothing could be heard proves nothing.
            self.confirm.restart(now);
        }
        if self.hush.holds(seen) {
            // Nor do answers come now; but what was asked before stands, lest hush after hush begin it anew.
            return more;
        }
        for _ in 0..JUDGED_MAX {
            let heard = seen.min(seen_probes);
            let Some(step) = self.confirm.step(now, heard, &mut self.dice) else { return more };
            match step {
                Step::Probe { slot, number, nonce, peers } => {
                    let h = self.host(slot);
                    if let Some(to) = h.address.get() {
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
        true
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
            let Some(peer_at) = p.address.get() else { continue };
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
        if let Some(fair) = self.fair_chance(slot).filter(|fair| *fair > seen) {
            return Some(fair);
        }
        let h = self.host(slot);
        let restored = h.state == State::Suspect;
        let awaited = h.state == State::Left;
        let excused = self.excused(slot);
        let grace = self.settings.leave_grace;
        let (expected, margin) = match awaited {
            true => (h.until - grace, grace),
            false => (h.expected, self.margin(h).0),
        };
        let overdue = Overdue {
            expected,
            gap: h.gap(),
            margin,
            last: h.last_arrival(),
            local: h.address.get().is_some_and(|a| self.is_local(a)),
            excused_since: excused.map(|e| e.since),
            again: h.is(HUSHED),
        };
        let in_doubt = match self.doubt.judge(&overdue, seen) {
            Excuse::None => {
                // While nobody is heard, nobody's time runs.
                let stopped = self.hush.stopped(expected, seen);
                let fair = expected + margin + stopped;
                if !stopped.is_zero() && fair > seen {
                    self.host_mut(slot).flag(HUSHED, true);
                    out.push(Judged::Excused);
                    return Some(fair);
                }
                false
            }
            Excuse::Exhausted(_) => true,
            Excuse::Until(at, why) => {
                let since = excused.map_or(seen, |e| e.since);
                self.host_mut(slot).flag(EXCUSED, true);
                self.excuses.set(slot, Excused::new(since, at, why));
                out.push(Judged::Excused);
                return Some(at);
            }
        };
        let trip = trip_of(self.host(slot));
        let mut evidence = self.evidence(slot, now);
        evidence.judged_in_doubt = in_doubt;
        let h = self.host(slot);
        let given = h.learned.given_time(&h.histograms).min(self.settings.confirm_max);
        let until = h.expected + given;
        self.confirm.begin(slot, trip, until, now);
        self.set_state(slot, State::Suspect);
        if awaited {
            let h = self.host_mut(slot);
            h.flag(AWAITED, false);
            let left = h.last_arrival();
            let expected = left.map_or(Duration::ZERO, |left| expected.since(left));
            let turn = Turn::Overdue { expected };
            out.push(Judged::Turn(self.turn(slot, turn, now, evidence)));
        } else if !restored {
            out.push(Judged::Turn(self.turn(slot, Turn::Suspect, now, evidence)));
        }
        None
    }

    /// While nothing at all is heard, one host after the other is asked: whatever answers, be it a kernel
    /// whose agent is gone, tells that the link works and that the silence is the hosts' own.
    fn try_link(&mut self, now: Instant, out: &mut Vec<Judged>) {
        if now < self.try_link_at || self.hosts.len() == 0 {
            return;
        }
        self.try_link_at = now + self.settings.plan.spacing;
        self.link_nonce = self.dice.nonce();
        let nonce = self.link_nonce;
        let count = self.hosts.len();
        let start = self.roll() as usize % count;
        let mut remote = (0..count.min(TRY_LINK_LOOKS)).filter_map(|i| {
            let h = self.hosts.get(((start + i) % count) as u32)?;
            let to = h.address.get().filter(|a| !self.is_local(*a))?;
            matches!(h.state, State::Alive | State::Suspect).then_some((h.id, to, h.boot))
        });
        if let Some((host, to, boot)) = remote.next() {
            out.push(Judged::Probe { host, to, boot, number: 0, nonce });
        }
    }

    fn down(&mut self, slot: u32, cause: Cause, tally: Tally, now: Instant, out: &mut Vec<Judged>) {
        let mut evidence = self.evidence(slot, now);
        evidence.agent_lost = self.host(slot).state == State::Down;
        // `step` has taken the suspect out of the plan with its verdict.
        (evidence.probes_sent, evidence.probes_unreachable) = (tally.sent, tally.unreachable);
        (evidence.peers_asked, evidence.testimonies) = (tally.asked, tally.testimonies);
        self.set_state(slot, State::Down);
        let forget = now + self.settings.forget_after;
        let until = match self.twin_until(slot) {
            None => forget,
            // The keys of the other are believed no more; but which of the two died, nobody has shown yet.
            Some(Instant(0)) => now + DUPLICATE_WINDOW,
            Some(over) => over.max(now),
        };
        self.host_mut(slot).until = until;
        self.file(slot, until);
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
        for slot in self.index.slots() {
            let host = self.host(slot);
            let id = host.id;
            assert_eq!(self.slot(id), Some(slot));
            alive[usize::from(host.knobs)] += u64::from(host.state == State::Alive);
            classes[usize::from(host.class)] += u64::from(host.state.may_beat());
            if host.state == State::Alive {
                assert!(self.rows.due(slot, self.clock).is_some(), "{id} is in no row");
            }
            let probed = self.confirm.get(slot).is_some();
            let is_probed = matches!(host.state, State::Suspect | State::Down);
            assert!(!probed || is_probed, "{id} is probed but {}", host.state);
        }
        assert!(alive.iter().eq(self.knobs.iter().map(|k| &k.alive)));
        assert_eq!(classes, self.classes);
        assert_eq!(
            (0..self.hosts.len() as u32).filter(|s| self.hosts.get(*s).is_some()).count(),
            self.index.len()
        );
    }
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
