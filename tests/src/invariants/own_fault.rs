//! What the controller could not hear is held against nobody: neither in its verdicts nor in what it
//! learns.
//!
//! A cut of its own link is recognised when [`FIRST`] hosts and one more have let a deadline pass, each
//! silent since its beat was due, as everybody else is. Until then the first of them may be called down;
//! and so may whoever was overdue when the cut began, however many these are: others were heard after his
//! beat was due, so that his silence was his own (a lost datagram, in these worlds) and says nothing about
//! the link. Why he is none of those who prove a cut: `controller/src/detector/doubt.rs`. From then on
//! nobody is called down, neither he nor they.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Instant;

use super::Ledger;

/// Fewer hosts make no cut: the first three of them may be called down before it is recognised.
const HOSTS_MIN: usize = 8;
const FIRST: usize = 3;
/// What was sent before a cut may be heard so long after it began.
const UNDER_WAY: Duration = Duration::from_millis(200);
/// Between a deadline and the pass that sees it, at most.
const SEEN_WITHIN: Duration = Duration::from_millis(100);
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
    /// Those of which a beat was due already.
    overdue: BTreeSet<HostId>,
    /// When the cut must have been recognised, by a controller that neither stood still nor began anew in it.
    pub(super) recognised: Option<Instant>,
    downs: usize,
}

/// A host that lives, undisturbed, and is taken for alive, as the controller is about to hear nothing.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// By how much its beats may be late.
    pub margin: Duration,
    /// When it is suspected if nothing comes; before now: its beat was due, and has not come.
    pub deadline: Instant,
    /// When its next beat is due; zero: it was due already.
    pub due_in: Duration,
}

impl Ledger {
    /// The controller stops hearing. `hosts`: that live, undisturbed, and are taken for alive.
    pub fn deaf_begins(&mut self, at: Instant, hosts: &BTreeMap<HostId, Heard>, cut: bool) {
        let (overdue, due): (Vec<_>, Vec<_>) = hosts.iter().partition(|(_, h)| h.due_in.is_zero());
        let proves = due.iter().filter(|(_, h)| h.due_in > UNDER_WAY);
        let mut deadlines: Vec<Instant> = proves.map(|(_, h)| h.deadline).collect();
        deadlines.sort_unstable();
        self.own = Own {
            begun: Some(at),
            margins: due.into_iter().map(|(id, h)| (*id, h.margin)).collect(),
            overdue: overdue.into_iter().map(|(id, _)| *id).collect(),
            recognised: deadlines.get(FIRST).copied().filter(|_| cut),
            downs: 0,
        };
    }

    /// A host that lives was called down while the controller's link was cut, and its network is not
    /// otherwise bad.
    pub fn down_during_cut(&mut self, host: HostId, at: Instant, doubt_max: Duration) {
        let own = &mut self.own;
        let Some(begun) = own.begun.filter(|b| at.since(*b) < doubt_max) else { return };
        let due = own.margins.contains_key(&host);
        if own.margins.len() < HOSTS_MIN || !(due || own.overdue.contains(&host)) {
            return;
        }
        own.downs += usize::from(due);
        let late = own.recognised.is_some_and(|by| at > by + SEEN_WITHIN);
        if own.downs > FIRST || late {
            let when = if due { "due after it began" } else { "overdue when it began" };
            let seen =
                format!("{host} down {:?} into a cut of the own link, {when}", at.since(begun));
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

#[cfg(test)]
mod tests {
    use super::*;

    const DOUBT_MAX: Duration = Duration::from_secs(90);

    fn at(ms: u64) -> Instant {
        Instant::from_millis(1_000_000 + ms)
    }

    /// A cut at 0 of a fleet of twelve, of which three were overdue; the others are due one after the other,
    /// half a second apart, and may be as late. Who was called down when; answers what was broken.
    fn broken(downs: &[(u8, u64)]) -> usize {
        let heard = |n: u8| {
            let due = 500 * u64::from(n).saturating_sub(2);
            let deadline = at(due + 500);
            let (margin, due_in) = (Duration::from_millis(500), Duration::from_millis(due));
            (HostId([n; 16]), Heard { margin, deadline, due_in })
        };
        let mut ledger = Ledger::default();
        ledger.deaf_begins(at(0), &(0..12).map(heard).collect(), true);
        for (host, ms) in downs {
            ledger.down_during_cut(HostId([*host; 16]), at(*ms), DOUBT_MAX);
        }
        ledger.into_violations().len()
    }

    #[test]
    fn before_a_cut_is_recognised_three_may_be_called_down_and_all_that_were_overdue() {
        // The fourth deadline passes at 2,500.
        assert_eq!(broken(&[(0, 900), (1, 950), (2, 990), (3, 1_900), (4, 2_300), (5, 2_490)]), 0);
        assert_eq!(broken(&[(3, 1_900), (4, 2_300), (5, 2_490), (6, 2_495)]), 1);
    }

    #[test]
    fn after_that_nobody_may_not_even_who_was_overdue() {
        assert_eq!(broken(&[(0, 2_700)]), 1);
        assert_eq!(broken(&[(3, 2_700)]), 1);
        assert_eq!(broken(&[(99, 2_700)]), 0, "it was dead, or disturbed");
        assert_eq!(broken(&[(0, 90_000)]), 0, "beyond what doubt may excuse");
    }
}
