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

    /// Keeps a name; where there is no room for its text, none ([`Texts::take`]).
    pub(super) fn take(name: &str, texts: &mut Texts) -> Self {
        match split(cut(name)) {
            Some((template, number)) => match texts.take(&template) {
                Sym::EMPTY => Self::EMPTY,
                template => Self { template, number },
            },
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

    /// What stands before the number, the number, and what stands after it.
    fn parts<'a>(self, texts: &'a Texts, room: &'a mut [u8; DIGITS_MAX]) -> [&'a str; 3] {
        let template = texts.get(self.template);
        if self.number == VERBATIM {
            return [template, "", ""];
        }
        let (before, width, after) = around(template);
        [before, std::str::from_utf8(self.digits(width, room)).unwrap_or_default(), after]
    }

    /// Its number's digits, at least `width` of them.
    fn digits(self, width: usize, room: &mut [u8; DIGITS_MAX]) -> &[u8] {
        let (mut at, mut left) = (DIGITS_MAX, self.number);
        while at > 0 && (left > 0 || DIGITS_MAX - at < width.max(1)) {
            at -= 1;
            room[at] = b'0' + (left % 10) as u8;
            left /= 10;
        }
        &room[at..]
    }
}

/// What stands before the number in a template, the number's width, and what stands after it.
fn around(template: &str) -> (&str, usize, &str) {
    let (before, rest) = template.split_once(MARK).unwrap_or((template, "0"));
    let width = rest.bytes().next().map_or(0, |b| usize::from(b.wrapping_sub(b'0')));
    (before, width, rest.get(1..).unwrap_or_default())
}

/// Where the digits of a part that is looked for must stand in a name's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    Anywhere,
    Begin,
    End,
    Whole,
}

/// Digits of a part that is looked for, and where they must stand.
#[derive(Debug)]
struct Laid {
    stand: Stand,
    digits: Vec<u8>,
    /// The digits as a number, and the least one that has a digit more. None of a number's digits need be
    /// written down to tell whether these stand among them.
    value: u32,
    next: u32,
}

impl Laid {
    /// `None`: no number has so many digits.
    fn new(stand: Stand, digits: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(digits).ok().filter(|text| text.len() <= DIGITS_MAX)?;
        let (value, next) = (text.parse().ok()?, 10u32.checked_pow(text.len() as u32)?);
        Some(Self { stand, digits: digits.to_vec(), value, next })
    }

    /// Whether the digits stand anywhere in a number that has `width` digits at least.
    fn stands_in(&self, number: u32, width: usize) -> bool {
        let mut left = number;
        for end in self.digits.len().. {
            // Fewer digits than these are left, and no zeros stand before them.
            if end > width.max(1) && left < self.next / 10 {
                return false;
            }
            if left % self.next == self.value {
                return true;
            }
            left /= 10;
        }
        false
    }
}

/// What a part of a name that is looked for means for all names of one [shape](Name::shape): their texts are
/// looked at once, and of each name only its number.
#[derive(Debug)]
pub(super) struct Match {
    /// Whether the part stands in what they share.
    shared: bool,
    /// Otherwise it stands in a name if one of these bytes of it stand so in the number.
    numbers: Vec<Laid>,
    width: usize,
}

impl Match {
    /// Whether names of this name's shape contain `part`, and which.
    pub(super) fn new(name: Name, part: &str, texts: &Texts) -> Self {
        let (template, part) = (texts.get(name.template), part.as_bytes());
        let mut this = Self { shared: false, numbers: Vec::new(), width: 0 };
        if name.number == VERBATIM {
            this.shared = find(template.as_bytes(), part);
            return this;
        }
        let (before, width, after) = around(template);
        let (before, after) = (before.as_bytes(), after.as_bytes());
        this.width = width;
        this.shared = find(before, part) || find(after, part);
        // Every way to lay the part over the number: what is left of it there must end what stands before the
        // number, and what is right of it begin what stands after.
        let runs = |i: usize| part[i..].iter().take_while(|b| b.is_ascii_digit()).count();
        for i in (0..part.len()).filter(|i| before.ends_with(&part[..*i])) {
            for j in (i + 1..=i + runs(i)).filter(|j| after.starts_with(&part[*j..])) {
                let stand = match (i > 0, j < part.len()) {
                    (false, false) => Stand::Anywhere,
                    (true, false) => Stand::Begin,
                    (false, true) => Stand::End,
                    (true, true) => Stand::Whole,
                };
                this.numbers.extend(Laid::new(stand, &part[i..j]));
            }
        }
        this
    }

    /// Whether a name of this shape contains the part.
    pub(super) fn holds(&self, name: Name) -> bool {
        if self.shared || self.numbers.is_empty() {
            return self.shared;
        }
        if let [only] = &self.numbers[..]
            && only.stand == Stand::Anywhere
        {
            return only.stands_in(name.number, self.width);
        }
        let mut room = [0; DIGITS_MAX];
        let digits = name.digits(self.width, &mut room);
        self.numbers.iter().any(|wanted| match wanted.stand {
            Stand::Anywhere => wanted.stands_in(name.number, self.width),
            Stand::Begin => digits.starts_with(&wanted.digits),
            Stand::End => digits.ends_with(&wanted.digits),
            Stand::Whole => digits == wanted.digits,
        })
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
    fn a_name_without_room_for_its_text_is_none() {
        let mut texts = Texts::with_room(1);
        let kept = Name::take("web-1", &mut texts);
        assert_eq!(Name::take("web-2", &mut texts).text(&texts), "web-2");
        for name in ["api-1", "db7", "apis"] {
            assert_eq!(Name::take(name, &mut texts), Name::EMPTY);
        }
        assert_eq!((kept.text(&texts), texts.refused()), ("web-1".to_owned(), 3));
    }

    proptest! {
        #[test]
        fn a_part_is_found_exactly_where_it_stands(
            name in "[a-b0-2\\-]{0,8}[0-9]{0,11}[a-b0-2\\-]{0,3}", part in "[a-b0-2\\-]{0,4}",
            at in 0..22usize, len in 0..8usize,
        ) {
            let mut texts = Texts::default();
            let kept = Name::take(&name, &mut texts);
            let own: String = name.chars().skip(at).take(len).collect();
            for part in [&part, &own] {
                let found = Match::new(kept, part, &texts).holds(kept);
                prop_assert_eq!(found, name.contains(part.as_str()), "{:?} in {:?}", part, name);
            }
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
