//! Gives memory back that a rush has left behind.
//!
//! A start with a million hosts, or a storm of news about them, passes through many small allocations. The
//! C library keeps what is freed, in a heap for nearly each thread; on a small machine the rest of it may
//! need that memory more: 20 to 60 MB after 100,000 of a million hosts died.
#![expect(unsafe_code, reason = "mallopt and malloc_trim have no safe wrappers")]

use std::time::Duration;

/// Allocations from so many bytes on come from the system and go back to it when they are freed. Left alone
/// the C library would raise the bound to the largest that was ever freed, and keep what is below it.
#[cfg(target_env = "gnu")]
const OWN_MAPPING: libc::c_int = 256 << 10;
/// Free bytes at a heap's end that it may keep.
#[cfg(target_env = "gnu")]
const KEPT_AT_END: libc::c_int = 1 << 20;

/// Has large allocations go back to the system at once, from now on. Nothing where the C library is not
/// glibc.
pub(super) fn settle() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers, and may be called at any time from any thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_AT_END);
    }
}

/// How often free memory is given back: so long after a rush at most its memory is the machine's again.
const EVERY: Duration = Duration::from_secs(10);

/// Hands free pages of the allocator back to the system, as long as it is polled.
pub(super) async fn give_back_for_ever() {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        // It takes the allocator's locks, and milliseconds after a rush: not on a thread that serves others.
        if let Err(e) = tokio::task::spawn_blocking(give_back).await {
            log::warn!("cannot give memory back: {e}");
        }
    }
}

/// Hands free pages of the allocator back to the system: some milliseconds for a heap of 100 MB. Nothing
/// where the C library is not glibc.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers, may be called at any time from any thread, and only touches free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").expect("every process has one");
        let pages = text.split_whitespace().nth(1).and_then(|n| n.parse::<usize>().ok());
        pages.expect("resident pages come second") * 4_096
    }

    /// A storm of suspicions left 61 MiB behind, for up to a minute: memory was given back once a minute.
    #[tokio::test(start_paused = true)]
    async fn what_a_rush_leaves_is_given_back_within_seconds() {
        let giving_back = tokio::spawn(give_back_for_ever());
        tokio::time::sleep(EVERY / 2).await;
        let mut rush: Vec<_> = (0..256 * 1_024).map(|_| Box::new([1_u8; 1_024])).collect();
        // The last one keeps the heap's end where it is.
        let last = rush.pop();
        drop(rush);
        let left = resident();
        tokio::time::sleep(EVERY).await;
        assert!(resident() + 128 * MIB < left, "{} of {left} bytes are kept", resident());
        drop(last);
        giving_back.abort();
    }
}
