//! The policy's side of [`waits`](super::waits): what a rule keeps back, when that is judged again, and how.

use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::{Instant, Wall};

use super::guard::JUDGED_MAX;
use super::rules::{self, Choice, Subject};
use super::waits::{Key, RuleWaits, Wait, WaitFor, WaitStatus};
use super::{Disposition, Order, Part, Policy, is_action};
use crate::config::{Outside, Rule};
use crate::event::{EventKind, IncidentId};
use crate::store::{DeliveryRow, HostRow, Settle};

/// What happened to a host, as rules' gates need it.
pub(super) struct Fall<'a> {
    pub(super) row: &'a HostRow,
    pub(super) kind: EventKind,
    pub(super) incident: Option<IncidentId>,
    pub(super) gap: Duration,
    pub(super) at: Wall,
}

impl Rule {
    fn is_open(&self, at: Wall) -> bool {
        self.hours.as_ref().is_none_or(|hours| hours.is_open(at))
    }

    /// Why it keeps something back, in plain words.
    fn words(&self, what: WaitFor, at: Wall) -> String {
        let name = &self.name;
        match (what, &self.hours, self.rate) {
            (WaitFor::Delay, ..) => {
                format!("the rule `{name}` waits {}", humantime::format_duration(self.delay))
            }
            (WaitFor::Hours, Some(hours), _) => {
                let opens = hours.next_open(at).map(|open| format!(", next {}", hours.clock(open)));
                format!("the rule `{name}` is on {}{}", hours.words(), opens.unwrap_or_default())
            }
            (WaitFor::Rate, _, Some(rate)) => format!(
                "the rule `{name}` takes no more than {} actions a minute: its turn comes",
                rate.per_minute
            ),
            _ => format!("the rule `{name}` goes with what holds the host's orders"),
        }
    }
}

impl Policy {
    /// What keeps an event of this rule back now, if anything does.
    fn gate(&self, at_rule: usize, fall: &Fall<'_>) -> Option<WaitFor> {
        let rule = self.rules.get(at_rule).filter(|_| fall.kind.goes_on())?;
        if !rule.delay.is_zero() {
            return Some(WaitFor::Delay);
        }
        self.gate_after_delay(at_rule, rule, fall.kind, fall.at, false)
    }

    fn gate_after_delay(
        &self,
        at_rule: usize,
        rule: &Rule,
        kind: EventKind,
        at: Wall,
        its_turn: bool,
    ) -> Option<WaitFor> {
        if !rule.is_open(at) {
            return Some(WaitFor::Hours);
        }
        if is_action(kind) && rule.rate.is_some() {
            let ahead = !its_turn && self.waits.has_line(at_rule);
            if ahead || !self.waits.has_token(at_rule, Some(rule), self.guard.now()) {
                return Some(WaitFor::Rate);
            }
        }
        None
    }

    /// Decides for each receiver that rules chose whether its event goes now. The guard is asked once, and
    /// only if some action could go.
    pub(super) fn let_through(&mut self, choices: &mut [Choice], fall: &Fall<'_>) {
        let now = self.guard.now();
        let action = is_action(fall.kind);
        let acts = |c: &Choice| c.verdict.disposition == Disposition::Act;
        let gates: Vec<_> = choices.iter().map(|c| self.gate(c.rule, fall)).collect();
        let always = |c: &Choice| self.rules.get(c.rule).is_some_and(|r| r.always);
        let mut both = choices.iter().zip(&gates);
        let asks = action && both.any(|(c, gate)| acts(c) && gate.is_none() && !always(c));
        let hold = if asks { self.guard.order(fall.row.id, fall.gap) } else { None };
        for (choice, gate) in choices.iter_mut().zip(gates) {
            let Some(rule) = self.rules.get(choice.rule).filter(|_| acts(choice)) else { continue };
            let guarded = hold.as_ref().filter(|_| action && !rule.always);
            let (what, reason) = match (gate, guarded) {
                (Some(what), _) => (what, rule.words(what, fall.at)),
                (None, Some(reason)) => (WaitFor::Guard, reason.clone()),
                (None, None) => {
                    if action {
                        self.waits.take_token(choice.rule, Some(rule), now);
                    }
                    continue;
                }
            };
            choice.verdict.disposition = Disposition::Hold { reason };
            if rule.is_gated()
                && let Some(key) = self.waits.key(fall.row.id, &choice.verdict.receiver)
            {
                let times = (now, now + rule.delay);
                let (kind, incident) = (fall.kind, fall.incident);
                let wait = Wait::new(choice.rule, kind, incident, fall.gap, times, what);
                self.waits.put(key, wait);
            }
        }
    }

    /// Something new of a host: what waits of its older news and is settled by it, or no longer true, goes.
    pub(super) fn settle_waits(&mut self, row: &HostRow, settle: &Settle, choices: &[Choice]) {
        let told = |receiver: &str| {
            let sent = |c: &&Choice| !c.verdict.disposition.is_open();
            choices.iter().filter(sent).any(|c| c.verdict.receiver == receiver)
        };
        let mut gone = Vec::new();
        for (key, wait) in self.waits.of(row.id) {
            let receiver = self.waits.receiver(key);
            let settled = match settle {
                Settle::All => true,
                Settle::At(receivers) => receivers.iter().any(|r| r == receiver),
                Settle::SameReceivers => told(receiver),
                Settle::Nothing => false,
            };
            match Self::rejudge(Some(row), wait.kind, wait.incident) {
                _ if settled => gone.push((key, None)),
                Err(why) if !told(receiver) => gone.push((key, Some(why))),
                _ => {}
            }
        }
        for (key, why) in gone {
            let Some(wait) = self.waits.remove(key) else { continue };
            if let Some(why) = why {
                let part = self.part(key, &wait, Err(why));
                self.parts.push(part);
            }
        }
    }

    fn part(&self, key: Key, wait: &Wait, go: Result<(), String>) -> Part {
        Part {
            host: key.0,
            receiver: self.waits.receiver(key).to_owned(),
            kind: wait.kind,
            incident: wait.incident,
            go,
        }
    }

    /// All that waits of a host is dropped; answers whether there was something, but for what the guard
    /// holds anyway.
    pub(super) fn drop_waits(&mut self, host: HostId) -> bool {
        let keys: Vec<Key> = self.waits.of(host).map(|(key, _)| key).collect();
        let gone = keys.into_iter().filter_map(|key| self.waits.remove(key));
        gone.filter(|wait| wait.what != WaitFor::Guard).count() > 0
    }

    /// All that rules keep back of a host goes, whatever they wait for. Answers whether there was something.
    pub(super) fn hurry_waits(&mut self, host: HostId) -> bool {
        let keys: Vec<Key> = self.waits.of(host).map(|(key, _)| key).collect();
        let mut any = false;
        for key in keys {
            let Some(wait) = self.waits.remove(key) else { continue };
            if wait.what != WaitFor::Guard {
                any = true;
                let part = self.part(key, &wait, Ok(()));
                self.parts.push(part);
            }
        }
        any
    }

    /// Judges what may go now: delays that are over, hours that have begun, turns that have come.
    pub(super) fn step_waits(
        &mut self,
        row: &impl Fn(HostId) -> Option<HostRow>,
        at: Wall,
        orders: &mut Vec<Order>,
    ) {
        if self.waits.is_empty() {
            return;
        }
        for _ in 0..JUDGED_MAX {
            let now = self.guard.now();
            let Some((key, wait)) = self.waits.next(now, &self.rules, |r| r.is_open(at)) else {
                break;
            };
            if let Some(go) = self.try_wait(key, wait.clone(), row(key.0).as_ref(), at) {
                let part = self.part(key, &wait, go);
                orders.push(Order::Part(Box::new(part)));
            }
        }
    }

    /// Judges one again. `None`: it waits on; else it goes, or is cancelled with the reason.
    fn try_wait(
        &mut self,
        key: Key,
        wait: Wait,
        row: Option<&HostRow>,
        at: Wall,
    ) -> Option<Result<(), String>> {
        let Some(row) = row else {
            return Some(Err("the host was forgotten meanwhile".to_owned()));
        };
        if let Err(why) = Self::rejudge(Some(row), wait.kind, wait.incident) {
            return Some(Err(why));
        }
        let Some(rule) = self.rules.get(wait.rule) else { return Some(Ok(())) };
        let its_turn = wait.what == WaitFor::Rate;
        let (kind, place, gap) = (wait.kind, wait.rule, wait.gap);
        match self.gate_after_delay(place, rule, kind, at, its_turn) {
            Some(WaitFor::Hours) if rule.outside == Outside::Suppress => {
                return Some(Err(rule.suppresses(kind, at).unwrap_or_default()));
            }
            Some(what) => {
                self.waits.put(key, Wait { what, ..wait });
                return None;
            }
            None => {}
        }
        let action = is_action(kind);
        if action && !rule.always && !self.passes_guard(row, gap) {
            self.waits.put(key, Wait { what: WaitFor::Guard, ..wait });
            return None;
        }
        if action {
            self.waits.take_token(place, self.rules.get(place), self.guard.now());
        }
        Some(Ok(()))
    }

    /// Asks the guard, once for all that goes of a host at one moment.
    fn passes_guard(&mut self, row: &HostRow, gap: Duration) -> bool {
        let now = self.guard.now();
        let passed =
            self.passed == Some((row.id, now)) || self.guard.order_again(row, gap).is_none();
        if passed {
            self.passed = Some((row.id, now));
        }
        passed
    }

    /// The guard holds a host's orders no longer: what goes but to those for whom rules still wait.
    pub(super) fn released(
        &mut self,
        host: HostId,
        row: Option<&HostRow>,
        at: Wall,
        orders: &mut Vec<Order>,
    ) {
        let mut but = Vec::new();
        let all: Vec<(Key, WaitFor)> = self.waits.of(host).map(|(k, w)| (k, w.what)).collect();
        for (key, what) in all {
            but.push(self.waits.receiver(key).to_owned());
            if what != WaitFor::Guard {
                continue;
            }
            // As the guard has just said yes, it is not asked again.
            self.passed = Some((host, self.guard.now()));
            let Some(wait) = self.waits.remove(key) else { continue };
            if let Some(go) = self.try_wait(key, wait.clone(), row, at) {
                let part = self.part(key, &wait, go);
                orders.push(Order::Part(Box::new(part)));
            }
        }
        orders.push(Order::Release(host, but));
    }

    /// An order that was held when the controller stopped, of a host registered as `row`; `held_for`: since
    /// when, by the wall clock, of which no more is believed than what the rule would wait at most.
    ///
    /// What a rule delays goes on waiting for the rest. Nothing is judged before [`Policy::release_own`].
    pub fn restore(&mut self, held: &DeliveryRow, row: Option<&HostRow>, held_for: Duration) {
        let Some(host) = held.host else { return };
        let true_yet = Self::rejudge(row, held.kind, held.incident);
        let found = row.filter(|_| true_yet.is_ok()).and_then(|row| self.rule_of(held, row));
        self.waits.sleep();
        let action = is_action(held.kind);
        let Some((at_rule, key)) = found else {
            if action {
                self.guard.restore(host, row, held_for);
            } else {
                let (receiver, kind) = (held.receiver.clone(), held.kind);
                let go = true_yet;
                self.parts.push(Part { host, receiver, kind, incident: held.incident, go });
            }
            return;
        };
        let Some(rule) = self.rules.get(at_rule) else { return };
        let now = self.guard.now();
        let left = rule.delay.saturating_sub(held_for);
        let (always, waits) = (rule.always, !left.is_zero());
        let guarded = action && !always && !waits;
        let what = if guarded { WaitFor::Guard } else { WaitFor::Delay };
        let times = (now - held_for, now + left);
        let wait = Wait::new(at_rule, held.kind, held.incident, Duration::ZERO, times, what);
        self.waits.put(key, wait);
        // How much of that time the rule kept it back is not known: as a hold it is new.
        if guarded && !self.guard.holds(host) {
            self.guard.restore(host, row, Duration::ZERO);
        }
    }

    /// The gated rule, as rules are now, that keeps back a held delivery.
    fn rule_of(&self, held: &DeliveryRow, row: &HostRow) -> Option<(usize, Key)> {
        let of = Subject { kind: held.kind, labels: Some(&row.labels), from: None };
        let choices = rules::choose(&self.rules, of, false, |rule| match rule.dry_run {
            true => Disposition::Suppress { reason: String::new() },
            false => Disposition::Act,
        });
        let choice = choices.into_iter().find(|c| c.verdict.receiver == held.receiver)?;
        self.rules.get(choice.rule).filter(|r| r.is_gated() && !r.dry_run)?;
        Some((choice.rule, self.waits.key(row.id, &held.receiver)?))
    }

    /// How much waits for each rule.
    pub fn waiting(&self) -> Vec<u64> {
        self.waits.counts(self.rules.len())
    }

    /// How much rules keep back by themselves; `at`: what the wall clock says now.
    pub(super) fn waits_by_rule(&self, at: Wall) -> Vec<RuleWaits> {
        let shown = |((rule, wait), (count, since)): ((usize, WaitFor), (u64, Instant))| {
            let rule = self.rules.get(rule)?.name.clone();
            Some(RuleWaits { rule, wait, count, oldest_ms: self.wall_of(since, at) })
        };
        self.waits.sums().into_iter().filter_map(shown).collect()
    }

    /// What rules keep back of a host; `at`: what the wall clock says now.
    pub fn waits_of(&self, host: HostId, at: Wall) -> Vec<WaitStatus> {
        let shown = |(key, wait): (Key, &Wait)| {
            let rule = self.rules.get(wait.rule)?;
            let until_ms = match wait.what {
                WaitFor::Delay => Some(self.wall_of(wait.due, at)),
                WaitFor::Hours => rule.hours.as_ref().and_then(|h| h.next_open(at)),
                WaitFor::Rate | WaitFor::Guard => None,
            };
            let held = self.guard.hold_of(host, at).filter(|_| wait.what == WaitFor::Guard);
            Some(WaitStatus {
                receiver: self.waits.receiver(key).to_owned(),
                rule: rule.name.clone(),
                kind: wait.kind,
                wait: wait.what,
                since_ms: self.wall_of(wait.since, at),
                until_ms,
                reason: held.map_or_else(|| rule.words(wait.what, at), |h| h.reason),
            })
        };
        self.waits.of(host).filter_map(shown).collect()
    }

    fn wall_of(&self, when: Instant, at: Wall) -> Wall {
        let ms = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        let now = self.guard.now();
        Wall(at.0.saturating_add(ms(when.since(now))).saturating_sub(ms(now.since(when))))
    }
}
