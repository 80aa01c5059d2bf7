//! How far a socket has been read, and when what it held arrived: pure.
//!
//! *Arrivals* are the kernel's receive stamps, brought from the wall clock to the monotonic one and
//! clamped into [last time the socket was found empty, now]: a stepped wall clock moves none outside
//! the span in which it must have come.
//!
//! The *watermark* of a socket is the latest instant before which everything that arrived has been
//! read: the instant before a receive that found it empty, or the newest stamp drained, less the
//! greatest disorder seen lately. It never falls.

use std::time::Duration;

use heartwatch_common::time::Instant;

/// Least allowance for stamps that are out of order.
pub const SLACK_MIN: Duration = Duration::from_micros(200);
/// Greatest.
const SLACK_MAX: Duration = Duration::from_millis(100);

/// For how long [`Longest`] remembers, at least; at most twice as long.
const LONGEST_FOR: Duration = Duration::from_secs(10);

/// The longest of the spans of the last ten to twenty seconds.
#[derive(Clone, Copy, Debug)]
struct Longest {
    since: Instant,
    present: Duration,
    before: Duration,
}

impl Longest {
    /// Nothing noted yet.
    fn new(now: Instant) -> Self {
        Self { since: now, present: Duration::ZERO, before: Duration::ZERO }
    }

    /// Notes a span that ended at `now`.
    fn note(&mut self, span: Duration, now: Instant) {
        let age = now.since(self.since);
        if age >= LONGEST_FOR {
            // After a long sleep the present window is as stale as the one before it.
            self.before = if age < LONGEST_FOR * 2 { self.present } else { Duration::ZERO };
            (self.present, self.since) = (Duration::ZERO, now);
        }
        self.present = self.present.max(span);
    }

    /// The longest.
    fn span(&self) -> Duration {
        self.present.max(self.before)
    }
}

/// How long a shard is away from its sockets.
#[derive(Clone, Copy, Debug)]
pub struct Away {
    /// When it turned away, later by the time that it waited for them since.
    since: Instant,
    longest: Longest,
}

impl Away {
    /// It turns away now.
    pub fn new(now: Instant) -> Self {
        Self { since: now, longest: Longest::new(now) }
    }

    /// It has read its sockets and turns to other things, naps among them.
    pub fn begins(&mut self, now: Instant) {
        self.since = now;
    }

    /// It has waited for mail since `begun`, for `span` and the millisecond to which that is rounded at
    /// most: meanwhile it was not away. What went beyond that it was, stopped or without a processor.
    pub fn waited(&mut self, begun: Instant, span: Duration, now: Instant) {
        self.since = self.since + now.since(begun).min(span + Duration::from_millis(1));
    }

    /// It comes back to read them. Answers how long it was away at the longest, in the last ten to twenty
    /// seconds.
    pub fn ends(&mut self, now: Instant) -> Duration {
        self.longest.note(now.since(self.since), now);
        self.longest.span()
    }
}

/// One socket's place in time.
#[derive(Clone, Debug)]
pub struct Watch {
    /// When it began: what was stamped before then waited for us, and tells nothing of disorder.
    began: Instant,
    /// The instant before the last receive that found the socket empty.
    empty_at: Instant,
    newest: Instant,
    watermark: Instant,
    slack: Duration,
    /// The kernel's drop counter when last read.
    pub drops: u64,
}

impl Watch {
    /// A socket that was made, or taken over, just now.
    pub fn new(now: Instant) -> Self {
        Self { began: now, empty_at: now, newest: now, watermark: now, slack: SLACK_MIN, drops: 0 }
    }

    /// Notes that a receive begun at `before` found the socket empty.
    pub fn found_empty(&mut self, before: Instant) {
        self.empty_at = self.empty_at.max(before);
    }

    /// The allowance for disorder right now.
    pub fn slack(&self) -> Duration {
        self.slack
    }

    /// Brings a kernel stamp to the monotonic clock.
    pub fn arrival(&mut self, stamp_ns: Option<i64>, wall_ns: i64, now: Instant) -> Instant {
        let age = stamp_ns.map_or(0, |s| wall_ns.saturating_sub(s));
        let at = Instant(now.0.saturating_sub(u64::try_from(age).unwrap_or(0)));
        if at < self.empty_at && at >= self.began {
            // Stamped before an instant at which it could not be read yet: that is the disorder.
            let disorder = self.empty_at.since(at) * 2;
            self.slack = self.slack.max(disorder).min(SLACK_MAX);
        }
        let at = at.clamp(self.empty_at.min(now), now);
        // No stamp, or one from the future after a step of the wall clock, says nothing of how far the
        // mail has been read.
        if stamp_ns.is_some_and(|s| s <= wall_ns) {
            self.newest = self.newest.max(at);
        }
        at
    }

    /// The watermark now. It never falls; callers cap it at the present.
    pub fn advance(&mut self) -> Instant {
        let seen = self.empty_at.max(self.newest) - self.slack;
        self.watermark = self.watermark.max(seen);
        // Disorder is forgotten by one part in 4,096 a pass.
        self.slack = (self.slack - self.slack / 4_096).max(SLACK_MIN);
        self.watermark
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Instant {
        Instant::from_millis(n)
    }

    #[test]
    fn the_longest_span_is_remembered_for_ten_to_twenty_seconds() {
        let at = |s: u64| Instant::from_millis(s * 1_000);
        let ms = Duration::from_millis;
        let mut longest = Longest::new(at(0));
        longest.note(ms(9), at(9));
        longest.note(ms(1), at(10));
        assert_eq!(longest.span(), ms(9));
        longest.note(ms(2), at(20));
        assert_eq!(longest.span(), ms(2));
        longest.note(ms(1), at(600));
        assert_eq!(longest.span(), ms(1));
    }

    /// What came between reading and a rest once counted for nothing, and neither did naps: 0.6 ms were told
    /// where 9 were true.
    #[test]
    fn all_but_waiting_for_mail_is_time_away() {
        let span = Duration::from_millis;
        let mut away = Away::new(ms(0));
        // It judges for 3 ms and naps for 4.
        away.begins(ms(1_000));
        assert_eq!(away.ends(ms(1_007)), span(7));
        // It judges for 8 ms, waits for 50, obeys for 1: mail may have come before it waited.
        away.begins(ms(1_010));
        away.waited(ms(1_018), span(50), ms(1_068));
        assert_eq!(away.ends(ms(1_069)), span(9));
        // It is stopped in a wait.
        away.begins(ms(1_070));
        away.waited(ms(1_070), span(99), ms(4_170));
        assert_eq!(away.ends(ms(4_170)), span(3_000));
    }

    #[test]
    fn a_stepped_wall_clock_moves_no_arrival_outside_its_span() {
        let mut watch = Watch::new(ms(1_000));
        watch.found_empty(ms(2_000));
        let wall = 1_700_000_000_000_000_000i64;
        let hour = 3_600_000_000_000;
        assert_eq!(watch.arrival(Some(wall - 5_000_000), wall, ms(2_050)), ms(2_045));
        assert_eq!(watch.arrival(Some(wall - hour), wall, ms(2_050)), ms(2_000));
        assert_eq!(watch.arrival(Some(wall + hour), wall, ms(2_050)), ms(2_050));
        assert_eq!(watch.arrival(None, wall, ms(2_050)), ms(2_050));
    }

    #[test]
    fn mail_that_waited_before_the_start_is_no_disorder_and_counts_as_arrived_then() {
        let mut watch = Watch::new(ms(60_000));
        let wall = 1_700_000_000_000_000_000i64;
        let waited = wall - 30_000_000_000;
        assert_eq!(watch.arrival(Some(waited), wall, ms(60_010)), ms(60_000));
        assert_eq!(watch.slack(), SLACK_MIN);
    }

    #[test]
    fn the_watermark_never_falls_and_follows_the_mail_after_a_stop() {
        let mut watch = Watch::new(ms(1_000));
        watch.found_empty(ms(2_000));
        let before = watch.advance();
        assert!(before <= ms(2_000) && before >= ms(1_990));
        // Stopped for 20 s; the oldest mail is read first: nobody is judged beyond it.
        let wall = 1_700_000_000_000_000_000i64;
        watch.arrival(Some(wall - 19_000_000_000), wall, ms(22_000));
        let reading = watch.advance();
        assert!(reading >= before && reading <= ms(3_000), "{reading:?}");
        watch.found_empty(ms(22_001));
        assert!(watch.advance() >= ms(21_900));
    }
}
