//! The simulated orchestrator.

use heartwatch_common::id::HostId;
use heartwatch_common::time::Instant;
use heartwatch_controller::delivery::outcome::{Outcome, OutcomeClass};
use heartwatch_controller::event::{EventId, EventKind};
use heartwatch_controller::store::DeliveryId;
use rand::RngExt;
use rand::rngs::StdRng;

use super::fault::Plan;
use super::{Happening, World};

/// A webhook that arrived.
#[derive(Clone, Debug)]
pub struct Reception {
    /// When.
    pub at: Instant,
    /// Its idempotency key.
    pub event: EventId,
    /// What happened.
    pub kind: EventKind,
    /// To whom.
    pub host: Option<HostId>,
    /// Its fencing token.
    pub token: Option<u64>,
    /// Its body.
    pub body: String,
    /// To which receiver.
    pub receiver: String,
}

pub(super) struct SimReceiver {
    fails: f64,
    pub(super) down: bool,
    pub(super) receptions: Vec<Reception>,
}

/// What becomes of an attempt.
enum Fate {
    Refused,
    ServerError,
    TakenButSilent,
    Taken,
}

impl SimReceiver {
    pub(super) fn new(plan: &Plan) -> Self {
        Self { fails: plan.receiver_fails, down: false, receptions: Vec::new() }
    }

    pub(super) fn heal(&mut self) {
        (self.fails, self.down) = (0.0, false);
    }

    fn fate(&self, rng: &mut StdRng) -> Fate {
        if self.down {
            return Fate::Refused;
        }
        if !rng.random_bool(self.fails) {
            return Fate::Taken;
        }
        match rng.random_range(0..3) {
            0 => Fate::Refused,
            1 => Fate::ServerError,
            _ => Fate::TakenButSilent,
        }
    }
}

impl World {
    pub(super) fn post(&mut self, life: u32, delivery: DeliveryId, mut reception: Reception) {
        reception.at = self.now;
        let (taken, outcome) = match self.receiver.fate(&mut self.rng) {
            Fate::Refused => (false, Outcome::failed(OutcomeClass::Connect, "refused")),
            Fate::ServerError => (false, Outcome::of_status(503)),
            Fate::TakenButSilent => (true, Outcome::failed(OutcomeClass::Timeout, "timeout")),
            Fate::Taken => (true, Outcome::of_status(200)),
        };
        if taken {
            self.tell(format!(
                "{} <- {} {:?} token {:?}",
                reception.receiver, reception.kind, reception.host, reception.token
            ));
            self.receiver.receptions.push(reception);
        }
        let wait = match outcome.class {
            OutcomeClass::Timeout => 2_000_000,
            _ => self.rng.random_range(200..20_000),
        };
        let at = self.now + std::time::Duration::from_micros(wait);
        self.at(at, Happening::Answer { life, delivery, outcome });
    }
}
