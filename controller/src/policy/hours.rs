//! When a rule is on: `Mon-Fri 08:00-18:00; Sat 10:00-14:00`, by the wall clock of a time zone. Pure.
//!
//! Windows are split by `;`. Each has days (`Mon`, `Mon-Fri`, `Sat,Sun`; none: every day), a time of day
//! (`08:00-18:00`; none: the whole day), or both. A window begins at its first minute and ends before its
//! last one; `24:00` ends a day. One that ends no later than it begins goes on into the next day and
//! belongs to the day on which it began: `Fri 22:00-06:00` ends on Saturday.
//!
//! It is judged by what a clock on the wall shows. So in the night in which clocks are put back an hour
//! that lies in a window comes twice, and is in it twice; one that is left out when they are put forward
//! is missing from it.

use std::fmt;

use heartwatch_common::time::Wall;
use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;

/// Most windows.
pub const WINDOWS_MAX: usize = 32;
/// Days that are looked through for the next opening: the longest gap is a week, and some for the clock.
const DAYS_AHEAD: usize = 9;
const DAY: u16 = 24 * 60;
const NAMES: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// Some hours of the week.
#[derive(Clone, PartialEq)]
pub struct Hours {
    text: String,
    zone: TimeZone,
    windows: Vec<Window>,
}

/// From a minute of some days until another, perhaps of the next day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    /// One bit a day, Monday the lowest.
    days: u8,
    from: u16,
    to: u16,
}

impl Window {
    fn has(self, weekday: u8, minute: u16) -> bool {
        let on = |day: u8| self.days & (1 << day) != 0;
        if self.from < self.to {
            return on(weekday) && (self.from..self.to).contains(&minute);
        }
        let yesterday = (weekday + 6) % 7;
        (on(weekday) && minute >= self.from) || (on(yesterday) && minute < self.to)
    }
}

impl Hours {
    /// Reads windows; `Err` says what is wrong with which part.
    pub fn parse(text: &str, zone: TimeZone) -> Result<Self, String> {
        let windows: Vec<Window> = text.split(';').map(window).collect::<Result<_, _>>()?;
        if windows.len() > WINDOWS_MAX {
            return Err(format!("more than {WINDOWS_MAX} windows"));
        }
        Ok(Self { text: text.to_owned(), zone, windows })
    }

    /// Whether they are now.
    pub fn is_open(&self, at: Wall) -> bool {
        let local = self.local(at);
        let weekday = local.weekday().to_monday_zero_offset().unsigned_abs();
        let minute =
            u16::from(local.hour().unsigned_abs()) * 60 + u16::from(local.minute().unsigned_abs());
        self.windows.iter().any(|w| w.has(weekday, minute))
    }

    /// When they are next; `at` itself if they are now. `None`: not within a week.
    pub fn next_open(&self, at: Wall) -> Option<Wall> {
        if self.is_open(at) {
            return Some(at);
        }
        // A window opens at its first minute, at each of the two if clocks were put back meanwhile, or in
        // its midst when a clock is put forward or back into it.
        let now = timestamp(at);
        let mut moments: Vec<Timestamp> = Vec::new();
        for day in self.local(at).date().series(jiff::Span::new().days(1)).take(DAYS_AHEAD) {
            for window in &self.windows {
                let moment =
                    at_minute(day, window.from).map(|t| self.zone.to_ambiguous_timestamp(t));
                let both = moment.map(|m| [m.earlier(), m.later()]);
                moments.extend(both.into_iter().flatten().filter_map(Result::ok));
            }
        }
        let last = moments.iter().max().copied().unwrap_or(now);
        let turns = self.zone.following(now).map(|t| t.timestamp()).take_while(|t| *t <= last);
        let turns: Vec<Timestamp> = turns.collect();
        let opens = moments.into_iter().chain(turns).filter(|t| *t > now);
        opens.map(|t| Wall(t.as_millisecond())).filter(|at| self.is_open(*at)).min()
    }

    /// As it was written, with its time zone.
    pub fn words(&self) -> String {
        format!("{} {}", self.text, self.zone.iana_name().unwrap_or("UTC"))
    }

    /// A moment as a clock there shows it, to the minute.
    pub fn clock(&self, at: Wall) -> String {
        let local = self.local(at);
        let day = NAMES[usize::from(local.weekday().to_monday_zero_offset().unsigned_abs()) % 7];
        format!("{day} {} {:02}:{:02}", local.date(), local.hour(), local.minute())
    }

    fn local(&self, at: Wall) -> DateTime {
        self.zone.to_datetime(timestamp(at))
    }
}

impl fmt::Debug for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hours({:?})", self.words())
    }
}

/// What is beyond the calendar (some 9,000 years) is its end.
fn timestamp(at: Wall) -> Timestamp {
    let end = if at.0 < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_millisecond(at.0).unwrap_or(end)
}

fn at_minute(day: Date, minute: u16) -> Option<DateTime> {
    let (hour, minute) = (i8::try_from(minute / 60).ok()?, i8::try_from(minute % 60).ok()?);
    Some(day.to_datetime(Time::new(hour, minute, 0, 0).ok()?))
}

fn window(text: &str) -> Result<Window, String> {
    let text = text.trim();
    let wrong = || {
        format!(
            "`{text}` is no window: write days and a time of day, such as `Mon-Fri 08:00-18:00`"
        )
    };
    let (mut days, mut span) = (None, None);
    for part in text.split_whitespace() {
        match part.contains(':') {
            true if span.is_none() => span = Some(times(part).ok_or_else(wrong)?),
            false if days.is_none() && span.is_none() => {
                days = Some(days_of(part).ok_or_else(wrong)?)
            }
            _ => return Err(wrong()),
        }
    }
    if days.is_none() && span.is_none() {
        return Err(wrong());
    }
    let (from, to) = span.unwrap_or((0, DAY));
    if from == to {
        return Err(format!("`{text}` begins when it ends: write 00:00-24:00 for a whole day"));
    }
    Ok(Window { days: days.unwrap_or(0x7f), from, to })
}

fn days_of(text: &str) -> Option<u8> {
    let day = |name: &str| NAMES.iter().position(|n| n.eq_ignore_ascii_case(name));
    let mut days = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        let count = (last + 7 - first) % 7 + 1;
        (first..first + count).for_each(|d| days |= 1 << (d % 7));
    }
    Some(days)
}

fn times(text: &str) -> Option<(u16, u16)> {
    let (from, to) = text.split_once('-')?;
    let (from, to) = (minute(from)?, minute(to)?);
    (from < DAY).then_some((from, to))
}

fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |text: &str| {
        let plain = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| plain)
    };
    let (hour, minute) = (number(hour)?, number(minute).filter(|m| *m < 60)?);
    let at = hour * 60 + minute;
    (at <= DAY).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hours(text: &str, zone: &str) -> Hours {
        Hours::parse(text, TimeZone::get(zone).unwrap()).unwrap()
    }

    fn utc(text: &str) -> Wall {
        Wall(text.parse::<Timestamp>().unwrap().as_millisecond())
    }

    #[test]
    fn windows_are_days_times_or_both() {
        let office = hours("Mon-Fri 08:00-18:00; Sat 10:00-14:00", "UTC");
        for (at, open) in [
            ("2026-03-02T08:00:00Z", true), // a Monday
            ("2026-03-02T07:59:59Z", false),
            ("2026-03-02T17:59:59Z", true),
            ("2026-03-02T18:00:00Z", false),
            ("2026-03-07T10:00:00Z", true),
            ("2026-03-07T08:00:00Z", false),
            ("2026-03-08T12:00:00Z", false),
        ] {
            assert_eq!(office.is_open(utc(at)), open, "{at}");
        }
        let (monday, sunday) = (utc("2026-03-02T03:00:00Z"), utc("2026-03-01T03:00:00Z"));
        assert!(
            hours("mon,WED", "UTC").is_open(monday) && !hours("Tue-Sun", "UTC").is_open(monday)
        );
        assert!(hours("Sat-Mon 02:00-04:00", "UTC").is_open(monday));
        assert!(hours("00:00-24:00", "UTC").is_open(sunday));
        // It belongs to the day on which it began.
        let night = hours("Sun 22:00-06:00", "UTC");
        assert!(night.is_open(monday) && !night.is_open(sunday));
    }

    #[test]
    fn what_is_no_window_is_refused_by_name() {
        for text in [
            "",
            ";",
            "Mon-Fri;",
            "Mun",
            "08:00",
            "8-18",
            "25:00-26:00",
            "24:00-25:00",
            "08:60-09:00",
            "08:00-18:00 Mon",
            "Mon Tue",
            "Mon - Fri",
            "-1:00-02:00",
            "+8:00-09:00",
            "08:00-09:00-10:00",
        ] {
            let error = Hours::parse(text, TimeZone::UTC).unwrap_err();
            assert!(error.contains("is no window"), "{text}: {error}");
        }
        assert!(Hours::parse("08:00-08:00", TimeZone::UTC).unwrap_err().contains("24:00"));
        let many = vec!["Mon"; WINDOWS_MAX + 1].join(";");
        assert!(Hours::parse(&many, TimeZone::UTC).unwrap_err().contains("32"));
    }

    #[test]
    fn on_the_days_when_clocks_change_the_clock_on_the_wall_counts() {
        // 2026-03-29: 02:00 becomes 03:00; 2026-10-25: 03:00 becomes 02:00.
        let early = hours("02:30-03:30", "Europe/Berlin");
        let open = |h: &Hours, at| h.is_open(utc(at));
        assert!(!open(&early, "2026-03-29T00:59:00Z"), "01:59");
        assert!(open(&early, "2026-03-29T01:00:00Z"), "03:00, half an hour late");
        assert!(!open(&early, "2026-03-29T01:30:00Z"), "03:30");
        let skipped = early.next_open(utc("2026-03-28T20:00:00Z"));
        assert_eq!(
            skipped,
            Some(utc("2026-03-29T01:00:00Z")),
            "when the clock is put forward into it"
        );
        let twice = hours("02:00-02:30", "Europe/Berlin");
        for (at, is) in [
            ("2026-10-25T00:15:00Z", true), // 02:15, for the first time
            ("2026-10-25T00:45:00Z", false),
            ("2026-10-25T01:15:00Z", true), // 02:15, again
            ("2026-10-25T01:30:00Z", false),
        ] {
            assert_eq!(open(&twice, at), is, "{at}");
        }
        let again = twice.next_open(utc("2026-10-25T00:45:00Z"));
        assert_eq!(again, Some(utc("2026-10-25T01:00:00Z")));
        // A day's work is at the same time on the wall, and an hour earlier in UTC.
        let work = hours("Mon-Fri 08:00-18:00", "Europe/Berlin");
        assert!(!open(&work, "2026-03-27T06:30:00Z") && open(&work, "2026-03-30T06:30:00Z"));
        assert_eq!(work.clock(utc("2026-03-30T06:30:00Z")), "Mon 2026-03-30 08:30");
        assert_eq!(work.words(), "Mon-Fri 08:00-18:00 Europe/Berlin");
    }

    #[test]
    fn no_moment_is_beyond_it() {
        let h = hours("Mon", "America/New_York");
        for at in [i64::MIN, -1, 0, i64::MAX] {
            let _ = (h.is_open(Wall(at)), h.next_open(Wall(at)));
        }
    }

    proptest! {
        /// The next opening is the first minute of which a loop says that it is open.
        #[test]
        fn the_next_opening_is_the_first_open_minute(
            days in 1..128u8, from in 0..DAY, len in 1..DAY, zone in 0..4usize, minute in 0..4_000i64,
            near in 0..4usize,
        ) {
            let zone = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"][zone];
            let near = ["2026-03-26T00:00:00Z", "2026-10-24T00:00:00Z", "2026-10-30T00:00:00Z",
                "2026-04-03T00:00:00Z"][near];
            let mut h = hours("Mon", zone);
            h.windows = vec![Window { days, from, to: (from + len) % DAY }];
            prop_assume!(h.windows[0].from != h.windows[0].to);
            let at = utc(near).0 + minute * 60_000;
            let naive = (0..9 * 1_440).map(|m| Wall(at + m * 60_000)).find(|w| h.is_open(*w));
            prop_assert_eq!(h.next_open(Wall(at)), naive);
        }
    }
}
