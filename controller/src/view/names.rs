//! Names of hosts in eight bytes: a shared template and a number.
//!
//! Names of a fleet differ by a number: `web-0042.fra.example.org`. The longest run of digits (the first
//! of the longest; its last nine if it is longer) is taken out; what remains, a mark and the run's width
//! in its place, is a [`Sym`] that all names alike share. A name without digits is its own template.

use super::texts::{Sym, TEXT_LEN_MAX, Texts, cut};

/// Stands where the number was; followed by the width, a digit, 0 = without leading zeros.
const MARK: char = '\u{1}';
/// Most digits that are taken out: what fits the number.
const DIGITS_MAX: usize = 9;
/// In place of the number: there is none.
const VERBATIM: u32 = u32::MAX;

/// A name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    template: Sym,
    number: u32,
}

impl Name {
    /// The empty name.
    pub(super) const EMPTY: Self = Self { template: Sym::EMPTY, number: VERBATIM };

    /// Keeps a name.
    pub(super) fn take(name: &str, texts: &mut Texts) -> Self {
        match split(cut(name)) {
            Some((template, number)) => Self { template: texts.take(&template), number },
            None => Self { template: texts.take(name), number: VERBATIM },
        }
    }

    /// The name as it would be kept; `None`: no host has such a name.
    pub(super) fn find(name: &str, texts: &Texts) -> Option<Self> {
        match split(cut(name)) {
            Some((template, number)) => Some(Self { template: texts.find(&template)?, number }),
            None => Some(Self { template: texts.find(name)?, number: VERBATIM }),
        }
    }

    /// Lets go of it.
    pub(super) fn release(self, texts: &mut Texts) {
        texts.release(self.template);
    }

    /// What it shares with others: its template, and whether there is a number in it.
    pub(super) fn shape(self) -> (Sym, bool) {
        (self.template, self.number != VERBATIM)
    }

    /// The whole name.
    pub(super) fn text(self, texts: &Texts) -> String {
        self.parts(texts, &mut [0; DIGITS_MAX]).concat()
    }

    /// Whether the name contains `part`.
    pub(super) fn contains(self, part: &str, texts: &Texts) -> bool {
        let mut whole = [0; TEXT_LEN_MAX + DIGITS_MAX];
        let mut len = 0;
        for piece in self.parts(texts, &mut [0; DIGITS_MAX]) {
            whole[len..len + piece.len()].copy_from_slice(piece.as_bytes());
            len += piece.len();
        }
        find(&whole[..len], part.as_bytes())
    }

    /// What stands before the number, the number, and what stands after it.
    fn parts<'a>(self, texts: &'a Texts, room: &'a mut [u8; DIGITS_MAX]) -> [&'a str; 3] {
        let template = texts.get(self.template);
        if self.number == VERBATIM {
            return [template, "", ""];
        }
        let (before, rest) = template.split_once(MARK).unwrap_or((template, "0"));
        let width = rest.bytes().next().map_or(0, |b| usize::from(b.wrapping_sub(b'0')));
        let (mut at, mut left) = (DIGITS_MAX, self.number);
        while at > 0 && (left > 0 || DIGITS_MAX - at < width.max(1)) {
            at -= 1;
            room[at] = b'0' + (left % 10) as u8;
            left /= 10;
        }
        let digits = std::str::from_utf8(&room[at..]).unwrap_or_default();
        [before, digits, rest.get(1..).unwrap_or_default()]
    }
}

/// Whether `part` stands in `whole`: by its first byte, as names are short.
fn find(whole: &[u8], part: &[u8]) -> bool {
    let Some((first, rest)) = part.split_first() else { return true };
    let Some(last) = whole.len().checked_sub(part.len()) else { return false };
    (0..=last).any(|at| whole[at] == *first && &whole[at + 1..at + part.len()] == rest)
}

/// The template and the number of a name; `None`: it has no number, or no room for the mark.
fn split(name: &str) -> Option<(String, u32)> {
    if name.contains(MARK) || name.len() > TEXT_LEN_MAX - 2 {
        return None;
    }
    let bytes = name.as_bytes();
    let mut longest = 0..0;
    let mut at = 0;
    while at < bytes.len() {
        let len = bytes[at..].iter().take_while(|b| b.is_ascii_digit()).count();
        if len > longest.len() {
            longest = at..at + len;
        }
        at += len.max(1);
    }
    let run = longest.end - longest.len().min(DIGITS_MAX)..longest.end;
    let digits = &name[run.clone()];
    let number = digits.parse().ok()?;
    let width = if digits.len() > 1 && digits.starts_with('0') { digits.len() } else { 0 };
    Some((format!("{}{MARK}{width}{}", &name[..run.start], &name[run.end..]), number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn there_and_back(name: &str) -> (String, usize) {
        let mut texts = Texts::default();
        let kept = Name::take(name, &mut texts);
        let back = kept.text(&texts);
        assert_eq!(Name::find(name, &texts), Some(kept));
        kept.release(&mut texts);
        (back, texts.len())
    }

    #[test]
    fn names_of_a_fleet_share_a_template() {
        let mut texts = Texts::default();
        for n in 0..2_000 {
            Name::take(&format!("web-{n:04}.rack07.example.org"), &mut texts);
            Name::take(&format!("ip-10-1-200-{}", n % 100), &mut texts);
        }
        // Of four digits: with leading zeros, and without.
        assert_eq!(texts.len(), 2 + 100);
    }

    proptest! {
        #[test]
        fn every_name_comes_back_as_it_was(
            name in "([a-z.\\-0é\u{1}]{0,6}[0-9]{0,12}){0,4}", plain in "\\PC{0,40}",
        ) {
            prop_assert_eq!(there_and_back(&name), (name.clone(), 0));
            prop_assert_eq!(there_and_back(&plain), (plain.clone(), 0));
        }
    }

    #[test]
    fn odd_names_come_back_too() {
        let long = format!("{}7", "x".repeat(254));
        for name in ["", "0", "007", "1234567890123", "a\u{1}5", "\u{1}", "0000000000", &long] {
            assert_eq!(there_and_back(name), (name.to_owned(), 0));
        }
    }
}
