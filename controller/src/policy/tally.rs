//! Opinions of several controllers about one host, tallied to a quorum. Pure.
//!
//! With one controller the quorum is one of one and nothing is stored. The seam is here so that a
//! cluster changes who is asked, not how the policy thinks.

use std::collections::BTreeMap;

use heartwatch_common::id::{Boot, ControllerId, HostId};

use crate::event::State;

/// What one controller holds of one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opinion {
    /// Whose opinion.
    pub controller: ControllerId,
    /// About whom.
    pub host: HostId,
    /// In which life.
    pub boot: Boot,
    /// What.
    pub state: State,
}

/// Counts opinions.
#[derive(Clone, Debug)]
pub struct Tally {
    quorum: usize,
    opinions: BTreeMap<HostId, BTreeMap<ControllerId, (Boot, State)>>,
}

impl Tally {
    /// A tally that `quorum` equal opinions satisfy; at least one.
    pub fn new(quorum: usize) -> Self {
        Self { quorum: quorum.max(1), opinions: BTreeMap::new() }
    }

    /// Takes an opinion; whether the quorum holds it now.
    pub fn agrees(&mut self, opinion: &Opinion) -> bool {
        if self.quorum == 1 {
            return true;
        }
        let held = self.opinions.entry(opinion.host).or_default();
        let mine = (opinion.boot, opinion.state);
        held.insert(opinion.controller, mine);
        held.values().filter(|o| **o == mine).count() >= self.quorum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opinion(controller: u64, state: State) -> Opinion {
        Opinion {
            controller: ControllerId(controller),
            host: HostId([1; 16]),
            boot: Boot(1),
            state,
        }
    }

    #[test]
    fn one_of_one_agrees_at_once_and_two_of_three_wait_for_each_other() {
        assert!(Tally::new(1).agrees(&opinion(1, State::Down)));
        let mut tally = Tally::new(2);
        assert!(!tally.agrees(&opinion(1, State::Down)));
        assert!(!tally.agrees(&opinion(1, State::Down)), "one voice twice is one voice");
        assert!(!tally.agrees(&opinion(2, State::Alive)));
        assert!(tally.agrees(&opinion(3, State::Down)));
    }
}
