//! When a storm is seen, when it is told, and when it is over.

use heartwatch_common::id::HostId;
use heartwatch_common::time::Instant;
use serde_json::{Map, json};

use super::{DomainId, Guard, News};
use crate::config::Threshold;
use crate::event::EventKind;

/// A storm in one domain.
#[derive(Clone, Debug)]
pub(super) struct Storm {
    /// When it was seen.
    pub(super) since: Instant,
    /// It was told. A larger storm's smaller ones are not.
    pub(super) told: bool,
    /// Since when there is less than half of what it takes.
    calm_since: Option<Instant>,
    /// When a host of it last went down or came back.
    pub(super) changed: Instant,
    /// Most hosts that were silent at once.
    pub(super) peak: u32,
}

/// How a storm ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its hosts came back, or were dealt with.
    Calm,
    /// Nothing changes any more: what is dead is dead.
    Steady,
}

impl Guard {
    /// Whether so much of a domain is silent; `by` scales what it takes.
    fn exceeds(&self, id: DomainId, by: f64) -> bool {
        let Threshold { share, hosts } = self.threshold(id);
        let Some(domain) = self.domains.get(id) else { return false };
        let silent = f64::from(domain.silent());
        hosts > 0
            && silent >= f64::from(hosts) * by
            && silent >= share * f64::from(domain.base()) * by
    }

    /// Whether a storm inside a domain accounts for three quarters of who is silent in it, while others of it
    /// are heard: then that one holds its hosts, and this domain's others go on.
    fn is_explained(&self, id: DomainId) -> bool {
        let Some(domain) = self.domains.get(id) else { return false };
        self.storms.keys().any(|inner| {
            *inner != id
                && self.domains.is_within(*inner, id)
                && self.domains.get(*inner).is_some_and(|d| {
                    d.silent() * 4 >= domain.silent() * 3 && domain.heard > d.heard
                })
        })
    }

    /// Trips the guard of a domain if there is reason to. Suspects alone are none: there is nothing to hold.
    pub(super) fn look_for_storm(&mut self, id: DomainId) {
        let Some(domain) = self.domains.get(id) else { return };
        let silent = domain.silent();
        if let Some(storm) = self.storms.get_mut(&id) {
            storm.peak = storm.peak.max(silent);
        } else if domain.counted > 0 && self.exceeds(id, 1.0) && !self.is_explained(id) {
            self.begin(id, self.now, false);
        }
    }

    /// After a restart, when all hosts are registered.
    pub(super) fn look_everywhere(&mut self) {
        // Inner ones first: they may explain the outer ones.
        let mut ids: Vec<DomainId> = self.domains.ids().collect();
        ids.sort_by_key(|id| std::cmp::Reverse(self.domains.depth(*id)));
        ids.into_iter().for_each(|id| self.look_for_storm(id));
    }

    pub(super) fn begin(&mut self, id: DomainId, since: Instant, told: bool) {
        let peak = self.domains.get(id).map_or(0, |d| d.silent());
        let storm = Storm { since, told, calm_since: None, changed: self.now, peak };
        self.storms.insert(id, storm);
        self.domains.hold(&[id]);
        self.unsaved = true;
    }

    pub(super) fn storms_step(&mut self) {
        let ids: Vec<DomainId> = self.storms.keys().copied().collect();
        let mut ended = Vec::new();
        for id in &ids {
            if let Some(how) = self.has_ended(*id) {
                ended.extend(self.end(*id, how));
            }
        }
        // Who is let go by a storm that has become steady is no evidence of the next: all of them, before the
        // first is judged.
        for host in &ended {
            if self.entries.get(host).is_some_and(|e| e.excused && !self.is_stormy(&e.path)) {
                self.count(*host, false);
            }
        }
        self.again.extend(ended);
        for id in ids {
            let Some(storm) = self.storms.get(&id).filter(|s| !s.told) else { continue };
            let silent_wholly = self.domains.get(id).is_some_and(|d| d.heard == 0);
            // Told earlier, a dead rack would be told as a storm, and a mistake of a moment at all.
            let settled = self.now >= storm.since + self.config.settle || silent_wholly;
            if settled && storm.calm_since.is_none() && !self.is_covered(id) {
                self.tell(id);
            }
        }
    }

    fn has_ended(&mut self, id: DomainId) -> Option<End> {
        // Hysteresis: it takes half as much to go on as it took to begin.
        let goes_on = self.exceeds(id, 0.5);
        let (now, steady) = (self.now, self.config.release_after);
        let may_settle = id != DomainId::FLEET
            && !steady.is_zero()
            && !self.storms.contains_key(&DomainId::FLEET);
        let storm = self.storms.get_mut(&id)?;
        if goes_on {
            storm.calm_since = None;
            return (may_settle && now.since(storm.changed) >= steady).then_some(End::Steady);
        }
        let calm_since = *storm.calm_since.get_or_insert(now);
        (now.since(calm_since) >= self.config.calm).then_some(End::Calm)
    }

    /// Whether a larger domain's storm tells of this one too.
    fn is_covered(&self, id: DomainId) -> bool {
        self.storms.keys().any(|outer| *outer != id && self.domains.is_within(id, *outer))
    }

    fn figures(&self, id: DomainId) -> Map<String, serde_json::Value> {
        let mut data = Map::new();
        let Some(domain) = self.domains.get(id) else { return data };
        data.insert("domain".to_owned(), json!(self.domains.name(id)));
        data.insert("labels".to_owned(), json!(self.domains.labels(id)));
        data.insert("silent".to_owned(), json!(domain.silent()));
        data.insert("heard".to_owned(), json!(domain.heard));
        data.insert("held".to_owned(), json!(domain.held));
        data
    }

    fn tell(&mut self, id: DomainId) {
        let Some(domain) = self.domains.get(id) else { return };
        let Threshold { share, hosts } = self.threshold(id);
        let (silent, base) = (domain.silent(), domain.base());
        let name = self.domains.name(id);
        let (kind, what) = match (domain.heard, id == DomainId::FLEET) {
            (0, false) => (EventKind::DomainDown, "all are silent: the domain itself is down"),
            (0, true) => (EventKind::DomainDown, "nobody is heard any more: it may be us"),
            (_, true) => (EventKind::DomainStorm, "most of the fleet is silent: it may be us"),
            (_, false) => (EventKind::DomainStorm, "many fell silent together"),
        };
        let mut data = self.figures(id);
        let reason = format!(
            "{name}: {silent} of {base} hosts are silent (it takes {hosts} and {:.0} %); {what}. Their \
             failovers are held; see `heartwatchctl holds list --domain {name}`",
            share * 100.0
        );
        data.insert("reason".to_owned(), json!(reason));
        self.news.push_back(News::Tell(kind, self.domains.labels(id), data));
        if let Some(storm) = self.storms.get_mut(&id) {
            storm.told = true;
        }
        self.unsaved = true;
    }

    /// Ends a storm; answers whose orders it held.
    fn end(&mut self, id: DomainId, how: End) -> Vec<HostId> {
        let Some(storm) = self.storms.remove(&id) else { return Vec::new() };
        self.unsaved = true;
        let bound: Vec<HostId> = self.stormbound.get(&id).into_iter().flatten().copied().collect();
        if storm.told {
            let name = self.domains.name(id);
            let lasted = self.now.since(storm.since).as_secs();
            let (word, what) = match how {
                End::Calm => ("calm", "its hosts are heard again, or were dealt with"),
                End::Steady => {
                    ("steady", "nothing changes any more: what is silent is taken for dead")
                }
            };
            let mut data = self.figures(id);
            let reason = format!(
                "{name}: the storm is over after {lasted} s; {what}. What it held ({}) is judged again",
                bound.len()
            );
            data.insert("reason".to_owned(), json!(reason));
            data.insert("how".to_owned(), json!(word));
            data.insert("lasted_s".to_owned(), json!(lasted));
            data.insert("peak".to_owned(), json!(storm.peak));
            let labels = self.domains.labels(id);
            self.news.push_back(News::Tell(EventKind::DomainCalm, labels, data));
        }
        for host in &bound {
            if let Some(entry) = self.entries.get_mut(host) {
                entry.excused |= how == End::Steady;
                entry.settled = true;
            }
        }
        self.domains.release(&[id]);
        bound
    }
}
