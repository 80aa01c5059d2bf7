//! What the controller could not hear is held against nobody: neither in its verdicts nor in what it
//! learns.

use std::collections::BTreeMap;
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Instant;

use super::Ledger;

/// Fewer hosts make no cut: the first three of them may be called down before it is recognised.
const HOSTS_MIN: usize = 8;
const FIRST: usize = 3;
/// Shorter pauses hide among what margins cover anyway.
const PAUSE_MIN: Duration = Duration::from_secs(8);
/// By how much margins may grow meanwhile: of a lossy network two beats in a row get lost.
const GROWTH_MAX: Duration = Duration::from_secs(4);

/// A pause or cut of the controller that goes on.
#[derive(Clone, Debug, Default)]
pub(super) struct Own {
    begun: Option<Instant>,
    /// Margins of the hosts that were alive when it began, and in truth.
    margins: BTreeMap<HostId, Duration>,
    downs: usize,
}

impl Ledger {
    /// The controller stops hearing. `margins`: of hosts that live, undisturbed, and are taken for alive.
    pub fn deaf_begins(&mut self, at: Instant, margins: BTreeMap<HostId, Duration>) {
        self.own = Own { begun: Some(at), margins, downs: 0 };
    }

    /// A host that lives was called down while the controller's link was cut, and its network is not
    /// otherwise bad.
    pub fn down_during_cut(&mut self, host: HostId, at: Instant, doubt_max: Duration) {
        let own = &mut self.own;
        let Some(begun) = own.begun.filter(|b| at.since(*b) < doubt_max) else { return };
        if own.margins.len() < HOSTS_MIN || !own.margins.contains_key(&host) {
            return;
        }
        own.downs += 1;
        if own.downs > FIRST {
            let seen = format!("{host} down {:?} into a cut of the own link", at.since(begun));
            self.broken("own_fault", seen);
        }
    }

    /// Some seconds after it hears again: the margins of the same hosts, if undisturbed.
    pub fn deaf_ended(&mut self, ended: Instant, margins: &BTreeMap<HostId, Duration>) {
        let own = std::mem::take(&mut self.own);
        // Of fewer hosts a cut is not recognised: then it looks like outages of theirs, and is learned.
        let few = own.margins.len() < HOSTS_MIN;
        if few || own.begun.is_none_or(|begun| ended.since(begun) < PAUSE_MIN) {
            return;
        }
        for (host, before) in own.margins {
            let Some(after) = margins.get(&host) else { continue };
            if *after > before + GROWTH_MAX {
                let seen = format!("the margin of {host} grew from {before:?} to {after:?}");
                self.broken("own_fault", format!("{seen} by a pause of the controller"));
            }
        }
    }
}
