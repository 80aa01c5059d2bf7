use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use heartwatch_common::id::{Boot, Generation};
use heartwatch_common::time::{Instant, Wall};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::event::{Cause, IncidentId};
use crate::policy::placement::{Draw, Pool, Seen};

fn row(n: u8, state: State, zone: &str) -> HostRow {
    HostRow {
        id: HostId([n; 16]),
        name: format!("host-{n}"),
        labels: BTreeMap::from([("zone".to_owned(), zone.to_owned())]),
        os: String::new(),
        agent_version: String::new(),
        state,
        cause: None,
        boot: Boot(1),
        generation: Generation(0),
        address: None,
        first_seen: Wall(0),
        since: Wall(0),
        incident: None,
        duplicate: false,
        frozen_ms: None,
        back_by: None,
    }
}

#[test]
fn pages_walk_every_host_once_while_hosts_come_and_go() {
    let view = View::default();
    for n in 0..10 {
        view.upsert(row(n, State::Alive, "a"), None);
    }
    let (first, next) = view.list(&Filter::default(), 0, 4);
    assert_eq!((first.len(), next), (4, Some(4)));
    view.remove(HostId([0; 16]));
    view.upsert(row(50, State::Alive, "a"), None);
    let (rest, next) = view.list(&Filter::default(), next.unwrap(), 100);
    assert_eq!((rest.len(), next), (6, None));
}

#[test]
fn filters_and_counts_follow_the_rows() {
    let view = View::default();
    view.upsert(row(1, State::Alive, "a"), None);
    view.upsert(row(2, State::Alive, "b"), None);
    view.upsert(row(2, State::Down, "b"), None);
    let filter = Filter { states: vec![State::Down], ..Filter::default() };
    assert_eq!(view.list(&filter, 0, 10).0.len(), 1);
    let filter =
        Filter { labels: BTreeMap::from([("zone".into(), "a".into())]), ..Filter::default() };
    assert_eq!(view.list(&filter, 0, 10).0.len(), 1);
    assert_eq!(view.counts(), [0, 1, 0, 1, 0, 0]);
    assert_eq!(view.by_name("host-2").len(), 1);
    assert!(view.remove(HostId([2; 16])) && !view.remove(HostId([2; 16])));
    assert_eq!(view.counts(), [0, 1, 0, 0, 0, 0]);
}

#[test]
fn a_cell_stays_with_its_host_until_another_is_brought() {
    let view = View::default();
    let (old, new) = (view.live().take(0), view.live().take(0));
    view.live().beat(old, Instant(5), 1_000_000, None, &Lesson::default());
    view.upsert(row(1, State::Pending, "a"), Some(old));
    view.upsert(row(1, State::Alive, "a"), None);
    let seen = || view.get(HostId([1; 16])).unwrap().live.last_arrival;
    assert_eq!(seen(), Some(Instant(5)));
    view.upsert(row(1, State::Alive, "a"), Some(new));
    assert_eq!(seen(), None);
}

/// What comes and goes leaves nothing behind.
#[test]
fn churn_does_not_fill_the_registry() {
    let view = View::default();
    for round in 0..2_000u32 {
        let n = (round % 50) as u8;
        let mut row = row(n, State::Alive, &format!("zone-{round}"));
        row.name = format!("name {}", "x".repeat(round as usize % 90));
        row.address = Some(SocketAddr::from(([0xfe80, 0, 0, 0, 0, 0, 0, n.into()], 1)));
        view.upsert(&row, None);
        if round % 3 == 0 {
            view.remove(row.id);
        }
    }
    for n in 0..50 {
        view.remove(HostId([n; 16]));
    }
    let registry = view.read();
    assert_eq!((registry.sets.len(), registry.texts.len()), (0, 0));
    assert!(registry.rows.end() <= 50);
    assert!(registry.sets.end() <= 51);
}

#[test]
fn a_large_pool_is_sampled_within_its_bound() {
    let view = View::default();
    let host = |n: u32| HostRow {
        id: HostId(u128::from(n).to_be_bytes()),
        ..row(0, State::Alive, if n.is_multiple_of(2) { "even" } else { "odd" })
    };
    (0..20_000).for_each(|n| view.upsert(host(n), None));
    let same = ["zone".to_owned()];
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let mut picks = 0;
        view.pool(&host(2), &same, 128, seed, |id, _| {
            picks += 1;
            seen.insert(u128::from_be_bytes(id.0));
        });
        assert!(picks <= 128);
    }
    assert!(seen.iter().all(|n| n % 2 == 0 && *n != 2));
    assert!(seen.len() > 6_000, "{} of 9,999 were ever picked in 12,800 picks", seen.len());
}

/// The same, obviously right.
#[derive(Default)]
struct Oracle {
    slots: Vec<Option<(HostRow, u64)>>,
    free: Vec<usize>,
    change: u64,
}

impl Oracle {
    fn slot(&self, id: HostId) -> Option<usize> {
        self.slots.iter().position(|s| s.as_ref().is_some_and(|(r, _)| r.id == id))
    }

    fn upsert(&mut self, row: &HostRow) {
        self.change += 1;
        let slot = self.slot(row.id).or_else(|| self.free.pop()).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some((row.clone(), self.change));
    }

    fn remove(&mut self, id: HostId) -> bool {
        let Some(slot) = self.slot(id) else { return false };
        self.slots[slot] = None;
        self.free.push(slot);
        self.change += 1;
        true
    }

    fn rows(&self) -> impl Iterator<Item = &HostRow> {
        self.slots.iter().flatten().map(|(row, _)| row)
    }

    fn list(&self, filter: &Filter, from: usize, limit: usize) -> (Vec<usize>, Option<u64>) {
        let mut page = Vec::new();
        for slot in from..self.slots.len() {
            if page.len() == limit {
                return (page, Some(slot as u64));
            }
            page.extend(self.slots[slot].iter().filter(|(r, _)| filter.matches(r)).map(|_| slot));
        }
        (page, None)
    }
}

const NAMES: [&str; 8] = ["", "web-1", "web-01", "web-2", "db", "db7.rack12", "ü\u{1}9", "web-12"];
const LABELS: [&str; 3] = ["zone", "rack", "pool"];

fn any_labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let values = select(vec!["", "a", "b", "zone"]);
    prop::collection::btree_map(select(LABELS.to_vec()), values, 0..3)
        .prop_map(|m| m.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

fn any_row() -> impl Strategy<Value = HostRow> {
    let addresses = ["192.0.2.1:9", "[::ffff:192.0.2.1]:9", "[2001:db8::1]:65535", "[fe80::1%3]:7"];
    let addresses = addresses.map(|a| a.parse::<SocketAddr>().unwrap());
    let who = (0u8..8, select(NAMES.to_vec()), any_labels(), select(vec!["", "Linux 6"]));
    let how = (
        select(State::ALL.to_vec()),
        prop::option::of(select(Cause::ALL.to_vec())),
        prop::option::of(select(addresses.to_vec())),
        any::<bool>(),
    );
    let rare = (
        prop::option::of(any::<[u8; 16]>()),
        prop::option::of(any::<u64>()),
        any::<(u32, u16)>(),
        0..1i64 << 47,
        // Before it was first seen, or up to 139 years after it: rows keep 34 in five bytes.
        prop_oneof![-1i64 << 40..0, 0i64..1 << 30, 0i64..1 << 42],
    );
    (who, how, rare).prop_map(|(who, how, rare)| HostRow {
        id: HostId([who.0; 16]),
        name: who.1.to_owned(),
        labels: who.2,
        os: who.3.to_owned(),
        agent_version: if who.0 % 2 == 0 { "1.0".to_owned() } else { String::new() },
        state: how.0,
        cause: how.1,
        boot: Boot(rare.2.0),
        generation: Generation(rare.2.1),
        address: how.2,
        first_seen: Wall(rare.3),
        since: Wall(rare.3 + rare.4),
        incident: rare.0.map(|b| IncidentId(uuid::Uuid::from_bytes(b))),
        duplicate: how.3,
        frozen_ms: rare.1,
        back_by: rare.1.map(|ms| Wall(ms as i64 / 2)),
    })
}

fn any_filter() -> impl Strategy<Value = Filter> {
    let states = prop::collection::vec(select(State::ALL.to_vec()), 0..3);
    let part = prop::option::of(select(vec!["", "web", "1", "b7.r", "x"]));
    (states, any_labels(), part).prop_map(|(states, labels, part)| Filter {
        states,
        labels,
        name_contains: part.map(str::to_owned),
    })
}

#[derive(Clone, Debug)]
enum Step {
    Upsert(Box<HostRow>),
    Remove(u8),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![3 => any_row().prop_map(|r| Step::Upsert(r.into())), 1 => (0u8..8).prop_map(Step::Remove)]
}

fn check(
    view: &View,
    oracle: &Oracle,
    filter: &Filter,
    from: usize,
    limit: usize,
) -> Result<(), TestCaseError> {
    prop_assert_eq!(view.change(), oracle.change);
    for id in (0..8).map(|n| HostId([n; 16])) {
        let wanted = oracle.slot(id).and_then(|slot| oracle.slots[slot].clone());
        let found = view.get(id).map(|h| (h.row, h.changed));
        prop_assert_eq!(view.contains(id), found.is_some());
        prop_assert_eq!(found, wanted);
    }
    let counts = State::ALL.map(|s| oracle.rows().filter(|r| r.state == s).count() as u64);
    prop_assert_eq!(view.counts(), counts);
    let duplicates =
        State::ALL.map(|s| oracle.rows().filter(|r| r.state == s && r.duplicate).count() as u64);
    prop_assert_eq!(view.duplicates(), duplicates);
    let (page, next) = view.list(filter, from as u64, limit);
    let wanted = oracle.list(filter, from, limit);
    prop_assert_eq!((page.iter().map(|h| h.slot as usize).collect(), next), wanted);
    for name in NAMES {
        let count = oracle.rows().filter(|r| r.name == name).count().min(2);
        let named = view.by_name(name);
        prop_assert!(named.len() == count && named.iter().all(|h| h.row.name == name));
    }
    let same: Vec<String> = filter.labels.keys().cloned().chain(["none".to_owned()]).collect();
    for failed in oracle.rows() {
        let mut found = BTreeSet::new();
        view.pool(failed, &same, 1_000, 0, |id, _| {
            found.insert(id);
        });
        let pool = oracle.rows().filter(|r| {
            let equal = |label: &String| r.labels.get(label) == failed.labels.get(label);
            r.id != failed.id && same.iter().all(equal)
        });
        let pool: Vec<&HostRow> = pool.collect();
        let fitting = pool.iter().filter(|r| r.state == State::Alive && !r.duplicate);
        prop_assert_eq!(found, fitting.map(|r| r.id).collect::<BTreeSet<_>>());
        let mut seen = BTreeSet::new();
        let draw = Draw { picks: 1, seed: 0 };
        let whole = view.look(failed, &same, 1_000, draw, &mut |s: Seen| {
            seen.insert((s.id, s.state, s.duplicate));
        });
        let all: BTreeSet<_> = pool.iter().map(|r| (r.id, r.state, r.duplicate)).collect();
        prop_assert!(whole && seen == all);
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_history_shows_what_a_plain_list_would(
        steps in prop::collection::vec((any_step(), any_filter(), 0usize..9, 1usize..9), 1..120),
    ) {
        let (view, mut oracle) = (View::default(), Oracle::default());
        for (step, filter, from, limit) in steps {
            match step {
                Step::Upsert(row) => {
                    view.upsert(&*row, None);
                    oracle.upsert(&row);
                }
                Step::Remove(n) => {
                    let id = HostId([n; 16]);
                    prop_assert_eq!(view.remove(id), oracle.remove(id));
                }
            }
            check(&view, &oracle, &filter, from, limit)?;
        }
    }
}

#[test]
fn label_sets_are_told_with_their_hosts_and_no_more_than_wanted() {
    let view = View::default();
    let put = |n: u8, pool: &str| {
        let labels = [("pool".to_owned(), pool.to_owned())].into();
        view.upsert(HostRow { labels, ..crate::policy::new_row(HostId([n; 16]), Wall(0)) }, None);
    };
    (0..7).for_each(|n| put(n, "db"));
    (7..9).for_each(|n| put(n, "web"));
    put(9, "gone");
    view.remove(HostId([9; 16]));
    let mut told = Vec::new();
    view.label_sets(10, |labels, hosts| told.push((labels["pool"].clone(), hosts)));
    assert_eq!(told, [("db".to_owned(), 7), ("web".to_owned(), 2)]);
    let mut sets = 0;
    view.label_sets(1, |_, _| sets += 1);
    assert_eq!(sets, 1);
}

#[test]
fn a_host_is_called_by_name_and_id_on_one_line() {
    let view = View::default();
    let id = HostId([1; 16]);
    assert_eq!(view.called(id), id.to_string());
    let named = HostRow { name: "web-1\n<3>all is well".to_owned(), ..row(1, State::Alive, "z") };
    view.upsert(named, None);
    assert_eq!(view.called(id), format!("web-1<3>all is well ({id})"));
}
