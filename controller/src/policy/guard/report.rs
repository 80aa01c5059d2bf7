//! What the guard shows: holds, storms, and why, in plain words.

use std::collections::BTreeMap;
use std::ops::Bound;

use heartwatch_common::id::HostId;
use heartwatch_common::time::{Instant, Wall};
use serde::{Deserialize, Serialize};

use super::super::waits::RuleWaits;
use super::operator::wall_before;
use super::{DomainId, Guard, Stage, Why};
use crate::detector::DUPLICATE_WINDOW;

/// Most storms that the status lists.
pub const STORMS_SHOWN_MAX: usize = 100;

/// What kind of reason holds an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoldKind {
    /// The host is in maintenance.
    Maintenance,
    /// The controller is paused, blind, or has just been restarted.
    Controller,
    /// Two machines answered under its identity.
    Duplicate,
    /// Too many hosts of a domain are silent.
    Storm,
    /// The host comes and goes.
    Flapping,
    /// Others of its domain are silent: it waits for a moment.
    Settling,
    /// Its domain's actions are limited in rate.
    Rate,
}

impl HoldKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Maintenance,
        Self::Controller,
        Self::Duplicate,
        Self::Storm,
        Self::Flapping,
        Self::Settling,
        Self::Rate,
    ];

    /// As it stands in JSON, labels and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Maintenance => "maintenance",
            Self::Controller => "controller",
            Self::Duplicate => "duplicate",
            Self::Storm => "storm",
            Self::Flapping => "flapping",
            Self::Settling => "settling",
            Self::Rate => "rate",
        }
    }

    /// In plain words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Maintenance => "maintenance",
            Self::Controller => "the controller is paused, blind, or just restarted",
            Self::Duplicate => "two machines under one identity",
            Self::Storm => "a storm",
            Self::Flapping => "flapping hosts",
            Self::Settling => "waiting for others of the domain",
            Self::Rate => "limited action rate",
        }
    }

    pub(super) const fn of(why: Why) -> Self {
        match why {
            Why::Shelter(_) => Self::Maintenance,
            Why::Own => Self::Controller,
            Why::Twin => Self::Duplicate,
            Why::Storm(_) => Self::Storm,
            Why::Flap => Self::Flapping,
            Why::Settle => Self::Settling,
            Why::Rate(_) => Self::Rate,
        }
    }
}

/// A held order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldStatus {
    /// Whose.
    pub host: HostId,
    /// Its name, as far as it is known.
    #[serde(default)]
    pub name: String,
    /// Since when it is held, for whatever reason; milliseconds since 1970.
    pub since_ms: Wall,
    /// What kind of reason holds it now.
    pub kind: HoldKind,
    /// In which domain that reason lies; none: it is the host's or the controller's own.
    pub domain: Option<String>,
    /// In plain words.
    pub reason: String,
    /// Somebody approved it: it goes at its domain's action rate.
    pub approved: bool,
    /// It is held for longer than `domains.hold_max`.
    pub overdue: bool,
}

/// Held orders, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldsPage {
    /// The holds.
    pub holds: Vec<HoldStatus>,
    /// All that are held, of any domain.
    pub total: u64,
    /// What rules keep back beside these: it goes by itself, by its delay, hours or rate.
    #[serde(default)]
    pub waits: Vec<RuleWaits>,
    /// Hand it back as `after` for the next page; none: this was the last.
    pub next_after: Option<String>,
}

/// A domain whose failovers are held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StormStatus {
    /// Which: `zone=a,rack=7`, or `fleet`.
    pub domain: String,
    /// Since when, milliseconds since 1970.
    pub since_ms: Wall,
    /// Hosts of it that are silent and count as evidence.
    pub silent: u32,
    /// Hosts of it that are heard.
    pub heard: u32,
    /// Its orders that are held.
    pub held: u32,
}

/// What the guard holds, in figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardStatus {
    /// Held orders by kind; all kinds are there.
    pub holds: BTreeMap<HoldKind, u64>,
    /// Since when the oldest is held, milliseconds since 1970.
    pub oldest_ms: Option<Wall>,
    /// Domains in a storm, at most [`STORMS_SHOWN_MAX`].
    pub storms: Vec<StormStatus>,
    /// How many there are.
    pub storms_total: u64,
    /// Hosts that flap.
    pub flapping: u64,
    /// Failure domains that are known.
    pub domains: u64,
    /// There are too many domains: some count in the larger ones alone.
    pub domains_full: bool,
}

impl Guard {
    pub(super) fn words(&self, host: HostId, why: Why) -> String {
        let Some(entry) = self.entries.get(&host) else { return String::new() };
        let counts = |id: DomainId| self.domains.get(id).map_or((0, 0), |d| (d.silent(), d.base()));
        match why {
            Why::Shelter(_) => self
                .shelter_of(host)
                .map_or_else(|| "it was in maintenance until now".to_owned(), |w| w.words()),
            Why::Own => self.own.clone().unwrap_or_else(|| {
                "the controller has been restarted: every host gets its chance first".to_owned()
            }),
            // Short: tables cut what is long, and what is to be done must stand there.
            Why::Twin => format!(
                "two machines answered under its identity: it goes {} after the other was last heard, or by \
                 `heartwatchctl hosts single HOST`",
                humantime::format_duration(DUPLICATE_WINDOW)
            ),
            Why::Storm(id) => {
                let ((silent, base), limit) = (counts(id), self.threshold(id));
                let us = if id == DomainId::FLEET { ", it may be us" } else { "" };
                format!(
                    "storm in {}: {silent} of {base} hosts are silent (it takes {} and {:.0} %){us}",
                    self.domains.name(id),
                    limit.hosts,
                    limit.share * 100.0
                )
            }
            Why::Flap => format!(
                "it is flapping (penalty {:.0}): acted upon once it has been down for {}",
                self.flaps.penalty(host, self.now),
                humantime::format_duration(self.config.flaps.act_after)
            ),
            Why::Settle => {
                let fullest = entry.path.iter().rfind(|id| counts(**id).0 > 1);
                let name = fullest.copied().unwrap_or(DomainId::FLEET);
                let name = self.domains.name(name);
                let span = self.config.settle.max(entry.gap).min(super::SETTLE_MAX);
                format!(
                    "others of {name} are silent too: it waits {} to see whether this is a storm",
                    humantime::format_duration(span)
                )
            }
            Why::Rate(id) => {
                let rate = self.rate(id);
                format!(
                    "no more than {} actions a minute are taken in {}: its turn comes",
                    rate.per_minute,
                    self.domains.name(id)
                )
            }
        }
    }

    /// What holds a host's order, if something does. `at`: what the wall clock says now.
    pub(in crate::policy) fn hold_of(&self, host: HostId, at: Wall) -> Option<HoldStatus> {
        let entry = self.entries.get(&host)?;
        let Stage::Held(why) = entry.stage else { return None };
        Some(HoldStatus {
            host,
            name: String::new(),
            since_ms: wall_before(at, self.now.since(entry.since)),
            kind: HoldKind::of(why),
            domain: why.domain().map(|id| self.domains.name(id)),
            reason: self.words(host, why),
            approved: entry.approved,
            overdue: entry.overdue,
        })
    }

    /// A page of holds, the oldest first, of one domain or all. `None`: `after` is no place.
    pub(in crate::policy) fn page(
        &self,
        domain: Option<&BTreeMap<String, String>>,
        after: Option<&str>,
        limit: usize,
        at: Wall,
    ) -> Option<HoldsPage> {
        let from = match after {
            Some(text) => Bound::Excluded(parse_place(text)?),
            None => Bound::Unbounded,
        };
        let mut page = HoldsPage { total: self.held.iter().sum(), ..HoldsPage::default() };
        let wanted = domain.map(|labels| self.domains.find(labels));
        if wanted == Some(None) {
            return Some(page);
        }
        for (since, host) in self.by_age.range((from, Bound::Unbounded)) {
            let inside = |id| self.entries.get(host).is_some_and(|e| e.path.contains(&id));
            if !wanted.flatten().is_none_or(inside) {
                continue;
            }
            if page.holds.len() >= limit {
                let last = page.holds.last().map(|h| h.host);
                let since = last.and_then(|host| Some((self.entries.get(&host)?.since, host)));
                page.next_after = since.map(place_text);
                break;
            }
            page.holds.extend(self.hold_of(*host, at));
            debug_assert!(self.entries.get(host).is_some_and(|e| e.since == *since));
        }
        Some(page)
    }

    /// In figures.
    pub(in crate::policy) fn status(&self, at: Wall) -> GuardStatus {
        let storm = |(id, storm): (&DomainId, &super::Storm)| {
            let domain = self.domains.get(*id)?;
            Some(StormStatus {
                domain: self.domains.name(*id),
                since_ms: wall_before(at, self.now.since(storm.since)),
                silent: domain.silent(),
                heard: domain.heard,
                held: domain.held,
            })
        };
        let oldest = self.by_age.first().map(|(since, _)| *since);
        GuardStatus {
            holds: HoldKind::ALL.into_iter().map(|k| (k, self.held[k as usize])).collect(),
            oldest_ms: oldest.map(|since| wall_before(at, self.now.since(since))),
            storms: self.storms.iter().take(STORMS_SHOWN_MAX).filter_map(storm).collect(),
            storms_total: self.storms.len() as u64,
            flapping: self.flaps.len() as u64,
            domains: self.domains.len() as u64,
            domains_full: self.domains.is_full(),
        }
    }
}

fn place_text((since, host): (Instant, HostId)) -> String {
    format!("{:x}-{host}", since.0)
}

fn parse_place(text: &str) -> Option<(Instant, HostId)> {
    let (since, host) = text.split_once('-')?;
    Some((Instant(u64::from_str_radix(since, 16).ok()?), host.parse().ok()?))
}
