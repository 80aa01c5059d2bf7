//! Which labels a host must have and must not have: `pool=db,zone!=a`. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most terms of one expression.
pub const TERMS_MAX: usize = 16;
/// Longest key or value, bytes: what a hello can carry.
const TEXT_LEN_MAX: usize = 255;

/// One term.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    key: String,
    value: String,
    /// The label must have that value; else it must not: another one, or none at all.
    equal: bool,
}

/// Terms, all of which must hold; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels(Vec<Term>);

impl Labels {
    /// Whether labels fit.
    pub fn fits(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|t| (labels.get(&t.key) == Some(&t.value)) == t.equal)
    }

    /// Labels that whatever fits has for sure.
    pub(super) fn sure(&self) -> BTreeMap<String, String> {
        let sure = self.0.iter().filter(|t| t.equal);
        sure.map(|t| (t.key.clone(), t.value.clone())).collect()
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, t) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{}{}{}", t.key, if t.equal { "=" } else { "!=" }, t.value)?;
        }
        Ok(())
    }
}

impl FromStr for Labels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let term = |part: &str| {
            let (key, value) = part.split_once('=')?;
            let (key, equal) = match key.strip_suffix('!') {
                Some(key) => (key, false),
                None => (key, true),
            };
            let (key, value) = (key.trim(), value.trim());
            let fits = |text: &str| {
                text.len() <= TEXT_LEN_MAX
                    && !text.is_empty()
                    && !text.chars().any(char::is_control)
            };
            let good = fits(key) && fits(value);
            good.then(|| Term { key: key.to_owned(), value: value.to_owned(), equal })
        };
        let terms: Option<Vec<Term>> = text.split(',').map(term).collect();
        terms.filter(|terms| terms.len() <= TERMS_MAX).map(Self).ok_or_else(|| {
            format!(
                "`{text}` says nothing about labels: write 1 to {TERMS_MAX} terms such as \
                 `pool=db,zone!=a`, all of which must hold"
            )
        })
    }
}

impl Serialize for Labels {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}
