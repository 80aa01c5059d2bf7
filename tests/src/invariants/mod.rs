//! What was promised, checked while a simulated world runs and when it has healed. One file a promise.

mod detection;
mod found_in_time;
mod fresh_life;
mod no_false_down;
mod no_lost_event;
mod no_stale_order;
mod order;
mod own_fault;
mod settled;
mod unreachable;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use heartwatch_common::id::{Boot, HostId, Seq};
use heartwatch_common::time::Instant;
use heartwatch_common::wire::Stamp;
pub use own_fault::Heard;
pub use unreachable::Voucher;

/// After a stop, a slow reader needs that long for its mail.
const CATCHING_UP: Duration = Duration::from_secs(30);

/// No host is overdue before that.
const OVERDUE_MIN: Duration = Duration::from_millis(25);

/// Fresh datagrams remembered of one host: more than the slowest reader is behind.
const FRESH_MAX: usize = 128;

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub invariant: &'static str,
    /// What was seen.
    pub seen: String,
}

/// What is remembered to check promises by.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Newest fresh datagrams of each host that reached the controller's socket, and their gaps.
    fresh: BTreeMap<HostId, VecDeque<(Instant, Duration)>>,
    /// When each host was last heard after it was overdue, and by how much it was.
    overdue: BTreeMap<HostId, (Instant, Duration)>,
    newest: BTreeMap<(HostId, Boot), Seq>,
    /// Suspect or down, and nothing proved since the controller's start: only a nonce is believed.
    strict: BTreeSet<HostId>,
    /// When the controller last came back from a stop or a restart.
    back: Instant,
    /// Promises about peers that were looked at when their time had come.
    looked: u64,
    /// Dead hosts of which it was told already that they were not found.
    late: BTreeSet<HostId>,
    /// The controller's present pause or cut.
    own: own_fault::Own,
    violations: Vec<Violation>,
}

impl Ledger {
    fn broken(&mut self, invariant: &'static str, seen: String) {
        self.violations.push(Violation { invariant, seen });
    }

    /// A new life of a host's agent begins: numbers start anew.
    pub fn begun(&mut self, host: HostId) {
        self.newest.retain(|(h, _), _| *h != host);
        self.late.remove(&host);
    }

    /// A datagram that proves life has reached the controller's socket; only `proved` ones count, but the
    /// numbers of all are noted.
    pub fn fresh(&mut self, host: HostId, stamp: &Stamp, proved: bool, at: Instant) {
        if self.strict.contains(&host) {
            return;
        }
        let newest = self.newest.entry((host, stamp.boot)).or_default();
        if stamp.seq > *newest {
            *newest = stamp.seq;
            if !proved {
                return;
            }
            let newest = self.fresh.entry(host).or_default();
            if let Some((before, gap)) = newest.back().copied() {
                let overdue = at.since(before).saturating_sub(gap);
                if overdue > OVERDUE_MIN {
                    self.overdue.insert(host, (at, overdue));
                }
            }
            if newest.len() >= FRESH_MAX {
                newest.pop_front();
            }
            newest.push_back((at, stamp.gap));
        }
    }

    /// A new life of the controller begins; these hosts are suspect or down.
    pub fn controller_started(&mut self, strict: BTreeSet<HostId>) {
        self.fresh.clear();
        self.overdue.clear();
        self.strict = strict;
    }

    /// The controller runs again after a stop or a restart.
    pub fn controller_back(&mut self, at: Instant) {
        self.back = at;
        self.own.recognised = None;
    }

    /// How often it was looked whether a promise about peers was kept in time.
    pub fn looked(&self) -> u64 {
        self.looked
    }

    /// What was broken.
    pub fn into_violations(self) -> Vec<Violation> {
        self.violations
    }
}
