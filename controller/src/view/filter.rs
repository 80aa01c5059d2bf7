//! Which hosts to list, and the same as the registry keeps it.

use std::collections::BTreeMap;

use hashbrown::HashMap;

use super::Registry;
use super::names::{Match, Name};
use super::rows::Tag;
use super::texts::Sym;
use crate::event::State;
#[cfg(test)]
use crate::store::HostRow;

/// Which hosts to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only in one of these states; empty = any.
    pub states: Vec<State>,
    /// Only with all of these labels.
    pub labels: BTreeMap<String, String>,
    /// Only with this text in the name.
    pub name_contains: Option<String>,
}

impl Filter {
    /// Whether a row passes: what [`Sieve`] must answer too.
    #[cfg(test)]
    pub(super) fn matches(&self, row: &HostRow) -> bool {
        (self.states.is_empty() || self.states.contains(&row.state))
            && self.labels.iter().all(|(k, v)| row.labels.get(k) == Some(v))
            && self.name_contains.as_ref().is_none_or(|part| row.name.contains(part.as_str()))
    }
}

/// Shapes of names that are remembered.
const SHAPES_MAX: usize = 100_000;

/// A filter made ready: label sets are judged once each, and remembered as long as none appears or goes.
pub(super) struct Sieve<'a> {
    filter: &'a Filter,
    /// One bit per state.
    states: u8,
    generation: Option<u64>,
    /// `None`: a label or value that no host has.
    labels: Option<Vec<(Sym, Sym)>>,
    /// What is known of each set: nothing yet, or whether it passes.
    sets: Vec<Option<bool>>,
    /// What the part that is looked for means for shapes of names, since the last refresh: any change may
    /// give a symbol another text.
    matches: Vec<Match>,
    /// Which of them is a shape's; and the shape that was judged last, as neighbours are often alike.
    shapes: HashMap<(Sym, bool), usize>,
    last: Option<((Sym, bool), usize)>,
    change: u64,
}

impl<'a> Sieve<'a> {
    pub(super) fn new(filter: &'a Filter) -> Self {
        let bits = filter.states.iter().fold(0, |bits, state| bits | 1 << *state as u8);
        Self {
            filter,
            states: if filter.states.is_empty() { u8::MAX } else { bits },
            generation: None,
            labels: None,
            sets: Vec::new(),
            matches: Vec::new(),
            shapes: HashMap::new(),
            last: None,
            change: 0,
        }
    }

    /// Brings it up to date with the registry; to be called each time after its lock was taken.
    pub(super) fn refresh(&mut self, registry: &Registry) {
        if self.change != registry.change || self.shapes.len() > SHAPES_MAX {
            self.change = registry.change;
            self.shapes.clear();
            self.matches.clear();
            self.last = None;
        }
        let generation = registry.sets.generation();
        if self.generation == Some(generation) {
            return;
        }
        self.generation = Some(generation);
        let find =
            |(k, v): (&String, &String)| Some((registry.texts.find(k)?, registry.texts.find(v)?));
        self.labels = self.filter.labels.iter().map(find).collect();
        self.sets.clear();
        self.sets.resize(registry.sets.end(), None);
    }

    /// Whether no host can pass.
    pub(super) fn is_closed(&self) -> bool {
        self.labels.is_none()
    }

    /// Whether a host passes that has these; an empty slot does not.
    pub(super) fn passes(&mut self, registry: &Registry, tag: Tag, set: u32, name: Name) -> bool {
        let Some(state) = tag.state() else { return false };
        if self.states & 1 << state as u8 == 0 {
            return false;
        }
        let Some(labels) = &self.labels else { return false };
        if !labels.is_empty() {
            let passes = self.sets[set as usize].get_or_insert_with(|| {
                labels.iter().all(|(k, v)| registry.sets.has(set, *k, Some(*v)))
            });
            if !*passes {
                return false;
            }
        }
        let Some(part) = &self.filter.name_contains else { return true };
        let shape = name.shape();
        let at = match self.last {
            Some((last, at)) if last == shape => at,
            _ => *self.shapes.entry(shape).or_insert_with(|| {
                self.matches.push(Match::new(name, part, &registry.texts));
                self.matches.len() - 1
            }),
        };
        self.last = Some((shape, at));
        self.matches[at].holds(name)
    }
}
