//! The reference tells every key, no other, and the bounds that the checks hold.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::value::Error;
use serde::de::{Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;

use super::*;
use crate::config::{
    PerSecond, RawApi, RawCanary, RawClass, RawConfig, RawDetector, RawDomains, RawFlaps,
    RawIntervals, RawMaintenance, RawOverride, RawPlacement, RawRetention, RawRule,
};

/// Reads nothing, but remembers which fields it was asked for: the keys that a file may have.
#[derive(Default)]
struct Asked(&'static [&'static str]);

impl<'de> Deserializer<'de> for &mut Asked {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("there is nothing to read"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0 = fields;
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn fields<T: for<'de> Deserialize<'de>>() -> BTreeSet<&'static str> {
    let mut asked = Asked::default();
    assert!(T::deserialize(&mut asked).is_err());
    asked.0.iter().copied().collect()
}

/// `[detector.overrides]` → `detector`, `overrides`.
fn path(head: &str) -> Vec<&str> {
    head.trim_matches(['[', ']']).split('.').filter(|part| !part.is_empty()).collect()
}

#[test]
fn every_key_that_a_file_may_have_is_told_and_no_other() {
    let in_code = [
        ("", fields::<RawConfig>()),
        ("[api]", fields::<RawApi>()),
        ("[detector]", fields::<RawDetector>()),
        ("[[detector.overrides]]", fields::<RawOverride>()),
        ("[intervals]", fields::<RawIntervals>()),
        ("[[intervals.classes]]", fields::<RawClass>()),
        ("[domains]", fields::<RawDomains>()),
        ("[flaps]", fields::<RawFlaps>()),
        ("[maintenance]", fields::<RawMaintenance>()),
        ("[placement]", fields::<RawPlacement>()),
        ("[canary]", fields::<RawCanary>()),
        ("[retention]", fields::<RawRetention>()),
        ("[receivers.NAME]", fields::<RawReceiver>()),
        ("[[rules]]", fields::<RawRule>()),
    ];
    assert_eq!(in_code.len(), keys::SECTIONS.len());
    let tables: BTreeSet<_> =
        keys::SECTIONS.iter().filter_map(|s| path(s.head).first().copied()).collect();
    for (section, (head, fields)) in keys::SECTIONS.iter().zip(in_code) {
        assert_eq!(section.head, head);
        let mut told: BTreeSet<_> = section.keys.iter().map(|key| key.name).collect();
        assert_eq!(told.len(), section.keys.len(), "{head}: a key is told twice");
        if head.is_empty() {
            told.extend(&tables);
        }
        assert_eq!(told, fields, "{head}: told, and in the code");
        // A table within a table would have keys that nobody compares.
        for (key, value) in section.defaults() {
            let known = !value.is_table() || tables.contains(key.as_str()) || key == "match";
            assert!(known, "{head}: {key} is a table and needs a section of its own");
        }
    }
}

#[test]
fn every_key_has_a_default_or_says_what_holds_without_it_and_when_to_change_it() {
    for section in &keys::SECTIONS {
        let (defaults, needed) = (section.defaults(), section.needed());
        for key in section.keys {
            let at = format!("{} {}", section.head, key.name);
            let told = [defaults.contains_key(key.name), needed.contains_key(key.name)];
            let told = told.into_iter().chain([!key.unset.is_empty()]).filter(|told| *told).count();
            assert_eq!(told, 1, "{at}: a default, needed, or what holds without it");
            let sentences = key.when.split_inclusive(". ").count();
            assert!(
                sentences >= 2 && key.when.ends_with('.'),
                "{at}: what it does, when to change it"
            );
        }
        for key in section.needed().keys() {
            let mut without = section.needed();
            without.remove(key);
            let text = toml::to_string(&without).unwrap();
            let read = std::panic::catch_unwind(|| (section.fill)(&text));
            assert!(read.is_err(), "{}: {key} is not needed", section.head);
        }
    }
}

/// A file in which every key may take each of its bounds: what other keys demand of it is as wide as it can
/// be.
const WIDEST: &str = r#"
[detector]
gap_max = "1h"
timeout_min = "10ms"
timeout_max = "10m"

[[detector.overrides]]
name = "o"
match = { pool = "o" }

[intervals]
budget = "1000/s"
min = "100ms"
max = "30m"

[[intervals.classes]]
name = "c"
match = { pool = "c" }

[flaps]
suppress = 1000000
reuse = 100

[receivers.NAME]
url = "https://orchestrator.example/"

[[rules]]
name = "r"
events = ["host.down"]
receivers = ["NAME"]
hours = "Mon"
"#;

/// The table at `path`, of lists their first.
fn table<'a>(file: &'a mut Table, path: &[&str]) -> &'a mut Table {
    path.iter().fold(file, |table, part| {
        let inner = table.entry(*part).or_insert_with(|| Table::new().into());
        match inner {
            Value::Array(list) => list[0].as_table_mut().unwrap(),
            inner => inner.as_table_mut().unwrap(),
        }
    })
}

/// Reads and checks a file that differs from [`WIDEST`] by one key.
fn check(head: &str, key: &str, value: Value) -> Result<(), String> {
    let mut file: Table = WIDEST.parse().unwrap();
    match (head, key, value.as_str()) {
        // With a budget these two have other bounds.
        ("[detector]", "interval" | "gap_max", _) => drop(file.remove("intervals")),
        ("[intervals]", "budget", _) => drop(table(&mut file, &["intervals"]).remove("classes")),
        ("[receivers.NAME]", "resend_every", _) => {
            let receiver = table(&mut file, &["receivers", "NAME"]);
            receiver.insert("format".to_owned(), "alertmanager".into());
        }
        ("[receivers.NAME]", "format", Some("template")) => {
            let receiver = table(&mut file, &["receivers", "NAME"]);
            receiver.insert("template_file".to_owned(), "/t".into());
        }
        ("[receivers.NAME]", "kind", Some("exec")) => {
            let receiver = table(&mut file, &["receivers", "NAME"]);
            receiver.remove("url");
            receiver.insert("command".to_owned(), vec!["/bin/true"].into());
        }
        ("[[rules]]", "first" | "escalate" | "escalate_acts", _) => {
            for i in 0..9 {
                let receiver = table(&mut file, &["receivers", &format!("l{i}")]);
                receiver.insert("url".to_owned(), "https://other.example/".into());
            }
            table(&mut file, &["rules"]).insert("escalate".to_owned(), vec!["l0"].into());
            if key == "first" {
                table(&mut file, &["rules"]).remove("escalate");
            }
        }
        _ => {}
    }
    table(&mut file, &path(head)).insert(key.to_owned(), value);
    let text = toml::to_string(&file).unwrap();
    let raw: RawConfig = toml::from_str(&text).map_err(|e| e.to_string())?;
    raw.check().map(drop).map_err(|e| e.to_string())
}

/// As many entries as wanted, of the form that this key's list has.
fn list(head: &str, key: &str, len: usize) -> Value {
    let entry = |i: usize| -> Value {
        match (head, key) {
            ("", "listen") => format!("127.0.0.1:{}", 10_000 + i).into(),
            ("[domains]", "trees") => vec![format!("l{i}")].into(),
            (_, "overrides" | "classes") => {
                format!("name = \"n{i}\"\nmatch = {{ pool = \"p{i}\" }}")
                    .parse::<Table>()
                    .unwrap()
                    .into()
            }
            _ => format!("l{i}").into(),
        }
    };
    Value::Array((0..len).map(entry).collect())
}

fn span(text: &str) -> Duration {
    text.parse::<Span>().unwrap().0
}

/// The bounds of a key, and what lies just beyond each.
fn edges(head: &str, key: &Key) -> (Vec<Value>, Vec<Value>) {
    let time = |t: Duration| Value::from(Span(t).to_string());
    let nano = Duration::from_nanos(1);
    let rate = |n: u64| Value::from(PerSecond(n).to_string());
    let int = |n: u64| Value::from(i64::try_from(n).unwrap());
    let text = |len: usize| Value::from("x".repeat(len));
    match key.form {
        Form::Span(min, max) => {
            let (min, max) = (span(min), span(max));
            let below = min.checked_sub(nano).map(time);
            (vec![time(min), time(max)], below.into_iter().chain([time(max + nano)]).collect())
        }
        Form::Count(_, min, max) => {
            let below = Value::from(i64::try_from(min).unwrap() - 1);
            (vec![int(min), int(max)], vec![below, int(max + 1)])
        }
        Form::Decimal(_, min, max) => {
            (vec![min.into(), max.into()], vec![min.next_down().into(), max.next_up().into()])
        }
        Form::Rate(_, min, max) => (vec![rate(min), rate(max)], vec![rate(min - 1), rate(max + 1)]),
        Form::Text(min, max) => (vec![text(min), text(max)], vec![text(min - 1), text(max + 1)]),
        Form::List(_, min, max) => {
            let below = min.checked_sub(1).map(|len| list(head, key.name, len));
            let beyond = below.into_iter().chain([list(head, key.name, max + 1)]).collect();
            (vec![list(head, key.name, min), list(head, key.name, max)], beyond)
        }
        Form::OneOf(words) => {
            (words.iter().map(|word| Value::from(*word)).collect(), vec!["other".into()])
        }
        Form::Flag => (vec![true.into(), false.into()], vec![1.into()]),
        Form::Free(_) => (Vec::new(), Vec::new()),
    }
}

#[test]
fn each_bound_is_accepted_and_what_lies_just_beyond_it_is_refused_by_its_key() {
    assert_eq!(check("", "name", "n".into()), Ok(()), "what each key is put into is good");
    for section in &keys::SECTIONS {
        for key in section.keys {
            let (within, beyond) = edges(section.head, key);
            let off: Option<Value> = key.off.map(|(text, _)| {
                format!("v = {text}").parse::<Table>().unwrap().remove("v").unwrap()
            });
            for value in within.into_iter().chain(off.clone()) {
                let checked = check(section.head, key.name, value.clone());
                assert_eq!(checked, Ok(()), "{} {} = {value}", section.head, key.name);
            }
            for value in beyond.into_iter().filter(|value| Some(value) != off.as_ref()) {
                let refused = check(section.head, key.name, value.clone());
                let Err(why) = refused else {
                    panic!("{} {} = {value} is accepted", section.head, key.name)
                };
                assert!(why.contains(key.name), "{} {} = {value}: {why}", section.head, key.name);
            }
        }
    }
}

/// What other keys demand stands in words: each demand is tried here.
#[test]
fn bounds_that_other_keys_set_hold() {
    let refused = [
        ("[detector]\ninterval = \"61s\"", "gap_max"),
        ("[detector]\ninterval = \"1s\"\n[intervals]\nbudget = \"1/s\"", "exclude"),
        ("[detector]\ntimeout_min = \"31s\"", "timeout_max"),
        ("[detector]\ntimeout_min = \"200ms\"\ntimeout_max = \"199ms\"", "timeout_max"),
        ("[intervals]\nbudget = \"1/s\"\nmin = \"2s\"\nmax = \"1s\"", "max"),
        ("[intervals]\nbudget = \"1/s\"\nmax = \"31s\"", "intervals.max"),
        ("[flaps]\nreuse = 3000", "flaps.suppress"),
    ];
    for (text, wanted) in refused {
        let raw: RawConfig = toml::from_str(text).unwrap();
        let why = raw.check().unwrap_err().to_string();
        assert!(why.contains(wanted), "{text}\n{why}");
    }
}

#[test]
fn lengths_of_time_are_written_in_one_unit() {
    let write = |text: &str| written(&text.into(), &Form::Span("0s", "1d"));
    for (text, wanted) in [
        ("25ms", "\"25ms\""),
        ("1m 30s", "\"90s\""),
        ("1day 1h", "\"25h\""),
        ("2months 29days 2h 52m 48s", "\"90d\""),
        ("0s", "\"0s\""),
    ] {
        assert_eq!(write(text), wanted);
    }
    assert_eq!(written(&"25h".into(), &Form::Free("a text")), "\"25h\"");
}

#[test]
fn lines_are_broken_between_words() {
    let text = wrapped(&"word ".repeat(50), "  ");
    assert!(text.lines().count() == 3 && text.lines().all(|line| line.len() <= COLUMNS), "{text}");
    assert!(text.lines().skip(1).all(|line| line.starts_with("  word")));
}

#[test]
fn the_page_in_the_docs_is_what_is_printed() {
    let page = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/config.md");
    let text = std::fs::read_to_string(page).unwrap_or_default();
    assert!(
        text == markdown(),
        "controller/docs/config.md is not what the code says: write it again with `cargo run -p \
         heartwatch-controller --bin heartwatch-controller -- config --reference > \
         controller/docs/config.md`"
    );
}
