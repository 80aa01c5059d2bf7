//! `structures`: who is overdue? Six ways to keep a million deadlines, on the same streams of beats.
//!
//! Ours are the segmented LRU [`rows`]; the others are what is commonly used: a full [`scan`], a binary
//! [`heap`] (what a delay queue is), and a hierarchical timing [`wheel`] (Varghese and Lauck, 1987). Each
//! but the scan is measured twice: filing a host again at every beat (`…_each`), and only when it is looked
//! at because the time it was filed under has come. The product does the latter.
//!
//! Costs are CPU time of this thread, so that another process on the machine costs a measurement its cache,
//! but not its meaning. Compare within one run.

use std::time::Duration;

use anyhow::Result;
use heartwatch_common::time::Instant;
use nix::time::{ClockId, clock_gettime};

use super::{Context, Figures, median};
use stream::Stream;

mod heap;
mod rows;
mod scan;
mod stream;
#[cfg(test)]
mod tests;
mod wheel;

/// Keeps deadlines of slots.
trait Deadlines {
    /// A beat: the slot is due at `deadline` and no sooner. Time does not go back.
    fn beat(&mut self, slot: u32, deadline: Instant, now: Instant);
    /// Takes out every slot that is due at `now` or was before, in any order.
    fn expire(&mut self, now: Instant, out: &mut Vec<u32>);
    /// Bytes that it holds, its deadlines included.
    fn bytes(&self) -> usize;
}

/// When a slot whose deadline has moved is filed anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refile {
    AtEveryBeat,
    WhenLookedAt,
}

type Make = fn() -> Box<dyn Deadlines>;

/// What is compared: ours first.
const CONTESTANTS: [(&str, Make); 7] = [
    ("rows", || Box::new(rows::LruRows::new(Refile::WhenLookedAt))),
    ("rows_each", || Box::new(rows::LruRows::new(Refile::AtEveryBeat))),
    ("wheel", || Box::new(wheel::Wheel::new(Refile::WhenLookedAt))),
    ("wheel_each", || Box::new(wheel::Wheel::new(Refile::AtEveryBeat))),
    ("heap", || Box::new(heap::Heap::new(Refile::WhenLookedAt))),
    ("heap_each", || Box::new(heap::Heap::new(Refile::AtEveryBeat))),
    ("scan", || Box::new(scan::Scan::default())),
];

/// Hosts, and how the figures call that.
pub(super) const SIZES: [(usize, &str); 4] =
    [(10_000, "10k"), (100_000, "100k"), (1_000_000, "1m"), (4_000_000, "4m")];
/// A sweep comes once in this time.
const SWEEP_EVERY: Duration = Duration::from_millis(10);
/// Seconds of beats before anything is measured.
const WARM_UP_S: u64 = 3;
/// Of more hosts than this one run is enough, whatever `runs` says of the others: it takes minutes.
const ONCE_FROM: usize = 1_000_000;
/// Beats that are measured, at least: small fleets are measured for longer.
const BEATS_MIN: u64 = 2_000_000;

/// What one run came to.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// Of a beat, nanoseconds.
    beat_ns: f64,
    /// Of all sweeps, per beat, nanoseconds.
    sweep_ns: f64,
    /// Of one sweep, mean, microseconds.
    sweep_us: f64,
    /// Longest single sweep, or hundredth of a second of beats beyond the mean, when a tenth of the fleet
    /// falls silent at once, microseconds.
    pause_us: f64,
    /// Memory, its deadlines included, bytes per host.
    bytes: f64,
}

/// CPU time of this thread.
fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// What reading the clock twice costs.
fn clock_cost() -> Duration {
    let begin = cpu();
    (0..999).for_each(|_| {
        std::hint::black_box(cpu());
    });
    cpu().saturating_sub(begin) / 1_000
}

fn measure(make: Make, hosts: usize, beats_min: u64) -> Cost {
    let mut kept = make();
    let mut stream = Stream::new(hosts);
    let own = clock_cost();
    let (mut block, mut out) = (Vec::new(), Vec::new());
    let mut step = |kept: &mut dyn Deadlines, stream: &mut Stream, out: &mut Vec<u32>| {
        stream.block(SWEEP_EVERY, &mut block);
        let begin = cpu();
        for beat in &block {
            kept.beat(beat.slot, beat.deadline, beat.at);
        }
        let middle = cpu();
        kept.expire(stream.now(), out);
        let end = cpu();
        let less = |span: Duration| span.saturating_sub(own).as_secs_f64() * 1e9;
        (block.len() as u64, less(middle - begin), less(end - middle))
    };
    let sweeps_a_second = Duration::from_secs(1).as_millis() / SWEEP_EVERY.as_millis();
    for _ in 0..WARM_UP_S as u128 * sweeps_a_second {
        step(&mut *kept, &mut stream, &mut out);
    }
    assert!(out.is_empty(), "everybody beats in time");
    let (mut beats, mut sweeps) = (0u64, 0u64);
    let (mut beat_ns, mut sweep_ns) = (0.0, 0.0);
    while beats < beats_min.max(hosts as u64) {
        let (n, beat, sweep) = step(&mut *kept, &mut stream, &mut out);
        beats += n;
        sweeps += 1;
        beat_ns += beat;
        sweep_ns += sweep;
    }
    let bytes = kept.bytes() as f64 / hosts as f64;
    // A tenth falls silent at the same moment.
    stream.silence_a_tenth();
    let mut pause_ns = 0f64;
    // The longest timeout is a little over three seconds.
    for _ in 0..4 * sweeps_a_second {
        let (n, beat, sweep) = step(&mut *kept, &mut stream, &mut out);
        let beyond = beat - n as f64 * beat_ns / beats as f64;
        pause_ns = pause_ns.max(sweep).max(beyond);
    }
    assert_eq!(out.len(), stream.silent(), "all of them are found, and nobody else");
    let beats = beats as f64;
    Cost {
        beat_ns: beat_ns / beats,
        sweep_ns: sweep_ns / beats,
        sweep_us: sweep_ns / sweeps as f64 / 1e3,
        pause_us: pause_ns / 1e3,
        bytes,
    }
}

/// Names of the figures of one contestant at one size.
macro_rules! names {
    ($($who:literal),*) => { [$(names!(@ $who, "10k", "100k", "1m", "4m")),*] };
    (@ $who:literal, $($size:literal),*) => { [$([
        concat!($who, "_beat_ns_", $size),
        concat!($who, "_sweep_ns_", $size),
        concat!($who, "_sweep_us_", $size),
        concat!($who, "_pause_us_", $size),
        concat!($who, "_bytes_", $size),
    ]),*] };
}

/// As they stand in the JSON line: by contestant, size, figure.
const NAMES: [[[&str; 5]; SIZES.len()]; CONTESTANTS.len()] =
    names!("rows", "rows_each", "wheel", "wheel_each", "heap", "heap_each", "scan");

/// Measures all of them at all sizes; quick: up to a hundred thousand hosts.
pub(super) fn run(ctx: &Context) -> Result<Figures> {
    let sizes = if ctx.quick { &SIZES[..2] } else { &SIZES[..] };
    let mut values = Vec::new();
    println!("  beat + sweep, ns a beat; one sweep; worst pause; bytes a host");
    for (s, (hosts, size)) in sizes.iter().enumerate() {
        let mut ours = 0.0;
        // One run of each after the other: what disturbs the machine disturbs all.
        let mut runs: Vec<Vec<Cost>> = vec![Vec::new(); CONTESTANTS.len()];
        for _ in 0..if *hosts > ONCE_FROM { 1 } else { ctx.fewer_runs() } {
            for (costs, (_, make)) in runs.iter_mut().zip(&CONTESTANTS) {
                costs.push(measure(*make, *hosts, BEATS_MIN));
            }
        }
        for (c, (who, _)) in CONTESTANTS.iter().enumerate() {
            let of = |read: fn(&Cost) -> f64| median(runs[c].iter().map(read).collect());
            let cost = Cost {
                beat_ns: of(|c| c.beat_ns),
                sweep_ns: of(|c| c.sweep_ns),
                sweep_us: of(|c| c.sweep_us),
                pause_us: of(|c| c.pause_us),
                bytes: of(|c| c.bytes),
            };
            let total = cost.beat_ns + cost.sweep_ns;
            if c == 0 {
                ours = total;
            }
            println!(
                "  {size:>5} {who:<11} {:>7.1} + {:>7.1} = {total:>7.1} ns ({:>5.2} x rows) {:>9.1} us \
                 {:>9.0} us {:>6.1} B",
                cost.beat_ns,
                cost.sweep_ns,
                total / ours,
                cost.sweep_us,
                cost.pause_us,
                cost.bytes
            );
            let figures = [cost.beat_ns, cost.sweep_ns, cost.sweep_us, cost.pause_us, cost.bytes];
            values.extend(NAMES[c][s].into_iter().zip(figures));
        }
    }
    Ok(Figures { values, runs: ctx.fewer_runs() })
}
