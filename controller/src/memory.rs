//! What a million records need to be told the machine: which will be needed soon, and that they are many.
//!
//! A million records do not fit any cache, and beats come in no order: each would wait for memory four
//! times over, and each time for the page tables too. A batch is known ahead, so what its later datagrams
//! need is fetched while the earlier ones are worked on; and large tables ask for huge pages, of which
//! the processor remembers all it needs.
#![expect(unsafe_code, reason = "the prefetch instruction and madvise have no safe wrappers")]

use std::ffi::c_void;
use std::ptr::NonNull;

pub(crate) mod places;

/// Bytes of a huge page of x86-64 and of most others.
const HUGE_PAGE: usize = 2 << 20;
/// Bytes of a page; where pages are larger, advice is refused, and nothing is lost.
const PAGE: usize = 4_096;

/// Room for `len` values, of which huge pages are asked for if it is large enough. Where the kernel gives
/// none (`/sys/kernel/mm/transparent_hugepage/enabled` says `never`), usual pages do as well, but slower.
pub fn room<T>(len: usize) -> Vec<T> {
    let mut room = Vec::<T>::with_capacity(len);
    advise(room.as_mut_ptr().cast(), room.capacity() * size_of::<T>());
    room
}

/// Numbers that are zero, with huge pages as those of [`room`]. They take no memory before they are written
/// to.
pub fn zero_numbers(len: usize) -> Vec<u32> {
    let mut zeros = vec![0; len];
    advise(zeros.as_mut_ptr().cast(), len * size_of::<u32>());
    zeros
}

/// Asks for huge pages for what lies in an allocation, if it is large enough.
fn advise(begin: *mut u8, bytes: usize) {
    let skipped = begin.align_offset(PAGE);
    if bytes >= HUGE_PAGE + skipped
        && let Some(begin) = NonNull::new(begin.wrapping_add(skipped).cast::<c_void>())
    {
        let whole = (bytes - skipped) / PAGE * PAGE;
        let advice = nix::sys::mman::MmapAdvise::MADV_HUGEPAGE;
        // SAFETY: the range lies within an allocation of the caller's, and this advice changes no content.
        if let Err(e) = unsafe { nix::sys::mman::madvise(begin, whole, advice) } {
            log::debug!("no huge pages: {e}");
        }
    }
}

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Has the first `lines` cache lines from `value` on fetched; changes nothing.
#[inline(always)]
pub(crate) fn prefetch<T>(value: &T, lines: usize) {
    prefetch_at(std::ptr::from_ref(value).cast(), 0, lines);
}

/// Has `lines` cache lines fetched, from number `from` after `begin` on; changes nothing, wherever that is.
#[inline(always)]
fn prefetch_at(begin: *const i8, from: usize, lines: usize) {
    #[cfg(target_arch = "x86_64")]
    for i in from..from + lines {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch neither reads nor writes as far as a program can tell, and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(begin.wrapping_add(i * LINE)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (begin, from, lines, LINE);
}

/// Has `lines` cache lines from `begin` on fetched into the second cache, and no further: of those a
/// processor has more on their way than of those for the first.
#[inline(always)]
fn prefetch_second(begin: *const i8, lines: usize) {
    #[cfg(target_arch = "x86_64")]
    for i in 0..lines {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(begin.wrapping_add(i * LINE)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (begin, lines);
}
