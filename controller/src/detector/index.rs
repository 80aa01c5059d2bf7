//! Which slot is a host's: a hash table that costs one cache line per look-up.
//!
//! A table of a million ids does not fit any cache, so what a look-up costs is how many lines it touches.
//! Here a bucket is one line of sixteen words of four bytes: the slot, and ten bits of the hash, which
//! tell nearly all other hosts of the bucket apart. The id itself stands in the host's record, which is
//! needed anyway. An open-addressing table of (id, slot) pairs, or of slots with control bytes apart,
//! touches two or more; see ADR 11 for the figures.
//!
//! The line can be fetched ahead ([`Index::prefetch`]), and the slot guessed from it without touching a
//! record ([`Index::candidate`]).
//!
//! The table is made of [`PARTS`] parts that grow apart, so that no insertion pays for more than one part's
//! growth. They stand side by side in one piece of memory, of which huge pages are asked for: apart, each
//! in pages of its own, a fetch had to wait for the page tables first. When a part is full there is a piece
//! of twice the size, to which it moves; the others follow as they fill up, or one at each insertion.
//! Memory: 5.4 to 10.7 bytes a host.

use crate::memory::{LINE, prefetch, zero_numbers};

/// Parts that grow apart.
const PARTS: usize = 256;
/// Words of a line.
const WIDTH: usize = 16;
/// A word that holds no host, and never did.
const EMPTY: u32 = 0;
/// A word whose host was removed.
const GONE: u32 = u32::MAX;
/// Bits of a word that hold the slot, plus one so that no host is [`EMPTY`].
const SLOT_BITS: u32 = 22;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;
/// Slots must be below this.
pub(crate) const SLOTS_MAX: usize = SLOT_MASK as usize - 1;

/// A bucket. It stands in one cache line.
type Line = [u32; WIDTH];

const _: () = assert!(size_of::<Line>() == LINE);

/// One of the parts. Words used, removed ones included, are at most three quarters of all.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    used: u32,
    live: u32,
}

/// Where a hash leads: part, first line within any power of two, tag.
#[derive(Clone, Copy)]
struct Way {
    part: usize,
    line: usize,
    tag: u32,
}

#[inline]
fn way(hash: u64) -> Way {
    Way {
        part: (hash >> 56) as usize % PARTS,
        line: (hash >> 10) as usize & 0xFFFF_FFFF,
        tag: (hash as u32) << SLOT_BITS,
    }
}

/// Lines of all parts: [`PARTS`] times as many as one has.
#[derive(Debug, Default)]
struct Piece {
    /// Zeros at first, which take no memory before something is put there.
    words: Vec<u32>,
    /// Words before the first cache line.
    skipped: usize,
    /// Lines of a part less one; a part has a power of two of them.
    mask: usize,
}

impl Clone for Piece {
    fn clone(&self) -> Self {
        if self.words.is_empty() {
            return Self::default();
        }
        let mut piece = Self::new(self.mask + 1);
        piece.lines_mut().copy_from_slice(&self.lines()[..PARTS * (self.mask + 1)]);
        piece
    }
}

impl Piece {
    fn new(lines_of_part: usize) -> Self {
        let words = zero_numbers((PARTS * lines_of_part + 1) * WIDTH);
        let skipped = words.as_ptr().align_offset(LINE) % WIDTH;
        Self { words, skipped, mask: lines_of_part - 1 }
    }

    #[inline]
    fn lines(&self) -> &[Line] {
        self.words.get(self.skipped..).unwrap_or_default().as_chunks().0
    }

    #[inline]
    fn lines_mut(&mut self) -> &mut [Line] {
        let len = PARTS * (self.mask + 1);
        &mut self.words[self.skipped..].as_chunks_mut().0[..len]
    }

    /// Where a line of a part stands.
    #[inline]
    fn at(&self, part: usize, line: usize) -> usize {
        part * (self.mask + 1) + (line & self.mask)
    }

    #[inline]
    fn line(&self, part: usize, line: usize) -> Option<&Line> {
        self.lines().get(self.at(part, line))
    }

    fn part(&self, part: usize) -> &[Line] {
        let first = self.at(part, 0);
        &self.lines()[first..=first + self.mask]
    }
}

/// The table.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    /// The one in which parts stand, and the one from which they move, while they do.
    pieces: [Piece; 2],
    /// In which of them each part stands.
    stands: [u8; PARTS],
    parts: [Part; PARTS],
    /// Parts before this one have moved to the first piece; if it is all of them, the second is empty.
    moved: usize,
    live: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            pieces: [Piece::new(1), Piece::default()],
            stands: [0; PARTS],
            parts: [Part::default(); PARTS],
            moved: PARTS,
            live: 0,
        }
    }
}

impl Index {
    /// How many hosts it holds.
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    #[inline]
    fn piece(&self, part: usize) -> &Piece {
        &self.pieces[usize::from(self.stands[part] & 1)]
    }

    /// Has the line of a hash fetched.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64) {
        let way = way(hash);
        if let Some(line) = self.piece(way.part).line(way.part, way.line) {
            prefetch(line, 1);
        }
    }

    /// The slot of which the line says that it is most likely the hash's.
    #[inline]
    pub(crate) fn candidate(&self, hash: u64) -> Option<u32> {
        let way = way(hash);
        let line = self.piece(way.part).line(way.part, way.line)?;
        let at = of_tag(line, way.tag).trailing_zeros() as usize;
        Some((line.get(at)? & SLOT_MASK) - 1)
    }

    /// The slot of a hash for which `is_it` holds.
    #[inline]
    pub(crate) fn find(&self, hash: u64, is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let way = way(hash);
        let piece = self.piece(way.part);
        let (line, word) = piece.place(way, is_it)?;
        Some((piece.lines()[line][word] & SLOT_MASK) - 1)
    }

    /// Adds a slot that is not there yet. `hash_of` tells the hash of any slot that is.
    ///
    /// # Panics
    /// If `slot` is not below [`SLOTS_MAX`].
    pub(crate) fn insert(&mut self, hash: u64, slot: u32, hash_of: impl Fn(u32) -> u64) {
        assert!((slot as usize) < SLOTS_MAX, "the detector has fewer slots");
        let way = way(hash);
        if self.moved < PARTS {
            self.follow(&hash_of);
        }
        let lines = self.piece(way.part).mask + 1;
        if (self.parts[way.part].used as usize + 1) * 4 > lines * WIDTH * 3 {
            self.grow(way.part, &hash_of);
        }
        self.put(way, slot);
        self.live += 1;
    }

    /// Removes a slot. `false` if it was not there.
    pub(crate) fn remove(&mut self, hash: u64, slot: u32) -> bool {
        let way = way(hash);
        let piece = &mut self.pieces[usize::from(self.stands[way.part])];
        let Some((line, word)) = piece.place(way, |s| s == slot) else { return false };
        piece.lines_mut()[line][word] = GONE;
        self.parts[way.part].live -= 1;
        self.live -= 1;
        true
    }

    /// All slots, in no order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        let words = (0..PARTS).flat_map(|part| self.piece(part).part(part).as_flattened());
        words.filter(|w| **w != EMPTY && **w != GONE).map(|w| (w & SLOT_MASK) - 1)
    }

    fn put(&mut self, way: Way, slot: u32) {
        let piece = &mut self.pieces[usize::from(self.stands[way.part])];
        for step in 0..=piece.mask {
            let at = piece.at(way.part, way.line.wrapping_add(step));
            if let Some(free) = piece.lines_mut()[at].iter_mut().find(|w| **w == EMPTY) {
                *free = way.tag | (slot + 1);
                self.parts[way.part].used += 1;
                self.parts[way.part].live += 1;
                return;
            }
        }
        unreachable!("a quarter of the words is empty");
    }

    /// Makes room in a part, and forgets what was removed.
    #[cold]
    fn grow(&mut self, part: usize, hash_of: &impl Fn(u32) -> u64) {
        let lines = self.piece(part).mask + 1;
        let is_sparse = (self.parts[part].live as usize + 1) * 2 <= lines * WIDTH;
        if self.stands[part] == 0 && !is_sparse {
            // Hashes are spread evenly: hardly ever is a part full again before all others have moved once.
            while self.moved < PARTS {
                self.follow(hash_of);
            }
            self.pieces.swap(0, 1);
            self.pieces[0] = Piece::new(2 * lines);
            self.stands = [1; PARTS];
            self.moved = 0;
        }
        self.fill(part, hash_of);
    }

    /// Moves one more part to the new piece.
    fn follow(&mut self, hash_of: &impl Fn(u32) -> u64) {
        if self.stands[self.moved] == 1 {
            self.fill(self.moved, hash_of);
        }
        self.moved += 1;
        if self.moved == PARTS {
            self.pieces[1] = Piece::default();
        }
    }

    /// Puts what a part holds into the new piece, where it stands from now on.
    fn fill(&mut self, part: usize, hash_of: &impl Fn(u32) -> u64) {
        let old = self.piece(part).part(part).to_vec();
        if self.stands[part] == 0 {
            let (first, mask) = (self.pieces[0].at(part, 0), self.pieces[0].mask);
            self.pieces[0].lines_mut()[first..=first + mask].fill([EMPTY; WIDTH]);
        }
        self.stands[part] = 0;
        self.parts[part] = Part::default();
        for word in old.into_iter().flatten().filter(|w| *w != EMPTY && *w != GONE) {
            let slot = (word & SLOT_MASK) - 1;
            self.put(way(hash_of(slot)), slot);
        }
    }
}

/// Whether a word holds a slot under this tag. What is left of it without the tag is then the slot plus
/// one: not zero as of [`EMPTY`], and less than all ones as of [`GONE`].
#[cfg(any(test, not(target_arch = "x86_64")))]
fn is_of(word: u32, tag: u32) -> bool {
    (word ^ tag).wrapping_sub(1) < SLOT_MASK - 1
}

/// Which words hold a slot under this tag, one bit each. All are compared, without a branch: where the
/// one that is looked for stands nobody can foresee, least of all the processor.
#[inline(always)]
fn of_tag(line: &Line, tag: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        #[expect(
            unsafe_code,
            reason = "vector instructions are safe only where they are known to exist"
        )]
        // SAFETY: SSE2 is part of every x86-64.
        unsafe {
            of_tag_at_once(line, tag)
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let bit = |(i, word): (usize, &u32)| u32::from(is_of(*word, tag)) << i;
        line.iter().enumerate().map(bit).sum()
    }
}

/// `is_of`, of four words by each instruction.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse2")]
fn of_tag_at_once(line: &Line, tag: u32) -> u32 {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_cmplt_epi32, _mm_movemask_epi8, _mm_packs_epi16,
        _mm_packs_epi32, _mm_set1_epi32, _mm_setr_epi32, _mm_xor_si128,
    };
    // There is only a signed comparison, so both sides are moved.
    const MOVED: u32 = 1 << 31;
    let (tag, moved) = (_mm_set1_epi32(tag as i32), _mm_set1_epi32(MOVED as i32));
    let below = _mm_set1_epi32(((SLOT_MASK - 1) ^ MOVED) as i32);
    let mut found: [__m128i; 4] = [below; 4];
    for (words, found) in line.as_chunks::<4>().0.iter().zip(&mut found) {
        let [a, b, c, d] = *words;
        let words = _mm_setr_epi32(a as i32, b as i32, c as i32, d as i32);
        let less_one = _mm_add_epi32(_mm_xor_si128(words, tag), _mm_set1_epi32(-1));
        *found = _mm_cmplt_epi32(_mm_xor_si128(less_one, moved), below);
    }
    let [a, b, c, d] = found;
    let both = _mm_packs_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d));
    _mm_movemask_epi8(both) as u32
}

impl Piece {
    /// Line and word of a slot with this tag for which `is_it` holds. A line with an empty word ends the
    /// search: nothing was ever put beyond it.
    #[inline]
    fn place(&self, way: Way, mut is_it: impl FnMut(u32) -> bool) -> Option<(usize, usize)> {
        let lines = self.lines();
        for step in 0..=self.mask {
            let at = self.at(way.part, way.line.wrapping_add(step));
            let line = &lines[at];
            let mut of_tag = of_tag(line, way.tag);
            while of_tag != 0 {
                let i = of_tag.trailing_zeros() as usize;
                if is_it((line[i] & SLOT_MASK) - 1) {
                    return Some((at, i));
                }
                of_tag &= of_tag - 1;
            }
            if line.contains(&EMPTY) {
                return None;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Few values in the bits that matter, so that lines overflow and tags collide.
    fn poor_hash(key: u16) -> u64 {
        u64::from(key % 3) << 56 | u64::from(key / 3 % 2) << 10 | u64::from(key / 6 % 2)
    }

    proptest! {
        #[test]
        fn it_finds_exactly_what_a_map_finds(
            ops in proptest::collection::vec((any::<bool>(), 0..300u16), 1..900),
            poor in any::<bool>(),
        ) {
            let hash = |key: u16| {
                if poor { poor_hash(key) } else { u64::from(key).wrapping_mul(0x9E37_79B9_7F4A_7C15) }
            };
            let mut index = Index::default();
            let mut naive = BTreeMap::new();
            // A key is its own slot.
            for (add, key) in ops {
                let slot = u32::from(key);
                if add && !naive.contains_key(&key) {
                    index.insert(hash(key), slot, |s| hash(s as u16));
                    naive.insert(key, slot);
                } else if !add {
                    prop_assert_eq!(index.remove(hash(key), slot), naive.remove(&key).is_some());
                }
                prop_assert_eq!(index.len(), naive.len());
            }
            for key in 0..300u16 {
                let found = index.find(hash(key), |s| s == u32::from(key));
                prop_assert_eq!(found, naive.get(&key).copied());
                index.prefetch(hash(key));
                prop_assert!(found.is_none() || poor || index.candidate(hash(key)).is_some());
            }
            let mut slots: Vec<u32> = index.slots().collect();
            slots.sort_unstable();
            prop_assert_eq!(slots, naive.into_values().collect::<Vec<_>>());
        }
    }

    #[test]
    fn hosts_that_come_and_go_leave_no_room_behind() {
        let mut index = Index::default();
        let hash = |s: u32| u64::from(s).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for round in 0..2_000u32 {
            index.insert(hash(round), round, hash);
            if round >= 100 {
                assert!(index.remove(hash(round - 100), round - 100));
            }
        }
        let lines: usize = index.pieces.iter().map(|p| p.lines().len()).sum();
        assert!(index.len() == 100 && lines <= 2 * PARTS + 2, "{lines} lines for 100 hosts");
    }

    #[test]
    fn a_line_compared_at_once_says_what_its_words_say() {
        let tag = 5 << SLOT_BITS;
        let odd = [EMPTY, GONE, tag, tag | SLOT_MASK, tag | 1, tag | (SLOT_MASK - 1), 1, SLOT_MASK];
        for (tag, turn) in [(0, 0), (tag, 3), (GONE << SLOT_BITS, 5), (1 << 31, 8)] {
            let line = std::array::from_fn(|i| odd[(i + turn) % 8] ^ ((i as u32 / 8) << 31));
            let naive = (0..WIDTH).filter(|i| is_of(line[*i], tag)).map(|i| 1 << i).sum::<u32>();
            assert_eq!(of_tag(&line, tag), naive, "{line:x?} under {tag:x}");
        }
    }

    #[test]
    fn the_highest_slot_and_the_highest_tag_are_no_mark() {
        let mut index = Index::default();
        let top = SLOTS_MAX as u32 - 1;
        index.insert(u64::MAX, top, |_| u64::MAX);
        index.insert(0, 0, |_| 0);
        assert_eq!(index.find(u64::MAX, |s| s == top), Some(top));
        assert_eq!((index.candidate(u64::MAX), index.candidate(0)), (Some(top), Some(0)));
    }
}
