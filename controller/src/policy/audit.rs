//! Pure: what the journal keeps of those who use the API, and of hosts that enrol. Rules that name
//! `controller.audit` and have no conditions on labels send the one on, rules that name `host.enrolled` the
//! other; without one nobody is told.

use std::collections::BTreeMap;

use heartwatch_common::time::Wall;
use rand::Rng;
use serde_json::{Map, Value};

use super::Policy;
use crate::event::EventKind;
use crate::store::{HostRow, NewEvent};

impl Policy {
    /// The event of a host that enrolled; `row`: how it is registered. `news` tells the `reason`, too.
    pub fn enrolled<R: Rng + ?Sized>(
        &self,
        row: &HostRow,
        mut news: Map<String, Value>,
        at: Wall,
        rng: &mut R,
    ) -> NewEvent {
        let reason = news.remove("reason").and_then(|r| r.as_str().map(str::to_owned));
        let reason = reason.unwrap_or_else(|| "it enrolled".to_owned());
        self.beside(EventKind::HostEnrolled, row, reason, news, at, rng)
    }

    /// The event of one call that may have changed something.
    pub fn audit_event<R: Rng + ?Sized>(
        &self,
        data: Map<String, Value>,
        at: Wall,
        rng: &mut R,
    ) -> NewEvent {
        self.domain_event(EventKind::ControllerAudit, &BTreeMap::new(), data, at, rng)
    }
}
