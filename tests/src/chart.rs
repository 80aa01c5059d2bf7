//! Lines in a picture: the one SVG writer of the evaluation and of the benchmarks.

use std::fmt::Write;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 720.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 450.0;
/// Colours that people with any colour vision can tell apart (Okabe and Ito, 2008).
const COLOURS: [&str; 9] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999933", "#666666",
    "#000000",
];

/// How an axis goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly.
    Linear,
    /// By powers.
    Logarithmic,
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// Under it; empty: nothing.
    pub title: String,
    /// Both ends; a logarithmic one begins above zero.
    pub range: (f64, f64),
    /// How it goes.
    pub scale: Scale,
    /// Where grid lines are, and what stands at them.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// Where a value stands, 0 to 1; ends are not passed.
    fn share(&self, value: f64) -> f64 {
        let (low, high) = self.range;
        let share = match self.scale {
            Scale::Linear => (value - low) / (high - low),
            Scale::Logarithmic => (value.max(low) / low).ln() / (high / low).ln(),
        };
        share.clamp(0.0, 1.0)
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + self.share(value) * (RIGHT - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        BOTTOM - self.share(value) * (BOTTOM - TOP)
    }
}

/// A line.
#[derive(Clone, Debug)]
pub struct Line {
    /// In the legend; one that has none takes the colour of the line before it and is dashed.
    pub name: Option<String>,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
}

/// A picture.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Above it.
    pub title: String,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// The first is drawn strongest.
    pub lines: Vec<Line>,
    /// Below the legend.
    pub notes: Vec<String>,
}

fn clean(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Chart {
    /// As SVG.
    pub fn svg(&self) -> String {
        let mut out = String::new();
        let mut put = |text: String| writeln!(out, "{text}").expect("a String takes everything");
        put(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             fill=\"#fff\"/>\n<text x=\"{LEFT}\" y=\"30\" font-size=\"16\">{}</text>",
            clean(&self.title)
        ));
        for (at, words) in &self.x.ticks {
            let at = self.x.x(*at);
            put(format!(
                "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{BOTTOM}\" stroke=\"#ddd\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                BOTTOM + 20.0,
                clean(words)
            ));
        }
        for (at, words) in &self.y.ticks {
            let at = self.y.y(*at);
            put(format!(
                "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{RIGHT}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                at + 4.0,
                clean(words)
            ));
        }
        put(format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(LEFT, RIGHT),
            BOTTOM + 45.0,
            clean(&self.x.title)
        ));
        let (mut named, mut colour) = (0, COLOURS[0]);
        for line in &self.lines {
            let place = |(x, y): &(f64, f64)| format!("{:.1},{:.1}", self.x.x(*x), self.y.y(*y));
            let points: Vec<String> = line.points.iter().map(place).collect();
            let wide = if named == 0 { 3 } else { 2 };
            let dashes = match &line.name {
                Some(name) => {
                    colour = COLOURS[named % COLOURS.len()];
                    let at = TOP + 20.0 + 22.0 * named as f64;
                    put(format!(
                        "<line x1=\"740\" y1=\"{at}\" x2=\"765\" y2=\"{at}\" stroke=\"{colour}\" \
                         stroke-width=\"{wide}\"/><text x=\"772\" y=\"{:.1}\">{}</text>",
                        at + 4.0,
                        clean(name)
                    ));
                    named += 1;
                    format!(" stroke-width=\"{wide}\"")
                }
                None => " stroke-dasharray=\"5 4\"".to_owned(),
            };
            put(format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\"{dashes}/>",
                points.join(" ")
            ));
        }
        for (i, note) in self.notes.iter().enumerate() {
            let at = TOP + 40.0 + 22.0 * named as f64 + 20.0 * i as f64;
            put(format!("<text x=\"740\" y=\"{at:.1}\">{}</text>", clean(note)));
        }
        out.push_str("</svg>\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_in_the_picture_and_keep_their_colours() {
        let axis = |scale| Axis {
            title: "a < b".to_owned(),
            range: (1.0, 100.0),
            scale,
            ticks: vec![(1.0, "1".to_owned()), (100.0, "100".to_owned())],
        };
        let line = |name: Option<&str>, y| Line {
            name: name.map(str::to_owned),
            points: vec![(0.0, y), (10.0, y), (1e9, f64::INFINITY)],
        };
        let chart = Chart {
            title: "one & two".to_owned(),
            x: axis(Scale::Logarithmic),
            y: axis(Scale::Linear),
            lines: vec![line(Some("one"), 1.0), line(None, 50.5), line(Some("two"), 0.0)],
            notes: vec!["solid: this".to_owned()],
        };
        let svg = chart.svg();
        // x: log₁₀(10) of two decades is the middle; 1 is at the bottom, 50.5 half-way.
        assert!(svg.contains("points=\"70.0,450.0 395.0,450.0 720.0,60.0\""), "{svg}");
        assert!(svg.contains("395.0,255.0") && svg.contains("one &amp; two"));
        assert!(!svg.contains("NaN") && !svg.contains("inf") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches(&format!("stroke=\"{}\"", COLOURS[0])).count(), 3);
    }
}
