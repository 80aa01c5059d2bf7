//! How much of a host's silence may be our own deafness.
//!
//! Time is cut into windows; each knows how many datagrams were received and how many the kernel
//! dropped at our sockets (read between draining them and judging). In a window with drop share p, the
//! chance that *we* lost one given beat is p. A silent host is convicted only once
//! `Σ −ln p ≥ 14` over the beats that it missed: then the chance that we lost them all is under 10⁻⁶.
//! With no drops one missed beat is enough (−ln 0 = ∞); at 1 % it takes four; at 50 % twenty.
//!
//! So neither a flood nor a trickle of junk keeps the controller in doubt for ever, and beyond
//! `doubt_max` a host is judged all the same: probes over a separate socket then decide, and the shard
//! is *blind* until it has heard well for a while, which holds actions but never states.

use std::collections::VecDeque;
use std::time::Duration;

use heartwatch_common::time::Instant;

/// Evidence that convicts: −ln of the chance that we lost every missed beat.
pub const EVIDENCE_MIN: f64 = 14.0;
/// A window is closed when it is this old. A long stop of the process makes one long window.
const WINDOW: Duration = Duration::from_millis(250);
/// Windows kept; older ones are older than any `doubt_max` at one window per 250 ms … 10 min.
const WINDOWS_MAX: usize = 2_600;
/// How long the sockets must have dropped nothing before a blind shard sees again.
const CLEAR_AFTER: Duration = Duration::from_secs(5);
/// An own stall this long makes the share of unexpectedly absent datagrams count as dropped.
const STALL: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Window {
    start: Instant,
    end: Instant,
    received: u64,
    dropped: u64,
}

impl Window {
    fn drop_share(&self) -> f64 {
        if self.dropped == 0 {
            return 0.0;
        }
        self.dropped as f64 / (self.dropped + self.received) as f64
    }
}

/// What doubt says about a host whose deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excuse {
    /// It had its fair chance.
    None,
    /// We may have lost its beats: look again at this instant.
    Until(Instant),
    /// Excused for `doubt_max`: let probes decide. The shard is blind.
    Exhausted,
}

/// One shard's record of its own losses.
#[derive(Clone, Debug)]
pub struct Doubt {
    windows: VecDeque<Window>,
    open: Window,
    /// End of the last window in which something was dropped.
    dropped_until: Instant,
    /// Datagrams per second that reached our sockets lately, dropped ones included.
    rate: f64,
    blind: bool,
    doubt_max: Duration,
}

impl Doubt {
    /// No losses so far.
    pub fn new(now: Instant, doubt_max: Duration) -> Self {
        let open = Window { start: now, end: now, received: 0, dropped: 0 };
        Self {
            windows: VecDeque::new(),
            open,
            dropped_until: Instant(0),
            rate: 0.0,
            blind: false,
            doubt_max,
        }
    }

    /// Records what one pass received and what the kernel dropped since the pass before. After an own
    /// stall of a second or more, what is missing against the usual rate without a known drop counts as
    /// possibly lost too: a suspended virtual machine, a network card that was reset.
    pub fn record(&mut self, now: Instant, received: u64, dropped: u64) {
        let idle = now.since(self.open.end);
        self.open.end = now.max(self.open.end);
        self.open.received += received;
        self.open.dropped += dropped;
        if idle >= STALL {
            let expected = (self.rate * idle.as_secs_f64()) as u64;
            // Statistical slack: a few beats more or less prove nothing.
            let slack = 4 + expected / 16;
            self.open.dropped += expected.saturating_sub(received + dropped + slack);
        }
        if self.open.dropped > 0 {
            self.dropped_until = self.open.end;
        }
        if self.open.end.since(self.open.start) >= WINDOW {
            let span = self.open.end.since(self.open.start);
            if span < STALL {
                let seen = (self.open.received + self.open.dropped) as f64;
                self.rate += (seen / span.as_secs_f64() - self.rate) / 16.0;
            }
            self.windows.push_back(self.open);
            if self.windows.len() > WINDOWS_MAX {
                self.windows.pop_front();
            }
            self.open = Window { start: now, end: now, received: 0, dropped: 0 };
        }
        if self.blind && now.since(self.dropped_until) >= CLEAR_AFTER {
            self.blind = false;
        }
    }

    /// Whether actions must be held because own losses have lasted beyond `doubt_max`.
    pub fn is_blind(&self) -> bool {
        self.blind
    }

    /// Whether anything was dropped after `since`: a gap that spans it teaches nothing about the host.
    pub fn dropped_after(&self, since: Instant) -> bool {
        self.dropped_until > since
    }

    /// Share of datagrams dropped in the newest closed window, parts per million.
    pub fn drop_ppm(&self) -> u64 {
        let newest = self.windows.back().unwrap_or(&self.open);
        (newest.drop_share().max(self.open.drop_share()) * 1e6) as u64
    }

    /// The greatest drop share of any window that overlaps `from..=to`.
    fn worst(&self, from: Instant, to: Instant) -> f64 {
        // Newest first, and no further back than the span.
        std::iter::once(&self.open)
            .chain(self.windows.iter().rev())
            .take_while(|w| w.end >= from)
            .filter(|w| w.start <= to)
            .map(Window::drop_share)
            .fold(0.0, f64::max)
    }

    /// Judges a host whose next beat was expected at `expected` with a margin, whose gaps are about
    /// `gap`, as of the watermark `seen` (everything up to it has been read), and which has been excused
    /// since `excused_since`. That, not its deadline, is where `doubt_max` counts from: after a long stop
    /// every deadline is long past, and everybody deserves a chance to be heard again.
    pub fn judge(
        &mut self,
        expected: Instant,
        gap: Duration,
        margin: Duration,
        seen: Instant,
        excused_since: Option<Instant>,
    ) -> Excuse {
        if self.dropped_until < expected {
            return Excuse::None;
        }
        // Jitter is at most half an interval, so each span of 1.5 gaps holds at least one beat.
        let span = (gap + gap / 2).max(Duration::from_millis(1));
        let mut evidence = 0.0;
        let (mut from, mut to) = (expected, expected + margin);
        while to <= seen {
            let p = self.worst(from, to);
            evidence += if p > 0.0 { -p.min(0.999).ln() } else { f64::INFINITY };
            if evidence >= EVIDENCE_MIN {
                return Excuse::None;
            }
            from = if from == expected { expected + Duration::from_nanos(1) } else { from + span };
            to = from + span + margin;
        }
        if excused_since.is_some_and(|since| seen.since(since) >= self.doubt_max) {
            self.blind = true;
            return Excuse::Exhausted;
        }
        Excuse::Until(to.max(seen + Duration::from_millis(10)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MARGIN: Duration = Duration::from_millis(500);

    fn s(n: u64) -> Instant {
        Instant::from_millis(n * 1_000)
    }

    /// A doubt that saw so many of 1,000 datagrams dropped in every quarter of a second up to `until`.
    fn dropping(per_mille: u64, until: u64, doubt_max: u64) -> Doubt {
        let mut doubt = Doubt::new(s(0), Duration::from_secs(doubt_max));
        quarters(&mut doubt, 0, until, per_mille);
        doubt
    }

    fn quarters(doubt: &mut Doubt, from: u64, to: u64, per_mille: u64) {
        for q in from * 4 + 1..=to * 4 {
            doubt.record(Instant::from_millis(q * 250), 1_000 - per_mille, per_mille);
        }
    }

    fn judge(doubt: &mut Doubt, expected: u64, seen: u64) -> Excuse {
        doubt.judge(s(expected), SECOND, MARGIN, s(seen), None)
    }

    /// Seconds of silence until a host expected at 10 s is convicted (or excuses end).
    fn convicted_after(per_mille: u64, doubt_max: u64) -> (u64, Excuse) {
        let mut doubt = dropping(per_mille, 10, doubt_max);
        let mut since = None;
        for q in 41..800 {
            let now = Instant::from_millis(q * 250);
            doubt.record(now, 1_000 - per_mille, per_mille);
            if now < s(10) + MARGIN {
                continue;
            }
            match doubt.judge(s(10), SECOND, MARGIN, now, since) {
                Excuse::Until(at) => {
                    assert!(at > now);
                    since = since.or(Some(now));
                }
                done => return (q / 4 - 10, done),
            }
        }
        panic!("excused for ever");
    }

    #[test]
    fn without_drops_one_missed_beat_is_enough() {
        assert_eq!(convicted_after(0, 30), (0, Excuse::None));
    }

    #[test]
    fn the_fair_chance_grows_with_the_drop_share() {
        // −ln 0.01 = 4.6: four beats; at one beat per 1.5 s at the worst.
        let (one_percent, verdict) = convicted_after(10, 30);
        assert_eq!(verdict, Excuse::None);
        assert!((3..=6).contains(&one_percent), "{one_percent}");
        // −ln 0.5 = 0.69: twenty-one beats.
        let (half, verdict) = convicted_after(500, 60);
        assert_eq!(verdict, Excuse::None);
        assert!((20..=32).contains(&half), "{half}");
    }

    #[test]
    fn a_flood_excuses_for_doubt_max_and_no_longer() {
        let (after, verdict) = convicted_after(950, 30);
        assert_eq!(verdict, Excuse::Exhausted);
        assert!((30..=31).contains(&after), "{after}");
    }

    #[test]
    fn drops_before_the_expected_beat_excuse_nothing() {
        let mut doubt = dropping(900, 9, 30);
        quarters(&mut doubt, 9, 11, 0);
        assert_eq!(judge(&mut doubt, 10, 11), Excuse::None);
    }

    #[test]
    fn after_a_stop_with_drops_one_clean_span_convicts() {
        let mut doubt = dropping(0, 10, 30);
        // Stopped for a minute: the buffer kept 100 of 60 000. Nobody is judged by that minute.
        doubt.record(s(70), 100, 59_900);
        assert!(matches!(judge(&mut doubt, 10, 70), Excuse::Until(_)));
        quarters(&mut doubt, 70, 75, 0);
        assert_eq!(judge(&mut doubt, 10, 75), Excuse::None);
        assert!(doubt.dropped_after(s(20)) && !doubt.dropped_after(s(71)));
    }

    #[test]
    fn what_is_missing_after_an_own_stall_counts_as_lost() {
        // 4 000 datagrams a second; then a minute's stop that leaves ten in the mailbox.
        let mut doubt = dropping(0, 60, 30);
        doubt.record(s(120), 10, 0);
        assert!(matches!(judge(&mut doubt, 61, 120), Excuse::Until(_)));
        let mut heard = dropping(0, 60, 30);
        heard.record(s(120), 239_000, 0);
        assert_eq!(judge(&mut heard, 61, 120), Excuse::None);
    }

    #[test]
    fn blindness_ends_when_the_sockets_have_been_quiet() {
        let mut doubt = dropping(950, 60, 30);
        let since = Some(s(20));
        let verdict = doubt.judge(s(10), SECOND, MARGIN, s(60), since);
        assert_eq!(verdict, Excuse::Exhausted);
        assert!(doubt.is_blind());
        quarters(&mut doubt, 60, 64, 0);
        assert!(doubt.is_blind());
        quarters(&mut doubt, 64, 66, 0);
        assert!(!doubt.is_blind());
    }
}
