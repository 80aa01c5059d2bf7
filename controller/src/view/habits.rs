//! How a host's beats usually come, for people: nothing is decided by it.
//!
//! | word | holds |
//! | --- | --- |
//! | 0 | mean and mean deviation of inter-arrival times, microseconds, four bytes each; a mean of 0 = none yet |
//! | 1 | their 99th percentile, microseconds, four bytes; number of overdue times, one; newest lateness, two |
//! | 2, 3 | newest overdue times, microseconds, four bytes each, the newest first |
//! | 4 | how much of each was the host's own timer's doing, milliseconds, two bytes each, likewise |
//!
//! What is newest is shifted in, and what is oldest out: that takes fewer steps than a ring.

use std::sync::atomic::{AtomicU64, Ordering};

/// Words that they take.
pub(super) const WORDS: usize = 5;
/// Newest overdue times that are kept.
const RECENT: usize = 4;
/// Where the number of overdue times stands in its word, and the newest lateness.
const LEN_SHIFT: u32 = 32;
const LATE_SHIFT: u32 = 40;

/// What one beat teaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lesson {
    /// Nanoseconds since the beat before, if it was of the same life.
    pub since_last_ns: Option<u64>,
    /// How overdue it was, nanoseconds, if one was expected; negative: early.
    pub overdue_ns: Option<i64>,
    /// How late the host's own timer fired, milliseconds.
    pub late_ms: u16,
    /// The mean begins anew: the life is another one.
    pub begins: bool,
}

/// What is known of a host's ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Habits {
    /// Inter-arrival mean and mean deviation, microseconds; 0 = none yet.
    pub(crate) mean_us: u32,
    pub(crate) deviation_us: u32,
    /// What 99 of 100 inter-arrival times do not exceed, about, microseconds; 0 = none yet.
    pub(crate) p99_us: u32,
    /// How late the host's own timer fired last, milliseconds.
    pub(crate) late_ms: u16,
    /// Newest overdue times, microseconds, the newest first.
    recent_us: [i32; RECENT],
    /// How much of each was its own timer's doing.
    recent_late_ms: [u16; RECENT],
    /// How many there are.
    len: u8,
}

impl Habits {
    pub(super) fn read(words: &[AtomicU64; WORDS]) -> Self {
        let word = |i: usize| words[i].load(Ordering::Relaxed);
        let recent = |i: usize| (word(2 + i / 2) >> (32 * (i % 2))) as i32;
        Self {
            mean_us: word(0) as u32,
            deviation_us: (word(0) >> 32) as u32,
            p99_us: word(1) as u32,
            late_ms: (word(1) >> LATE_SHIFT) as u16,
            recent_us: std::array::from_fn(recent),
            recent_late_ms: std::array::from_fn(|i| (word(4) >> (16 * i)) as u16),
            len: (word(1) >> LEN_SHIFT) as u8,
        }
    }

    /// Newest overdue times, newest first, milliseconds.
    pub(crate) fn recent_ms(&self) -> Vec<f64> {
        let newest = self.recent_us.iter().take(self.len.into());
        newest.map(|us| f64::from(*us) / 1e3).collect()
    }

    /// How late the host's own timer was each time, newest first, milliseconds.
    pub(crate) fn recent_late_ms(&self) -> Vec<u16> {
        self.recent_late_ms.iter().take(self.len.into()).copied().collect()
    }
}

/// Learns from one beat. Its host's shard is the only one who writes there.
#[inline(always)]
pub(super) fn learn(words: &[AtomicU64; WORDS], lesson: &Lesson) {
    let [inter_arrival, others, newest, older, lates] = words;
    let mut rest = others.load(Ordering::Relaxed);
    if lesson.begins {
        inter_arrival.store(0, Ordering::Relaxed);
    } else if let Some(ns) = lesson.since_last_ns {
        let us = u32::try_from(ns / 1_000).unwrap_or(u32::MAX);
        let old = inter_arrival.load(Ordering::Relaxed);
        let (mean, deviation, p99) = step(old as u32, (old >> 32) as u32, rest as u32, us);
        inter_arrival.store(u64::from(mean) | u64::from(deviation) << 32, Ordering::Relaxed);
        rest = rest & !u64::from(u32::MAX) | u64::from(p99);
    }
    let mut len = (rest >> LEN_SHIFT) as u8;
    if let Some(ns) = lesson.overdue_ns {
        let us = (ns / 1_000).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
        let before = newest.load(Ordering::Relaxed);
        older.store(older.load(Ordering::Relaxed) << 32 | before >> 32, Ordering::Relaxed);
        newest.store(before << 32 | u64::from(us.cast_unsigned()), Ordering::Relaxed);
        let before = lates.load(Ordering::Relaxed);
        lates.store(before << 16 | u64::from(lesson.late_ms), Ordering::Relaxed);
        len = (len + 1).min(RECENT as u8);
    }
    let late = u64::from(lesson.late_ms) << LATE_SHIFT;
    let rest = rest & u64::from(u32::MAX) | u64::from(len) << LEN_SHIFT | late;
    others.store(rest, Ordering::Relaxed);
}

/// Mean, mean deviation and 99th percentile after one more inter-arrival time, microseconds.
#[inline]
fn step(mean_us: u32, deviation_us: u32, p99_us: u32, us: u32) -> (u32, u32, u32) {
    if mean_us == 0 {
        return (us, us / 2, p99_us.max(us));
    }
    // RFC 6298's smoothing: mean by eighths of the error, deviation by quarters of its size.
    let error = i64::from(us) - i64::from(mean_us);
    let spread = error.abs() - i64::from(deviation_us);
    let mean = (i64::from(mean_us) + error / 8) as u32;
    (mean, (i64::from(deviation_us) + spread / 4) as u32, p99_step(p99_us, us))
}

/// Moves an estimate of the 99th percentile by one sample: up by 99 steps if it was too low, down by one
/// otherwise, so that it stands still where one in a hundred lies above.
///
/// Source: Ma, Muthukrishnan, Sandler, "Frugal Streaming for Estimating Quantiles" (2013), with the length
/// of its steps in proportion to the quantile instead of their chance: no dice, four bytes, integers.
#[inline]
fn p99_step(p99_us: u32, sample_us: u32) -> u32 {
    let step = (p99_us >> 12).max(1);
    if sample_us > p99_us {
        p99_us.saturating_add(step.saturating_mul(99))
    } else {
        p99_us.saturating_sub(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn the_estimate_settles_where_one_in_a_hundred_lies_above() {
        let mut rng = StdRng::seed_from_u64(2);
        // Uniform from 0.9 to 1.1 s, then a tenth as long: it follows down too.
        for (low, high) in [(900_000u32, 1_100_000u32), (90_000, 110_000)] {
            let mut p99 = 1_000_000;
            let mut above = 0;
            for k in 0..60_000 {
                let x = rng.random_range(low..high);
                above += u32::from(k >= 30_000 && x > p99);
                p99 = p99_step(p99, x);
            }
            assert!((250..350).contains(&above), "{above} of 30,000 above {p99}");
            assert!(p99 > high - (high - low) / 10 && p99 < high + high / 30, "{p99}");
        }
    }

    #[test]
    fn the_estimate_stays_within_its_four_bytes() {
        assert_eq!(p99_step(u32::MAX, u32::MAX), u32::MAX - (u32::MAX >> 12));
        assert_eq!((p99_step(0, 7), p99_step(u32::MAX - 1, u32::MAX)), (99, u32::MAX));
        assert_eq!(p99_step(0, 0), 0);
    }

    #[test]
    fn words_say_what_was_learned() {
        let words: [AtomicU64; WORDS] = Default::default();
        assert_eq!(Habits::read(&words), Habits::default());
        for k in 0..300i64 {
            let overdue_ns = (k > 0).then_some((k - 150) * 1_000_000);
            let since_last_ns = (k > 0).then_some(1_000_000_000);
            let lesson =
                Lesson { since_last_ns, overdue_ns, late_ms: 60_000 + k as u16, begins: false };
            learn(&words, &lesson);
            let habits = Habits::read(&words);
            let newest: Vec<i64> = (1..=k).rev().take(RECENT).collect();
            let ms: Vec<f64> = newest.iter().map(|k| (k - 150) as f64).collect();
            let late: Vec<u16> = newest.iter().map(|k| 60_000 + *k as u16).collect();
            assert_eq!((habits.recent_ms(), habits.recent_late_ms()), (ms, late), "beat {k}");
            assert_eq!(habits.late_ms, 60_000 + k as u16);
        }
        let habits = Habits::read(&words);
        assert_eq!(habits.mean_us, 1_000_000);
        assert!((900_000..1_100_000).contains(&habits.p99_us), "{habits:?}");
        assert!(habits.deviation_us < 10, "{habits:?}");
        learn(&words, &Lesson { begins: true, ..Lesson::default() });
        let anew = Habits::read(&words);
        assert_eq!((anew.mean_us, anew.p99_us), (0, habits.p99_us), "the percentile is the host's");
        let far = Lesson {
            overdue_ns: Some(i64::MIN),
            since_last_ns: Some(u64::MAX),
            ..Lesson::default()
        };
        learn(&words, &far);
        assert_eq!(Habits::read(&words).mean_us, u32::MAX);
    }
}
