use super::*;

const DAY: usize = 86_400;

/// One series per host, a day of seconds each.
fn hosts(family: Family, count: u64) -> Vec<Vec<u32>> {
    (0..count).map(|seed| generate(family, seed, DAY, 1.0)).collect()
}

fn loss(series: &[u32]) -> f64 {
    series.iter().filter(|&&d| d == LOST).count() as f64 / series.len() as f64
}

/// The delay in seconds below which this share of those that arrive stays.
fn percentile(series: &[u32], share: f64) -> f64 {
    let mut delays: Vec<u32> = series.iter().copied().filter(|&d| d != LOST).collect();
    delays.sort_unstable();
    f64::from(delays[((delays.len() - 1) as f64 * share) as usize]) * 1e-6
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0.0), |(sum, n), v| (sum + v, n + 1.0));
    sum / n
}

#[test]
fn the_same_seed_gives_the_same_series_and_another_another() {
    for family in Family::ALL {
        let series = generate(family, 5, 5_000, 1.0);
        assert_eq!(series.len(), 5_000);
        assert_eq!(series, generate(family, 5, 5_000, 1.0), "{}", family.name());
        assert_eq!(series[..1_000], generate(family, 5, 1_000, 1.0)[..]);
        assert_ne!(series, generate(family, 6, 5_000, 1.0), "{}", family.name());
    }
    assert_ne!(generate(Family::Lan, 5, 10, 1.0), generate(Family::Stall, 5, 10, 1.0));
}

#[test]
fn lan_is_quick_and_hardly_ever_loses() {
    let all = hosts(Family::Lan, 20);
    for series in &all {
        let median = percentile(series, 0.5);
        assert!((0.09e-3..0.24e-3).contains(&median), "{median}");
        assert!(percentile(series, 0.999) < 2e-3);
        assert!(loss(series) < 2e-4);
    }
    // The mean of a log-uniform loss is (1e-4 − 1e-6) / ln 100 = 2.15e-5.
    let loss = mean(all.iter().map(|s| loss(s)));
    assert!((0.5e-5..5e-5).contains(&loss), "{loss}");
}

#[test]
fn wan_has_a_base_and_one_spike_in_a_hundred() {
    let all = hosts(Family::Wan, 20);
    let mut bases: Vec<f64> = Vec::new();
    for series in &all {
        let (base, median) = (percentile(series, 0.0), percentile(series, 0.5));
        assert!((5e-3..151e-3).contains(&base) && median < base * 1.15, "{base} {median}");
        assert!(percentile(series, 0.98) < base * 1.7, "queueing is a small part of the base");
        // 99.1 % is within the spikes: at least 20 ms above the base.
        assert!(percentile(series, 0.991) > base + 20e-3);
        assert!(percentile(series, 1.0) < 20.0 + 0.2 + base);
        assert!((0.5e-4..4e-3).contains(&loss(series)), "{}", loss(series));
        bases.push(base);
    }
    assert!(bases.iter().any(|&b| b < 15e-3) && bases.iter().any(|&b| b > 60e-3), "{bases:?}");
    // Above 1 s: 0.01 · (x_min / 1)^1.6 with x_min 20 to 100 ms, so 1.6 to 22 a day.
    let long =
        mean(all.iter().map(|s| s.iter().filter(|&&d| d != LOST && d > 1_200_000).count() as f64));
    assert!((1.6..22.0).contains(&long), "{long}");
}

#[test]
fn ge_loses_in_bursts() {
    let mut bursts_mean = Vec::new();
    for series in hosts(Family::Ge, 20) {
        let share = loss(&series);
        assert!((0.008..0.115).contains(&share), "{share}");
        let bursts = series.chunk_by(|a, b| (*a == LOST) == (*b == LOST)).filter(|c| c[0] == LOST);
        let lengths: Vec<usize> = bursts.map(<[u32]>::len).collect();
        let length = mean(lengths.iter().map(|&l| l as f64));
        assert!((1.0..4.4).contains(&length), "{length}");
        // Memoryless: beyond two, a burst goes on with the same probability as beyond one.
        let beyond = |n| lengths.iter().filter(|&&l| l > n).count() as f64;
        if beyond(1) > 300.0 {
            let (first, second) = (beyond(1) / beyond(0), beyond(2) / beyond(1));
            assert!((first - second).abs() < 0.12, "{first} {second}");
        }
        assert!(percentile(&series, 0.999) < 2e-3);
        bursts_mean.push(length);
    }
    assert!(bursts_mean.iter().any(|&l| l < 1.8) && bursts_mean.iter().any(|&l| l > 3.2));
}

#[test]
fn a_stall_is_one_late_beat_and_a_gap_of_the_freeze() {
    let mut freezes = 0;
    for seed in 0..20 {
        let series = generate(Family::Stall, seed, 4 * DAY, 1.0);
        let late: Vec<usize> =
            (0..series.len()).filter(|&k| series[k] != LOST && series[k] > 500_000).collect();
        assert!((4 * 20..=4 * 288).contains(&late.len()), "{} in four days", late.len());
        for pair in late.windows(2) {
            let apart = pair[1] - pair[0];
            assert!((303..=3_609).contains(&apart), "{apart}");
        }
        for &k in &late {
            let delay = f64::from(series[k]) * 1e-6;
            // The freeze began in the second before beat k.
            assert!((2.0..8.01).contains(&delay), "{delay}");
            // Lost are those planned before the freeze's end and within 0.4 s after it.
            let lost = series[k + 1..].iter().take_while(|&&d| d == LOST).count() as f64;
            assert!(((delay - 0.01 + 0.4).floor() - lost).abs() <= 1.0, "{delay} {lost}");
            let next = k + 1 + lost as usize;
            if next < series.len() {
                let arrives = (next - k) as f64 + f64::from(series[next]) * 1e-6;
                assert!(arrives > delay + 0.3, "{arrives} after {delay}");
            }
        }
        freezes += late.len();
        assert!(percentile(&series, 0.99) < 2e-3, "otherwise a lan");
    }
    // Periods log-uniform in 300 to 3600 s: (1/300 − 1/3600) / ln 12 = 1.23e-3 a second.
    assert!((4_000..12_000).contains(&freezes), "{freezes}");
}

#[test]
fn a_stall_of_less_than_an_interval_may_pass_between_two_beats() {
    let series = generate(Family::Stall, 3, 5_000, 10.0);
    let late = series.iter().filter(|&&d| d != LOST && d > 500_000).count();
    // Some 50,000 s: a freeze of 5.5 s contains a beat every other time.
    assert!((4..100).contains(&late), "{late}");
    assert!(series.iter().all(|&d| d == LOST || d < 8_010_000));
    assert!(loss(&series) < 0.02);
}

#[test]
fn shift_jumps_about_every_two_hours() {
    let mut jumps = 0;
    for series in hosts(Family::Shift, 20) {
        let share = loss(&series);
        assert!(share < 0.005, "{share}");
        // Levels by the quickest fifth of ten minutes, which congestion hardly moves.
        let levels: Vec<f64> = series.chunks(600).map(|c| percentile(c, 0.2)).collect();
        let base = levels.iter().copied().fold(f64::MAX, f64::min);
        assert!((5e-3..0.6).contains(&base), "{base}");
        jumps += levels.windows(2).filter(|w| (w[1] - w[0]).abs() > 0.02).count();
    }
    // Twelve a day of which two in three exceed 20 ms; some take two windows, congestion adds some.
    assert!((100..500).contains(&jumps), "{jumps}");
}

#[test]
fn shift_has_congestion_in_which_delays_grow_and_beats_are_lost() {
    let all = hosts(Family::Shift, 40);
    // Two minutes whose slowest tenth is 100 ms slower than their quickest are congested, or hold a jump.
    let mut slow_chunks = 0;
    for series in &all {
        let spread: Vec<f64> =
            series.chunks(120).map(|c| percentile(c, 0.9) - percentile(c, 0.1)).collect();
        slow_chunks += spread.iter().filter(|&&s| s > 0.1).count();
    }
    // 8 episodes of 300 s a day on each of 40 hosts are 800 chunks of 120 s; not all are as bad.
    assert!((300..1_300).contains(&slow_chunks), "{slow_chunks}");
    let loss = mean(all.iter().map(|s| loss(s)));
    // 1/37 of the time at 2.5 % and else 2.1e-4 on average: about 9e-4.
    assert!((4e-4..2e-3).contains(&loss), "{loss}");
}
