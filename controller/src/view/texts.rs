//! Texts that many hosts share, each kept once, for as long as somebody uses it.
//!
//! A text stands in a slot of 8, 16, … 256 bytes: a reference count (4 bytes), a length (1), its bytes.
//! Slots of one size stand together in chunks and are used again, so texts that come and go leave no
//! holes behind, and none pays an allocator's overhead.

use hashbrown::DefaultHashBuilder;
use std::hash::BuildHasher;

use super::index::Index;

/// Longest text, bytes: what a hello and an import can carry. Longer ones are cut.
pub(super) const TEXT_LEN_MAX: usize = 255;
/// Bytes before the text itself.
const HEAD_LEN: usize = 5;
/// Slot sizes are multiples of this.
const STEP: usize = 8;
/// Slot sizes.
const SIZES: usize = (HEAD_LEN + TEXT_LEN_MAX).div_ceil(STEP);
/// Bits of a [`Sym`] that number the slot within its size.
const PLACE_BITS: u32 = 26;
/// Slots in a chunk.
const CHUNK_LEN: usize = 1_024;

/// A kept text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Sym(u32);

impl Default for Sym {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl Sym {
    /// The empty text; it needs no room and no count.
    pub(super) const EMPTY: Self = Self(u32::MAX);

    /// As a number, to be kept among others.
    pub(super) fn word(self) -> u32 {
        self.0
    }

    /// What [`Self::word`] answered once more.
    pub(super) fn of(word: u32) -> Self {
        Self(word)
    }

    fn size(self) -> usize {
        (self.0 >> PLACE_BITS) as usize
    }

    fn place(self) -> usize {
        (self.0 & ((1 << PLACE_BITS) - 1)) as usize
    }
}

#[derive(Debug, Default)]
struct Size {
    chunks: Vec<Box<[u8]>>,
    free: Vec<u32>,
    used: usize,
}

#[derive(Debug)]
pub(super) struct Texts {
    sizes: [Size; SIZES],
    index: Index,
    /// Most texts of one size: as many as a [`Sym`] can name.
    room: usize,
    refused: u64,
}

impl Default for Texts {
    fn default() -> Self {
        Self::with_room(1 << PLACE_BITS)
    }
}

impl Texts {
    /// With room for so many texts of a size.
    pub(super) fn with_room(room: usize) -> Self {
        let sizes = std::array::from_fn(|_| Size::default());
        Self { sizes, index: Index::default(), room, refused: 0 }
    }

    /// How often there was no room for one more.
    #[cfg(test)]
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    /// The text; empty for [`Sym::EMPTY`].
    pub(super) fn get(&self, sym: Sym) -> &str {
        text_at(&self.sizes, sym)
    }

    /// The symbol of a text that somebody uses.
    pub(super) fn find(&self, text: &str) -> Option<Sym> {
        let text = cut(text);
        if text.is_empty() {
            return Some(Sym::EMPTY);
        }
        let hash = self.index.hash(text);
        self.index.find(hash, |at| self.get(Sym(at)) == text).map(Sym)
    }

    /// The symbol of a text, with one more user. [`Sym::EMPTY`] if there is no room for one more text of
    /// its length (67 million), which is said in the log.
    pub(super) fn take(&mut self, text: &str) -> Sym {
        let text = cut(text);
        if let Some(sym) = self.find(text) {
            self.retain(sym);
            return sym;
        }
        let Some(sym) = self.store(text) else {
            self.refuse(text);
            return Sym::EMPTY;
        };
        let hash = self.index.hash(text);
        let sizes = &self.sizes;
        let key = |at, hasher: &DefaultHashBuilder| hasher.hash_one(text_at(sizes, Sym(at)));
        self.index.insert(hash, sym.0, key);
        sym
    }

    /// One more user of a text that is kept.
    pub(super) fn retain(&mut self, sym: Sym) {
        if sym != Sym::EMPTY {
            let slot = self.slot_mut(sym);
            let users = count(slot) + 1;
            slot[..4].copy_from_slice(&users.to_le_bytes());
        }
    }

    /// One user less; the last one takes the text along.
    pub(super) fn release(&mut self, sym: Sym) {
        if sym == Sym::EMPTY {
            return;
        }
        let slot = self.slot_mut(sym);
        let users = count(slot).saturating_sub(1);
        slot[..4].copy_from_slice(&users.to_le_bytes());
        if users == 0 {
            let hash = self.index.hash(self.get(sym));
            self.index.remove(hash, sym.0);
            self.sizes[sym.size()].free.push(sym.place() as u32);
        }
    }

    /// Says so at the first, second, fourth, eighth … time.
    fn refuse(&mut self, text: &str) {
        self.refused += 1;
        if self.refused.is_power_of_two() {
            log::error!(
                "no room for the name or label {text:?}, one of {} that were refused: {} different ones of \
                 about its length are kept; its host has none here. Have labels and names say what hosts \
                 share, and forget hosts that are gone",
                self.refused,
                self.room,
            );
        }
    }

    fn store(&mut self, text: &str) -> Option<Sym> {
        let size = (HEAD_LEN + text.len()).div_ceil(STEP) - 1;
        let own = &mut self.sizes[size];
        let place = own.free.pop().unwrap_or(own.used as u32);
        if place as usize == own.used {
            if own.used >= self.room {
                return None;
            }
            own.used += 1;
            if place as usize == own.chunks.len() * CHUNK_LEN {
                own.chunks.push(vec![0; CHUNK_LEN * (size + 1) * STEP].into());
            }
        }
        let sym = Sym((size as u32) << PLACE_BITS | place);
        let slot = self.slot_mut(sym);
        slot[..4].copy_from_slice(&1u32.to_le_bytes());
        slot[4] = text.len() as u8;
        slot[HEAD_LEN..HEAD_LEN + text.len()].copy_from_slice(text.as_bytes());
        Some(sym)
    }

    fn slot_mut(&mut self, sym: Sym) -> &mut [u8] {
        let len = (sym.size() + 1) * STEP;
        let at = sym.place() % CHUNK_LEN * len;
        &mut self.sizes[sym.size()].chunks[sym.place() / CHUNK_LEN][at..at + len]
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        let sizes = self.sizes.iter().zip(1..);
        let chunks = sizes.map(|(size, steps)| {
            size.chunks.len() * CHUNK_LEN * steps * STEP + size.free.capacity() * 4
        });
        chunks.sum::<usize>() + self.index.bytes()
    }

    /// Texts that are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.sizes.iter().map(|s| s.used - s.free.len()).sum()
    }
}

fn text_at(sizes: &[Size; SIZES], sym: Sym) -> &str {
    if sym == Sym::EMPTY {
        return "";
    }
    let len = (sym.size() + 1) * STEP;
    let at = sym.place() % CHUNK_LEN * len;
    let slot = &sizes[sym.size()].chunks[sym.place() / CHUNK_LEN][at..at + len];
    std::str::from_utf8(&slot[HEAD_LEN..HEAD_LEN + usize::from(slot[4])]).expect("it was a text")
}

fn count(slot: &[u8]) -> u32 {
    u32::from_le_bytes([slot[0], slot[1], slot[2], slot[3]])
}

/// As much of a text as is kept.
pub(super) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_LEN_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_once_until_its_last_user_goes() {
        let mut texts = Texts::default();
        let (a, b) = (texts.take("zone"), texts.take("rack"));
        assert_eq!((texts.take("zone"), texts.len()), (a, 2));
        texts.release(a);
        assert_eq!((texts.get(a), texts.find("zone")), ("zone", Some(a)));
        texts.release(a);
        assert_eq!((texts.find("zone"), texts.find("rack"), texts.len()), (None, Some(b), 1));
        assert_eq!(texts.take("pool"), a, "its slot is used again");
    }

    #[test]
    fn texts_of_every_length_come_back_whole_up_to_the_longest() {
        let mut texts = Texts::default();
        let long = "é".repeat(200);
        for len in (0..=long.len()).filter(|len| long.is_char_boundary(*len)) {
            let text = &long[..len];
            let sym = texts.take(text);
            assert_eq!(texts.get(sym), &text[..len.min(TEXT_LEN_MAX - 1)]);
        }
        assert_eq!(texts.take(""), Sym::EMPTY);
    }

    #[test]
    fn thousands_of_texts_are_found_again() {
        let mut texts = Texts::default();
        let name = |n: u32| format!("text number {n}");
        let syms: Vec<Sym> = (0..5_000).map(|n| texts.take(&name(n))).collect();
        for (n, sym) in (0..).zip(&syms) {
            assert_eq!((texts.find(&name(n)), texts.get(*sym)), (Some(*sym), &*name(n)));
        }
        syms.iter().for_each(|sym| texts.release(*sym));
        assert_eq!(texts.len(), 0);
    }
}
