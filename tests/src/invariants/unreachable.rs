//! Peers are believed as far as they can prove it, and no further: a host that lives and that they reach
//! is not called down because the controller alone cannot hear it; and no word of theirs holds a dead one
//! up.

use std::time::Duration;

use heartwatch_common::time::Instant;
use heartwatch_controller::event::{Cause, State};
use heartwatch_controller::store::HostRow;

use super::{CATCHING_UP, Ledger};
use crate::sim::{SimHost, Truth};

/// From a request to the verdict that rests on its answer, with a margin.
const ON_ITS_WAY: Duration = Duration::from_secs(4);

/// Somebody who must be able to vouch for a host.
#[derive(Clone, Copy, Debug)]
pub struct Voucher {
    /// Since when everything that it takes has stood undisturbed.
    pub since: Instant,
}

impl Ledger {
    /// A host was called unreachable, and so alive, at `now`.
    pub fn check_unreachable(&mut self, host: &SimHost, now: Instant) {
        let dead = matches!(host.truth, Truth::AgentDead | Truth::MachineDead | Truth::Left);
        let due = (host.since + ON_ITS_WAY).max(self.back + CATCHING_UP);
        if dead && now > due {
            let late = now.since(host.since);
            self.broken("no_dead_host_held_up", format!("{} {late:?} after its death", host.id));
        }
    }

    /// A host was called down although somebody must have been able to vouch for it.
    pub fn check_down_despite(&mut self, host: &SimHost, voucher: Option<Voucher>) {
        if voucher.is_some() && host.truth == Truth::Running {
            self.broken("peers_are_asked", format!("{} is down, but peers reach it", host.id));
        }
    }

    /// A host has been cut off from the controller alone for a while.
    pub fn check_known_unreachable(&mut self, host: &SimHost, recorded: Option<&HostRow>) {
        self.looked += 1;
        let how = recorded.map(|r| (r.state, r.cause));
        if how != Some((State::Suspect, Some(Cause::Unreachable))) {
            let seen = format!("{} is cut off from the controller alone, but {how:?}", host.id);
            self.broken("peers_are_asked", seen);
        }
    }

    /// A host has been dead for a while.
    pub fn check_dead_is_down(&mut self, host: &SimHost, recorded: Option<&HostRow>) {
        self.looked += 1;
        let state = recorded.map(|r| r.state);
        if matches!(state, Some(State::Alive | State::Suspect)) {
            let seen = format!("{} is {:?}, recorded {state:?}", host.id, host.truth);
            self.broken("no_dead_host_held_up", seen);
        }
    }
}
