//! The trade-off curve as a picture: detection time against mistakes.

use std::fmt::Write;

/// What one setting does to all hosts.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Its cost of a false suspicion, seconds; `None` if none is set, as a rate is wished for.
    pub cost_s: Option<f64>,
    /// λ_M.
    pub mistakes_per_day: f64,
    /// Mean detection time, seconds.
    pub mean_s: f64,
    /// What 99 % of crashes do not exceed, seconds.
    pub p99_s: f64,
}

/// Size of the picture, and where its axes end.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 830.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 440.0;
/// Room at the left end for settings without a mistake: a logarithm has no zero.
const NONE: f64 = 50.0;
const MEAN: &str = "#1f5fa8";
const P99: &str = "#b4501e";

/// Where values stand in the picture.
struct Scale {
    /// Powers of ten at both ends of the x axis.
    decades: (i32, i32),
    /// Some setting made no mistake.
    with_none: bool,
    top_s: f64,
    step_s: f64,
}

impl Scale {
    fn new(points: &[Point]) -> Self {
        let rates = || points.iter().map(|p| p.mistakes_per_day).filter(|m| *m > 0.0);
        let low = rates().fold(f64::INFINITY, f64::min);
        let high = rates().fold(0.0, f64::max);
        let decades = if high > 0.0 {
            let low = low.log10().floor().clamp(-9.0, 9.0) as i32;
            (low, (high.log10().ceil().clamp(-9.0, 9.0) as i32).max(low + 1))
        } else {
            (-2, 0)
        };
        let most = points.iter().map(|p| p.p99_s.max(p.mean_s)).fold(0.0, f64::max).max(1e-3);
        // Four to ten steps of 1, 2 or 5 times a power of ten.
        let power = 10f64.powf((most / 10.0).log10().floor());
        let step_s =
            [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|s| most / s <= 10.0);
        let step_s = step_s.unwrap_or(most);
        let with_none = points.iter().any(|p| p.mistakes_per_day <= 0.0);
        Self { decades, with_none, top_s: (most / step_s).ceil() * step_s, step_s }
    }

    fn x(&self, per_day: f64) -> f64 {
        let (low, high) = self.decades;
        if per_day <= 0.0 {
            return LEFT + NONE / 2.0;
        }
        let left = if self.with_none { LEFT + NONE } else { LEFT };
        let share = (per_day.log10() - f64::from(low)) / f64::from(high - low);
        left + share * (RIGHT - left)
    }

    fn y(&self, s: f64) -> f64 {
        BOTTOM - s / self.top_s * (BOTTOM - TOP)
    }
}

/// Draws the curve through `sweep`, by rising cost, and marks `present`. `title` is text, not markup.
pub fn draw(title: &str, sweep: &[Point], present: &Point) -> String {
    let mut all = sweep.to_vec();
    all.push(present.clone());
    let scale = Scale::new(&all);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fcfcfa\"/>\n"
    );
    text(&mut svg, LEFT, 28.0, "start", "Detection time against mistakes");
    text(&mut svg, LEFT, 48.0, "start", title);
    axes(&mut svg, &scale);
    curve(&mut svg, &scale, sweep, MEAN, |p| p.mean_s);
    curve(&mut svg, &scale, sweep, P99, |p| p.p99_s);
    for (color, s, name) in [(MEAN, present.mean_s, "mean"), (P99, present.p99_s, "p99")] {
        let (x, y) = (scale.x(present.mistakes_per_day), scale.y(s));
        // Nothing can go wrong when a String is written to, here and below.
        writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"7\" fill=\"none\" stroke=\"{color}\" \
             stroke-width=\"2.5\"><title>present setting: {name} {s:.3} s</title></circle>"
        )
        .unwrap_or_default();
    }
    legend(&mut svg);
    svg.push_str("</svg>\n");
    svg
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>")
        .unwrap_or_default();
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), color: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{color}\"/>"
    )
    .unwrap_or_default();
}

fn axes(svg: &mut String, scale: &Scale) {
    let steps = (scale.top_s / scale.step_s).round() as u32;
    for i in 0..=steps {
        let s = f64::from(i) * scale.step_s;
        line(svg, (LEFT, scale.y(s)), (RIGHT, scale.y(s)), "#e2e2dc");
        let digits = (-scale.step_s.log10().floor()).clamp(0.0, 3.0) as usize;
        text(svg, LEFT - 8.0, scale.y(s) + 4.0, "end", &format!("{s:.digits$} s"));
    }
    for decade in scale.decades.0..=scale.decades.1 {
        let x = scale.x(10f64.powi(decade));
        line(svg, (x, TOP), (x, BOTTOM), "#e2e2dc");
        let digits = (-decade).max(0) as usize;
        text(svg, x, BOTTOM + 20.0, "middle", &format!("{:.digits$}", 10f64.powi(decade)));
    }
    if scale.with_none {
        text(svg, scale.x(0.0), BOTTOM + 20.0, "middle", "none");
    }
    line(svg, (LEFT, TOP), (LEFT, BOTTOM), "#555");
    line(svg, (LEFT, BOTTOM), (RIGHT, BOTTOM), "#555");
    let middle = f64::midpoint(LEFT, RIGHT);
    text(svg, middle, BOTTOM + 44.0, "middle", "mistakes per host and day (λ_M)");
    let y = f64::midpoint(TOP, BOTTOM);
    writeln!(
        svg,
        "<text transform=\"translate(22 {y:.1}) rotate(-90)\" text-anchor=\"middle\">detection time \
         (T_D), seconds</text>"
    )
    .unwrap_or_default();
}

fn curve(svg: &mut String, scale: &Scale, sweep: &[Point], color: &str, of: fn(&Point) -> f64) {
    let place = |p: &Point| format!("{:.1},{:.1}", scale.x(p.mistakes_per_day), scale.y(of(p)));
    let path: Vec<String> = sweep.iter().map(place).collect();
    writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
        path.join(" ")
    )
    .unwrap_or_default();
    for p in sweep {
        let cost = p.cost_s.unwrap_or_default();
        let (x, y) = (scale.x(p.mistakes_per_day), scale.y(of(p)));
        writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"><title>\
             false_suspicion_cost {cost:.0} s: {:.3} s, {} mistakes a day</title></circle>",
            of(p),
            p.mistakes_per_day
        )
        .unwrap_or_default();
    }
}

fn legend(svg: &mut String) {
    let y = HEIGHT - 16.0;
    let entries = [(LEFT, MEAN, "mean"), (LEFT + 90.0, P99, "p99")];
    for (x, color, name) in entries {
        line(svg, (x, y - 4.0), (x + 24.0, y - 4.0), color);
        text(svg, x + 30.0, y, "start", name);
    }
    let x = LEFT + 190.0;
    writeln!(
        svg,
        "<circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"6\" fill=\"none\" stroke=\"#222\" stroke-width=\"2\"/>",
        y - 4.0
    )
    .unwrap_or_default();
    let words = "present setting; points: false_suspicion_cost from 100 s (right) to 10,000,000 s";
    text(svg, x + 14.0, y, "start", words);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_is_whole_has_units_and_marks_the_present() {
        let point = |cost_s, mistakes_per_day, mean_s| Point {
            cost_s: Some(cost_s),
            mistakes_per_day,
            mean_s,
            p99_s: mean_s * 3.0,
        };
        let sweep = [point(1e2, 30.0, 0.6), point(1e4, 0.5, 1.2), point(1e6, 0.0, 4.0)];
        let svg = draw("a <b> & c", &sweep, &point(1e5, 0.1, 2.0));
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        for wanted in [
            "a &lt;b&gt; &amp; c",
            "seconds</text>",
            "mistakes per host and day",
            ">none<",
            "present setting: mean 2.000 s",
            ">0.1<",
            ">100<",
        ] {
            assert!(svg.contains(wanted), "{wanted}\n{svg}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("script"));
        // One circle per point and curve, two for the present and one in the legend.
        assert_eq!(svg.matches("<circle").count(), 9);
    }

    #[test]
    fn without_any_mistake_it_is_drawn_too() {
        let p = Point { cost_s: None, mistakes_per_day: 0.0, mean_s: 0.5, p99_s: 0.5 };
        let svg = draw("quiet", std::slice::from_ref(&p), &p);
        assert!(svg.contains(">none<") && !svg.contains("NaN") && !svg.contains("inf"));
    }
}
