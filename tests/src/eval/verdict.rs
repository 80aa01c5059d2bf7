//! From points to figures: detection time at a given rate of mistakes, best settings, ratios.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::contest::{Hindsight, Point};
use super::fleet::Fleet;

/// Mistakes per host-day, mean and p99 of the detection time in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// λ_M.
    pub rate: f64,
    /// Mean T_D.
    pub mean_s: f64,
    /// Its 99th percentile.
    pub p99_s: f64,
}

/// What a rate of zero is taken for: less than half a mistake was seen.
const RATE_MIN: f64 = 1e-3;

/// The least mean detection time at no more than `rate` mistakes per host-day, along lines of samples.
/// Between two neighbours on a line the logarithm of the rate is interpolated. `None`: no setting makes
/// as few.
pub fn best_at(lines: &[Vec<Sample>], rate: f64) -> Option<Sample> {
    let log = |r: f64| r.max(RATE_MIN).ln();
    let crossings = lines.iter().flat_map(|line| line.windows(2)).filter_map(|pair| {
        let (a, b) = (pair[0], pair[1]);
        let (more, less) = if a.rate > b.rate { (a, b) } else { (b, a) };
        (more.rate > rate && less.rate <= rate).then(|| {
            let at = (log(rate) - log(less.rate)) / (log(more.rate) - log(less.rate));
            let between = |x: f64, y: f64| x + (y - x) * at.clamp(0.0, 1.0);
            Sample {
                rate,
                mean_s: between(less.mean_s, more.mean_s),
                p99_s: between(less.p99_s, more.p99_s),
            }
        })
    });
    let within = lines.iter().flatten().copied().filter(|s| s.rate <= rate);
    crossings.chain(within).min_by(|a, b| a.mean_s.total_cmp(&b.mean_s))
}

/// One detector's samples: of the mix, and of each family.
#[derive(Clone, Debug)]
pub struct Curve {
    /// What it is called.
    pub name: &'static str,
    /// Lines of settings, on the mix.
    pub mix: Vec<Vec<Sample>>,
    /// The same on each family.
    pub families: Vec<Vec<Vec<Sample>>>,
    /// Bytes of state of one host.
    pub state_bytes: usize,
}

fn sample(tally: &super::measure::Tally) -> Sample {
    Sample { rate: tally.mistakes_per_day(), mean_s: tally.mean_s(), p99_s: tally.quantile_s(0.99) }
}

impl Curve {
    /// From lines of points, one family after the other.
    pub fn new(name: &'static str, lines: &[Vec<Point>]) -> Self {
        let members = lines.iter().flatten().next().map_or(0, |p| p.families.len());
        let of = |f: &dyn Fn(&Point) -> Sample| {
            lines.iter().map(|line| line.iter().map(f).collect()).collect::<Vec<Vec<_>>>()
        };
        Self {
            name,
            mix: of(&|p| sample(&p.mix)),
            families: (0..members).map(|m| of(&|p| sample(&p.families[m]))).collect(),
            state_bytes: lines.iter().flatten().next().map_or(0, |p| p.state_bytes),
        }
    }

    /// The oracle's; its p99 is not known.
    pub fn oracle(fleet: &Fleet, samples: &[Hindsight]) -> Self {
        let plain = |rate: f64, mean_s: f64| Sample { rate, mean_s, p99_s: f64::NAN };
        let family =
            |m: usize| samples.iter().map(|s| plain(s.families[m].0, s.families[m].1)).collect();
        Self {
            name: "oracle",
            mix: vec![samples.iter().map(|s| plain(s.rate, s.mean_s)).collect()],
            families: (0..fleet.members.len()).map(|m| vec![family(m)]).collect(),
            state_bytes: 0,
        }
    }
}

/// The JSON line of one mix.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    eval: &'static str,
    mix: String,
    td_at_1_per_host_day: BTreeMap<String, Option<f64>>,
    td_at_0_1_per_host_day: BTreeMap<String, Option<f64>>,
    ratio_best_phi: Option<f64>,
    ratio_best_phi_p99: Option<f64>,
    ratio_oracle: Option<f64>,
    ratio_oracle_0_1: Option<f64>,
    worst_family_ratio: Option<f64>,
    worst_family: Option<String>,
    state_bytes: usize,
    /// Akka's settings as shipped make so many; their T_D is not one at 1 or 0.1 a day.
    akka_default_mistakes_per_host_day: f64,
    /// Steered to one mistake per host-day, the product made so many, at that mean T_D.
    steered_to_1_per_host_day: [f64; 2],
    host_days_counted: f64,
}

fn rounded(x: f64) -> f64 {
    (x * 1e4).round() / 1e4
}

fn ratio(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(rounded(a? / b?))
}

impl Verdict {
    /// Judges a mix.
    pub fn new(fleet: &Fleet, curves: &[Curve], akka_default: &Point, steered: &Point) -> Self {
        let at = |name: &str, rate: f64| {
            curves.iter().find(|c| c.name == name).and_then(|c| best_at(&c.mix, rate))
        };
        let mean = |name: &str, rate: f64| at(name, rate).map(|s| s.mean_s);
        let all_at = |rate: f64| {
            let mut all: BTreeMap<String, Option<f64>> = curves
                .iter()
                .map(|c| (c.name.to_owned(), mean(c.name, rate).map(rounded)))
                .collect();
            let default = sample(&akka_default.mix);
            all.insert("akka_default".to_owned(), Some(rounded(default.mean_s)));
            all
        };
        let worst = worst_family(fleet, curves);
        let p99 = |name: &str| at(name, 1.0).map(|s| s.p99_s);
        let days = f64::from(fleet.beats() - fleet.counted_from()) * super::fleet::INTERVAL_S;
        Self {
            eval: "detector",
            mix: fleet.mix.to_owned(),
            td_at_1_per_host_day: all_at(1.0),
            td_at_0_1_per_host_day: all_at(0.1),
            ratio_best_phi: ratio(mean("ours", 1.0), mean("akka_best", 1.0)),
            ratio_best_phi_p99: ratio(p99("ours"), p99("akka_best")),
            ratio_oracle: ratio(mean("ours", 1.0), mean("oracle", 1.0)),
            ratio_oracle_0_1: ratio(mean("ours", 0.1), mean("oracle", 0.1)),
            worst_family_ratio: worst.as_ref().map(|w| rounded(w.1)),
            worst_family: worst.map(|w| w.0),
            state_bytes: curves.iter().find(|c| c.name == "ours").map_or(0, |c| c.state_bytes),
            akka_default_mistakes_per_host_day: rounded(akka_default.mix.mistakes_per_day()),
            steered_to_1_per_host_day: [
                rounded(steered.mix.mistakes_per_day()),
                rounded(steered.mix.mean_s()),
            ],
            host_days_counted: rounded(fleet.hosts.len() as f64 * days / 86_400.0),
        }
    }
}

/// The family of the mix in which the best rival, tuned for it alone, is best against ours. A family in
/// which ours can't make as few mistakes as a rival can counts as infinitely worse.
fn worst_family(fleet: &Fleet, curves: &[Curve]) -> Option<(String, f64)> {
    let ours = curves.iter().find(|c| c.name == "ours")?;
    let rivals = || curves.iter().filter(|c| c.name != "ours" && c.name != "oracle");
    let members = fleet.members.iter().enumerate().filter(|(_, m)| m.weight > 0.0);
    members
        .filter_map(|(m, member)| {
            let best = rivals()
                .filter_map(|c| best_at(&c.families[m], 1.0))
                .map(|s| s.mean_s)
                .min_by(f64::total_cmp)?;
            let mine = best_at(&ours.families[m], 1.0).map_or(f64::INFINITY, |s| s.mean_s);
            Some((member.name.clone(), mine / best))
        })
        .max_by(|a, b| a.1.total_cmp(&b.1))
}

/// The tables of a mix, for people.
pub fn tables(fleet: &Fleet, curves: &[Curve]) -> String {
    let mut out = String::new();
    let rates = [10.0, 1.0, 0.3, 0.1];
    let days =
        f64::from(fleet.beats() - fleet.counted_from()) / 86_400.0 * super::fleet::INTERVAL_S;
    let mut line = |text: String| writeln!(out, "{text}").expect("a String takes everything");
    line(format!(
        "\n{} mix: {} hosts, {days:.1} days of each counted; T_D mean / p99 in seconds at so many\nmistakes per \
         host-day, every detector at its best setting for each figure",
        fleet.mix,
        fleet.hosts.len()
    ));
    let heads: Vec<String> = rates.iter().map(|r| format!("{r:>15}")).collect();
    line(format!("{:<12}{:>7}{}", "detector", "bytes", heads.concat()));
    for curve in curves {
        let cells: Vec<String> = rates
            .iter()
            .map(|rate| match best_at(&curve.mix, *rate) {
                Some(s) if s.p99_s.is_nan() => format!("{:>9.2}      ", s.mean_s),
                Some(s) => format!("{:>9.2} /{:>4.1}", s.mean_s, s.p99_s),
                None => format!("{:>15}", "-"),
            })
            .collect();
        line(format!("{:<12}{:>7}{}", curve.name, curve.state_bytes, cells.concat()));
    }
    let widths: Vec<usize> = fleet.members.iter().map(|m| m.name.len().max(6) + 2).collect();
    let cell = |text: String, w: usize| format!("{text:>w$}");
    line("\nmean T_D at 1 mistake per host-day (cellular at 100), each family alone".to_owned());
    let heads: Vec<String> =
        fleet.members.iter().zip(&widths).map(|(m, w)| cell(m.name.clone(), *w)).collect();
    line(format!("{:<12}{}", "detector", heads.concat()));
    for curve in curves {
        let cells: Vec<String> = fleet
            .members
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(m, (member, w))| {
                let rate = if member.name == "cellular" { 100.0 } else { 1.0 };
                let best = best_at(&curve.families[m], rate);
                cell(best.map_or("-".to_owned(), |s| format!("{:.2}", s.mean_s)), *w)
            })
            .collect();
        line(format!("{:<12}{}", curve.name, cells.concat()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(rate: f64, mean_s: f64) -> Sample {
        Sample { rate, mean_s, p99_s: 2.0 * mean_s }
    }

    #[test]
    fn between_two_settings_the_logarithm_of_the_rate_is_interpolated() {
        let line = vec![at(100.0, 1.0), at(1.0, 3.0)];
        let ten = best_at(std::slice::from_ref(&line), 10.0).unwrap();
        assert!((ten.mean_s - 2.0).abs() < 1e-9 && (ten.p99_s - 4.0).abs() < 1e-9);
        assert_eq!(best_at(&[line], 0.5), None, "no setting makes as few");
    }

    #[test]
    fn the_best_line_and_setting_win_and_fewer_mistakes_than_asked_for_are_welcome() {
        let slow = vec![at(10.0, 5.0), at(0.1, 6.0)];
        let lucky = vec![at(0.2, 1.5)];
        let best = best_at(&[slow, lucky], 1.0).unwrap();
        assert_eq!((best.rate, best.mean_s), (0.2, 1.5));
    }

    #[test]
    fn no_mistakes_at_all_count_as_next_to_none() {
        let line = vec![at(10.0, 1.0), at(0.0, 2.0)];
        let best = best_at(&[line], 1.0).unwrap();
        assert!((1.0..1.5).contains(&best.mean_s), "{best:?}");
    }
}
