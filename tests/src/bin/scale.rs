//! The controller's control plane at the size of a large fleet: what its registry, journal and start cost.
//!
//! No beats are sent: this is what stands around the shards.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use heartwatch_common::id::{Boot, ControllerId, Generation, HostId};
use heartwatch_common::load::{LoadSample, Share};
use heartwatch_common::time::{Clock, Instant, SystemClock, Wall};
use heartwatch_controller::config::{RawConfig, Rule};
use heartwatch_controller::delivery::Delivery;
use heartwatch_controller::delivery::metrics::DeliveryMetrics;
use heartwatch_controller::detector::host::{Evidence, Transition, Turn};
use heartwatch_controller::event::{Cause, EventKind, State};
use heartwatch_controller::policy::driver::{self, Driver, DriverStatus};
use heartwatch_controller::policy::{Author, Policy};
use heartwatch_controller::shard::notices::{Facts, Notice};
use heartwatch_controller::store::sqlite::SqliteStore;
use heartwatch_controller::store::{HostRow, READ_LEN_MAX, Store};
use heartwatch_controller::view::{Filter, Lesson, View};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

#[derive(Parser)]
#[command(name = "heartwatch-scale", version)]
/// Measures what a large fleet costs around the shards; prints one JSON line.
struct Cli {
    #[command(subcommand)]
    what: What,
    /// Hosts of the fleet.
    #[arg(long, default_value_t = 1_000_000, global = true)]
    hosts: u32,
    /// Print the JSON line only.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum What {
    /// The registry that readers see: memory, pages, candidates, while rows change all the time.
    View,
    /// Hellos of a whole fleet, then a tenth of it down, through the policy into the journal.
    Storm {
        /// Directory for the store; a new one is made there and removed.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Fills a state directory with a fleet that is alive, for a controller to be started on; then loads it.
    Fill {
        /// The state directory.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let scale = Scale { hosts: cli.hosts, quiet: cli.json };
    let run = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let line = match cli.what {
        What::View => scale.view(),
        What::Storm { dir } => run()?.block_on(scale.storm(&dir))?,
        What::Fill { dir } => run()?.block_on(scale.fill(&dir))?,
    };
    println!("{line}");
    Ok(())
}

struct Scale {
    hosts: u32,
    quiet: bool,
}

/// A host of a fleet of racks of forty in four zones, with some roles.
fn row(n: u32, state: State) -> HostRow {
    let rack = n / 40;
    let labels = [
        ("zone", format!("zone-{}", rack % 4)),
        ("rack", format!("rack-{rack:05}")),
        ("role", ["web", "db", "cache", "batch"][(n % 4) as usize].to_owned()),
    ];
    HostRow {
        id: host_id(n),
        name: format!("host-{n:07}.rack-{rack:05}.example.org"),
        labels: labels.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        os: "Linux 6.12.0-1-amd64".to_owned(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        state,
        cause: None,
        boot: Boot(1),
        generation: Generation(0),
        address: Some(address(n)),
        first_seen: Wall(1_700_000_000_000 + i64::from(n)),
        since: Wall(1_700_000_000_000 + i64::from(n)),
        incident: None,
        duplicate: false,
        frozen_ms: None,
        back_by: None,
    }
}

fn host_id(n: u32) -> HostId {
    let hash = blake3::hash(&n.to_be_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&hash.as_bytes()[..16]);
    HostId(id)
}

fn address(n: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(0x0A00_0000 | n & 0x00FF_FFFF), 40_000))
}

/// Resident memory of this process, bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1_024
}

/// Median and 99th percentile of `runs` runs, milliseconds.
fn timed(runs: usize, mut work: impl FnMut()) -> Value {
    let clock = SystemClock;
    let mut took: Vec<Duration> = Vec::with_capacity(runs);
    for _ in 0..runs {
        let from = clock.now();
        work();
        took.push(clock.now().since(from));
    }
    took.sort();
    let ms = |d: Duration| (d.as_secs_f64() * 1e6).round() / 1e3;
    json!({ "median_ms": ms(took[runs / 2]), "p99_ms": ms(took[runs * 99 / 100]) })
}

impl Scale {
    fn tell(&self, text: &str) {
        if !self.quiet {
            println!("{text}");
        }
    }

    fn view(&self) -> Value {
        let clock = SystemClock;
        let view = Arc::new(View::default());
        let before = resident();
        let from = clock.now();
        for n in 0..self.hosts {
            let live = view.live().take(0);
            let load = LoadSample {
                cpu_busy: Share::from_byte((n % 250) as u8),
                memory_used: Share::from_byte(0),
                run_queue_centi: 0,
                ..LoadSample::UNKNOWN
            };
            let at = Instant(u64::from(n) + 1);
            view.live().beat(live, at, 1_000_000, Some(&load), &Lesson::default());
            view.upsert(row(n, State::Alive), Some(live));
        }
        let filled = clock.now().since(from);
        let bytes = (resident() - before) as f64 / f64::from(self.hosts);
        self.tell(&format!("{} hosts in {filled:.2?}, {bytes:.1} B resident each", self.hosts));
        let stop = Arc::new(AtomicBool::new(false));
        let writer = {
            let (view, stop, hosts) = (Arc::clone(&view), Arc::clone(&stop), self.hosts);
            std::thread::spawn(move || change(&view, hosts, &stop))
        };
        let pages = self.pages(&view);
        let failed = row(5, State::Down);
        let mut seed = 0;
        let mut pool = |same: &[&str]| {
            let same: Vec<String> = same.iter().map(|s| (*s).to_owned()).collect();
            let one = timed(2_000, || {
                seed += 1;
                view.pool(&failed, &same, 128, seed, |id, live| {
                    std::hint::black_box((id, live));
                });
            });
            self.tell(&format!("candidates, same {same:?}: {one}"));
            one
        };
        let pools = json!({ "any": pool(&[]), "zone": pool(&["zone"]), "rack": pool(&["rack"]) });
        stop.store(true, Ordering::Relaxed);
        let (changes, longest) = writer.join().unwrap_or_default();
        self.tell(&format!("{changes} rows changed meanwhile, the slowest in {longest:.2?}"));
        json!({
            "scale": "view",
            "hosts": self.hosts,
            "bytes_per_host": bytes,
            "fill_s": filled.as_secs_f64(),
            "pages": pages,
            "candidates": pools,
            "changes": changes,
            "change_max_ms": longest.as_secs_f64() * 1e3,
        })
    }

    fn pages(&self, view: &View) -> Value {
        let label = |k: &str, v: &str| BTreeMap::from([(k.to_owned(), v.to_owned())]);
        let rack = format!("rack-{:05}", self.hosts / 40 - 1);
        let name = format!("{:07}", self.hosts - 1);
        let filters = [
            ("all", Filter::default()),
            ("down", Filter { states: vec![State::Down], ..Filter::default() }),
            ("last_rack", Filter { labels: label("rack", &rack), ..Filter::default() }),
            ("role", Filter { labels: label("role", "db"), ..Filter::default() }),
            ("unknown_label", Filter { labels: label("role", "none"), ..Filter::default() }),
            ("last_name", Filter { name_contains: Some(name.clone()), ..Filter::default() }),
        ];
        let mut all = serde_json::Map::new();
        for (what, filter) in filters {
            let (found, _) = view.list(&filter, 0, 100);
            let one = timed(200, || {
                std::hint::black_box(view.list(&filter, 0, 100));
            });
            self.tell(&format!("page `{what}` ({} rows): {one}", found.len()));
            all.insert(what.to_owned(), one);
        }
        let last = row(self.hosts - 1, State::Alive).name;
        let one = timed(200, || {
            std::hint::black_box(view.by_name(&last));
        });
        self.tell(&format!("by name: {one}"));
        all.insert("by_name".to_owned(), one);
        all.into()
    }

    fn open(dir: &Path) -> anyhow::Result<Arc<SqliteStore>> {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Arc::new(SqliteStore::open(dir, ControllerId(1))?))
    }

    async fn fill(&self, dir: &Path) -> anyhow::Result<Value> {
        let clock = SystemClock;
        let store = Self::open(dir)?;
        let from = clock.now();
        let mut batch = Vec::new();
        for n in 0..self.hosts {
            batch.push(row(n, State::Alive));
            if batch.len() == READ_LEN_MAX || n + 1 == self.hosts {
                store.save_hosts(std::mem::take(&mut batch)).await?;
            }
        }
        let wrote = clock.now().since(from);
        store.shutdown().await;
        drop(store);
        self.tell(&format!("{} hosts written in {wrote:.2?}", self.hosts));
        Ok(json!({ "scale": "fill", "hosts": self.hosts, "write_s": wrote.as_secs_f64() }))
    }

    async fn storm(&self, dir: &Path) -> anyhow::Result<Value> {
        let dir = tempfile::tempdir_in(dir)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let store = Self::open(dir.path())?;
        let view = Arc::new(View::default());
        let status = Arc::new(DriverStatus::default());
        let (notices, notices_in) = mpsc::channel(driver::NOTICES_MAX);
        let (_commands, commands_in) = mpsc::channel(driver::COMMANDS_MAX);
        let (_stop, stopped) = watch::channel(false);
        let driver = self.driver(&clock, &store, &view, &status)?;
        let driver = tokio::spawn(driver.run(notices_in, commands_in, stopped, None));
        let before = resident();

        let from = clock.now();
        for n in 0..self.hosts {
            notices.send(Notice::Facts(Box::new(facts(n, &view)))).await?;
        }
        self.written(&status).await;
        let hellos = clock.now().since(from);
        let memory = resident().saturating_sub(before) as f64 / f64::from(self.hosts);
        let rate = f64::from(self.hosts) / hellos.as_secs_f64();
        self.tell(&format!("hellos: {rate:.0}/s, {memory:.0} B resident a host"));

        let from = clock.now();
        for n in 0..self.hosts {
            notices.send(turn(n, Turn::Joined, State::Alive, clock.now())).await?;
        }
        self.written(&status).await;
        let joins = f64::from(self.hosts) / clock.now().since(from).as_secs_f64();
        self.tell(&format!("joins journaled: {joins:.0}/s"));

        let downs = (self.hosts / 10).max(1);
        let from = clock.now();
        for n in 0..downs {
            notices.send(turn(n, Turn::Down(Cause::Silent), State::Down, clock.now())).await?;
        }
        let taken = clock.now().since(from);
        self.written(&status).await;
        let down_rate = f64::from(downs) / clock.now().since(from).as_secs_f64();
        self.tell(&format!("downs journaled: {down_rate:.0}/s (all taken after {taken:.2?})"));
        drop(notices);
        driver.await??;
        store.shutdown().await;
        Ok(json!({
            "scale": "storm",
            "hosts": self.hosts,
            "hellos_per_s": rate,
            "joins_per_s": joins,
            "downs_per_s": down_rate,
            "bytes_per_host": memory,
            "rss_mib": resident() as f64 / f64::from(1 << 20),
        }))
    }

    /// Waits until all that was decided is journaled.
    async fn written(&self, status: &DriverStatus) {
        let mut calm = 0;
        while calm < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            calm = if status.waiting() == 0 { calm + 1 } else { 0 };
        }
    }

    fn driver(
        &self,
        clock: &Arc<dyn Clock>,
        store: &Arc<SqliteStore>,
        view: &Arc<View>,
        status: &Arc<DriverStatus>,
    ) -> anyhow::Result<Driver> {
        let config = RawConfig::default().check()?;
        let rule = Rule {
            name: "failover".to_owned(),
            events: [EventKind::HostDown].into_iter().collect(),
            candidates_same: vec!["zone".to_owned()],
            ..Rule::default()
        };
        let none = BTreeMap::new();
        let store = Arc::clone(store) as Arc<dyn Store>;
        let metrics = Arc::new(DeliveryMetrics::new(none.keys()));
        let delivery =
            Delivery::spawn(Arc::clone(&store), none.clone(), Arc::clone(clock), 1, metrics)?;
        let author = Author { id: ControllerId(1), name: "scale".to_owned() };
        Ok(Driver {
            policy: Policy::new(author, vec![rule]),
            view: Arc::clone(view),
            store,
            delivery: Arc::new(delivery),
            shards: Vec::new(),
            domains: config.domain_labels,
            clock: Arc::clone(clock),
            seed: 1,
            release_at: Instant::FAR,
            status: Arc::clone(status),
            knobs: Arc::new(config.knobs),
            news: heartwatch_controller::delivery::News::new(1),
            announced_max: Duration::ZERO,
            canary: Arc::default(),
        })
    }
}

fn facts(n: u32, view: &View) -> Facts {
    let row = row(n, State::Pending);
    Facts {
        host: row.id,
        name: row.name,
        labels: row.labels,
        os: row.os,
        agent_version: row.agent_version,
        address: address(n),
        boot: Boot(1),
        generation: Generation(0),
        maintenance: None,
        new: true,
        live: view.live().take(0),
    }
}

fn turn(n: u32, turn: Turn, state: State, at: Instant) -> Notice {
    Notice::Turn(Transition {
        host: host_id(n),
        turn,
        state,
        boot: Boot(1),
        address: Some(address(n)),
        at,
        duplicate: false,
        evidence: Evidence { silence_ms: 2_000, margin_source: "learned", ..Evidence::default() },
    })
}

/// Changes rows, as fast as a busy journal would, until told to stop; answers how many, and the longest
/// time that one took.
fn change(view: &View, hosts: u32, stop: &AtomicBool) -> (u64, Duration) {
    let clock = SystemClock;
    let (mut changes, mut longest) = (0u64, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let n = (changes.wrapping_mul(7_919) % u64::from(hosts)) as u32;
        let row = row(n, if changes % 3 == 0 { State::Suspect } else { State::Alive });
        let from = clock.now();
        view.upsert(&row, None);
        longest = longest.max(clock.now().since(from));
        changes += 1;
        if changes % 64 == 0 {
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
    (changes, longest)
}
