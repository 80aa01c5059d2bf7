//! What a shard has to tell the policy, while the policy is busy: bounded by the number of hosts.
//!
//! A shard never waits. If the policy (or the store behind it) is slow, news about one host is merged:
//! its newest facts, and its last few turns. The policy compares every turn with what it recorded
//! before, so a turn that was merged away loses nothing but its own line in the journal.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use heartwatch_common::id::{Boot, Generation, HostId};

use crate::detector::host::{Transition, Turn};
use crate::view::LiveId;

/// Hosts with news that waits beyond which no new host is registered: who says hello for the first time
/// says it again. So a hello storm waits with the agents and not in our memory.
pub const STRANGERS_MAX: usize = 20_000;
/// Turns of one host kept while they wait; newer ones replace the newest.
const TURNS_MAX: usize = 4;

/// What a hello said.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Who.
    pub host: HostId,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its operating system.
    pub os: String,
    /// Its agent's version.
    pub agent_version: String,
    /// Where it came from.
    pub address: SocketAddr,
    /// Life of its agent.
    pub boot: Boot,
    /// Generation of its key.
    pub generation: Generation,
    /// Maintenance that it announces, for so much longer, and why.
    pub maintenance: Option<(Duration, String)>,
    /// Whether the host was unknown until now: nothing of it is proved yet.
    pub new: bool,
    /// Where its live figures are published.
    pub live: LiveId,
}

/// News for the policy.
#[derive(Clone, Debug)]
pub enum Notice {
    /// Who a host is.
    Facts(Box<Facts>),
    /// A host's story turned.
    Turn(Transition),
    /// A host beats from another address.
    Moved {
        /// Which.
        host: HostId,
        /// Where it was last heard from.
        address: SocketAddr,
    },
    /// A shard went blind, or sees again.
    Blind {
        /// Which shard.
        shard: u16,
        /// Whether it is blind now.
        blind: bool,
    },
}

impl Notice {
    /// About which host; `None`: about a shard.
    pub fn host(&self) -> Option<HostId> {
        match self {
            Self::Facts(facts) => Some(facts.host),
            Self::Turn(turn) => Some(turn.host),
            Self::Moved { host, .. } => Some(*host),
            Self::Blind { .. } => None,
        }
    }
}

#[derive(Debug, Default)]
struct Waiting {
    facts: Option<Box<Facts>>,
    moved: Option<SocketAddr>,
    /// Oldest first. A million hosts may wait here with one turn each: there is room for no more.
    turns: Vec<Transition>,
}

/// News that waits.
#[derive(Debug, Default)]
pub struct Notices {
    order: VecDeque<HostId>,
    /// Of every host in `order`, and of no other.
    hosts: BTreeMap<HostId, Waiting>,
    blind: Option<(u16, bool)>,
    merged: u64,
}

impl Notices {
    /// Puts news at the end, merged with what waits about the same host.
    pub fn push(&mut self, notice: Notice) {
        let host = match &notice {
            Notice::Facts(f) => f.host,
            Notice::Turn(t) => t.host,
            Notice::Moved { host, .. } => *host,
            Notice::Blind { shard, blind } => {
                self.blind = Some((*shard, *blind));
                return;
            }
        };
        let waiting = self.hosts.entry(host).or_insert_with(|| {
            self.order.push_back(host);
            Waiting::default()
        });
        match notice {
            Notice::Facts(mut facts) => {
                facts.new |= waiting.facts.as_ref().is_some_and(|f| f.new);
                waiting.facts = Some(facts);
            }
            Notice::Turn(turn) => {
                if waiting.turns.len() >= TURNS_MAX {
                    self.merged += 1;
                    if matches!(turn.turn, Turn::Duplicate { .. }) {
                        // That it is one rides on the newest turn; what that one says must not be lost.
                        waiting.turns.last_mut().into_iter().for_each(|t| t.duplicate = true);
                        return;
                    }
                    waiting.turns.pop();
                }
                waiting.turns.reserve_exact(1);
                waiting.turns.push(turn);
            }
            Notice::Moved { address, .. } => waiting.moved = Some(address),
            Notice::Blind { .. } => {}
        }
    }

    /// Drops what waits about a host: it is no longer known.
    pub fn forget(&mut self, host: HostId) {
        self.hosts.entry(host).and_modify(|waiting| *waiting = Waiting::default());
    }

    /// Puts hosts that said goodbye first: nobody will hear them again, while all else that is told of hosts
    /// is found anew by who begins to listen to them.
    pub fn goodbyes_first(&mut self) {
        let is_goodbye = |t: &Transition| matches!(t.turn, Turn::Left { .. });
        let left =
            |host: &HostId| self.hosts.get(host).is_some_and(|w| w.turns.iter().any(is_goodbye));
        let (first, then): (VecDeque<_>, VecDeque<_>) = self.order.iter().partition(|h| left(h));
        self.order = first;
        self.order.extend(then);
    }

    /// Takes the next piece of news: a shard's blindness first, then host by host, facts before turns.
    pub fn pop(&mut self) -> Option<Notice> {
        if let Some((shard, blind)) = self.blind.take() {
            return Some(Notice::Blind { shard, blind });
        }
        loop {
            let host = *self.order.front()?;
            if let Some(waiting) = self.hosts.get_mut(&host) {
                if let Some(facts) = waiting.facts.take() {
                    return Some(Notice::Facts(facts));
                }
                if !waiting.turns.is_empty() {
                    return Some(Notice::Turn(waiting.turns.remove(0)));
                }
                if let Some(address) = waiting.moved.take() {
                    return Some(Notice::Moved { host, address });
                }
            }
            self.order.pop_front();
            self.hosts.remove(&host);
        }
    }

    /// Whether news of hosts that were unknown until now may be added.
    pub fn takes_strangers(&self) -> bool {
        self.order.len() < STRANGERS_MAX
    }

    /// Hosts with news that waits.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty() && self.blind.is_none()
    }

    /// Turns that were merged away so far.
    pub fn merged(&self) -> u64 {
        self.merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::host::Evidence;
    use crate::event::State;
    use heartwatch_common::time::Instant;

    fn turn(host: u8, at: u64) -> Notice {
        Notice::Turn(Transition {
            host: HostId([host; 16]),
            turn: Turn::Suspect,
            state: State::Suspect,
            boot: Boot(1),
            address: None,
            at: Instant(at),
            duplicate: false,
            evidence: Evidence::default(),
        })
    }

    #[test]
    fn a_host_that_is_forgotten_and_returns_waits_once() {
        let mut notices = Notices::default();
        notices.push(turn(1, 1));
        notices.forget(HostId([1; 16]));
        notices.push(turn(2, 2));
        notices.push(turn(1, 3));
        let at = |n: Option<Notice>| match n {
            Some(Notice::Turn(t)) => t.at.0,
            other => panic!("{other:?}"),
        };
        assert_eq!((notices.len(), at(notices.pop()), at(notices.pop())), (2, 3, 2));
        assert!(notices.pop().is_none() && notices.is_empty());
    }

    /// A shard that is stopped while news of a mass death waits has no time for all of it. What a goodbye
    /// told is known to nobody else, and a host of which it is not known is called down.
    #[test]
    fn at_the_end_goodbyes_come_before_what_will_be_found_anew() {
        let left = |host: u8| match turn(host, 9) {
            Notice::Turn(t) => {
                let reason = heartwatch_common::wire::LeaveReason::Shutdown;
                let expected = std::time::Duration::ZERO;
                Notice::Turn(Transition { turn: Turn::Left { reason, expected }, ..t })
            }
            other => panic!("{other:?}"),
        };
        let mut notices = Notices::default();
        for host in [1, 2, 3] {
            notices.push(turn(host, 1));
        }
        notices.push(left(3));
        notices.push(left(4));
        notices.goodbyes_first();
        let mut order = Vec::new();
        while let Some(Notice::Turn(t)) = notices.pop() {
            order.push((t.host.0[0], t.at.0));
        }
        assert_eq!(order, [(3, 1), (3, 9), (4, 9), (1, 1), (2, 1)]);
        assert!(notices.is_empty());
    }

    #[test]
    fn strangers_wait_outside_while_much_is_waiting() {
        let mut notices = Notices::default();
        for n in 0..STRANGERS_MAX as u128 {
            assert!(notices.takes_strangers());
            let address = "192.0.2.1:9".parse().unwrap();
            notices.push(Notice::Moved { host: HostId(n.to_be_bytes()), address });
        }
        assert!(!notices.takes_strangers());
        notices.pop();
        notices.pop();
        assert!(notices.takes_strangers());
    }

    #[test]
    fn a_slow_policy_costs_turns_but_never_the_newest() {
        let mut notices = Notices::default();
        for at in 0..1_000 {
            notices.push(turn(1, at));
            notices.push(turn(2, at));
        }
        assert_eq!(notices.len(), 2);
        let mut last = 0;
        let mut count = 0;
        while let Some(Notice::Turn(t)) = notices.pop() {
            count += 1;
            if t.host == HostId([2; 16]) {
                last = t.at.0;
            }
        }
        assert_eq!((count, last), (2 * TURNS_MAX, 999));
        assert_eq!(notices.merged(), 2 * (1_000 - TURNS_MAX as u64));
        assert!(notices.is_empty());
    }
}
