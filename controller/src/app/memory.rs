//! Gives memory back that a rush has left behind.
//!
//! A start with a million hosts, or a storm of news about them, passes through many small allocations. The
//! C library keeps what is freed; on a small machine the rest of it may need that memory more.
#![expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]

/// Hands free pages of the allocator back to the system: some milliseconds for a heap of 100 MB. Nothing
/// where the C library is not glibc.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers, may be called at any time from any thread, and only touches free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}
