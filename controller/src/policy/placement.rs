//! Who could take over a failed host's work: alive hosts, least loaded first. Pure.

use std::collections::BTreeMap;

use heartwatch_common::id::HostId;
use heartwatch_common::load::LoadSample;
use serde::Serialize;

use crate::event::State;
use crate::store::HostRow;

/// Candidates that an event names.
pub const CANDIDATES_MAX: usize = 5;
/// Hosts that are looked at for them. In a larger pool these are picks at random, so failures at the same
/// moment do not all name the same five. The best of 64 is among the least loaded 10 % with a chance of
/// 99.9 %, all of the best five with one of 78 % (binomial). A look is a few reads of cold memory: at a
/// million hosts they are what a failover costs the policy.
pub const LOOKED_AT_MAX: usize = 64;

/// A host that could take over.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// Who.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its load as one figure, 0 (idle) to 1000; see [`LoadSample::score`].
    pub load_score: u16,
    /// Its load as its last beat told it.
    pub load: LoadSample,
}

impl Candidate {
    /// A host with its load.
    pub fn new(row: HostRow, load: LoadSample) -> Self {
        Self { id: row.id, name: row.name, labels: row.labels, load_score: load.score(), load }
    }
}

/// Whether a host could take over from `failed`: alive, no duplicate, another one, and equal to it in the
/// labels named `same`.
pub fn fits(row: &HostRow, failed: &HostRow, same: &[String]) -> bool {
    row.state == State::Alive
        && !row.duplicate
        && row.id != failed.id
        && same.iter().all(|l| row.labels.get(l) == failed.labels.get(l))
}

/// Keeps the least loaded hosts of a stream, in bounded memory.
#[derive(Debug, Default)]
pub struct Ranking {
    best: Vec<(u16, HostId, LoadSample)>,
}

impl Ranking {
    /// Considers one host that could take over. One whose load is unknown is not named; one that comes
    /// twice is named once.
    pub fn consider(&mut self, id: HostId, load: Option<LoadSample>) {
        let Some(load) = load else { return };
        let key = (load.score(), id);
        let at = self.best.partition_point(|(score, id, _)| (*score, *id) < key);
        if at >= CANDIDATES_MAX || self.best.iter().any(|(_, other, _)| *other == id) {
            return;
        }
        self.best.insert(at, (key.0, id, load));
        self.best.truncate(CANDIDATES_MAX);
    }

    /// The least loaded ones, best first.
    pub fn finish(self) -> impl Iterator<Item = (HostId, LoadSample)> {
        self.best.into_iter().map(|(_, id, load)| (id, load))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::new_row;
    use heartwatch_common::load::Share;
    use heartwatch_common::time::Wall;

    fn host(n: u8, pool: &str, state: State) -> HostRow {
        let mut row = new_row(HostId([n; 16]), Wall(0));
        row.labels.insert("pool".to_owned(), pool.to_owned());
        row.state = state;
        row
    }

    fn load(busy: f64) -> Option<LoadSample> {
        Some(LoadSample {
            cpu_busy: Share::from_ratio(busy),
            memory_used: Share::from_ratio(0.0),
            run_queue_centi: 0,
            ..LoadSample::UNKNOWN
        })
    }

    #[test]
    fn only_alive_hosts_of_the_same_pool_can_take_over() {
        let failed = host(0, "db", State::Down);
        let same = ["pool".to_owned()];
        assert!(fits(&host(1, "db", State::Alive), &failed, &same));
        assert!(!fits(&host(1, "web", State::Alive), &failed, &same));
        assert!(fits(&host(1, "web", State::Alive), &failed, &[]));
        assert!(!fits(&host(1, "db", State::Suspect), &failed, &same));
        assert!(!fits(&host(0, "db", State::Alive), &failed, &same));
        let twice = HostRow { duplicate: true, ..host(1, "db", State::Alive) };
        assert!(!fits(&twice, &failed, &same));
    }

    #[test]
    fn the_least_loaded_are_named_best_first_and_once() {
        let mut ranking = Ranking::default();
        for n in (1..=9).chain(5..=9) {
            ranking.consider(HostId([n; 16]), load(1.0 - f64::from(n) / 10.0));
        }
        ranking.consider(HostId([22; 16]), None);
        let names: Vec<u8> = ranking.finish().map(|(id, _)| id.0[0]).collect();
        assert_eq!(names, [9, 8, 7, 6, 5]);
    }
}
