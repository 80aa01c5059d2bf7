use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// Phi as the source computes it, both branches.
fn phi(t: f64, mean: f64, deviation: f64) -> f64 {
    let y = (t - mean) / deviation;
    let e = (-y * (1.5976 + 0.070566 * y * y)).exp();
    if t > mean { -(e / (1.0 + e)).log10() } else { -(1.0 - 1.0 / (1.0 + e)).log10() }
}

fn at(at_s: f64) -> Arrival {
    Arrival { seq: 0, sent_s: 0.0, gap_s: 0.0, at_s }
}

fn near(got: f64, expected: f64) {
    assert!((got - expected).abs() < 1e-6, "{got} instead of {expected}");
}

#[test]
fn phi_by_hand() {
    // y = (1.2 − 1.0) / 0.1 = 2; 2 · (1.5976 + 0.070566 · 4) = 3.759728; e^−3.759728 = 0.0232901;
    // e / (1 + e) = 0.0227600; −log10 = 1.642828.
    near((phi(1.2, 1.0, 0.1) * 1e4).round() / 1e4, 1.6428);
    // y = 0: e = 1 and phi = log10 2 from either side.
    near(phi(1.0, 1.0, 0.1), 2f64.log10());
    near(phi(1.0 + 1e-12, 1.0, 0.1), 2f64.log10());
    // y = −1: −1 · 1.668166 → e = 5.30243; 1 − 1 / 6.30243 = 0.841331; −log10 = 0.075033.
    near((phi(0.9, 1.0, 0.1) * 1e4).round() / 1e4, 0.0750);
}

#[test]
fn the_reach_is_where_phi_meets_the_threshold() {
    for threshold in [0.01, 0.1, 0.3, 0.302, 1.0, 3.0, 8.0, 10.0, 16.0, 40.0, 100.0, 300.0] {
        let y = reach_of(threshold);
        let met = phi(y, 0.0, 1.0);
        assert!((met / threshold - 1.0).abs() < 1e-9, "{threshold}: {met} at {y}");
    }
    // Beyond what a floating e can hold the source's phi is infinite, and the cubic goes on.
    let y = reach_of(1e4);
    near(y * (1.5976 + 0.070566 * y * y) / (1e4 * std::f64::consts::LN_10), 1.0);
}

#[test]
fn the_first_beat_is_judged_by_the_bootstrap() {
    // Intervals 0.75 and 1.25: mean 1, deviation 0.25. For 8: ln(10^8 − 1) = 18.420681, and
    // y · (1.5976 + 0.070566 · y²) is that at y = 5.22599: 8.34904 + 10.07164.
    let mut d = AkkaPhi::new(1.0, 3.0, 8.0);
    let deadline = d.observe(&at(7.0));
    let y = reach_of(8.0);
    near((y * 1e5).round() / 1e5, 5.22599);
    near(deadline, 7.0 + 1.0 + 3.0 + 0.25 * y);
    near(phi(deadline - 7.0, 4.0, 0.25), 8.0);
}

#[test]
fn an_interval_that_exceeded_the_threshold_is_not_recorded() {
    let mut d = AkkaPhi::new(1.0, 0.0, 8.0);
    let first = d.observe(&at(0.0));
    near(first, 1.0 + 0.25 * reach_of(8.0));
    // Just too late: not recorded, so the next deadline is as far away as the first was.
    near(d.observe(&at(first)), first + first);
    // In time, 2 s: recorded. Intervals 0.75, 1.25, 2: mean 4/3; Σx² = 0.5625 + 1.5625 + 4 = 6.125;
    // variance 6.125 / 3 − 16 / 9 = 0.263889; deviation 0.513701.
    let second = d.observe(&at(first + 2.0));
    near(second - first - 2.0, 4.0 / 3.0 + 0.263_888_9f64.sqrt() * reach_of(8.0));
}

#[test]
fn a_deviation_is_never_taken_for_less_than_a_tenth() {
    let mut d = AkkaPhi::new(1.0, 3.0, 8.0);
    let last = (0..1_500).map(|k| d.observe(&at(f64::from(k)))).last().unwrap();
    near(last, 1_499.0 + 1.0 + 3.0 + 0.1 * reach_of(8.0));
}

#[test]
fn after_many_beats_and_outages_the_moments_are_those_of_the_last_thousand_recorded() {
    let mut d = AkkaPhi::new(1.0, 200.0, 8.0);
    let mut rng = StdRng::seed_from_u64(5);
    let mut now = 0.0;
    let mut deadline = d.observe(&at(now));
    let mut recorded = vec![0.75, 1.25];
    for k in 0..100_500 {
        let interval = match k % 1_111 {
            0 => 150.0,
            1 => 5_000.0,
            _ => 1.0 + 0.2 * (rng.random::<f64>() - rng.random::<f64>()),
        };
        now += interval;
        if now < deadline {
            recorded.push(interval);
        }
        deadline = d.observe(&at(now));
    }
    let last = &recorded[recorded.len() - WINDOW..];
    let mean = last.iter().sum::<f64>() / WINDOW as f64;
    let variance = last.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / WINDOW as f64;
    near(deadline - now, mean + 200.0 + variance.sqrt().max(0.1) * reach_of(8.0));
}
