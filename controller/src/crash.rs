//! Where a crash would hurt most: named places between the steps of an incident, at which a test has the
//! process kill itself. Only in builds with debug assertions; elsewhere there is nothing.
//!
//! `HEARTWATCH_CRASH_AT=NAME:N` kills the process, as `kill -9` does, when it passes that place for the Nth
//! time. Nothing is flushed, no destructor runs.

/// Every place, in the order in which an incident passes them.
pub const POINTS: [&str; 14] = [
    "start",
    "decided",
    "append",
    "commit",
    "committed",
    "woken",
    "begin",
    "begun",
    "answered",
    "finished",
    "told",
    "look",
    "step",
    "release",
];

/// Passes a place.
#[cfg(debug_assertions)]
pub fn pass(point: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static AT: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    let at = AT.get_or_init(|| {
        let text = std::env::var("HEARTWATCH_CRASH_AT").ok()?;
        let (name, passes) = text.split_once(':')?;
        log::warn!("will crash at {text}");
        Some((name.to_owned(), AtomicU64::new(passes.parse().ok()?)))
    });
    debug_assert!(POINTS.contains(&point), "{point} is not listed");
    let Some((name, left)) = at else { return };
    if name == point && left.fetch_sub(1, Ordering::Relaxed) == 1 {
        if let Err(e) = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL) {
            log::error!("cannot crash: {e}");
        }
        // The signal is delivered before this thread goes on, but others may still run.
        loop {
            std::thread::park();
        }
    }
}

/// Passes a place: nothing happens.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn pass(_: &str) {}
