//! What the shell does about maintenance: it keeps windows in the store, looks hosts through when one opens
//! or closes, and answers what operators ask.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use heartwatch_common::time::{Clock, Instant, Wall};
use tokio::sync::oneshot;

use super::{DriverStatus, Running, Work};
use crate::control::ControlError;
use crate::policy::Policy;
use crate::policy::maintenance::{Edge, Maintenance, Scope, Window, WindowId};
use crate::store::{HostRow, Store, StoreError};
use crate::view::{Filter, PAGE_LEN_MAX, View};

/// Under which names windows stand in the store: this, then the window's number.
const PREFIX: &str = "maintenance/";
/// Under which name the number of the newest window stands in the store.
const LAST_KEY: &str = "maintenance-last";
/// Hosts that are looked through in one tick as windows open and close.
const LOOKED_MAX: usize = 50_000;

/// Ends that are no further apart than this, milliseconds, are the same.
const SAME_END_MS: u64 = 5_000;

/// What an operator asks or says about windows.
#[derive(Debug)]
pub enum WindowAsk {
    /// Add this one; its name is given here.
    Add(Window, oneshot::Sender<Result<Arc<Window>, ControlError>>),
    /// End this one now, by an operator's word.
    End(WindowId, String, oneshot::Sender<Result<Arc<Window>, ControlError>>),
}

/// Looks through the hosts that an opened or closed window covers.
#[derive(Debug, Default)]
pub(super) struct Scans {
    waiting: VecDeque<(Arc<Window>, u64)>,
    /// Windows have changed since readers were shown them.
    changed: bool,
}

fn key(id: WindowId) -> String {
    format!("{PREFIX}{}", id.0)
}

impl DriverStatus {
    /// All maintenance windows, as of the last tick.
    pub fn maintenance(&self) -> Arc<Maintenance> {
        Arc::clone(&self.windows.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many hosts are in maintenance.
    pub fn sheltered(&self) -> u64 {
        self.sheltered.load(Ordering::Relaxed)
    }

    fn set_maintenance(&self, windows: Maintenance) {
        *self.windows.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(windows);
    }
}

/// Hands a policy that knows no host yet the windows that the store holds. What is damaged is logged and left
/// out.
pub async fn load_windows(
    policy: &mut Policy,
    store: &dyn Store,
    status: &DriverStatus,
    clock: &dyn Clock,
) -> Result<(), StoreError> {
    if let Some(text) = store.get(LAST_KEY).await? {
        match text.parse() {
            Ok(last) => policy.count_windows_from(last),
            Err(_) => log::error!("the stored {LAST_KEY} is damaged: windows are numbered anew"),
        }
    }
    for (key, text) in store.list(PREFIX).await? {
        match serde_json::from_str::<Window>(&text) {
            Ok(window) => drop(policy.add_window(window, clock.now(), clock.wall())),
            Err(e) => log::error!("the stored maintenance window {key} is damaged, left out: {e}"),
        }
    }
    status.set_maintenance(policy.maintenance().clone());
    Ok(())
}

/// How many hosts of the registry a window covers.
pub fn covered(view: &View, scope: &Scope) -> u64 {
    let mut n = 0;
    if let Scope::Host(host) = scope {
        return u64::from(view.contains(*host));
    }
    let filter = Filter { labels: scope.sure_labels(), ..Filter::default() };
    let mut at = Some(0);
    while let Some(from) = at {
        let (hosts, next) = view.list(&filter, from, PAGE_LEN_MAX);
        n += hosts.iter().filter(|h| scope.covers(h.row.id, &h.row.labels)).count() as u64;
        at = next;
    }
    n
}

impl Running {
    /// Whether hosts are still being looked through.
    pub(super) fn is_scanning(&self) -> bool {
        !self.scans.waiting.is_empty()
    }

    pub(super) fn look_after_windows(&mut self, now: Instant) {
        for edge in self.d.policy.windows_step(now) {
            self.turned(&edge, "its time has come");
        }
        self.scan();
        if std::mem::take(&mut self.scans.changed) {
            self.d.status.set_maintenance(self.d.policy.maintenance().clone());
        }
        let sheltered = self.d.policy.sheltered_len() as u64;
        self.d.status.sheltered.store(sheltered, Ordering::Relaxed);
    }

    /// A window opened or closed.
    fn turned(&mut self, edge: &Edge, why: &str) {
        self.scans.changed = true;
        let window = &edge.window;
        let known = match window.scope {
            Scope::Host(host) => self.d.view.get(host),
            Scope::Domain(_) | Scope::Labels(_) => None,
        };
        let wall = self.d.clock.wall();
        let row = known.as_ref().map(|k| &k.row);
        let event = self.d.policy.window_event(edge, row, why, wall, &mut self.rng);
        let reason = event.data.get("reason").and_then(|r| r.as_str()).unwrap_or_default();
        log::info!("{}: {reason}", event.kind);
        // First told, then noted that it was: after a crash between the two it is told again.
        self.work.push(Work::Event(Box::new(event)));
        self.keep(window, edge.opened);
        match row {
            Some(row) => self.d.policy.look_again(row),
            None => self.scans.waiting.push_back((Arc::clone(window), 0)),
        }
    }

    fn keep(&mut self, window: &Window, keep: bool) {
        let text = if keep { serde_json::to_string(window).ok() } else { None };
        self.work.push(Work::Keep(key(window.id), text));
    }

    /// Hands the policy the hosts that may have come into maintenance, or out of it: a bounded number.
    fn scan(&mut self) {
        let mut left = LOOKED_MAX;
        while left > 0
            && let Some((window, from)) = self.scans.waiting.pop_front()
        {
            if matches!(window.scope, Scope::Host(_)) {
                continue;
            }
            let filter = Filter { labels: window.scope.sure_labels(), ..Filter::default() };
            let (hosts, next) = self.d.view.list(&filter, from, PAGE_LEN_MAX);
            left = left.saturating_sub(hosts.len().max(1));
            for host in &hosts {
                if window.scope.covers(host.row.id, &host.row.labels) {
                    self.d.policy.look_again(&host.row);
                }
            }
            if let Some(next) = next {
                self.scans.waiting.push_front((window, next));
            }
        }
    }

    pub(super) fn answer_window(&mut self, ask: WindowAsk) {
        match ask {
            WindowAsk::Add(window, answer) => match self.add_window(window) {
                Ok(window) => self.answer_when_written(answer, Ok(window)),
                Err(e) => drop(answer.send(Err(e))),
            },
            WindowAsk::End(id, why, answer) => match self.end_window(id, &why) {
                Ok(window) => self.answer_when_written(answer, Ok(window)),
                Err(e) => drop(answer.send(Err(e))),
            },
        }
    }

    /// What a host's own hello says of maintenance. It can cover nobody else, and for no longer than is
    /// allowed.
    pub(super) fn announced(&mut self, row: &HostRow, said: Option<(Duration, String)>) {
        let most = self.d.announced_max;
        let said = said.filter(|_| !most.is_zero()).map(|(span, why)| (span.min(most), why));
        let open = self.d.policy.maintenance().announced(row.id).cloned();
        let wall = self.d.clock.wall();
        let until = |span: Duration| {
            Wall(wall.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
        };
        if let (Some(open), Some((span, why))) = (&open, &said) {
            // Seconds are told, and hellos take their time: the same window said again. One that was cut to
            // what is allowed is not lengthened by being said again either.
            let differs = open.until_ms.0.abs_diff(until(*span).0) > SAME_END_MS;
            let cut = *span == most && open.until_ms <= until(most);
            if (!differs || cut) && open.reason == *why {
                return;
            }
        }
        if let Some(open) = open {
            let why = if said.is_some() { "its agent says otherwise" } else { "its agent says so" };
            if let Err(e) = self.end_window(open.id, why) {
                log::warn!("{}: {e}", open.id);
            }
        }
        let Some((span, reason)) = said else { return };
        let window = Window {
            id: WindowId(0),
            scope: Scope::Host(row.id),
            reason,
            by: "its agent".to_owned(),
            from_ms: wall,
            until_ms: until(span),
            announced: true,
            begun: false,
        };
        if let Err(e) = self.add_window(window) {
            let called = self.d.view.called(row.id);
            log::warn!("{called}: the maintenance that it announces is not heeded: {e}");
        }
    }

    fn add_window(&mut self, window: Window) -> Result<Arc<Window>, ControlError> {
        let all = self.d.policy.maintenance();
        all.has_room(&window.scope).map_err(|e| ControlError::Invalid(e.to_string()))?;
        let window = Window { id: all.next_id(), begun: false, ..window };
        let (now, wall) = (self.d.clock.now(), self.d.clock.wall());
        self.keep(&window, true);
        let id = window.id;
        self.d.policy.add_window(window.clone(), now, wall);
        let last = self.d.policy.maintenance().last().to_string();
        self.work.push(Work::Put(LAST_KEY, Some(last)));
        self.scans.changed = true;
        // One that begins now covers its hosts before anybody is told that it does.
        self.look_after_windows(now);
        let kept = self.d.policy.maintenance().get(id).cloned();
        Ok(kept.unwrap_or_else(|| Arc::new(window)))
    }

    fn end_window(&mut self, id: WindowId, why: &str) -> Result<Arc<Window>, ControlError> {
        let window = self.d.policy.maintenance().get(id).cloned().ok_or_else(|| {
            let message = format!(
                "there is no maintenance window {id}: list them, they end by themselves too"
            );
            ControlError::Unknown(message)
        })?;
        if let Some(edge) = self.d.policy.end_window(&window) {
            if window.begun {
                self.turned(&edge, why);
            } else {
                // Nobody was told of it.
                self.scans.changed = true;
                self.keep(&window, false);
            }
        }
        self.look_after_windows(self.d.clock.now());
        Ok(window)
    }
}
