//! The loop: wait for whatever comes first, read the clock once, step the protocol, send what it
//! says.
//!
//! Nothing on the way of a beat waits: names are looked up and config files read by tasks of their
//! own, load is sampled by threads of their own, the status is handed to whoever asks by a task of
//! its own, and nothing is written to disk. systemd's watchdog is fed from this loop, so that it
//! bites when the loop no longer turns.
//!
//! The timer comes first in `App::wait`, so no flood of datagrams holds a beat back; and at most
//! [`RECEIVE_BATCH`] of them are taken before it is looked at again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use heartwatch_common::config::{ConfigError, Span};
use heartwatch_common::daemon;
use heartwatch_common::id::HostId;
use heartwatch_common::time::{Clock, Instant};
use heartwatch_common::wire::{self, DATAGRAM_LEN_MAX};
use rand::RngExt;
use rand::rngs::{StdRng, SysRng};
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::config::{self, AgentConfig, Overrides};
use crate::control;
use crate::core::{Core, Outgoing, To};
use crate::enrol;
use crate::identity::{self, IdentityError};
use crate::resist;
use crate::sampler::Sampler;
use crate::status::{self, ASKERS_MAX, AgentStatus, ControllerLine, MaintenanceLine, StatusSocket};
use crate::transport::{Family, Found, RECEIVE_BATCH, Transport};
pub use error::{AppError, chain};
pub use goodbye::LEAVE_REASON_VAR;
pub use goodbye::expected_absence;
use goodbye::leave_reason;
pub use join::Joined;
use renewal::{Fetched, Renewal, Reread};
use standing::{Standing, Stood};
use told::{Planned, Told};

mod error;
mod goodbye;
mod join;
mod renewal;
mod standing;
mod told;

/// Time between the two goodbyes: longer than a short burst of losses.
const GOODBYE_GAP: Duration = Duration::from_millis(50);
/// After the status socket failed, nobody is answered for this long.
const DEAF_TIME: Duration = Duration::from_secs(10);

/// This host's id: as configured, else from the machine id.
pub fn host_id(config: &AgentConfig) -> Result<HostId, IdentityError> {
    match config.host_id {
        Some(id) => Ok(id),
        None => identity::host_id(&config.machine_id_file),
    }
}

/// Where this host's key is.
pub fn key_path(config: &AgentConfig) -> std::path::PathBuf {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(std::path::PathBuf::from);
    // A host that enrolled, or renewed, has its newest key in the state folder.
    let own = config.state_dir.join(enrol::file::FILE_NAME).exists()
        && config.state_dir.join("key").exists();
    let credentials = credentials.filter(|_| !own);
    identity::key_path(config.key_file.as_deref(), credentials.as_deref(), &config.state_dir)
}

/// Whether the agent has been set up: it has a controller to beat to and a key. Anything else that may be
/// wrong is for [`run`] to tell, which fails where this one is only skipped.
pub fn configured(overrides: &Overrides) -> Result<(), AppError> {
    let Ok(joined) = Joined::read(overrides) else { return Ok(()) };
    let file = overrides.config.as_deref().unwrap_or(Path::new(config::CONFIG_PATH)).display();
    joined.can_run(&file.to_string())
}

/// Runs the agent until a signal ends it. Blocks.
pub fn run(overrides: Overrides, clock: Arc<dyn Clock>) -> Result<(), AppError> {
    let joined = Joined::read(&overrides)?;
    daemon::init_log(joined.config.log_level.into());
    daemon::keep_memory_private();
    let joined = joined.settle(&overrides, &*clock)?;
    joined.config.check_controllers()?;
    let system = |what| move |source| AppError::System { what, source };
    log::info!("{}", resist::prepare());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("start the event loop"))?;
    let result = runtime.block_on(async {
        let mut app = App::new(overrides, joined, clock)?;
        app.resume_maintenance(app.clock.boottime());
        app.run().await;
        Ok(())
    });
    // A lookup that still hangs must not hold the exit back.
    runtime.shutdown_background();
    result
}

enum Event {
    /// It is time for whatever is due.
    Due,
    Datagrams(Family),
    Found(Found),
    Asked(std::io::Result<UnixStream>),
    Speaks(std::io::Result<UnixStream>),
    Told(Told),
    Reload,
    Reloaded(Box<Result<Reread, AppError>>),
    Fetched(Fetched),
    Stood(Stood),
    Stop,
}

/// Both ends of a queue from this loop's own tasks, each of which sends once.
type Channel<T> = (UnboundedSender<T>, UnboundedReceiver<T>);

/// The signals that the agent obeys.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

struct App {
    overrides: Overrides,
    config: AgentConfig,
    clock: Arc<dyn Clock>,
    rng: StdRng,
    core: Core,
    transport: Transport,
    sampler: Sampler,
    socket: Option<StatusSocket>,
    /// The status socket failed; nobody is answered before this.
    deaf_until: Instant,
    signals: Signals,
    askers: Arc<Semaphore>,
    /// Where it is told what to do.
    control: Option<StatusSocket>,
    speakers: Arc<Semaphore>,
    told: Channel<Told>,
    /// How the next stop is meant.
    planned: Option<Planned>,
    found: Channel<Found>,
    reloaded: Channel<Result<Reread, AppError>>,
    renewal: Renewal,
    fetched: Channel<Fetched>,
    standing: Standing,
    stood: Channel<Stood>,
    os: String,
    started: Instant,
    watchdog: Option<Duration>,
    watchdog_due: Instant,
    /// Said "beating to …".
    announced: bool,
    /// Which controllers answered when last looked at.
    heard: Vec<bool>,
    interval: Duration,
    /// The other version of the wire that was told of.
    other_version: Option<u8>,
    out: Vec<Outgoing>,
}

impl App {
    /// Everything that may fail, before the first beat. Needs a Tokio runtime around it.
    fn new(overrides: Overrides, joined: Joined, clock: Arc<dyn Clock>) -> Result<Self, AppError> {
        let url: Option<enrol::Url> =
            joined.own().and_then(|e| e.url.as_deref()).and_then(|url| url.parse().ok());
        let key_home = joined.key_home();
        let config = joined.config;
        let system = |what| move |source| AppError::System { what, source };
        let host = host_id(&config)?;
        let key = identity::host_key(&key_path(&config))?;
        let boot = identity::next_boot(&config.state_dir, clock.wall())?;
        let os = identity::os();
        let mut rng: StdRng = rand::SeedableRng::try_from_rng(&mut SysRng)
            .map_err(|e| AppError::System { what: "draw randomness", source: e.into() })?;
        let listen = |kind| signal(kind).map_err(system("listen to signals"));
        let signals = Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        };
        let socket = match StatusSocket::open(&config.runtime_dir) {
            Ok(socket) => Some(socket),
            Err(e) => {
                let dir = config.runtime_dir.display();
                log::warn!("no status socket in {dir}, `status` will not work: {e}");
                None
            }
        };
        // Which of two agents may be told is the same question as which may be asked: the first.
        let open = || StatusSocket::open_as(&config.runtime_dir, control::SOCKET_NAME, 0o600);
        let control = socket.as_ref().map(|_| open()).transpose().unwrap_or_else(|e| {
            log::warn!("no control socket, `maintenance` and `leave` will not work: {e}");
            None
        });
        let sampler = Sampler::start(Path::new("/"), Arc::clone(&clock));
        let now = clock.boottime();
        let mut core = Core::new(config.settings(host, key, boot, os.clone()), now, &mut rng)
            .map_err(|e| ConfigError::value("labels", e.to_string()))?;
        if let Some(previous) = enrol::previous(&config.state_dir) {
            core.may_go_back_to(previous, now);
        }
        let standing = Standing::new(url.clone());
        let renewal = Renewal::new(url, config.state_dir.clone(), key_home, now);
        Ok(Self {
            transport: Transport::new(&config.controllers, now),
            heard: vec![false; config.controllers.len()],
            interval: core.interval(),
            overrides,
            config,
            clock,
            rng,
            core,
            sampler,
            socket,
            deaf_until: now,
            signals,
            askers: Arc::new(Semaphore::new(ASKERS_MAX)),
            control,
            speakers: Arc::new(Semaphore::new(control::SPEAKERS_MAX)),
            told: unbounded_channel(),
            planned: None,
            found: unbounded_channel(),
            reloaded: unbounded_channel(),
            renewal,
            fetched: unbounded_channel(),
            standing,
            stood: unbounded_channel(),
            os,
            started: now,
            watchdog: daemon::watchdog_period(),
            watchdog_due: now,
            announced: false,
            other_version: None,
            out: Vec::new(),
        })
    }

    async fn run(&mut self) {
        daemon::ready("beating");
        loop {
            let event = self.wait().await;
            let now = self.clock.boottime();
            match event {
                Event::Due => {}
                Event::Datagrams(family) => self.receive(family, now),
                Event::Found(found) => {
                    let draw = self.rng.random();
                    let heard = |i| self.core.is_heard(i);
                    let reached = self.transport.found(found, heard, now, draw);
                    reached.into_iter().for_each(|i| self.core.reaches(i, now));
                }
                Event::Asked(stream) => self.answer(stream, now),
                Event::Speaks(stream) => {
                    if stream.is_err() {
                        self.deaf_until = now + DEAF_TIME;
                    }
                    self.listen(stream);
                }
                Event::Told(told) => self.obey(told, now),
                Event::Reload => self.read_config(),
                Event::Reloaded(result) => self.reload(*result, now),
                Event::Fetched(fetched) => self.fetched(fetched, now),
                Event::Stood(stood) => self.stood(stood, now),
                Event::Stop => break,
            }
            self.beat(now);
            self.look_around(now);
        }
        self.leave().await;
    }

    /// Waits for the first thing that happens. What comes first here goes first when several have.
    async fn wait(&mut self) -> Event {
        let wake = self.core.next_wake().min(self.transport.next_lookup());
        let wake = if self.watchdog.is_some() { wake.min(self.watchdog_due) } else { wake };
        let timer = tokio::time::sleep(wake.since(self.clock.boottime()));
        let asked = async {
            match self.socket.as_ref().filter(|_| self.clock.boottime() >= self.deaf_until) {
                Some(socket) => socket.accept().await,
                None => std::future::pending().await,
            }
        };
        let spoken_to = async {
            match self.control.as_ref().filter(|_| self.clock.boottime() >= self.deaf_until) {
                Some(socket) => socket.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = timer => Event::Due,
            _ = self.signals.terminate.recv() => Event::Stop,
            _ = self.signals.interrupt.recv() => Event::Stop,
            _ = self.signals.hangup.recv() => Event::Reload,
            Some(found) = self.found.1.recv() => Event::Found(found),
            Some(told) = self.told.1.recv() => Event::Told(told),
            Some(result) = self.reloaded.1.recv() => Event::Reloaded(Box::new(result)),
            Some(fetched) = self.fetched.1.recv() => Event::Fetched(fetched),
            Some(stood) = self.stood.1.recv() => Event::Stood(stood),
            family = self.transport.readable() => Event::Datagrams(family),
            stream = asked => Event::Asked(stream),
            stream = spoken_to => Event::Speaks(stream),
        }
    }

    fn receive(&mut self, family: Family, now: Instant) {
        let mut buffer = [0; DATAGRAM_LEN_MAX + 1];
        for _ in 0..RECEIVE_BATCH {
            let Some((len, from)) = self.transport.receive(family, &mut buffer, now) else { break };
            let controller = self.transport.controller_at(from);
            self.core.receive(from, controller, &buffer[..len], now, &mut self.out);
            self.send(now);
        }
    }

    /// Sends what is due, if anything is.
    fn beat(&mut self, now: Instant) {
        if now >= self.core.next_wake() {
            let load = self.sampler.latest(self.clock.now());
            // No checks run yet: all 16 results are "fine".
            self.core.tick(now, &load, 0, &mut self.rng, &mut self.out);
            self.send(now);
        }
        if let Some(period) = self.watchdog.filter(|_| now >= self.watchdog_due) {
            daemon::watchdog();
            self.watchdog_due = now + period;
        }
    }

    fn send(&mut self, now: Instant) {
        let mut sent = false;
        for outgoing in self.out.drain(..) {
            let taken = self.transport.send(&outgoing, now);
            sent |= taken && matches!(outgoing.to, To::Controller(_));
        }
        if sent && !self.announced {
            self.announced = true;
            self.announce();
        }
    }

    fn announce(&self) {
        let list: Vec<String> = self.config.controllers.iter().map(|e| e.to_string()).collect();
        let settings = self.core.settings();
        log::info!(
            "beating to {} every {} ± {:.0} % as host {} ({}), boot {}",
            list.join(", "),
            Span(self.core.interval()),
            settings.jitter * 100.0,
            settings.host,
            settings.name,
            settings.boot
        );
    }

    /// What follows from the step just made, off the way of the beat.
    fn look_around(&mut self, now: Instant) {
        for index in 0..self.config.controllers.len() {
            if self.core.needs_lookup(index, now) {
                self.transport.hurry(index, now);
            }
            if self.core.is_news_unheard(index, now) {
                let endpoint = &self.config.controllers[index];
                log::warn!("controller {endpoint} {}; beats go on", status::UNHEARD);
            }
            let heard = self.core.is_heard(index);
            if std::mem::replace(&mut self.heard[index], heard) != heard {
                let endpoint = &self.config.controllers[index];
                if heard {
                    log::info!("controller {endpoint} answers");
                } else {
                    log::warn!("controller {endpoint} no longer answers; beats go on");
                }
            }
        }
        let other = self.core.other_version();
        if other.map(|o| o.version) != self.other_version {
            self.other_version = other.map(|o| o.version);
            other.into_iter().for_each(|o| log::warn!("{}", status::other_version(o)));
        }
        if self.interval != self.core.interval() {
            self.interval = self.core.interval();
            log::info!("the interval is {} from now on", Span(self.interval));
        }
        self.transport.look_up(now, &self.found.0);
        self.look_after_keys(now);
        self.look_after_standing(now);
    }

    fn answer(&mut self, stream: std::io::Result<UnixStream>, now: Instant) {
        let stream = match stream {
            Ok(stream) => stream,
            Err(e) => {
                // It would fail again at once, and for ever: too many open files, for one.
                self.deaf_until = now + DEAF_TIME;
                log::warn!("cannot accept on the status socket: {e}");
                return;
            }
        };
        // Dropped when too many ask: they see an empty answer.
        let Ok(permit) = Arc::clone(&self.askers).try_acquire_owned() else { return };
        match serde_json::to_string(&self.status(now)) {
            Ok(text) => {
                tokio::spawn(async move {
                    status::answer(stream, text).await;
                    drop(permit);
                });
            }
            Err(e) => log::warn!("cannot tell the status: {e}"),
        }
    }

    fn status(&self, now: Instant) -> AgentStatus {
        let core = self.core.status(now);
        let targets = self.transport.targets().iter();
        let line = |(t, session): (&crate::transport::Target, _)| ControllerLine {
            endpoint: t.endpoint.to_string(),
            address: t.address(),
            sent: t.sent,
            send_errors: t.send_errors,
            lookup_errors: t.lookup_errors,
            session,
        };
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            wire_version: wire::VERSION,
            other_version: self.core.other_version().copied(),
            host: core.host,
            name: self.core.settings().name.clone(),
            boot: core.boot,
            uptime_seconds: now.since(self.started).as_secs(),
            interval_ms: core.interval_ms,
            interval_default_ms: core.interval_default_ms,
            next_beat_ms: core.next_beat_ms,
            load: self.sampler.latest(self.clock.now()),
            relayed: core.relayed,
            relay_replies: core.relay_replies,
            rejects: core.rejects,
            revoked: self.standing.revoked.clone(),
            maintenance: self.core.announced(now).map(|a| MaintenanceLine {
                remaining_seconds: u64::from(a.seconds_left(now)),
                reason: a.reason.clone(),
            }),
            controllers: targets.zip(core.controllers).map(line).collect(),
        }
    }

    /// Reads the config file anew, off the loop: its disk may be slow.
    fn read_config(&self) {
        let (overrides, reloaded) = (self.overrides.clone(), self.reloaded.0.clone());
        tokio::task::spawn_blocking(move || {
            let result = Joined::read(&overrides).and_then(|joined| {
                joined.config.check_controllers()?;
                let key = identity::host_key(&joined.key_path());
                Ok(Reread { host: host_id(&joined.config).ok(), key, config: joined.config })
            });
            // An error means that the agent ends.
            drop(reloaded.send(result));
        });
    }

    fn reload(&mut self, result: Result<Reread, AppError>, now: Instant) {
        let Reread { config, host, key } = match result {
            Ok(reread) => reread,
            Err(e) => {
                // The parser shows the place over several lines; a log entry is one.
                let lines: Vec<_> = chain(&e).lines().map(|l| l.trim().to_owned()).collect();
                let reason = lines.join(" ");
                log::error!("the config was not reloaded, the old one holds: {reason}");
                return;
            }
        };
        let mut same_places = host == Some(self.core.settings().host);
        for (key, same) in [
            ("host_id", config.host_id == self.config.host_id),
            ("key_file", config.key_file == self.config.key_file),
            ("state_dir", config.state_dir == self.config.state_dir),
            ("runtime_dir", config.runtime_dir == self.config.runtime_dir),
        ] {
            if !same {
                same_places = false;
                log::warn!("{key} has changed: restart the agent to apply that");
            }
        }
        let old = self.core.settings();
        let settings = config.settings(old.host, old.key.clone(), old.boot, self.os.clone());
        let kept = self.transport.reload(&config.controllers, now);
        if let Err(e) = self.core.reload(settings, &kept, now) {
            // `config::read` checks that very thing, so this is not reached; if it were, the
            // targets must go back to what the sessions are.
            log::error!("the config was not reloaded, the old one holds: {e}");
            self.transport.reload(&self.config.controllers, now);
            return;
        }
        self.heard = (0..kept.len()).map(|i| self.core.is_heard(i)).collect();
        log::set_max_level(config.log_level.into());
        self.config = config;
        log::info!("the config was reloaded");
        if same_places {
            self.take_up_key(key, now);
        }
        self.announce();
    }

    /// Says goodbye twice, then ends.
    async fn leave(&mut self) {
        daemon::stopping();
        let planned = self.planned.filter(|p| self.clock.boottime() < p.until);
        let (reason, expected) = match planned {
            Some(planned) => (planned.reason, planned.expected),
            None => {
                let reason = leave_reason(std::env::var(LEAVE_REASON_VAR).ok().as_deref());
                (reason, expected_absence(reason))
            }
        };
        for again in [false, true] {
            if again {
                tokio::time::sleep(GOODBYE_GAP).await;
            }
            let now = self.clock.boottime();
            self.core.leave(reason, expected, now, &mut self.out);
            self.send(now);
        }
        log::info!("said goodbye: {}, for {}", reason.as_str(), Span(expected));
    }
}
