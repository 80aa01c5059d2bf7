//! Which hosts are meant: `pool in (db, cache) and zone != z3 and not canary`. Pure, and the same wherever
//! hosts are chosen by their labels.
//!
//! # What may be written
//!
//! | form | holds if |
//! | --- | --- |
//! | `canary` | the host has that label, whatever its value |
//! | `pool = db`, `pool != db` | the value is that one; is another, or the label is missing |
//! | `pool in (db, cache)`, `pool not in (…)` | the value is one of these; is none, or the label is missing |
//! | `name ~ "web-*"`, `name !~ "web-*"` | the whole value fits: `*` is any text, `?` one character; does not, or is missing |
//! | `not …`, `… and …`, `… or …`, `( … )` | as always; `not` binds before `and`, `and` before `or` |
//!
//! Words of letters, digits and `_-./:@+%` stand as they are (behind `~` with `*` and `?` too); anything
//! else, and labels called `and`, `or`, `not` or `in`, stands in quotes, `"…"` or `'…'`, with `\` before a
//! quote or another `\`.
//!
//! A missing label makes every negative form true, so that `X` and `not X` are never false together. There
//! are no regular expressions: what they could say beyond `*` and `in` is seldom meant and often mistaken.
//!
//! # Bounds
//!
//! [`LEN_MAX`] bytes, [`DEPTH_MAX`] levels of `not` and brackets, [`TERMS_MAX`] labels and values. Judging
//! costs one look-up a label, and text length times pattern length for `~` at worst; nothing is allocated.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

mod parse;

/// Longest text, bytes.
pub const LEN_MAX: usize = 2_000;
/// Most levels of `not` and brackets.
pub const DEPTH_MAX: usize = 32;
/// Most labels and values.
pub const TERMS_MAX: usize = 256;

/// A condition on labels.
#[derive(Clone, PartialEq, Eq)]
pub struct Expression {
    text: String,
    root: Node,
}

/// Why a text is no condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {message}")]
pub struct ExpressionError {
    /// Where, in characters from 1.
    pub column: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// A part of it, with where it stands in the text, bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    from: usize,
    to: usize,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    All(Vec<Node>),
    Any(Vec<Node>),
    Not(Box<Node>),
    Label(String, Test),
}

/// What is asked of a label; the negative forms hold where it is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Has,
    In(Vec<String>),
    NotIn(Vec<String>),
    Like(String),
    NotLike(String),
}

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        let is_in = |values: &[String]| value.is_some_and(|v| values.iter().any(|w| w == v));
        match self {
            Self::Has => value.is_some(),
            Self::In(values) => is_in(values),
            Self::NotIn(values) => !is_in(values),
            Self::Like(pattern) => value.is_some_and(|v| is_like(pattern, v)),
            Self::NotLike(pattern) => !value.is_some_and(|v| is_like(pattern, v)),
        }
    }
}

impl Node {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        match &self.what {
            What::All(parts) => parts.iter().all(|part| part.holds(labels)),
            What::Any(parts) => parts.iter().any(|part| part.holds(labels)),
            What::Not(part) => !part.holds(labels),
            What::Label(label, test) => test.holds(labels.get(label).map(String::as_str)),
        }
    }

    /// The smallest part to blame for its not holding.
    fn culprit(&self, labels: &BTreeMap<String, String>) -> &Self {
        match &self.what {
            What::All(parts) => {
                let failed = parts.iter().find(|part| !part.holds(labels));
                failed.map_or(self, |part| part.culprit(labels))
            }
            What::Any(_) | What::Not(_) | What::Label(..) => self,
        }
    }

    fn labels<'a>(&'a self, into: &mut BTreeSet<&'a str>) {
        match &self.what {
            What::All(parts) | What::Any(parts) => parts.iter().for_each(|p| p.labels(into)),
            What::Not(part) => part.labels(into),
            What::Label(label, _) => {
                into.insert(label);
            }
        }
    }
}

impl Expression {
    /// Reads a condition.
    pub fn parse(text: &str) -> Result<Self, ExpressionError> {
        let root = parse::parse(text)?;
        Ok(Self { text: text.to_owned(), root })
    }

    /// Whether a host with these labels is meant.
    pub fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        self.root.holds(labels)
    }

    /// Why it does not hold, in plain words: the part that fails, and what the host has instead. `None`: it
    /// holds.
    pub fn objection(&self, labels: &BTreeMap<String, String>) -> Option<String> {
        if self.holds(labels) {
            return None;
        }
        let culprit = self.root.culprit(labels);
        let part = self.text.get(culprit.from..culprit.to).unwrap_or(&self.text);
        let mut named = BTreeSet::new();
        culprit.labels(&mut named);
        let has: Vec<String> = named
            .into_iter()
            .map(|label| match labels.get(label) {
                Some(value) => format!("{label} is `{value}`"),
                None => format!("it has no label {label}"),
            })
            .collect();
        Some(format!("`{part}` does not hold: {}", has.join(", ")))
    }

    /// The labels that it asks for.
    pub fn labels(&self) -> BTreeSet<&str> {
        let mut labels = BTreeSet::new();
        self.root.labels(&mut labels);
        labels
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expression({:?})", self.text)
    }
}

impl std::str::FromStr for Expression {
    type Err = ExpressionError;

    fn from_str(text: &str) -> Result<Self, ExpressionError> {
        Self::parse(text)
    }
}

impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Expression {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

/// Whether a whole text fits a pattern of `*` and `?`. Of a star that took too little only the last one is
/// tried again, which is enough, and bounds the work by the product of the two lengths.
fn is_like(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.chars(), text.chars());
    let mut again: Option<(std::str::Chars<'_>, std::str::Chars<'_>)> = None;
    loop {
        let unread = text.clone();
        match (pattern.next(), text.next()) {
            (None, None) => return true,
            (Some('*'), _) => {
                again = Some((pattern.clone(), unread.clone()));
                text = unread;
            }
            (Some('?'), Some(_)) => {}
            (Some(p), Some(t)) if p == t => {}
            _ => {
                // The last star takes one character more.
                let Some((after_star, mut from)) = again else { return false };
                if from.next().is_none() {
                    return false;
                }
                (pattern, text) = (after_star.clone(), from.clone());
                again = Some((after_star, from));
            }
        }
    }
}

#[cfg(test)]
mod tests;
