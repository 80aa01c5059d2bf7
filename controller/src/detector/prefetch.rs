//! A hint to the processor that memory will be needed soon.
//!
//! A million records do not fit any cache, and beats come in no order: each would wait for memory four
//! times over. A batch is known ahead, though, so what its later datagrams need is fetched while the
//! earlier ones are worked on.
#![expect(unsafe_code, reason = "the prefetch instruction has no safe wrapper in core")]

/// Bytes of a cache line.
const LINE: usize = 64;

/// Has the first `lines` cache lines from `value` on fetched; changes nothing.
#[inline(always)]
pub(crate) fn prefetch<T>(value: &T, lines: usize) {
    #[cfg(target_arch = "x86_64")]
    for i in 0..lines {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let at = std::ptr::from_ref(value).cast::<i8>().wrapping_add(i * LINE);
        // SAFETY: a prefetch neither reads nor writes as far as a program can tell, and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (value, lines, LINE);
}
