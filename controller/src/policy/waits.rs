//! What rules themselves keep back: a delay, hours that have not begun, a rate. Pure.
//!
//! The [`guard`](super::guard) holds a *host's* order; a rule keeps back what goes to *its receivers*. So two
//! rules with different delays are independent, and a receiver without any waits for nobody. What is kept
//! back is held in the store like all that is held; here stands when it is looked at again:
//!
//! 1. *Delay*, by the monotonic clock, as long as the host stands so.
//! 2. *Hours*: until those of the rule begin, by the wall clock of its zone.
//! 3. *Rate*: in the rule's own line, for a token of its bucket.
//! 4. *Guard*: what is an action, and not sent `always`, asks the guard then, as if the host fell only now.
//!
//! Whoever is back meanwhile leaves nothing here: the recovery settles it. These waits are no
//! [`holds`](super::holds): nobody need decide anything about them, they end by themselves or with the
//! hours, and they are never overdue. `why` shows them, and an operator's word on the host ends them too.
//!
//! # Cost
//!
//! A rule without any of these costs nothing here. What is kept back takes some 200 bytes, and O(log) when
//! it is put, looked at, or dropped; a step looks at most at [`JUDGED_MAX`](super::guard::JUDGED_MAX).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::{Instant, Wall};
use serde::{Deserialize, Serialize};

use crate::config::{ActionRate, Rule};
use crate::event::{EventKind, IncidentId};

/// What something waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitFor {
    /// The rule's delay.
    Delay,
    /// The rule's hours.
    Hours,
    /// The rule's rate.
    Rate,
    /// What holds the host's orders, such as a storm.
    Guard,
}

/// What a rule keeps back, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitStatus {
    /// From whom.
    pub receiver: String,
    /// Which rule.
    pub rule: String,
    /// News of what.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// What it waits for.
    pub wait: WaitFor,
    /// Since when, milliseconds since 1970.
    pub since_ms: Wall,
    /// When it is looked at again, milliseconds since 1970, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<Wall>,
    /// In plain words.
    pub reason: String,
}

/// How much one rule keeps back for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleWaits {
    /// Which rule.
    pub rule: String,
    /// What it waits for.
    pub wait: WaitFor,
    /// How much: one for each host and receiver.
    pub count: u64,
    /// Since when the oldest waits, milliseconds since 1970.
    pub oldest_ms: Wall,
}

/// A host and a receiver, by its place.
pub(super) type Key = (HostId, u16);

/// News of one host that one receiver is not told yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    /// Which rule, by its place.
    pub(super) rule: usize,
    pub(super) kind: EventKind,
    pub(super) incident: Option<IncidentId>,
    pub(super) since: Instant,
    /// When its delay is over.
    pub(super) due: Instant,
    /// Between the host's beats.
    pub(super) gap: Duration,
    pub(super) what: WaitFor,
    /// Its place in line.
    pub(super) turn: u64,
}

impl Wait {
    pub(super) fn new(
        rule: usize,
        kind: EventKind,
        incident: Option<IncidentId>,
        gap: Duration,
        (since, due): (Instant, Instant),
        what: WaitFor,
    ) -> Self {
        Self { rule, kind, incident, since, due, gap, what, turn: 0 }
    }
}

/// All that rules keep back.
#[derive(Clone, Debug, Default)]
pub(super) struct Waits {
    receivers: Vec<String>,
    entries: BTreeMap<Key, Wait>,
    timers: BTreeSet<(Instant, Key)>,
    /// By rule: until its hours begin.
    closed: BTreeMap<usize, BTreeSet<Key>>,
    /// By rule: who waits for a token, in line.
    lines: BTreeMap<usize, BTreeSet<(u64, Key)>>,
    /// By rule: when its next action would be on time, had they come evenly.
    action_due: Vec<Instant>,
    turns: u64,
    /// After a restart, until every host had its chance to be heard.
    asleep: bool,
}

impl Waits {
    pub(super) fn new(rules: &[Rule]) -> Self {
        let named: BTreeSet<&String> = rules.iter().flat_map(|r| &r.receivers).collect();
        Self {
            receivers: named.into_iter().cloned().collect(),
            action_due: vec![Instant(0); rules.len()],
            ..Self::default()
        }
    }

    pub(super) fn key(&self, host: HostId, receiver: &str) -> Option<Key> {
        let place = self.receivers.iter().position(|r| r == receiver)?;
        Some((host, u16::try_from(place).ok()?))
    }

    pub(super) fn receiver(&self, key: Key) -> &str {
        self.receivers.get(usize::from(key.1)).map_or("", String::as_str)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many wait under each rule.
    pub(super) fn counts(&self, rules: usize) -> Vec<u64> {
        let mut counts = vec![0; rules];
        for wait in self.entries.values() {
            if let Some(count) = counts.get_mut(wait.rule) {
                *count += 1;
            }
        }
        counts
    }

    /// All that waits for rules alone, by rule and what for: how much, and since when the oldest.
    pub(super) fn sums(&self) -> BTreeMap<(usize, WaitFor), (u64, Instant)> {
        let mut sums = BTreeMap::new();
        for wait in self.entries.values().filter(|w| w.what != WaitFor::Guard) {
            let sum = sums.entry((wait.rule, wait.what)).or_insert((0, wait.since));
            *sum = (sum.0 + 1, sum.1.min(wait.since));
        }
        sums
    }

    /// What of a host waits.
    pub(super) fn of(&self, host: HostId) -> impl Iterator<Item = (Key, &Wait)> {
        let all: RangeInclusive<Key> = (host, 0)..=(host, u16::MAX);
        self.entries.range(all).map(|(key, wait)| (*key, wait))
    }

    /// Nothing is looked at until [`Waits::wake`].
    pub(super) fn sleep(&mut self) {
        self.asleep = true;
    }

    pub(super) fn wake(&mut self) {
        self.asleep = false;
    }

    /// Keeps something back; what was kept back of it before gives way.
    pub(super) fn put(&mut self, key: Key, mut wait: Wait) {
        self.remove(key);
        match wait.what {
            WaitFor::Delay => drop(self.timers.insert((wait.due, key))),
            WaitFor::Hours => drop(self.closed.entry(wait.rule).or_default().insert(key)),
            WaitFor::Rate => {
                self.turns += 1;
                wait.turn = self.turns;
                self.lines.entry(wait.rule).or_default().insert((wait.turn, key));
            }
            WaitFor::Guard => {}
        }
        self.entries.insert(key, wait);
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Wait> {
        let wait = self.entries.remove(&key)?;
        match wait.what {
            WaitFor::Delay => drop(self.timers.remove(&(wait.due, key))),
            WaitFor::Hours => {
                if let Some(closed) = self.closed.get_mut(&wait.rule) {
                    closed.remove(&key);
                    if closed.is_empty() {
                        self.closed.remove(&wait.rule);
                    }
                }
            }
            WaitFor::Rate => {
                if let Some(line) = self.lines.get_mut(&wait.rule) {
                    line.remove(&(wait.turn, key));
                    if line.is_empty() {
                        self.lines.remove(&wait.rule);
                    }
                }
            }
            WaitFor::Guard => {}
        }
        Some(wait)
    }

    /// Takes out the next that may go as far as its rule is concerned. `is_open`: whether a rule's hours are.
    pub(super) fn next(
        &mut self,
        now: Instant,
        rules: &[Rule],
        is_open: impl Fn(&Rule) -> bool,
    ) -> Option<(Key, Wait)> {
        if self.asleep {
            return None;
        }
        let due = self.timers.first().filter(|(at, _)| *at <= now).map(|(_, key)| *key);
        let begun = || {
            let open = self.closed.iter().find(|(r, _)| rules.get(**r).is_none_or(&is_open))?;
            open.1.first().copied()
        };
        let turn = || {
            let mut lines = self.lines.iter();
            let line = lines.find(|(r, _)| self.has_token(**r, rules.get(**r), now))?;
            line.1.first().map(|(_, key)| *key)
        };
        let key = due.or_else(begun).or_else(turn)?;
        Some((key, self.remove(key)?))
    }

    /// Whether somebody stands in a rule's line.
    pub(super) fn has_line(&self, rule: usize) -> bool {
        self.lines.contains_key(&rule)
    }

    /// The generic cell rate algorithm, as the guard's.
    pub(super) fn has_token(&self, at: usize, rule: Option<&Rule>, now: Instant) -> bool {
        let Some(ActionRate { per_minute, burst }) = rule.and_then(|r| r.rate) else { return true };
        let ahead = super::guard::per_action(per_minute) * burst.saturating_sub(1);
        self.action_due.get(at).is_none_or(|due| *due - ahead <= now)
    }

    pub(super) fn take_token(&mut self, at: usize, rule: Option<&Rule>, now: Instant) {
        let Some(rate) = rule.and_then(|r| r.rate) else { return };
        if let Some(due) = self.action_due.get_mut(at) {
            *due = (*due).max(now) + super::guard::per_action(rate.per_minute);
        }
    }
}
