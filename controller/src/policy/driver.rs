//! The shell around the policy: takes news and commands, decides, journals, and only then has things sent.
//!
//! Order of one piece of news: the policy decides → the view shows the new state at once (state is
//! never held back, not even by a full disk) → the event is journaled with its deliveries → the
//! delivery is woken. What is to be written waits in one queue, in order, and is written in batches; a
//! store that can't write is tried again with growing waits and nothing is skipped.
//!
//! Bounds: [`queue::WORK_MAX`] things with [`queue::ROWS_MAX`] rows wait here; beyond that no news is taken,
//! the channel before it fills, and shards merge news per host. Of rows that changed without an event only
//! the ids wait. So memory is bounded by the number of hosts whatever the disk does.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use heartwatch_common::backoff::Backoff;
use heartwatch_common::daemon::Throttle;
use heartwatch_common::id::HostId;
use heartwatch_common::time::{Clock, Instant, Wall};
use heartwatch_common::words;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot, watch};

use super::guard::GuardStatus;
use super::holds::Word as SaidWhy;
use super::maintenance::Maintenance;
use super::placement::{Depth, Wanted, find};
use super::queue::{self, Queue};
use super::{Order, Policy, is_followed, new_row, order_of};
use crate::canary::{CANARY, Canary};
use crate::control::{
    CandidatesAsk, CandidatesReport, Completion, ControlError, ImportHost, ImportReport, Pause,
    Redrive, RedriveReport,
};
use crate::crash;
use crate::delivery::{DeliveryHandle, News, Word};
use crate::detector::host::{Known, Transition, Turn};
use crate::detector::knobs::AllKnobs;
use crate::detector::peers::DomainLabels;
use crate::event::{Cause, EventKind, IncidentId, State};
use crate::shard::notices::{Facts, Notice};
use crate::shard::route::shard_of;
use crate::shard::worker::{Command as ShardCommand, ShardHandle};
use crate::store::{Appended, HostRow, NewEvent, READ_LEN_MAX, Receivers, Store, StoreError};
use crate::view::{LiveId, View};
use windows::Scans;

mod follow;
mod holds;
mod places;
mod redrive;
mod rules;
mod single;
mod windows;

use follow::Courses;
pub use follow::NEWS_MAX;
pub use holds::{Ask, load_guard};
pub use rules::{AskRules, Waiting};
pub use windows::{WindowAsk, covered, load_windows};

/// News that waits for the driver.
pub const NOTICES_MAX: usize = 8_192;
/// Commands that wait for the driver.
pub const COMMANDS_MAX: usize = 64;
/// Under which name the pause stands in the store.
const PAUSE_KEY: &str = "pause";
/// Waits between tries of a write that failed.
const STORE_BACKOFF: Backoff =
    Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(5) };
/// How often ends of pauses and the like are looked at.
const TICK: Duration = Duration::from_millis(200);

/// What an operator may ask of the policy.
#[derive(Debug)]
pub enum Command {
    /// Register expected hosts.
    Import(Vec<ImportHost>, oneshot::Sender<Result<ImportReport, ControlError>>),
    /// Remove a host.
    Forget(HostId, oneshot::Sender<Result<(), ControlError>>),
    /// Remove a host whose keys were revoked, for this reason.
    Revoked(HostId, String, oneshot::Sender<Result<(), ControlError>>),
    /// Keep a host's margin there, or let it learn.
    Freeze(HostId, Option<Duration>, oneshot::Sender<Result<Option<Duration>, ControlError>>),
    /// Of two machines under one identity one is left: an operator says so.
    Single(HostId, SaidWhy, oneshot::Sender<Result<(), ControlError>>),
    /// A host enrolled: what the journal keeps of that.
    Enrolled(HostId, Map<String, Value>),
    /// Pause, or end a pause.
    Pause(Option<Pause>, oneshot::Sender<Result<Option<Pause>, ControlError>>),
    /// Send dead letters again.
    Redrive(Redrive, oneshot::Sender<Result<RedriveReport, ControlError>>),
    /// About held orders.
    Holds(Ask),
    /// A receiver reports how an order of an incident ended.
    Complete(IncidentId, Completion, oneshot::Sender<Result<(), ControlError>>),
    /// About rules.
    Rules(AskRules),
    /// About maintenance windows.
    Maintenance(WindowAsk),
    /// Tell of the controller itself.
    Tell(EventKind, String),
    /// Journal who had the API change what; whoever waits is told when it is written.
    Audit(Map<String, Value>, Option<oneshot::Sender<Result<(), ControlError>>>),
    /// Who could take over.
    Candidates(CandidatesAsk, oneshot::Sender<Result<CandidatesReport, ControlError>>),
}

/// Something to be written, in order; [`Work::Done`] says so to whoever waits for it.
type Work = queue::Work<oneshot::Sender<()>>;
type Batch = queue::Batch<oneshot::Sender<()>>;

/// What others may see of the driver.
#[derive(Debug, Default)]
pub struct DriverStatus {
    waiting: AtomicU64,
    changed: AtomicU64,
    store_error: Mutex<Option<String>>,
    pause: Mutex<Option<Pause>>,
    guard: Mutex<GuardStatus>,
    windows: Mutex<Arc<Maintenance>>,
    sheltered: AtomicU64,
}

impl DriverStatus {
    /// Things that wait to be written.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Rows of the registry that changed without an event and wait to be written.
    pub fn changed(&self) -> u64 {
        self.changed.load(Ordering::Relaxed)
    }

    /// What the store said when it last failed, if it has not worked since.
    pub fn store_error(&self) -> Option<String> {
        self.store_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The pause in force.
    pub fn pause(&self) -> Option<Pause> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is held, and which storms there are, as of the last tick.
    pub fn guard(&self) -> GuardStatus {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_guard(&self, guard: GuardStatus) {
        *self.guard.lock().unwrap_or_else(PoisonError::into_inner) = guard;
    }

    fn set_store_error(&self, error: Option<String>) {
        *self.store_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    fn set_pause(&self, pause: Option<Pause>) {
        *self.pause.lock().unwrap_or_else(PoisonError::into_inner) = pause;
    }
}

/// What the driver works with.
pub struct Driver {
    /// Decides.
    pub policy: Policy,
    /// What readers see.
    pub view: Arc<View>,
    /// What survives.
    pub store: Arc<dyn Store>,
    /// What sends.
    pub delivery: Arc<DeliveryHandle>,
    /// Who watches.
    pub shards: Vec<ShardHandle>,
    /// Which labels make a failure domain.
    pub domains: DomainLabels,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// Names events; from the operating system's generator in production.
    pub seed: u64,
    /// When what was held before the start may be judged again: hosts have had their chance by then.
    pub release_at: Instant,
    /// What others may see.
    pub status: Arc<DriverStatus>,
    /// Who waits how long, and who learns together.
    pub knobs: Arc<AllKnobs>,
    /// Tells of hosts whose orders something became of, and who hears it.
    pub news: (News, mpsc::Receiver<Word>),
    /// Longest maintenance that a host may announce for itself; zero: none is heeded.
    pub announced_max: Duration,
    /// What is seen of the canary goes there, and nowhere else.
    pub canary: Arc<Canary>,
}

struct Running {
    d: Driver,
    rng: StdRng,
    work: Queue<oneshot::Sender<()>>,
    /// What a shard's full queue did not take: operators' commands and forgotten hosts.
    untold: VecDeque<(usize, ShardCommand)>,
    /// When the present pause ends, on the monotonic clock: a stepped wall clock changes nothing.
    pause_ends: Option<Instant>,
    released_at_start: bool,
    courses: Courses,
    scans: Scans,
}

impl Driver {
    /// Reads what was in force before the restart.
    pub async fn load_pause(store: &dyn Store) -> Result<Option<Pause>, StoreError> {
        let Some(text) = store.get(PAUSE_KEY).await? else { return Ok(None) };
        let pause = serde_json::from_str(&text);
        pause.map(Some).map_err(|e| StoreError::Open(format!("the stored pause is damaged: {e}")))
    }

    /// Works until `stop` turns true; then writes what waits, for a few seconds at most. Answers
    /// [`StoreError::Fenced`] if another controller took the store over.
    pub async fn run(
        mut self,
        mut notices: mpsc::Receiver<Notice>,
        mut commands: mpsc::Receiver<Command>,
        mut stop: watch::Receiver<bool>,
        pause: Option<Pause>,
    ) -> Result<(), StoreError> {
        let rng = StdRng::seed_from_u64(self.seed);
        let pause_ends = pause.as_ref().map(|p| self.monotonic_end(p));
        self.status.set_pause(pause.clone());
        self.policy.set_pause(pause);
        let clock = Arc::clone(&self.clock);
        let mut running = Running {
            d: self,
            rng,
            work: Queue::default(),
            untold: VecDeque::new(),
            pause_ends,
            released_at_start: false,
            courses: Courses::default(),
            scans: Scans::default(),
        };
        // What was under way when the controller stopped goes on.
        running.courses.search();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut writer = Writer {
            store: Arc::clone(&running.d.store),
            delivery: Arc::clone(&running.d.delivery),
            view: Arc::clone(&running.d.view),
            clock: Arc::clone(&clock),
            status: Arc::clone(&running.d.status),
            news: running.d.news.0.clone(),
            throttle: Arc::new(Throttle::new(Duration::from_secs(1))),
            stopping: false,
        };
        let mut writing: Option<tokio::task::JoinHandle<Result<(), StoreError>>> = None;
        loop {
            if writing.is_none()
                && let Some(batch) = running.next_batch()
            {
                let seed = rand::RngExt::random(&mut running.rng);
                writing = Some(tokio::spawn(writer.clone().write(batch, seed)));
            }
            let status = &running.d.status;
            status.waiting.store(running.work.len() as u64, Ordering::Relaxed);
            status.changed.store(running.work.changed_len() as u64, Ordering::Relaxed);
            tokio::select! {
                done = async { writing.as_mut().expect("checked by the guard").await },
                    if writing.is_some() =>
                {
                    writing = None;
                    match done {
                        Ok(result) => result?,
                        Err(e) => return Err(StoreError::Open(format!("the writer died: {e}"))),
                    }
                }
                notice = notices.recv(), if running.work.has_room() => match notice {
                    Some(notice) => running.hear(notice),
                    None => break,
                },
                Some(word) = running.d.news.1.recv() => running.courses.hear(word),
                () = std::future::ready(()), if running.has_courses_due() => {
                    running.look_at_courses().await;
                }
                Some(command) = commands.recv(), if running.work.has_room() => {
                    running.obey(command).await;
                }
                _ = tick.tick() => running.tick(),
                _ = stop.changed() => break,
            }
        }
        // What was decided is written before the end, if the store lets us; what is not will be decided
        // again after the next start, from the same silence.
        writer.stopping = true;
        let finish = async {
            if let Some(writing) = writing {
                writing.await.map_err(|_| StoreError::Unknown)??;
            }
            while let Some(batch) = running.next_batch() {
                writer.clone().write(batch, 0).await?;
            }
            Ok(())
        };
        match tokio::time::timeout(Duration::from_secs(5), finish).await {
            Ok(result) => result,
            Err(_) => {
                log::warn!(
                    "stopping with {} undone and {} unsaved: the store can't write, or not so fast; the same \
                     will be decided and learnt again after the next start",
                    words::count(running.work.len() as u64, "write"),
                    words::count(running.work.changed_len() as u64, "row")
                );
                Ok(())
            }
        }
    }

    fn monotonic_end(&self, pause: &Pause) -> Instant {
        let left_ms = pause.until_ms.0.saturating_sub(self.clock.wall().0);
        self.clock.now() + Duration::from_millis(u64::try_from(left_ms).unwrap_or(0))
    }
}

impl Running {
    fn next_batch(&mut self) -> Option<Batch> {
        let view = &self.d.view;
        self.work.next_batch(|host| Some(view.get(host)?.row))
    }

    fn hear(&mut self, notice: Notice) {
        if notice.host() == Some(CANARY) {
            if let Notice::Turn(turn) = &notice {
                self.d.canary.turned(turn.state, self.d.clock.now());
            }
            return;
        }
        match notice {
            Notice::Facts(facts) => self.facts(*facts),
            Notice::Turn(turn) => self.turn(&turn),
            Notice::Moved { host, address } => self.moved(host, address),
            Notice::Blind { shard, blind } => self.blind(shard, blind),
        }
        self.follow_orders();
    }

    fn facts(&mut self, facts: Facts) {
        let known = self.d.view.get(facts.host);
        let mut row = match &known {
            Some(host) => host.row.clone(),
            None if facts.new => new_row(facts.host, self.d.clock.wall()),
            // Its removal has overtaken this.
            None => return,
        };
        if row.state == State::Pending || !facts.new {
            row.name = facts.name;
            row.labels = facts.labels;
            row.os = facts.os;
            row.agent_version = facts.agent_version;
        }
        if !facts.new {
            row.generation = row.generation.max(facts.generation);
            self.announced(&row, facts.maintenance);
        }
        if facts.new || known.as_ref().is_none_or(|k| k.row != row) {
            // Only a new host's cell is taken over: later facts may be older than a removal and an import.
            self.d.policy.changed(known.as_ref().map(|k| &k.row), Some(&row));
            self.d.view.upsert(&row, facts.new.then_some(facts.live));
            self.work.change(row.id);
        }
    }

    fn moved(&mut self, host: HostId, address: SocketAddr) {
        let Some(known) = self.d.view.get(host) else { return };
        if known.row.address != Some(address) {
            let row = HostRow { address: Some(address), ..known.row };
            self.d.view.upsert(&row, None);
            self.work.change(host);
        }
    }

    fn turn(&mut self, turn: &Transition) {
        let Some(known) = self.d.view.get(turn.host) else { return };
        let at = self.wall_of(turn.at);
        if turn.turn == Turn::Forgettable {
            let why = format!("{} for longer than forget_after", known.row.state);
            return self.forget(&known.row, &why);
        }
        let (view, row) = (&self.d.view, &known.row);
        let seed = self.rng.random();
        let candidates = |wanted: &Wanted<'_>| find(&**view, wanted, Depth::ORDER, seed);
        let decision = self.d.policy.take(row, turn, at, candidates, &mut self.rng);
        let changed = decision.row != *row;
        if changed {
            self.d.view.upsert(&decision.row, None);
        }
        match decision.event {
            Some(event) => {
                log::info!("{} {}", event.kind, line(&decision.row, &event));
                self.work.push(Work::Event(Box::new(event)));
                crash::pass("decided");
            }
            None if changed => self.work.change(decision.row.id),
            None => {}
        }
    }

    /// The wall-clock time of an instant of the monotonic clock.
    fn wall_of(&self, at: Instant) -> Wall {
        let ago = self.d.clock.now().since(at).as_millis();
        Wall(self.d.clock.wall().0.saturating_sub(i64::try_from(ago).unwrap_or(0)))
    }

    fn blind(&mut self, shard: u16, blind: bool) {
        if !self.d.policy.set_blind(shard, blind) {
            return;
        }
        let (kind, reason) = if blind {
            (
                EventKind::ControllerBlind,
                "own losses have lasted longer than doubt_max: actions are held, states stay true",
            )
        } else {
            (EventKind::ControllerSighted, "datagrams arrive again: what was held is judged again")
        };
        log::warn!("{kind}: {reason}");
        let event = self.d.policy.own_event(kind, reason, self.d.clock.wall(), &mut self.rng);
        self.work.push(Work::Event(Box::new(event)));
        self.release_own();
    }

    /// Has what own doubt held judged again, if the controller does not doubt itself any more.
    fn release_own(&mut self) {
        if self.released_at_start {
            self.d.policy.release_own();
        }
    }

    fn forget(&mut self, row: &HostRow, why: &str) {
        let event = self.d.policy.forgotten(row, why, self.d.clock.wall(), &mut self.rng);
        log::info!("{} {}", event.kind, line(row, &event));
        self.d.policy.changed(Some(row), None);
        self.d.view.remove(row.id);
        self.tell_shard(self.shard_of(row.id), ShardCommand::Remove(row.id));
        self.work.push(Work::Forget(row.id, Box::new(event)));
    }

    fn freeze(&mut self, known: &HostRow, margin: Option<Duration>) {
        let frozen_ms = margin.map(|m| m.as_millis() as u64);
        if known.frozen_ms == frozen_ms {
            return;
        }
        let row = HostRow { frozen_ms, ..known.clone() };
        let event = self.d.policy.frozen(&row, self.d.clock.wall(), &mut self.rng);
        log::info!("{} {}", event.kind, line(&row, &event));
        self.tell_shard(self.shard_of(row.id), ShardCommand::Freeze(row.id, margin));
        self.d.view.upsert(row, None);
        self.work.push(Work::Event(Box::new(event)));
    }

    fn shard_of(&self, host: HostId) -> usize {
        usize::from(shard_of(host, self.d.shards.len() as u16))
    }

    /// Has a shard do something, after all that it was told before; what its queue does not take waits
    /// here and is tried again.
    fn tell_shard(&mut self, shard: usize, command: ShardCommand) {
        self.untold.push_back((shard, command));
        self.tell_untold();
    }

    fn tell_untold(&mut self) {
        let mut full = vec![false; self.d.shards.len()];
        for _ in 0..self.untold.len() {
            let Some((shard, command)) = self.untold.pop_front() else { return };
            let again =
                if full[shard] { Some(command) } else { self.d.shards[shard].send(command).err() };
            if let Some(command) = again {
                full[shard] = true;
                self.untold.push_back((shard, command));
            }
        }
    }

    fn tick(&mut self) {
        self.tell_untold();
        let now = self.d.clock.now();
        if self.pause_ends.is_some_and(|end| now >= end) {
            self.end_pause("its time is over");
        }
        if !self.released_at_start && now >= self.d.release_at {
            self.released_at_start = true;
            self.release_own();
        }
        self.look_after_windows(now);
        self.look_after_holds(now);
        if self.d.news.0.missed() {
            self.courses.search();
        }
    }

    fn end_pause(&mut self, why: &str) {
        self.pause_ends = None;
        self.d.policy.set_pause(None);
        self.d.status.set_pause(None);
        self.work.push(Work::Put(PAUSE_KEY, None));
        let reason = format!("the pause ended: {why}");
        let wall = self.d.clock.wall();
        let kind = EventKind::ControllerResumed;
        let event = self.d.policy.own_event(kind, &reason, wall, &mut self.rng);
        log::info!("{kind}: {reason}");
        self.work.push(Work::Event(Box::new(event)));
        self.release_own();
    }

    async fn obey(&mut self, command: Command) {
        // Whoever asked may have given up waiting; what was asked for is done all the same.
        match command {
            Command::Import(hosts, answer) => {
                let report = self.import(hosts);
                self.answer_when_written(answer, Ok(report));
            }
            Command::Forget(host, answer) => match self.d.view.get(host) {
                Some(known) => {
                    self.forget(&known.row, "an operator said so");
                    self.answer_when_written(answer, Ok(()));
                }
                None => drop(answer.send(Err(ControlError::UnknownHost(host)))),
            },
            Command::Revoked(host, reason, answer) => match self.d.view.get(host) {
                Some(known) => {
                    self.forget(&known.row, &format!("revoked: {reason}"));
                    self.answer_when_written(answer, Ok(()));
                }
                None => drop(answer.send(Err(ControlError::UnknownHost(host)))),
            },
            Command::Freeze(host, margin, answer) => match self.d.view.get(host) {
                Some(known) => {
                    self.freeze(&known.row, margin);
                    self.answer_when_written(answer, Ok(margin));
                }
                None => drop(answer.send(Err(ControlError::UnknownHost(host)))),
            },
            Command::Single(host, word, answer) => self.single(host, &word, answer),
            Command::Enrolled(host, news) => {
                let wall = self.d.clock.wall();
                let known = self.d.view.get(host);
                let row = known.map_or_else(|| new_row(host, wall), |known| known.row);
                let event = self.d.policy.enrolled(&row, news, wall, &mut self.rng);
                self.work.push(Work::Event(Box::new(event)));
            }
            Command::Pause(pause, answer) => {
                self.pause(pause);
                let pause = self.d.policy.pause().cloned();
                self.answer_when_written(answer, Ok(pause));
            }
            Command::Redrive(what, answer) => drop(answer.send(self.redrive(what).await)),
            Command::Holds(ask) => self.answer(ask),
            Command::Complete(incident, what, answer) => {
                self.complete(incident, what, answer).await;
            }
            Command::Rules(ask) => self.answer_of_rules(ask),
            Command::Maintenance(ask) => self.answer_window(ask),
            Command::Tell(kind, reason) => {
                let wall = self.d.clock.wall();
                let event = self.d.policy.own_event(kind, &reason, wall, &mut self.rng);
                log::warn!("{kind}: {reason}");
                self.work.push(Work::Event(Box::new(event)));
            }
            Command::Audit(data, answer) => {
                let wall = self.d.clock.wall();
                let event = self.d.policy.audit_event(data, wall, &mut self.rng);
                self.work.push(Work::Event(Box::new(event)));
                if let Some(answer) = answer {
                    self.answer_when_written(answer, Ok(()));
                }
            }
            Command::Candidates(ask, answer) => drop(answer.send(Ok(self.candidates(&ask)))),
        }
        self.follow_orders();
    }

    fn answer_when_written<T: Send + 'static>(&mut self, to: oneshot::Sender<T>, with: T) {
        let (done, written) = oneshot::channel();
        self.work.push(Work::Done(done));
        tokio::spawn(async move {
            if written.await.is_ok() {
                drop(to.send(with));
            }
        });
    }

    fn import(&mut self, hosts: Vec<ImportHost>) -> ImportReport {
        let mut report = ImportReport::default();
        let mut by_shard: Vec<Vec<Known>> = vec![Vec::new(); self.d.shards.len()];
        let mut rows = Vec::new();
        let wall = self.d.clock.wall();
        for host in hosts {
            if self.d.view.contains(host.id) {
                report.known += 1;
                continue;
            }
            let shard = self.shard_of(host.id);
            let live = self.d.view.live().take(shard as u16);
            let row = HostRow { name: host.name, labels: host.labels, ..new_row(host.id, wall) };
            self.d.view.upsert(&row, Some(live));
            by_shard[shard].push(known_of(&row, &self.d.domains, &self.d.knobs, wall, live));
            rows.push(row);
            report.added += 1;
        }
        while !rows.is_empty() {
            let rest = rows.split_off(rows.len().min(READ_LEN_MAX));
            self.work.push(Work::Rows(std::mem::replace(&mut rows, rest)));
        }
        for (shard, known) in by_shard.into_iter().enumerate().filter(|(_, k)| !k.is_empty()) {
            self.tell_shard(shard, ShardCommand::Register(known));
        }
        report
    }

    fn pause(&mut self, pause: Option<Pause>) {
        let Some(pause) = pause else {
            if self.d.policy.pause().is_some() {
                self.end_pause("an operator ended it");
            }
            return;
        };
        self.pause_ends = Some(self.d.monotonic_end(&pause));
        let text = serde_json::to_string(&pause).ok();
        self.work.push(Work::Put(PAUSE_KEY, text));
        let reason = format!("all actions are held until {}: {}", pause.until_ms, pause.reason);
        self.d.status.set_pause(Some(pause.clone()));
        self.d.policy.set_pause(Some(pause));
        let kind = EventKind::ControllerPaused;
        let wall = self.d.clock.wall();
        let event = self.d.policy.own_event(kind, &reason, wall, &mut self.rng);
        log::info!("{kind}: {reason}");
        self.work.push(Work::Event(Box::new(event)));
    }
}

/// Writes one batch, however long it takes.
#[derive(Clone)]
struct Writer {
    store: Arc<dyn Store>,
    delivery: Arc<DeliveryHandle>,
    view: Arc<View>,
    clock: Arc<dyn Clock>,
    status: Arc<DriverStatus>,
    news: News,
    throttle: Arc<Throttle>,
    stopping: bool,
}

impl Writer {
    async fn write(self, batch: Batch, seed: u64) -> Result<(), StoreError> {
        let (rows, events) = match batch {
            Batch::Other(work) => return self.other(work, seed).await,
            Batch::Record(rows, events) => (rows, events),
        };
        // An event brings its host's newest row along.
        let brought: BTreeSet<HostId> =
            events.iter().filter_map(|e| e.row.as_ref()).map(|row| row.id).collect();
        let alone: Arc<[HostRow]> =
            rows.iter().filter(|row| !brought.contains(&row.id)).cloned().collect();
        let events: Arc<[NewEvent]> = events.into();
        crash::pass("append");
        let record = || self.store.record(Arc::clone(&alone), Arc::clone(&events));
        let appended = match self.insist(seed, record).await? {
            Some(appended) => appended,
            None => self.one_by_one(rows, &events, seed).await?,
        };
        crash::pass("committed");
        for one in appended {
            self.delivery.settled(one.settled);
            self.delivery.wake(one.deliveries);
        }
        crash::pass("woken");
        for event in events.iter().filter(|e| is_followed(e.kind) || e.kind.is_report()) {
            event.host.into_iter().for_each(|host| self.news.tell(Word { host, bad: false }));
        }
        Ok(())
    }

    /// One of them was refused: the others must not go with it.
    async fn one_by_one(
        &self,
        rows: Vec<HostRow>,
        events: &[NewEvent],
        seed: u64,
    ) -> Result<Vec<Appended>, StoreError> {
        for row in rows {
            self.insist(seed, || self.store.save_hosts(vec![row.clone()])).await?;
        }
        let mut each = Vec::new();
        for event in events {
            let alone = self.insist(seed, || self.store.append(vec![event.clone()])).await?;
            each.extend(alone.unwrap_or_default());
        }
        Ok(each)
    }

    async fn other(&self, work: Work, seed: u64) -> Result<(), StoreError> {
        match work {
            Work::Forget(host, event) => {
                self.insist(seed, || self.store.forget(host, (*event).clone())).await?;
            }
            Work::Put(key, value) => {
                self.insist(seed, || self.store.put(key, value.clone())).await?;
            }
            Work::Keep(key, value) => {
                self.insist(seed, || self.store.put(&key, value.clone())).await?;
            }
            Work::Release(host, but, places) => {
                let which = if but.is_empty() { Receivers::All } else { Receivers::AllBut(but) };
                let row = self.view.get(host).map(|h| h.row);
                let incident = row.as_ref().and_then(|r| r.incident);
                let verdict = Policy::rejudge(row.as_ref(), order_of(row.as_ref()), incident);
                self.release(host, which, verdict, places, seed).await?;
            }
            Work::Part(part, places) => {
                let row = self.view.get(part.host).map(|h| h.row);
                let still = || Policy::rejudge(row.as_ref(), part.kind, part.incident);
                let verdict = part.go.clone().and_then(|()| still());
                let which = Receivers::Only(part.receiver);
                self.release(part.host, which, verdict, places, seed).await?;
            }
            Work::Cancel(host, why) => {
                self.release(host, Receivers::All, Err(why), None, seed).await?
            }
            Work::Done(done) => drop(done.send(())),
            Work::Event(_) | Work::Rows(_) => {}
        }
        Ok(())
    }

    /// Lets go, or cancels, what is held of a host: as it was judged against how it stands now, not when it
    /// was held. What goes names `places`.
    async fn release(
        &self,
        host: HostId,
        which: Receivers,
        verdict: Result<(), String>,
        places: Option<Map<String, Value>>,
        seed: u64,
    ) -> Result<(), StoreError> {
        crash::pass("release");
        let at = self.clock.wall();
        let due = match (verdict, places) {
            (Ok(()), Some(places)) => {
                let write = || self.store.release_placed(host, which.clone(), places.clone(), at);
                self.insist(seed, write).await?
            }
            (verdict, _) => {
                let write = || self.store.release(host, which.clone(), verdict.clone(), at);
                self.insist(seed, write).await?
            }
        };
        self.delivery.wake(due.unwrap_or_default());
        self.news.tell(Word { host, bad: false });
        Ok(())
    }

    /// Repeats a write until it succeeds. `Ok(None)`: it can never succeed, which was logged.
    async fn insist<T, F>(
        &self,
        seed: u64,
        mut write: impl FnMut() -> F,
    ) -> Result<Option<T>, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut failures = 0;
        loop {
            match write().await {
                Ok(done) => {
                    if failures > 0 {
                        log::info!("the store can write again");
                        self.status.set_store_error(None);
                    }
                    return Ok(Some(done));
                }
                Err(StoreError::Fenced) => return Err(StoreError::Fenced),
                Err(e @ (StoreError::Invalid(_) | StoreError::Open(_))) => {
                    log::error!("a write was refused for good, please report this: {e}");
                    self.status.set_store_error(Some(e.to_string()));
                    return Ok(None);
                }
                Err(e) => {
                    failures += 1;
                    self.status.set_store_error(Some(e.to_string()));
                    if let Some(more) = self.throttle.pass(self.clock.now()) {
                        log::error!("{e}; beats go on, events wait ({more} more tries failed)");
                    }
                    if self.stopping && failures > 3 {
                        return Err(e);
                    }
                    tokio::time::sleep(STORE_BACKOFF.delay(failures, &mut rng)).await;
                }
            }
        }
    }
}

/// What a shard needs to know of a registered host.
pub fn known_of(
    row: &HostRow,
    domains: &DomainLabels,
    knobs: &AllKnobs,
    now: Wall,
    live: LiveId,
) -> Known {
    let in_state = now.0.saturating_sub(row.since.0);
    Known {
        id: row.id,
        state: row.state,
        boot: row.boot,
        generation: row.generation,
        address: row.address,
        in_state: Duration::from_millis(u64::try_from(in_state).unwrap_or(0)),
        missing_reported: row.state == State::Pending && row.incident.is_some(),
        duplicate: row.duplicate,
        agent_lost: row.state == State::Down && row.cause == Some(Cause::AgentLost),
        back_in: row.back_by.map(|at| {
            Duration::from_millis(u64::try_from(at.0.saturating_sub(now.0)).unwrap_or(0))
        }),
        profile: knobs.profile(&row.labels),
        frozen: row.frozen_ms.map(Duration::from_millis),
        domain: domains.domain(&row.labels),
        live,
    }
}

/// One line for the log.
fn line(row: &HostRow, event: &NewEvent) -> String {
    let reason = event.data.get("reason").and_then(|r| r.as_str()).unwrap_or_default();
    format!("{}: {reason}", crate::view::called(&row.name, row.id))
}
