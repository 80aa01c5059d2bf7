use super::*;

const PLAN: ProbePlan =
    ProbePlan { probes: 3, spacing: Duration::from_millis(200), rate_max: 1_000, peers: 3 };
const NONE: Duration = Duration::ZERO;

fn ms(n: u64) -> Instant {
    Instant::from_millis(n)
}

/// A plan in virtual time: peers are found whenever they are wanted.
struct World {
    confirm: Confirm,
    dice: Dice,
    /// Nonces of requests in the order in which they were made: (slot, nonce).
    asked: Vec<(u32, [u8; 16])>,
    trip: Duration,
}

impl World {
    fn new(plan: ProbePlan) -> Self {
        let confirm = Confirm::new(plan, ms(0));
        Self { confirm, dice: Dice::new(5), asked: Vec::new(), trip: NONE }
    }

    /// A plan with one suspect, in slot 7.
    fn suspecting() -> Self {
        let mut w = Self::new(PLAN);
        w.confirm.begin(7, NONE, ms(0), ms(0));
        w
    }

    fn step(&mut self, at: u64, seen: u64) -> Option<Step> {
        let step = self.confirm.step(ms(at), ms(seen), &mut self.dice);
        if let Some(Step::Probe { slot, peers, .. }) = step {
            for peer in 0..u32::from(peers) {
                let nonce = self.dice.nonce();
                self.confirm.asked(slot, 100 + peer, nonce, self.trip, ms(at));
                self.asked.push((slot, nonce));
            }
        }
        step
    }

    fn steps(&mut self, at: u64) -> Vec<Step> {
        std::iter::from_fn(|| self.step(at, at)).collect()
    }

    /// All steps of a span, with their times.
    fn run(&mut self, from: u64, to: u64) -> Vec<(u64, Step)> {
        (from..=to).flat_map(|at| self.steps(at).into_iter().map(move |s| (at, s))).collect()
    }

    fn testify(&mut self, which: usize) -> bool {
        let (slot, nonce) = self.asked[which];
        self.confirm.testify(slot, &nonce)
    }
}

/// Probes: when, number, peers.
fn probes(steps: &[(u64, Step)]) -> Vec<(u64, u16, u8)> {
    let probe = |(at, step): &(u64, Step)| match step {
        Step::Probe { number, peers, .. } => Some((*at, *number, *peers)),
        _ => None,
    };
    steps.iter().filter_map(probe).collect()
}

/// The nonce of the first of these, which is a probe.
fn nonce_of(steps: &[Step]) -> [u8; 16] {
    match steps[0] {
        Step::Probe { nonce, .. } => nonce,
        other => panic!("not a probe: {other:?}"),
    }
}

fn down(cause: Cause, sent: u16, unreachable: u16, asked: u16, testimonies: u16) -> Step {
    Step::Down { slot: 7, cause, tally: Tally { sent, unreachable, asked, testimonies } }
}

#[test]
fn three_probes_and_two_rounds_of_peers_unanswered_make_a_host_down() {
    let mut w = World::suspecting();
    let steps = w.run(0, 700);
    assert_eq!(probes(&steps), [(0, 1, 0), (200, 2, 3), (400, 3, 3)]);
    assert_eq!(steps[3..], [(600, down(Cause::Silent, 3, 0, 6, 0))]);
    assert!(w.confirm.is_empty() && w.confirm.next_due().is_none());
}

#[test]
fn no_verdict_falls_while_an_answer_may_lie_unread() {
    let mut w = World::suspecting();
    for at in [0, 200, 400] {
        w.steps(at);
    }
    assert_eq!(w.step(700, 599), None);
    assert!(matches!(w.step(700, 600), Some(Step::Down { .. })));
}

// Found by the simulator: a controller that was stopped while a verdict was near gave it as of the mail
// that it had read so far, while newer beats of the host lay unread.
#[test]
fn who_lags_gives_one_more_chance_and_not_two() {
    let mut w = World::suspecting();
    for at in [0, 200, 400] {
        w.steps(at);
    }
    let again = w.step(60_000, 700);
    assert!(matches!(again, Some(Step::Probe { number: 4, peers: 3, .. })), "{again:?}");
    assert_eq!(w.step(70_000, 60_199), None, "what lies unread since must be read first");
    assert!(matches!(w.step(70_000, 60_200), Some(Step::Down { .. })));
    // Of a host that peers have heard, a round more.
    let mut w = World::suspecting();
    w.run(0, 450);
    w.testify(0);
    w.run(451, 5_200);
    w.step(90_000, 6_600);
    assert!(w.confirm.is_unreachable(7), "the third silent round, but we lag");
    assert!(matches!(w.step(99_000, 91_500), Some(Step::Down { .. })));
}

#[test]
fn a_kernel_that_quotes_our_nonce_makes_the_cause_agent_lost() {
    let mut w = World::suspecting();
    let nonce = nonce_of(&w.steps(0));
    assert!(!w.confirm.unreachable(7, &[2; 16]) && !w.confirm.unreachable(8, &nonce));
    assert!(w.confirm.unreachable(7, &nonce));
    assert_eq!(w.run(1, 600).last(), Some(&(600, down(Cause::AgentLost, 3, 1, 6, 0))));
}

// Found by the simulator (seed 1591): over a slow way a suspicion lasts seconds, and a true answer to its
// first probe that somebody kept from us revived a host that had died meanwhile.
#[test]
fn an_answer_to_a_probe_is_good_for_a_while_and_each_probe_has_its_own() {
    let mut w = World::new(PLAN);
    w.confirm.begin(7, Duration::from_secs(1), ms(0), ms(0));
    let first = nonce_of(&w.steps(0));
    assert!(!w.confirm.answers(7, &[9; 16], ms(5)) && !w.confirm.answers(8, &first, ms(5)));
    let second = nonce_of(&w.run(1, 2_000).iter().map(|s| s.1).collect::<Vec<_>>());
    assert_ne!(first, second);
    assert!(w.confirm.answers(7, &first, ms(2_000)) && w.confirm.answers(7, &second, ms(2_000)));
    assert!(!w.confirm.answers(7, &first, ms(2_001)), "kept from us");
    assert!(w.confirm.answers(7, &second, ms(4_000)));
}

#[test]
fn without_peers_the_plan_is_probes_alone() {
    let mut w = World::new(ProbePlan { peers: 0, ..PLAN });
    w.confirm.begin(7, NONE, ms(0), ms(0));
    let steps = w.run(0, 600);
    assert_eq!(probes(&steps), [(0, 1, 0), (200, 2, 0), (400, 3, 0)]);
    assert_eq!(steps[3..], [(600, down(Cause::Silent, 3, 0, 0, 0))]);
    // Peers are wanted with the last two probes, however many there are.
    for (count, with) in [(1, vec![1]), (2, vec![2]), (5, vec![4, 5])] {
        let mut w = World::new(ProbePlan { probes: count, ..PLAN });
        w.confirm.begin(7, NONE, ms(0), ms(0));
        let steps = probes(&w.run(0, 2_000));
        let asking: Vec<u16> = steps.iter().filter(|p| p.2 > 0).map(|p| p.1).collect();
        assert_eq!((steps.len(), asking), (usize::from(count), with));
    }
}

#[test]
fn a_slow_way_is_given_the_time_that_it_takes() {
    // A satellite: 600 ms there and back.
    let mut w = World::new(PLAN);
    w.confirm.begin(7, Duration::from_millis(600), ms(0), ms(0));
    w.trip = Duration::from_millis(700);
    let steps = w.run(0, 6_000);
    assert_eq!(probes(&steps), [(0, 1, 0), (1_200, 2, 3), (2_400, 3, 3)]);
    assert_eq!(
        steps[3].0, 3_800,
        "twice the round trips of suspect and peer after the last request"
    );
    // Nobody can make us wait for ever, and nobody makes us wait less than is configured.
    assert_eq!(PLAN.patience(Duration::from_secs(125)), SPACING_MAX);
    assert_eq!(PLAN.patience(Duration::from_micros(50)), PLAN.spacing);
    let patient = ProbePlan { spacing: Duration::from_secs(10), ..PLAN };
    assert_eq!(patient.patience(Duration::from_secs(125)), patient.spacing);
}

#[test]
fn a_host_that_answers_only_peers_is_unreachable_and_not_down() {
    let mut w = World::suspecting();
    w.run(0, 450);
    assert!(w.testify(4));
    assert!(!w.testify(4), "an answer counts once");
    assert!(!w.confirm.is_unreachable(7), "it may still answer us");
    assert_eq!(w.run(451, 700), [(600, Step::Unreachable { slot: 7 })]);
    assert!(w.confirm.is_unreachable(7));
    assert_eq!(w.confirm.unreachable_len(), 1);
    // It goes on as long as somebody testifies in each third round at least.
    for round in 0..30 {
        let (begin, before) = (700 + round * 1_500, w.asked.len());
        let steps = probes(&w.run(begin, begin + 1_499));
        assert_eq!(steps.len(), 1, "one probe a round");
        assert_eq!((steps[0].2, w.asked.len() - before), (3, 3));
        if round % 3 == 0 {
            assert!(w.testify(before + 1));
        }
        assert!(w.confirm.is_unreachable(7));
    }
    assert_eq!(w.confirm.peers_of(7).1, Some(101), "the last that testified is known");
    w.confirm.end(7);
    assert_eq!((w.confirm.unreachable_len(), w.confirm.len()), (0, 0));
}

#[test]
fn an_unreachable_host_that_falls_silent_is_down_after_three_rounds() {
    let mut w = World::suspecting();
    w.run(0, 450);
    assert!(w.testify(0));
    w.run(451, 2_100);
    assert!(w.testify(6), "in the first round");
    let steps = w.run(2_101, 20_000);
    assert_eq!(probes(&steps).iter().map(|p| p.0).collect::<Vec<_>>(), [3_600, 5_100, 6_600]);
    assert_eq!(steps.last(), Some(&(8_100, down(Cause::Silent, 7, 0, 18, 2))));
    assert_eq!(w.confirm.unreachable_len(), 0);
}

#[test]
fn an_unreachable_host_whose_kernel_begins_to_answer_has_lost_its_agent() {
    let mut w = World::suspecting();
    let first = nonce_of(&w.steps(0));
    // What its kernel said before an agent testified was not so: another address, perhaps.
    assert!(w.confirm.unreachable(7, &first));
    w.run(1, 450);
    assert!(w.testify(0));
    assert_eq!(w.run(451, 600), [(600, Step::Unreachable { slot: 7 })]);
    let steps = w.run(601, 2_100);
    let nonce = nonce_of(&[steps.last().unwrap().1]);
    assert!(!w.confirm.unreachable(7, &first), "long ago");
    assert!(w.confirm.unreachable(7, &nonce));
    let steps = w.run(2_101, 10_000);
    assert!(matches!(steps.last(), Some((_, Step::Down { cause: Cause::AgentLost, .. }))));
    assert_eq!((w.confirm.unreachable_len(), w.confirm.len()), (0, 0));
}

#[test]
fn a_machine_that_lost_its_agent_is_asked_now_and_then_and_quickly_when_it_is_silent() {
    let mut w = World::suspecting();
    let first = nonce_of(&w.steps(0));
    assert!(w.confirm.unreachable(7, &first));
    let steps = w.run(1, 9_000);
    assert_eq!(steps.last(), Some(&(600, down(Cause::AgentLost, 3, 1, 6, 0))));
    // Every ten seconds while its kernel answers.
    for at in [10_600, 22_100, 33_600] {
        let steps = w.run(at - 1_000, at);
        assert!(matches!(steps[..], [(when, Step::Probe { .. })] if when == at), "{steps:?}");
        assert!(w.confirm.unreachable(7, &nonce_of(&[steps[0].1])));
        assert_eq!(w.run(at + 1, at + 9_000), []);
    }
    // While we lag, an answer may lie unread: that round does not count, once.
    let steps = w.run(42_601, 45_100);
    assert!(matches!(steps[..], [(45_100, Step::Probe { .. })]), "{steps:?}");
    let steps = w.run(45_101, 80_000);
    let round = ROUND.as_millis() as u64;
    let when: Vec<u64> = probes(&steps).iter().map(|p| p.0).collect();
    let wanted: Vec<u64> = (1..u64::from(LOST_SILENT_MAX)).map(|n| 45_100 + n * round).collect();
    assert_eq!(when, wanted);
    let end = 45_100 + u64::from(LOST_SILENT_MAX) * round;
    assert!(
        matches!(steps.last(), Some((at, Step::Down { cause: Cause::Silent, .. })) if *at == end),
        "{:?}",
        steps.last()
    );
    assert_eq!((w.confirm.get(7).is_none(), w.confirm.next_due()), (true, None));
}

#[test]
fn a_nonce_of_another_suspicion_an_earlier_round_or_nobody_counts_for_nothing() {
    let mut w = World::suspecting();
    w.confirm.begin(8, NONE, ms(0), ms(0));
    let first = nonce_of(&w.steps(0));
    w.run(1, 450);
    let of = |w: &World, slot| w.asked.iter().find(|a| a.0 == slot).unwrap().1;
    let (seven, eight) = (of(&w, 7), of(&w, 8));
    assert!(!w.confirm.testify(7, &eight) && !w.confirm.testify(7, &[9; 16]));
    assert!(!w.confirm.testify(9, &seven), "no suspect");
    assert!(!w.confirm.testify(7, &first), "the nonce of our own probes is not a peer's to bring");
    assert!(w.confirm.testify(7, &seven));
    w.run(451, 2_100);
    let late = w.asked.iter().filter(|a| a.0 == 7).nth(1).unwrap().1;
    assert!(!w.confirm.testify(7, &late), "asked in the burst, brought in the first round");
    // A new suspicion of the same host knows nothing of the one before.
    let before = of(&w, 7);
    w.confirm.end(7);
    w.confirm.begin(7, NONE, ms(0), ms(3_000));
    w.run(3_000, 3_450);
    assert!(!w.confirm.testify(7, &before));
}

#[test]
fn a_crowd_of_suspects_is_probed_within_the_budget_longest_silent_first() {
    let mut w = World::new(PLAN);
    for slot in 0..500 {
        w.confirm.begin(slot, NONE, ms(0), ms(u64::from(slot)));
    }
    let first = w.steps(500);
    assert_eq!(first.len(), 100, "a tenth of a second's worth at once");
    assert!(matches!(first[0], Step::Probe { slot: 0, number: 1, peers: 0, .. }));
    let steps = w.run(501, 9_000);
    let probes = first.len() + probes(&steps).len();
    assert_eq!((probes, w.confirm.len()), (1_500, 0), "three probes and a verdict each");
}

#[test]
fn asking_peers_delays_no_verdict_and_every_suspect_has_at_least_one() {
    let finish = |peers: u8| {
        let mut w = World::new(ProbePlan { rate_max: 10_000, peers, ..PLAN });
        for slot in 0..10_000 {
            w.confirm.begin(slot, NONE, ms(0), ms(0));
        }
        let steps = w.run(0, 10_000);
        let downs: Vec<_> = steps
            .iter()
            .filter_map(|(at, s)| match s {
                Step::Down { tally, .. } => Some((*at, tally.asked)),
                _ => None,
            })
            .collect();
        assert_eq!(downs.len(), 10_000);
        let asked: usize = downs.iter().map(|d| usize::from(d.1)).sum();
        assert!(downs.iter().all(|d| peers == 0 || d.1 >= 2), "one peer with each of two probes");
        (downs.last().unwrap().0, asked)
    };
    let ((alone, none), (asking, many)) = (finish(0), finish(3));
    assert_eq!((none, alone), (0, asking), "the last verdict falls at the same moment");
    assert!((20_000..25_000).contains(&many), "{many} requests");
}

#[test]
fn hosts_known_to_live_take_only_what_suspects_leave() {
    let mut w = World::new(PLAN);
    for slot in 0..2_000 {
        w.confirm.begin(slot, NONE, ms(0), ms(0));
    }
    let mut done = 0;
    for at in 0..20_000 {
        let before = w.asked.len();
        w.steps(at);
        (before..w.asked.len()).for_each(|i| {
            w.testify(i);
        });
        done = done.max(w.confirm.unreachable_len());
    }
    assert_eq!((done, w.confirm.unreachable_len()), (2_000, 2_000));
    // Rounds for all of them would take more than there is; a new suspect does not notice.
    w.confirm.begin(5_000, NONE, ms(0), ms(20_000));
    let steps = w.run(20_000, 20_700);
    let of_new = |s: &&(u64, Step)| match s.1 {
        Step::Probe { slot, .. } | Step::Down { slot, .. } => slot == 5_000,
        Step::Unreachable { .. } => false,
    };
    let at: Vec<u64> = steps.iter().filter(of_new).map(|s| s.0).collect();
    assert_eq!(at, [20_000, 20_200, 20_400, 20_600]);
}

#[test]
fn a_host_that_came_back_from_long_silences_is_probed_on_and_then_judged() {
    let mut w = World::new(PLAN);
    w.confirm.begin(7, NONE, ms(3_000), ms(0));
    let (mut probes, mut asked, mut down) = (0, 0, None);
    for at in 0..4_000 {
        for step in w.steps(at) {
            match step {
                Step::Probe { peers, .. } => {
                    probes += 1;
                    asked += u32::from(peers);
                }
                Step::Down { .. } => down = Some(at),
                Step::Unreachable { .. } => panic!("nobody testified"),
            }
        }
    }
    assert!(down.is_some_and(|at| (3_000..3_400).contains(&at)), "{down:?}");
    assert!((14..=17).contains(&probes), "{probes}");
    assert!(asked < 20, "peers are asked now and then: {asked}");
}

#[test]
fn more_time_is_for_silence_alone() {
    let mut w = World::new(PLAN);
    w.confirm.begin(7, NONE, ms(60_000), ms(0));
    let steps = w.steps(0);
    let [Step::Probe { nonce, .. }] = steps[..] else { panic!("{steps:?}") };
    assert!(w.confirm.unreachable(7, &nonce), "its kernel lives, its agent does not");
    let down = (1..2_000).find(|at| w.steps(*at).iter().any(|s| matches!(s, Step::Down { .. })));
    assert!(down.is_some_and(|at| at < 1_000), "{down:?}");
}
