//! How often a living host is called down, and how soon a dead one: the production [`Detector`] with its
//! probes and peers, over days of virtual time.
//!
//! Only ways are simulated here: each host's way loses datagrams in both directions, its own beats as well
//! as the controller's probes, the answers to them and what peers send and hear on its behalf. Datagrams,
//! keys, freshness and own losses are the simulator's business ([`crate::sim`]).
//!
//! # Rare events
//!
//! A false down takes a suspicion and then silence on every way. Suspicions are frequent enough to be
//! counted; the silence after them is not. So at each suspicion the world is copied some times, and each
//! copy goes on with *more* loss on the suspect's way; what it ends with is weighed by how much likelier
//! the tilted way made it (importance sampling: Rubino and Tuffin, "Rare Event Simulation using Monte
//! Carlo Methods", 2009). The mean weight of copies that ended in a false down estimates its chance
//! without bias.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::Duration;

use heartwatch_common::id::{Boot, Epoch, HostId, Seq};
use heartwatch_common::time::Instant;
use heartwatch_common::wire::Stamp;
use heartwatch_controller::config::RawConfig;
use heartwatch_controller::detector::host::{Known, Turn};
use heartwatch_controller::detector::peers::Domain;
use heartwatch_controller::detector::{Detector, Judged, Proof, Settings};
use heartwatch_controller::event::State;
use serde::Serialize;

use super::schedule::{Plan, mix};

/// What a way does to datagrams.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Nothing.
    None,
    /// Loses each with this chance.
    Independent(f64),
    /// Gilbert-Elliott in time: loses all in bursts of half a second to four, as many as make this share.
    Bursts(f64),
}

/// Shortest and longest burst, seconds.
const BURST_S: (f64, f64) = (0.5, 4.0);
/// One way's time, less its spread of a tenth of a millisecond.
const DELAY: Duration = Duration::from_micros(150);
/// Loss of a tilted way.
const TILTED_LOSS: f64 = 0.6;
/// Mean time between bursts of a tilted way, seconds.
const TILTED_GOOD_S: f64 = 1.5;
/// Copies of the world at each suspicion.
const COPIES: u32 = 24;
/// What happens before is the fleet's first hour, in which it still learns.
pub const FIRST_HOUR: Duration = Duration::from_secs(3_600);
/// Racks, so that there are peers in other failure domains.
const RACKS: u32 = 4;
/// Share of the interval by which gaps differ: the agent's default.
const JITTER: f64 = 0.2;

/// One host's way, and the weight of what a tilted one did.
#[derive(Clone, Debug)]
struct Way {
    loss: Loss,
    /// In a burst until then; a good time follows until `next_burst`.
    burst_until: Instant,
    next_burst: Instant,
    tilted: bool,
    weight: f64,
    rng: Draws,
}

/// Randomness that can be copied with the world: the place in a sequence.
#[derive(Clone, Debug)]
struct Draws {
    key: u64,
    drawn: u64,
}

impl Draws {
    fn new(key: u64) -> Self {
        Self { key, drawn: 0 }
    }

    /// Uniform in [0, 1).
    fn unit(&mut self) -> f64 {
        self.drawn += 1;
        (mix(self.key ^ mix(self.drawn)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    fn exponential(&mut self, mean_s: f64) -> f64 {
        -mean_s * (1.0 - self.unit()).ln()
    }
}

impl Way {
    fn new(loss: Loss, seed: u64) -> Self {
        let mut rng = Draws::new(seed);
        let next_burst = match loss {
            Loss::Bursts(share) => rng.exponential(good_s(share)),
            _ => f64::INFINITY,
        };
        Self {
            loss,
            burst_until: Instant(0),
            next_burst: later(Instant(0), next_burst),
            tilted: false,
            weight: 1.0,
            rng,
        }
    }

    /// Whether a datagram gets through at `at`; moments must not go back.
    fn passes(&mut self, at: Instant) -> bool {
        match self.loss {
            Loss::None => true,
            Loss::Independent(p) if self.tilted => {
                let lost = self.rng.chance(TILTED_LOSS);
                self.weight *= if lost { p / TILTED_LOSS } else { (1.0 - p) / (1.0 - TILTED_LOSS) };
                !lost
            }
            Loss::Independent(p) => !self.rng.chance(p),
            Loss::Bursts(share) => {
                while at >= self.next_burst {
                    let burst_s = BURST_S.0 + (BURST_S.1 - BURST_S.0) * self.rng.unit();
                    self.burst_until = later(self.next_burst, burst_s);
                    let good_s = self.good(share);
                    self.next_burst = later(self.burst_until, good_s);
                }
                at >= self.burst_until
            }
        }
    }

    fn good(&mut self, share: f64) -> f64 {
        let mean_s = good_s(share);
        if !self.tilted {
            return self.rng.exponential(mean_s);
        }
        let t = self.rng.exponential(TILTED_GOOD_S);
        self.weight *= TILTED_GOOD_S / mean_s * (t / TILTED_GOOD_S - t / mean_s).exp();
        t
    }

    /// From now on tilted, with its future drawn anew: what has not happened by `now` may go otherwise.
    fn tilt(&mut self, now: Instant, seed: u64) {
        self.rng = Draws::new(seed);
        self.tilted = true;
        let Loss::Bursts(share) = self.loss else { return };
        if now < self.burst_until {
            // Of a burst under way it is known that it has lasted since the last beat that got through,
            // about; its end is left as it was drawn.
            let good_s = self.good(share);
            self.next_burst = later(self.burst_until, good_s);
        } else {
            let good_s = self.good(share);
            self.next_burst = later(now, good_s);
        }
    }
}

/// Mean time between bursts that make this share of the time.
fn good_s(share: f64) -> f64 {
    (BURST_S.0 + BURST_S.1) / 2.0 * (1.0 - share) / share
}

fn later(at: Instant, s: f64) -> Instant {
    if s.is_finite() { at + Duration::from_secs_f64(s) } else { Instant::FAR }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    /// A host sends its next beat.
    Send(u32),
    /// Beat with this number and gap (µs) arrives.
    Beat(u32, u32, u32),
    /// A probe, or a request passed on by a peer (its slot), reaches the host.
    Probed(u32, Option<u32>, [u8; 16]),
    /// The answer arrives; `true`: by a peer.
    Answer(u32, bool, [u8; 16]),
}

/// Hosts that have come back from a suspicion are asked to beat faster for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Haste {
    /// By this much; 1: they are not asked.
    pub factor: u32,
    /// For how long.
    pub span: Duration,
}

impl Haste {
    /// Nobody is asked to.
    pub const NONE: Self = Self { factor: 1, span: Duration::ZERO };
}

/// A fleet and its detector.
#[derive(Clone)]
struct World {
    detector: Detector,
    ways: Vec<Way>,
    plans: Vec<Plan>,
    /// Next planned beat, and next number, of each host.
    beats: Vec<u32>,
    seqs: Vec<u32>,
    /// Dead hosts send nothing.
    dead_from: Vec<Instant>,
    haste: Haste,
    /// Hosts beat faster until then.
    hasty_until: Vec<Instant>,
    happenings: BinaryHeap<Reverse<(Instant, Happening)>>,
    now: Instant,
    received: u64,
    heard_at: Instant,
}

/// A turn that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Suspect(u32),
    Down(u32),
    Back(u32),
}

const ORIGIN: Instant = Instant::from_millis(10_000);

fn id(slot: u32) -> HostId {
    let mut id = [7; 16];
    id[12..].copy_from_slice(&slot.to_be_bytes());
    HostId(id)
}

impl World {
    fn new(hosts: u32, loss: Loss, haste: Haste, seed: u64) -> Self {
        let config = RawConfig::default().check().expect("the defaults are good");
        let settings = Settings::new(&config.detector);
        let mut detector = Detector::new(settings, &config.knobs, mix(seed), ORIGIN);
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        let mut happenings = BinaryHeap::new();
        for slot in 0..hosts {
            let known = Known {
                address: Some(address),
                domain: Domain(1 + slot % RACKS),
                ..Known::new(id(slot), State::Pending)
            };
            let got = detector.register(known, ORIGIN);
            assert_eq!(got, Some(slot), "slots are given in order");
            happenings.push(Reverse((ORIGIN, Happening::Send(slot))));
        }
        let each = |salt: u64| (0..hosts).map(move |h| mix(seed ^ mix(u64::from(h) ^ salt << 40)));
        Self {
            detector,
            ways: each(1).map(|seed| Way::new(loss, seed)).collect(),
            plans: each(2)
                .map(|seed| Plan::new(1.0 / f64::from(haste.factor), JITTER, seed))
                .collect(),
            beats: vec![0; hosts as usize],
            seqs: vec![0; hosts as usize],
            dead_from: vec![Instant::FAR; hosts as usize],
            haste,
            hasty_until: vec![Instant(0); hosts as usize],
            happenings,
            now: ORIGIN,
            received: 0,
            heard_at: ORIGIN,
        }
    }

    /// Planned moment of a host's beat, with a phase of its own.
    fn planned(&self, slot: u32, beat: u32) -> Instant {
        let phase = (f64::from(slot) * 0.618_033_988_749_895).fract();
        later(ORIGIN, 1.0 + phase + self.plans[slot as usize].planned(beat))
    }

    fn at(&mut self, when: Instant, what: Happening) {
        self.happenings.push(Reverse((when, what)));
    }

    fn delay(&mut self, slot: u32) -> Duration {
        DELAY + Duration::from_nanos((self.ways[slot as usize].rng.unit() * 1e5) as u64)
    }

    /// Goes on to the next happening or deadline, no later than `until`. `false`: nothing before that.
    fn step(&mut self, until: Instant, news: &mut Vec<News>) -> bool {
        let next = self.happenings.peek().map_or(Instant::FAR, |Reverse((at, _))| *at);
        let due = self.detector.next_due().unwrap_or(Instant::FAR).max(self.now);
        if next.min(due) > until {
            return false;
        }
        if due < next {
            // A microsecond later, so that what is due exactly now is past.
            self.now = due + Duration::from_micros(1);
            self.judge(news);
        } else if let Some(Reverse((at, what))) = self.happenings.pop() {
            self.now = self.now.max(at);
            self.happen(what, news);
        }
        true
    }

    fn judge(&mut self, news: &mut Vec<News>) {
        if self.now.since(self.heard_at) >= Duration::from_millis(250) {
            self.detector.heard(self.now, self.now, self.received, 0);
            (self.received, self.heard_at) = (0, self.now);
        }
        let mut judged = Vec::new();
        self.detector.judge(self.now, self.now, self.now, &mut judged);
        for one in judged {
            match one {
                Judged::Turn(turn) => {
                    let slot = self.detector.slot(turn.host).expect("it is registered");
                    match turn.turn {
                        Turn::Suspect => news.push(News::Suspect(slot)),
                        Turn::Down(_) => news.push(News::Down(slot)),
                        _ => {}
                    }
                }
                Judged::Probe { host, nonce, .. } => {
                    let slot = self.detector.slot(host).expect("it is registered");
                    // One by each of two sockets.
                    self.probe(slot, None, nonce);
                    self.probe(slot, None, nonce);
                }
                Judged::Ask { peer, host, nonce, .. } => {
                    let slot = self.detector.slot(host).expect("it is registered");
                    let peer = self.detector.slot(peer).expect("it is registered");
                    let now = self.now;
                    if self.ways[peer as usize].passes(now) && !self.is_dead(peer) {
                        self.probe(slot, Some(peer), nonce);
                    }
                }
                Judged::Excused => {}
            }
        }
    }

    fn is_dead(&self, slot: u32) -> bool {
        self.dead_from[slot as usize] <= self.now
    }

    fn probe(&mut self, slot: u32, peer: Option<u32>, nonce: [u8; 16]) {
        let (now, delay) = (self.now, self.delay(slot));
        if self.ways[slot as usize].passes(now) {
            self.at(now + delay, Happening::Probed(slot, peer, nonce));
        }
    }

    fn happen(&mut self, what: Happening, news: &mut Vec<News>) {
        let now = self.now;
        match what {
            Happening::Send(slot) => {
                if self.is_dead(slot) {
                    return;
                }
                let h = slot as usize;
                // Whoever does not hurry sends each `factor`-th of its planned beats.
                let next = self.beats[h].checked_sub(1).map_or(0, |present| {
                    let factor = self.haste.factor;
                    let step =
                        if now < self.hasty_until[h] { 1 } else { factor - present % factor };
                    present + step
                });
                let planned = self.planned(slot, next);
                if self.beats[h] > 0 {
                    self.seqs[h] += 1;
                    let gap_us = planned.since(now).as_micros() as u32;
                    let delay = self.delay(slot);
                    if self.ways[h].passes(now) {
                        self.at(now + delay, Happening::Beat(slot, self.seqs[h], gap_us.max(1)));
                    }
                }
                self.beats[h] = next + 1;
                self.at(planned, Happening::Send(slot));
            }
            Happening::Beat(slot, seq, gap_us) => {
                self.received += 1;
                self.observe(slot, seq, Duration::from_micros(u64::from(gap_us)), false, news);
            }
            Happening::Probed(slot, peer, nonce) => {
                if self.is_dead(slot) {
                    return;
                }
                let delay = self.delay(slot);
                let mut passes = self.ways[slot as usize].passes(now);
                if let Some(peer) = peer {
                    passes = passes && self.ways[peer as usize].passes(now);
                }
                if passes {
                    self.at(now + delay, Happening::Answer(slot, peer.is_some(), nonce));
                }
            }
            Happening::Answer(slot, by_peer, nonce) => {
                self.received += 1;
                if by_peer {
                    self.detector.testify(slot, &nonce);
                } else if self.detector.answers_probe(slot, &nonce, now) {
                    self.seqs[slot as usize] += 1;
                    let gap = self.planned(slot, self.beats[slot as usize] - 1).since(now);
                    let seq = self.seqs[slot as usize];
                    self.observe(slot, seq, gap.max(Duration::from_micros(1)), true, news);
                }
            }
        }
    }

    fn observe(&mut self, slot: u32, seq: u32, gap: Duration, asked: bool, news: &mut Vec<News>) {
        let stamp =
            Stamp { boot: Boot(1), seq: Seq(seq), sent: self.now - DELAY, gap, epoch: Epoch(1) };
        let proof = Proof {
            stamp: &stamp,
            arrival: self.now,
            from: SocketAddr::from(([127, 0, 0, 1], 9)),
            late_ms: 0,
            load: None,
            asked,
            rebase: false,
        };
        let mut turns = Vec::new();
        self.detector.observe(slot, &proof, &mut turns);
        if turns.iter().any(|t| matches!(t.turn, Turn::Recovered { .. })) {
            news.push(News::Back(slot));
            // Asked by an ack, which may be lost.
            let now = self.now;
            if self.haste.factor > 1 && self.ways[slot as usize].passes(now) {
                self.hasty_until[slot as usize] = now + self.haste.span;
            }
        }
    }

    /// The chance that a suspicion that has just begun ends in a false down; from tilted copies.
    fn chance_of_down(&self, slot: u32, seed: u64) -> f64 {
        let mut sum = 0.0;
        for copy in 0..COPIES {
            let mut world = self.clone();
            world.ways[slot as usize].tilt(world.now, mix(seed ^ u64::from(copy)));
            let (until, mut news) = (world.now + Duration::from_secs(30), Vec::new());
            'copy: while world.step(until, &mut news) {
                for one in news.drain(..) {
                    match one {
                        News::Down(s) if s == slot => {
                            sum += world.ways[slot as usize].weight;
                            break 'copy;
                        }
                        News::Back(s) if s == slot => break 'copy,
                        _ => {}
                    }
                }
            }
        }
        sum / f64::from(COPIES)
    }
}

/// What came of a long run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Downs {
    /// After the first hour.
    pub host_days: f64,
    /// Suspicions of living hosts.
    pub false_suspicions: u64,
    /// Of which were called down.
    pub false_downs: u64,
    /// False downs to be expected in a million host-days, by importance sampling.
    pub per_million_host_days: f64,
}

/// Runs living hosts for so many host-days in all; `progress` is told the share done.
pub fn false_downs(
    hosts: u32,
    host_days: f64,
    loss: Loss,
    haste: Haste,
    seed: u64,
    mut progress: impl FnMut(f64),
) -> Downs {
    let mut world = World::new(hosts, loss, haste, seed);
    let counted = Duration::from_secs_f64(host_days * 86_400.0 / f64::from(hosts));
    let (from, until) = (ORIGIN + FIRST_HOUR, ORIGIN + FIRST_HOUR + counted);
    let mut downs = Downs { host_days, ..Downs::default() };
    let (mut news, mut expected, mut shown) = (Vec::new(), 0.0, 0.0);
    while world.step(until, &mut news) {
        for one in std::mem::take(&mut news) {
            if world.now < from {
                continue;
            }
            match one {
                News::Suspect(slot) => {
                    downs.false_suspicions += 1;
                    expected += world.chance_of_down(slot, mix(seed ^ downs.false_suspicions));
                }
                News::Down(_) => downs.false_downs += 1,
                News::Back(_) => {}
            }
        }
        let done = world.now.since(from).as_secs_f64() / counted.as_secs_f64();
        if done - shown > 0.01 {
            shown = done;
            progress(done);
        }
    }
    downs.per_million_host_days = expected / host_days * 1e6;
    downs
}

/// Seconds from a crash to `down` on a clean way, sorted: after `learn`, every host crashes at a moment of
/// its own within an hour.
pub fn detection_times(hosts: u32, learn: Duration, seed: u64) -> Vec<f64> {
    let mut world = World::new(hosts, Loss::None, Haste::NONE, seed);
    let mut news = Vec::new();
    while world.step(ORIGIN + learn, &mut news) {}
    let mut rng = Draws::new(mix(seed));
    // One in four dies, so that there are peers to be asked to the end.
    for slot in (0..hosts as usize).step_by(4) {
        world.dead_from[slot] = later(ORIGIN + learn, 3_600.0 * rng.unit());
    }
    news.clear();
    let mut times = Vec::new();
    while world.step(ORIGIN + learn + Duration::from_secs(3_700), &mut news) {
        for one in news.drain(..) {
            if let News::Down(slot) = one {
                times.push(world.now.since(world.dead_from[slot as usize]).as_secs_f64());
            }
        }
    }
    times.sort_by(f64::total_cmp);
    times
}

/// Seconds from a crash to the suspicion and to `down`, each sorted, of hosts that crash within ten
/// minutes after they came back from a suspicion: the ones of which a failure might be guessed.
pub fn detection_after_return(
    hosts: u32,
    loss: Loss,
    haste: Haste,
    seed: u64,
) -> (Vec<f64>, Vec<f64>) {
    let mut world = World::new(hosts, loss, haste, seed);
    let mut rng = Draws::new(mix(seed));
    let mut news = Vec::new();
    let (mut suspected, mut down) = (vec![None; hosts as usize], vec![None; hosts as usize]);
    while world.step(ORIGIN + FIRST_HOUR * 24, &mut news) {
        let now = world.now;
        for one in news.drain(..) {
            match one {
                News::Back(slot) => {
                    suspected[slot as usize] = None;
                    let dead_from = &mut world.dead_from[slot as usize];
                    // One in four dies, so that there are peers to be asked to the end.
                    if now >= ORIGIN + FIRST_HOUR && *dead_from == Instant::FAR && slot % 4 == 0 {
                        *dead_from = later(now, 600.0 * rng.unit());
                    }
                }
                News::Suspect(slot) => suspected[slot as usize] = Some(now),
                News::Down(slot) => down[slot as usize] = Some(now),
            }
        }
    }
    // A suspicion may have begun before the crash: then the crash is known at once.
    let times = |of: &[Option<Instant>]| {
        let dead = of.iter().zip(&world.dead_from).filter(|(_, dead)| **dead < world.now);
        let mut times: Vec<f64> =
            dead.filter_map(|(at, dead)| at.map(|at| at.since(*dead).as_secs_f64())).collect();
        times.sort_by(f64::total_cmp);
        times
    };
    (times(&suspected), times(&down))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_lose_what_they_promise() {
        for (loss, share) in [(Loss::Independent(0.01), 0.01), (Loss::Bursts(0.05), 0.05)] {
            let mut way = Way::new(loss, 5);
            let lost = (0..400_000).filter(|k| !way.passes(Instant::from_millis(100 * k))).count();
            let lost = lost as f64 / 400_000.0;
            assert!((0.8 * share..1.2 * share).contains(&lost), "{loss:?}: {lost}");
        }
    }

    /// A tilted way is weighed so that means come out as on the plain one: the chance of three losses in
    /// a row is 10⁻⁶, and that of a burst within a second is as the plain one has it.
    #[test]
    fn weights_undo_the_tilt() {
        let runs = 20_000u64;
        let mut three = 0.0;
        for seed in 0..runs {
            let mut way = Way::new(Loss::Independent(0.01), 1);
            way.tilt(Instant(0), seed);
            if (0..3).all(|k| !way.passes(Instant::from_millis(k))) {
                three += way.weight;
            }
        }
        let chance = three / runs as f64;
        assert!((0.9e-6..1.1e-6).contains(&chance), "{chance}");

        let (mut soon, second) = (0.0, Instant::from_millis(1_000));
        for seed in 0..runs {
            let mut way = Way::new(Loss::Bursts(0.05), 1);
            way.tilt(Instant(0), mix(seed));
            if way.next_burst <= second {
                soon += way.weight;
            }
        }
        let plain = 1.0 - (-1.0 / good_s(0.05)).exp();
        assert!((soon / runs as f64 / plain - 1.0).abs() < 0.1, "{} {plain}", soon / runs as f64);
    }

    #[test]
    fn nobody_is_suspected_on_a_clean_way_and_the_dead_are_found_in_seconds() {
        let downs = false_downs(20, 2.0, Loss::None, Haste::NONE, 1, |_| {});
        assert_eq!((downs.false_suspicions, downs.false_downs), (0, 0));
        let times = detection_times(40, Duration::from_secs(6 * 3_600), 1);
        assert_eq!(times.len(), 10);
        // Virtual time: the machine's speed plays no part.
        assert!(times[0] > 0.5 && times[9] < 3.0, "{times:?}");
    }

    /// The short one of the long run that `heartwatch-eval --downs 20000` is. Without
    /// `detector.confirm_max`, every second host-day on the bursting ways ended in a false down.
    #[test]
    fn lossy_ways_cost_suspicions_but_no_downs() {
        for loss in [Loss::Independent(0.01), Loss::Bursts(0.05)] {
            let downs = false_downs(40, 40.0, loss, Haste::NONE, 3, |_| {});
            assert!(downs.false_suspicions > 0 && downs.false_downs == 0, "{loss:?}: {downs:?}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_run() {
        let run =
            || format!("{:?}", false_downs(10, 1.0, Loss::Bursts(0.05), Haste::NONE, 9, |_| {}));
        assert_eq!(run(), run());
    }
}
