//! Failure domains: which hosts share a fate, and how many of them are heard. Pure.
//!
//! The fleet is the root. Below it, each tree of labels makes domains: with `["zone", "rack"]` a host with
//! `zone=a, rack=7` is in the fleet, in `zone=a` and in `zone=a,rack=7`. A host without a label is in no
//! domain of that level; trees that begin alike share those domains.
//!
//! No host is kept here: what a host counts for follows from its row, and a change takes the old row's part
//! away and adds the new one's. So the caller must hand in every change, with the very row that it handed
//! in before. A change costs O(levels); memory is some 200 bytes a domain, for at most [`DOMAINS_MAX`].

use std::collections::BTreeMap;

use heartwatch_common::time::Instant;

use crate::event::{Cause, State};
use crate::store::HostRow;

/// Most domains. Once there were so many no further ones are made until the next start, and their hosts
/// count in the larger domains alone.
pub const DOMAINS_MAX: usize = 100_000;

/// Which domain. Only as good as some host, order or storm is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DomainId(u32);

impl DomainId {
    /// All hosts.
    pub(super) const FLEET: Self = Self(0);
}

/// What a host counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// It is heard, or its kernel is.
    Heard,
    /// Silent, but not down.
    Suspect,
    /// Down, or reached by others only: whether that counts is the orders' matter.
    Apart,
}

fn part(row: &HostRow) -> Option<Part> {
    match (row.state, row.cause) {
        (State::Pending | State::Left, _) => None,
        (State::Alive | State::Duplicate, _) | (State::Down, Some(Cause::AgentLost)) => {
            Some(Part::Heard)
        }
        (State::Down, _) | (State::Suspect, Some(Cause::Unreachable)) => Some(Part::Apart),
        (State::Suspect, _) => Some(Part::Suspect),
    }
}

/// One domain.
#[derive(Clone, Debug)]
pub(super) struct Domain {
    parent: DomainId,
    /// Which label, and its value.
    label: u16,
    value: Box<str>,
    /// By label and value.
    children: BTreeMap<u16, BTreeMap<Box<str>, DomainId>>,
    /// Hosts, orders and storms that are in it.
    refs: u32,
    /// Hosts that are heard.
    pub(super) heard: u32,
    /// Hosts that are suspect.
    pub(super) suspect: u32,
    /// Hosts that are silent for longer, and count as evidence.
    pub(super) counted: u32,
    /// Orders of its hosts that are held.
    pub(super) held: u32,
    /// When the next action would be on time, had they come evenly (GCRA's theoretical arrival time).
    pub(super) action_due: Instant,
}

impl Domain {
    fn new(parent: DomainId, label: u16, value: &str) -> Self {
        Self {
            parent,
            label,
            value: value.into(),
            children: BTreeMap::new(),
            refs: 0,
            heard: 0,
            suspect: 0,
            counted: 0,
            held: 0,
            action_due: Instant(0),
        }
    }

    /// Silent hosts that count as evidence.
    pub(super) fn silent(&self) -> u32 {
        self.suspect + self.counted
    }

    /// Hosts that were heard before any of the silent ones fell silent.
    pub(super) fn base(&self) -> u32 {
        self.heard + self.silent()
    }
}

/// All domains.
#[derive(Clone, Debug)]
pub(super) struct Domains {
    /// Every label of the trees once.
    labels: Vec<String>,
    /// Trees as places in `labels`.
    trees: Vec<Vec<u16>>,
    slots: Vec<Option<Domain>>,
    free: Vec<DomainId>,
    full: bool,
}

impl Domains {
    /// No hosts yet.
    pub(super) fn new(trees: &[Vec<String>]) -> Self {
        let mut labels: Vec<String> = Vec::new();
        let mut place = |label: &String| {
            let at = labels.iter().position(|l| l == label).unwrap_or_else(|| {
                labels.push(label.clone());
                labels.len() - 1
            });
            at as u16
        };
        let trees = trees.iter().map(|tree| tree.iter().map(&mut place).collect()).collect();
        let mut fleet = Domain::new(DomainId::FLEET, 0, "");
        fleet.refs = 1;
        Self { labels, trees, slots: vec![Some(fleet)], free: Vec::new(), full: false }
    }

    pub(super) fn get(&self, id: DomainId) -> Option<&Domain> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: DomainId) -> Option<&mut Domain> {
        self.slots.get_mut(id.0 as usize)?.as_mut()
    }

    /// How many there are, the fleet among them.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether domains were left out for want of room.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// Every domain.
    pub(super) fn ids(&self) -> impl Iterator<Item = DomainId> + '_ {
        let live = self.slots.iter().enumerate().filter(|(_, d)| d.is_some());
        live.map(|(at, _)| DomainId(at as u32))
    }

    /// The domains of a host with these labels, the largest first in each tree; made if need be.
    pub(super) fn path(&mut self, labels: &BTreeMap<String, String>) -> Vec<DomainId> {
        let mut path = vec![DomainId::FLEET];
        for tree in 0..self.trees.len() {
            let mut at = DomainId::FLEET;
            for level in 0..self.trees[tree].len() {
                let label = self.trees[tree][level];
                let Some(value) = labels.get(&self.labels[usize::from(label)]) else { continue };
                let Some(child) = self.child(at, label, value) else { break };
                at = child;
                if !path.contains(&at) {
                    path.push(at);
                }
            }
        }
        path
    }

    fn known_child(&self, parent: DomainId, label: u16, value: &str) -> Option<DomainId> {
        self.get(parent)?.children.get(&label)?.get(value).copied()
    }

    /// Whether a host with these labels lies in a domain, other than the fleet, of which this is true.
    /// Domains in which nothing is are not made for it.
    pub(super) fn any_of(
        &self,
        labels: &BTreeMap<String, String>,
        is: impl Fn(DomainId) -> bool,
    ) -> bool {
        self.trees.iter().any(|tree| {
            let mut at = DomainId::FLEET;
            let values = tree
                .iter()
                .filter_map(|label| Some((*label, labels.get(&self.labels[usize::from(*label)])?)));
            for (label, value) in values {
                let Some(child) = self.known_child(at, label, value) else { return false };
                if is(child) {
                    return true;
                }
                at = child;
            }
            false
        })
    }

    fn child(&mut self, parent: DomainId, label: u16, value: &str) -> Option<DomainId> {
        if let Some(known) = self.known_child(parent, label, value) {
            return Some(known);
        }
        if self.full || self.len() >= DOMAINS_MAX {
            self.full = true;
            return None;
        }
        let domain = Some(Domain::new(parent, label, value));
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id.0 as usize] = domain;
                id
            }
            None => {
                self.slots.push(domain);
                DomainId(self.slots.len() as u32 - 1)
            }
        };
        let parent = self.get_mut(parent)?;
        parent.refs += 1;
        parent.children.entry(label).or_default().insert(value.into(), id);
        Some(id)
    }

    /// The domain with exactly these labels, if there is one.
    pub(super) fn find(&self, labels: &BTreeMap<String, String>) -> Option<DomainId> {
        self.ids().find(|id| self.labels(*id) == *labels)
    }

    /// Keeps domains: something is in them.
    pub(super) fn hold(&mut self, path: &[DomainId]) {
        for id in path {
            if let Some(domain) = self.get_mut(*id) {
                domain.refs += 1;
            }
        }
    }

    /// Lets go of them; what nothing is in any more goes.
    pub(super) fn release(&mut self, path: &[DomainId]) {
        for id in path {
            let mut at = *id;
            while let Some(domain) = self.get_mut(at) {
                domain.refs = domain.refs.saturating_sub(1);
                if domain.refs > 0 || at == DomainId::FLEET {
                    break;
                }
                let (parent, label) = (domain.parent, domain.label);
                let value = std::mem::take(&mut domain.value);
                self.slots[at.0 as usize] = None;
                self.free.push(at);
                if let Some(above) = self.get_mut(parent)
                    && let Some(by_value) = above.children.get_mut(&label)
                {
                    by_value.remove(&value);
                    if by_value.is_empty() {
                        above.children.remove(&label);
                    }
                }
                at = parent;
            }
        }
    }

    /// A host's row has changed. Answers the domains in which it is silent now and was not before.
    pub(super) fn shift(
        &mut self,
        old: Option<&HostRow>,
        new: Option<&HostRow>,
    ) -> Option<Vec<DomainId>> {
        let (before, after) = (old.and_then(part), new.and_then(part));
        let moved = match (old, new) {
            (Some(old), Some(new)) => old.labels != new.labels,
            _ => true,
        };
        if before == after && (!moved || before.is_none()) {
            return None;
        }
        // First in, then out: domains that it stays in are not unmade on the way.
        let mut risen = None;
        if let (Some(new), Some(part)) = (new, after) {
            let path = self.path(&new.labels);
            self.hold(&path);
            self.count(&path, part, 1);
            risen = (part == Part::Suspect && before != after).then_some(path);
        }
        if let (Some(old), Some(part)) = (old, before) {
            let path = self.path(&old.labels);
            self.count(&path, part, -1);
            self.release(&path);
        }
        risen
    }

    fn count(&mut self, path: &[DomainId], part: Part, by: i32) {
        for id in path {
            let Some(domain) = self.get_mut(*id) else { continue };
            match part {
                Part::Heard => domain.heard = domain.heard.saturating_add_signed(by),
                Part::Suspect => domain.suspect = domain.suspect.saturating_add_signed(by),
                Part::Apart => {}
            }
        }
    }

    /// A domain's labels; the fleet has none.
    pub(super) fn labels(&self, id: DomainId) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        let mut at = id;
        while at != DomainId::FLEET {
            let Some(domain) = self.get(at) else { break };
            let name = self.labels[usize::from(domain.label)].clone();
            labels.insert(name, domain.value.to_string());
            at = domain.parent;
        }
        labels
    }

    /// A domain's name: `zone=a,rack=7`, from the largest down, or `fleet`.
    pub(super) fn name(&self, id: DomainId) -> String {
        let mut parts = Vec::new();
        let mut at = id;
        while at != DomainId::FLEET {
            let Some(domain) = self.get(at) else { break };
            parts.push(format!("{}={}", self.labels[usize::from(domain.label)], domain.value));
            at = domain.parent;
        }
        if parts.is_empty() {
            return "fleet".to_owned();
        }
        parts.reverse();
        parts.join(",")
    }

    /// How many domains it lies in.
    pub(super) fn depth(&self, id: DomainId) -> usize {
        let (mut at, mut depth) = (id, 0);
        while at != DomainId::FLEET {
            let Some(domain) = self.get(at) else { break };
            (at, depth) = (domain.parent, depth + 1);
        }
        depth
    }

    /// Whether `inner` lies in `outer`, or is it.
    pub(super) fn is_within(&self, inner: DomainId, outer: DomainId) -> bool {
        let mut at = inner;
        loop {
            if at == outer {
                return true;
            }
            if at == DomainId::FLEET {
                return false;
            }
            let Some(domain) = self.get(at) else { return false };
            at = domain.parent;
        }
    }
}

/// Reads a domain's name; the order of its labels does not matter. `Err` says what is wrong.
pub fn parse_name(text: &str) -> Result<BTreeMap<String, String>, String> {
    if text == "fleet" {
        return Ok(BTreeMap::new());
    }
    let pair = |part: &str| {
        let (label, value) = part.split_once('=')?;
        (!label.is_empty()).then(|| (label.to_owned(), value.to_owned()))
    };
    text.split(',').map(pair).collect::<Option<_>>().ok_or_else(|| {
        format!("`{text}` is no domain: write `fleet`, or labels such as `zone=a,rack=7`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::new_row;
    use heartwatch_common::id::HostId;
    use heartwatch_common::time::Wall;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    fn trees() -> Vec<Vec<String>> {
        let tree = |labels: &[&str]| labels.iter().map(|l| (*l).to_owned()).collect();
        vec![tree(&["zone", "rack"]), tree(&["power"])]
    }

    fn row(n: u8, labels: &[(&str, &str)], state: State) -> HostRow {
        let mut row = new_row(HostId([n; 16]), Wall(0));
        row.labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        row.state = state;
        row
    }

    #[test]
    fn a_host_is_in_the_fleet_and_in_every_domain_that_its_labels_name() {
        let mut d = Domains::new(&trees());
        let names = |d: &mut Domains, labels: &[(&str, &str)]| {
            let path = d.path(&row(1, labels, State::Alive).labels);
            path.into_iter().map(|id| d.name(id)).collect::<Vec<_>>()
        };
        assert_eq!(names(&mut d, &[]), ["fleet"]);
        let all = [("zone", "a"), ("rack", "7"), ("power", "p"), ("pool", "db")];
        assert_eq!(names(&mut d, &all), ["fleet", "zone=a", "zone=a,rack=7", "power=p"]);
        assert_eq!(names(&mut d, &[("rack", "7")]), ["fleet", "rack=7"]);
        let named = parse_name("rack=7,zone=a").unwrap();
        assert_eq!(d.find(&named).map(|id| d.name(id)), Some("zone=a,rack=7".to_owned()));
        assert_eq!(parse_name("fleet"), Ok(BTreeMap::new()));
        assert!(parse_name("zone").unwrap_err().contains("zone=a"));
    }

    /// Whatever happens to hosts, in whatever order, the counts are those of the rows as they stand, and
    /// domains that nobody is in are gone.
    #[test]
    fn counts_are_those_of_the_rows() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut d = Domains::new(&trees());
        let mut rows: BTreeMap<u8, HostRow> = BTreeMap::new();
        for step in 0..20_000 {
            let n = rng.random_range(0..30u8);
            let old = rows.get(&n).cloned();
            let new = (!rng.random_bool(0.1)).then(|| {
                let mut new = row(n, &[], State::ALL[rng.random_range(0..5usize)]);
                for (label, values) in [("zone", 2u8), ("rack", 3), ("power", 2)] {
                    if rng.random_bool(0.8) {
                        let value = rng.random_range(0..values).to_string();
                        new.labels.insert(label.to_owned(), value);
                    }
                }
                new.cause = match (new.state, rng.random_range(0..3)) {
                    (State::Down, 0) => Some(Cause::AgentLost),
                    (State::Suspect, 0) => Some(Cause::Unreachable),
                    _ => None,
                };
                new
            });
            d.shift(old.as_ref(), new.as_ref());
            match new {
                Some(new) => drop(rows.insert(n, new)),
                None => drop(rows.remove(&n)),
            }
            if step % 100 == 0 {
                let ids: Vec<_> = d.ids().collect();
                for id in ids {
                    let labels = d.labels(id);
                    let name = d.name(id);
                    let of = |wanted: Part| {
                        let mut copy = Domains::new(&trees());
                        let inside = rows.values().filter(|r| part(r) == Some(wanted));
                        inside
                            .filter(|r| {
                                let path = copy.path(&r.labels);
                                path.iter().any(|p| copy.labels(*p) == labels)
                            })
                            .count() as u32
                    };
                    let domain = d.get(id).unwrap();
                    assert_eq!(domain.heard, of(Part::Heard), "{name}");
                    assert_eq!(domain.suspect, of(Part::Suspect), "{name}");
                }
            }
        }
        let last: Vec<_> = rows.into_values().collect();
        last.iter().for_each(|row| drop(d.shift(Some(row), None)));
        assert_eq!(d.len(), 1, "only the fleet is left");
    }

    #[test]
    fn labels_without_bound_make_domains_with_one() {
        let mut d = Domains::new(&trees());
        let host = |n: usize| row(1, &[("zone", &n.to_string())], State::Alive);
        for n in 0..DOMAINS_MAX + 50 {
            d.shift(None, Some(&host(n)));
        }
        assert!(d.is_full() && d.len() == DOMAINS_MAX);
        assert_eq!(d.get(DomainId::FLEET).unwrap().heard as usize, DOMAINS_MAX + 50);
        // One that was left out stays so, or what it counted for would be taken from others.
        d.shift(Some(&host(0)), None);
        d.shift(Some(&host(DOMAINS_MAX + 10)), None);
        assert_eq!(d.len(), DOMAINS_MAX - 1);
        assert_eq!(d.get(DomainId::FLEET).unwrap().heard as usize, DOMAINS_MAX + 48);
    }
}
