//! What the policy says and does about maintenance windows: pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use heartwatch_common::id::HostId;
use heartwatch_common::time::{Instant, Wall};
use rand::Rng;
use serde_json::{Map, Value, json};

use super::Policy;
use super::maintenance::{Edge, Maintenance, Scope, Window};
use crate::event::EventKind;
use crate::store::{HostRow, NewEvent};

impl Policy {
    /// All windows.
    pub fn maintenance(&self) -> &Maintenance {
        &self.guard.maintenance
    }

    /// The window that covers a host now, if one does: such a host is no candidate either.
    pub fn shelter_of(&self, host: HostId) -> Option<&Arc<Window>> {
        self.guard.shelter_of(host)
    }

    /// How many hosts are in maintenance.
    pub fn sheltered_len(&self) -> usize {
        self.guard.sheltered_len()
    }

    /// Windows are numbered above this, as those before a restart were.
    pub fn count_windows_from(&mut self, last: u64) {
        self.guard.maintenance.count_from(last);
    }

    /// Adds a window, or replaces the one of its name, which is answered;
    /// [`Maintenance::has_room`] was asked before.
    /// It opens in [`Policy::windows_step`].
    pub fn add_window(&mut self, window: Window, now: Instant, at: Wall) -> Option<Arc<Window>> {
        self.guard.add_window(window, now, at)
    }

    /// What opened and what closed by now. Every host that such a window covers must then be handed in by
    /// [`Policy::look_again`], before time passes by [`Policy::step`]: those that come out of maintenance
    /// together are judged as hosts that fell together.
    pub fn windows_step(&mut self, now: Instant) -> Vec<Edge> {
        self.guard.windows_step(now)
    }

    /// Ends a window before its time; as for [`Policy::windows_step`].
    pub fn end_window(&mut self, window: &Window) -> Option<Edge> {
        let window = self.guard.maintenance.remove(window.id)?;
        Some(Edge { window, opened: false })
    }

    /// A host may have come into maintenance, or out of it.
    pub fn look_again(&mut self, row: &HostRow) {
        self.guard.observe(Some(row), Some(row));
    }

    /// The event of a window that opened or closed. `row`: of the host that it names, if it is known; `why`:
    /// why it closed.
    pub fn window_event<R: Rng + ?Sized>(
        &self,
        edge: &Edge,
        row: Option<&HostRow>,
        why: &str,
        at: Wall,
        rng: &mut R,
    ) -> NewEvent {
        let window = &edge.window;
        let (kind, reason) = if edge.opened {
            let words = format!(
                "{} in maintenance until {}, by {}: {}",
                window.scope, window.until_ms, window.by, window.reason
            );
            (EventKind::MaintenanceStarted, words)
        } else {
            let words = format!(
                "{}: the maintenance of {} is over ({why}); who is still down is judged now",
                window.scope, window.by
            );
            (EventKind::MaintenanceEnded, words)
        };
        let mut data = Map::new();
        data.insert("by".to_owned(), json!(window.by));
        data.insert("window".to_owned(), json!(**window));
        match (&window.scope, row) {
            (Scope::Host(_), Some(row)) => self.beside(kind, row, reason, data, at, rng),
            (scope, _) => {
                data.insert("reason".to_owned(), Value::String(reason));
                let labels = match scope {
                    Scope::Domain(labels) => labels.clone(),
                    Scope::Host(_) | Scope::Labels(_) => BTreeMap::new(),
                };
                self.domain_event(kind, &labels, data, at, rng)
            }
        }
    }
}
