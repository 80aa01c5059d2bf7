//! How busy this host is, measured off the send path.
//!
//! Two threads of their own. One reads CPU and memory through `sysinfo` and the run queue, network
//! and pressure figures from `/proc` ([`proc`]), every [`PERIOD`]; that costs about 0.1 ms. The
//! other asks local file systems how full they are ([`disk`]), every [`DISK_PERIOD`]; a hung one
//! stops that thread alone. Each publishes under a lock that is never held while reading, so a beat
//! takes the latest sample in no time. A figure older than its limit, or one that could not be
//! read, is unknown; beats go on without it.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use heartwatch_common::load::{LoadSample, Share};
use heartwatch_common::time::{Clock, Instant};
use sysinfo::{MemoryRefreshKind, System};

pub mod disk;
pub mod proc;

/// Time between two samples.
pub const PERIOD: Duration = Duration::from_secs(2);
/// Time from the first sample to the second, which is the first to know rates: more than the 200 ms
/// that `sysinfo` needs.
pub const PERIOD_FIRST: Duration = Duration::from_millis(300);
/// A sample older than this no longer describes the host.
pub const SAMPLE_AGE_MAX: Duration = Duration::from_secs(20);
/// Time between two looks at the file systems.
pub const DISK_PERIOD: Duration = Duration::from_secs(15);
/// A disk figure older than this is unknown: some file system hangs.
pub const DISK_AGE_MAX: Duration = Duration::from_secs(60);

/// A value and when it was measured.
type Stamped<T> = Arc<Mutex<Option<(Instant, T)>>>;

fn publish<T>(slot: &Stamped<T>, now: Instant, value: T) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, value));
}

fn fresh<T: Copy>(slot: &Stamped<T>, now: Instant, age_max: Duration) -> Option<T> {
    let held = *slot.lock().unwrap_or_else(PoisonError::into_inner);
    held.filter(|(at, _)| now.since(*at) <= age_max).map(|(_, value)| value)
}

/// The running threads; they end when this is dropped.
#[derive(Debug)]
pub struct Sampler {
    load: Stamped<LoadSample>,
    disk: Stamped<Share>,
    /// Dropped to stop the threads.
    _stop: Vec<Sender<()>>,
}

impl Sampler {
    /// Starts both threads. A thread that cannot be started costs its figures and a warning.
    /// `root` is where `proc` is mounted below: `/` but for tests.
    pub fn start(root: &Path, clock: Arc<dyn Clock>) -> Self {
        let load = Stamped::default();
        let disk = Stamped::default();
        let stop = [
            spawn("load", {
                let (slot, clock, root) = (Arc::clone(&load), Arc::clone(&clock), root.to_owned());
                move |stop| run_load(&slot, &*clock, root, stop)
            }),
            spawn("disk", {
                let (slot, root) = (Arc::clone(&disk), root.to_owned());
                move |stop| run_disk(&slot, &*clock, &root, stop)
            }),
        ];
        Self { load, disk, _stop: stop.into_iter().flatten().collect() }
    }

    /// The latest sample; what is too old at `now` is unknown. Never waits for a measurement. `now`
    /// is of the clock that `start` got, and its [`Clock::now`].
    pub fn latest(&self, now: Instant) -> LoadSample {
        let load = fresh(&self.load, now, SAMPLE_AGE_MAX).unwrap_or(LoadSample::UNKNOWN);
        let disk_used = fresh(&self.disk, now, DISK_AGE_MAX).unwrap_or(Share::UNKNOWN);
        LoadSample { disk_used, ..load }
    }
}

fn spawn(name: &str, body: impl FnOnce(&Receiver<()>) + Send + 'static) -> Option<Sender<()>> {
    let (stop, stopped) = channel();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || body(&stopped));
    match thread {
        Ok(_) => Some(stop),
        Err(e) => {
            log::warn!("cannot start the {name} sampler, beats go without its figures: {e}");
            None
        }
    }
}

/// Waits; `false` once the sampler was dropped.
fn wait(stopped: &Receiver<()>, period: Duration) -> bool {
    matches!(stopped.recv_timeout(period), Err(RecvTimeoutError::Timeout))
}

fn run_load(slot: &Stamped<LoadSample>, clock: &dyn Clock, root: PathBuf, stop: &Receiver<()>) {
    let mut meter = Meter::new(root);
    let mut period = PERIOD_FIRST;
    loop {
        let sample = meter.measure(clock.now());
        publish(slot, clock.now(), sample);
        if !wait(stop, period) {
            return;
        }
        period = PERIOD;
    }
}

fn run_disk(slot: &Stamped<Share>, clock: &dyn Clock, root: &Path, stop: &Receiver<()>) {
    loop {
        let share = disk::fullest(root);
        publish(slot, clock.now(), share);
        if !wait(stop, DISK_PERIOD) {
            return;
        }
    }
}

/// Reads everything but the disks.
struct Meter {
    root: PathBuf,
    system: Option<System>,
    /// CPU time is a difference: the first reading has nothing to compare with.
    has_cpu: bool,
    queue: proc::RunQueue,
    network: proc::Network,
}

impl Meter {
    fn new(root: PathBuf) -> Self {
        let system = match System::new() {
            Ok(system) => Some(system),
            Err(e) => {
                log::warn!("no CPU and memory figures on this system: {e}");
                None
            }
        };
        let (queue, network) = (proc::RunQueue::default(), proc::Network::default());
        Self { root, system, has_cpu: false, queue, network }
    }

    fn measure(&mut self, now: Instant) -> LoadSample {
        let mut sample = LoadSample::UNKNOWN;
        let mut cores = 0;
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram().with_swap());
            cores = system.cpus().len();
            if self.has_cpu && cores > 0 {
                sample.cpu_busy = Share::from_ratio(f64::from(system.global_cpu_usage()) / 100.0);
            }
            self.has_cpu = true;
            let (whole, free) = (system.total_memory(), system.available_memory());
            sample.memory_used = Share::of(whole.saturating_sub(free), whole);
            sample.swap_used = Share::of(system.used_swap(), system.total_swap());
        }
        let read = |path: &str| proc::read(&self.root.join(path)).ok();
        let psi = |path: &str| {
            read(path).and_then(|text| proc::psi_some_avg10(&text)).unwrap_or(Share::UNKNOWN)
        };
        sample.psi_cpu = psi("proc/pressure/cpu");
        sample.psi_memory = psi("proc/pressure/memory");
        sample.psi_io = psi("proc/pressure/io");
        let runnable = read("proc/loadavg").and_then(|text| proc::runnable(&text));
        sample.run_queue_centi = self.queue.observe(runnable, cores);
        let counters = read("proc/net/dev").map(|text| proc::interfaces(&text));
        sample.network_kib_per_s = self.network.observe(counters, now);
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heartwatch_common::time::{ManualClock, SystemClock, Wall};

    #[test]
    fn old_figures_become_unknown_each_by_its_own_limit() {
        let sampler =
            Sampler { load: Stamped::default(), disk: Stamped::default(), _stop: Vec::new() };
        let start = Instant::from_millis(1_000_000);
        assert_eq!(sampler.latest(start), LoadSample::UNKNOWN);
        let half = Share::from_ratio(0.5);
        publish(&sampler.load, start, LoadSample { cpu_busy: half, ..LoadSample::UNKNOWN });
        publish(&sampler.disk, start, half);
        let both = sampler.latest(start + SAMPLE_AGE_MAX);
        assert_eq!((both.cpu_busy, both.disk_used), (half, half));
        let stalled = sampler.latest(start + DISK_AGE_MAX);
        assert_eq!((stalled.cpu_busy, stalled.disk_used), (Share::UNKNOWN, half));
        let hung = sampler.latest(start + DISK_AGE_MAX + Duration::from_millis(1));
        assert_eq!(hung, LoadSample::UNKNOWN);
    }

    #[test]
    fn this_machine_has_figures_and_none_is_out_of_bounds() {
        let mut meter = Meter::new(PathBuf::from("/"));
        let sample = meter.measure(SystemClock.now());
        assert_eq!(sample.cpu_busy, Share::UNKNOWN, "a share of no time is unknown");
        assert!(sample.memory_used.ratio().is_some_and(|r| r > 0.0 && r < 1.0));
        assert!(sample.run_queue_centi < u16::MAX);
    }

    #[test]
    fn where_there_is_no_proc_beats_go_without_its_figures() {
        let dir = tempfile::tempdir().unwrap();
        let mut meter = Meter::new(dir.path().to_owned());
        let sample = meter.measure(Instant::from_millis(1));
        assert_eq!((sample.psi_cpu, sample.psi_io), (Share::UNKNOWN, Share::UNKNOWN));
        assert_eq!((sample.run_queue_centi, sample.network_kib_per_s), (u16::MAX, u32::MAX));
    }

    #[test]
    fn the_threads_publish_and_end_with_their_owner() {
        let clock = Arc::new(ManualClock::new(Instant::from_millis(5), Wall(0)));
        let slot = Stamped::default();
        let (stop, stopped) = channel();
        drop(stop);
        run_load(&slot, &*clock, PathBuf::from("/"), &stopped);
        assert!(fresh(&slot, clock.now(), SAMPLE_AGE_MAX).is_some());
        let slot = Stamped::default();
        run_disk(&slot, &*clock, Path::new("/"), &stopped);
        assert!(fresh(&slot, clock.now(), DISK_AGE_MAX).is_some());
    }
}
