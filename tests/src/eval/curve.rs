//! The curves of a mix as a picture: the least mean detection time at each rate of mistakes.

use super::verdict::{Curve, Sample, best_at};
use crate::chart::{Axis, Chart, Line, Scale};

/// Mistakes per host-day at both ends.
const RATES: (f64, f64) = (0.1, 100.0);
/// Seconds at the top.
const TOP_S: f64 = 20.0;
/// Points of a curve.
const POINTS: u32 = 60;

fn points(curve: &Curve, of: impl Fn(&Sample) -> f64) -> Vec<(f64, f64)> {
    let rates =
        (0..=POINTS).map(|i| RATES.0 * (RATES.1 / RATES.0).powf(f64::from(i) / f64::from(POINTS)));
    rates
        .filter_map(|rate| Some((rate, of(&best_at(&curve.mix, rate)?))))
        .filter(|(_, s)| *s <= TOP_S)
        .collect()
}

/// Draws all curves. Solid: the mean; dashed, for the first two: the 99th percentile.
pub fn draw(mix: &str, curves: &[Curve]) -> String {
    let mut lines = Vec::new();
    for (i, curve) in curves.iter().enumerate() {
        let name = Some(curve.name.to_owned());
        lines.push(Line { name, points: points(curve, |s| s.mean_s) });
        if i < 2 {
            lines.push(Line { name: None, points: points(curve, |s| s.p99_s) });
        }
    }
    let tick = |at: f64, unit: &str| (at, format!("{at}{unit}"));
    let chart = Chart {
        title: format!(
            "Detection time against mistakes, {mix} mix; every detector at its best setting"
        ),
        x: Axis {
            title: "mistakes per host-day (λ_M)".to_owned(),
            range: RATES,
            scale: Scale::Logarithmic,
            ticks: [0.1, 1.0, 10.0, 100.0].map(|at| tick(at, "")).to_vec(),
        },
        y: Axis {
            title: String::new(),
            range: (0.0, TOP_S),
            scale: Scale::Linear,
            ticks: [0.0, 5.0, 10.0, 15.0, 20.0].map(|at| tick(at, " s")).to_vec(),
        },
        lines,
        notes: vec!["solid: mean T_D".to_owned(), "dashed: its p99".to_owned()],
    };
    chart.svg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_better_detector_runs_lower_and_nothing_leaves_the_picture() {
        let curve = |name, s: f64| Curve {
            name,
            mix: vec![vec![
                Sample { rate: 1_000.0, mean_s: s / 2.0, p99_s: s },
                Sample { rate: 0.01, mean_s: s, p99_s: 100.0 * s },
            ]],
            families: Vec::new(),
            state_bytes: 0,
        };
        let (low, high) = (curve("ours", 2.0), curve("other", 9.0));
        let first_y = |c: &Curve| points(c, |s| s.mean_s)[0].1;
        assert!(first_y(&low) < first_y(&high));
        let svg = draw("synthetic", &[low, high]);
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(!svg.contains("NaN") && svg.contains(">ours<"));
    }
}
