//! What the API may ask of the running controller, answered.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use heartwatch_common::id::{Epoch, HostId};
use heartwatch_common::time::{Clock, Instant, Wall};
use heartwatch_common::wire;
use rand::rngs::StdRng;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};

use super::others::Others;
use super::pacing::Shown;
use crate::canary::Canary;
use crate::config::Rule;
use crate::control::{
    CandidatesAsk, CandidatesReport, Completion, Control, ControlError, Doubt, DoubtReason, FREEZE,
    Foresight, Freeze, HoldReport, HoldStatus, HoldsPage, HostWhy, ImportHost, ImportReport,
    Journaled, Maintenance, PAUSE_MAX, Pause, ReceiverReport, Redrive, RedriveReport, RulesReport,
    ShardStatus, Status, Target, TestBegun, WaitStatus, Window, WindowAdded, WindowId, Word,
};
use crate::delivery::DeliveryHandle;
use crate::detector::knobs::AllKnobs;
use crate::event::{EventKind, IncidentId, State};
use crate::metrics::{DoubtMetrics, Reject, ShardMetrics, get};
use crate::policy::driver::{Ask, AskRules, Command, DriverStatus, WindowAsk};
use crate::policy::review::{SETS_MAX, Survey};
use crate::shard::route::shard_of;
use crate::shard::worker::{Command as ShardCommand, ShardHandle};
use crate::store::Store;
use crate::view::View;

/// How long a shard may take to answer a question.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long an operator's command may take, the store included.
const COMMAND_MAX: Duration = Duration::from_secs(15);
/// A shard whose loop has not turned for this long is stuck (it turns ten times a second when idle).
const STUCK_AFTER: Duration = Duration::from_secs(3);
/// Longest reason of a pause, bytes.
const REASON_LEN_MAX: usize = 500;

/// Whether shards make progress.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    seen: Mutex<Vec<(u64, Instant)>>,
}

impl Pulse {
    /// Shards whose loops have not turned for [`STUCK_AFTER`].
    pub(super) fn stuck(&self, shards: &[ShardHandle], now: Instant) -> Vec<usize> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.resize(shards.len(), (u64::MAX, now));
        let mut stuck = Vec::new();
        for (i, (shard, seen)) in shards.iter().zip(seen.iter_mut()).enumerate() {
            let loops = get(&shard.metrics.loops);
            if loops != seen.0 {
                *seen = (loops, now);
            } else if now.since(seen.1) >= STUCK_AFTER {
                stuck.push(i);
            }
        }
        stuck
    }
}

/// The running controller.
pub(super) struct Running {
    /// Its name.
    pub(super) name: String,
    /// Its epoch.
    pub(super) epoch: Epoch,
    /// Where beats are received.
    pub(super) listen: Vec<SocketAddr>,
    /// When it started.
    pub(super) started: Instant,
    /// The same, for people.
    pub(super) started_wall: Wall,
    /// How long after the start known hosts have their chance.
    pub(super) chance: Duration,
    /// Its shards.
    pub(super) shards: Vec<ShardHandle>,
    /// To the policy.
    pub(super) commands: mpsc::Sender<Command>,
    /// What the policy's shell shows.
    pub(super) driver: Arc<DriverStatus>,
    /// The registry.
    pub(super) view: Arc<View>,
    /// The store.
    pub(super) store: Arc<dyn Store>,
    /// Where time comes from.
    pub(super) clock: Arc<dyn Clock>,
    /// Whether shards make progress.
    pub(super) pulse: Arc<Pulse>,
    /// Doubts that are not one shard's.
    pub(super) own_doubts: Arc<DoubtMetrics>,
    /// Who waits how long, and who learns together.
    pub(super) knobs: Arc<AllKnobs>,
    /// What intervals are assigned.
    pub(super) intervals: Shown,
    /// Who speaks another version of the wire.
    pub(super) others: Arc<Others>,
    /// The controller's own drills.
    pub(super) canary: Arc<Canary>,
    /// What sends.
    pub(super) delivery: Arc<DeliveryHandle>,
    /// Longest maintenance window.
    pub(super) window_max: Duration,
    /// Names events of tests.
    pub(super) rng: Mutex<StdRng>,
}

impl Running {
    pub(super) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, ControlError>>) -> Command,
    ) -> Result<T, ControlError> {
        let busy = || {
            ControlError::Invalid(
                "the controller is busy or its store can't write; what was asked for will still \
                 be done if it was taken: look at /readyz, then ask again"
                    .to_owned(),
            )
        };
        let (answer, answered) = oneshot::channel();
        let ask = async {
            self.commands.send(command(answer)).await.map_err(|_| busy())?;
            answered.await.map_err(|_| busy())?
        };
        tokio::time::timeout(COMMAND_MAX, ask).await.map_err(|_| busy())?
    }
}

/// What known hosts say about rules.
pub(super) fn survey(rules: &[Rule], view: &View) -> Survey {
    let mut survey = Survey::new(rules);
    view.label_sets(SETS_MAX, |labels, hosts| survey.add(rules, labels, hosts));
    survey
}

fn shard_status(shard: u16, m: &ShardMetrics) -> ShardStatus {
    let rejects = Reject::ALL
        .iter()
        .map(|r| (r.as_str().to_owned(), get(&m.rejects[*r as usize])))
        .filter(|(_, n)| *n > 0)
        .collect();
    ShardStatus {
        shard,
        hosts: get(&m.hosts),
        received: get(&m.received),
        beats: get(&m.beats),
        dropped: get(&m.dropped),
        rejects,
        probing: get(&m.probing),
        lag_ms: get(&m.lag_us) / 1_000,
        receive_buffer_bytes: get(&m.receive_buffer_bytes),
    }
}

#[async_trait]
impl Control for Running {
    async fn status(&self) -> Status {
        let counts = self.view.counts();
        let hosts =
            State::ALL.iter().map(|s| (s.as_str().to_owned(), counts[*s as usize])).collect();
        let twins = self.view.duplicates();
        let silent = |s: &&State| **s != State::Duplicate && twins[**s as usize] > 0;
        let twins = State::ALL.iter().filter(silent).map(|s| (s.as_str(), twins[*s as usize]));
        let mut deliveries: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        // A store that can't be read shows among the doubts, and the rest of the status still helps.
        if let Ok(backlog) = self.store.backlog().await {
            for ((receiver, state), n) in backlog.by_receiver {
                deliveries.entry(receiver).or_default().insert(state.as_str().to_owned(), n);
            }
        }
        Status {
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            controller: self.store.controller(),
            epoch: self.epoch,
            listen: self.listen.clone(),
            wire_version: wire::VERSION,
            started_ms: self.started_wall,
            hosts,
            shards: (0u16..).zip(&self.shards).map(|(i, s)| shard_status(i, &s.metrics)).collect(),
            doubts: self.doubts(),
            pause: self.driver.pause(),
            deliveries,
            events_waiting: self.driver.waiting(),
            rows_waiting: self.driver.changed(),
            guard: self.driver.guard(),
            maintenance: self.maintenance_status(),
            canary: self.canary.status(),
            intervals: self.intervals.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            other_versions: self.others.shown(),
            silent_duplicates: twins.map(|(state, n)| (state.to_owned(), n)).collect(),
        }
    }

    fn doubts(&self) -> Vec<Doubt> {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let doubt = |reason: DoubtReason, since: Instant| Doubt {
            since_ms: Some(Wall(wall.0 - now.since(since).as_millis() as i64)),
            ..Doubt::new(reason)
        };
        let mut doubts = Vec::new();
        for (shard, handle) in (0u16..).zip(&self.shards) {
            let m = &handle.metrics;
            for reason in DoubtReason::ALL {
                let Some(since) = m.doubts.since(reason) else { continue };
                let mut one = Doubt { shard: Some(shard), ..doubt(reason, since) };
                match reason {
                    DoubtReason::Drops => one.drop_ppm = Some(get(&m.drop_ppm)),
                    DoubtReason::Lagging => one.lag_ms = Some(get(&m.lag_us) / 1_000),
                    _ => {}
                }
                doubts.push(one);
            }
        }
        if let Some(since) = self.own_doubts.since(DoubtReason::Steal) {
            doubts.push(doubt(DoubtReason::Steal, since));
        }
        let up = now.since(self.started);
        if let Some(left) = self.chance.checked_sub(up).filter(|left| !left.is_zero()) {
            let remaining_ms = Some(left.as_millis() as u64);
            doubts.push(Doubt { remaining_ms, ..doubt(DoubtReason::Restarted, self.started) });
        }
        if let Some(error) = self.driver.store_error() {
            let since = self.own_doubts.since(DoubtReason::Store).unwrap_or(now);
            doubts.push(Doubt { error: Some(error), ..doubt(DoubtReason::Store, since) });
        }
        doubts
    }

    fn doubted_for(&self) -> BTreeMap<DoubtReason, Duration> {
        let now = self.clock.now();
        let all = || self.shards.iter().map(|s| &s.metrics.doubts).chain([&*self.own_doubts]);
        let total = |reason| all().map(|d| d.total(reason, now)).sum();
        DoubtReason::ALL.into_iter().map(|reason| (reason, total(reason))).collect()
    }

    async fn ready(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        if let Err(e) = self.store.check().await {
            reasons.push(e.to_string());
        }
        for shard in self.pulse.stuck(&self.shards, self.clock.now()) {
            reasons.push(format!("shard {shard} makes no progress"));
        }
        if self.doubts().iter().any(|d| d.reason == DoubtReason::Blind) {
            reasons.push(
                "blind: datagrams have been lost for longer than doubt_max; actions are held"
                    .to_owned(),
            );
        }
        reasons.extend(self.canary.status().failing());
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    async fn why(&self, host: HostId) -> Result<HostWhy, ControlError> {
        let shard = shard_of(host, self.shards.len() as u16);
        let (answer, answered) = oneshot::channel();
        self.shards[usize::from(shard)]
            .send(ShardCommand::Why(host, answer))
            .map_err(|_| ControlError::Busy(shard))?;
        let mut why = tokio::time::timeout(ANSWER_MAX, answered)
            .await
            .map_err(|_| ControlError::Busy(shard))?
            .map_err(|_| ControlError::Busy(shard))?
            .ok_or(ControlError::UnknownHost(host))?;
        // Shards know groups by number only.
        if let Some(host) = self.view.get(host) {
            why.group = self.knobs.group_name(&host.row.labels);
        }
        Ok(why)
    }

    async fn import(&self, hosts: Vec<ImportHost>) -> Result<ImportReport, ControlError> {
        if let Some(long) = hosts.iter().find(|h| h.name.len() > 255 || h.labels.len() > 64) {
            let message = format!("{}: at most 255 bytes of name and 64 labels", long.id);
            return Err(ControlError::Invalid(message));
        }
        self.ask(|answer| Command::Import(hosts, answer)).await
    }

    async fn forget(&self, host: HostId) -> Result<(), ControlError> {
        self.ask(|answer| Command::Forget(host, answer)).await
    }

    async fn revoke(&self, host: HostId, reason: String) -> Result<(), ControlError> {
        self.ask(|answer| Command::Revoked(host, reason, answer)).await
    }

    async fn freeze(&self, host: HostId, what: Freeze) -> Result<Option<Duration>, ControlError> {
        let margin = match what {
            Freeze::Off => None,
            Freeze::At(margin) => Some(margin),
            Freeze::AsItIs => {
                let now = self.why(host).await?.margin_ms.ok_or_else(|| {
                    let message = "it has no margin now, as no beat is expected of it: say which";
                    ControlError::Invalid(message.to_owned())
                })?;
                let now = Duration::from_millis(now.ceil().clamp(0.0, 1e9) as u64);
                Some(now.clamp(*FREEZE.start(), *FREEZE.end()))
            }
        };
        if margin.is_some_and(|m| !FREEZE.contains(&m)) {
            let message = "a margin is frozen at 10 ms to 10 min";
            return Err(ControlError::Invalid(message.to_owned()));
        }
        self.ask(|answer| Command::Freeze(host, margin, answer)).await
    }

    async fn enrolled(&self, host: HostId, news: Map<String, Value>) -> Result<(), ControlError> {
        let send = self.commands.send(Command::Enrolled(host, news));
        let sent = tokio::time::timeout(ANSWER_MAX, send).await;
        sent.is_ok_and(|sent| sent.is_ok()).then_some(()).ok_or_else(|| {
            let message = "more waits to be journaled than there is room for";
            ControlError::Invalid(message.to_owned())
        })
    }

    async fn single(&self, host: HostId, word: Word) -> Result<(), ControlError> {
        self.ask(|answer| Command::Single(host, word, answer)).await
    }

    async fn pause(&self, span: Duration, reason: String) -> Result<Option<Pause>, ControlError> {
        if span > PAUSE_MAX || reason.len() > REASON_LEN_MAX {
            return Err(ControlError::Invalid(format!(
                "a pause lasts at most {} and its reason has at most {REASON_LEN_MAX} bytes",
                humantime::format_duration(PAUSE_MAX)
            )));
        }
        let until_ms = Wall(self.clock.wall().0 + span.as_millis() as i64);
        let pause = (!span.is_zero()).then_some(Pause { until_ms, reason });
        self.ask(|answer| Command::Pause(pause, answer)).await
    }

    async fn redrive(&self, what: Redrive) -> Result<RedriveReport, ControlError> {
        self.ask(|answer| Command::Redrive(what, answer)).await
    }

    async fn holds(
        &self,
        domain: Option<BTreeMap<String, String>>,
        after: Option<String>,
        limit: usize,
    ) -> Result<HoldsPage, ControlError> {
        self.ask(|answer| Command::Holds(Ask::List { domain, after, limit, answer })).await
    }

    async fn hold_of(&self, host: HostId) -> Result<Option<HoldStatus>, ControlError> {
        self.ask(|answer| Command::Holds(Ask::Of(host, answer))).await
    }

    async fn waits_of(&self, host: HostId) -> Result<Vec<WaitStatus>, ControlError> {
        self.ask(|answer| Command::Rules(AskRules::Of(host, answer))).await
    }

    async fn rules(&self) -> Result<RulesReport, ControlError> {
        let (rules, waiting) = self.ask(|answer| Command::Rules(AskRules::All(answer))).await?;
        let (view, now) = (Arc::clone(&self.view), self.clock.wall());
        // Asking every set of labels may take a while in a large fleet.
        let report = tokio::task::spawn_blocking(move || {
            RulesReport::new(&rules, &survey(&rules, &view), &waiting, now)
        });
        report.await.map_err(|e| ControlError::Invalid(format!("the rules cannot be told: {e}")))
    }

    async fn foresee(
        &self,
        host: HostId,
        kind: EventKind,
        at: Option<Wall>,
    ) -> Result<Foresight, ControlError> {
        self.ask(|answer| Command::Rules(AskRules::Foresee(host, kind, at, answer))).await
    }

    async fn approve(&self, target: Target, word: Word) -> Result<HoldReport, ControlError> {
        self.ask(|answer| Command::Holds(Ask::Approve(target, word, answer))).await
    }

    async fn reject(&self, target: Target, word: Word) -> Result<HoldReport, ControlError> {
        self.ask(|answer| Command::Holds(Ask::Reject(target, word, answer))).await
    }

    async fn complete(&self, incident: IncidentId, what: Completion) -> Result<(), ControlError> {
        self.ask(|answer| Command::Complete(incident, what, answer)).await
    }

    fn maintenance(&self) -> Arc<Maintenance> {
        self.driver.maintenance()
    }

    async fn add_window(&self, window: Window) -> Result<WindowAdded, ControlError> {
        self.open_window(window).await
    }

    async fn end_window(&self, id: WindowId, why: String) -> Result<Arc<Window>, ControlError> {
        self.ask(|answer| Command::Maintenance(WindowAsk::End(id, why, answer))).await
    }

    fn canary(&self) -> &Canary {
        &self.canary
    }

    async fn candidates(&self, ask: CandidatesAsk) -> Result<CandidatesReport, ControlError> {
        self.ask(|answer| Command::Candidates(ask, answer)).await
    }

    async fn receivers(&self) -> Result<Vec<ReceiverReport>, ControlError> {
        self.receiver_reports().await
    }

    async fn audit(&self, data: Map<String, Value>, until: Journaled) -> Result<(), ControlError> {
        match until {
            Journaled::Written => self.ask(|answer| Command::Audit(data, Some(answer))).await,
            Journaled::Queued => self.commands.try_send(Command::Audit(data, None)).map_err(|_| {
                let message = "more waits to be journaled than there is room for";
                ControlError::Invalid(message.to_owned())
            }),
        }
    }

    async fn test_receiver(&self, receiver: &str) -> Result<TestBegun, ControlError> {
        self.begin_test(receiver).await
    }
}
