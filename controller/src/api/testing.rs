//! Stand-ins for the rest of the controller: a scripted `Control`, a `Store` in memory, a router on top.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::ConnectInfo;
use axum::{Extension, Router};
use heartwatch_common::id::{Boot, ControllerId, Epoch, Generation, HostId, Seq};
use heartwatch_common::time::{Instant, ManualClock, Wall};
use serde_json::{Map, Value, json};

use super::types::{ConfigSummary, ReceiverSummary};
use super::{ApiState, ApiToken, DeliveryMetricRow, HostNames, Peer, TokenBook, router};
use crate::canary::{Canary, CanaryStatus};
use crate::control::{
    CandidatesAsk, CandidatesReport, Completion, Control, ControlError, Doubt, Foresight, Freeze,
    GuardStatus, Health, HoldKind, HoldReport, HoldStatus, HoldsPage, HostWhy, ImportHost,
    ImportReport, Journaled, KnobsWhy, Maintenance, MaintenanceStatus, Pause, ReceiverReport,
    Redrive, RedriveReport, RuleStatus, RulesReport, Status, StormStatus, Target, TestBegun,
    WaitStatus, Window, WindowAdded, WindowId, Word,
};
use crate::detector::doubt::DoubtReason;
use crate::event::{EventId, EventKind, IncidentId, State};
use crate::intervals::{ClassStatus, IntervalsStatus};
use crate::policy::placement::{Candidate, LeftOut, Placement};
use crate::policy::question::{ReceiverForesight, RuleForesight};
use crate::policy::review::Warning;
use crate::policy::waits::WaitFor;
use crate::store::*;
use crate::view::View;

pub(crate) const TOKEN: &str = "hwt1_0123456789abcdef";

pub(crate) fn status() -> Status {
    Status {
        name: "test".to_owned(),
        version: "0.1.0".to_owned(),
        controller: ControllerId(7),
        epoch: Epoch(1),
        listen: Vec::new(),
        wire_version: 2,
        started_ms: Wall(1_000),
        hosts: BTreeMap::new(),
        shards: Vec::new(),
        doubts: Vec::new(),
        canary: CanaryStatus::default(),
        pause: None,
        deliveries: BTreeMap::new(),
        events_waiting: 0,
        rows_waiting: 0,
        guard: GuardStatus {
            holds: HoldKind::ALL
                .into_iter()
                .map(|k| (k, u64::from(k == HoldKind::Storm)))
                .collect(),
            oldest_ms: Some(Wall(500)),
            storms: vec![StormStatus {
                domain: "zone=even".to_owned(),
                since_ms: Wall(400),
                silent: 7,
                heard: 3,
                held: 1,
            }],
            storms_total: 1,
            flapping: 2,
            domains: 3,
            domains_full: false,
        },
        maintenance: MaintenanceStatus { open: 1, coming: 2, hosts: 3 },
        intervals: Some(IntervalsStatus {
            budget_per_s: 1_000.0,
            planned_per_s: 750.0,
            aimed_per_s: 900.0,
            exceeded: false,
            classes: vec![ClassStatus {
                class: "default".to_owned(),
                hosts: 1_800,
                interval_ms: 2_400.0,
                aim_ms: 2_000.0,
            }],
        }),
        other_versions: Vec::new(),
        silent_duplicates: BTreeMap::new(),
    }
}

pub(crate) fn host_row(n: u8, state: State) -> HostRow {
    HostRow {
        id: HostId([n; 16]),
        name: format!("host-{n}"),
        labels: BTreeMap::from([(
            "zone".to_owned(),
            if n.is_multiple_of(2) { "even" } else { "odd" }.to_owned(),
        )]),
        os: "linux".to_owned(),
        agent_version: "0.1.0".to_owned(),
        state,
        cause: None,
        boot: Boot(1),
        generation: Generation(0),
        address: None,
        first_seen: Wall(0),
        since: Wall(0),
        incident: None,
        duplicate: false,
        frozen_ms: None,
        back_by: None,
    }
}

pub(crate) fn uuid(n: u64) -> uuid::Uuid {
    uuid::Uuid::from_u128(u128::from(n))
}

pub(crate) fn event(host: HostId, kind: EventKind, n: u64) -> EventRow {
    EventRow {
        cursor: Cursor(0),
        id: EventId(uuid(n)),
        kind,
        at_ms: Wall(i64::try_from(n).unwrap() * 1_000),
        host: Some(host),
        incident: Some(IncidentId(uuid(1))),
        token: Some(Token(n)),
        data: Map::from_iter([("n".to_owned(), json!(n))]),
    }
}

pub(crate) fn delivery(id: u64, host: HostId, state: DeliveryState) -> DeliveryRow {
    DeliveryRow {
        id: DeliveryId(id),
        event: EventId(uuid(id)),
        kind: EventKind::HostDown,
        host: Some(host),
        incident: Some(IncidentId(uuid(1))),
        receiver: "orchestrator".to_owned(),
        state,
        reason: None,
        token: Some(Token(id)),
        attempts: 1,
        created_ms: Wall(0),
        changed_ms: Wall(0),
        last_outcome: None,
        placed: None,
    }
}

/// A controller that does what its fields say.
#[derive(Default)]
pub(crate) struct TestControl {
    pub(crate) canary: Canary,
    pub(crate) not_ready: Mutex<Vec<String>>,
    pub(crate) pause: Mutex<Option<Pause>>,
    pub(crate) imported: Mutex<Vec<ImportHost>>,
    pub(crate) forgotten: Mutex<Vec<HostId>>,
    pub(crate) frozen: Mutex<Vec<(HostId, Freeze)>>,
    pub(crate) enrolled: Mutex<Vec<(HostId, Map<String, Value>)>>,
    pub(crate) words: Mutex<Vec<(&'static str, Target, Word)>>,
    pub(crate) completed: Mutex<Vec<(IncidentId, Completion)>>,
    pub(crate) windows: Mutex<Arc<Maintenance>>,
    pub(crate) audited: Mutex<Vec<Map<String, Value>>>,
    /// Pauses are never answered.
    pub(crate) stuck: std::sync::atomic::AtomicBool,
    pub(crate) busy: std::sync::atomic::AtomicBool,
    pub(crate) panics: std::sync::atomic::AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Control for TestControl {
    async fn status(&self) -> Status {
        assert!(!self.panics.load(Ordering::Relaxed), "planted panic");
        Status { pause: lock(&self.pause).clone(), doubts: self.doubts(), ..status() }
    }

    fn doubts(&self) -> Vec<Doubt> {
        let reason = DoubtReason::Drops;
        vec![Doubt { shard: Some(0), drop_ppm: Some(12), ..Doubt::new(reason) }]
    }

    fn doubted_for(&self) -> BTreeMap<DoubtReason, Duration> {
        BTreeMap::from([(DoubtReason::Drops, Duration::from_millis(1_500))])
    }

    async fn ready(&self) -> Result<(), Vec<String>> {
        let reasons = lock(&self.not_ready).clone();
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    async fn why(&self, _: HostId) -> Result<HostWhy, ControlError> {
        if self.busy.load(Ordering::Relaxed) {
            return Err(ControlError::Busy(3));
        }
        Ok(HostWhy {
            state: State::Alive,
            shard: 0,
            boot: Boot(1),
            seq: Seq(9),
            silence_ms: Some(10),
            expected_in_ms: Some(990),
            margin_ms: Some(120.5),
            margin_source: "learned".to_owned(),
            deadline_in_ms: Some(1_110),
            gap_ms: 1_000,
            inter_arrival_mean_ms: 1_000.0,
            inter_arrival_deviation_ms: 3.0,
            inter_arrival_p99_ms: 1_010.0,
            overdue: Vec::new(),
            overdue_disturbed: Vec::new(),
            context: "calm".to_owned(),
            margin_calm_ms: 120.5,
            margin_disturbed_ms: 1_120.0,
            mistakes_foreseen_per_day: Some(0.01),
            knobs: KnobsWhy {
                name: String::new(),
                false_suspicion_cost_s: 1e5,
                max_mistakes_per_host_day: None,
                timeout_min_ms: 25,
                timeout_max_ms: 30_000,
                frozen_ms: None,
            },
            beats_learned: 100.0,
            group: "pool=web".to_owned(),
            group_beats: 1_000,
            last_overdue_ms: vec![0.5, -0.2],
            last_late_ms: vec![0, 0],
            late_ms: 0,
            mistakes: 0,
            probes: None,
            excuse: None,
            twin: None,
            other_version: None,
            listening_ms: 60_000,
            shard_drop_ppm: 0,
            shard_lag_ms: 0,
        })
    }

    async fn import(&self, hosts: Vec<ImportHost>) -> Result<ImportReport, ControlError> {
        let added = hosts.len() as u64;
        lock(&self.imported).extend(hosts);
        Ok(ImportReport { added, ..ImportReport::default() })
    }

    async fn forget(&self, host: HostId) -> Result<(), ControlError> {
        lock(&self.forgotten).push(host);
        Ok(())
    }

    async fn revoke(&self, host: HostId, _: String) -> Result<(), ControlError> {
        lock(&self.forgotten).push(host);
        Ok(())
    }

    async fn freeze(&self, host: HostId, what: Freeze) -> Result<Option<Duration>, ControlError> {
        lock(&self.frozen).push((host, what));
        Ok(match what {
            Freeze::Off => None,
            Freeze::At(margin) => Some(margin),
            Freeze::AsItIs => Some(Duration::from_millis(121)),
        })
    }

    async fn enrolled(&self, host: HostId, news: Map<String, Value>) -> Result<(), ControlError> {
        lock(&self.enrolled).push((host, news));
        Ok(())
    }

    async fn single(&self, host: HostId, word: Word) -> Result<(), ControlError> {
        if host == HostId([1; 16]) {
            return Err(ControlError::Conflict("there is nothing to end".to_owned()));
        }
        lock(&self.words).push(("single", Target::Host(host), word));
        Ok(())
    }

    async fn pause(&self, span: Duration, reason: String) -> Result<Option<Pause>, ControlError> {
        if self.stuck.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let until_ms = Wall(i64::try_from(span.as_millis()).unwrap());
        let pause = (!span.is_zero()).then_some(Pause { until_ms, reason });
        lock(&self.pause).clone_from(&pause);
        Ok(pause)
    }

    async fn redrive(&self, what: Redrive) -> Result<RedriveReport, ControlError> {
        let redriven = match what {
            Redrive::Ids(ids) => ids,
            Redrive::Dead { .. } => vec![DeliveryId(1)],
        };
        Ok(RedriveReport { redriven, ..RedriveReport::default() })
    }

    fn canary(&self) -> &Canary {
        &self.canary
    }

    async fn candidates(&self, ask: CandidatesAsk) -> Result<CandidatesReport, ControlError> {
        let load = heartwatch_common::load::LoadSample::UNKNOWN;
        let candidate = Candidate::new(ask.failed, load);
        let placement = Placement {
            candidates: vec![candidate; ask.limit.min(2)],
            looked_at: 3,
            whole: true,
            left_out: BTreeMap::from([(LeftOut::Suspect, 1)]),
        };
        Ok(CandidatesReport { same: ask.same.unwrap_or_default(), placement })
    }

    async fn holds(
        &self,
        domain: Option<BTreeMap<String, String>>,
        after: Option<String>,
        _: usize,
    ) -> Result<HoldsPage, ControlError> {
        if after.is_some() {
            return Err(ControlError::Invalid("`after` is no place in this list".to_owned()));
        }
        let all = domain.is_none_or(|d| d.get("zone").is_some_and(|z| z == "even"));
        let holds = if all { vec![hold()] } else { Vec::new() };
        Ok(HoldsPage { holds, total: 1, ..HoldsPage::default() })
    }

    fn maintenance(&self) -> Arc<Maintenance> {
        Arc::clone(&lock(&self.windows))
    }

    async fn add_window(&self, window: Window) -> Result<WindowAdded, ControlError> {
        let mut all = Maintenance::clone(&lock(&self.windows));
        let window = Window { id: all.next_id(), ..window };
        all.add(window.clone(), Instant(0), window.from_ms);
        all.step(Instant(0));
        *lock(&self.windows) = Arc::new(all);
        Ok(WindowAdded { window, hosts: 3 })
    }

    async fn end_window(&self, id: WindowId, _: String) -> Result<Arc<Window>, ControlError> {
        let mut all = Maintenance::clone(&lock(&self.windows));
        let gone =
            all.remove(id).ok_or_else(|| ControlError::Unknown(format!("no window {id}")))?;
        *lock(&self.windows) = Arc::new(all);
        Ok(gone)
    }

    async fn hold_of(&self, host: HostId) -> Result<Option<HoldStatus>, ControlError> {
        Ok((host == hold().host).then(hold))
    }

    async fn waits_of(&self, host: HostId) -> Result<Vec<WaitStatus>, ControlError> {
        Ok(if host == hold().host { vec![wait()] } else { Vec::new() })
    }

    async fn rules(&self) -> Result<RulesReport, ControlError> {
        Ok(RulesReport {
            rules: vec![RuleStatus {
                name: "failover".to_owned(),
                line: "host.down to orchestrator; after 30s".to_owned(),
                matches: "pool = db".to_owned(),
                hosts: 7,
                waiting: 1,
                on: true,
            }],
            warnings: vec![Warning {
                rules: vec!["failover".to_owned()],
                text: "no known host has a label polo".to_owned(),
            }],
            hosts: 9,
        })
    }

    async fn foresee(
        &self,
        host: HostId,
        kind: EventKind,
        at: Option<Wall>,
    ) -> Result<Foresight, ControlError> {
        let receiver = ReceiverForesight {
            receiver: "orchestrator".to_owned(),
            rule: "failover".to_owned(),
            verdict: "hold".to_owned(),
            reason: Some("the rule `failover` waits 30s".to_owned()),
            waits: vec![wait()],
            goes_ms: Some(Wall(30_500)),
            dropped: None,
        };
        let rule = |rule: &str, failed: Option<&str>| RuleForesight {
            rule: rule.to_owned(),
            matches: failed.is_none(),
            failed: failed.map(str::to_owned),
        };
        Ok(Foresight {
            host,
            name: "host-2".to_owned(),
            labels: BTreeMap::new(),
            kind,
            at_ms: at.unwrap_or(Wall(500)),
            rules: vec![rule("failover", None), rule("web", Some("match: it has no label pool"))],
            receivers: vec![receiver],
            notes: Vec::new(),
        })
    }

    async fn approve(&self, target: Target, word: Word) -> Result<HoldReport, ControlError> {
        let none = target == Target::Host(HostId([1; 16]));
        lock(&self.words).push(("approve", target, word));
        Ok(HoldReport { released: u64::from(!none), ..HoldReport::default() })
    }

    async fn reject(&self, target: Target, word: Word) -> Result<HoldReport, ControlError> {
        lock(&self.words).push(("reject", target, word));
        Ok(HoldReport { rejected: 1, ..HoldReport::default() })
    }

    async fn complete(&self, incident: IncidentId, what: Completion) -> Result<(), ControlError> {
        if what.token == Token(1) {
            let message = "another order counts".to_owned();
            return Err(ControlError::Stale { message, highest: Token(2) });
        }
        lock(&self.completed).push((incident, what));
        Ok(())
    }

    async fn receivers(&self) -> Result<Vec<ReceiverReport>, ControlError> {
        let report = |name: &str, health| ReceiverReport {
            name: name.to_owned(),
            format: "native".to_owned(),
            health,
            in_flight: 1,
            held: 0,
            pending: 7,
            dead: 2,
            oldest_pending_ms: Some(Wall(1_000)),
            last_outcome: Some("503 Service Unavailable".to_owned()),
            last_ms: Some(Wall(2_000)),
        };
        Ok(vec![report("orchestrator", Health::Failing), report("old", Health::NotConfigured)])
    }

    async fn audit(&self, data: Map<String, Value>, _: Journaled) -> Result<(), ControlError> {
        lock(&self.audited).push(data);
        Ok(())
    }

    async fn test_receiver(&self, receiver: &str) -> Result<TestBegun, ControlError> {
        if receiver == "mute" {
            return Err(ControlError::Invalid(
                "Masakari has no word for heartwatch.test".to_owned(),
            ));
        }
        Ok(TestBegun { delivery: DeliveryId(1), event: EventId(uuid(1)) })
    }
}

pub(crate) fn wait() -> WaitStatus {
    WaitStatus {
        receiver: "orchestrator".to_owned(),
        rule: "failover".to_owned(),
        kind: EventKind::HostDown,
        wait: WaitFor::Delay,
        since_ms: Wall(500),
        until_ms: Some(Wall(30_500)),
        reason: "the rule `failover` waits 30s".to_owned(),
    }
}

pub(crate) fn hold() -> HoldStatus {
    HoldStatus {
        host: HostId([2; 16]),
        name: "host-2".to_owned(),
        since_ms: Wall(500),
        kind: HoldKind::Storm,
        domain: Some("zone=even".to_owned()),
        reason: "storm in zone=even: 7 of 10 hosts are silent".to_owned(),
        approved: false,
        overdue: true,
    }
}

/// A store for reading; what the API never calls answers `Invalid`.
#[derive(Default)]
pub(crate) struct TestStore {
    pub(crate) events: Mutex<Vec<EventRow>>,
    pub(crate) deliveries: Mutex<Vec<DeliveryRow>>,
    pub(crate) values: Mutex<BTreeMap<String, String>>,
    pub(crate) broken: std::sync::atomic::AtomicBool,
    pub(crate) heads_read: AtomicU64,
}

impl TestStore {
    pub(crate) fn push(&self, mut event: EventRow) {
        let mut events = lock(&self.events);
        event.cursor = Cursor(events.len() as u64 + 1);
        events.push(event);
    }

    fn works(&self) -> Result<(), StoreError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("disk full".to_owned()));
        }
        Ok(())
    }
}

fn unused<T>() -> Result<T, StoreError> {
    Err(StoreError::Invalid("not part of the API".to_owned()))
}

#[async_trait]
impl Store for TestStore {
    fn controller(&self) -> ControllerId {
        ControllerId(7)
    }
    async fn hosts(&self, _: Option<HostId>, _: usize) -> Result<Vec<HostRow>, StoreError> {
        unused()
    }
    async fn record(
        &self,
        _: Arc<[HostRow]>,
        _: Arc<[NewEvent]>,
    ) -> Result<Vec<Appended>, StoreError> {
        unused()
    }
    async fn save_hosts(&self, _: Vec<HostRow>) -> Result<(), StoreError> {
        unused()
    }
    async fn append(&self, _: Vec<NewEvent>) -> Result<Vec<Appended>, StoreError> {
        unused()
    }
    async fn forget(&self, _: HostId, _: NewEvent) -> Result<bool, StoreError> {
        unused()
    }
    async fn pending(
        &self,
        _: &str,
        _: Option<DeliveryId>,
        _: usize,
    ) -> Result<Vec<Due>, StoreError> {
        unused()
    }
    async fn begin_attempt(&self, _: DeliveryId, _: Wall) -> Result<Begin, StoreError> {
        unused()
    }
    async fn finish_attempt(&self, _: DeliveryId, _: Finish) -> Result<Vec<Due>, StoreError> {
        unused()
    }
    async fn release(
        &self,
        _: HostId,
        _: crate::store::Receivers,
        _: Result<(), String>,
        _: Wall,
    ) -> Result<Vec<Due>, StoreError> {
        unused()
    }
    async fn release_placed(
        &self,
        _: HostId,
        _: Receivers,
        _: Map<String, Value>,
        _: Wall,
    ) -> Result<Vec<Due>, StoreError> {
        unused()
    }
    async fn held_hosts(&self) -> Result<Vec<HostId>, StoreError> {
        unused()
    }
    async fn redrive(&self, _: DeliveryId, _: Wall) -> Result<Option<Due>, StoreError> {
        unused()
    }
    async fn cancel(&self, _: DeliveryId, _: String, _: Wall) -> Result<bool, StoreError> {
        unused()
    }

    async fn events(
        &self,
        after: Cursor,
        host: Option<HostId>,
        limit: usize,
    ) -> Result<Vec<EventRow>, StoreError> {
        self.works()?;
        let passes = |e: &&EventRow| e.cursor > after && (host.is_none() || e.host == host);
        Ok(lock(&self.events).iter().filter(passes).take(limit).cloned().collect())
    }

    async fn events_of(&self, host: HostId, limit: usize) -> Result<Vec<EventRow>, StoreError> {
        let of = |e: &&EventRow| e.host == Some(host);
        Ok(lock(&self.events).iter().rev().filter(of).take(limit).cloned().collect())
    }

    async fn head(&self) -> Result<Cursor, StoreError> {
        self.works()?;
        self.heads_read.fetch_add(1, Ordering::Relaxed);
        Ok(Cursor(lock(&self.events).len() as u64))
    }

    async fn deliveries(
        &self,
        f: DeliveryFilter,
        limit: usize,
    ) -> Result<Vec<DeliveryRow>, StoreError> {
        let passes = |d: &&DeliveryRow| {
            f.state.is_none_or(|s| d.state == s)
                && f.receiver.as_ref().is_none_or(|r| d.receiver == *r)
                && f.host.is_none_or(|h| d.host == Some(h))
                && f.incident.is_none_or(|i| d.incident == Some(i))
                && f.after.is_none_or(|a| d.id > a)
        };
        Ok(lock(&self.deliveries).iter().filter(passes).take(limit).cloned().collect())
    }

    async fn attempts(&self, _: DeliveryId) -> Result<Vec<AttemptRow>, StoreError> {
        let detail = Some("200 OK".to_owned());
        let (began_ms, ended_ms) = (Wall(5), Some(Wall(9)));
        Ok(vec![AttemptRow { number: 1, began_ms, ended_ms, status: Some(200), detail }])
    }

    async fn backlog(&self) -> Result<Backlog, StoreError> {
        Ok(Backlog::default())
    }
    async fn prune(&self, _: Retention, _: Wall) -> Result<u64, StoreError> {
        unused()
    }
    async fn get(&self, key: &str) -> Result<Option<String>, StoreError> {
        Ok(lock(&self.values).get(key).cloned())
    }
    async fn list(&self, prefix: &str) -> Result<Vec<(String, String)>, StoreError> {
        let values = lock(&self.values);
        let found = values.iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
    async fn put(&self, key: &str, value: Option<String>) -> Result<(), StoreError> {
        self.works()?;
        let mut values = lock(&self.values);
        match value {
            Some(value) => drop(values.insert(key.to_owned(), value)),
            None => drop(values.remove(key)),
        }
        Ok(())
    }

    async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        self.works()?;
        std::fs::write(to, vec![7; 700_000]).map_err(|e| StoreError::Unavailable(e.to_string()))
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.works()
    }
}

/// An API over stand-ins.
pub(crate) struct World {
    pub(crate) control: Arc<TestControl>,
    pub(crate) store: Arc<TestStore>,
    pub(crate) view: Arc<View>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) state_dir: tempfile::TempDir,
    _keys_dir: tempfile::TempDir,
    /// As this machine itself sees it.
    pub(crate) router: Router,
    /// The same, without anybody at the other end.
    pub(crate) bare: Router,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::changed(|_| {})
    }

    /// The router as a peer sees it.
    pub(crate) fn seen_by(&self, peer: Peer) -> Router {
        self.bare.clone().layer(Extension(ConnectInfo(peer)))
    }

    /// An API with other settings.
    pub(crate) fn changed(change: impl FnOnce(&mut ApiState)) -> Self {
        let (control, store, view) =
            (Arc::<TestControl>::default(), Arc::<TestStore>::default(), Arc::<View>::default());
        let clock = Arc::new(ManualClock::new(Instant(5_000_000_000), Wall(1_000_000)));
        let state_dir = tempfile::tempdir().unwrap();
        let keys_dir = tempfile::tempdir().unwrap();
        let enrol = crate::enrol::testing::enrolling(keys_dir.path(), &view, clock.clone());
        let mut state = ApiState {
            enrol,
            control: control.clone(),
            store: store.clone(),
            view: view.clone(),
            shards: vec![Arc::default()],
            delivery: Box::new(|| {
                vec![DeliveryMetricRow { receiver: "orchestrator".into(), ..Default::default() }]
            }),
            clock: clock.clone(),
            token: ApiToken::new(TOKEN).unwrap(),
            tokens: Arc::new(TokenBook::empty()),
            loopback_reads: true,
            names: HostNames::new(std::net::Ipv4Addr::UNSPECIFIED.into(), None),
            tls: None,
            config: ConfigSummary {
                receivers: ["orchestrator", "mute"]
                    .map(|name| ReceiverSummary {
                        name: name.to_owned(),
                        signed: true,
                        format: "native".to_owned(),
                    })
                    .into(),
                rules: Vec::new(),
            },
            state_dir: state_dir.path().to_owned(),
        };
        change(&mut state);
        let bare = router(state);
        let router = bare.clone().layer(Extension(ConnectInfo(Peer::LOCAL)));
        Self { control, store, view, clock, state_dir, _keys_dir: keys_dir, router, bare }
    }
}

/// Checks what `promtool check metrics` checks of form, and a bit more.
pub(crate) fn check_exposition(text: &str) {
    let (mut kinds, mut helps) = (HashMap::new(), HashSet::new());
    let (mut seen, mut last_bucket) = (HashSet::new(), HashMap::<String, f64>::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(helps.insert(name.to_owned()) && !help.is_empty(), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(helps.contains(name), "no help: {line}");
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let value: f64 = value.parse().unwrap();
            assert!(value.is_finite() && seen.insert(series.to_owned()), "{line}");
            let name = series.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
            let known = kinds.contains_key(name)
                || base.is_some_and(|b| kinds.get(b).is_some_and(|k| k == "histogram"));
            assert!(known && name.starts_with("heartwatch_"), "{line}");
            if let Some((before, _)) = series.split_once("le=\"") {
                let last = last_bucket.insert(before.to_owned(), value).unwrap_or(0.0);
                assert!(value >= last, "the histogram falls: {line}");
            }
        }
    }
    assert!(!kinds.is_empty() && kinds.len() == helps.len());
}

pub(crate) fn keys(value: &Value, list: &str, key: &str) -> Vec<String> {
    let rows = value[list].as_array().unwrap();
    rows.iter().map(|row| row[key].as_str().map_or(row[key].to_string(), str::to_owned)).collect()
}
