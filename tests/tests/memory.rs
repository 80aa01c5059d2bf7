//! Where a host's bytes are: an account by structure, as the allocator is asked for them, which no machine's
//! state changes. `cargo xtask bench memory` measures the whole; this holds the parts, so that whoever adds
//! to a record sees what it costs a million hosts.
//!
//! What is not in it: code (some 15 MB), caches of the store, buffers of sockets, stacks, and what the
//! allocator keeps free.
#![expect(unsafe_code, reason = "an allocator that counts can't be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use heartwatch_common::auth::{FleetSecret, HostKey, Keyring};
use heartwatch_common::id::{Boot, ControllerId, Epoch, Generation, KeyId, Seq};
use heartwatch_common::load::{LoadSample, Share};
use heartwatch_common::time::{Instant, Wall};
use heartwatch_common::wire::{Beat, Header, RoundTrip, Stamp};
use heartwatch_controller::config::RawConfig;
use heartwatch_controller::detector;
use heartwatch_controller::event::State;
use heartwatch_controller::ingest::socket::BATCH_LEN;
use heartwatch_controller::intervals::Assigned;
use heartwatch_controller::metrics::{Reject, ShardMetrics, get};
use heartwatch_controller::policy::driver::known_of;
use heartwatch_controller::policy::new_row;
use heartwatch_controller::shard::core::{Identity, Send, ShardCore, Via};
use heartwatch_controller::store::HostRow;
use heartwatch_controller::view::View;
use heartwatch_tests::fleet::{MassFacts, mass_id};

/// Hosts of the one shard: two whole chunks of records, so that none stands half empty.
const HOSTS: usize = 262_144;
/// Beats of each, a second apart: from then on as many are filed as are passed over.
const ROUNDS: u32 = 8;
const EPOCH: Epoch = Epoch(77);
const KEY: KeyId = KeyId(1);

/// Bytes a host, at most: what was measured, and two in a hundred. Whoever makes one less lowers it here.
const BOUNDS: [(&str, f64); 5] = [
    ("rows of the registry", 62.3),
    ("index of the registry", 6.5),
    ("sets of labels and their members", 12.1),
    ("texts of names and labels", 1.0),
    ("records and live cells", 261.2),
];
/// The rest of the shard's part, all together: index, rows of deadlines. The allocator that counts does not
/// see records: they stand with the cells, in memory of their own.
const SHARD_BOUND: f64 = 34.8;

/// The system's allocator, and how many bytes are allocated: as the C library rounds them, its own head of
/// each piece included; large ones to the page.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);
/// From so many bytes on a piece is mapped by itself.
const MAPPED: usize = 256 << 10;

fn taken(size: usize) -> usize {
    if size >= MAPPED {
        (size + 16).next_multiple_of(4_096)
    } else {
        (size + 8).next_multiple_of(16).max(32)
    }
}

// SAFETY: every call is passed on as it came; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(taken(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller keeps the same promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(taken(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller keeps the same promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        BYTES.fetch_add(taken(size), Ordering::Relaxed);
        BYTES.fetch_sub(taken(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller keeps the same promises.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.fetch_sub(taken(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller keeps the same promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocated() -> usize {
    BYTES.load(Ordering::Relaxed)
}

fn address(n: usize) -> SocketAddr {
    ([127, 0, 0, 1], 40_000 + (n % 16) as u16).into()
}

/// The row of host number `n` in its first boot, as in `bench memory`.
fn row(n: usize) -> HostRow {
    let facts = MassFacts::of(n);
    let labels = facts.labels().map(|(k, v)| (k.to_owned(), v.to_owned()));
    HostRow {
        labels: labels.into(),
        name: facts.name,
        os: MassFacts::OS.into(),
        agent_version: MassFacts::AGENT_VERSION.into(),
        state: State::Alive,
        boot: Boot(1),
        address: Some(address(n)),
        ..new_row(mass_id(n), Wall(1_800_000_000_000))
    }
}

struct Shard {
    core: ShardCore,
    keys: Vec<HostKey>,
    metrics: Arc<ShardMetrics>,
}

impl Shard {
    /// A beat of each host, spread over the time `span` that begins at `begin`, after which it beats again.
    fn round(&mut self, round: u32, begin: Instant, span: Duration) {
        let mut out = Vec::new();
        for first in (0..HOSTS).step_by(BATCH_LEN) {
            let now = begin + span.mul_f64(first as f64 / HOSTS as f64);
            for n in first..HOSTS.min(first + BATCH_LEN) {
                if round == 0 {
                    // It does not know of our start: it is challenged, and learns the epoch.
                    self.beat(n, Seq(0), Epoch(0), now, span, &mut out);
                }
                self.beat(n, Seq(round + 1), EPOCH, now, span, &mut out);
            }
            self.core.judge(now, now, now, &mut out);
            out.clear();
            while self.core.notices().pop().is_some() {}
        }
    }

    fn beat(
        &mut self,
        n: usize,
        seq: Seq,
        epoch: Epoch,
        now: Instant,
        gap: Duration,
        out: &mut Vec<Send>,
    ) {
        let load = LoadSample { cpu_busy: Share::from_ratio(0.3), ..LoadSample::UNKNOWN };
        let stamp = Stamp { boot: Boot(1), seq, sent: now, gap, epoch };
        let header = Header { host: mass_id(n), key_id: KEY, generation: Generation(0), flags: 0 };
        let round_trip = RoundTrip::new(Duration::from_micros(700));
        let mut bytes = Beat { stamp, late_ms: 0, checks: 0, load, round_trip }.encode(&header);
        self.keys[n].seal(&mut bytes);
        self.core.receive(&bytes, address(n), Via::Beats(0), now, now, out);
    }
}

#[test]
fn a_host_takes_no_more_bytes_than_the_account_says() {
    let config = RawConfig::default().check().unwrap();
    let secret = FleetSecret::new(KEY, [9; 32]);
    let keys = (0..HOSTS).map(|n| secret.host_key(mass_id(n), Generation(0))).collect();
    let per_host = |bytes: usize| bytes as f64 / HOSTS as f64;

    let before = allocated();
    let view = View::default();
    let live: Vec<_> = (0..HOSTS).map(|_| view.live().take(0)).collect();
    let cells = allocated() - before - live.capacity() * 4;
    (0..HOSTS).zip(&live).for_each(|(n, live)| view.upsert(row(n), Some(*live)));
    let registry = allocated() - before - live.capacity() * 4 - cells;
    let bytes = view.bytes();
    let said = bytes.rows + bytes.ids + bytes.sets + bytes.texts;
    println!(
        "the registry: {:.1} bytes a host, as it says {:.1}",
        per_host(registry),
        per_host(said)
    );
    assert!(registry.abs_diff(said) < registry / 20, "the registry takes more than it says");

    let metrics = Arc::new(ShardMetrics::default());
    let assigned = Assigned::fixed(config.detector.interval, config.detector.ack_every);
    let identity = Identity {
        shard: 0,
        controller: ControllerId(1),
        epoch: EPOCH,
        keyring: Keyring::new(vec![secret]).unwrap(),
        enrolled: Arc::default(),
        assigned: Arc::new(assigned.watching(config.watch)),
        knobs: Arc::new(config.knobs.clone()),
        domains: config.domain_labels.clone(),
        live: Arc::clone(view.live()),
        seed: 1,
    };
    // Time for all to be challenged.
    let restart_grace = Duration::from_secs(60);
    let settings =
        detector::Settings { restart_grace, ..detector::Settings::new(&config.detector) };
    let begin = Instant::from_millis(1_000_000);
    let before = allocated();
    let core = ShardCore::new(identity, settings, Arc::clone(&metrics), begin);
    let mut shard = Shard { core, keys, metrics };
    for (n, live) in (0..HOSTS).zip(live) {
        let row = row(n);
        let known = known_of(&row, &config.domain_labels, &config.knobs, row.since, live);
        assert!(shard.core.register(known, begin));
    }
    shard.core.begin(begin);
    let registered = allocated() - before;
    // As many challenges a second as a shard sends.
    let (greeting, second) = (Duration::from_secs(10), Duration::from_secs(1));
    shard.round(0, begin, greeting);
    (1..ROUNDS).for_each(|n| shard.round(n, begin + greeting + second * (n - 1), second));
    let beating = allocated() - before;
    for why in Reject::ALL {
        let n = get(&shard.metrics.rejects[why as usize]);
        let wanted = if why == Reject::WrongEpoch { HOSTS as u64 } else { 0 };
        assert_eq!(n, wanted, "rejected: {}", why.as_str());
    }
    assert_eq!(
        get(&shard.metrics.beats),
        HOSTS as u64 * u64::from(ROUNDS),
        "every beat proved life"
    );
    println!(
        "the shard: {:.1} bytes a host once they are registered, {:.1} when they beat",
        per_host(registered),
        per_host(beating)
    );

    let parts = [bytes.rows, bytes.ids, bytes.sets, bytes.texts, bytes.live].map(per_host);
    for ((what, bound), measured) in BOUNDS.iter().zip(parts) {
        println!("{measured:>6.1} bytes a host: {what}");
        assert!(measured <= *bound, "{what}: {measured:.1} bytes a host, more than {bound}");
    }
    let measured = per_host(beating);
    assert!(
        measured <= SHARD_BOUND,
        "the shard: {measured:.1} bytes a host, more than {SHARD_BOUND}"
    );
    println!("{:>6.1} bytes a host in all", parts.iter().sum::<f64>() + measured);
}
