//! Growth curves from the JSON lines of benchmarks: what grows with the fleet, and what does not.

use anyhow::{Context, Result};
use serde_json::Value;

use super::structures::SIZES;
use crate::chart::{Axis, Chart, Line, Scale};

/// Contestants as the legend calls them.
const SHOWN: [(&str, &str); 7] = [
    ("rows", "LRU rows (ours)"),
    ("rows_each", "…filed at every beat"),
    ("wheel", "timing wheel"),
    ("wheel_each", "…filed at every beat"),
    ("heap", "binary heap"),
    ("heap_each", "…filed at every beat"),
    ("scan", "full scan"),
];

/// The last line of a benchmark among JSON lines; what is no JSON is skipped.
pub fn line_of(text: &str, bench: &str) -> Option<Value> {
    let lines = text.lines().rev().filter_map(|l| serde_json::from_str::<Value>(l.trim()).ok());
    lines.into_iter().find(|v| v.get("bench").and_then(Value::as_str) == Some(bench))
}

fn axis_of_hosts() -> Axis {
    let tick = |(hosts, name): (usize, &str)| (hosts as f64, name.to_uppercase());
    Axis {
        title: "hosts".to_owned(),
        range: (SIZES[0].0 as f64, SIZES[SIZES.len() - 1].0 as f64),
        scale: Scale::Logarithmic,
        ticks: SIZES.map(tick).to_vec(),
    }
}

/// Powers of ten around all values.
fn axis_of(lines: &[Line], unit: &str) -> Axis {
    let values = || lines.iter().flat_map(|l| &l.points).map(|p| p.1).filter(|v| *v > 0.0);
    let low = values().fold(f64::INFINITY, f64::min).log10().floor().clamp(-6.0, 12.0);
    let high = values().fold(0.0, f64::max).log10().ceil().clamp(low + 1.0, 13.0);
    let tick = |power: i32| (10f64.powi(power), format!("{} {unit}", 10f64.powi(power)));
    Axis {
        title: String::new(),
        range: (10f64.powf(low), 10f64.powf(high)),
        scale: Scale::Logarithmic,
        ticks: (low as i32..=high as i32).map(tick).collect(),
    }
}

fn chart(line: &Value, title: &str, unit: &str, of: impl Fn(&str, &str) -> Option<f64>) -> Chart {
    let lines: Vec<Line> = SHOWN
        .iter()
        .map(|(who, name)| Line {
            name: Some((*name).to_owned()),
            points: SIZES
                .iter()
                .filter_map(|(hosts, size)| Some((*hosts as f64, of(who, size)?)))
                .collect(),
        })
        .collect();
    drawn(line, title, unit, lines)
}

fn drawn(line: &Value, title: &str, unit: &str, lines: Vec<Line>) -> Chart {
    let cpu = line.get("cpu").and_then(Value::as_str).unwrap_or_default();
    Chart {
        title: title.to_owned(),
        x: axis_of_hosts(),
        y: axis_of(&lines, unit),
        lines,
        notes: vec![cpu.to_owned()],
    }
}

/// What `observe` measures, and how its figures are called.
const OBSERVED: [(&str, &str); 3] = [
    ("a beat: look-up and observe", "ns"),
    ("judging, a beat", "judge_ns"),
    ("a bare change of 64 bytes", "limit"),
];

/// What a beat costs the detector.
fn observed(line: &Value) -> Chart {
    let lines = OBSERVED.map(|(name, key)| Line {
        name: Some(name.to_owned()),
        points: SIZES
            .iter()
            .filter_map(|(hosts, size)| {
                Some((*hosts as f64, line.get(format!("{key}_{size}"))?.as_f64()?))
            })
            .collect(),
    });
    drawn(line, "What a beat costs the detector, CPU time", "ns", lines.into())
}

/// Pictures by file name, from the JSON lines in `text`; that of `observe` if it was measured.
pub fn pictures(text: &str) -> Result<Vec<(&'static str, String)>> {
    let line = line_of(text, "structures").context("there is no line of `structures`")?;
    let figure = |key: String| line.get(&key).and_then(Value::as_f64);
    let cost =
        chart(&line, "Who is overdue? CPU time a beat, sweeps included", "ns", |who, size| {
            let beat = figure(format!("{who}_beat_ns_{size}"))?;
            Some(beat + figure(format!("{who}_sweep_ns_{size}"))?)
        });
    let pause =
        chart(&line, "Longest pause when a tenth of the fleet falls silent", "µs", |who, size| {
            figure(format!("{who}_pause_us_{size}"))
        });
    let mut pictures =
        vec![("structures-cost.svg", cost.svg()), ("structures-pause.svg", pause.svg())];
    pictures.extend(line_of(text, "observe").map(|line| ("observe.svg", observed(&line).svg())));
    Ok(pictures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_line_of_a_benchmark_is_drawn() {
        let text = "noise\n{\"bench\":\"structures\",\"rows_beat_ns_10k\":1}\n\
                    {\"bench\":\"structures\",\"cpu\":\"x\",\"rows_beat_ns_10k\":5.0,\
                    \"rows_sweep_ns_10k\":5.0,\"rows_beat_ns_4m\":50,\"rows_sweep_ns_4m\":50,\
                    \"scan_pause_us_1m\":900}\n{\"bench\":\"other\"}\n";
        let pictures = pictures(text).unwrap();
        // 10 ns at 10 K to 100 ns at 4 M: from the lower left to the upper right corner.
        assert!(pictures[0].1.contains("points=\"70.0,450.0 720.0,60.0\""), "{}", pictures[0].1);
        assert!(pictures.iter().all(|(_, svg)| !svg.contains("NaN") && !svg.contains("inf")));
        assert!(super::pictures("{}").is_err());
        let observed = "{\"bench\":\"observe\",\"ns_10k\":10,\"ns_4m\":100,\"limit_10k\":10}";
        let pictures = super::pictures(&format!("{text}{observed}")).unwrap();
        assert_eq!(pictures[2].0, "observe.svg");
        assert!(pictures[2].1.contains("points=\"70.0,450.0 720.0,60.0\""), "{}", pictures[2].1);
    }
}
