//! When the faults have stopped, what is recorded is what is true: live hosts are alive, dead ones down,
//! within the time that the world is given to heal.

use heartwatch_controller::event::State;
use heartwatch_controller::store::HostRow;

use super::Ledger;
use crate::sim::{SimHost, Truth};

impl Ledger {
    /// The world has healed: how a host is recorded against how it fares.
    pub fn check_healed(&mut self, host: &SimHost, recorded: Option<&HostRow>) {
        let state = recorded.map(|r| r.state);
        let good = match host.truth {
            Truth::Unborn => state.is_none(),
            Truth::Running => state == Some(State::Alive),
            Truth::AgentDead | Truth::MachineDead => match state {
                Some(State::Down) => true,
                // It died before anybody heard it, or right after its goodbye.
                Some(State::Left) => true,
                Some(State::Pending) | None => !host.joined,
                Some(State::Alive | State::Duplicate | State::Suspect) => false,
            },
            // The goodbye may have been lost: then it counts as a crash.
            Truth::Left => matches!(state, Some(State::Left | State::Down)) || !host.joined,
        };
        if !good {
            let seen = format!("{} is {:?} in truth, recorded {state:?}", host.id, host.truth);
            self.broken("detection", seen);
        }
    }
}
