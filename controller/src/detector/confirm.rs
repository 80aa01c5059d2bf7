//! From suspect to a verdict: the plan.
//!
//! *Burst.* A suspect gets a few probes. Together with the last two of them some *peers* in other failure
//! domains are asked to probe it too ([`super::peers`]), and to bring back its answer, which only the
//! suspect can seal. Each probe and each request has a random nonce of its own. Probes are spaced, and
//! answers waited for, by the round trips that agents measured, so that a slow way is not mistaken for
//! silence. An answer to us is good for [`NONCE_LIFE`] (or the spacing, if that is longer): it proves that
//! the host lived when it was asked, so one that somebody kept from us must not revive it much later.
//!
//! *More time.* A host that has come back from long silences before is probed on, at the same spacing as
//! far as tokens can be spared, until it has been silent for two to three times the longest of them
//! (within `confirm_max`): outages come in bursts, and probes that are lost in the same burst as the beats
//! prove nothing. A host without such a past gets no more time.
//!
//! *Verdict*, when the watermark has passed the last waiting time (an answer that lies unread in our mail
//! must not be missed):
//!
//! | who answered | verdict |
//! | --- | --- |
//! | its agent, to us | alive; the shard takes it out of the plan at once |
//! | its agent, through a peer | *unreachable*: it lives, but we cannot hear it; still suspect |
//! | its kernel alone: nobody listens, quoting our nonce | down, `agent-lost` |
//! | nobody | down, `silent` |
//!
//! *Unreachable.* Rounds go on, one each [`ROUND`]: a probe and requests to peers.
//! What a peer brings back is good in its own round only and once, so no recording, and no answer that
//! somebody kept, holds a dead host up for longer than a round. After [`SILENT_ROUNDS_MAX`] rounds in a
//! row without testimony the host is down. No peer that could be asked counts as silence: where nobody
//! can speak for a host, its own silence decides, as if there were no peers at all.
//!
//! *Agent lost.* Its machine lives, for all that its kernel says, and may die later without a word: no beat
//! is due that could stay away. So it is asked on, one probe each [`LOST_EVERY`]. When its kernel does not
//! answer, a probe each [`ROUND`]; after [`LOST_SILENT_MAX`] in a row without an answer it is down,
//! `silent`. So many, and so far apart, that no burst of losses passes for the death of a machine that has
//! no beats to show.
//!
//! Who was stopped, or is far behind with his mail, does not judge by what he has read so far: if the
//! watermark lags at the moment of a verdict, the suspect gets one more probe, or one more round. Once,
//! until it is heard through somebody: who always lags must judge in the end.
//!
//! Work is bounded by a token bucket: who has been silent longest is probed first, the others wait. A
//! step costs one token, for the probe (by both sockets) and the first peer; more peers, and the rounds
//! of hosts that are known to live, take only what can be spared. So asking peers delays no verdict,
//! however many suspects there are, and the network sees at most three datagrams a token.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use heartwatch_common::time::Instant;

use super::dice::Dice;
use crate::event::Cause;
pub use budget::Bucket;

mod budget;

/// Probes are never further apart than this, however slow the way.
pub const SPACING_MAX: Duration = Duration::from_secs(2);
/// How long the nonce of a probe may be answered.
pub const NONCE_LIFE: Duration = Duration::from_secs(2);
/// Least time between two rounds for an unreachable host.
pub const ROUND: Duration = Duration::from_millis(1_500);
/// Rounds in a row without testimony after which an unreachable host is down.
pub const SILENT_ROUNDS_MAX: u8 = 3;
/// Between two probes of a machine whose agent is lost, while its kernel answers.
pub const LOST_EVERY: Duration = Duration::from_secs(10);
/// Probes in a row that its kernel leaves unanswered, [`ROUND`] apart, after which it is down.
pub const LOST_SILENT_MAX: u8 = 10;
/// A suspect that is given more time has peers asked with every so manieth probe.
const PEERS_EVERY: u16 = 5;
/// A watermark further behind than this leaves too much mail unread for a verdict.
const LAG_MAX: Duration = Duration::from_millis(500);

/// How suspects are probed.
#[derive(Clone, Copy, Debug)]
pub struct ProbePlan {
    /// Probes before a verdict.
    pub probes: u8,
    /// Least time between probes, and after the last.
    pub spacing: Duration,
    /// Steps per second.
    pub rate_max: u32,
    /// Peers asked with each of the last two probes, and in each round; 0 = none.
    pub peers: u8,
}

impl ProbePlan {
    /// How long an answer over a way with this round trip is waited for: twice as long, within bounds.
    pub fn patience(&self, trip: Duration) -> Duration {
        self.spacing.max((trip * 2).min(SPACING_MAX))
    }

    /// `on`: the suspect is only probed on.
    fn asks_peers(&self, number: u16, on: bool) -> bool {
        let probes = u16::from(self.probes);
        let due = number + 1 >= probes && (number > 1 || probes == 1);
        let spare = on && number > probes && !number.is_multiple_of(PEERS_EVERY);
        self.peers > 0 && due && !spare
    }
}

/// What was tried, and who answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Probes sent.
    pub sent: u16,
    /// How many of them its kernel answered with "nobody listens".
    pub unreachable: u16,
    /// Requests to peers.
    pub asked: u16,
    /// Answers of the suspect that peers brought back.
    pub testimonies: u16,
}

/// A request to a peer.
#[derive(Clone, Copy, Debug)]
struct Request {
    nonce: [u8; 16],
    peer: u32,
    answered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Burst,
    /// It answers peers; so many rounds in a row it has not.
    Unreachable {
        silent: u8,
    },
    /// It is down, its agent lost; so many probes in a row its kernel has not answered.
    Lost {
        silent: u8,
    },
}

/// One suspect.
#[derive(Clone, Debug)]
pub struct Suspect {
    /// Since when.
    pub since: Instant,
    /// Until when silence alone does not make it down.
    pub until: Instant,
    /// What was tried, and who answered.
    pub tally: Tally,
    /// Nonces of our own probes that may still be answered, and until when.
    nonces: Vec<([u8; 16], Instant)>,
    /// Least time between two probes of it.
    pub spacing: Duration,
    stage: Stage,
    /// Of the burst, or of the present round.
    requests: Vec<Request>,
    /// A round is under way.
    in_round: bool,
    /// A peer testified in the burst, or in the present round.
    heard: bool,
    /// It had its one more chance because we lagged.
    spared: bool,
    /// Who testified last.
    witness: Option<u32>,
    /// Answers through peers are waited for until then.
    patience: Instant,
    /// When something is to be done next.
    next: Instant,
}

/// What to do about a suspect now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send a probe.
    Probe {
        /// Whom.
        slot: u32,
        /// From 1.
        number: u16,
        /// To be sent back.
        nonce: [u8; 16],
        /// Ask so many peers too, and tell by [`Confirm::asked`].
        peers: u8,
    },
    /// Its agent answers peers, but not us.
    Unreachable {
        /// Who.
        slot: u32,
    },
    /// Nobody answered.
    Down {
        /// Who.
        slot: u32,
        /// Why.
        cause: Cause,
        /// What was tried.
        tally: Tally,
    },
}

/// All suspects of a shard.
#[derive(Clone, Debug)]
pub struct Confirm {
    plan: ProbePlan,
    suspects: BTreeMap<u32, Suspect>,
    /// Suspects by the moment of their next step; ties and backlog go to the lowest, the longest waiting.
    queue: BTreeSet<(Instant, u32)>,
    budget: Bucket,
    unreachable: usize,
    lost: usize,
}

impl Confirm {
    /// No suspects.
    pub fn new(plan: ProbePlan, now: Instant) -> Self {
        let budget = Bucket::new(plan.rate_max, plan.rate_max.div_ceil(10), now);
        let (suspects, queue) = (BTreeMap::new(), BTreeSet::new());
        Self { plan, suspects, queue, budget, unreachable: 0, lost: 0 }
    }

    /// Begins to probe a host whose round trip is `trip` (zero: unknown).
    /// Before `until` it is not called down because it is silent: it has come back from as long a silence.
    pub fn begin(&mut self, slot: u32, trip: Duration, until: Instant, now: Instant) {
        self.insert(slot, trip, until, Stage::Burst, now, now);
    }

    /// Begins to ask the machine of a host that is down as its agent is lost, from `at` on.
    pub fn watch_lost(&mut self, slot: u32, at: Instant, now: Instant) {
        self.insert(slot, Duration::ZERO, now, Stage::Lost { silent: 0 }, at, now);
        self.lost += 1;
    }

    fn insert(
        &mut self,
        slot: u32,
        trip: Duration,
        until: Instant,
        stage: Stage,
        next: Instant,
        now: Instant,
    ) {
        self.end(slot);
        let suspect = Suspect {
            since: now,
            until,
            tally: Tally::default(),
            nonces: Vec::new(),
            spacing: self.plan.patience(trip),
            stage,
            requests: Vec::new(),
            in_round: stage == Stage::Burst,
            heard: false,
            spared: false,
            witness: None,
            patience: now,
            next,
        };
        self.suspects.insert(slot, suspect);
        self.queue.insert((next, slot));
    }

    /// Ends the plan of a host: it answered, left, or was forgotten.
    pub fn end(&mut self, slot: u32) -> Option<Suspect> {
        let suspect = self.suspects.remove(&slot)?;
        self.queue.remove(&(suspect.next, slot));
        self.unreachable -= usize::from(matches!(suspect.stage, Stage::Unreachable { .. }));
        self.lost -= usize::from(matches!(suspect.stage, Stage::Lost { .. }));
        Some(suspect)
    }

    /// Begins anew with every suspect: what they did not answer proves nothing.
    pub fn restart(&mut self, now: Instant) {
        let slots: Vec<u32> = self.suspects.keys().copied().collect();
        for slot in slots {
            let Some(s) = self.suspects.get_mut(&slot) else { continue };
            s.nonces.clear();
            s.requests.clear();
            (s.heard, s.spared, s.patience) = (false, false, now);
            let mut at = now;
            match s.stage {
                Stage::Burst => s.tally = Tally::default(),
                Stage::Unreachable { .. } => {
                    (s.stage, s.in_round) = (Stage::Unreachable { silent: 0 }, false);
                }
                Stage::Lost { .. } => {
                    (s.stage, s.in_round) = (Stage::Lost { silent: 0 }, false);
                    s.tally = Tally::default();
                    at = now + ROUND;
                }
            }
            self.file(slot, at);
        }
    }

    /// The suspect in a slot.
    pub fn get(&self, slot: u32) -> Option<&Suspect> {
        self.suspects.get(&slot)
    }

    /// Whether the host in `slot` is known to live although we cannot hear it.
    pub fn is_unreachable(&self, slot: u32) -> bool {
        let stage = self.suspects.get(&slot).map(|s| s.stage);
        matches!(stage, Some(Stage::Unreachable { .. }))
    }

    /// How many such hosts there are.
    pub fn unreachable_len(&self) -> usize {
        self.unreachable
    }

    /// Whether `nonce`, which came back at `arrival`, is what we asked the suspect in `slot` to send back,
    /// and in time.
    pub fn answers(&self, slot: u32, nonce: &[u8; 16], arrival: Instant) -> bool {
        let good = |s: &Suspect| s.nonces.iter().any(|(n, until)| n == nonce && arrival <= *until);
        self.suspects.get(&slot).is_some_and(good)
    }

    /// Books a request to a peer, with a nonce of its own, over ways whose round trips add up to `trip`.
    pub fn asked(&mut self, slot: u32, peer: u32, nonce: [u8; 16], trip: Duration, now: Instant) {
        let patience = now + self.plan.patience(trip);
        let last = u16::from(self.plan.probes);
        let Some(s) = self.suspects.get_mut(&slot) else { return };
        s.requests.push(Request { nonce, peer, answered: false });
        s.tally.asked = s.tally.asked.saturating_add(1);
        s.patience = s.patience.max(patience);
        if s.tally.sent >= last && s.next < s.patience {
            let at = s.patience;
            self.file(slot, at);
        }
    }

    /// The peers that were asked in this burst or round, and the one that testified last.
    pub fn peers_of(&self, slot: u32) -> (impl Iterator<Item = u32>, Option<u32>) {
        let suspect = self.suspects.get(&slot);
        let asked = suspect.map_or(&[][..], |s| &s.requests).iter().map(|r| r.peer);
        (asked, suspect.and_then(|s| s.witness))
    }

    /// Something that the suspect sealed has come in, which proves nothing yet, and it was asked for proof:
    /// its answer is waited for. Once, or recordings would hold a dead host up.
    pub fn hear_out(&mut self, slot: u32, now: Instant) {
        let Some(s) = self.suspects.get_mut(&slot).filter(|s| !s.spared) else { return };
        s.spared = true;
        s.until = s.until.max(now + s.spacing * 2);
    }

    /// Takes an answer that the suspect in `slot` sealed and a peer brought back. `false`: no request that
    /// is under way waits for this nonce, so it is a recording, or comes too late.
    pub fn testify(&mut self, slot: u32, nonce: &[u8; 16]) -> bool {
        let Some(s) = self.suspects.get_mut(&slot) else { return false };
        let mut waiting = s.requests.iter_mut().filter(|r| !r.answered);
        let Some(request) = waiting.find(|r| r.nonce == *nonce) else { return false };
        request.answered = true;
        s.witness = Some(request.peer);
        s.heard = true;
        s.tally.testimonies = s.tally.testimonies.saturating_add(1);
        true
    }

    /// The host's kernel says that nobody listens, quoting `nonce`. `false` if it quotes something else.
    pub fn unreachable(&mut self, slot: u32, nonce: &[u8; 16]) -> bool {
        let quoted = |s: &&mut Suspect| s.nonces.iter().any(|(n, _)| n == nonce);
        let Some(s) = self.suspects.get_mut(&slot).filter(quoted) else { return false };
        s.tally.unreachable = s.tally.unreachable.saturating_add(1);
        true
    }

    /// How many suspects there are; machines whose agents are lost are none.
    pub fn len(&self) -> usize {
        self.suspects.len() - self.lost
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The probe plan.
    pub fn plan(&self) -> &ProbePlan {
        &self.plan
    }

    /// The next thing to do, if anything is due. `seen`: everything that arrived before it has been read.
    pub fn step(&mut self, now: Instant, seen: Instant, dice: &mut Dice) -> Option<Step> {
        let lags = now.since(seen) > LAG_MAX;
        loop {
            let &(due, slot) = self.queue.first()?;
            if due > now {
                return None;
            }
            let s = self.suspects.get_mut(&slot)?;
            match s.stage {
                Stage::Burst if s.tally.sent < u16::from(self.plan.probes) => {
                    if !self.budget.take(now) {
                        return None;
                    }
                    return Some(self.probe(slot, now, dice));
                }
                Stage::Burst if s.is_given_time(now) => {
                    if !self.budget.take_spare(now) {
                        let later = now + s.spacing;
                        self.file(slot, later);
                        continue;
                    }
                    return Some(self.probe(slot, now, dice));
                }
                // Its answer may lie unread.
                _ if seen < due => return None,
                Stage::Burst if s.heard => {
                    s.stage = Stage::Unreachable { silent: 0 };
                    s.end_round();
                    self.unreachable += 1;
                    self.file(slot, now + ROUND);
                    return Some(Step::Unreachable { slot });
                }
                Stage::Burst if !s.spared && lags => {
                    if !self.budget.take(now) {
                        return None;
                    }
                    s.spared = true;
                    return Some(self.probe(slot, now, dice));
                }
                Stage::Burst => return Some(self.down(slot, now)),
                Stage::Lost { silent } => {
                    if s.in_round {
                        let answered = s.tally.unreachable > 0 || s.heard;
                        let spared = !answered && !s.spared && lags;
                        let silent = if answered { 0 } else { silent + u8::from(!spared) };
                        s.stage = Stage::Lost { silent };
                        (s.in_round, s.spared) = (false, spared);
                        if answered {
                            s.tally = Tally::default();
                            s.end_round();
                            self.file(slot, now + LOST_EVERY);
                            continue;
                        }
                        if silent >= LOST_SILENT_MAX {
                            return Some(self.down(slot, now));
                        }
                    }
                    if !self.budget.take_spare(now) {
                        self.file(slot, now + LOST_EVERY);
                        continue;
                    }
                    s.in_round = true;
                    return Some(self.probe(slot, now, dice));
                }
                Stage::Unreachable { silent } => {
                    if s.in_round {
                        let silent = if s.heard {
                            0
                        } else if !s.spared && lags {
                            s.spared = true;
                            silent
                        } else {
                            silent + 1
                        };
                        s.stage = Stage::Unreachable { silent };
                        s.end_round();
                        if silent >= SILENT_ROUNDS_MAX {
                            return Some(self.down(slot, now));
                        }
                    }
                    if !self.budget.take_spare(now) {
                        self.file(slot, now + ROUND);
                        continue;
                    }
                    s.in_round = true;
                    return Some(self.probe(slot, now, dice));
                }
            }
        }
    }

    /// The probe that is due to a suspect, for which a token was taken.
    fn probe(&mut self, slot: u32, now: Instant, dice: &mut Dice) -> Step {
        let s = self.suspects.get_mut(&slot).expect("the queue holds suspects only");
        s.tally.sent = s.tally.sent.saturating_add(1);
        let (number, nonce) = (s.tally.sent, dice.nonce());
        let on = s.stage == Stage::Burst && s.is_given_time(now);
        s.nonces.retain(|(_, until)| *until >= now);
        s.nonces.push((nonce, now + s.spacing.max(NONCE_LIFE)));
        let mut peers = 0;
        if self.plan.asks_peers(number, on) {
            // The first comes with the probe's token.
            peers = 1;
            while peers < self.plan.peers && self.budget.take_spare(now) {
                peers += 1;
            }
        }
        let pause = if s.stage == Stage::Burst { s.spacing } else { s.spacing.max(ROUND) };
        let mut next = now + pause;
        if number >= u16::from(self.plan.probes) {
            next = next.max(s.patience);
        }
        self.file(slot, next);
        Step::Probe { slot, number, nonce, peers }
    }

    fn down(&mut self, slot: u32, now: Instant) -> Step {
        let tally = self.end(slot).map(|s| s.tally).unwrap_or_default();
        if tally.unreachable == 0 {
            return Step::Down { slot, cause: Cause::Silent, tally };
        }
        self.watch_lost(slot, now + LOST_EVERY, now);
        Step::Down { slot, cause: Cause::AgentLost, tally }
    }

    /// Sets when something is to be done about a suspect.
    fn file(&mut self, slot: u32, next: Instant) {
        let s = self.suspects.get_mut(&slot).expect("the queue holds suspects only");
        self.queue.remove(&(s.next, slot));
        s.next = next;
        self.queue.insert((next, slot));
    }

    /// When the next step is due; it may have to wait for the watermark or the budget.
    pub fn next_due(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }
}

impl Suspect {
    /// Whether it is to be probed on: nobody has answered yet, and it has come back from as long a silence
    /// before.
    fn is_given_time(&self, now: Instant) -> bool {
        now < self.until && !self.heard && self.tally.unreachable == 0
    }

    /// What was asked in the burst, or in a round, can no longer be answered.
    fn end_round(&mut self) {
        if self.heard {
            // Its agent lives: whatever its kernel said before is not so.
            self.tally.unreachable = 0;
            self.spared = false;
        }
        (self.in_round, self.heard) = (false, false);
        self.requests.clear();
    }
}

#[cfg(test)]
mod tests;
