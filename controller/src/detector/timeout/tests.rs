use super::*;
use heartwatch_common::time::micros;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const PATIENCE: Patience =
    Patience::new(100_000.0, Duration::from_millis(50), Duration::from_secs(30));
const SECOND: Duration = Duration::from_secs(1);
const GROUP: GroupId = GroupId(0);

/// All that one host has taught.
#[derive(Clone, Copy, Default)]
struct Taught {
    learned: Learned,
    histograms: Histograms,
}

impl Taught {
    fn learn(&mut self, x: f64, siblings: &mut Siblings, group: GroupId, rng: &mut StdRng) {
        let Self { learned, histograms } = self;
        let (ns, dice) = ((x * 1e9) as i64, rng.random());
        learned.expect(Instant(0), Instant(0), micros(SECOND));
        learned.learn(histograms, ns, &PATIENCE, siblings, group, dice);
    }

    fn longest(&self) -> Duration {
        self.learned.longest(&self.histograms)
    }

    fn given_time(&self) -> Duration {
        self.learned.given_time(&self.histograms)
    }
}

/// Beats once a second with the given overdue times; the margin after them.
fn run(
    host: &mut Taught,
    siblings: &mut Siblings,
    overdue_s: &[f64],
    rng: &mut StdRng,
) -> Duration {
    for x in overdue_s {
        host.learn(*x, siblings, GROUP, rng);
    }
    host.learned.margin(&PATIENCE).0
}

#[test]
fn a_quiet_host_earns_a_short_margin_and_a_stalling_one_a_long_one() {
    let (mut rng, mut siblings) = (StdRng::seed_from_u64(7), Siblings::default());
    let mut quiet = Taught::default();
    let cold = run(&mut quiet, &mut siblings, &[0.0], &mut rng);
    let warm = run(&mut quiet, &mut siblings, &vec![0.000_5; 20_000], &mut rng);
    assert!(cold > SECOND && cold < 4 * SECOND, "{cold:?}");
    assert!(warm < Duration::from_millis(800), "{warm:?}");

    let mut stalling = Taught::default();
    let mut xs = vec![0.000_5; 20_000];
    xs.iter_mut().step_by(500).for_each(|x| *x = 6.0);
    let margin = run(&mut stalling, &mut siblings, &xs, &mut rng);
    assert!(margin >= Duration::from_secs(7), "{margin:?}");
}

#[test]
fn a_new_host_starts_with_what_its_group_knows() {
    let (mut rng, mut siblings) = (StdRng::seed_from_u64(8), Siblings::default());
    let (far, near) = (siblings.add_group(), siblings.add_group());
    assert_eq!(first_margin(&mut siblings, far), first_margin(&mut siblings, near));
    // Twenty hosts each: far ones lose a beat in a hundred, and two in a row in ten thousand.
    for _ in 0..20 {
        let (mut one, mut other) = (Taught::default(), Taught::default());
        for k in 0..20_000u32 {
            let x = if k % 10_000 == 0 { 2.0 } else { f64::from(u8::from(k % 100 == 0)) };
            one.learn(x, &mut siblings, far, &mut rng);
            other.learn(0.0, &mut siblings, near, &mut rng);
        }
    }
    assert!(first_margin(&mut siblings, far) >= Duration::from_millis(2_220));
    assert!(first_margin(&mut siblings, near) < Duration::from_millis(500));
    // One of a group that nobody knows starts with the fleet's ways.
    let other = siblings.add_group();
    assert!(first_margin(&mut siblings, other) >= Duration::from_millis(2_220));
}

fn first_margin(siblings: &mut Siblings, group: GroupId) -> Duration {
    let mut new = Learned::default();
    new.expect(Instant(0), Instant(0), micros(SECOND));
    new.choose(&Histograms::default(), &PATIENCE, siblings.prior(group));
    new.margin(&PATIENCE).0
}

#[test]
fn trouble_widens_the_margin_at_once_and_calm_shortens_it_again() {
    let (mut rng, mut siblings) = (StdRng::seed_from_u64(9), Siblings::default());
    let mut host = Taught::default();
    // Every twenty minutes ten seconds of trouble, in which each beat is 0.5 to 2 s late.
    let mut xs = Vec::new();
    for k in 0..40_000u32 {
        xs.push(if k % 1_200 < 10 { 0.5 + f64::from(k % 4) * 0.5 } else { 0.000_5 });
    }
    xs.truncate(39_600);
    run(&mut host, &mut siblings, &xs, &mut rng);
    assert_eq!(host.learned.context(), Context::Calm);
    let calm = host.learned.margin(&PATIENCE).0;
    let troubled = run(&mut host, &mut siblings, &[0.8], &mut rng);
    assert_eq!(host.learned.context(), Context::Disturbed);
    assert!(troubled >= 2 * SECOND && troubled >= calm, "{calm:?} {troubled:?}");
    let still = run(&mut host, &mut siblings, &[0.000_5; 15], &mut rng);
    assert_eq!(
        (host.learned.context(), still),
        (Context::Disturbed, host.learned.chosen(Context::Disturbed))
    );
    run(&mut host, &mut siblings, &[0.000_5], &mut rng);
    assert_eq!(host.learned.context(), Context::Calm);
    assert!(host.learned.chosen(Context::Calm) <= host.learned.chosen(Context::Disturbed));
}

#[test]
fn the_margin_is_the_edge_that_costs_least_by_hand() {
    // n = 10,000 beats, of which 100 were overdue by about 0.5 s: beyond edge .35 lies 1 %, beyond .75
    // nothing but the prior. C = 1e5: staying below .75 would cost 1,000 s.
    let (mut learned, mut histograms) = (Learned::default(), Histograms::default());
    learned.beats[0] = 10_000;
    learned.expect(Instant(0), Instant(0), micros(SECOND));
    histograms.calm[4] = counter::counting(100.0, 0);
    learned.choose(&histograms, &PATIENCE, &Prior::built_in());
    let by_hand = (0..EDGES)
        .map(|j| {
            let tail: f32 = if j <= 4 { counter::value(histograms.calm[4]) } else { 0.0 };
            let pi = Prior::built_in().beyond(Context::Calm, j);
            EDGE_MILLI[j] as f32 / 1e3 + 1e5 * (tail + 0.5) / (10_000.0 + 0.5 / pi)
        })
        .collect::<Vec<_>>();
    let best = (0..EDGES).min_by(|a, b| by_hand[*a].total_cmp(&by_hand[*b])).unwrap();
    assert_eq!(usize::from(learned.margins[0]), best, "{by_hand:?}");
    assert!(EDGE_MILLI[best] >= 750);
    // 1 % lies beyond .35: the most overdue twentieth begins at the first edge.
    assert_eq!(learned.unusual, 0);
}

#[test]
fn a_level_is_drawn_to_the_one_above_by_hand() {
    // π = 1e-4 at edge 1.12; a host with 5,000 beats and two beyond: (2 + .5) / (5,000 + .5/1e-4).
    let prior = Prior::built_in();
    let chance = prior.chance(Context::Calm, 6, 2.0, 5_000.0);
    assert!((chance - 2.5 / 10_000.0).abs() < 1e-7, "{chance}");
    // One that has not beaten yet says what its siblings say.
    assert!((prior.chance(Context::Calm, 6, 0.0, 0.0) - 1e-4).abs() < 1e-9);
}

#[test]
fn the_fleet_prior_follows_what_the_fleet_does() {
    let mut siblings = Siblings::default();
    for i in 0..1_000_000u32 {
        siblings.learn(GROUP, Context::Calm, (i % 10_000 == 0).then_some(9));
    }
    let fleet = siblings.fleet();
    let beyond: Vec<f32> = (0..EDGES).map(|j| fleet.beyond(Context::Calm, j)).collect();
    assert!((0.5e-4..2e-4).contains(&beyond[9]), "{beyond:?}");
    assert!(beyond[10] < 1e-5, "{beyond:?}");
    assert!(beyond.windows(2).all(|w| w[1] <= w[0]), "{beyond:?}");
}

#[test]
fn groups_beyond_the_last_share_the_one_without_a_name() {
    let mut siblings = Siblings::default();
    let ids: Vec<_> = (0..siblings::GROUPS_MAX + 5).map(|_| siblings.add_group()).collect();
    assert_eq!(ids.iter().filter(|g| **g == GroupId(0)).count(), 6);
}

#[test]
fn logarithmic_counters_are_right_on_average() {
    let mut rng = StdRng::seed_from_u64(3);
    let runs = 400;
    let mut sum = 0.0;
    for _ in 0..runs {
        let mut c = 0;
        for _ in 0..1_000 {
            c = counter::counting(counter::value(c) + 1.0, rng.random());
        }
        sum += f64::from(counter::value(c));
    }
    let mean = sum / f64::from(runs);
    assert!((950.0..1_050.0).contains(&mean), "{mean}");
}

#[test]
fn decay_forgets_slowly() {
    let (mut learned, mut histograms) = (Learned::default(), Histograms::default());
    learned.beats[0] = 1_000_000;
    histograms.calm[9] = counter::counting(1_000.0, 0);
    let mut rng = StdRng::seed_from_u64(5);
    // One memory's worth of decays leaves 1/e.
    for _ in 0..(MEMORY_BEATS / (DECAY_MASK + 1) as f32) as u32 {
        learned.decay(&mut histograms, rng.random());
    }
    let left = counter::value(histograms.calm[9]) / 1_000.0;
    assert!((0.2..0.6).contains(&left), "{left}");
    let beats = f64::from(learned.beats()) / 1e6;
    assert!((beats - 0.368).abs() < 0.01, "{beats}");
}

#[test]
fn the_expectation_ignores_clock_offset_and_announced_gaps() {
    let mut learned = Learned::default();
    let skewed = |s: u64| Instant::from_millis(s + 5_000_000);
    let gap = Duration::from_millis(870);
    let expected = learned.expect(Instant::from_millis(1_000), skewed(990), micros(gap));
    assert_eq!(expected, Instant::from_millis(1_870));
    // A beat that took 40 ms longer than usual moves the expectation by its own delay…
    let late = learned.expect(Instant::from_millis(1_910), skewed(1_860), micros(gap));
    assert_eq!(late, Instant::from_millis(2_780));
    // …and one that came as usual is not expected sooner than the slow average says.
    let usual = learned.expect(Instant::from_millis(2_740), skewed(2_730), micros(gap));
    assert!(usual >= Instant::from_millis(3_610) && usual < Instant::from_millis(3_612));
}

#[test]
fn edges_rise_for_every_interval_and_bins_lie_between_them() {
    for interval_us in [10_000, 100_000, 250_000, 1_000_000, 10_000_000, 1_800_000_000] {
        for j in 1..EDGES {
            let (low, high) = (edge_us(j - 1, interval_us), edge_us(j, interval_us));
            assert!(high > low, "{interval_us} {j}");
            assert_eq!(bin_of(low, interval_us), Some(j - 1));
            assert_eq!(bin_of(high - 1, interval_us), Some(j - 1));
        }
        assert_eq!(bin_of(edge_us(0, interval_us) - 1, interval_us), None);
        assert_eq!(bin_of(u64::MAX, interval_us), Some(BINS - 1));
    }
}

#[test]
fn edges_that_are_weighed_are_those_that_are_kept() {
    for interval_us in [10_000, 100_000, 999_999, 1_000_001, 10_000_000, 1_800_000_000] {
        for (j, s) in edges_s(interval_us).into_iter().enumerate() {
            let exact = edge_us(j, interval_us) as f64 / 1e6;
            assert!((f64::from(s) - exact).abs() <= 2e-6 + exact * 1e-6, "{interval_us} {j}: {s}");
        }
    }
}

#[test]
fn three_bytes_count_to_their_end_and_stay_there() {
    let mut n = U24::default();
    n.set(U24::MAX + 7);
    assert_eq!(n.get(), 16_777_215);
    n.set(65_537);
    assert_eq!(n.get(), 65_537);
}

#[test]
fn the_longest_silence_is_remembered_for_weeks() {
    let (mut rng, mut siblings) = (StdRng::seed_from_u64(11), Siblings::default());
    let mut host = Taught::default();
    assert_eq!(host.longest(), Duration::ZERO);
    run(&mut host, &mut siblings, &[0.0, 4.0, 0.0, 0.5], &mut rng);
    assert_eq!(host.longest(), Duration::from_millis(4_400));
    assert_eq!(host.given_time(), Duration::from_millis(13_200), "it lost beats in a row");
    let mut other = Taught::default();
    run(&mut other, &mut siblings, &[0.0, 1.0, 0.0], &mut rng);
    assert_eq!(other.given_time(), 2 * Duration::from_millis(1_120), "it lost one");
    run(&mut host, &mut siblings, &vec![0.0; 10 * 86_400], &mut rng);
    assert_eq!(host.longest(), Duration::from_millis(4_400), "after ten days");
    run(&mut host, &mut siblings, &vec![0.0; 50 * 86_400], &mut rng);
    assert_eq!(host.longest(), Duration::ZERO, "after two months");
}
