//! Pure: what the journal keeps of those who use the API. Rules that name `controller.audit` and have no
//! conditions on labels send it on; without one nobody is told.

use std::collections::BTreeMap;

use heartwatch_common::time::Wall;
use rand::Rng;
use serde_json::{Map, Value};

use super::Policy;
use crate::event::EventKind;
use crate::store::NewEvent;

impl Policy {
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
