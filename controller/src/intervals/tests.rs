use proptest::prelude::*;

use super::*;

fn class(weight: f64, min_ms: u64, max_ms: u64) -> Class {
    Class {
        name: format!("w{weight}"),
        labels: BTreeMap::new(),
        weight,
        min: Duration::from_millis(min_ms),
        max: Duration::from_millis(max_ms),
    }
}

fn rules(budget: f64, classes: Vec<Class>) -> Rules {
    Rules { budget, change_max: 2.0, classes }
}

fn s(n: u64) -> Instant {
    Instant::from_millis(1_000 * n)
}

fn ms(of: &[Duration]) -> Vec<u64> {
    of.iter().map(|i| i.as_millis() as u64).collect()
}

/// The largest of many levels that fits: slow and obviously right.
fn naive(classes: &[Class], counts: &[u64], budget: f64) -> Vec<f64> {
    let at = |level: f64| -> Vec<f64> {
        let rate = |c: &Class| {
            (level * c.weight).clamp(1.0 / c.max.as_secs_f64(), 1.0 / c.min.as_secs_f64())
        };
        classes.iter().map(rate).collect()
    };
    let cost = |level| -> f64 { at(level).iter().zip(counts).map(|(r, n)| r * *n as f64).sum() };
    let (mut low, mut high) = (0.0, 1e7);
    if cost(high) <= budget {
        return at(high);
    }
    for _ in 0..200 {
        let middle = f64::midpoint(low, high);
        if cost(middle) <= budget { low = middle } else { high = middle }
    }
    at(low)
}

#[test]
fn a_million_hosts_share_a_budget_by_weight_within_their_bounds() {
    let classes = [class(1.0, 1_000, 30_000), class(4.0, 500, 5_000), class(1.0, 1_000, 1_000)];
    // 1,000/s go to the third whatever happens; 9,000 are left for 80,000·λ + 4·5,000·λ: λ = 0.09.
    let intervals = solve(&classes, &[80_000, 5_000, 1_000], 10_000.0);
    assert_eq!(ms(&intervals), [11_112, 2_778, 1_000]);
    // Room for all: the shortest.
    assert_eq!(ms(&solve(&classes, &[10, 10, 10], 10_000.0)), [1_000, 500, 1_000]);
    // No room at all: the longest.
    assert_eq!(ms(&solve(&classes, &[800_000, 5_000, 1_000], 10.0)), [30_000, 5_000, 1_000]);
    assert_eq!(ms(&solve(&classes, &[0, 0, 0], 10.0)), [1_000, 500, 1_000]);
}

#[test]
fn a_fleet_that_doubles_gets_twice_the_interval_in_small_steps_and_keeps_it() {
    let mut a = Assigner::new(rules(1_000.0, vec![class(1.0, 1_000, 30_000)]));
    a.step(&[0], s(0));
    assert_eq!(ms(&a.intervals()), [1_000]);
    a.step(&[1_800], s(5));
    assert_eq!(ms(&a.intervals()), [2_000], "the first hosts are served at once");
    let mut last = a.intervals()[0];
    for tick in 2..14 {
        a.step(&[3_600], s(5 * tick));
        let now = a.intervals()[0];
        let most = last.as_secs_f64() * 2f64.powf(5.0 / 60.0) + 1e-6;
        assert!(now > last && now.as_secs_f64() <= most, "{last:?} {now:?}");
        last = now;
    }
    assert_eq!(ms(&a.intervals()), [4_000], "one minute later");
    assert!(!a.status().exceeded && a.status().planned_per_s <= 1_000.0);
    // Joins and leaves of a few change nothing.
    for (tick, hosts) in (14..).zip([3_650, 3_500, 3_700, 3_560, 3_999, 3_201]) {
        a.step(&[hosts], s(5 * tick));
        assert_eq!(ms(&a.intervals()), [4_000], "{hosts}");
    }
    a.step(&[4_100], s(105));
    assert!(a.intervals()[0] > Duration::from_secs(4));
}

#[test]
fn a_stopped_controller_makes_no_leap_afterwards() {
    let mut a = Assigner::new(rules(100.0, vec![class(1.0, 1_000, 60_000)]));
    a.step(&[90], s(0));
    a.step(&[9_000], s(3_600));
    assert!(a.intervals()[0] < Duration::from_millis(1_200));
}

#[test]
fn what_cannot_be_kept_is_said() {
    let mut a = Assigner::new(rules(10.0, vec![class(1.0, 1_000, 10_000)]));
    a.step(&[1_000], s(0));
    let status = a.status();
    assert!(status.exceeded && status.planned_per_s == 100.0);
    assert_eq!(status.classes[0].interval_ms, 10_000.0);
}

#[test]
fn acks_come_often_enough_to_hear_of_changes() {
    let assigned = Assigned::fixed(Duration::ZERO, 10);
    assert_eq!(assigned.get(3), (Duration::ZERO, 10));
    for (interval_s, cadence) in [(1, 10), (6, 10), (10, 6), (45, 1), (90, 1)] {
        assigned.set(2, Duration::from_secs(interval_s));
        assert_eq!(assigned.get(2), (Duration::from_secs(interval_s), cadence));
    }
    assigned.set(usize::MAX, Duration::from_secs(1));
    assert_eq!(assigned.get(255), (Duration::ZERO, 10), "any byte is some class");
}

prop_compose! {
    fn classes()(
        of in prop::collection::vec((1u32..100, 10u64..5_000, 1u64..100, 0u64..2_000_000), 1..8)
    ) -> (Vec<Class>, Vec<u64>) {
        of.iter().map(|(w, min, k, n)| (class(f64::from(*w) / 10.0, *min, min * k), *n)).unzip()
    }
}

proptest! {
    #[test]
    fn the_budget_is_kept_and_used_up((classes, counts) in classes(), budget in 1.0..3e6f64) {
        let intervals = solve(&classes, &counts, budget);
        let longest: Vec<Duration> = classes.iter().map(|c| c.max).collect();
        let feasible = rate(&counts, &longest) <= budget;
        prop_assert!(!feasible || rate(&counts, &intervals) <= budget * (1.0 + 1e-9));
        for ((c, i), r) in classes.iter().zip(&intervals).zip(naive(&classes, &counts, budget)) {
            prop_assert!((c.min..=c.max).contains(i));
            // Rounded up by at most a millisecond.
            let wanted = 1.0 / r;
            prop_assert!(i.as_secs_f64() >= wanted * (1.0 - 1e-6) - 1e-9, "{:?} {}", i, wanted);
            prop_assert!(i.as_secs_f64() <= wanted * (1.0 + 1e-6) + 1.001e-3, "{:?} {}", i, wanted);
        }
    }

    #[test]
    fn more_hosts_never_get_shorter_intervals(
        (classes, counts) in classes(), budget in 1.0..3e6f64, more in 0u64..100_000, at in 0usize..8
    ) {
        let before = solve(&classes, &counts, budget);
        let mut counts = counts;
        let at = at % counts.len();
        counts[at] += more;
        let after = solve(&classes, &counts, budget);
        prop_assert!(before.iter().zip(&after).all(|(b, a)| a >= b));
    }

    #[test]
    fn steps_are_bounded_end_and_do_not_swing(
        (classes, counts) in classes(), budget in 1.0..3e6f64, factors in prop::collection::vec(0.3..3.0f64, 1..4)
    ) {
        let mut a = Assigner::new(rules(budget, classes));
        let (mut now, mut last) = (s(1), None::<Vec<Duration>>);
        let most = 2f64.powf(5.0 / 60.0) * (1.0 + 1e-4);
        for f in factors {
            let counts: Vec<u64> = counts.iter().map(|n| (*n as f64 * f) as u64).collect();
            let mut ways = vec![0i8; counts.len()];
            // 100 to 1 takes under seven minutes.
            for tick in 0..110 {
                now = now + Duration::from_secs(5);
                a.step(&counts, now);
                let present = a.intervals();
                if let Some(last) = &last {
                    for ((p, l), way) in present.iter().zip(last).zip(&mut ways) {
                        let ratio = p.as_secs_f64() / l.as_secs_f64();
                        prop_assert!(ratio <= most && ratio >= 1.0 / most, "{}", ratio);
                        let this = (*p > *l) as i8 - (*p < *l) as i8;
                        prop_assert!(this == 0 || *way == 0 || *way == this, "it swings");
                        *way = if this == 0 { *way } else { this };
                        prop_assert!(tick < 100 || this == 0, "it does not settle");
                    }
                }
                last = Some(present);
            }
            let status = a.status();
            prop_assert!(status.exceeded || status.planned_per_s <= budget * (1.0 + 1e-4));
        }
    }
}
