use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::super::outcome::OutcomeClass;
use super::*;
use crate::store::Token;
use heartwatch_common::id::HostId;

const SECOND: Duration = Duration::from_secs(1);

fn policy() -> Policy {
    Policy {
        concurrency: 4,
        backoff: Backoff { base: SECOND, cap: 300 * SECOND },
        give_up_after: 25 * 3_600 * SECOND,
        queue_len_max: 20,
        batch_len_max: 1,
        rate: None,
    }
}

fn rng() -> StdRng {
    StdRng::seed_from_u64(1)
}

fn at(seconds: u64) -> Instant {
    Instant::from_millis(seconds * 1_000)
}

fn due(id: u64, receiver: &str, host: u8) -> Due {
    Due {
        id: DeliveryId(id),
        receiver: receiver.to_owned(),
        host: Some(HostId([host; 16])),
        attempts: 0,
        waited: Duration::ZERO,
    }
}

/// A schedule that has read an empty outbox.
fn schedule(policy: Policy) -> Schedule {
    let names = ["a", "b"].map(|n| (n.to_owned(), policy));
    let mut schedule = Schedule::new(names.into());
    for read in schedule.reads() {
        schedule.read(&read, &[], at(0));
    }
    schedule
}

fn ids(n: &[u64]) -> Vec<DeliveryId> {
    n.iter().map(|n| DeliveryId(*n)).collect()
}

fn end(s: &mut Schedule, id: u64, outcome: &Outcome, now: Instant) -> FinishVerdict {
    let verdict = s.judge(DeliveryId(id), outcome, now, &mut rng());
    s.finished(DeliveryId(id), &verdict, now);
    s.check();
    verdict
}

#[test]
fn verdicts_follow_the_status() {
    let verdict = |outcome: &Outcome| next(outcome, 1, Duration::ZERO, &policy(), &mut rng());
    for status in [200, 201, 204, 299] {
        assert_eq!(verdict(&Outcome::of_status(status)), FinishVerdict::Delivered);
    }
    let gone = verdict(&Outcome::of_status(410));
    assert_eq!(gone, FinishVerdict::Dead { reason: "gone".to_owned() });
    for status in [100, 301, 307, 400, 401, 404, 409, 429, 500, 503, 599, 0, u16::MAX] {
        let verdict = verdict(&Outcome::of_status(status));
        assert!(matches!(verdict, FinishVerdict::Retry { .. }), "{status}: {verdict:?}");
    }
    let highest = Token(7);
    let conflict = Outcome { highest_token: Some(highest), ..Outcome::of_status(409) };
    assert_eq!(verdict(&conflict), FinishVerdict::Conflict { highest });
    let refused = Outcome::failed(OutcomeClass::Connect, "refused");
    assert!(matches!(verdict(&refused), FinishVerdict::Retry { .. }));
}

#[test]
fn waits_double_up_to_the_cap_and_spread_over_the_whole_bound() {
    let mut rng = rng();
    for (attempts, bound) in [(1, 1), (2, 2), (5, 16), (20, 300), (u32::MAX, 300)] {
        let waits: Vec<Duration> = (0..2_000)
            .map(|_| match next(&Outcome::of_status(500), attempts, SECOND, &policy(), &mut rng) {
                FinishVerdict::Retry { wait } => wait,
                other => panic!("{other:?}"),
            })
            .collect();
        let bound = bound * SECOND;
        assert!(waits.iter().all(|w| *w <= bound));
        let low = waits.iter().filter(|w| **w < bound / 2).count();
        assert!((900..1_100).contains(&low), "{low} of 2000 in the lower half");
    }
}

#[test]
fn retry_after_is_a_least_wait_and_never_beyond_the_cap() {
    let wait = |after| {
        let outcome = Outcome { retry_after: Some(after), ..Outcome::of_status(429) };
        match next(&outcome, 1, Duration::ZERO, &policy(), &mut rng()) {
            FinishVerdict::Retry { wait } => wait,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(wait(60 * SECOND), 60 * SECOND);
    assert_eq!(wait(Duration::MAX), 300 * SECOND);
    assert!(wait(Duration::ZERO) <= SECOND);
}

#[test]
fn it_is_given_up_when_the_waits_add_up() {
    let outcome = Outcome::of_status(500);
    let almost = policy().give_up_after - Duration::from_nanos(1);
    let verdict = |waited| next(&outcome, 9, waited, &policy(), &mut rng());
    assert!(matches!(verdict(almost), FinishVerdict::Retry { .. }));
    let dead = verdict(policy().give_up_after);
    assert!(
        matches!(&dead, FinishVerdict::Dead { reason } if reason.contains("25.0 h")),
        "{dead:?}"
    );
}

#[test]
fn one_host_one_flight_and_in_order() {
    let mut s = schedule(policy());
    for (id, host) in [(3, 1), (1, 1), (2, 2)] {
        assert!(s.push(&due(id, "a", host), at(0)));
        assert!(s.push(&due(id, "a", host), at(0)), "twice is once");
    }
    assert!(!s.push(&due(9, "nobody", 1), at(0)));
    assert_eq!(s.next_due(at(0)), ids(&[1, 2]));
    assert_eq!(s.next_due(at(0)), []);
    assert_eq!(s.next_wake(), None);
    let FinishVerdict::Retry { wait } = end(&mut s, 1, &Outcome::of_status(500), at(1)) else {
        panic!("a retry")
    };
    assert_eq!(s.next_wake(), Some(at(1) + wait), "3 waits behind 1");
    assert_eq!(s.next_due(at(1) + wait), ids(&[1]));
    end(&mut s, 1, &Outcome::of_status(200), at(5));
    assert_eq!(s.next_due(at(5)), ids(&[3]));
}

#[test]
fn concurrency_is_bounded_per_receiver() {
    let mut s = schedule(policy());
    for host in 0..10 {
        s.push(&due(u64::from(host) + 1, "a", host), at(0));
        s.push(&due(u64::from(host) + 101, "b", host), at(0));
    }
    assert_eq!(s.next_due(at(0)), ids(&[1, 2, 3, 4, 101, 102, 103, 104]));
    end(&mut s, 2, &Outcome::of_status(204), at(0));
    assert_eq!(s.next_due(at(0)), ids(&[5]));
}

#[test]
fn a_settled_one_leaves_but_keeps_its_lane_while_it_flies() {
    let mut s = schedule(policy());
    for id in 1..=3 {
        s.push(&due(id, "a", 1), at(0));
    }
    assert_eq!(s.next_due(at(0)), ids(&[1]));
    s.settled(&ids(&[1, 2, 77]), at(0));
    s.check();
    assert_eq!(s.next_due(at(0)), [], "1 still flies");
    end(&mut s, 1, &Outcome::of_status(500), at(1));
    assert_eq!(s.next_due(at(1)), ids(&[3]));
    s.gone(DeliveryId(3), at(1));
    s.check();
    assert_eq!(s.next_wake(), None);
}

#[test]
fn a_postponed_one_is_offered_again_and_an_older_one_first() {
    let mut s = schedule(policy());
    s.push(&due(5, "a", 1), at(0));
    assert_eq!(s.next_due(at(0)), ids(&[5]));
    s.postponed(DeliveryId(5), NOT_YET_WAIT, at(0));
    s.check();
    assert_eq!(s.next_wake(), Some(at(1)));
    s.push(&due(4, "a", 1), at(0));
    assert_eq!(s.next_due(at(9)), ids(&[4]));
}

#[test]
fn a_redriven_one_is_due_now() {
    let mut s = schedule(policy());
    s.push(&due(1, "a", 1), at(0));
    s.next_due(at(0));
    let slow = Outcome { retry_after: Some(200 * SECOND), ..Outcome::of_status(503) };
    end(&mut s, 1, &slow, at(0));
    assert_eq!(s.next_due(at(100)), []);
    assert!(s.redriven(&due(1, "a", 1), at(100)));
    assert_eq!(s.next_due(at(100)), ids(&[1]));
    assert!(s.redriven(&due(2, "a", 2), at(100)));
    assert_eq!(s.next_due(at(100)), ids(&[2]));
}

#[test]
fn a_receiver_that_fails_is_left_alone_but_for_one_trial() {
    let mut s = schedule(policy());
    for host in 0..12 {
        s.push(&due(u64::from(host) + 1, "a", host), at(0));
    }
    s.push(&due(100, "b", 1), at(0));
    let refused = Outcome::failed(OutcomeClass::Connect, "refused");
    let mut failures = 0;
    while failures < BREAKER_FAILURES {
        for id in s.next_due(at(0)).into_iter().filter(|id| id.0 < 100) {
            end(&mut s, id.0, &refused, at(0));
            failures += 1;
        }
    }
    assert_eq!(s.status()["a"].breaker, BreakerState::Open);
    assert_eq!(s.status()["b"].breaker, BreakerState::Closed, "one does not starve the others");
    let mut now = at(0);
    for _ in 0..20 {
        let wake = s.next_wake().unwrap();
        assert!(wake > now && wake <= now + policy().backoff.cap, "{wake:?}");
        now = wake;
        let trial = s.next_due(now);
        assert_eq!(trial.len(), 1);
        assert_eq!(s.status()["a"].breaker, BreakerState::HalfOpen);
        assert_eq!(s.next_due(now + 3_600 * SECOND), []);
        end(&mut s, trial[0].0, &refused, now);
    }
    now = s.next_wake().unwrap();
    let trial = s.next_due(now);
    s.gone(trial[0], now);
    let trial = s.next_due(now);
    assert_eq!(trial.len(), 1, "a trial that was settled makes room for another");
    end(&mut s, trial[0].0, &Outcome::of_status(404), now);
    assert_eq!(s.status()["a"].breaker, BreakerState::Closed, "it answers");
    assert_eq!(s.next_due(now + 3_600 * SECOND).len(), 4);
}

#[test]
fn waiting_for_the_breaker_counts_towards_giving_up() {
    let mut s = schedule(Policy { concurrency: 1, ..policy() });
    let mut old = due(1, "a", 1);
    (old.attempts, old.waited) = (3, 10 * SECOND);
    s.push(&old, at(0));
    assert_eq!(s.next_due(at(100)), ids(&[1]));
    let outcome = Outcome { retry_after: Some(20 * SECOND), ..Outcome::of_status(503) };
    assert_eq!(end(&mut s, 1, &outcome, at(105)), FinishVerdict::Retry { wait: 120 * SECOND });
    // Scheduled for 125, kept waiting till 200: 75 more, and the attempts themselves do not count.
    assert_eq!(s.next_due(at(200)), ids(&[1]));
    assert_eq!(end(&mut s, 1, &outcome, at(210)), FinishVerdict::Retry { wait: 95 * SECOND });
    assert_eq!(s.next_due(at(210 + 26 * 3_600)), ids(&[1]));
    let verdict = end(&mut s, 1, &outcome, at(0));
    assert!(matches!(verdict, FinishVerdict::Dead { .. }), "{verdict:?}");
}

#[test]
fn what_does_not_fit_is_read_again() {
    let mut s = schedule(policy());
    let all: Vec<Due> = (1..=50).map(|id| due(id, "a", id as u8)).collect();
    for d in &all {
        s.push(d, at(0));
        s.check();
    }
    assert_eq!(s.status()["a"].queued, 20);
    assert!(s.status()["a"].more);
    let mut done = Vec::new();
    while done.len() < 50 {
        for read in s.reads() {
            let above = all.iter().filter(|d| Some(d.id) > read.after && !done.contains(&d.id));
            let page: Vec<Due> = above.take(read.limit).cloned().collect();
            s.read(&read, &page, at(0));
        }
        for id in s.next_due(at(0)) {
            end(&mut s, id.0, &Outcome::of_status(200), at(0));
            done.push(id);
        }
    }
    assert!(done.is_sorted(), "{done:?}");
    assert!(!s.status()["a"].more);
}

#[test]
fn what_nobody_pushed_is_found_by_a_rescan() {
    let mut s = schedule(policy());
    s.push(&due(5, "a", 1), at(0));
    assert_eq!(s.reads(), []);
    s.rescan(Rescan::New);
    let reads = s.reads();
    assert_eq!(reads.len(), 2);
    assert_eq!(s.reads(), [], "one read at a time");
    // Pushed while the read is under way: the page may be older than it.
    s.push(&due(7, "a", 3), at(0));
    s.read(&reads[0], &[due(4, "a", 2), due(5, "a", 1)], at(0));
    s.read_failed(&reads[1]);
    let again = s.reads();
    assert_eq!(again[0].after, Some(DeliveryId(5)));
    assert_eq!(again[1], reads[1]);
    s.read(&again[0], &[due(7, "a", 3)], at(0));
    assert_eq!(s.next_due(at(0)).len(), 3);
}

#[test]
fn what_cannot_be_said_is_dead_at_once_and_tells_nothing_of_the_receiver() {
    let mut s = schedule(Policy { concurrency: 10, ..policy() });
    push_hosts(&mut s, 7);
    for id in s.next_due(at(0)).iter().take(5) {
        end(&mut s, id.0, &Outcome::of_status(503), at(0));
    }
    assert_eq!(s.status()["a"].breaker, BreakerState::Open);
    let mute = Outcome::failed(OutcomeClass::Unsendable, "no word for it");
    let verdict = end(&mut s, 6, &mute, at(0));
    assert_eq!(verdict, FinishVerdict::Dead { reason: "unsendable: no word for it".to_owned() });
    assert_eq!(s.status()["a"].breaker, BreakerState::Open);
    end(&mut s, 7, &Outcome::of_status(200), at(0));
    assert_eq!(s.status()["a"].breaker, BreakerState::Closed);
}

/// One delivery about each of so many hosts.
fn push_hosts(s: &mut Schedule, hosts: u8) {
    for n in 1..=hosts {
        assert!(s.push(&due(n.into(), "a", n), at(0)));
    }
}

#[test]
fn a_batch_holds_heads_of_different_hosts_and_counts_as_one_attempt() {
    let mut s = schedule(Policy { concurrency: 2, batch_len_max: 3, ..policy() });
    for (id, host) in [(1, 1), (2, 1), (3, 2), (4, 3), (5, 4), (6, 5)] {
        s.push(&due(id, "a", host), at(0));
    }
    // 2 waits for 1, which is about the same host.
    assert_eq!(s.next_batches(at(0)), [ids(&[1, 3, 4]), ids(&[5, 6])]);
    assert_eq!(s.status()["a"].in_flight, 2);
    assert!(s.next_batches(at(1)).is_empty(), "both attempts are under way");
    for id in [1, 3, 4] {
        assert_eq!(end(&mut s, id, &Outcome::of_status(200), at(1)), FinishVerdict::Delivered);
    }
    assert_eq!(s.next_batches(at(1)), [ids(&[2])]);
}

#[test]
fn a_failing_batch_is_one_failure_and_a_trial_carries_one() {
    let mut s = schedule(Policy { concurrency: 1, batch_len_max: 20, ..policy() });
    push_hosts(&mut s, 20);
    for failures in 1..=u64::from(BREAKER_FAILURES) {
        assert_eq!(s.status()["a"].breaker, BreakerState::Closed);
        let now = at(1_000 * failures);
        let batch = s.next_batches(now).concat();
        assert_eq!(batch.len(), 20);
        for id in batch {
            end(&mut s, id.0, &Outcome::of_status(503), now);
        }
    }
    assert_eq!(s.status()["a"].breaker, BreakerState::Open);
    assert_eq!(s.next_batches(at(100_000)).concat().len(), 1);
}

#[test]
fn what_is_refused_together_is_tried_alone() {
    let mut s = schedule(Policy { concurrency: 1, batch_len_max: 5, ..policy() });
    push_hosts(&mut s, 3);
    let first = s.next_batches(at(0)).concat();
    assert_eq!(first, ids(&[1, 2, 3]));
    // Whose token it is, or what is gone, nobody can tell.
    let conflict = Outcome { highest_token: Some(Token(9)), ..Outcome::of_status(409) };
    for (n, outcome) in [(1, conflict), (2, Outcome::of_status(410)), (3, Outcome::of_status(400))]
    {
        let verdict = end(&mut s, n, &outcome, at(1));
        assert!(matches!(verdict, FinishVerdict::Retry { .. }), "{verdict:?}");
    }
    let mut seen = Vec::new();
    for _ in 0..3 {
        let batches = s.next_batches(at(100));
        assert_eq!(batches.concat().len(), 1, "{batches:?}");
        let id = batches[0][0];
        seen.push(id);
        let verdict = end(&mut s, id.0, &Outcome::of_status(410), at(100));
        assert_eq!(verdict, FinishVerdict::Dead { reason: "gone".to_owned() });
    }
    seen.sort_unstable();
    assert_eq!(seen, first);
}

#[test]
fn a_rate_limits_attempts_in_the_long_run_and_lets_bursts_through() {
    let rate = Rate::per_second(2, 3);
    let mut s = schedule(Policy { concurrency: 100, rate, queue_len_max: 100, ..policy() });
    push_hosts(&mut s, 20);
    let (mut now, mut started, mut first) = (at(0), 0, 0);
    while started < 20 {
        let batches = s.next_batches(now);
        if now == at(0) {
            first = batches.len();
        }
        started += batches.len();
        let wake = s.next_wake().unwrap_or(now);
        assert!(started == 20 || wake > now, "it would be woken for nothing");
        now = now.max(wake);
    }
    assert_eq!(first, 3);
    // Three at once, then one every half second.
    assert_eq!(now, Instant::from_millis(8_500));
}

#[test]
fn nothing_starts_in_a_borrowed_lane_and_a_busy_one_is_not_lent() {
    let mut s = schedule(policy());
    let hosts = [1, 2, 3].map(|n| HostId([n; 16]));
    s.push(&due(1, "a", 1), at(0));
    assert_eq!(s.borrow("a", &hosts), hosts[1..], "host 1 has something on its way");
    assert!(s.borrow("a", &hosts[1..]).is_empty(), "lent already");
    s.push(&due(2, "a", 2), at(0));
    s.check();
    assert_eq!(s.next_due(at(0)), ids(&[1]));
    assert_eq!(s.next_wake(), None);
    s.give_back("a", &hosts[1..]);
    s.check();
    assert_eq!(s.next_due(at(0)), ids(&[2]));
    assert!(s.borrow("nobody", &hosts).is_empty());
}

/// The model: which deliveries are pending in the store, in lanes; what flies.
#[derive(Debug, Default)]
struct Model {
    pending: BTreeMap<DeliveryId, Due>,
    flying: Vec<DeliveryId>,
    next: u64,
}

#[derive(Clone, Debug)]
enum Op {
    New { receiver: bool, host: u8, pushed: bool },
    Advance(u16),
    End(usize, u8),
    Settle(usize),
    Read,
    Rescan(bool),
    Postpone(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (any::<bool>(), 0u8..6, prop::bool::weighted(0.9))
            .prop_map(|(receiver, host, pushed)| Op::New { receiver, host, pushed }),
        4 => any::<u16>().prop_map(Op::Advance),
        8 => (any::<usize>(), 0u8..6).prop_map(|(n, o)| Op::End(n, o)),
        1 => any::<usize>().prop_map(Op::Settle),
        2 => Just(Op::Read),
        1 => any::<bool>().prop_map(Op::Rescan),
        1 => any::<usize>().prop_map(Op::Postpone),
    ]
}

impl Model {
    fn start(&mut self, s: &mut Schedule, now: Instant) {
        for id in s.next_batches(now).into_iter().flat_map(|batch| {
            assert!(!batch.is_empty() && batch.len() <= 3);
            batch
        }) {
            let due = &self.pending[&id];
            let lane = |other: &DeliveryId| {
                self.pending
                    .get(other)
                    .is_some_and(|o| (&o.receiver, o.host) == (&due.receiver, due.host))
            };
            assert!(!self.flying.iter().any(lane), "two in flight for one host");
            self.flying.push(id);
        }
        let flying_to = |r: &str| {
            self.flying
                .iter()
                .filter(|id| self.pending.get(id).is_some_and(|d| d.receiver == r))
                .count()
        };
        assert!(flying_to("a") <= 9 && flying_to("b") <= 9, "attempts are checked by `check`");
        s.check();
    }

    fn answer_reads(&self, s: &mut Schedule, now: Instant) {
        for read in s.reads() {
            let page: Vec<Due> = self
                .pending
                .values()
                .filter(|d| d.receiver == read.receiver && Some(d.id) > read.after)
                .take(read.limit)
                .cloned()
                .collect();
            s.read(&read, &page, now);
            s.check();
        }
    }

    /// Ends a flight as `begin_attempt` and the store would have it.
    fn end(
        &mut self,
        s: &mut Schedule,
        id: DeliveryId,
        status: u16,
        now: Instant,
        rng: &mut StdRng,
    ) {
        self.flying.retain(|f| *f != id);
        let Some(due) = self.pending.get(&id).cloned() else { return s.gone(id, now) };
        let blocked = self
            .pending
            .values()
            .any(|o| (&o.receiver, o.host) == (&due.receiver, due.host) && o.id < id);
        if blocked {
            return s.postponed(id, NOT_YET_WAIT, now);
        }
        let verdict = s.judge(id, &Outcome::of_status(status), now, rng);
        s.finished(id, &verdict, now);
        if !matches!(verdict, FinishVerdict::Retry { .. }) {
            self.pending.remove(&id);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn never_two_at_once_never_out_of_order_and_in_the_end_all(
        ops in proptest::collection::vec(op(), 1..200),
        seed in any::<u64>(),
        batch in 1usize..4,
        rate in prop_oneof![Just(None), Just(Rate::per_second(50, 2))],
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let small = Policy { concurrency: 3, queue_len_max: 6, batch_len_max: batch, rate, ..policy() };
        let mut s = Schedule::new(["a", "b"].map(|n| (n.to_owned(), small)).into());
        let mut model = Model::default();
        let mut now = at(0);
        for op in ops {
            match op {
                Op::New { receiver, host, pushed } => {
                    model.next += 1;
                    let due = due(model.next, if receiver { "a" } else { "b" }, host);
                    model.pending.insert(due.id, due.clone());
                    if pushed {
                        s.push(&due, now);
                    }
                }
                Op::Advance(ms) => now = now + Duration::from_millis(ms.into()),
                Op::End(n, outcome) if !model.flying.is_empty() => {
                    let id = model.flying[n % model.flying.len()];
                    let status = [200, 200, 404, 410, 500, 503][usize::from(outcome)];
                    model.end(&mut s, id, status, now, &mut rng);
                }
                Op::Settle(n) if !model.pending.is_empty() => {
                    let id = *model.pending.keys().nth(n % model.pending.len()).unwrap();
                    model.pending.remove(&id);
                    s.settled(&[id], now);
                }
                Op::Postpone(n) if !model.flying.is_empty() => {
                    let id = model.flying.remove(n % model.flying.len());
                    if model.pending.contains_key(&id) {
                        s.postponed(id, SECOND, now);
                    } else {
                        s.gone(id, now);
                    }
                }
                Op::Read => model.answer_reads(&mut s, now),
                Op::Rescan(all) => s.rescan(if all { Rescan::All } else { Rescan::New }),
                _ => {}
            }
            s.check();
            model.start(&mut s, now);
        }
        // Now everything answers 200: within a bounded time nothing is left.
        for round in 0..2_000 {
            for id in model.flying.clone() {
                model.end(&mut s, id, 200, now, &mut rng);
            }
            if model.pending.is_empty() {
                break;
            }
            s.rescan(if round % 10 == 0 { Rescan::All } else { Rescan::New });
            model.answer_reads(&mut s, now);
            now = s.next_wake().unwrap_or(now).max(now);
            model.start(&mut s, now);
        }
        prop_assert!(model.pending.is_empty(), "left: {:?}", model.pending);
    }
}
