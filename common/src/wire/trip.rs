//! A round trip in one byte.

use std::time::Duration;

/// A round trip on a logarithmic scale: 50 µs × 2^(code ÷ 12), so 53 µs to 125 s in steps of 6 %; code 0
/// is "unknown".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundTrip(pub u8);

/// What code 0 would stand for.
const UNIT_US: f64 = 50.0;
/// Codes per doubling.
const PER_OCTAVE: f64 = 12.0;

impl RoundTrip {
    /// Not measured yet.
    pub const UNKNOWN: Self = Self(0);

    /// The next longer code, so that nobody waits too short; at the ends the nearest.
    pub fn new(trip: Duration) -> Self {
        let octaves = (trip.as_secs_f64() * 1e6 / UNIT_US).log2();
        // A round trip of zero is −∞ octaves, and that too clamps to the shortest. The small step back
        // makes what a code stands for that code again.
        Self((octaves * PER_OCTAVE - 1e-3).ceil().clamp(1.0, 255.0) as u8)
    }

    /// How long it is; `None` if unknown.
    pub fn duration(self) -> Option<Duration> {
        (self.0 > 0).then(|| {
            let us = UNIT_US * (f64::from(self.0) / PER_OCTAVE).exp2();
            Duration::from_nanos((us * 1e3) as u64)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_never_shorter_than_the_trip_and_at_most_six_percent_longer() {
        let mut us = 54;
        while us < 120_000_000 {
            let trip = Duration::from_micros(us);
            let read = RoundTrip::new(trip).duration().unwrap();
            let ratio = read.as_secs_f64() / trip.as_secs_f64();
            assert!((0.999..1.061).contains(&ratio), "{trip:?} reads {read:?}");
            us += us / 7 + 1;
        }
    }

    #[test]
    fn every_code_survives_and_the_ends_hold() {
        assert_eq!(RoundTrip::UNKNOWN.duration(), None);
        for code in 1..=255 {
            assert_eq!(RoundTrip::new(RoundTrip(code).duration().unwrap()), RoundTrip(code));
        }
        assert_eq!(RoundTrip::new(Duration::ZERO), RoundTrip(1));
        assert_eq!(RoundTrip::new(Duration::MAX), RoundTrip(255));
        let whole: Vec<_> =
            [1, 127, 255].map(|code| RoundTrip(code).duration().unwrap().as_micros()).to_vec();
        assert_eq!(whole, [52, 76_713, 124_697_403]);
    }
}
