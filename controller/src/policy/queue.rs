//! What waits to be written, and how much of it goes into one transaction. Pure.
//!
//! Events and orders are written in order. A row that changed without an event has no place in that order:
//! only *that* it changed is kept, and what is written is its newest state. Such rows are taken like a
//! lift takes floors, in the order of host ids and round and round: rows that are neighbours in the
//! registry are then written together, which makes a page of it change once for many of them, where a fleet
//! that comes in any order would change a page for each. A host that has something in the ordered queue is
//! passed over until that is written: its newest row must not tell of an event that is not journaled.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use heartwatch_common::id::HostId;
use serde_json::{Map, Value};

use super::Part;
use crate::store::{HostRow, NewEvent, READ_LEN_MAX, RECORD_LEN_MAX};

/// Things that wait to be written in order.
pub const WORK_MAX: usize = 2_000;
/// Rows among them; one operator's import may go beyond it.
pub const ROWS_MAX: usize = 20_000;
/// Changed rows that are looked at for one transaction.
const LOOKS_MAX: usize = 2 * READ_LEN_MAX;

/// Something to be written, in order.
#[derive(Debug)]
pub(super) enum Work<D> {
    Event(Box<NewEvent>),
    /// Rows that somebody waits for.
    Rows(Vec<HostRow>),
    Forget(HostId, Box<NewEvent>),
    /// Judge what is held of a host, but for these receivers, against how it stands now; what goes names
    /// these candidates.
    Release(HostId, Vec<String>, Option<Map<String, Value>>),
    /// The same of what a rule kept back from one receiver.
    Part(Box<Part>, Option<Map<String, Value>>),
    /// Cancel what is held of a host.
    Cancel(HostId, String),
    Put(&'static str, Option<String>),
    /// The same under a name that is made up as things go.
    Keep(String, Option<String>),
    /// All before this is written: say so.
    Done(D),
}

impl<D> Work<D> {
    fn hosts(&self) -> impl Iterator<Item = HostId> + '_ {
        let (one, rows) = match self {
            Self::Event(event) => (event.host, &[][..]),
            Self::Forget(host, _) => (Some(*host), &[][..]),
            Self::Rows(rows) => (None, rows.as_slice()),
            Self::Release(..)
            | Self::Part(..)
            | Self::Cancel(..)
            | Self::Put(..)
            | Self::Keep(..)
            | Self::Done(_) => (None, &[][..]),
        };
        one.into_iter().chain(rows.iter().map(|row| row.id))
    }
}

/// What is written in one go.
#[derive(Debug)]
pub(super) enum Batch<D> {
    /// First the rows, then the events.
    Record(Vec<HostRow>, Vec<NewEvent>),
    Other(Work<D>),
}

#[derive(Debug)]
pub(super) struct Queue<D> {
    work: VecDeque<Work<D>>,
    /// Rows in `work`.
    rows: usize,
    /// Of every host in `work`, how many things are about it.
    told: BTreeMap<HostId, u32>,
    /// Hosts whose rows changed without an event.
    changed: BTreeSet<HostId>,
    /// Where the lift stands: rows up to this one were taken.
    lift: Option<HostId>,
}

impl<D> Default for Queue<D> {
    fn default() -> Self {
        Self {
            work: VecDeque::new(),
            rows: 0,
            told: BTreeMap::new(),
            changed: BTreeSet::new(),
            lift: None,
        }
    }
}

impl<D> Queue<D> {
    pub(super) fn has_room(&self) -> bool {
        self.work.len() < WORK_MAX && self.rows < ROWS_MAX
    }

    /// Things that wait in order.
    pub(super) fn len(&self) -> usize {
        self.work.len()
    }

    /// Rows that changed without an event and wait: never more than there are hosts.
    pub(super) fn changed_len(&self) -> usize {
        self.changed.len()
    }

    pub(super) fn push(&mut self, work: Work<D>) {
        for host in work.hosts() {
            *self.told.entry(host).or_default() += 1;
        }
        if let Work::Rows(rows) = &work {
            self.rows += rows.len();
        }
        self.work.push_back(work);
    }

    /// A host's row changed without an event: its newest state is to be written, sooner or later.
    pub(super) fn change(&mut self, host: HostId) {
        self.changed.insert(host);
    }

    fn pop(&mut self) -> Option<Work<D>> {
        let work = self.work.pop_front()?;
        for host in work.hosts() {
            if let Some(n) = self.told.get_mut(&host) {
                *n -= 1;
                if *n == 0 {
                    self.told.remove(&host);
                }
            }
        }
        Some(work)
    }

    /// Takes what can be written in one go: rows and a run of events, or one thing of another kind.
    /// `newest` knows the present row of a host, if it is still known.
    pub(super) fn next_batch(
        &mut self,
        newest: impl FnMut(HostId) -> Option<HostRow>,
    ) -> Option<Batch<D>> {
        let (mut rows, mut events) = (Vec::new(), Vec::new());
        let mut told = BTreeSet::new();
        while let Some(next) = self.work.front() {
            match next {
                Work::Event(_) if events.len() < RECORD_LEN_MAX => {}
                // Rows are written before events: those that are newer than an event must wait.
                Work::Rows(more)
                    if rows.len() + more.len() <= READ_LEN_MAX
                        && !more.iter().any(|row| told.contains(&row.id)) => {}
                Work::Event(_) | Work::Rows(_) => break,
                _ if rows.is_empty() && events.is_empty() => {
                    return self.pop().map(Batch::Other);
                }
                _ => break,
            }
            match self.pop() {
                Some(Work::Event(event)) => {
                    told.extend(event.host);
                    events.push(*event);
                }
                Some(Work::Rows(more)) => {
                    self.rows -= more.len();
                    told.extend(more.iter().map(|row| row.id));
                    rows.extend(more);
                }
                _ => {}
            }
        }
        self.ride(&told, newest, &mut rows);
        (!rows.is_empty() || !events.is_empty()).then_some(Batch::Record(rows, events))
    }

    /// Takes changed rows from where the lift stands, past those in `told` and those with something queued.
    fn ride(
        &mut self,
        told: &BTreeSet<HostId>,
        mut newest: impl FnMut(HostId) -> Option<HostRow>,
        rows: &mut Vec<HostRow>,
    ) {
        for _ in 0..LOOKS_MAX.min(self.changed.len()) {
            if rows.len() >= READ_LEN_MAX {
                return;
            }
            let above = self.lift.map_or(Bound::Unbounded, Bound::Excluded);
            let next = self.changed.range((above, Bound::Unbounded)).next();
            let Some(host) = next.or_else(|| self.changed.first()).copied() else { return };
            self.lift = Some(host);
            if told.contains(&host) || self.told.contains_key(&host) {
                continue;
            }
            self.changed.remove(&host);
            rows.extend(newest(host));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventId, EventKind};
    use crate::policy::new_row;
    use crate::store::{Audience, Settle};
    use heartwatch_common::time::Wall;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use std::collections::BTreeMap;

    fn row(host: u8, version: i64) -> HostRow {
        HostRow { since: Wall(version), ..new_row(HostId([host; 16]), Wall(0)) }
    }

    fn event(host: u8, version: i64, rng: &mut StdRng) -> Box<NewEvent> {
        Box::new(NewEvent {
            id: EventId::new(Wall(version), rng),
            kind: EventKind::HostDown,
            at: Wall(version),
            host: Some(HostId([host; 16])),
            incident: None,
            data: Default::default(),
            row: Some(row(host, version)),
            settle: Settle::Nothing,
            deliveries: Vec::new(),
            audience: Audience::All,
        })
    }

    /// Whatever is mixed with whatever: the newest row of each host is the last one written, events keep
    /// their order, no row tells of an event that is not written yet, and nothing is lost.
    #[test]
    fn any_mix_is_written_as_if_one_by_one() {
        for seed in 0..300 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut queue = Queue::default();
            let mut newest = BTreeMap::new();
            let (mut told, mut done) = (Vec::new(), 0);
            let hosts = rng.random_range(1..40);
            let (mut written, mut heard) = (BTreeMap::new(), Vec::new());
            let mut take = |queue: &mut Queue<()>, newest: &BTreeMap<u8, i64>| {
                let known = |id: HostId| newest.get(&id.0[0]).map(|version| row(id.0[0], *version));
                let Some(batch) = queue.next_batch(known) else { return false };
                let Batch::Record(rows, events) = batch else {
                    done += 1;
                    return true;
                };
                assert!(rows.len() <= READ_LEN_MAX && events.len() <= RECORD_LEN_MAX);
                heard.extend(events.iter().map(|e| e.at.0));
                for row in &rows {
                    let told_before = |w: &Work<()>| match w {
                        Work::Event(e) => e.host == Some(row.id) && e.at.0 <= row.since.0,
                        _ => false,
                    };
                    assert!(!queue.work.iter().any(told_before), "a row tells of what waits");
                }
                let brought = events.into_iter().filter_map(|e| e.row);
                written.extend(rows.into_iter().chain(brought).map(|r| (r.id.0[0], r.since.0)));
                true
            };
            for version in 0..rng.random_range(1..3_000) {
                let host = rng.random_range(0..hosts);
                match rng.random_range(0..200) {
                    0..10 => queue.push(Work::Done(())),
                    10..80 => {
                        queue.push(Work::Event(event(host, version, &mut rng)));
                        told.push(version);
                        newest.insert(host, version);
                    }
                    80..100 => {
                        queue.push(Work::Rows(vec![row(host, version)]));
                        newest.insert(host, version);
                    }
                    100 => {
                        take(&mut queue, &newest);
                    }
                    _ => {
                        queue.change(HostId([host; 16]));
                        newest.insert(host, version);
                    }
                }
            }
            while take(&mut queue, &newest) {}
            assert_eq!((written, heard), (newest, told));
            assert!(queue.rows == 0 && queue.len() == 0 && done < 3_000);
            assert!(queue.told.is_empty() && queue.changed_len() == 0);
        }
    }

    #[test]
    fn rows_that_changed_are_written_once_in_the_order_of_the_registry_round_and_round() {
        let mut queue = Queue::<()>::default();
        let mut ride = |changed: &[u8]| {
            changed.iter().for_each(|host| queue.change(HostId([*host; 16])));
            match queue.next_batch(|id| (id.0[0] != 9).then(|| row(id.0[0], 0))) {
                Some(Batch::Record(rows, _)) => rows.iter().map(|r| r.id.0[0]).collect(),
                _ => Vec::new(),
            }
        };
        assert_eq!(ride(&[5, 3, 7, 3, 9, 5]), [3, 5, 7], "a forgotten host is passed over");
        assert_eq!(ride(&[6, 4, 8, 1]), [1, 4, 6, 8]);
        assert_eq!(ride(&[]), [0; 0]);
    }

    #[test]
    fn a_full_queue_says_so_by_things_and_by_rows() {
        let mut queue = Queue::default();
        let none = |_| None;
        (0..WORK_MAX).for_each(|_| queue.push(Work::Done(())));
        assert!(!queue.has_room());
        assert!(matches!(queue.next_batch(none), Some(Batch::Other(Work::Done(())))));
        assert!(queue.has_room());
        let mut queue = Queue::<()>::default();
        let rows = |_| Work::Rows((0..READ_LEN_MAX).map(|n| row(0, n as i64)).collect());
        (0..ROWS_MAX / READ_LEN_MAX).map(rows).for_each(|work| queue.push(work));
        assert!(!queue.has_room());
        assert!(
            matches!(queue.next_batch(none), Some(Batch::Record(rows, _)) if rows.len() == READ_LEN_MAX)
        );
        assert!(queue.has_room());
    }
}
