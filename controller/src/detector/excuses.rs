//! What excuses the silence of hosts, by slot.
//!
//! In an overload that drops every third beat, hundreds of thousands of hosts are excused at a time and heard
//! again a second later. So an excuse costs a store when it is made and nothing when it ends: whether a host
//! has one is told by a flag of its record ([`EXCUSED`](super::host::EXCUSED)), which a beat clears on its
//! usual way, and what stands here then is left to lie. (In a map, each of them was put in and taken out
//! again on the dear way of a beat, which made every drop the reason for the next.)
//!
//! Cost: 16 bytes a host, taken in chunks when the first host of each is excused, and kept.

use std::time::Duration;

use heartwatch_common::time::Instant;

use super::doubt::DoubtReason;

/// Hosts of a chunk.
const CHUNK_LEN: usize = 4_096;

/// Why a host's silence is not held against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Excused {
    pub(crate) since: Instant,
    /// After so many milliseconds it is looked at again: up to 49 days.
    span_ms: u32,
    pub(crate) why: DoubtReason,
}

const _: () = assert!(size_of::<Excused>() == 16);

impl Excused {
    /// Since then, and until it is looked at again; that is rounded up to whole milliseconds.
    pub(crate) fn new(since: Instant, until: Instant, why: DoubtReason) -> Self {
        let span_ms = until.since(since).as_nanos().div_ceil(1_000_000);
        Self { since, span_ms: u32::try_from(span_ms).unwrap_or(u32::MAX), why }
    }

    /// When it is looked at again.
    pub(crate) fn until(&self) -> Instant {
        self.since + Duration::from_millis(self.span_ms.into())
    }

    /// How long it has been excused, as of `at`.
    pub(crate) fn span(&self, at: Instant) -> Duration {
        self.until().min(at).since(self.since)
    }
}

/// The newest excuse of each host that ever had one.
#[derive(Clone, Debug, Default)]
pub(super) struct Excuses {
    /// Empty where nobody was ever excused.
    chunks: Vec<Box<[Excused]>>,
}

impl Excuses {
    /// The excuse of a host of which [`EXCUSED`](super::host::EXCUSED) says that it has one; else anything.
    pub(super) fn get(&self, slot: u32) -> Option<Excused> {
        self.chunks.get(slot as usize / CHUNK_LEN)?.get(slot as usize % CHUNK_LEN).copied()
    }

    pub(super) fn set(&mut self, slot: u32, excused: Excused) {
        let (chunk, at) = (slot as usize / CHUNK_LEN, slot as usize % CHUNK_LEN);
        if self.chunks.len() <= chunk {
            self.chunks.resize_with(chunk + 1, Box::default);
        }
        let chunk = &mut self.chunks[chunk];
        if chunk.is_empty() {
            *chunk = vec![excused; CHUNK_LEN].into();
        }
        chunk[at] = excused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Instant {
        Instant::from_millis(n)
    }

    #[test]
    fn each_host_has_its_own_and_only_chunks_that_are_used_take_memory() {
        let mut excuses = Excuses::default();
        assert_eq!(excuses.get(9_000), None);
        let far = Excused::new(ms(5), ms(9), DoubtReason::Cut);
        let near = Excused::new(ms(1), ms(2), DoubtReason::Drops);
        excuses.set(9_000, far);
        excuses.set(4_095, near);
        assert_eq!((excuses.get(9_000), excuses.get(4_095)), (Some(far), Some(near)));
        assert_eq!(excuses.get(4_096), None, "of a chunk that nobody has used");
        let sizes: Vec<usize> = excuses.chunks.iter().map(|chunk| chunk.len()).collect();
        assert_eq!(sizes, [CHUNK_LEN, 0, CHUNK_LEN]);
        excuses.set(9_000, near);
        assert_eq!((excuses.get(9_000), excuses.get(9_001)), (Some(near), Some(far)));
    }

    #[test]
    fn a_span_ends_when_it_is_looked_at_again_and_no_sum_overflows() {
        let excused = Excused::new(ms(1_000), ms(1_500), DoubtReason::Stall);
        assert_eq!(excused.until(), ms(1_500));
        assert_eq!(excused.span(ms(1_200)), Duration::from_millis(200));
        assert_eq!(excused.span(ms(60_000)), Duration::from_millis(500));
        assert_eq!(excused.span(ms(10)), Duration::ZERO);
        // Rounded up to whole milliseconds.
        let odd = Excused::new(Instant(1), Instant(2), DoubtReason::Drops);
        assert_eq!(odd.until(), Instant(1_000_001));
        let far = Excused::new(Instant(0), Instant::FAR, DoubtReason::Cut);
        assert_eq!(far.until(), ms(u32::MAX.into()));
    }
}
