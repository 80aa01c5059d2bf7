use super::doubt::DoubtReason;
use super::host::{Known, OneLeft};
use super::timeout::Patience;
use super::*;
use heartwatch_common::id::{Epoch, Seq};
use heartwatch_common::wire::LeaveReason;
use proptest::prelude::*;
use std::collections::BTreeMap;

use super::knobs::Knobs;

const MARGIN: Duration = Duration::from_millis(500);
const SPACING: Duration = Duration::from_millis(200);

/// Floor and ceiling of the margin are one: what is learned is tested in `timeout`, not here.
fn settings() -> Settings {
    Settings {
        gap_max: Duration::from_secs(60),
        plan: ProbePlan { probes: 3, spacing: SPACING, rate_max: 1_000_000, peers: 3 },
        confirm_max: Duration::ZERO,
        doubt_max: Duration::from_secs(30),
        restart_grace: Duration::from_secs(10),
        missing_after: Duration::from_secs(60),
        leave_max: Duration::from_secs(86_400),
        leave_grace: Duration::from_secs(30),
        forget_after: Duration::from_secs(3_600),
    }
}

fn ms(n: u64) -> Instant {
    Instant::from_millis(n)
}

fn id(n: u8) -> HostId {
    HostId([n; 16])
}

fn known(n: u8, state: State) -> Known {
    Known {
        boot: Boot(if state == State::Pending { 0 } else { 1 }),
        address: Some("127.0.0.1:9".parse().unwrap()),
        ..Known::new(id(n), state)
    }
}

struct World {
    detector: Detector,
    seqs: BTreeMap<u8, u32>,
    /// Where datagrams come from.
    from: SocketAddr,
}

impl World {
    fn new() -> Self {
        let knobs = AllKnobs::plain(Patience::new(1e5, MARGIN, MARGIN));
        let detector = Detector::new(settings(), &knobs, 1, ms(0));
        Self { detector, seqs: BTreeMap::new(), from: "127.0.0.1:9".parse().unwrap() }
    }

    /// A beat of host `n` that arrives at `at`; its agent's clock runs with ours.
    fn beat(&mut self, n: u8, boot: u32, at: Instant, gap: Duration) -> Vec<Turn> {
        self.proof(n, boot, at, gap, false)
    }

    fn proof(&mut self, n: u8, boot: u32, at: Instant, gap: Duration, rebase: bool) -> Vec<Turn> {
        let seq = self.seqs.entry(n).or_default();
        *seq += 1;
        let stamp = Stamp { boot: Boot(boot), seq: Seq(*seq), sent: at, gap, epoch: Epoch(1) };
        let proof = Proof {
            stamp: &stamp,
            arrival: at,
            from: self.from,
            late_ms: 0,
            load: None,
            asked: false,
            rebase,
        };
        let slot = self.detector.slot(id(n)).unwrap();
        let mut turns = Vec::new();
        self.detector.observe(slot, &proof, &mut turns);
        turns.into_iter().map(|t| t.turn).collect()
    }

    fn leave(&mut self, n: u8, boot: u32, at: Instant) -> Vec<Turn> {
        self.leave_for(n, boot, at, Duration::ZERO)
    }

    fn leave_for(&mut self, n: u8, boot: u32, at: Instant, expected: Duration) -> Vec<Turn> {
        let seq = self.seqs.entry(n).or_default();
        *seq += 1;
        let gap = Duration::from_secs(1);
        let stamp = Stamp { boot: Boot(boot), seq: Seq(*seq), sent: at, gap, epoch: Epoch(1) };
        let leave = Leave { stamp, reason: LeaveReason::Reboot, expected };
        let proof = Proof {
            stamp: &stamp,
            arrival: at,
            from: self.from,
            late_ms: 0,
            load: None,
            asked: false,
            rebase: false,
        };
        let slot = self.detector.slot(id(n)).unwrap();
        let mut turns = Vec::new();
        self.detector.leave(slot, &leave, &proof, at, &mut turns);
        turns.into_iter().map(|t| t.turn).collect()
    }

    /// Judges at every millisecond of a span; answers (ms, turn).
    fn judge(&mut self, from: u64, to: u64) -> Vec<(u64, Turn)> {
        let mut turns = Vec::new();
        let mut out = Vec::new();
        for at in from..=to {
            self.detector.judge(ms(at), ms(at), ms(at), &mut out);
            turns.extend(out.drain(..).filter_map(|j| match j {
                Judged::Turn(t) => Some((at, t.turn)),
                _ => None,
            }));
        }
        turns
    }
}

mod hush;
mod leaving;
mod twins;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_silent_host_is_suspect_after_its_margin_and_down_after_its_probes() {
    let mut w = World::new();
    w.detector.register(known(1, State::Pending), ms(0));
    assert_eq!(w.beat(1, 5, ms(1_000), SECOND), [Turn::Joined]);
    let turns = w.judge(1_000, 5_000);
    assert_eq!(turns, [(2_500, Turn::Suspect), (3_100, Turn::Down(Cause::Silent))]);
    assert_eq!(w.beat(1, 5, ms(6_000), SECOND), [Turn::Recovered { same_boot: true }]);
    w.detector.check();
}

#[test]
fn one_lost_beat_alone_never_makes_a_down_while_probes_are_answered() {
    let mut w = World::new();
    w.detector.register(known(1, State::Pending), ms(0));
    w.beat(1, 5, ms(1_000), SECOND);
    assert_eq!(w.judge(1_000, 2_600), [(2_500, Turn::Suspect)]);
    // The probe that went out at 2 500 is answered; the lost beat's successor comes at 3 000.
    assert_eq!(
        w.beat(1, 5, ms(2_610), Duration::from_millis(390)),
        [Turn::Recovered { same_boot: true }]
    );
    w.beat(1, 5, ms(3_000), SECOND);
    assert_eq!(w.judge(2_611, 4_400), []);
}

#[test]
fn a_beat_between_two_probes_ends_the_suspicion() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    w.beat(1, 1, ms(100), SECOND);
    assert_eq!(w.judge(101, 2_100).len(), 1);
    assert_eq!(w.detector.probing(), 1);
    w.beat(1, 1, ms(2_150), SECOND);
    assert_eq!((w.detector.probing(), w.judge(2_151, 3_600)), (0, vec![]));
}

#[test]
fn a_new_boot_starts_with_a_new_clock_but_keeps_the_host() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    w.beat(1, 1, ms(100), SECOND);
    assert_eq!(w.beat(1, 2, ms(900), SECOND), [Turn::Restarted]);
    // A stale estimate of the old clock would judge it by the wrong expectation.
    assert_eq!(w.judge(900, 2_399), []);
    assert_eq!(w.judge(2_400, 2_400), [(2_400, Turn::Suspect)]);
}

#[test]
fn two_boots_that_both_answer_are_a_duplicate_once() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    w.beat(1, 1, ms(100), SECOND);
    assert_eq!(w.beat(1, 9, ms(200), SECOND), [Turn::Restarted]);
    // A machine that is restored from a snapshot comes back so, once.
    assert_eq!(w.proof(1, 1, ms(300), SECOND, true), [Turn::Restarted]);
    let both = Turn::Duplicate { other: Boot(1), address: Some(w.from) };
    assert_eq!(w.beat(1, 9, ms(400), SECOND), [Turn::Restarted, both]);
    assert_eq!(w.proof(1, 1, ms(500), SECOND, true), [Turn::Restarted]);
}

#[test]
fn a_duplicate_ends_when_the_other_boot_has_been_silent_for_ten_minutes() {
    let suspected = |silent_until: u64| {
        let mut w = World::new();
        w.detector.register(known(1, State::Alive), ms(0));
        w.beat(1, 1, ms(100), SECOND);
        w.beat(1, 9, ms(200), SECOND);
        w.proof(1, 1, ms(300), SECOND, true);
        w.beat(1, 9, ms(350), SECOND);
        w.proof(1, 1, ms(400), SECOND, true);
        let mut at = 400;
        while at < silent_until {
            at += 1_000;
            let turns = w.beat(1, 1, ms(at), SECOND);
            assert!(turns.is_empty() || turns == [Turn::Single(OneLeft::Silent)], "{turns:?}");
        }
        let mut out = Vec::new();
        w.detector.judge(ms(at + 1_500), ms(at + 1_500), ms(at + 1_500), &mut out);
        let [Judged::Turn(turn), ..] = out[..] else { panic!("{out:?}") };
        assert_eq!(turn.turn, Turn::Suspect);
        turn.duplicate
    };
    assert!(suspected(598_000), "the other one may still come back");
    assert!(!suspected(601_000), "of a host that is one again, orders go out");
}

#[test]
fn a_goodbye_is_never_followed_by_a_suspicion() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    w.beat(1, 1, ms(100), SECOND);
    assert!(matches!(w.leave(1, 1, ms(500))[..], [Turn::Left { .. }]));
    assert_eq!(w.leave(1, 1, ms(550)), [], "said twice, told once");
    assert_eq!(w.judge(551, 60_000), []);
    assert_eq!(w.beat(1, 2, ms(61_000), SECOND), [Turn::Restarted]);
}

#[test]
fn known_hosts_get_a_spread_out_second_chance_after_a_restart() {
    let mut w = World::new();
    for n in 0..50 {
        let mut host = known(n, State::Alive);
        host.id.0[12] = n.wrapping_mul(5);
        w.detector.register(host, ms(0));
    }
    let turns = w.judge(0, 16_000);
    let suspects: Vec<u64> =
        turns.iter().filter(|(_, t)| *t == Turn::Suspect).map(|(at, _)| *at).collect();
    assert_eq!(suspects.len(), 50);
    assert!(suspects[0] >= 10_000 && suspects[49] <= 11_750, "{suspects:?}");
    assert!(suspects[40] - suspects[10] > 500, "{suspects:?}");
}

#[test]
fn a_pass_that_met_its_bound_says_that_more_may_be_due() {
    let mut w = World::new();
    for n in 0..1_500u32 {
        let mut host = known(1, State::Alive);
        host.id.0[..4].copy_from_slice(&n.to_be_bytes());
        w.detector.register(host, ms(0));
    }
    let at = ms(20_000);
    let (mut suspects, mut passes, mut more) = (0, 0, true);
    while more {
        let mut out = Vec::new();
        more = w.detector.judge(at, at, at, &mut out);
        let suspect = |j: &&Judged| matches!(j, Judged::Turn(t) if t.turn == Turn::Suspect);
        suspects += out.iter().filter(suspect).count();
        passes += 1;
        assert_eq!(more, suspects < 1_500 || passes < 2, "after {passes} passes {suspects}");
    }
    assert_eq!((suspects, passes), (1_500, 2));
}

/// Orders that were held before the start, and the doubt `restarted`, wait that long: of a rack that died
/// with the controller all must be down by then, or the first would pass for a single host.
#[test]
fn who_died_with_the_controller_is_down_within_the_chance_that_is_waited_for() {
    let mut w = World::new();
    for n in 0..50 {
        let mut host = known(n, State::Alive);
        host.id.0[12] = n.wrapping_mul(5);
        w.detector.register(host, ms(0));
    }
    let chance = settings().chance(Duration::ZERO).as_millis() as u64;
    let turns = w.judge(0, 2 * chance);
    let mut downs =
        turns.iter().filter(|(_, t)| *t == Turn::Down(Cause::Silent)).map(|(at, _)| *at);
    let (first, last) = (downs.next().unwrap(), downs.next_back().unwrap());
    assert_eq!(downs.count() + 2, 50);
    assert!(first > 10_000 && last <= chance, "{first} to {last} of {chance}");
    assert!(last * 10 > chance * 9, "waiting {chance} for {last} holds orders in vain");
}

/// Its reasons said "silent for 0.00 s".
#[test]
fn of_a_host_not_heard_since_the_start_the_silence_counts_from_when_we_began_to_listen() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    w.detector.begin(ms(2_000));
    let seen_at = |w: &mut World, at: u64| {
        let mut out = Vec::new();
        w.detector.judge(ms(at), ms(at), ms(at), &mut out);
        let [Judged::Turn(turn), ..] = out[..] else { panic!("{out:?}") };
        (turn.turn, turn.evidence.silence_ms, turn.evidence.unheard)
    };
    assert_eq!(seen_at(&mut w, 13_000), (Turn::Suspect, 11_000, true));
    let slot = w.detector.slot(id(1)).unwrap();
    assert_eq!(w.detector.why(slot, 0, ms(13_000), Duration::ZERO).listening_ms, 11_000);
    w.beat(1, 1, ms(13_100), SECOND);
    assert_eq!(seen_at(&mut w, 15_100), (Turn::Suspect, 2_000, false));
}

#[test]
fn a_suspect_of_before_the_restart_is_not_told_twice() {
    let mut w = World::new();
    w.detector.register(known(1, State::Suspect), ms(0));
    let turns: Vec<Turn> = w.judge(0, 12_000).into_iter().map(|t| t.1).collect();
    assert_eq!(turns, [Turn::Down(Cause::Silent)]);
}

#[test]
fn an_expected_host_goes_missing_once_and_may_still_come() {
    let mut w = World::new();
    w.detector.register(known(1, State::Pending), ms(0));
    assert_eq!(w.judge(0, 200_000), [(60_000, Turn::Missing)]);
    assert_eq!(w.beat(1, 3, ms(200_001), SECOND), [Turn::Joined]);
}

#[test]
fn the_dead_are_offered_to_be_forgotten() {
    let mut w = World::new();
    let mut host = known(1, State::Down);
    host.in_state = Duration::from_secs(3_590);
    w.detector.register(host, ms(0));
    assert_eq!(w.judge(0, 20_000), [(10_000, Turn::Forgettable)]);
    assert!(w.detector.remove(id(1)) && !w.detector.remove(id(1)));
    w.detector.check();
}

#[test]
fn nobody_is_judged_beyond_the_watermark() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    w.beat(1, 1, ms(100), SECOND);
    let mut out = Vec::new();
    // An hour has passed, but everything since 1 599 ms lies unread.
    w.detector.judge(ms(1_599), ms(1_599), ms(3_600_000), &mut out);
    assert_eq!(out, []);
    w.detector.judge(ms(1_600), ms(1_600), ms(3_600_000), &mut out);
    assert!(!out.is_empty());
}

#[test]
fn nothing_is_learned_from_a_gap_that_own_drops_explain() {
    let learned = |dropped: u64| {
        let mut w = World::new();
        w.detector.register(known(1, State::Alive), ms(0));
        w.beat(1, 1, ms(100), SECOND);
        w.detector.heard(ms(3_000), ms(3_000), 10, dropped);
        w.seqs.insert(1, 3);
        w.beat(1, 1, ms(4_100), SECOND);
        let slot = w.detector.slot(id(1)).unwrap();
        let why = w.detector.why(slot, 0, ms(4_100), Duration::ZERO);
        why.overdue.iter().map(|b| b.count).sum::<f64>()
    };
    assert!(learned(0) > 0.5);
    assert_eq!(learned(5), 0.0);
}

/// Excuses stood in a map of rare things, and the beat that ended one took the dear way and took it out: in
/// an overload, when every third beat was dropped, half of what our own code cost went there, so that more
/// was dropped. Now it is a beat like any other.
#[test]
fn a_beat_ends_an_excuse_and_leaves_nothing_behind() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    let slot = w.detector.slot(id(1)).unwrap();
    let excuse = |w: &World, at| w.detector.why(slot, 0, ms(at), Duration::ZERO).excuse;
    w.beat(1, 1, ms(100), SECOND);
    w.detector.heard(ms(1_200), ms(1_200), 10, 10);
    let mut out = Vec::new();
    w.detector.judge(ms(1_600), ms(1_600), ms(1_600), &mut out);
    assert_eq!(out, [Judged::Excused]);
    let told = excuse(&w, 1_700).unwrap();
    assert_eq!((told.reason, told.since_ms), (DoubtReason::Drops, 100));
    assert!(w.detector.rare.is_empty(), "a map would grow with what is dropped");

    w.seqs.insert(1, 2);
    assert_eq!(w.beat(1, 1, ms(2_100), SECOND), []);
    assert!(excuse(&w, 2_100).is_none());
    // What excused it is no word about its next silence.
    for at in [5_000, 10_000] {
        w.detector.heard(ms(at), ms(at), 10, 0);
    }
    let mut suspected = Vec::new();
    for at in 2_101..10_000 {
        w.detector.judge(ms(at), ms(at), ms(at), &mut out);
        suspected.extend(out.drain(..).filter_map(|j| match j {
            Judged::Turn(t) if t.turn == Turn::Suspect => Some((at, t.evidence.excused_by)),
            _ => None,
        }));
    }
    assert_eq!(suspected, [(3_600, "")]);
    w.detector.check();
}

/// One that was excused and then judged says so until it is heard: people ask why it took so long.
#[test]
fn what_excused_a_suspect_is_told_with_it() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    w.beat(1, 1, ms(100), SECOND);
    let mut now = 100;
    let mut told = Vec::new();
    let mut out = Vec::new();
    while told.is_empty() && now < 60_000 {
        now += 100;
        // A tenth is dropped, all the time: six beats in a row are the host's own silence.
        w.detector.heard(ms(now), ms(now), 90, 10);
        w.detector.judge(ms(now), ms(now), ms(now), &mut out);
        told.extend(out.drain(..).filter_map(|j| match j {
            Judged::Turn(t) if t.turn == Turn::Suspect => Some(t.evidence),
            _ => None,
        }));
    }
    let evidence = told.first().expect("suspected in the end");
    assert_eq!(evidence.excused_by, "drops");
    assert!((5_000..=10_000).contains(&evidence.excused_ms), "{}", evidence.excused_ms);
    // Much later it is told that it was excused for so long, and no longer.
    w.judge(now, now + 30_000);
    let slot = w.detector.slot(id(1)).unwrap();
    assert_eq!(w.detector.evidence(slot, ms(now + 30_000)).excused_ms, evidence.excused_ms);
    w.beat(1, 1, ms(now + 30_000), SECOND);
    assert_eq!(w.detector.evidence(slot, ms(now + 30_000)).excused_by, "");
}

/// The detector as anybody would write it: a map and a loop.
#[derive(Default)]
struct Naive {
    hosts: BTreeMap<u8, NaiveHost>,
}

struct NaiveHost {
    state: State,
    deadline: u64,
    /// Probes sent, and when the next step is due.
    probing: Option<(u8, u64)>,
}

impl Naive {
    fn beat(&mut self, n: u8, at: u64, gap: u64) {
        let deadline = at + gap + 500;
        self.hosts.insert(n, NaiveHost { state: State::Alive, deadline, probing: None });
    }

    fn judge(&mut self, at: u64) {
        for host in self.hosts.values_mut() {
            if host.state == State::Alive && host.deadline <= at {
                host.state = State::Suspect;
                host.probing = Some((0, at));
            }
            while let Some((sent, due)) = host.probing.filter(|(_, due)| *due <= at) {
                if sent == 3 {
                    host.state = State::Down;
                    host.probing = None;
                } else {
                    host.probing = Some((sent + 1, at.max(due) + 200));
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn the_detector_does_what_a_map_and_a_loop_do(
        ops in proptest::collection::vec((0..5u8, 0..8u8, 1..4_000u64), 1..150)
    ) {
        let mut w = World::new();
        let mut naive = Naive::default();
        let mut now = 1_000;
        for n in 0..8 {
            w.detector.register(known(n, State::Pending), ms(now));
        }
        let mut out = Vec::new();
        for (op, n, x) in ops {
            match op {
                0 | 1 => {
                    if w.detector.slot(id(n)).is_none() {
                        w.detector.register(known(n, State::Pending), ms(now));
                    }
                    w.beat(n, 1, ms(now), Duration::from_millis(x));
                    naive.beat(n, now, x);
                }
                2 | 3 => {
                    now += x;
                    w.detector.judge(ms(now), ms(now), ms(now), &mut out);
                    naive.judge(now);
                }
                _ => {
                    if x % 2 == 0 && naive.hosts.contains_key(&n) {
                        w.leave(n, 1, ms(now));
                        let gone = NaiveHost { state: State::Left, deadline: 0, probing: None };
                        naive.hosts.insert(n, gone);
                    } else {
                        w.detector.remove(id(n));
                        naive.hosts.remove(&n);
                    }
                }
            }
            w.detector.check();
            for (n, host) in &naive.hosts {
                prop_assert_eq!(w.detector.state(id(*n)), Some(host.state), "host {} at {}", n, now);
            }
        }
    }
}

#[test]
fn a_frozen_margin_holds_until_it_is_released() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    w.beat(1, 1, ms(100), Duration::from_secs(1));
    let slot = w.detector.slot(id(1)).unwrap();
    w.detector.freeze(slot, Some(Duration::from_secs(3)));
    let mut out = Vec::new();
    w.detector.judge(ms(4_099), ms(4_099), ms(4_099), &mut out);
    assert_eq!(out, [], "expected at 1.1 s, and 3 s more");
    assert_eq!(w.detector.why(slot, 0, ms(200), Duration::ZERO).knobs.frozen_ms, Some(3_000));
    w.beat(1, 1, ms(4_099), Duration::from_secs(1));
    w.detector.freeze(slot, None);
    w.detector.judge(ms(5_600), ms(5_600), ms(5_600), &mut out);
    assert_eq!(w.detector.state(id(1)), Some(State::Suspect), "half a second again");
    w.detector.check();
}

#[test]
fn a_wished_rate_of_mistakes_moves_the_cost() {
    let patience = Patience::new(1e5, MARGIN, MARGIN);
    let knobs = AllKnobs {
        default: Knobs { patience, mistakes_per_host_day: Some(1.0) },
        overrides: Vec::new(),
        group_labels: Vec::new(),
        classes: Vec::new(),
    };
    let detector = Detector::new(settings(), &knobs, 1, ms(0));
    let mut w = World { detector, seqs: BTreeMap::new(), from: "127.0.0.1:9".parse().unwrap() };
    w.detector.register(known(1, State::Alive), ms(0));
    let slot = w.detector.slot(id(1)).unwrap();
    // A host that is silent for 1.7 s out of every 3: far too many mistakes, so patience must grow.
    let mut out = Vec::new();
    for k in 0..2_000u64 {
        w.beat(1, 1, ms(3_000 * k), Duration::from_secs(1));
        w.beat(1, 1, ms(3_000 * k + 1_000), Duration::from_secs(1));
        let late = ms(3_000 * k + 2_900);
        w.detector.judge(late, late, late, &mut out);
    }
    let why = w.detector.why(slot, 0, ms(6_000_000), Duration::ZERO);
    assert!(why.mistakes > 1_000, "{}", why.mistakes);
    assert!(why.knobs.false_suspicion_cost_s > 5e5, "{}", why.knobs.false_suspicion_cost_s);
}

/// A fleet of live hosts on other machines, their beats evenly jittered, through a cut of our own link.
struct Fleet {
    detector: Detector,
    next: std::collections::BinaryHeap<std::cmp::Reverse<(Instant, u32)>>,
    seqs: Vec<u32>,
    suspects: u32,
    downs: BTreeMap<HostId, Instant>,
}

impl Fleet {
    fn id(n: u32) -> HostId {
        let mut id = [7; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        HostId(id)
    }

    fn new(hosts: u32) -> Self {
        // As by default: margins of 50 ms and more are learned.
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(30));
        let knobs = AllKnobs::plain(Patience::new(1e5, min, max));
        let settings = Settings { doubt_max: Duration::from_secs(90), ..settings() };
        let mut detector = Detector::new(settings, &knobs, 1, ms(0));
        let mut next = std::collections::BinaryHeap::new();
        for n in 0..hosts {
            let known = Known { id: Self::id(n), address: None, ..known(1, State::Pending) };
            detector.register(known, ms(0));
            let first = Instant::from_micros(u64::from(n) * 1_000_000 / u64::from(hosts));
            next.push(std::cmp::Reverse((first, n)));
        }
        let seqs = vec![0; hosts as usize];
        Self { detector, next, seqs, suspects: 0, downs: BTreeMap::new() }
    }

    /// Passes of 5 ms. `cut`: nothing arrives. Hosts from `dead` on are dead.
    fn run(&mut self, from_s: u64, to_s: u64, cut: bool, dead: u32) {
        let from: SocketAddr = "10.0.0.1:9".parse().unwrap();
        let mut out = Vec::new();
        let mut turns = Vec::new();
        for pass in from_s * 200..to_s * 200 {
            let now = ms((pass + 1) * 5);
            let mut received = 0;
            while let Some(&std::cmp::Reverse((at, n))) = self.next.peek().filter(|n| n.0.0 <= now)
            {
                self.next.pop();
                // Jitter of a fifth, from the number of the beat.
                let mixed = (n ^ self.seqs[n as usize]).wrapping_mul(0x9E37_79B9) >> 16;
                let gap = Duration::from_micros(800_000 + u64::from(mixed) * 400_000 / 65_536);
                self.next.push(std::cmp::Reverse((at + gap, n)));
                self.seqs[n as usize] += 1;
                if cut || n >= dead {
                    continue;
                }
                received += 1;
                let seq = Seq(self.seqs[n as usize]);
                let stamp = Stamp { boot: Boot(1), seq, sent: at, gap, epoch: Epoch(1) };
                let proof = Proof {
                    stamp: &stamp,
                    arrival: at,
                    from,
                    late_ms: 0,
                    load: None,
                    asked: false,
                    rebase: false,
                };
                self.detector.hear(from, at);
                let slot = self.detector.slot(Self::id(n)).unwrap();
                self.detector.observe(slot, &proof, &mut turns);
            }
            self.detector.heard(now, now, received, 0);
            self.detector.judge(now, now, now, &mut out);
            for judged in out.drain(..) {
                match judged {
                    Judged::Turn(t) if t.turn == Turn::Suspect => self.suspects += 1,
                    Judged::Turn(t) if matches!(t.turn, Turn::Down(_)) => {
                        self.downs.insert(t.host, now);
                    }
                    _ => {}
                }
            }
        }
    }

    fn margin(&self, n: u32) -> f64 {
        let slot = self.detector.slot(Self::id(n)).unwrap();
        self.detector.why(slot, 0, ms(0), Duration::ZERO).margin_ms.unwrap()
    }
}

#[test]
fn a_link_cut_for_a_minute_under_10_000_hosts_convicts_nobody_and_the_dead_are_found_after_it() {
    const HOSTS: u32 = 10_000;
    let mut fleet = Fleet::new(HOSTS);
    fleet.run(0, 30, false, HOSTS);
    let margins: Vec<f64> = (0..100).map(|n| fleet.margin(n)).collect();
    fleet.run(30, 90, true, HOSTS);
    assert_eq!((fleet.suspects, fleet.downs.len()), (0, 0), "during the cut");
    // A hundred died meanwhile.
    fleet.run(90, 100, false, HOSTS - 100);
    assert_eq!((fleet.suspects, fleet.downs.len()), (100, 100), "after the cut");
    let last = fleet.downs.values().max().unwrap().since(ms(90_000));
    // One timeout (1.5 gaps and a margin) and three probes.
    let margin = margins.iter().copied().fold(0.0, f64::max) / 1e3;
    assert!(last.as_secs_f64() < 1.5 * 1.2 + margin + 0.6 + 0.5, "{last:?}, margin {margin}");
    let after: Vec<f64> = (0..100).map(|n| fleet.margin(n)).collect();
    // Margins follow the average interval a little; learned from the cut they would be ten times as long.
    assert!(after.iter().zip(&margins).all(|(a, b)| *a < b * 1.2), "{margins:?}\n{after:?}");
    println!("last found {last:?} after the cut; greatest margin {margin:.3} s");
}

#[test]
fn a_fleet_that_dies_behind_its_controller_is_found_within_doubt_max() {
    let mut fleet = Fleet::new(500);
    fleet.run(0, 30, false, 500);
    fleet.run(30, 119, true, 500);
    assert_eq!(fleet.downs.len(), 0);
    // A timeout after the first moments of silence, and the probes.
    fleet.run(119, 128, true, 500);
    assert_eq!(fleet.downs.len(), 500);
    assert!(fleet.detector.doubt().is_blind(), "and what follows from it is held");
}

/// A probe's answer ends a silence that would have gone on to the next beat. Had only the silence up to
/// the answer been learned, the margin would have stayed as short as it was wrong.
#[test]
fn a_mistake_teaches_how_long_the_silence_would_have_been() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    w.beat(1, 1, ms(100), Duration::from_secs(1));
    let slot = w.detector.slot(id(1)).unwrap();
    let mut out = Vec::new();
    // Due at 1.1 s, suspected at 1.6 s, answers at 1.61 s: its next beat comes at 2.1 s.
    w.detector.judge(ms(1_601), ms(1_601), ms(1_601), &mut out);
    assert_eq!(w.detector.state(id(1)), Some(State::Suspect));
    let stamp = Stamp {
        boot: Boot(1),
        seq: Seq(9),
        sent: ms(1_610),
        gap: Duration::from_millis(490),
        epoch: Epoch(1),
    };
    let proof = Proof {
        stamp: &stamp,
        arrival: ms(1_610),
        from: "127.0.0.1:9".parse().unwrap(),
        late_ms: 0,
        load: None,
        asked: true,
        rebase: false,
    };
    w.detector.observe(slot, &proof, &mut Vec::new());
    let why = w.detector.why(slot, 0, ms(1_620), Duration::ZERO);
    assert_eq!((why.last_overdue_ms[0], why.mistakes), (1_000.0, 1));
}

/// A registry of a million hosts took fifteen seconds to load, and whoever was loaded first was suspected the
/// moment that the shard began to listen.
#[test]
fn grace_counts_from_when_we_began_to_listen() {
    let mut w = World::new();
    w.detector.register(known(1, State::Alive), ms(0));
    w.detector.begin(ms(15_000));
    let turns = w.judge(15_000, 31_000);
    assert!(matches!(turns[..], [(25_000..26_251, Turn::Suspect), ..]), "{turns:?}");
}

/// Hosts with an interval longer than the grace were all suspected after a restart: their first beat was
/// answered by a challenge, and the second, which proves life, could not come in time.
#[test]
fn who_owes_a_proof_that_was_asked_for_gets_until_its_next_beat() {
    let mut w = World::new();
    let slot = w.detector.register(known(1, State::Alive), ms(0)).unwrap();
    w.detector.begin(ms(0));
    // Heard at 9 s, with the next beat due in 12: it was asked for proof, and has until 21.5 s.
    w.detector.await_proof(slot, Duration::from_secs(12), ms(9_000));
    assert_eq!(w.judge(9_000, 21_499), []);
    let turns = w.judge(21_500, 21_500);
    assert_eq!(turns, [(21_500, Turn::Suspect)]);
}

#[test]
fn recordings_of_a_dead_host_put_its_suspicion_off_no_longer_than_doubt_max() {
    let mut w = World::new();
    let slot = w.detector.register(known(1, State::Alive), ms(0)).unwrap();
    w.detector.begin(ms(0));
    let mut suspect = None;
    for at in 0..40_000 {
        w.detector.await_proof(slot, Duration::from_secs(60), ms(at));
        let turns = w.judge(at, at);
        suspect = suspect.or(turns.iter().any(|t| t.1 == Turn::Suspect).then_some(at));
    }
    assert_eq!(suspect, Some(30_000));
}

/// A shard away from its sockets for a moment once judged hundreds of thousands of hosts before it read on.
#[test]
fn one_pass_judges_a_bounded_number_and_says_that_there_is_more() {
    let mut w = World::new();
    let hosts = 3 * JUDGED_MAX + 7;
    for n in 0..hosts {
        let mut host = known(1, State::Alive);
        host.id.0[..4].copy_from_slice(&(n as u32).to_be_bytes());
        w.detector.register(host, ms(0)).unwrap();
    }
    let (at, mut out, mut suspects) = (ms(20_000), Vec::new(), Vec::new());
    while w.detector.next_due().is_some_and(|due| due <= at) && suspects.len() < 9 {
        w.detector.judge(at, at, at, &mut out);
        let turns =
            out.drain(..).filter(|j| matches!(j, Judged::Turn(t) if t.turn == Turn::Suspect));
        suspects.push(turns.count());
    }
    suspects.retain(|n| *n > 0);
    assert_eq!(suspects.iter().sum::<usize>(), hosts);
    assert!(suspects.iter().all(|n| *n <= JUDGED_MAX), "{suspects:?}");
    w.detector.check();
}

/// As it is known from before a restart of the controller, its machine is asked on.
#[test]
fn a_machine_whose_agent_was_lost_before_the_start_is_asked_too() {
    let mut w = World::new();
    w.detector.register(Known { agent_lost: true, ..known(1, State::Down) }, ms(0));
    w.detector.register(known(2, State::Down), ms(0));
    let mut out = Vec::new();
    for at in 0..=40_000 {
        w.detector.judge(ms(at), ms(at), ms(at), &mut out);
    }
    w.detector.check();
    assert_eq!(w.detector.probing(), 0, "it is no suspect");
    let probed = |n: u8| {
        out.iter().filter(|j| matches!(j, Judged::Probe { host, .. } if *host == id(n))).count()
    };
    assert_eq!((probed(1), probed(2)), (usize::from(confirm::LOST_SILENT_MAX), 0));
    let turns: Vec<_> = out
        .iter()
        .filter_map(|j| match j {
            Judged::Turn(t) => Some((t.host, t.turn, t.evidence.agent_lost)),
            _ => None,
        })
        .collect();
    assert_eq!(turns, [(id(1), Turn::Down(Cause::Silent), true)]);
}
