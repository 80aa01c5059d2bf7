//! Who could take over a failed host's work: alive hosts, least loaded first. Pure.

use std::collections::BTreeMap;

use heartwatch_common::id::HostId;
use heartwatch_common::load::LoadSample;
use serde::Serialize;

use crate::event::State;
use crate::store::HostRow;

/// Candidates that an event names.
pub const CANDIDATES_MAX: usize = 5;

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

/// Keeps the least loaded hosts of a stream, in bounded memory.
#[derive(Debug)]
pub struct Ranking<'a> {
    failed: &'a HostRow,
    same: &'a [String],
    best: Vec<Candidate>,
}

impl<'a> Ranking<'a> {
    /// Candidates for the work of `failed`; they must equal it in the labels named `same`.
    pub fn new(failed: &'a HostRow, same: &'a [String]) -> Self {
        Self { failed, same, best: Vec::with_capacity(CANDIDATES_MAX + 1) }
    }

    /// Considers one host.
    pub fn consider(&mut self, row: &HostRow, load: Option<LoadSample>) {
        let fits = row.state == State::Alive
            && !row.duplicate
            && row.id != self.failed.id
            && self.same.iter().all(|l| row.labels.get(l) == self.failed.labels.get(l));
        let Some(load) = load.filter(|_| fits) else { return };
        let key = (load.score(), row.id);
        let at = self.best.partition_point(|c| (c.load_score, c.id) < key);
        if at >= CANDIDATES_MAX {
            return;
        }
        self.best.insert(
            at,
            Candidate {
                id: row.id,
                name: row.name.clone(),
                labels: row.labels.clone(),
                load_score: key.0,
                load,
            },
        );
        self.best.truncate(CANDIDATES_MAX);
    }

    /// The least loaded ones, best first.
    pub fn finish(self) -> Vec<Candidate> {
        self.best
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
    fn the_least_loaded_alive_hosts_of_the_same_pool_are_named_best_first() {
        let failed = host(0, "db", State::Down);
        let same = ["pool".to_owned()];
        let mut ranking = Ranking::new(&failed, &same);
        for n in 1..=9 {
            ranking.consider(&host(n, "db", State::Alive), load(1.0 - f64::from(n) / 10.0));
        }
        ranking.consider(&host(20, "web", State::Alive), load(0.0));
        ranking.consider(&host(21, "db", State::Suspect), load(0.0));
        ranking.consider(&host(22, "db", State::Alive), None);
        ranking.consider(&failed, load(0.0));
        let names: Vec<u8> = ranking.finish().iter().map(|c| c.id.0[0]).collect();
        assert_eq!(names, [9, 8, 7, 6, 5]);
    }
}
