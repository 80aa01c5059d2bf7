//! Maintenance windows and planned leaves: what the shell does about them, and what a loop over all says.

use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Wall;
use heartwatch_common::wire::LeaveReason;
use heartwatch_controller::detector::host::Turn;
use heartwatch_controller::event::State;
use heartwatch_controller::policy::Policy;
use heartwatch_controller::policy::maintenance::{Scope, Window};

use super::story::Happening;
use super::{ORIGIN, Work, World};

/// Under which names windows stand in the store.
const PREFIX: &str = "maintenance/";

impl World {
    /// An operator opens a window.
    pub(super) fn maintain(&mut self, scope: Scope, span: Duration) {
        let (now, wall) = (self.now, self.wall());
        let Some(policy) = &mut self.policy else { return };
        let window = Window {
            id: policy.maintenance().next_id(),
            scope,
            reason: "drill".to_owned(),
            by: "operator".to_owned(),
            from_ms: wall,
            until_ms: Wall(wall.0 + span.as_millis() as i64),
            announced: false,
            begun: false,
        };
        policy.add_window(window.clone(), now, wall);
        self.keep(&window, true);
        self.windows.push(window);
        self.turn_windows();
    }

    fn keep(&mut self, window: &Window, keep: bool) {
        let key = format!("{PREFIX}{}", window.id.0);
        let text = keep.then(|| serde_json::to_string(window).expect("a window can be written"));
        self.db.put(&key, text.as_deref()).expect("memory has room");
    }

    pub(super) fn load_windows(&mut self, policy: &mut Policy) {
        for (_, text) in self.db.list(PREFIX).expect("reading works") {
            let window = serde_json::from_str(&text).expect("what was saved can be read");
            policy.add_window(window, self.now, self.wall());
        }
    }

    /// What the shell does as windows open and close.
    pub(super) fn turn_windows(&mut self) {
        let (now, wall) = (self.now, self.wall());
        let Some(policy) = &mut self.policy else { return };
        let mut turned = Vec::new();
        for edge in policy.windows_step(now) {
            let event = policy.window_event(&edge, None, "over", wall, &mut self.rng);
            self.work.push_back(Work::Event(Box::new(event)));
            for row in self.rows.values() {
                if edge.window.scope.covers(row.id, &row.labels) {
                    policy.look_again(row);
                    if edge.opened {
                        self.promises.sheltered(row.id);
                    }
                }
            }
            turned.push(edge);
        }
        for edge in turned {
            self.tell(format!("{} opened: {}", edge.window.id, edge.opened));
            self.keep(&edge.window, edge.opened);
        }
        // The naive way: all windows, and the wall clock.
        self.windows.retain(|w| w.until_ms > wall);
        let rows = self.rows.values();
        let covered =
            |id: HostId, labels: &_| self.windows.iter().any(|w| w.scope.covers(id, labels));
        let covered = rows.filter(|r| covered(r.id, &r.labels)).map(|r| r.id).collect();
        self.promises.set_covered(covered);
    }

    /// An order of a host goes: not while it is being worked on, unless somebody named it.
    pub(super) fn check_maintenance(&mut self, host: HostId) {
        let at = self.now.since(ORIGIN);
        self.promises.acted_in_maintenance(host, at);
    }

    /// A host says goodbye, and when it will be back.
    pub(super) fn say_goodbye(&mut self, host: usize, expected: Duration) {
        if self.hosts[host].dead {
            return;
        }
        let known = self.rows.get(&self.hosts[host].id).map(|r| r.state);
        if self.link_cut || self.policy.is_none() || known == Some(State::Left) {
            // Nobody hears it.
            return self.die(host, false);
        }
        (self.hosts[host].dead, self.hosts[host].agent_only) = (true, false);
        self.hosts[host].life += 1;
        self.turn(host, Turn::Left { reason: LeaveReason::Reboot, expected }, State::Left);
        self.await_return(host);
    }

    /// What the detector would say when it is not back.
    pub(super) fn await_return(&mut self, host: usize) {
        let wall = self.wall();
        let back_by = self.rows.get(&self.hosts[host].id).and_then(|r| r.back_by);
        let Some(back_by) = back_by else { return };
        let left = back_by.0.saturating_sub(wall.0).max(5_000);
        let life = self.hosts[host].life;
        let at = self.now + Duration::from_millis(left as u64);
        self.at(at, Happening::Overdue { host, life });
    }

    pub(super) fn is_overdue(&mut self, host: usize, life: u32) {
        let state = self.rows.get(&self.hosts[host].id).map(|r| r.state);
        if self.hosts[host].life == life && state == Some(State::Left) {
            let expected = Duration::ZERO;
            self.turn(host, Turn::Overdue { expected }, State::Suspect);
            self.at(self.now + Duration::from_millis(800), Happening::Down { host, life });
        }
    }
}

/// Which windows are asked for.
pub(super) fn some_scope(zone: usize, rack: usize, host: HostId, pick: u32) -> Scope {
    let label = |key: &str, value: String| [(key.to_owned(), value)].into();
    match pick {
        0 => Scope::Host(host),
        1 => Scope::Domain(label("rack", format!("r{rack}"))),
        2 => Scope::Domain(label("zone", format!("z{zone}"))),
        _ => Scope::Labels(format!("zone=z{zone},rack!=r{rack}").parse().expect("an expression")),
    }
}
