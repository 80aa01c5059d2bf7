//! What time brings about: waits that end, turns in line, holds that are overdue.

use std::collections::VecDeque;
use std::ops::Bound;
use std::time::Duration;

use heartwatch_common::time::Instant;
use serde_json::{Map, json};

use super::{DomainId, Guard, HoldKind, JUDGED_MAX, News, Stage, Why};
use crate::event::EventKind;

/// How long holds that are overdue are gathered before it is told.
const OVERDUE_GATHERED: Duration = Duration::from_secs(10);

impl Guard {
    /// Lets time pass. What it brings about is answered by [`Guard::news`].
    pub(in crate::policy) fn step(&mut self, now: Instant) {
        self.advance(now);
        self.timers_step();
        self.storms_step();
        for _ in 0..JUDGED_MAX {
            let Some(host) = self.again.pop_front() else { break };
            self.rejudge(host, None);
        }
        self.lines_step();
        self.overdue_step();
        while let Some(host) = self.flaps.steady(self.now) {
            self.unsaved = true;
            self.news.push_back(News::Steady(host));
        }
    }

    fn timers_step(&mut self) {
        for _ in 0..JUDGED_MAX {
            let Some((at, host)) = self.timers.first().copied() else { return };
            if at > self.now {
                return;
            }
            self.wake(host, None);
            let Some(entry) = self.entries.get_mut(&host) else { continue };
            match entry.stage {
                // Its window has passed: nothing of it is of interest any more.
                Stage::Acted | Stage::Rejected => self.leave(host, false),
                Stage::Held(why) => {
                    entry.settled |= why == Why::Settle;
                    self.rejudge(host, None);
                }
            }
        }
    }

    fn lines_step(&mut self) {
        let ids: Vec<DomainId> = self.lines.keys().copied().collect();
        let mut judged = 0;
        for id in ids {
            while judged < JUDGED_MAX && self.has_token(id) {
                let Some(host) = self.lines.get_mut(&id).and_then(VecDeque::pop_front) else {
                    break;
                };
                let waits = Stage::Held(Why::Rate(id));
                // Who is back, approved or held by something else meanwhile is passed over.
                if self.entries.get(&host).is_some_and(|e| e.stage == waits) {
                    judged += 1;
                    self.rejudge(host, Some(id));
                }
            }
            if self.lines.get(&id).is_some_and(VecDeque::is_empty) {
                self.lines.remove(&id);
            }
        }
    }

    fn overdue_step(&mut self) {
        let after = self.overdue_until.map_or(Bound::Unbounded, Bound::Excluded);
        let mut looked = Vec::new();
        for (since, host) in self.by_age.range((after, Bound::Unbounded)).take(JUDGED_MAX) {
            if *since + self.config.hold_max > self.now {
                break;
            }
            looked.push((*since, *host));
        }
        for (since, host) in looked {
            self.overdue_until = Some((since, host));
            let Some(entry) = self.entries.get_mut(&host) else { continue };
            let Stage::Held(why) = entry.stage else { continue };
            // A window says itself when it ends.
            if matches!(why, Why::Shelter(_)) {
                continue;
            }
            entry.overdue = true;
            let group = self.overdue.entry(why).or_default();
            if group.count == 0 {
                let again = group.told_at.map_or(self.now, |told| told + self.config.hold_max);
                group.tell_at = again.max(self.now + OVERDUE_GATHERED);
            }
            group.count += 1;
        }
        let now = self.now;
        let due = self.overdue.iter().filter(|(_, o)| o.count > 0 && o.tell_at <= now);
        let due: Vec<Why> = due.map(|(why, _)| *why).collect();
        for why in due {
            self.tell_overdue(why);
        }
        let hold_max = self.config.hold_max;
        self.overdue
            .retain(|_, o| o.count > 0 || o.told_at.is_some_and(|told| told + hold_max > now));
    }

    fn tell_overdue(&mut self, why: Why) {
        let now = self.now;
        let Some(group) = self.overdue.get_mut(&why) else { return };
        let count = std::mem::take(&mut group.count);
        group.told_at = Some(now);
        let domain = why.domain();
        let name = domain.map(|id| self.domains.name(id));
        let hold_max = humantime::format_duration(self.config.hold_max);
        let of = name.as_ref().map_or_else(String::new, |name| format!(" in {name}"));
        let mut data = Map::new();
        let reason = format!(
            "{count} more held for longer than {hold_max}{of} ({}): look at them with \
             `heartwatchctl holds`, and approve or reject them",
            HoldKind::of(why).words()
        );
        data.insert("reason".to_owned(), json!(reason));
        data.insert("kind".to_owned(), json!(HoldKind::of(why)));
        data.insert("domain".to_owned(), json!(name));
        data.insert("count".to_owned(), json!(count));
        let labels = domain.map(|id| self.domains.labels(id)).unwrap_or_default();
        self.news.push_back(News::Tell(EventKind::HoldOverdue, labels, data));
    }
}
