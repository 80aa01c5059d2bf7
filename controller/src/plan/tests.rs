use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn given(loss: Loss) -> Given {
    Given {
        hosts: 1e6,
        interval: ms(1_000),
        loss,
        delay_spread: ms(5),
        round_trip: ms(1),
        mtbf: Duration::from_secs(365 * 86_400),
        failover: Duration::from_secs(30),
        stall: ms(100),
        ipv6: false,
        settings: Settings {
            timeout_min: ms(25),
            timeout_max: Duration::from_secs(30),
            false_suspicion_cost_s: 1e5,
            probes: 3,
            probe_spacing: ms(200),
            confirm_max: Duration::from_secs(20),
            peers: 3,
            ack_every: 10,
            shards: 0,
        },
    }
}

fn near(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-3 * b.abs().max(1e-12), "{a} is not {b}");
}

#[test]
fn a_clean_fleet_by_hand() {
    let p = plan(&given(Loss::Independent(0.0)));
    near(p.beats_per_s, 1e6);
    // One ack for 120 beats: more than 4,000/s of each of two shards.
    near(p.datagrams_per_s, 1e6 + 1e6 / 120.0);
    // 80 + 8 + 20 + 38 = 146 bytes on the wire.
    near(p.bits_per_s_in, 1.168e9);
    near(p.bits_per_s_out, 1.168e9 / 120.0);
    near(p.cores_busy, 1e6 * BEAT_NS * 1e-9);
    near(p.memory_bytes, BASE_BYTES + 1e6 * HOST_BYTES);
    // 25 ms, no beat is lost; crash in the middle of a gap; three probes at 200 ms.
    assert_eq!((p.margin_s, p.lost_beats_borne), (0.025, 0));
    near(p.suspect_p50_s, 0.5 + 0.025 + 0.000_5);
    near(p.down_p50_s, 1.1255);
    near(p.down_p99_s, 1.6155);
    assert_eq!((p.false_suspects_per_year, p.false_downs_per_year), (0.0, 0.0));
    let shards = (1e6 * BEAT_NS * 1e-9 / 0.7).ceil();
    near(p.buffer_bytes_per_shard, 1e6 / shards * 0.1 * 832.0);
    // 31.1255 s in a year of 31,536,000 s.
    near(1.0 - p.availability, 9.8698e-7);
    near(p.downtime_s_per_host_year, 31.147);
    // Of few hosts an ack for each tenth beat, as configured.
    let few = plan(&Given { hosts: 40_000.0, ..given(Loss::Independent(0.0)) });
    near(few.datagrams_per_s, 44_000.0);
    let six = plan(&Given { ipv6: true, ..given(Loss::Independent(0.0)) });
    near(six.bits_per_s_in, 1e6 * 8.0 * 166.0);
}

#[test]
fn one_datagram_in_a_hundred_lost_by_itself() {
    let p = plan(&given(Loss::Independent(0.01)));
    // M + 10⁵·p^(k+1): 1,000.0 | 11.0 | 2.1 | 3.0: two lost beats are borne.
    assert_eq!(p.lost_beats_borne, 2);
    near(p.margin_s, 2.025);
    // Three in a row: 10⁻⁶ of 86,400 beats, 0.0864 a host-day. The simulation saw 248 in 3,000.
    near(p.false_suspects_per_year / 365.25 / 1e6, 0.0864);
    let simulated = 248.0 / 3_000.0;
    assert!((p.false_suspects_per_year / 365.25 / 1e6 / simulated - 1.0).abs() < 0.1);
    // Three rounds of probes at most, and more of them in fact: none in a million host-days.
    assert!(p.false_downs_per_year / 365.25 < 1e-9);
}

#[test]
fn unheard_by_hand() {
    let p = Loss::Independent(0.1);
    // A trip fails with 0.19, by a peer with 0.3439.
    near(p.unheard(1.0, 0.6, 3.0, 6.0), 0.19f64.powi(6) * 0.3439f64.powi(6));
    let mean = Duration::from_secs(2);
    let bursts = Loss::Bursts { share: 0.05, mean, longest: None };
    near(bursts.unheard(5.0, 4.0, 3.0, 6.0), (-2.0f64).exp());
    let short = Loss::Bursts { share: 0.05, mean, longest: Some(Duration::from_secs(8)) };
    assert_eq!(short.unheard(5.0, 4.0, 3.0, 6.0), 0.0, "no burst lasts for nine seconds");
    assert_eq!(short.unheard(9.0, 1.0, 3.0, 6.0), 0.0);
}

#[test]
fn misses_in_bursts_by_hand() {
    let mean = Duration::from_secs(2);
    let bursts = Loss::Bursts { share: 0.05, mean, longest: None };
    // 0.025 bursts a second; the integral of e^(−u/2) over a second is 2·(1 − e^(−1/2)) = 0.78694.
    near(bursts.misses(0, 1.0), 0.025 * 0.786_94);
    near(bursts.misses(4, 1.0), 0.025 * 0.786_94 * (-2.0f64).exp());
    // All beats in bursts are lost: summed over every place in a burst, their share is that of bursts.
    let all: f64 = (0..200).map(|k| bursts.misses(k, 1.0)).sum();
    near(all, 0.05);
    let longest = Some(Duration::from_secs(4));
    let short = Loss::Bursts { share: 0.05, mean, longest };
    let all: f64 = (0..10).map(|k| short.misses(k, 0.5)).sum();
    near(all, 0.05);
    assert_eq!(short.misses(8, 0.5), 0.0);
}

/// The formula for bursts is a bound: the simulated ones last from 0.5 to 4 s, evenly.
#[test]
fn bursts_are_no_worse_in_the_simulation_than_the_formula_says() {
    let mean = Duration::from_millis(2_250);
    let p = plan(&given(Loss::Bursts { share: 0.05, mean, longest: None }));
    let per_host_day = p.false_suspects_per_year / 365.25 / 1e6;
    let simulated = 2_084.0 / 3_000.0;
    assert!(per_host_day > simulated, "{per_host_day} {simulated}");
    let downs = p.false_downs_per_year / 365.25;
    assert!(downs > 1.0, "{downs} in a million host-days, simulated about 1");
    let longest = Some(Duration::from_secs(4));
    let p = plan(&given(Loss::Bursts { share: 0.05, mean, longest }));
    assert_eq!(p.false_downs_per_year, 0.0, "who is silent for 12 s is in no burst of 4 s");
}

#[test]
fn a_wanted_detection_time_gives_the_longest_interval_that_keeps_it() {
    let clean = given(Loss::Independent(0.0));
    // 0.99·η + 0.025 + 0.0005 + 0.6 = 5: η = 4.4186.
    assert_eq!(interval_for(&clean, Duration::from_secs(5)), Some(ms(4_418)));
    for loss in [Loss::Independent(0.001), Loss::Independent(0.02)] {
        for wanted in [1_500, 3_000, 10_000, 60_000] {
            let g = given(loss);
            let Some(interval) = interval_for(&g, ms(wanted)) else { continue };
            let at = |interval| plan(&Given { interval, ..g.clone() }).down_p99_s;
            assert!(at(interval) <= wanted as f64 / 1e3, "{loss:?} {wanted}");
        }
    }
    assert_eq!(interval_for(&clean, ms(300)), None, "the probes alone take 600 ms");
}

#[test]
fn more_loss_never_promises_more() {
    let mut last = plan(&given(Loss::Independent(0.0)));
    for p in [1e-6, 1e-4, 1e-3, 0.01, 0.05, 0.2] {
        let next = plan(&given(Loss::Independent(p)));
        assert!(next.margin_s >= last.margin_s && next.availability <= last.availability);
        last = next;
    }
}

#[test]
fn every_figure_is_explained() {
    let json = serde_json::to_value(plan(&given(Loss::Independent(0.01)))).unwrap();
    let shown: Vec<&str> = FIGURES.iter().map(|f| f.key).collect();
    for key in json.as_object().unwrap().keys() {
        let known =
            shown.contains(&key.as_str()) || ["hosts", "lost_beats_borne"].contains(&&**key);
        assert!(known, "{key}");
    }
    assert!(shown.iter().all(|key| json.get(key).is_some_and(|v| v.is_number())));
}
