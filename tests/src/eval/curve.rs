//! The curves of a mix as a picture: the least mean detection time at each rate of mistakes.

use std::fmt::Write;

use super::verdict::{Curve, Sample, best_at};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 720.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 450.0;
/// Mistakes per host-day at both ends.
const RATES: (f64, f64) = (0.1, 100.0);
/// Seconds at the top.
const TOP_S: f64 = 20.0;
/// Points of a curve.
const POINTS: u32 = 60;
/// Colours that people with any colour vision can tell apart (Okabe and Ito, 2008).
const COLOURS: [&str; 9] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999933", "#666666",
    "#000000",
];

fn x(rate: f64) -> f64 {
    let share = (rate / RATES.0).ln() / (RATES.1 / RATES.0).ln();
    LEFT + share * (RIGHT - LEFT)
}

fn y(s: f64) -> f64 {
    BOTTOM - (s / TOP_S).min(1.0) * (BOTTOM - TOP)
}

fn path(curve: &Curve, of: impl Fn(&Sample) -> f64) -> String {
    let mut points = String::new();
    for i in 0..=POINTS {
        let rate = RATES.0 * (RATES.1 / RATES.0).powf(f64::from(i) / f64::from(POINTS));
        let Some(s) = best_at(&curve.mix, rate).map(|s| of(&s)).filter(|s| *s <= TOP_S) else {
            continue;
        };
        write!(points, "{:.1},{:.1} ", x(rate), y(s)).expect("a String takes everything");
    }
    points.trim_end().to_owned()
}

/// Draws all curves. Solid: the mean; dashed, for the first two: the 99th percentile.
pub fn draw(mix: &str, curves: &[Curve]) -> String {
    let mut out = String::new();
    let mut put = |text: String| out.push_str(&text);
    put(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         fill=\"#fff\"/>\n<text x=\"{LEFT}\" y=\"30\" font-size=\"16\">Detection time against mistakes, {mix} \
         mix; every detector at its best setting</text>\n"
    ));
    for rate in [0.1, 1.0, 10.0, 100.0] {
        let at = x(rate);
        put(format!(
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{BOTTOM}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{rate}</text>\n",
            BOTTOM + 20.0
        ));
    }
    for s in (0..=4).map(|i| f64::from(i) * TOP_S / 4.0) {
        let at = y(s);
        put(format!(
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{RIGHT}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{s} s</text>\n",
            LEFT - 8.0,
            at + 4.0
        ));
    }
    put(format!(
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">mistakes per host-day (λ_M)</text>\n",
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 45.0
    ));
    for (i, (curve, colour)) in curves.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let wide = if i == 0 { 3 } else { 2 };
        put(format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{wide}\"/>\n",
            path(curve, |s| s.mean_s)
        ));
        if i < 2 {
            put(format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-dasharray=\"5 4\"/>\n",
                path(curve, |s| s.p99_s)
            ));
        }
        let at = TOP + 20.0 + 22.0 * i as f64;
        put(format!(
            "<line x1=\"740\" y1=\"{at}\" x2=\"765\" y2=\"{at}\" stroke=\"{colour}\" \
             stroke-width=\"{wide}\"/><text x=\"772\" y=\"{:.1}\">{}</text>\n",
            at + 4.0,
            curve.name
        ));
    }
    put("<text x=\"740\" y=\"290\">solid: mean T_D</text>\
         <text x=\"740\" y=\"310\">dashed: its p99</text>\n</svg>\n"
        .to_owned());
    out
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
        let first_y = |c: &Curve| {
            let path = path(c, |s| s.mean_s);
            path.split([' ', ',']).nth(1).unwrap().parse::<f64>().unwrap()
        };
        assert!(first_y(&low) > first_y(&high), "y grows downwards");
        let svg = draw("synthetic", &[low, high]);
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(!svg.contains("NaN") && svg.contains(">ours<"));
    }
}
