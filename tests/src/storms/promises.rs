//! What was promised of storms, holds, rates and flapping hosts, checked by loops over all hosts.

use std::collections::BTreeMap;
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::{Instant, Wall};
use heartwatch_controller::config::GuardConfig;
use heartwatch_controller::event::{Cause, EventId, EventKind, IncidentId, State};
use heartwatch_controller::policy::guard::{HoldKind, HoldStatus};
use heartwatch_controller::policy::{Policy, is_action};
use heartwatch_controller::store::sqlite::Db;
use heartwatch_controller::store::{
    Cursor, DeliveryFilter, DeliveryRow, DeliveryState, EventRow, HostRow, NewEvent,
};

use super::fleet::Host;
use super::story::Patience;
use super::{Hosts, PAGER};
use crate::invariants::Violation;

/// Of hosts that die together so many may be ordered before it is seen.
const SLIPPED_MAX: u32 = 2;
/// Fewer hosts that die together need not be a storm.
const TOGETHER_MIN: usize = 8;
/// From the deadline of an overdue hold until it is told.
const OVERDUE_SLACK: Duration = Duration::from_secs(60);
const MINUTE: Duration = Duration::from_secs(60);

/// Hosts that died at one moment.
#[derive(Debug)]
struct Together {
    hosts: Hosts,
    at: Instant,
    ordered: u32,
}

/// What is remembered to check promises by.
#[derive(Debug)]
pub(super) struct Promises {
    guard: GuardConfig,
    patience: Patience,
    /// What the patient receiver was told, by outage; when it was let go; and of whom an operator spoke.
    late: BTreeMap<IncidentId, Vec<EventId>>,
    late_times: Vec<Instant>,
    spoken_of: Hosts,
    pub(super) failovers: u64,
    pub(super) looked: u64,
    /// When each host's present outage was acted upon.
    acted: BTreeMap<HostId, Instant>,
    /// When something was ordered, by domain.
    times: BTreeMap<String, Vec<Instant>>,
    /// When an operator let single orders go, and how many; and when the controller started.
    named: Vec<(Instant, u64)>,
    starts: Vec<Instant>,
    /// From then on the naive count knows less than the guard.
    excused: bool,
    rejected: Hosts,
    together: Vec<Together>,
    /// Failovers that arrived, by outage.
    orders: BTreeMap<IncidentId, Vec<EventId>>,
    last: BTreeMap<HostId, EventKind>,
    storms: BTreeMap<String, i32>,
    flapping: Hosts,
    overdue: Vec<Wall>,
    /// Hosts that are being worked on.
    covered: Hosts,
    /// Somebody let their orders go by their names.
    named_hosts: Hosts,
    violations: Vec<Violation>,
}

/// The names of the domains of a host.
fn domains(labels: &BTreeMap<String, String>) -> Vec<String> {
    let mut names = vec!["fleet".to_owned()];
    if let (Some(zone), Some(rack)) = (labels.get("zone"), labels.get("rack")) {
        names.push(format!("zone={zone}"));
        names.push(format!("zone={zone},rack={rack}"));
    }
    names.extend(labels.get("power").map(|p| format!("power={p}")));
    names
}

/// All deliveries that a filter lets through.
pub(super) fn deliveries(db: &Db, mut filter: DeliveryFilter) -> Vec<DeliveryRow> {
    let mut all = Vec::new();
    loop {
        let page = db.deliveries(&filter, 1_000).expect("reading works");
        let Some(last) = page.last() else { return all };
        filter.after = Some(last.id);
        all.extend(page);
    }
}

/// All that is journaled.
pub(super) fn journal(db: &Db) -> (Vec<EventRow>, Vec<DeliveryRow>) {
    let (mut events, mut after) = (Vec::new(), Cursor(0));
    loop {
        let page = db.events(after, None, 1_000).expect("reading works");
        let Some(last) = page.last() else { break };
        after = last.cursor;
        events.extend(page);
    }
    (events, deliveries(db, DeliveryFilter::default()))
}

impl Promises {
    pub(super) fn new(guard: GuardConfig, patience: Patience) -> Self {
        Self {
            guard,
            patience,
            late: BTreeMap::new(),
            late_times: Vec::new(),
            spoken_of: Hosts::new(),
            failovers: 0,
            looked: 0,
            acted: BTreeMap::new(),
            times: BTreeMap::new(),
            named: Vec::new(),
            starts: Vec::new(),
            excused: false,
            rejected: Hosts::new(),
            together: Vec::new(),
            orders: BTreeMap::new(),
            last: BTreeMap::new(),
            storms: BTreeMap::new(),
            flapping: Hosts::new(),
            overdue: Vec::new(),
            covered: Hosts::new(),
            named_hosts: Hosts::new(),
            violations: Vec::new(),
        }
    }

    fn broken(&mut self, invariant: &'static str, seen: String) {
        self.violations.push(Violation { invariant, seen });
    }

    pub(super) fn into_violations(self) -> Vec<Violation> {
        self.violations
    }

    pub(super) fn died_together(&mut self, hosts: &[HostId], gap: Duration, at: Instant) {
        if hosts.len() >= TOGETHER_MIN && gap <= Duration::from_secs(1) {
            let hosts = hosts.iter().copied().collect();
            self.together.push(Together { hosts, at, ordered: 0 });
        }
    }

    pub(super) fn operator_spoke(&mut self, at: Instant, released: u64) {
        self.excused = true;
        self.named.push((at, released));
    }

    pub(super) fn spoken_of(&mut self, host: HostId) {
        self.spoken_of.insert(host);
    }

    /// What goes to the patient receiver is let go.
    pub(super) fn patient(&mut self, row: &HostRow, now: Instant, wall: Wall) {
        if self.spoken_of.contains(&row.id) {
            return;
        }
        self.late_times.push(now);
        let stood = wall.0.saturating_sub(row.since.0);
        if stood < self.patience.delay.as_millis() as i64 {
            let seen = format!("{} is ordered {stood} ms after it fell", row.id);
            self.broken("a_delay_is_kept", seen);
        }
        if self.patience.hours.as_ref().is_some_and(|hours| !hours.is_open(wall)) {
            let seen = format!("{} is ordered at {wall}", row.id);
            self.broken("hours_are_kept", seen);
        }
    }

    /// A webhook arrives at the patient receiver.
    pub(super) fn sent_late(
        &mut self,
        host: HostId,
        kind: EventKind,
        event: EventId,
        row: Option<&HostRow>,
    ) {
        if kind != EventKind::HostDown {
            return;
        }
        let state = row.map(|r| r.state);
        if state != Some(State::Down) {
            let seen = format!("{host} is told as down after a wait, but is {state:?}");
            self.broken("who_came_back_is_not_told_late", seen);
        }
        let Some(incident) = row.and_then(|r| r.incident) else { return };
        let told = self.late.entry(incident).or_default();
        if told.contains(&event) || told.is_empty() {
            told.push(event);
        } else {
            self.broken("what_waited_goes_once", format!("{host} is told twice"));
        }
    }

    /// Who is being worked on now, by the naive way.
    pub(super) fn set_covered(&mut self, covered: Hosts) {
        self.covered = covered;
    }

    /// What was done about a host before it came into maintenance is no evidence after it.
    pub(super) fn sheltered(&mut self, host: HostId) {
        self.acted.entry(host).and_modify(|at| *at = Instant(0));
    }

    pub(super) fn approved_by_name(&mut self, host: HostId) {
        self.named_hosts.insert(host);
    }

    /// The failover of a host is let go.
    pub(super) fn acted_in_maintenance(&mut self, host: HostId, at: Duration) {
        if self.covered.contains(&host) && !self.named_hosts.contains(&host) {
            let seen = format!("{host} is acted upon at {at:?}, in its maintenance window");
            self.broken("maintenance_holds", seen);
        }
    }

    pub(super) fn rejected(&mut self, host: HostId) {
        self.rejected.insert(host);
    }

    /// A new life of the controller: of when something was acted upon it knows when the host fell.
    pub(super) fn restarted(&mut self, rows: &BTreeMap<HostId, HostRow>, wall: Wall, now: Instant) {
        self.starts.push(now);
        for (host, at) in &mut self.acted {
            if let Some(row) = rows.get(host) {
                let ago = wall.0.saturating_sub(row.since.0).max(0) as u64;
                *at = (*at).min(now - Duration::from_millis(ago));
            }
        }
    }

    /// An event is journaled.
    pub(super) fn journaled(&mut self, event: &NewEvent) {
        for delivery in &event.deliveries {
            let may_be = is_action(event.kind) && delivery.receiver != PAGER;
            if delivery.hold.is_some() && !may_be {
                let seen = format!("{} to {} is held", event.kind, delivery.receiver);
                self.broken("only_actions_are_held", seen);
            }
        }
        let name = event.data.get("domain").and_then(|d| d.as_str()).unwrap_or("-").to_owned();
        match (event.kind, event.host) {
            (EventKind::DomainDown | EventKind::DomainStorm, _) => {
                let open = self.storms.entry(name.clone()).or_default();
                *open += 1;
                if *open > 1 {
                    self.broken("one_event_a_storm", format!("{} of {name}, again", event.kind));
                }
            }
            (EventKind::DomainCalm, _) => {
                let open = self.storms.entry(name.clone()).or_default();
                *open -= 1;
                if *open < 0 {
                    self.broken("one_event_a_storm", format!("{name} is calm, but was no storm"));
                }
                self.excused |= event.data.get("how").is_some_and(|how| how == "steady");
            }
            (EventKind::HostFlapping, Some(host)) if !self.flapping.insert(host) => {
                self.broken("flapping_is_one_incident", format!("{host} flaps, again"));
            }
            (EventKind::HostSteady, Some(host)) if !self.flapping.remove(&host) => {
                self.broken("flapping_is_one_incident", format!("{host} did not flap"));
            }
            (EventKind::HostSuspect, Some(host)) if self.flapping.contains(&host) => {
                let seen = format!("a suspicion of {host} is told, while it flaps");
                self.broken("flapping_is_one_incident", seen);
            }
            (EventKind::HoldOverdue, _) => self.overdue.push(event.at),
            _ => {}
        }
    }

    /// The failover of a host is let go.
    pub(super) fn acted(
        &mut self,
        host: HostId,
        hosts: &[Host],
        index: &BTreeMap<HostId, usize>,
        rows: &BTreeMap<HostId, HostRow>,
        now: Instant,
    ) {
        self.failovers += 1;
        let Some(at) = index.get(&host) else { return };
        let names = domains(&hosts[*at].labels);
        self.acted.retain(|host, _| rows.get(host).is_some_and(|r| r.state == State::Down));
        self.acted.insert(host, now);
        for name in &names {
            self.times.entry(name.clone()).or_default().push(now);
        }
        if !self.excused {
            for name in &names {
                self.count_the_silent(host, name, hosts, rows, now);
            }
            self.see_who_slipped(host, now);
        }
    }

    /// The naive count: no order may go where so many are silent that it is a storm.
    fn count_the_silent(
        &mut self,
        host: HostId,
        name: &str,
        hosts: &[Host],
        rows: &BTreeMap<HostId, HostRow>,
        now: Instant,
    ) {
        self.looked += 1;
        // What a rule keeps back of a host that was acted upon is judged again later, and the host is
        // evidence for as long again: of those that were acted upon long ago either answer is right.
        let both = [false, true].map(|anew| self.find_storm(anew, name, hosts, rows, now));
        if let [Some((silent, heard)), Some(_)] = both {
            let seen = format!(
                "{host} is acted upon while {silent} hosts of {name} are silent, and {heard} heard"
            );
            self.broken("a_storm_holds", seen);
        }
    }

    /// How many are silent and heard, if that is a storm.
    fn find_storm(
        &self,
        anew: bool,
        name: &str,
        hosts: &[Host],
        rows: &BTreeMap<HostId, HostRow>,
        now: Instant,
    ) -> Option<(u32, u32)> {
        let limit = if name == "fleet" { self.guard.fleet } else { self.guard.storm };
        let count = |name: &str| self.silent_and_heard(anew, name, hosts, rows, now);
        let (silent, heard) = count(name);
        let share = f64::from(silent) / f64::from(silent + heard);
        if silent < limit.hosts || share < limit.share {
            return None;
        }
        // Unless most of them lie in one smaller domain, and others are heard.
        let inner: std::collections::BTreeSet<String> =
            hosts.iter().flat_map(|h| domains(&h.labels)).collect();
        let within = |d: &&String| *d != name && (name == "fleet" || d.starts_with(name));
        let explained = inner.iter().filter(within).any(|inner| {
            let (s, h) = count(inner);
            s * 4 >= silent * 3 && heard > h
        });
        (!explained).then_some((silent, heard))
    }

    fn silent_and_heard(
        &self,
        anew: bool,
        name: &str,
        hosts: &[Host],
        rows: &BTreeMap<HostId, HostRow>,
        now: Instant,
    ) -> (u32, u32) {
        // At the edge of the window either answer is right.
        let window = self.guard.storm_window - Duration::from_secs(2);
        let (mut silent, mut heard) = (0, 0);
        let counts = |h: &&Host| !self.covered.contains(&h.id);
        let inside = |h: &&Host| domains(&h.labels).iter().any(|d| d == name);
        for h in hosts.iter().filter(counts).filter(inside) {
            let Some(row) = rows.get(&h.id) else { continue };
            match (row.state, row.cause) {
                (State::Suspect, _) => silent += 1,
                (State::Down, Some(Cause::AgentLost)) | (State::Alive, _) => heard += 1,
                (State::Down, _) => {
                    let recent =
                        self.acted.get(&h.id).is_none_or(|at| now.since(*at) < window) || anew;
                    silent += u32::from(recent);
                }
                _ => {}
            }
        }
        (silent, heard)
    }

    fn see_who_slipped(&mut self, host: HostId, now: Instant) {
        let mut slipped = None;
        for together in &mut self.together {
            if together.hosts.contains(&host) && now.since(together.at) < MINUTE {
                together.ordered += 1;
                slipped = (together.ordered > SLIPPED_MAX).then_some(together.hosts.len());
            }
        }
        if let Some(of) = slipped {
            let seen =
                format!("{host} is one of more than {SLIPPED_MAX} of {of} that died together");
            self.broken("the_first_do_not_slip_through", seen);
        }
    }

    /// A webhook arrives at the orchestrator. `row` is how the host is recorded.
    pub(super) fn sent(
        &mut self,
        host: HostId,
        kind: EventKind,
        event: EventId,
        row: Option<&HostRow>,
        silent: bool,
    ) {
        self.last.insert(host, kind);
        if kind != EventKind::HostDown {
            return;
        }
        let state = row.map(|r| r.state);
        if state != Some(State::Down) {
            let seen = format!("{host} is failed over, but is {state:?} (silent: {silent})");
            self.broken("the_living_are_not_failed_over", seen);
        }
        let Some(incident) = row.and_then(|r| r.incident) else { return };
        let orders = self.orders.entry(incident).or_default();
        if !orders.contains(&event) {
            orders.push(event);
        }
        if orders.len() > 1 {
            self.broken("one_failover_an_outage", format!("{host} is failed over twice"));
        }
    }

    /// What is held in the store is what the guard shows, and nothing is held for long untold.
    pub(super) fn look_at_holds(&mut self, policy: &Policy, db: &Db, now: Instant, wall: Wall) {
        let held = DeliveryFilter { state: Some(DeliveryState::Held), ..DeliveryFilter::default() };
        let held: Hosts = deliveries(db, held).into_iter().filter_map(|d| d.host).collect();
        let shown = policy.holds(None, None, 1_000, wall).unwrap_or_default();
        let listed: Hosts = shown.holds.iter().map(|h| h.host).collect();
        // What a rule keeps back is no hold, but shown all the same.
        let waits = |host: &&HostId| !policy.waits_of(**host, wall).is_empty();
        let kept = held.difference(&listed).filter(waits).copied();
        let listed: Hosts = listed.iter().copied().chain(kept).collect();
        if held != listed && shown.total <= 1_000 {
            let unseen: Vec<_> = held.symmetric_difference(&listed).take(3).collect();
            let seen =
                format!("{} held, {} shown: {unseen:?} at {now:?}", held.len(), listed.len());
            self.broken("nothing_is_held_unseen", seen);
        }
        // One told of its domain may wait for the next round of that domain.
        let patience = self.guard.hold_max * 2 + OVERDUE_SLACK;
        // A window says itself when it ends.
        let waits = |h: &&HoldStatus| h.kind != HoldKind::Maintenance;
        if let Some(oldest) = shown.holds.iter().find(waits) {
            let age = wall.0.saturating_sub(oldest.since_ms.0);
            let told = self.overdue.iter().any(|at| at.0 > oldest.since_ms.0);
            if age > patience.as_millis() as i64 && !told {
                let seen = format!("{} is held for {age} ms, untold", oldest.host);
                self.broken("nothing_is_held_unseen", seen);
            }
        }
    }

    /// All is healed but for the dead, and an operator has approved what was held.
    pub(super) fn at_the_end(
        &mut self,
        hosts: &[Host],
        rows: &BTreeMap<HostId, HostRow>,
        events: &[EventRow],
        deliveries: &[DeliveryRow],
    ) {
        for d in deliveries {
            if matches!(d.state, DeliveryState::Held | DeliveryState::Pending | DeliveryState::Dead)
            {
                let seen = format!("{} of {:?} is {:?}: {:?}", d.kind, d.host, d.state, d.reason);
                self.broken("nothing_is_left", seen);
            }
        }
        for h in hosts {
            let Some(row) = rows.get(&h.id) else { continue };
            let failed_over = self.last.get(&h.id) == Some(&EventKind::HostDown);
            let good = match (h.dead, h.agent_only) {
                (false, _) => row.state == State::Alive && !failed_over,
                (true, true) => row.state == State::Down,
                (true, false) => {
                    let once = row.incident.and_then(|i| self.orders.get(&i)).map_or(0, Vec::len);
                    let late = row.incident.and_then(|i| self.late.get(&i)).map_or(0, Vec::len);
                    row.state == State::Down
                        && ((once == 1 && late == 1) || self.rejected.contains(&h.id))
                }
            };
            if !good {
                let seen = format!(
                    "{} (dead: {}, agent only: {}) is {}, last told: {:?}, one order of {:?}: {:?}",
                    h.id,
                    h.dead,
                    h.agent_only,
                    row.state,
                    self.last.get(&h.id),
                    row.incident,
                    row.incident.and_then(|i| self.orders.get(&i)),
                );
                self.broken("the_dead_are_failed_over_once", seen);
            }
        }
        self.count_actions();
        self.count_late();
        if events.is_empty() && self.failovers > 0 {
            self.broken("nothing_is_left", "failovers without events".to_owned());
        }
    }

    /// No minute saw more than the patient rule's rate allows.
    fn count_late(&mut self) {
        let Some(rate) = self.patience.rate else { return };
        let times = std::mem::take(&mut self.late_times);
        for (i, from) in times.iter().enumerate() {
            let within = |at: &Instant| *at >= *from && at.since(*from) < MINUTE;
            let count = times[i..].iter().filter(|at| within(at)).count() as u64;
            let starts = self.starts.iter().filter(|at| within(at)).count() as u64;
            let most = u64::from(rate.burst) * (1 + starts) + u64::from(rate.per_minute);
            if count > most + 1 {
                let seen =
                    format!("{count} in a minute under the patient rule, {most} are allowed");
                self.broken("a_rule_keeps_to_its_rate", seen);
                return;
            }
        }
    }

    /// No minute saw more actions than a domain's rate allows.
    fn count_actions(&mut self) {
        for (name, times) in std::mem::take(&mut self.times) {
            let rate = if name == "fleet" { self.guard.fleet_rate } else { self.guard.rate };
            for (i, from) in times.iter().enumerate() {
                let within = |at: &Instant| *at >= *from && at.since(*from) < MINUTE;
                let count = times[i..].iter().filter(|at| within(at)).count() as u64;
                let named: u64 =
                    self.named.iter().filter(|(at, _)| within(at)).map(|(_, n)| n).sum();
                // A restart forgets how full the buckets were.
                let starts = self.starts.iter().filter(|at| within(at)).count() as u64;
                let most =
                    u64::from(rate.burst) * (1 + starts) + u64::from(rate.per_minute) + named;
                if count > most + 1 {
                    let seen = format!("{count} in a minute in {name}, {most} are allowed");
                    self.broken("actions_keep_to_their_rate", seen);
                    break;
                }
            }
        }
    }
}
