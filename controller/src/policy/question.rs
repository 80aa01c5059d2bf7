//! What would happen if …: asked of a copy of the policy, which decides as the policy itself would. Pure.
//!
//! There is no second decision code: a copy of all that the policy knows (rules, waits, storms, rates,
//! flapping hosts, a pause) is told that the host fell, and then that time passes, until all that it would
//! send is sent or waits for something that no clock brings. The policy itself is not touched, and nothing
//! is journaled. A copy costs what the guard holds: nothing to speak of, but tens of milliseconds while
//! 100,000 orders are held.

use std::collections::BTreeMap;
use std::time::Duration;

use heartwatch_common::time::Wall;
use heartwatch_common::wire::LeaveReason;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use super::placement::Placement;
use super::rules::Subject;
use super::waits::{WaitFor, WaitStatus};
use super::{Order, Policy};
use crate::detector::host::{Evidence, Transition, Turn};
use crate::event::{Cause, EventKind, State};
use crate::store::HostRow;

/// Waits that are followed one after the other; more are not foreseen.
const FOLLOWED_MAX: usize = 16;

/// Whether a rule applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleForesight {
    /// Its name.
    pub rule: String,
    /// Whether it does.
    pub matches: bool,
    /// The clause that does not fit, and what the host has instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// What a receiver would get, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiverForesight {
    /// Its name.
    pub receiver: String,
    /// The rule that chose it.
    pub rule: String,
    /// `act`, `hold` or `suppress`, at first.
    pub verdict: String,
    /// Why it is held or suppressed, at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it would wait for, one after the other, if nothing else changes meanwhile.
    #[serde(default)]
    pub waits: Vec<WaitStatus>,
    /// When it would go, milliseconds since 1970; none: never, or when what holds it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goes_ms: Option<Wall>,
    /// Why it would be dropped after a wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<String>,
}

/// What would happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foresight {
    /// Of which host.
    pub host: heartwatch_common::id::HostId,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What is supposed to happen to it.
    #[serde(rename = "as")]
    pub kind: EventKind,
    /// When, milliseconds since 1970.
    pub at_ms: Wall,
    /// Each rule, in order.
    pub rules: Vec<RuleForesight>,
    /// Each receiver that a rule chose.
    pub receivers: Vec<ReceiverForesight>,
    /// What else is to be known.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Reads what may be supposed: `down`, or `host.down`.
///
/// # Errors
/// What may be.
pub fn parse_supposed(text: &str) -> Result<EventKind, String> {
    let full = if text.contains('.') { text.to_owned() } else { format!("host.{text}") };
    let kind: Option<EventKind> = full.parse().ok();
    kind.filter(|kind| turn_of(*kind).is_some()).ok_or_else(|| {
        let all = EventKind::ALL.into_iter().filter(|k| turn_of(*k).is_some());
        let all: Vec<_> = all.map(|k| k.as_str().trim_start_matches("host.")).collect();
        format!("`{text}` cannot be supposed: use {}", all.join(", "))
    })
}

/// Where a host stands before it, the turn, and where it stands then.
fn turn_of(kind: EventKind) -> Option<(State, Turn, State)> {
    Some(match kind {
        EventKind::HostJoined => (State::Pending, Turn::Joined, State::Alive),
        EventKind::HostSuspect => (State::Alive, Turn::Suspect, State::Suspect),
        EventKind::HostUnreachable => (State::Alive, Turn::Unreachable, State::Suspect),
        EventKind::HostDown => (State::Alive, Turn::Down(Cause::Silent), State::Down),
        EventKind::HostAgentLost => (State::Alive, Turn::Down(Cause::AgentLost), State::Down),
        EventKind::HostRecovered => {
            (State::Down, Turn::Recovered { same_boot: true }, State::Alive)
        }
        EventKind::HostRestarted => (State::Alive, Turn::Restarted, State::Alive),
        EventKind::HostMissing => (State::Pending, Turn::Missing, State::Pending),
        EventKind::HostLeft => {
            let left = Turn::Left { reason: LeaveReason::Shutdown, expected: Duration::ZERO };
            (State::Alive, left, State::Left)
        }
        _ => return None,
    })
}

impl Policy {
    /// What would be told of this host, and when, if it went so at `at` by the wall clock, and nothing else
    /// happened. Changes nothing.
    ///
    /// # Errors
    /// If `kind` is nothing that can be supposed ([`parse_supposed`]).
    pub fn foresee(&self, host: &HostRow, kind: EventKind, at: Wall) -> Result<Foresight, String> {
        let Some((state, turn, then)) = turn_of(kind) else {
            return Err(format!("{kind} cannot be supposed of a host"));
        };
        let mut copy = self.clone();
        copy.waits.wake();
        let cause = (state == State::Down).then_some(Cause::Silent);
        // What goes on has an outage, which it is told to be the end of.
        let incident = if state == State::Down { host.incident } else { None };
        let before = HostRow { state, cause, incident, since: at, ..host.clone() };
        copy.changed(Some(host), Some(&before));
        let mut boot = before.boot;
        boot.0 = boot.0.wrapping_add(u32::from(kind == EventKind::HostRestarted));
        let mut now = copy.guard.now();
        let transition = Transition {
            host: host.id,
            turn,
            state: then,
            boot,
            address: None,
            at: now,
            duplicate: host.duplicate,
            evidence: Evidence::default(),
        };
        let mut rng = StdRng::seed_from_u64(0);
        let decision = copy.take(&before, &transition, at, |_| Placement::default(), &mut rng);
        let mut foresight = Foresight {
            host: host.id,
            name: host.name.clone(),
            labels: host.labels.clone(),
            kind,
            at_ms: at,
            rules: self.judge_all(kind, &before),
            receivers: Vec::new(),
            notes: Vec::new(),
        };
        let Some(event) = decision.event else {
            let note = "nobody would be told: it comes and goes (flapping), and this is part of it";
            foresight.notes.push(note.to_owned());
            return Ok(foresight);
        };
        if kind == EventKind::HostRecovered {
            let note = "only who was told of the outage is told of its end";
            foresight.notes.push(note.to_owned());
        }
        let verdicts = event.data.get("verdicts").and_then(|v| v.as_array());
        for verdict in verdicts.into_iter().flatten() {
            let field = |key: &str| verdict.get(key).and_then(|v| v.as_str()).map(str::to_owned);
            let verdict = field("verdict").unwrap_or_default();
            foresight.receivers.push(ReceiverForesight {
                receiver: field("receiver").unwrap_or_default(),
                rule: field("rule").unwrap_or_default(),
                goes_ms: (verdict == "act").then_some(at),
                verdict,
                reason: field("reason"),
                waits: Vec::new(),
                dropped: None,
            });
        }
        // Time passes, from one wait to the next.
        let mut wall = at;
        for _ in 0..FOLLOWED_MAX {
            let waits = copy.waits_of(host.id, wall);
            for told in &mut foresight.receivers {
                let last = told.waits.last().map(|w| w.wait);
                let its = waits.iter().filter(|w| w.receiver == told.receiver);
                told.waits.extend(its.filter(|w| last != Some(w.wait)).cloned());
            }
            let later = waits.iter().filter_map(|w| w.until_ms).filter(|until| *until > wall).min();
            let Some(later) = later else { break };
            let span = Duration::from_millis((later.0 - wall.0).unsigned_abs());
            (now, wall) = (now + span, later);
            copy.step(now);
            let after = |id| (id == host.id).then(|| decision.row.clone());
            for order in copy.orders(after, wall, &mut rng) {
                let Order::Part(part) = order else { continue };
                let mut told = foresight.receivers.iter_mut();
                let told = told.find(|r| part.host == host.id && r.receiver == part.receiver);
                match (told, part.go) {
                    (Some(told), Ok(())) => told.goes_ms = Some(wall),
                    (Some(told), Err(why)) => told.dropped = Some(why),
                    (None, _) => {}
                }
            }
        }
        Ok(foresight)
    }

    fn judge_all(&self, kind: EventKind, before: &HostRow) -> Vec<RuleForesight> {
        let of = Subject { kind, labels: Some(&before.labels), from: Some(before.state) };
        let judged = self.rules.iter().map(|rule| {
            let failed = rule.judge(of).err().map(|clause| clause.words(rule, of));
            RuleForesight { rule: rule.name.clone(), matches: failed.is_none(), failed }
        });
        judged.collect()
    }
}

impl WaitFor {
    /// As it stands in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Hours => "hours",
            Self::Rate => "rate",
            Self::Guard => "guard",
        }
    }
}
