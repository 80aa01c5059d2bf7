//! Hosts in maintenance: what happens to them is acted upon only afterwards, and is evidence of nothing.

use std::sync::Arc;

use heartwatch_common::id::HostId;
use heartwatch_common::time::{Instant, Wall};

use super::{Guard, Stage, Why, is_silent};
use crate::policy::maintenance::{Edge, Window, WindowId};
use crate::store::HostRow;

impl Guard {
    /// The window that covers a host, if one does.
    pub(in crate::policy) fn shelter_of(&self, host: HostId) -> Option<&Arc<Window>> {
        self.maintenance.get(*self.sheltered.get(&host)?)
    }

    /// How many hosts are in maintenance.
    pub(in crate::policy) fn sheltered_len(&self) -> usize {
        self.sheltered.len()
    }

    /// Adds or replaces a window.
    pub(in crate::policy) fn add_window(
        &mut self,
        window: Window,
        now: Instant,
        wall: Wall,
    ) -> Option<Arc<Window>> {
        self.advance(now);
        self.maintenance.add(window, now, wall)
    }

    /// What opened and what closed by now. The caller then hands in every host that is concerned by
    /// [`Guard::observe`], with one row on both sides, before it lets time pass by [`Guard::step`].
    pub(in crate::policy) fn windows_step(&mut self, now: Instant) -> Vec<Edge> {
        self.advance(now);
        self.maintenance.step(now)
    }

    /// Notes by which window a host is covered from now on. Answers how it was before.
    pub(super) fn shelter(&mut self, host: HostId, by: Option<WindowId>) -> Option<WindowId> {
        match by {
            Some(by) => self.sheltered.insert(host, by),
            None if self.sheltered.is_empty() => None,
            None => self.sheltered.remove(&host),
        }
    }

    /// What becomes of a host's order as it comes into maintenance, or out of it.
    pub(super) fn shelter_changed(&mut self, row: &HostRow, by: Option<WindowId>) {
        let host = row.id;
        let Some(entry) = self.entries.get_mut(&host) else { return };
        match (entry.stage, by) {
            (Stage::Held(_), Some(by)) => {
                self.count(host, false);
                self.hold(host, Why::Shelter(by));
            }
            // It is as at the moment of its fall: evidence, and to be judged by all that may hold it. Whoever
            // comes out together is counted before the first is judged.
            (Stage::Held(_), None) => {
                entry.wanted_at = self.now;
                (entry.settled, entry.excused, entry.approved) = (false, false, false);
                self.count(host, is_silent(row));
                self.again.push_back(host);
            }
            // What was done is done; it explains nothing any more.
            (Stage::Acted | Stage::Rejected, Some(_)) => self.leave(host, false),
            (Stage::Acted | Stage::Rejected, None) => {}
        }
    }
}
