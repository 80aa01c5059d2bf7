//! Small text for terminals: tables, lengths of time, foreign words made harmless.

use std::io::{self, Write};
use std::time::Duration;

use heartwatch_common::time::Wall;
use serde_json::{Map, Value};

/// Most characters of an event's details on one line.
const DETAIL_LEN_MAX: usize = 400;
/// Most entries of a list on one line.
const LIST_LEN_MAX: usize = 5;

/// A length of time, two figures at most: `250ms`, `3.2s`, `5m 12s`, `3h 20m`, `12d 4h`.
pub(super) fn human(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0 => format!("{}ms", d.as_millis()),
        1..60 => {
            let tenths = d.as_millis() / 100;
            if tenths.is_multiple_of(10) {
                format!("{s}s")
            } else {
                format!("{}.{}s", s, tenths % 10)
            }
        }
        60..3_600 => pair(s / 60, "m", s % 60, "s"),
        3_600..86_400 => pair(s / 3_600, "h", s % 3_600 / 60, "m"),
        _ => pair(s / 86_400, "d", s % 86_400 / 3_600, "h"),
    }
}

fn pair(big: u64, big_unit: &str, small: u64, small_unit: &str) -> String {
    match small {
        0 => format!("{big}{big_unit}"),
        _ => format!("{big}{big_unit} {small}{small_unit}"),
    }
}

/// [`human`] for milliseconds.
pub(super) fn human_ms(ms: u64) -> String {
    human(Duration::from_millis(ms))
}

/// A short length of time with its fraction: `0.5ms`, `-12ms`, `1.25s`.
pub(super) fn human_f64(ms: f64) -> String {
    let abs = ms.abs();
    if abs < 10.0 {
        format!("{ms:.1}ms")
    } else if abs < 1_000.0 {
        format!("{ms:.0}ms")
    } else if abs < 60_000.0 {
        format!("{:.2}s", ms / 1_000.0)
    } else {
        let sign = if ms < 0.0 { "-" } else { "" };
        // `as` saturates, and what is not a number becomes zero.
        format!("{sign}{}", human_ms(abs as u64))
    }
}

/// Time between two readings of the controller's wall clock; zero if it stepped back.
pub(super) fn between(earlier: Wall, later: Wall) -> String {
    human_ms(u64::try_from(later.0.saturating_sub(earlier.0)).unwrap_or(0))
}

/// A share as per cent.
pub(super) fn percent(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |r| format!("{:.0}%", r * 100.0))
}

/// Points of load, 0 to 1000, as per cent.
pub(super) fn points(points: u16) -> String {
    percent(Some(f64::from(points) / 1_000.0))
}

/// Parts per million as per cent.
pub(super) fn ppm(ppm: u64) -> String {
    format!("{:.2}%", ppm as f64 / 10_000.0)
}

/// [`heartwatch_common::words::count`] of anything that counts.
pub(super) fn count(n: impl TryInto<u64>, one: &str) -> String {
    heartwatch_common::words::count(n.try_into().unwrap_or(u64::MAX), one)
}

/// A host's or receiver's words, made harmless: control characters could steer the terminal.
pub(super) fn clean(text: &str) -> String {
    let steers =
        |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if steers(c) { '\u{fffd}' } else { c }).collect()
}

/// Cuts a text at a number of characters.
pub(super) fn shorten(text: &str, len: usize) -> String {
    if text.chars().count() <= len {
        return text.to_owned();
    }
    text.chars().take(len.saturating_sub(1)).chain(['…']).collect()
}

/// Aligned columns.
pub(super) struct Table {
    header: Vec<&'static str>,
    /// Columns that hold numbers, aligned right.
    right: Vec<usize>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(header: &[&'static str], right: &[usize]) -> Self {
        Self { header: header.to_vec(), right: right.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; foreign words in it are made harmless.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row: Vec<String> = cells.into_iter().map(|c| clean(&c)).collect();
        row.resize(self.header.len(), String::new());
        self.rows.push(row);
    }

    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let header: Vec<String> = self.header.iter().map(|h| (*h).to_owned()).collect();
        let mut widths = vec![0; header.len()];
        for row in std::iter::once(&header).chain(&self.rows) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in std::iter::once(&header).chain(&self.rows) {
            let mut line = String::new();
            for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if i > 0 {
                    line.push_str("  ");
                }
                if self.right.contains(&i) {
                    line.push_str(&format!("{cell:>width$}"));
                } else {
                    line.push_str(&format!("{cell:<width$}"));
                }
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// An event's `data` as one line: the reason, then whatever else is not said elsewhere, with units.
/// `skipped` keys are said elsewhere too.
pub(super) fn details(data: &Map<String, Value>, skipped: &[&str]) -> String {
    const ELSEWHERE: [&str; 11] = [
        "event_id",
        "host",
        "host_id",
        "incident",
        "token",
        "name",
        "labels",
        "state",
        "controller",
        "verdicts",
        "reason",
    ];
    let reason = data.get("reason").filter(|_| !skipped.contains(&"reason"));
    let reason = reason.and_then(Value::as_str).filter(|r| !r.is_empty()).map(str::to_owned);
    let said = |key: &str| ELSEWHERE.contains(&key) || skipped.contains(&key);
    let others = data.iter().filter(|(key, _)| !said(key));
    let parts: Vec<String> =
        reason.into_iter().chain(others.filter_map(|(key, value)| entry(key, value, 0))).collect();
    shorten(&clean(&parts.join(", ")), DETAIL_LEN_MAX)
}

/// `key: value` for people; `None` if there is nothing to say.
fn entry(key: &str, value: &Value, depth: usize) -> Option<String> {
    let plain = key.replace('_', " ");
    if let (Some(stem), Some(ms)) = (key.strip_suffix("_ms"), value.as_f64()) {
        // A moment, or a length of time: lengths are far below the milliseconds since 1970.
        let shown = if ms > 1e11 { Wall(ms as i64).to_string() } else { human_f64(ms) };
        return Some(format!("{}: {shown}", stem.replace('_', " ")));
    }
    match value {
        Value::Null => None,
        Value::Bool(true) => Some(plain),
        // What was not so goes without saying, but for what the reader wonders about.
        Value::Bool(false) if depth > 0 => None,
        Value::Bool(false) => Some(format!("not {plain}")),
        Value::Number(n) => Some(format!("{plain}: {n}")),
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(format!("{plain}: {text}")),
        Value::Array(list) if list.is_empty() && key != "candidates" => None,
        Value::Array(list) if list.is_empty() => Some(format!("no {plain}")),
        Value::Array(list) => {
            let mut shown: Vec<String> = list.iter().take(LIST_LEN_MAX).map(item).collect();
            if list.len() > LIST_LEN_MAX {
                shown.push(format!("and {} more", list.len() - LIST_LEN_MAX));
            }
            Some(format!("{plain}: {}", shown.join(" ")))
        }
        Value::Object(map) if depth == 0 => {
            let inner: Vec<String> =
                map.iter().take(20).filter_map(|(k, v)| entry(k, v, 1)).collect();
            (!inner.is_empty()).then(|| format!("{plain} ({})", inner.join(", ")))
        }
        Value::Object(_) => Some(format!("{plain}: …")),
    }
}

/// One of a list: its name, if it has one.
fn item(value: &Value) -> String {
    let named = ["name", "id", "host"].iter().find_map(|k| value.get(k).and_then(Value::as_str));
    match (value, named) {
        (Value::String(text), _) => text.clone(),
        (_, Some(name)) => name.to_owned(),
        (other, None) => shorten(&other.to_string(), 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lengths_of_time_are_short_and_have_units() {
        for (ms, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (1_000, "1s"),
            (3_249, "3.2s"),
            (59_999, "59.9s"),
            (60_000, "1m"),
            (312_000, "5m 12s"),
            (12_000_000, "3h 20m"),
            (1_051_200_000, "12d 4h"),
        ] {
            assert_eq!(human_ms(ms), text);
        }
        for (ms, text) in
            [(0.46, "0.5ms"), (-12.3, "-12ms"), (1_250.0, "1.25s"), (-120_000.0, "-2m")]
        {
            assert_eq!(human_f64(ms), text);
        }
        assert_eq!(human_f64(f64::NAN), "0ms");
        assert_eq!(between(Wall(5_000), Wall(1_000)), "0ms");
    }

    #[test]
    fn tables_line_up_and_cannot_steer_the_terminal() {
        let mut table = Table::new(&["NAME", "N"], &[1]);
        table.row(["ü\u{1b}[31m".to_owned(), "7".to_owned()]);
        table.row(["long name".to_owned(), "1234".to_owned()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "NAME          N\nü\u{fffd}[31m        7\nlong name  1234\n");
    }

    #[test]
    fn details_say_what_is_not_said_elsewhere() {
        let data = json!({
            "event_id": "x", "host": "y", "cause": "silent", "same_boot": true, "silence_ms": 3_200,
            "since_ms": 1_769_860_800_250_u64, "nothing": null, "candidates":
            [{"name": "a", "score": 1}, "b", 3, 4, 5, 6], "probes": {"sent": 3, "of": 3}, "held_for": [],
            "skipped": 1, "state": "down", "reason": "too long silent"
        });
        assert_eq!(
            details(data.as_object().unwrap(), &["skipped"]),
            "too long silent, cause: silent, same boot, silence: 3.20s, since: 2026-01-31T12:00:00.250Z, \
             candidates: a b 3 4 5 and 1 more, probes (sent: 3, of: 3)"
        );
        let long = json!({"note": "x".repeat(9_000)});
        assert_eq!(details(long.as_object().unwrap(), &[]).chars().count(), DETAIL_LEN_MAX);
    }
}
