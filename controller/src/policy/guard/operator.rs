//! What an operator says about holds, and what survives a restart.

use std::collections::BTreeMap;
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Wall;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use super::{Entry, Guard, News, Stage, Why};
use crate::event::EventKind;

/// Most storms and flapping hosts that are written down for the next start. Storms beyond it are found
/// again from the orders that they hold.
const SAVED_MAX: usize = 1_000;

/// Whose orders are approved or rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This host's.
    Host(HostId),
    /// Of all hosts of the domain with exactly these labels; none: the fleet.
    Domain(BTreeMap<String, String>),
}

/// How many orders were approved or rejected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldReport {
    /// Let go at once.
    pub released: u64,
    /// Approved; each goes as soon as its domain's action rate allows, if it is still true then.
    pub queued: u64,
    /// Rejected: cancelled, and not ordered again in this outage.
    pub rejected: u64,
}

/// What must survive a restart beside the orders themselves.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Saved {
    storms: Vec<SavedStorm>,
    flaps: Vec<(HostId, f64)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedStorm {
    labels: BTreeMap<String, String>,
    since_ms: Wall,
    told: bool,
}

impl Guard {
    fn targets(&self, target: &Target) -> Vec<HostId> {
        let held = |host: &HostId| {
            self.entries.get(host).is_some_and(|e| matches!(e.stage, Stage::Held(_)))
        };
        match target {
            Target::Host(host) => Some(*host).into_iter().filter(held).collect(),
            Target::Domain(labels) => {
                let Some(id) = self.domains.find(labels) else { return Vec::new() };
                // Who is being worked on, or may be there twice, is meant only by name.
                let by_name = |e: &Entry| {
                    e.twin || matches!(e.stage, Stage::Held(Why::Shelter(_) | Why::Twin))
                };
                let meant = |e: &Entry| e.path.contains(&id) && !by_name(e);
                let inside = |host: &HostId| self.entries.get(host).is_some_and(meant);
                self.by_age.iter().map(|(_, host)| *host).filter(inside).collect()
            }
        }
    }

    /// Lets held orders go: one host's at once; a domain's each at its turn, and only if it is still true.
    pub(in crate::policy) fn approve(&mut self, target: &Target) -> HoldReport {
        let mut report = HoldReport::default();
        for host in self.targets(target) {
            let Some(entry) = self.entries.get_mut(&host) else { continue };
            entry.approved = true;
            match target {
                Target::Host(_) => {
                    let path = entry.path.clone();
                    path.iter().for_each(|id| self.take_token(*id));
                    self.let_go(host);
                    report.released += 1;
                }
                Target::Domain(_) => {
                    // What waits in line keeps its place there.
                    if !matches!(entry.stage, Stage::Held(Why::Rate(_))) {
                        self.again.push_back(host);
                    }
                    report.queued += 1;
                }
            }
        }
        report
    }

    /// Has held orders cancelled, with these words.
    pub(in crate::policy) fn reject(&mut self, target: &Target, words: &str) -> HoldReport {
        let mut report = HoldReport::default();
        for host in self.targets(target) {
            let now = self.now;
            self.stage(host, Stage::Rejected, now);
            self.count(host, false);
            self.wake(host, None);
            self.news.push_back(News::Cancel(host, words.to_owned()));
            report.rejected += 1;
        }
        report
    }

    /// Has all that is held of a host cancelled, though not by the guard.
    pub(in crate::policy) fn cancel(&mut self, host: HostId, words: String) {
        self.news.push_back(News::Cancel(host, words));
    }

    /// The event that an operator's word on a domain makes.
    pub(in crate::policy) fn tell_word(
        &mut self,
        kind: EventKind,
        labels: &BTreeMap<String, String>,
        data: Map<String, serde_json::Value>,
    ) {
        self.news.push_back(News::Tell(kind, labels.clone(), data));
    }

    /// A domain's name, for people.
    pub(in crate::policy) fn domain_name(
        &self,
        labels: &BTreeMap<String, String>,
    ) -> Option<String> {
        self.domains.find(labels).map(|id| self.domains.name(id))
    }

    /// What is to be written down, if it has changed.
    pub(in crate::policy) fn save(&mut self, at: Wall) -> Option<String> {
        if !std::mem::take(&mut self.unsaved) {
            return None;
        }
        let storm = |(id, storm): (&super::DomainId, &super::Storm)| SavedStorm {
            labels: self.domains.labels(*id),
            since_ms: wall_before(at, self.now.since(storm.since)),
            told: storm.told,
        };
        let saved = Saved {
            storms: self.storms.iter().take(SAVED_MAX).map(storm).collect(),
            flaps: self.flaps.list(self.now, SAVED_MAX),
        };
        Some(json!(saved).to_string())
    }

    /// Takes over what was written down before a restart, when all hosts and orders are known again.
    /// `Err`: it can't be read; storms are then found from the orders that are held alone.
    pub(in crate::policy) fn resume(
        &mut self,
        saved: Option<&str>,
        at: Wall,
    ) -> Result<(), String> {
        let read = saved.map_or_else(|| Ok(Saved::default()), serde_json::from_str::<Saved>);
        let saved = read.map_err(|e| e.to_string());
        for storm in saved.iter().flat_map(|s| &s.storms) {
            let Some(id) = self.domains.find(&storm.labels) else { continue };
            if !self.storms.contains_key(&id) {
                let ago = at.0.saturating_sub(storm.since_ms.0);
                let since = self.now - Duration::from_millis(u64::try_from(ago).unwrap_or(0));
                self.begin(id, since, storm.told);
            }
        }
        for (host, penalty) in saved.iter().flat_map(|s| &s.flaps) {
            self.flaps.restore(*host, *penalty, self.now);
        }
        self.look_everywhere();
        saved.map(|_| ())
    }

    pub(in crate::policy) fn flap_changed(&mut self) {
        self.unsaved = true;
    }
}

/// A time so long before another.
pub(super) fn wall_before(at: Wall, ago: Duration) -> Wall {
    Wall(at.0.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)))
}
