//! What waits to be written, in order, and how much of it goes into one transaction. Pure.

use std::collections::{BTreeSet, VecDeque};

use heartwatch_common::id::HostId;

use crate::store::{HostRow, NewEvent, READ_LEN_MAX, RECORD_LEN_MAX};

/// Things that wait to be written.
pub const WORK_MAX: usize = 2_000;
/// Rows among them; one operator's import may go beyond it.
pub const ROWS_MAX: usize = 20_000;

/// Something to be written, in order.
#[derive(Debug)]
pub(super) enum Work<D> {
    Event(Box<NewEvent>),
    Rows(Vec<HostRow>),
    Forget(HostId, Box<NewEvent>),
    /// Judge all that is held again.
    Release,
    Put(&'static str, Option<String>),
    /// All before this is written: say so.
    Done(D),
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
    rows: usize,
}

impl<D> Default for Queue<D> {
    fn default() -> Self {
        Self { work: VecDeque::new(), rows: 0 }
    }
}

impl<D> Queue<D> {
    pub(super) fn has_room(&self) -> bool {
        self.work.len() < WORK_MAX && self.rows < ROWS_MAX
    }

    pub(super) fn len(&self) -> usize {
        self.work.len()
    }

    pub(super) fn push(&mut self, work: Work<D>) {
        self.work.push_back(work);
    }

    /// A row that changed without an event.
    pub(super) fn save(&mut self, row: HostRow) {
        self.rows += 1;
        if let Some(Work::Rows(rows)) = self.work.back_mut()
            && rows.len() < READ_LEN_MAX
        {
            rows.push(row);
            return;
        }
        self.work.push_back(Work::Rows(vec![row]));
    }

    /// Takes what can be written in one go: a run of rows and events, or one thing of another kind.
    pub(super) fn next_batch(&mut self) -> Option<Batch<D>> {
        let (mut rows, mut events) = (Vec::new(), Vec::new());
        let mut told = BTreeSet::new();
        while let Some(next) = self.work.pop_front() {
            match next {
                Work::Event(event) if events.len() < RECORD_LEN_MAX => {
                    told.extend(event.host);
                    events.push(*event);
                }
                // Rows are written before events: those that are newer than an event must wait.
                Work::Rows(more)
                    if rows.len() + more.len() <= READ_LEN_MAX
                        && !more.iter().any(|row| told.contains(&row.id)) =>
                {
                    self.rows -= more.len();
                    rows.extend(more);
                }
                Work::Event(_) | Work::Rows(_) => {
                    self.work.push_front(next);
                    break;
                }
                other if rows.is_empty() && events.is_empty() => return Some(Batch::Other(other)),
                other => {
                    self.work.push_front(other);
                    break;
                }
            }
        }
        (!rows.is_empty() || !events.is_empty()).then_some(Batch::Record(rows, events))
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
    /// their order, and nothing is lost.
    #[test]
    fn any_mix_is_written_as_if_one_by_one() {
        for seed in 0..300 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut queue = Queue::default();
            let mut newest = BTreeMap::new();
            let (mut told, mut done) = (Vec::new(), 0);
            let hosts = rng.random_range(1..40);
            for version in 0..rng.random_range(1..3_000) {
                let host = rng.random_range(0..hosts);
                match rng.random_range(0..20) {
                    0 => queue.push(Work::Done(())),
                    1..8 => {
                        queue.push(Work::Event(event(host, version, &mut rng)));
                        told.push(version);
                        newest.insert(host, version);
                    }
                    _ => {
                        queue.save(row(host, version));
                        newest.insert(host, version);
                    }
                }
            }
            let mut written = BTreeMap::new();
            let mut heard = Vec::new();
            while let Some(batch) = queue.next_batch() {
                let Batch::Record(rows, events) = batch else {
                    done += 1;
                    continue;
                };
                assert!(rows.len() <= READ_LEN_MAX && events.len() <= RECORD_LEN_MAX);
                heard.extend(events.iter().map(|e| e.at.0));
                let brought = events.into_iter().filter_map(|e| e.row);
                written.extend(rows.into_iter().chain(brought).map(|r| (r.id.0[0], r.since.0)));
            }
            assert_eq!((written, heard), (newest, told));
            assert!(queue.rows == 0 && queue.len() == 0 && done < 3_000);
        }
    }

    #[test]
    fn a_full_queue_says_so_by_things_and_by_rows() {
        let mut queue = Queue::default();
        (0..WORK_MAX).for_each(|_| queue.push(Work::Done(())));
        assert!(!queue.has_room());
        assert!(matches!(queue.next_batch(), Some(Batch::Other(Work::Done(())))));
        assert!(queue.has_room());
        let mut queue = Queue::<()>::default();
        (0..ROWS_MAX).for_each(|n| queue.save(row(0, n as i64)));
        assert!(!queue.has_room() && queue.len() <= ROWS_MAX / READ_LEN_MAX);
        assert!(
            matches!(queue.next_batch(), Some(Batch::Record(rows, _)) if rows.len() == READ_LEN_MAX)
        );
        assert!(queue.has_room());
    }
}
