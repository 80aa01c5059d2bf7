//! Maintenance: windows in which hosts are worked on, so that nobody acts on what happens to them. Pure.
//!
//! A *window* covers one host, a failure domain, or all hosts whose labels fit ([`Labels`]); it has a reason,
//! an author, a begin (now or later) and an end. While it is open, the states of its hosts stay true and
//! visible, but what would be acted upon is held until the end, then judged again ([`super::guard`]), and
//! nobody is alerted of a suspicion, unless a rule is marked `always`.
//!
//! Begin and end are moments of the wall clock for people and for the next start; from then on the monotonic
//! clock decides, so that a step of the wall clock neither opens nor closes nor lengthens a window.
//!
//! Bounds: [`WINDOWS_MAX`] windows, of which [`BROAD_MAX`] cover more than one named host: these are
//! asked one after the other whenever a host's row changes. A window of a named host costs O(log) to
//! find. So a window costs the same whether it covers ten hosts or a million; only when it opens or
//! closes are all hosts looked through once, by the caller.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::{Instant, Wall};
use serde::{Deserialize, Serialize};

use super::domains;

mod labels;

pub use labels::{Labels, TERMS_MAX};

/// Most windows, the coming ones among them.
pub const WINDOWS_MAX: usize = 10_000;
/// Most of them that cover more than one named host.
pub const BROAD_MAX: usize = 100;
/// Shortest window.
pub const LENGTH_MIN: Duration = Duration::from_secs(1);
/// How far ahead a window may begin.
pub const AHEAD_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);

/// Names one window for ever: `m7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WindowId(pub u64);

impl fmt::Display for WindowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m{}", self.0)
    }
}

impl FromStr for WindowId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix('m').unwrap_or(text);
        let number = digits.parse().map_err(|_| {
            format!(
                "`{text}` is no window: name one as `heartwatchctl maintenance` lists it, such as m7"
            )
        });
        number.map(Self)
    }
}

impl Serialize for WindowId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WindowId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Whom a window covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// One host.
    Host(HostId),
    /// Every host of the failure domain with exactly these labels, `zone=a,rack=7`; `fleet`: every host.
    Domain(#[serde(with = "domain_text")] BTreeMap<String, String>),
    /// Every host whose labels fit.
    Labels(Labels),
}

mod domain_text {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        labels: &BTreeMap<String, String>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        s.serialize_str(&super::domain_name(labels))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<BTreeMap<String, String>, D::Error> {
        let text = String::deserialize(d)?;
        super::domains::parse_name(&text).map_err(serde::de::Error::custom)
    }
}

fn domain_name(labels: &BTreeMap<String, String>) -> String {
    if labels.is_empty() {
        return "fleet".to_owned();
    }
    let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join(",")
}

impl Scope {
    /// Whether a host is covered.
    pub fn covers(&self, host: HostId, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Host(id) => *id == host,
            Self::Domain(wanted) => wanted.iter().all(|(k, v)| labels.get(k) == Some(v)),
            Self::Labels(wanted) => wanted.fits(labels),
        }
    }

    /// Labels that every host that is covered has for sure: to look through fewer hosts.
    pub fn sure_labels(&self) -> BTreeMap<String, String> {
        match self {
            Self::Host(_) => BTreeMap::new(),
            Self::Domain(labels) => labels.clone(),
            Self::Labels(labels) => labels.sure(),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => write!(f, "host {host}"),
            Self::Domain(labels) if labels.is_empty() => f.write_str("the whole fleet"),
            Self::Domain(labels) => f.write_str(&domain_name(labels)),
            Self::Labels(labels) => write!(f, "hosts with {labels}"),
        }
    }
}

/// One window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Its name.
    pub id: WindowId,
    /// Whom it covers.
    pub scope: Scope,
    /// Why, in the author's words.
    pub reason: String,
    /// Who says so.
    pub by: String,
    /// When it opens, milliseconds since 1970.
    pub from_ms: Wall,
    /// When it closes, milliseconds since 1970.
    pub until_ms: Wall,
    /// The host's own agent announced it.
    #[serde(default)]
    pub announced: bool,
    /// It has been open.
    #[serde(default)]
    pub begun: bool,
}

impl Window {
    /// Why something is held or not told, in plain words.
    pub fn words(&self) -> String {
        format!(
            "in maintenance until {} (window {} of {}): {}",
            self.until_ms, self.id, self.by, self.reason
        )
    }
}

/// Why a window is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There are [`WINDOWS_MAX`].
    #[error("there are {WINDOWS_MAX} maintenance windows already: end some first")]
    Full,
    /// There are [`BROAD_MAX`] that cover more than one named host.
    #[error(
        "there are {BROAD_MAX} windows by domain or labels already: end some, or name single hosts"
    )]
    FullOfBroad,
}

/// A window with its moments on the monotonic clock.
#[derive(Clone, Debug)]
struct Planned {
    window: Arc<Window>,
    begins: Instant,
    ends: Instant,
}

/// A window opened, or closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Which.
    pub window: Arc<Window>,
    /// Whether it opened.
    pub opened: bool,
}

/// All windows.
#[derive(Clone, Debug, Default)]
pub struct Maintenance {
    windows: BTreeMap<WindowId, Planned>,
    /// Open ones, by the host that they name.
    by_host: BTreeMap<HostId, BTreeSet<WindowId>>,
    /// Open ones that cover more.
    broad: BTreeSet<WindowId>,
    last: u64,
}

impl Maintenance {
    /// The name of the next window.
    pub fn next_id(&self) -> WindowId {
        WindowId(self.last + 1)
    }

    /// The number of the newest window ever.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Goes on counting above this: a name that was given once is never given again.
    pub fn count_from(&mut self, last: u64) {
        self.last = self.last.max(last);
    }

    /// All of them, the coming ones too, in the order in which they were made.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Window>> {
        self.windows.values().map(|p| &p.window)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// How many are open.
    pub fn open_len(&self) -> usize {
        self.broad.len() + self.by_host.values().map(BTreeSet::len).sum::<usize>()
    }

    /// One of them.
    pub fn get(&self, id: WindowId) -> Option<&Arc<Window>> {
        self.windows.get(&id).map(|p| &p.window)
    }

    /// The window that the host's own agent announced, if there is one.
    pub fn announced(&self, host: HostId) -> Option<&Arc<Window>> {
        let ids = self.by_host.get(&host)?.iter();
        ids.filter_map(|id| self.get(*id)).find(|w| w.announced)
    }

    /// Whether there is room for one more.
    pub fn has_room(&self, scope: &Scope) -> Result<(), Refused> {
        if self.windows.len() >= WINDOWS_MAX {
            return Err(Refused::Full);
        }
        let is_broad = |s: &Scope| !matches!(s, Scope::Host(_));
        if is_broad(scope) && self.all().filter(|w| is_broad(&w.scope)).count() >= BROAD_MAX {
            return Err(Refused::FullOfBroad);
        }
        Ok(())
    }

    /// Adds a window, or replaces the one of that name, as of `now`, which is `wall`. One that was open
    /// before a restart is so again at once; any other opens in [`Maintenance::step`]. Answers the
    /// window that is replaced.
    pub fn add(&mut self, window: Window, now: Instant, wall: Wall) -> Option<Arc<Window>> {
        let old = self.remove(window.id);
        self.last = self.last.max(window.id.0);
        let later = |at: Wall| {
            let ms = at.0.saturating_sub(wall.0);
            now + Duration::from_millis(u64::try_from(ms).unwrap_or(0))
        };
        let planned = Planned {
            begins: later(window.from_ms),
            ends: later(window.until_ms),
            window: Arc::new(window),
        };
        let (id, begun) = (planned.window.id, planned.window.begun);
        self.windows.insert(id, planned);
        if begun {
            self.open(id);
        }
        old
    }

    fn open(&mut self, id: WindowId) {
        let Some(planned) = self.windows.get_mut(&id) else { return };
        Arc::make_mut(&mut planned.window).begun = true;
        match planned.window.scope {
            Scope::Host(host) => drop(self.by_host.entry(host).or_default().insert(id)),
            Scope::Domain(_) | Scope::Labels(_) => drop(self.broad.insert(id)),
        }
    }

    /// Removes a window before its end; it covers nobody any more.
    pub fn remove(&mut self, id: WindowId) -> Option<Arc<Window>> {
        let window = self.windows.remove(&id)?.window;
        self.broad.remove(&id);
        if let Scope::Host(host) = window.scope
            && let Some(ids) = self.by_host.get_mut(&host)
        {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_host.remove(&host);
            }
        }
        Some(window)
    }

    /// Lets time pass: what opened and what closed by now. A window whose whole time has passed unseen does
    /// both.
    pub fn step(&mut self, now: Instant) -> Vec<Edge> {
        let due = |p: &&Planned| p.ends <= now || (p.begins <= now && !p.window.begun);
        let due: Vec<WindowId> = self.windows.values().filter(due).map(|p| p.window.id).collect();
        let mut edges = Vec::new();
        for id in due {
            if self.get(id).is_some_and(|w| !w.begun) {
                self.open(id);
                edges.extend(self.get(id).map(|w| Edge { window: Arc::clone(w), opened: true }));
            }
            if self.windows.get(&id).is_some_and(|p| p.ends <= now) {
                edges.extend(self.remove(id).map(|window| Edge { window, opened: false }));
            }
        }
        edges
    }

    /// The open window that covers a host; of several the one that closes last.
    pub fn cover(&self, host: HostId, labels: &BTreeMap<String, String>) -> Option<&Arc<Window>> {
        let named = self.by_host.get(&host).into_iter().flatten();
        let planned = |id: &WindowId| self.windows.get(id);
        let broad = self.broad.iter().filter_map(planned);
        let fitting = broad.filter(|p| p.window.scope.covers(host, labels));
        let last = named.filter_map(planned).chain(fitting).max_by_key(|p| (p.ends, p.window.id));
        last.map(|p| &p.window)
    }
}

#[cfg(test)]
mod tests;
