//! Places of which one part is read by anyone and the other belongs to one owner, side by side in one page.
//!
//! Whatever changes with every beat of a host and is read by others stands in a line of atomic numbers, the
//! *cell*; what its shard alone knows is the *record*. Apart they would cost each beat of a large fleet two
//! searches of the page tables, which is what such a beat mostly waits for.
//!
//! Sound because the two parts never overlap, [`Owned`] is the only way to the records of a region and there
//! is one of it, whose `&` and `&mut` are those of the records; and a cell is made of atomic numbers, which
//! are valid as the kernel hands memory out: zero.
#![expect(
    unsafe_code,
    reason = "memory that two own in turns of 256 bytes; mmap has no safe wrapper"
)]

use std::alloc::{Layout, handle_alloc_error};
use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use super::{HUGE_PAGE, LINE};

/// What everybody may read of a place: a cache line.
pub(crate) type Cell = [AtomicU64; LINE / size_of::<AtomicU64>()];

/// One place; the record is there as far as its [`Owned`] says.
#[repr(C, align(64))]
struct Place<R> {
    cell: Cell,
    record: UnsafeCell<MaybeUninit<Option<R>>>,
}

/// Memory of places, from the beginning of a huge page on. It is taken a page at a time, as it is written to.
struct Region<R> {
    map: NonNull<c_void>,
    bytes: NonZeroUsize,
    first: NonNull<Place<R>>,
    len: usize,
}

// SAFETY: a region is memory that no thread owns more than another.
unsafe impl<R: Send> Send for Region<R> {}
// SAFETY: through a shared one only cells are reached, which are atomic.
unsafe impl<R: Send> Sync for Region<R> {}

impl<R> Region<R> {
    /// Without memory the process ends, as wherever something is allocated: a host for which there is no
    /// record would not be watched, and nobody would know.
    fn new(len: usize, small: usize) -> Self {
        const { assert!(!std::mem::needs_drop::<R>(), "nobody drops the records of a region") };
        let places = Layout::array::<Place<R>>(len).expect("a chunk is of some megabytes");
        let size = places.size();
        let bytes = NonZeroUsize::MIN.saturating_add(size + HUGE_PAGE - 1);
        // SAFETY: new memory at a place that the kernel chooses; nothing else lies there.
        let map = unsafe {
            let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            mmap_anonymous(None, bytes, protection, MapFlags::MAP_PRIVATE)
        };
        let map = map.unwrap_or_else(|e| {
            log::error!("no memory for more hosts: {bytes} bytes are refused: {e}");
            handle_alloc_error(places)
        });
        let skipped = map.cast::<u8>().align_offset(HUGE_PAGE);
        // SAFETY: less than a huge page is skipped, and the map is longer than all places by one.
        let begin = unsafe { map.cast::<u8>().byte_add(skipped) };
        let in_small_pages = small.min(size) / HUGE_PAGE * HUGE_PAGE;
        let parts = [
            (0, in_small_pages, MmapAdvise::MADV_NOHUGEPAGE),
            (in_small_pages, size - in_small_pages, MmapAdvise::MADV_HUGEPAGE),
        ];
        for (from, part, advice) in parts.into_iter().filter(|(_, part, _)| *part > 0) {
            // SAFETY: the part lies within the map, and this advice changes no content.
            if let Err(e) = unsafe { madvise(begin.byte_add(from).cast(), part, advice) } {
                log::debug!("pages are as the kernel likes: {e}");
            }
        }
        Self { map, bytes, first: begin.cast(), len }
    }
}

impl<R> Drop for Region<R> {
    fn drop(&mut self) {
        // SAFETY: as it was mapped; whoever could reach it held an `Arc` of this, and the last one is gone.
        if let Err(e) = unsafe { munmap(self.map, self.bytes.get()) } {
            log::error!("cannot give memory back: {e}");
        }
    }
}

/// The cells of a region, for everybody.
pub(crate) struct Cells<R>(Arc<Region<R>>);

impl<R> Cells<R> {
    /// Bytes of a place, cell and record.
    pub(crate) const PLACE: usize = size_of::<Place<R>>();

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len
    }

    /// One of them.
    #[inline]
    pub(crate) fn get(&self, at: usize) -> Option<&Cell> {
        // SAFETY: there are so many places, each begins with a cell that is valid from the start (zero), and
        // nobody makes a `&mut` of one.
        (at < self.0.len).then(|| unsafe { &(*self.0.first.as_ptr().add(at)).cell })
    }
}

/// The records of a region, for one owner.
pub(crate) struct Owned<R> {
    first: NonNull<Place<R>>,
    /// Records before this one can be read: somebody wrote what they hold, be it nothing.
    ready: usize,
    /// Keeps the memory.
    region: Arc<Region<R>>,
}

// SAFETY: the records go with it, to whom no other way leads.
unsafe impl<R: Send> Send for Owned<R> {}
// SAFETY: from `&Owned` only `&R` and cells are had.
unsafe impl<R: Send + Sync> Sync for Owned<R> {}

impl<R> Owned<R> {
    fn record(&self, at: usize) -> Option<NonNull<Option<R>>> {
        if at >= self.ready {
            return None;
        }
        // SAFETY: `ready` is at most the number of places.
        let record = unsafe { &raw const (*self.first.as_ptr().add(at)).record };
        NonNull::new(UnsafeCell::raw_get(record).cast())
    }

    /// A record, if there is one.
    #[inline]
    pub(crate) fn get(&self, at: usize) -> Option<&R> {
        // SAFETY: it was written; only a `&mut self` could change it meanwhile.
        self.record(at).and_then(|record| unsafe { record.as_ref() }.as_ref())
    }

    /// The cell of a place.
    pub(crate) fn cell(&self, at: usize) -> Option<&Cell> {
        // SAFETY: as in `Cells::get`.
        (at < self.region.len).then(|| unsafe { &(*self.first.as_ptr().add(at)).cell })
    }

    /// A record, if there is one, and the cell beside it.
    #[inline]
    pub(crate) fn get_mut(&mut self, at: usize) -> Option<(&mut R, &Cell)> {
        // SAFETY: it was written; this is the only way to it for as long as `&mut self` lasts.
        let record = unsafe { self.record(at)?.as_mut() }.as_mut()?;
        // SAFETY: as in `Cells::get`; the record lies beside it.
        Some((record, unsafe { &(*self.first.as_ptr().add(at)).cell }))
    }

    /// Puts a record, or nothing, into a place, and nothing into those before it that were never written.
    /// `false`: there is no such place.
    pub(crate) fn put(&mut self, at: usize, record: Option<R>) -> bool {
        if at >= self.region.len {
            return false;
        }
        while self.ready <= at {
            self.ready += 1;
            if let Some(fresh) = self.record(self.ready - 1) {
                // SAFETY: the place exists, and nobody has read this record yet.
                unsafe { fresh.write(None) };
            }
        }
        if let Some(mut old) = self.record(at) {
            // SAFETY: it was written, and `&mut self` is the only way to it.
            unsafe { *old.as_mut() = record };
        }
        true
    }

    /// How many places there are, and before which one all are initialised.
    pub(crate) fn extent(&self) -> (usize, usize) {
        (self.region.len, self.ready)
    }

    /// Has the first `lines` lines of a place from number `from` on fetched.
    #[inline(always)]
    pub(crate) fn prefetch(&self, at: usize, from: usize, lines: usize) {
        if at < self.ready {
            // SAFETY: `ready` is at most the number of places.
            super::prefetch_at(unsafe { self.first.as_ptr().add(at) }.cast(), from, lines);
        }
    }

    /// Has the first `lines` lines of a place fetched into the second cache.
    #[inline(always)]
    pub(crate) fn prefetch_second(&self, at: usize, lines: usize) {
        if at < self.ready {
            // SAFETY: `ready` is at most the number of places.
            super::prefetch_second(unsafe { self.first.as_ptr().add(at) }.cast(), lines);
        }
    }
}

/// `len` places, of which the first `small` bytes stand in usual pages and the others, if the kernel gives
/// them, in huge ones: where few are used, they shall not take two megabytes.
pub(crate) fn map<R>(len: usize, small: usize) -> (Owned<R>, Cells<R>) {
    let region = Arc::new(Region::new(len, small));
    let owned = Owned { first: region.first, ready: 0, region: Arc::clone(&region) };
    (owned, Cells(region))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    type Record = [u64; 24];

    #[test]
    fn records_and_cells_do_not_touch_each_other_and_both_keep_what_they_are_given() {
        let (mut owned, cells) = map::<Record>(1_000, 0);
        assert_eq!((owned.get(0), cells.len()), (None, 1_000));
        assert!(cells.get(999).unwrap().iter().all(|word| word.load(Ordering::Relaxed) == 0));
        // Not in order: those passed over hold nothing.
        for at in [3usize, 999, 0] {
            assert!(owned.put(at, Some([at as u64 + 7; 24])));
            cells.get(at).unwrap().iter().for_each(|w| w.store(u64::MAX, Ordering::Relaxed));
        }
        let held: Vec<usize> = (0..1_001).filter(|at| owned.get(*at).is_some()).collect();
        assert_eq!(held, [0, 3, 999]);
        for at in held {
            assert_eq!(owned.get(at), Some(&[at as u64 + 7; 24]));
            let (record, cell) = owned.get_mut(at).unwrap();
            *record = [1; 24];
            assert!(cell.iter().all(|word| word.load(Ordering::Relaxed) == u64::MAX));
        }
        assert!(owned.put(3, None) && owned.get(3).is_none() && owned.get_mut(3).is_none());
        assert!(!owned.put(1_000, Some([0; 24])));
        assert!(cells.get(1_000).is_none());
    }

    #[test]
    fn memory_lasts_as_long_as_one_of_the_two() {
        let (mut owned, cells) = map::<Record>(10, HUGE_PAGE);
        owned.put(9, Some([5; 24]));
        cells.get(9).unwrap()[0].store(8, Ordering::Relaxed);
        drop(cells);
        assert_eq!(owned.get(9), Some(&[5; 24]));
        let (owned, cells) = map::<Record>(10, 0);
        drop(owned);
        cells.get(9).unwrap()[7].store(8, Ordering::Relaxed);
        assert_eq!(cells.get(9).unwrap()[7].load(Ordering::Relaxed), 8);
    }

    #[test]
    fn another_thread_reads_cells_while_records_change() {
        let (mut owned, cells) = map::<Record>(100, 0);
        (0..100).for_each(|at| assert!(owned.put(at, Some([0; 24]))));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let sum = |at| cells.get(at).unwrap()[0].load(Ordering::Relaxed);
                while (0..100).map(sum).sum::<u64>() < 100 {
                    std::thread::yield_now();
                }
            });
            for at in 0..100 {
                let (record, cell) = owned.get_mut(at).unwrap();
                record[0] += 1;
                cell[0].store(record[0], Ordering::Relaxed);
            }
        });
        assert!((0..100).all(|at| owned.get(at).unwrap()[0] == 1));
    }
}
