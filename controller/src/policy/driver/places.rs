//! What the shell does about placement: it looks through the registry for the policy, keeps its promises
//! over a restart, and answers who could take over.

use heartwatch_common::id::HostId;
use heartwatch_common::time::Clock;
use rand::RngExt;
use serde_json::{Map, Value};

use super::{Running, Work};
use crate::control::{CandidatesAsk, CandidatesReport};
use crate::event::EventKind;
use crate::policy::Policy;
use crate::policy::placement::{Depth, find};
use crate::store::{Store, StoreError};

/// Under which name promises stand in the store.
const PLACES_KEY: &str = "places";

/// Hands a policy what was promised away before the restart.
pub(super) async fn load(
    policy: &mut Policy,
    store: &dyn Store,
    clock: &dyn Clock,
) -> Result<(), StoreError> {
    let Some(saved) = store.get(PLACES_KEY).await? else { return Ok(()) };
    if let Err(e) = policy.resume_places(&saved, clock.now(), clock.wall()) {
        log::error!("what is stored of placements is damaged ({e}): nobody is taken for promised");
    }
    Ok(())
}

impl Running {
    pub(super) fn save_places(&mut self) {
        if let Some(text) = self.d.policy.save_places(self.d.clock.wall()) {
            self.work.push(Work::Put(PLACES_KEY, Some(text)));
        }
    }

    /// Fresh candidates for a held order that goes now.
    pub(super) fn place_again(&mut self, host: HostId) -> Option<Map<String, Value>> {
        let row = self.d.view.get(host)?.row;
        let seed = self.rng.random();
        let (view, at) = (&self.d.view, self.d.clock.wall());
        self.d.policy.place_again(&row, at, |wanted| find(&**view, wanted, Depth::ORDER, seed))
    }

    /// Who could take over, for somebody who asks. Promises nothing away.
    pub(super) fn candidates(&mut self, ask: &CandidatesAsk) -> CandidatesReport {
        let seed = self.rng.random();
        let view = &self.d.view;
        let same = match &ask.same {
            Some(same) => same.clone(),
            None => self.d.policy.candidates_same(EventKind::HostDown, &ask.failed.labels),
        };
        let depth = Depth::asked(ask.limit);
        let placement =
            self.d.policy.place(&ask.failed, &same, |wanted| find(&**view, wanted, depth, seed));
        CandidatesReport { same, placement }
    }
}
