//! The reference of every key of the config file, as Markdown: `heartwatch-controller config --reference`.
//!
//! What a key may hold and when to change it stands in `keys.rs`; what it is by default is never written
//! down a second time, but taken from the settings themselves. The bounds are written here in words that
//! people type, beside the checks that hold them; the tests feed every bound, and what lies just beyond it,
//! to those checks, and compare the keys with the fields that the file's parser knows. So neither can change
//! without the other. `controller/docs/config.md` is this text.

use std::fmt::Write as _;

use heartwatch_common::config::Span;
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::RawReceiver;

mod keys;
#[cfg(test)]
mod tests;

/// Lines of the text are broken before they exceed this many columns, unless one word alone does.
const COLUMNS: usize = 105;

/// Why writing into a text cannot fail.
const TAKES: &str = "a String takes everything";

/// What may stand behind a key.
enum Form {
    /// A length of time between these two, as they are written: `"10ms"`, `"1m"`.
    Span(&'static str, &'static str),
    /// A whole number of the things named, between these two.
    Count(&'static str, u64, u64),
    /// A number of the kind named, between these two; with a fraction.
    Decimal(&'static str, f64, f64),
    /// So many things per second, between these two: `"5/s"`.
    Rate(&'static str, u64, u64),
    /// A text of so many bytes.
    Text(usize, usize),
    /// A list of so many of the things named.
    List(&'static str, usize, usize),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// True or false.
    Flag,
    /// What has a form, told here, but no bound.
    Free(&'static str),
}

/// One key.
struct Key {
    name: &'static str,
    form: Form,
    /// What it does, and when to change it.
    when: &'static str,
    /// A value outside of the bounds that is allowed too, as it is written, and what it means.
    off: Option<(&'static str, &'static str)>,
    /// A bound that other keys set; empty: none does.
    within: &'static str,
    /// What holds without it, if it has no default that could be written; else empty.
    unset: &'static str,
}

impl Key {
    const fn new(name: &'static str, form: Form, when: &'static str) -> Self {
        Self { name, form, when, off: None, within: "", unset: "" }
    }

    const fn off(self, value: &'static str, meaning: &'static str) -> Self {
        Self { off: Some((value, meaning)), ..self }
    }

    const fn within(self, within: &'static str) -> Self {
        Self { within, ..self }
    }

    const fn unset(self, unset: &'static str) -> Self {
        Self { unset, ..self }
    }
}

/// One table of the file.
struct Section {
    /// As it stands in the file, `[detector]`; empty: before all tables.
    head: &'static str,
    intro: &'static str,
    keys: &'static [Key],
    /// The shortest table that can be read: the keys that are needed.
    least: &'static str,
    /// Reads a table and writes it with everything that was left out.
    fill: fn(&str) -> Table,
}

impl Section {
    /// What holds for keys that are left out, for those that have a value then.
    fn defaults(&self) -> Table {
        let needed = self.needed();
        let mut all = (self.fill)(self.least);
        all.retain(|key, _| !needed.contains_key(key));
        all
    }

    fn needed(&self) -> Table {
        self.least.parse().expect("`least` is TOML: a test reads all of them")
    }
}

fn fill<T: Serialize + DeserializeOwned>(text: &str) -> Table {
    let read: T = toml::from_str(text).expect("`least` can be read: a test reads all of them");
    Table::try_from(&read).expect("settings can be written as TOML: a test writes all of them")
}

/// Of receivers one default is filled in only when their format is known.
fn fill_receiver(text: &str) -> Table {
    let mut read: RawReceiver = toml::from_str(text).expect("`least` can be read");
    read.fill();
    Table::try_from(&read).expect("settings can be written as TOML: a test writes all of them")
}

/// The reference of every key, Markdown.
pub fn markdown() -> String {
    let mut out = String::from(INTRO);
    for section in &keys::SECTIONS {
        let head = match section.head {
            "" => "Before all tables".to_owned(),
            head => format!("`{head}`"),
        };
        let intro = wrapped(section.intro, "");
        write!(out, "\n## {head}\n\n{intro}\n").expect(TAKES);
        let (defaults, needed) = (section.defaults(), section.needed());
        for key in section.keys {
            let default = match defaults.get(key.name) {
                Some(value) => format!("default `{}`", written(value, &key.form)),
                None if key.unset.is_empty() && needed.contains_key(key.name) => {
                    "needed".to_owned()
                }
                None => format!("not set: {}", key.unset),
            };
            let line = format!("- **`{}`** ({default}; {}). {}", key.name, bounds(key), key.when);
            write!(out, "\n{}\n", wrapped(&line, "  ")).expect(TAKES);
        }
    }
    out
}

const INTRO: &str = "\
# Every key of `controller.toml`

Nothing must be set: what is left out is as its default says. Unknown keys, and values out of bounds, are
refused at start by their name; `heartwatch-controller check-config --config FILE` tries a file, a restart
applies it. Lengths of time carry their unit: `\"250ms\"`, `\"2s\"`, `\"1h 30m\"`. Bounds are included. All
keys stand in their places in `packaging/examples/controller.toml`.

This page is what `heartwatch-controller config --reference` prints, and tests hold it to the code. After a
change there:

```sh
cargo run -p heartwatch-controller --bin heartwatch-controller -- config --reference \\
  > controller/docs/config.md
```
";

/// The form of a key's value in words, with its bounds.
fn bounds(key: &Key) -> String {
    let mut text = match &key.form {
        Form::Span(min, max) => format!("a length of time, `\"{min}\"` to `\"{max}\"`"),
        Form::Count(of, min, max) => format!("{of}, `{min}` to `{max}`"),
        Form::Decimal(of, min, max) => format!("{of}, `{min:?}` to `{max:?}`"),
        Form::Rate(of, min, max) => format!("{of} per second, `\"{min}/s\"` to `\"{max}/s\"`"),
        Form::Text(min, max) => format!("a text of {min} to {max} bytes"),
        Form::List(of, min, max) => format!("a list of {min} to {max} {of}"),
        Form::OneOf(words) => {
            let words: Vec<_> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
            format!("one of {}", words.join(", "))
        }
        Form::Flag => "`true` or `false`".to_owned(),
        Form::Free(form) => (*form).to_owned(),
    };
    if !key.within.is_empty() {
        write!(text, ", {}", key.within).expect(TAKES);
    }
    if let Some((value, meaning)) = key.off {
        write!(text, "; `{value}`: {meaning}").expect(TAKES);
    }
    text
}

/// A default as a person would write it: lengths of time in one unit, the largest that leaves no rest.
fn written(value: &Value, form: &Form) -> String {
    const UNITS: [(&str, u128); 5] =
        [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
    let span = match (value, form) {
        (Value::String(text), Form::Span(..)) => text.parse::<Span>().ok(),
        _ => None,
    };
    let Some(Span(time)) = span else { return value.to_string() };
    let ms = time.as_millis();
    match UNITS.iter().find(|(_, unit)| ms >= *unit && ms.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("\"{}{name}\"", ms / unit),
        None => "\"0s\"".to_owned(),
    }
}

/// Breaks a text into lines of at most [`COLUMNS`]; all but the first begin with `indent`.
fn wrapped(text: &str, indent: &str) -> String {
    let mut out = String::new();
    let mut columns = 0;
    for word in text.split_whitespace() {
        let len = word.chars().count();
        if columns > 0 && columns + 1 + len > COLUMNS {
            out.push('\n');
            out.push_str(indent);
            columns = indent.len();
        } else if columns > 0 {
            out.push(' ');
            columns += 1;
        }
        out.push_str(word);
        columns += len;
    }
    out
}
