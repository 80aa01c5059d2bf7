//! Short lists of numbers, by the hundred thousand, without an allocation for each.
//!
//! A list stands in a slot of 1, 2, 3, 4, 5, 6, 8, … 1,024 words: at most a third more than it needs, from
//! four words on. Slots of one size stand together in chunks and are used again. A list that is longer has
//! a vector of its own, which grows by an eighth. What a vector for each would cost beside its words, 24
//! bytes here and 8 to 16 at the allocator, is as much as the lists themselves when they are short.

/// Sizes of slots, words.
const SIZES: [u16; 33] = [
    1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160,
    192, 256, 320, 384, 512, 640, 768, 1_024,
];
/// Words of the longest list that stands in a slot.
const SHORT_MAX: usize = 1_024;
/// Words of a chunk.
const CHUNK_WORDS: usize = 4_096;
/// No free slot. Slots are fewer: a chunk has at most 4,096, and memory ends before there are a million.
const NONE: u32 = u32::MAX;

/// A list that is kept. Not `Copy`: who changes it has the only true one.
#[derive(Debug)]
pub(super) struct List {
    place: u32,
    len: u32,
}

impl List {
    /// The empty list; it needs no room.
    pub(super) const EMPTY: Self = Self { place: 0, len: 0 };

    /// How many numbers it holds.
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }
}

/// Slots of one size.
#[derive(Debug)]
struct Size {
    words: usize,
    chunks: Vec<Box<[u32]>>,
    /// Slots ever used.
    used: u32,
    /// The first free one; each holds the next in its first word.
    free: u32,
}

impl Size {
    fn new(words: usize) -> Self {
        Self { words, chunks: Vec::new(), used: 0, free: NONE }
    }

    fn at(&self, place: u32) -> (usize, usize) {
        let in_chunk = CHUNK_WORDS / self.words;
        (place as usize / in_chunk, place as usize % in_chunk * self.words)
    }

    fn slot(&self, place: u32) -> &[u32] {
        let (chunk, at) = self.at(place);
        &self.chunks[chunk][at..at + self.words]
    }

    fn slot_mut(&mut self, place: u32) -> &mut [u32] {
        let (chunk, at) = self.at(place);
        &mut self.chunks[chunk][at..at + self.words]
    }

    fn take(&mut self) -> u32 {
        if self.free != NONE {
            let place = self.free;
            self.free = self.slot(place)[0];
            return place;
        }
        let place = self.used;
        if self.at(place).0 == self.chunks.len() {
            let len = CHUNK_WORDS / self.words * self.words;
            self.chunks.push(vec![0; len].into());
        }
        self.used += 1;
        place
    }

    fn give_back(&mut self, place: u32) {
        let next = self.free;
        self.slot_mut(place)[0] = next;
        self.free = place;
    }
}

/// Where lists stand.
#[derive(Debug)]
pub(super) struct Lists {
    sizes: [Size; SIZES.len()],
    long: Vec<Vec<u32>>,
    long_free: Vec<u32>,
}

impl Default for Lists {
    fn default() -> Self {
        let sizes = SIZES.map(|words| Size::new(usize::from(words)));
        Self { sizes, long: Vec::new(), long_free: Vec::new() }
    }
}

/// Which size a list of `len` words has; beyond the last one: none.
fn size_of(len: usize) -> usize {
    SIZES.partition_point(|words| usize::from(*words) < len)
}

impl Lists {
    /// Keeps a list.
    pub(super) fn keep(&mut self, words: &[u32]) -> List {
        let len = u32::try_from(words.len()).expect("no list has a word for each of all slots");
        let place = match words.len() {
            0 => 0,
            n if n > SHORT_MAX => self.keep_long(words.to_vec()),
            n => {
                let size = &mut self.sizes[size_of(n)];
                let place = size.take();
                size.slot_mut(place)[..n].copy_from_slice(words);
                place
            }
        };
        List { place, len }
    }

    fn keep_long(&mut self, words: Vec<u32>) -> u32 {
        let place = self.long_free.pop().unwrap_or_else(|| {
            self.long.push(Vec::new());
            (self.long.len() - 1) as u32
        });
        self.long[place as usize] = words;
        place
    }

    /// What a list holds.
    pub(super) fn get(&self, list: &List) -> &[u32] {
        match list.len() {
            0 => &[],
            len if len > SHORT_MAX => &self.long[list.place as usize],
            len => &self.sizes[size_of(len)].slot(list.place)[..len],
        }
    }

    /// Adds a number at the end.
    pub(super) fn push(&mut self, list: &mut List, word: u32) {
        let len = list.len();
        if len > SHORT_MAX {
            let long = &mut self.long[list.place as usize];
            if long.len() == long.capacity() {
                long.reserve_exact(long.len() / 8);
            }
            long.push(word);
        } else if len > 0 && size_of(len) == size_of(len + 1) {
            self.sizes[size_of(len)].slot_mut(list.place)[len] = word;
        } else {
            let mut longer = Vec::with_capacity(len + len / 8 + 1);
            longer.extend_from_slice(self.get(list));
            longer.push(word);
            let old = std::mem::replace(list, List::EMPTY);
            self.give_back(old);
            *list = if longer.len() > SHORT_MAX {
                let len = longer.len() as u32;
                List { place: self.keep_long(longer), len }
            } else {
                self.keep(&longer)
            };
            return;
        }
        list.len += 1;
    }

    /// Lets go of a list.
    pub(super) fn give_back(&mut self, list: List) {
        match list.len() {
            0 => {}
            len if len > SHORT_MAX => {
                self.long[list.place as usize] = Vec::new();
                self.long_free.push(list.place);
            }
            len => self.sizes[size_of(len)].give_back(list.place),
        }
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        let chunks = self.sizes.iter().flat_map(|size| &size.chunks);
        let short: usize = chunks.map(|chunk| size_of_val(&**chunk) + size_of_val(chunk)).sum();
        let long: usize =
            self.long.iter().map(|list| list.capacity() * 4 + size_of_val(list)).sum();
        short + long + self.long_free.capacity() * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_rise_and_waste_little() {
        assert!(SIZES.is_sorted_by(|a, b| a < b));
        assert_eq!(usize::from(SIZES[SIZES.len() - 1]), SHORT_MAX);
        for len in 4..=SHORT_MAX {
            let words = usize::from(SIZES[size_of(len)]);
            assert!(words >= len && words * 3 <= len * 4, "{words} words for {len}");
        }
    }

    proptest! {
        #[test]
        fn lists_hold_what_vectors_hold(
            steps in prop::collection::vec((0..6u8, 0..12usize, 0..700u32), 1..300),
        ) {
            let mut lists = Lists::default();
            let mut naive: Vec<(List, Vec<u32>)> = Vec::new();
            for (what, which, n) in steps {
                let at = which % naive.len().max(1);
                match (what, naive.get_mut(at)) {
                    (0, _) | (_, None) => {
                        let words: Vec<u32> = (0..n % 40).collect();
                        naive.push((lists.keep(&words), words));
                    }
                    (1, Some(_)) => {
                        let (list, _) = naive.swap_remove(at);
                        lists.give_back(list);
                    }
                    (_, Some((list, words))) => {
                        for word in 0..n {
                            lists.push(list, word);
                            words.push(word);
                        }
                    }
                }
                for (list, words) in &naive {
                    prop_assert_eq!((lists.get(list), list.len()), (&words[..], words.len()));
                }
            }
        }
    }

    #[test]
    fn slots_are_used_again_and_long_lists_grow_by_little() {
        let mut lists = Lists::default();
        for round in 0..100 {
            let kept: Vec<List> = (0..200).map(|n| lists.keep(&[round; 9][..n % 9 + 1])).collect();
            kept.into_iter().for_each(|list| lists.give_back(list));
        }
        assert!(lists.bytes() < 9 * 17_000, "{} bytes", lists.bytes());
        let mut long = List::EMPTY;
        (0..1_000_000).for_each(|n| lists.push(&mut long, n));
        assert!(lists.bytes() < 5_100_000, "{} bytes", lists.bytes());
        assert_eq!(lists.get(&long)[777_777], 777_777);
        lists.give_back(long);
        assert!(lists.bytes() < 650_000, "{} bytes", lists.bytes());
    }
}
