//! Wiring and shutdown order, nothing else.
//!
//! Start: secrets → store (locks the state directory) → sockets → registry → shards → delivery → policy
//! → API → "ready". Stop is the other way round: the API stops taking, shards stop telling, the policy
//! writes what it decided, attempts under way end, the store is closed.

mod canary;
mod inspect;
mod kept;
mod maintenance;
mod memory;
mod others;
mod pacing;
mod receivers;
mod reloading;
mod running;
mod secrets;
mod surroundings;

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use heartwatch_common::auth::Keyring;
use heartwatch_common::daemon;
use heartwatch_common::enrol::Hex;
use heartwatch_common::id::{ControllerId, Epoch};
use heartwatch_common::time::Clock;
use heartwatch_common::words;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{mpsc, watch};

use crate::api::{self, ApiState, ApiToken, DeliveryMetricRow, HostNames, TokenBook};
use crate::canary::Canary;
use crate::config::Config;
use crate::crash;
use crate::delivery::metrics::{DeliveryMetrics, ReceiverCounts};
use crate::delivery::target::kinds_for;
use crate::delivery::webhook::WebhookError;
use crate::delivery::{Delivery, DeliveryHandle, News, resend};
use crate::detector::Settings;
use crate::detector::host::Known;
use crate::detector::knobs::AllKnobs;
use crate::detector::peers::DomainLabels;
use crate::enrol::registry::Enrolled;
use crate::enrol::{self, EnrolStore, Enrolling};
use crate::ingest::socket::{BatchSocket, Role};
use crate::intervals::Assigned;
use crate::metrics::{DoubtMetrics, ShardMetrics};
use crate::policy::driver::{
    self, Command, Driver, DriverStatus, known_of, load_guard, load_windows,
};
use crate::policy::review::warnings;
use crate::policy::{Author, Policy};
use crate::replay::record;
use crate::shard::core::{Identity, ShardCore};
use crate::shard::route::shard_of;
use crate::shard::worker::{Command as ShardCommand, ShardHandle, Worker};
use crate::store::sqlite::SqliteStore;
use crate::store::{READ_LEN_MAX, Retention, Store, StoreError};
use crate::tls::{self, Tls, TlsError};
use crate::view::View;
pub use inspect::{Report, inspect};
use others::Others;
use pacing::Pacing;
pub use reloading::Reloading;
use running::{Pulse, Running};
pub use secrets::SecretError;
use surroundings::Surroundings;

/// Where a running controller tells its addresses: a file in the state directory.
pub const RUNTIME_FILE: &str = "runtime.json";
/// How long attempts under way may take at the end.
const DELIVERY_END_MAX: Duration = Duration::from_secs(5);
/// How long shards may take to tell what they know, and the policy to write what it decided. After a mass
/// death that is much; the service manager waits for half a minute in all.
const DRIVER_END_MAX: Duration = Duration::from_secs(12);
/// How long shards may take to end once nobody listens to them.
const SHARDS_END_MAX: Duration = Duration::from_secs(2);
/// How often what is past its retention is thrown away.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// Why the controller could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The configuration, or a secret that it names, is not usable: restarting will not help.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The API's certificate is not usable: restarting will not help.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A receiver's secrets are not usable: restarting will not help.
    #[error(transparent)]
    Receiver(#[from] WebhookError),
    /// An address can't be had.
    #[error("cannot listen on {protocol} {address}: is another controller running on it?")]
    Listen {
        /// UDP or TCP.
        protocol: &'static str,
        /// Which.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The recording can't be begun.
    #[error("cannot record to {path}")]
    Record {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The state directory can't be used.
    #[error("cannot use the state directory {path}")]
    StateDir {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The store can't be opened, or another controller took it over.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Anything else of the system.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl AppError {
    /// The exit code that says whether a restart may help.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Secret(_) | Self::Receiver(_) | Self::Tls(_) => daemon::EXIT_CONFIG,
            _ => daemon::EXIT_FAILURE,
        }
    }
}

/// Where a controller listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// UDP, for beats.
    pub listen: Vec<SocketAddr>,
    /// TCP, for the API.
    pub api: SocketAddr,
}

/// A running controller.
pub struct App {
    /// Where it listens.
    pub addresses: Addresses,
    tls: Arc<Tls>,
    enrolling: Arc<Enrolling>,
    state_dir: PathBuf,
    store: Arc<SqliteStore>,
    shards: Vec<ShardHandle>,
    threads: Vec<std::thread::JoinHandle<()>>,
    delivery: Arc<DeliveryHandle>,
    driver: tokio::task::JoinHandle<Result<(), StoreError>>,
    stop: watch::Sender<bool>,
    stop_driver: watch::Sender<bool>,
    api: tokio::task::JoinHandle<io::Result<()>>,
    background: Vec<tokio::task::JoinHandle<()>>,
}

impl App {
    /// Starts a controller inside a tokio run time; returns when it is ready.
    pub async fn start(config: Config, clock: Arc<dyn Clock>) -> Result<Self, AppError> {
        Self::start_recording(config, clock, None).await
    }

    /// The same, and records what arrives if there is a plan for it.
    pub async fn start_recording(
        mut config: Config,
        clock: Arc<dyn Clock>,
        plan: Option<record::Plan>,
    ) -> Result<Self, AppError> {
        let mut rng =
            StdRng::try_from_rng(&mut rand::rngs::SysRng).map_err(|e| AppError::System {
                what: "draw random numbers",
                source: io::Error::other(e.to_string()),
            })?;
        memory::settle();
        make_private_dir(&config.state_dir)?;
        let keyring = secrets::keyring(&config.fleet_secret_file, &config.state_dir, &mut rng)?;
        let token = secrets::api_token(&config.api_token_file, &config.state_dir, &mut rng)?;
        let fresh = ControllerId(rng.random());
        let store = Arc::new(SqliteStore::open(&config.state_dir, fresh)?);
        // After the store, which locks the state directory: two controllers must not both make one.
        let tls = Arc::new(open_tls(&config, &*clock)?);
        crash::pass("start");
        let epoch = Epoch(rng.random_range(1..=u32::MAX));

        let count = shard_count(config.shards);
        let mut kept = kept::Kept::take(&config.listen, config.api_listen);
        let mut sockets = kept.bind_shards(&config.listen, count, config.gro)?;
        let listen = addresses_of(&sockets)?;
        let api_listener = kept.listen_tcp(config.api_listen)?;
        let api_addr = api_listener.local_addr().map_err(|source| AppError::Listen {
            protocol: "TCP",
            address: config.api_listen,
            source,
        })?;

        let the_canary = Arc::new(Canary::default());
        canary::add_receiver(&mut config, &the_canary, api_addr, &mut rng)?;
        let view = Arc::new(View::default());
        let knobs = Arc::new(config.knobs.clone());
        let enrolled = Arc::<Enrolled>::default();
        let assigned = Assigned::fixed(config.detector.interval, config.detector.ack_every);
        let assigned = Arc::new(assigned.watching(config.watch));
        let mut shards = Vec::new();
        let mut mailboxes = Vec::new();
        let mut cores = Vec::new();
        for shard in 0..count {
            let metrics = Arc::new(ShardMetrics::default());
            let identity = Identity {
                shard,
                controller: store.controller(),
                epoch,
                keyring: Keyring::clone(&keyring),
                enrolled: Arc::clone(&enrolled),
                assigned: Arc::clone(&assigned),
                knobs: Arc::clone(&knobs),
                domains: config.domain_labels.clone(),
                live: Arc::clone(view.live()),
                seed: rng.random(),
            };
            let settings = Settings::new(&config.detector);
            cores.push(ShardCore::new(identity, settings, Arc::clone(&metrics), clock.now()));
            let (handle, mailbox) = ShardHandle::new(metrics)
                .map_err(|source| AppError::System { what: "make a shard's mailbox", source })?;
            shards.push(handle);
            mailboxes.push(mailbox);
        }
        let enrolling = Arc::new(
            Enrolling::load(enrol::Parts {
                store: Arc::clone(&store) as Arc<dyn EnrolStore>,
                enrolled,
                keyring,
                secret_file: config.fleet_secret_file.clone(),
                view: Arc::clone(&view),
                shards: shards.clone(),
                controller: store.controller(),
                port: listen[0].port(),
                beat_addresses: config
                    .beat_addresses
                    .iter()
                    .map(|address| address.text(listen[0].port()))
                    .collect(),
                pin: {
                    let tls = Arc::clone(&tls);
                    Box::new(move || Some(Hex(tls.fingerprint().0)))
                },
                clock: Arc::clone(&clock),
                rng: StdRng::from_rng(&mut rng),
            })
            .await?,
        );
        let labels = (&config.domain_labels, &*knobs);
        let author = Author { id: store.controller(), name: config.name.clone() };
        let policy = Policy::guarded(author, config.rules.clone(), config.guard.clone());
        let mut policy = policy.placing(config.placement);
        let status = Arc::new(DriverStatus::default());
        load_windows(&mut policy, &*store, &status, &*clock).await?;
        let known = load_registry(&*store, &view, labels, &mut policy, &*clock, count).await?;
        load_guard(&mut policy, &*store, &view, &*clock).await?;
        for odd in warnings(&config.rules, &running::survey(&config.rules, &view)) {
            log::warn!("rules ({}): {}", odd.rules.join(", "), odd.text);
        }
        let assigner = config.intervals.as_ref().map(|rules| {
            let known = known.iter().flatten().flatten();
            pacing::at_start(rules, known, &assigned, clock.now())
        });
        let pause = Driver::load_pause(&*store).await?;

        let (stop, stopped) = watch::channel(false);
        let (stop_driver, driver_stopped) = watch::channel(false);
        let news = News::new(driver::NEWS_MAX);
        let delivery_metrics = Arc::new(DeliveryMetrics::new(config.receivers.keys()));
        let delivery = Arc::new(Delivery::spawn_for(
            Arc::clone(&store) as Arc<dyn Store>,
            config.receivers.clone(),
            |receiver| kinds_for(&config, receiver),
            Some(news.0.clone()),
            Arc::clone(&clock),
            rng.random(),
            Arc::clone(&delivery_metrics),
        )?);

        let (notices, notices_in) = mpsc::channel(driver::NOTICES_MAX);
        let recording = start_recording(plan, &clock, &shards[0].metrics)?;
        let mut threads = Vec::new();
        let parts = mailboxes.into_iter().zip(cores).zip(known);
        for (shard, ((mailbox, mut core), known)) in (0u16..).zip(parts) {
            let probes = bind_probes(&listen)?;
            let metrics = Arc::clone(&shards[usize::from(shard)].metrics);
            if let Some((recorder, _)) = &recording {
                core.record_to(recorder.clone());
            }
            let worker = Worker {
                shard,
                peers: shards.clone(),
                core,
                beats: std::mem::take(&mut sockets[usize::from(shard)]),
                probes,
                clock: Arc::clone(&clock),
                mailbox,
                notices: notices.clone(),
                metrics,
            };
            threads.push(spawn_shard(shard, worker, known)?);
        }
        drop(notices);
        // Ends by itself when the shards are gone; stopping waits for it with them.
        threads.extend(recording.map(|(_, thread)| thread));

        let (commands, commands_in) = mpsc::channel(driver::COMMANDS_MAX);
        let started = clock.now();
        // Before that what was held may be of hosts that nobody has judged yet.
        let chance = Settings::new(&config.detector).chance(assigned.longest());
        let driver = Driver {
            policy,
            view: Arc::clone(&view),
            store: Arc::clone(&store) as Arc<dyn Store>,
            delivery: Arc::clone(&delivery),
            shards: shards.clone(),
            domains: config.domain_labels.clone(),
            clock: Arc::clone(&clock),
            seed: rng.random(),
            release_at: started + chance,
            status: Arc::clone(&status),
            knobs: Arc::clone(&knobs),
            news,
            announced_max: config.maintenance.announced_max,
            canary: Arc::clone(&the_canary),
        };
        let driver = tokio::spawn(driver.run(notices_in, commands_in, driver_stopped, pause));

        let pulse = Arc::new(Pulse::default());
        let own_doubts = Arc::new(DoubtMetrics::default());
        let others = Arc::new(Others::new(shards.clone(), Arc::clone(&clock)));
        let surroundings = Surroundings {
            others: Arc::clone(&others),
            doubts: Arc::clone(&own_doubts),
            shards: shards.clone(),
            driver: Arc::clone(&status),
            started,
            chance,
            clock: Arc::clone(&clock),
        };
        let drills = canary::Drills {
            canary: Arc::clone(&the_canary),
            config: config.canary.clone(),
            keyrings: enrolling.keyrings(),
            epoch,
            listen: listen[0],
            shards: shards.clone(),
            store: Arc::clone(&store) as Arc<dyn Store>,
            delivery: Arc::clone(&delivery),
            commands: commands.clone(),
            name: config.name.clone(),
            clock: Arc::clone(&clock),
            rng: StdRng::seed_from_u64(rng.random()),
        };
        for gone in enrolling.unfinished().await? {
            let (answer, _) = tokio::sync::oneshot::channel();
            // Room is there: the policy is at work. An error means that it has ended, which is told there.
            drop(commands.send(Command::Revoked(gone.host, gone.reason, answer)).await);
        }
        let intervals = pacing::Shown::default();
        let running = Running {
            name: config.name.clone(),
            epoch,
            listen: listen.clone(),
            started,
            started_wall: clock.wall(),
            chance,
            shards: shards.clone(),
            commands,
            driver: status,
            view: Arc::clone(&view),
            store: Arc::clone(&store) as Arc<dyn Store>,
            clock: Arc::clone(&clock),
            pulse: Arc::clone(&pulse),
            own_doubts,
            knobs: Arc::clone(&knobs),
            intervals: pacing::Shown::clone(&intervals),
            others,
            window_max: config.maintenance.window_max,
            canary: the_canary,
            delivery: Arc::clone(&delivery),
            rng: Mutex::new(StdRng::seed_from_u64(rng.random())),
        };
        let api = serve_api(
            &config,
            (token, TokenBook::load(&*store).await?, Arc::clone(&tls), Arc::clone(&enrolling)),
            running,
            &shards,
            delivery_metrics,
            api_listener,
            stopped.clone(),
        )?;
        let pacing = assigner.map(|assigner| Pacing {
            assigner,
            shards: shards.clone(),
            assigned,
            shown: intervals,
            clock: Arc::clone(&clock),
        });
        let mut background = vec![
            tokio::spawn(watchdog(shards.clone(), pulse, Arc::clone(&clock))),
            tokio::spawn(surroundings.watch()),
            tokio::spawn(drills.run()),
            tokio::spawn(tls::watch::watch(Arc::clone(&tls), Arc::clone(&clock))),
            tokio::spawn(prune(Arc::clone(&store), config.retention, Arc::clone(&clock))),
            tokio::spawn(memory::give_back_for_ever()),
        ];
        background.extend(pacing.map(|pacing| tokio::spawn(pacing.run())));
        for (receiver, every) in resend::receivers(&config.receivers) {
            let (delivery, view) = (Arc::clone(&delivery), Arc::clone(&view));
            background.push(tokio::spawn(resend::run(delivery, view, receiver, every)));
        }
        let addresses = Addresses { listen, api: api_addr };
        write_runtime_file(&config.state_dir, &addresses)?;
        warn_of_small_buffers(&shards);
        let shown: Vec<String> = addresses.listen.iter().map(ToString::to_string).collect();
        let counts = view.counts();
        log::info!(
            "ready: beats on UDP {}, API on https://{} (certificate's SHA-256 {}; plain HTTP from this \
             machine), {}, {}",
            shown.join(", "),
            addresses.api,
            tls.fingerprint(),
            words::count(counts.iter().sum(), "known host"),
            words::count(u64::from(count), "shard"),
        );
        daemon::ready(&format!("beats on {}", shown.join(", ")));
        Ok(Self {
            addresses,
            tls,
            enrolling,
            state_dir: config.state_dir,
            store,
            shards,
            threads,
            delivery,
            driver,
            stop,
            stop_driver,
            api,
            background,
        })
    }

    /// What SIGHUP has read anew.
    pub fn reloading(&self) -> Reloading {
        Reloading::new(Arc::clone(&self.tls), Arc::clone(&self.enrolling))
    }

    /// Waits until a part of the controller fails; never returns otherwise.
    pub async fn failed(&mut self) -> AppError {
        tokio::select! {
            ended = &mut self.driver => match ended {
                Ok(Err(e)) => AppError::Store(e),
                Ok(Ok(())) => AppError::System {
                    what: "go on: the policy ended",
                    source: io::Error::other("all shards are gone"),
                },
                Err(e) => AppError::System {
                    what: "go on: the policy died",
                    source: io::Error::other(e),
                },
            },
            ended = &mut self.api => AppError::System {
                what: "serve the API",
                source: ended.map_or_else(io::Error::other, |r| {
                    r.err().unwrap_or_else(|| io::Error::other("it ended"))
                }),
            },
        }
    }

    /// Stops in order.
    pub async fn stop(mut self) {
        daemon::stopping();
        let mut all_told = true;
        self.stop.send_replace(true);
        for task in &self.background {
            task.abort();
        }
        for (i, shard) in self.shards.iter().enumerate() {
            if shard.send(ShardCommand::Stop).is_err() {
                log::warn!("shard {i} takes no commands and is left behind");
                all_told = false;
            }
        }
        // While they tell the rest, the policy takes it.
        self.end_driver(all_told).await;
        if all_told {
            let threads = std::mem::take(&mut self.threads);
            let joined = tokio::task::spawn_blocking(move || {
                threads.into_iter().try_for_each(std::thread::JoinHandle::join)
            });
            match tokio::time::timeout(SHARDS_END_MAX, joined).await {
                Ok(Ok(Ok(()))) => {}
                _ => log::error!("a shard did not stop in order"),
            }
        }
        if !self.api.is_finished()
            && let Err(e) = (&mut self.api).await
        {
            log::error!("stopping: the API died: {e}");
        }
        self.delivery.shutdown(DELIVERY_END_MAX).await;
        self.store.shutdown().await;
        if let Err(e) = std::fs::remove_file(self.state_dir.join(RUNTIME_FILE)) {
            log::debug!("cannot remove {RUNTIME_FILE}: {e}");
        }
        log::info!("stopped");
    }

    /// The policy ends by itself when the shards are gone and all that they told is written: a goodbye
    /// that was heard a moment ago must not be forgotten, or the host is called down after the restart.
    async fn end_driver(&mut self, by_itself: bool) {
        if self.driver.is_finished() {
            return;
        }
        if !by_itself {
            self.stop_driver.send_replace(true);
        }
        match tokio::time::timeout(DRIVER_END_MAX, &mut self.driver).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(e))) => log::error!("stopping: {e}"),
            Ok(Err(e)) => log::error!("stopping: the policy died: {e}"),
            Err(_) => {
                log::error!("stopping: the policy did not end in time; it is left behind");
                self.driver.abort();
                // Not before it is gone does anybody who tells it something learn that.
                drop(tokio::time::timeout(SHARDS_END_MAX, &mut self.driver).await);
            }
        }
    }
}

fn make_private_dir(path: &Path) -> Result<(), AppError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| AppError::StateDir { path: path.to_owned(), source })
}

/// The operator's certificate, or one of our own.
fn open_tls(config: &Config, clock: &dyn Clock) -> Result<Tls, TlsError> {
    let (certificate, key) = match &config.api.files {
        Some(files) => files.clone(),
        None => tls::make::ensure(&config.state_dir, config.api_listen, clock.wall())?,
    };
    Tls::open(tls::Files { certificate, key, client_ca: config.api.client_ca_file.clone() })
}

fn shard_count(configured: u16) -> u16 {
    if configured > 0 {
        return configured;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(cores).unwrap_or(u16::MAX).min(64)
}

fn addresses_of(shards: &[Vec<BatchSocket>]) -> Result<Vec<SocketAddr>, AppError> {
    shards[0]
        .iter()
        .map(BatchSocket::local_addr)
        .collect::<io::Result<_>>()
        .map_err(|source| AppError::System { what: "read a socket's address", source })
}

/// Binds a probe socket where the beats are received: on the same address if there is only one kind.
fn bind_probes(listen: &[SocketAddr]) -> Result<BatchSocket, AppError> {
    let first = listen[0].ip();
    let ip = if listen.iter().all(|a| a.ip() == first) {
        first
    } else if listen.iter().all(SocketAddr::is_ipv4) {
        IpAddr::from([0, 0, 0, 0])
    } else {
        IpAddr::from(Ipv6Addr::UNSPECIFIED)
    };
    let address = SocketAddr::new(ip, 0);
    BatchSocket::bind(address, Role::Probes).map_err(|source| AppError::Listen {
        protocol: "UDP",
        address,
        source,
    })
}

fn listen_tcp(address: SocketAddr) -> Result<TcpListener, AppError> {
    let bind = || {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM,
            None,
        )?;
        // A restart must not wait for connections of the life before to time out.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        Ok(TcpListener::from(socket))
    };
    bind().map_err(|source| AppError::Listen { protocol: "TCP", address, source })
}

/// What a shard needs to know of its hosts, in pieces.
type KnownHosts = Vec<Vec<Known>>;

/// Hosts in such a piece: as many as make the allocator hand the memory back when they are registered.
const KNOWN_LEN: usize = 4_096;

/// Shows the registry to readers; answers what each shard needs to know. Row by row: at no time are more
/// than two pages of them in memory.
async fn load_registry(
    store: &dyn Store,
    view: &View,
    (domains, knobs): (&DomainLabels, &AllKnobs),
    policy: &mut Policy,
    clock: &dyn Clock,
    count: u16,
) -> Result<Vec<KnownHosts>, AppError> {
    let mut known: Vec<KnownHosts> = vec![Vec::new(); usize::from(count)];
    let (now, wall) = (clock.now(), clock.wall());
    let mut page = store.hosts(None, READ_LEN_MAX).await?;
    while let Some(last) = page.last() {
        // The next page is read while this one is taken.
        let next = store.hosts(Some(last.id), READ_LEN_MAX);
        let take = async {
            for row in &page {
                let shard = shard_of(row.id, count);
                let live = view.live().take(shard);
                view.upsert(row, Some(live));
                policy.register(row, now, wall);
                let pieces = &mut known[usize::from(shard)];
                if pieces.last().is_none_or(|piece| piece.len() == KNOWN_LEN) {
                    pieces.push(Vec::with_capacity(KNOWN_LEN));
                }
                let host = known_of(row, domains, knobs, wall, live);
                pieces.last_mut().expect("made just now").push(host);
            }
        };
        page = tokio::join!(next, take).0?;
    }
    Ok(known)
}

fn start_recording(
    plan: Option<record::Plan>,
    clock: &Arc<dyn Clock>,
    metrics: &Arc<ShardMetrics>,
) -> Result<Option<(record::Recorder, std::thread::JoinHandle<()>)>, AppError> {
    let Some(plan) = plan else { return Ok(None) };
    let path = plan.file.clone();
    record::start(plan, Arc::clone(clock), Arc::clone(metrics))
        .map(Some)
        .map_err(|source| AppError::Record { path, source })
}

/// Starts a shard's thread. It registers its hosts before it reads its first datagram, and gives them
/// their deadlines from then on: however long the registry took to load, none was spent.
fn spawn_shard(
    shard: u16,
    mut worker: Worker,
    known: KnownHosts,
) -> Result<std::thread::JoinHandle<()>, AppError> {
    let run = move || {
        let mut refused = 0;
        for piece in known {
            let now = worker.clock.now();
            let registered = piece.into_iter().map(|host| worker.core.register(host, now));
            refused += registered.filter(|done| !done).count();
        }
        if refused > 0 {
            log::error!("shard {shard} is full: {refused} known hosts are not watched");
        }
        // The time in which the registry was loaded is no pause of ours: nobody was judged yet.
        worker.core.begin(worker.clock.now());
        worker.run();
    };
    std::thread::Builder::new()
        .name(format!("shard-{shard}"))
        .spawn(run)
        .map_err(|source| AppError::System { what: "start a shard's thread", source })
}

fn serve_api(
    config: &Config,
    (token, tokens, tls, enrol): (ApiToken, TokenBook, Arc<Tls>, Arc<Enrolling>),
    running: Running,
    shards: &[ShardHandle],
    delivery: Arc<DeliveryMetrics>,
    listener: TcpListener,
    mut stopped: watch::Receiver<bool>,
) -> Result<tokio::task::JoinHandle<io::Result<()>>, AppError> {
    let state = ApiState {
        view: Arc::clone(&running.view),
        store: Arc::clone(&running.store),
        clock: Arc::clone(&running.clock),
        control: Arc::new(running),
        shards: shards.iter().map(|s| Arc::clone(&s.metrics)).collect(),
        delivery: Box::new(move || delivery_rows(&delivery)),
        enrol,
        token,
        tokens: Arc::new(tokens),
        loopback_reads: config.api.loopback_reads,
        names: HostNames::new(config.api_listen.ip(), config.api.host_names.iter().cloned()),
        tls: Some(Arc::clone(&tls)),
        config: config.into(),
        state_dir: config.state_dir.clone(),
    };
    let listener = tokio::net::TcpListener::from_std(listener)
        .map_err(|source| AppError::System { what: "serve the API", source })?;
    let shutdown = async move {
        // An error means that the sender is gone, which is a stop too.
        drop(stopped.wait_for(|s| *s).await);
    };
    Ok(tokio::spawn(api::serve(listener, Some(tls), api::router(state), shutdown)))
}

fn delivery_rows(metrics: &DeliveryMetrics) -> Vec<DeliveryMetricRow> {
    let row = |(receiver, c): (String, ReceiverCounts)| DeliveryMetricRow {
        receiver,
        attempts: c.attempts.iter().map(|(class, n)| (class.as_str(), *n)).collect(),
        retries: c.retries,
        delivered: c.delivered,
        dead: c.dead,
        in_flight: c.in_flight,
        breaker_open: c.breaker_open,
        resent: c.resent,
        resends_failed: c.resends_failed,
    };
    metrics.snapshot().into_iter().map(row).collect()
}

/// Feeds the service manager's watchdog as long as every shard makes progress.
async fn watchdog(shards: Vec<ShardHandle>, pulse: Arc<Pulse>, clock: Arc<dyn Clock>) {
    let period = daemon::watchdog_period().unwrap_or(Duration::from_secs(1));
    let mut tick = tokio::time::interval(period.min(Duration::from_secs(1)));
    loop {
        tick.tick().await;
        let stuck = pulse.stuck(&shards, clock.now());
        if stuck.is_empty() {
            if daemon::watchdog_period().is_some() {
                daemon::watchdog();
            }
        } else {
            log::error!("shards {stuck:?} make no progress; the watchdog is not fed");
        }
    }
}

async fn prune(store: Arc<SqliteStore>, retention: Retention, clock: Arc<dyn Clock>) {
    loop {
        // A bounded amount per call: go on until there is nothing more.
        loop {
            match store.prune(retention, clock.wall()).await {
                Ok(0) => break,
                Ok(rows) => log::debug!("{rows} rows are past their retention and gone"),
                Err(e) => {
                    log::warn!("cannot prune: {e}");
                    break;
                }
            }
        }
        if let Err(e) = store.slim().await {
            log::debug!("the store keeps its caches: {e}");
        }
        tokio::time::sleep(PRUNE_EVERY).await;
    }
}

fn write_runtime_file(state_dir: &Path, addresses: &Addresses) -> Result<(), AppError> {
    let text = serde_json::json!({
        "pid": std::process::id(),
        "listen": addresses.listen,
        "api": addresses.api,
    });
    let (path, staged) =
        (state_dir.join(RUNTIME_FILE), state_dir.join(format!("{RUNTIME_FILE}.new")));
    std::fs::write(&staged, format!("{text}\n"))
        .and_then(|()| std::fs::rename(&staged, &path))
        .map_err(|source| AppError::StateDir { path, source })
}

/// A default receive buffer holds some 250 beats: a burst of a small fleet overruns it.
fn warn_of_small_buffers(shards: &[ShardHandle]) {
    const WANTED: u64 = 4 << 20;
    let granted = shards.iter().map(|s| crate::metrics::get(&s.metrics.receive_buffer_bytes));
    if let Some(least) = granted.min().filter(|n| (1..WANTED).contains(n)) {
        log::warn!(
            "the kernel grants receive buffers of {least} bytes only: raise net.core.rmem_max"
        );
    }
}
