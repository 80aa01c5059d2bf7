//! Takes some beats through a shard and says how often memory was allocated for them; under callgrind,
//! how many instructions they took (`tests/tests/instructions.rs`).
#![expect(unsafe_code, reason = "an allocator that counts can't be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use clap::Parser;
use heartwatch_tests::beatpath::{BeatPath, Fed};

/// Beats through one shard, in virtual time.
#[derive(Parser)]
struct Args {
    /// Hosts that are registered and alive.
    #[arg(long, default_value_t = 1_000)]
    hosts: usize,
    /// Beats to take.
    #[arg(long, default_value_t = 10_000)]
    beats: usize,
    /// Beats to seal beforehand: the same for any number that is taken, so that a difference between
    /// two runs is the work of the shard alone.
    #[arg(long, default_value_t = 30_000)]
    sealed: usize,
}

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on as it came; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the same promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the same promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the same promises.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the same promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.hosts > 0, "a shard without hosts takes no beats");
    ensure!(args.beats <= args.sealed, "only {} beats are sealed", args.sealed);
    let mut path = BeatPath::new(args.hosts)?;
    let beats = path.seal(args.sealed);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let fed = path.feed(&beats[..args.beats]);
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    let Fed { beats, acks, other } = fed;
    println!("beats={beats} acks={acks} other={other} allocations={allocations}");
    // What was rejected was not taken the whole way, and would be cheaper.
    ensure!(beats == args.beats as u64, "{} beats were fed, {beats} counted", args.beats);
    ensure!(other == 0, "{other} datagrams or news that no healthy host causes");
    Ok(())
}
