//! Gives memory back that a rush has left behind.
//!
//! A start with a million hosts, or a storm of news about them, passes through many small allocations. The
//! C library keeps what is freed, in a heap for nearly each thread; on a small machine the rest of it may
//! need that memory more. After a start with a million hosts it is 15 to 65 MB, and chance which.
#![expect(unsafe_code, reason = "mallopt and malloc_trim have no safe wrappers")]

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

/// Hands free pages of the allocator back to the system: some milliseconds for a heap of 100 MB. Nothing
/// where the C library is not glibc.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers, may be called at any time from any thread, and only touches free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}
