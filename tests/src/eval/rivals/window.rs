//! The last `n` values and their mean, and Chen's expected arrival made of them.
//!
//! Values are whole microseconds and sums are integers: after a million beats the mean is as exact as
//! after one. A sum of [`i64`] holds a thousand values of 292 years.

use super::Arrival;

/// By which schedule a detector expects the next beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Beat `i` was sent at `i·η`: what a sequence number alone allows.
    Raw,
    /// Each beat says when it was sent and when the next one will be.
    Announced,
}

/// Seconds as whole microseconds, halves away from zero.
#[inline]
pub(super) fn micros(seconds: f64) -> i64 {
    (seconds * 1e6 + 0.5f64.copysign(seconds)) as i64
}

/// A ring of the last values pushed.
#[derive(Clone, Debug)]
pub(super) struct Window {
    ring: Box<[i64]>,
    /// Where the next value goes.
    next: usize,
    len: usize,
    sum: i64,
    /// One divided by `len`: a product is quicker than a quotient.
    share: f64,
}

impl Window {
    /// An empty window of `capacity` values.
    pub(super) fn new(capacity: usize) -> Self {
        assert!(capacity > 0, "a window holds something");
        let ring = vec![0; capacity].into_boxed_slice();
        Self { ring, next: 0, len: 0, sum: 0, share: 0.0 }
    }

    /// Adds a value; answers the one that had to go.
    #[inline]
    pub(super) fn push(&mut self, value: i64) -> Option<i64> {
        let old = std::mem::replace(&mut self.ring[self.next], value);
        self.next += 1;
        if self.next == self.ring.len() {
            self.next = 0;
        }
        self.sum += value;
        if self.len == self.ring.len() {
            self.sum -= old;
            return Some(old);
        }
        self.len += 1;
        self.share = 1.0 / self.len as f64;
        None
    }

    /// The mean of what is held, in microseconds; zero when empty.
    #[inline]
    pub(super) fn mean(&self) -> f64 {
        self.sum as f64 * self.share
    }

    /// One divided by the count of values held; zero when empty.
    #[inline]
    pub(super) fn share(&self) -> f64 {
        self.share
    }

    /// What is held, in no order.
    pub(super) fn values(&self) -> &[i64] {
        &self.ring[..self.len]
    }

    /// Whether the next value goes to the ring's start.
    #[inline]
    pub(super) fn is_at_start(&self) -> bool {
        self.next == 0
    }

    /// Bytes beyond the struct itself.
    pub(super) fn heap_bytes(&self) -> usize {
        size_of_val(&*self.ring)
    }
}

/// Chen's estimate of when the next beat arrives: `EA = mean(A_i − σ_i) + σ_{l+1}` over the last `n`
/// beats received, with `σ_i` the time at which beat `i` was sent by the [`Schedule`].
#[derive(Clone, Debug)]
pub(super) struct Expected {
    schedule: Schedule,
    interval_s: f64,
    /// The first `A − σ`. Clocks may be years apart; what is averaged is small beside it.
    base_s: Option<f64>,
    window: Window,
}

impl Expected {
    pub(super) fn new(schedule: Schedule, window: usize, interval_s: f64) -> Self {
        Self { schedule, interval_s, base_s: None, window: Window::new(window) }
    }

    /// Takes an arrival; answers when the next one is expected.
    #[inline]
    pub(super) fn observe(&mut self, a: &Arrival) -> f64 {
        self.observe_both(a).1
    }

    /// Takes an arrival; answers when the next one is expected by this arrival alone, and by the
    /// window.
    #[inline]
    pub(super) fn observe_both(&mut self, a: &Arrival) -> (f64, f64) {
        let (sent_s, gap_s) = match self.schedule {
            Schedule::Raw => (f64::from(a.seq) * self.interval_s, self.interval_s),
            Schedule::Announced => (a.sent_s, a.gap_s),
        };
        let shift_s = a.at_s - sent_s;
        let base_s = *self.base_s.get_or_insert(shift_s);
        self.window.push(micros(shift_s - base_s));
        let next_s = sent_s + gap_s;
        (next_s + shift_s, next_s + base_s + self.window.mean() * 1e-6)
    }

    /// Bytes beyond the struct itself.
    pub(super) fn heap_bytes(&self) -> usize {
        self.window.heap_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_of_the_last_values_only() {
        let mut w = Window::new(3);
        assert_eq!(w.mean(), 0.0);
        assert_eq!([5, 7].map(|v| w.push(v)), [None, None]);
        assert_eq!((w.mean(), w.values()), (6.0, &[5, 7][..]));
        // 5 7 9 → 7; then 5 goes and -1 comes: 7 9 -1 → 5.
        assert_eq!((w.push(9), w.mean()), (None, 7.0));
        assert!(w.is_at_start());
        assert_eq!((w.push(-1), w.mean()), (Some(5), 5.0));
        assert_eq!(w.push(0), Some(7));
    }

    #[test]
    fn seconds_are_rounded_to_the_nearest_microsecond() {
        assert_eq!(
            [1.5, -1.5, 2.6e-6, -2.6e-6, 0.0].map(micros),
            [1_500_000, -1_500_000, 3, -3, 0]
        );
    }
}
