//! Moments in which nobody at all is heard: they stop every host's clock.
//!
//! A machine whose processor is taken away for 40 ms, a switch that learns its tables anew: for a moment
//! nothing arrives, and then everything at once. Whose beat was due in such a moment is late through no fault
//! of his, and in a fleet of a million there are tens of thousands of them. [`Doubt`](super::doubt) asks what
//! *we* lost and what a cut link explains, which takes longer than a short margin lasts, and says nothing
//! about hosts of the controller's own machine, nor about a beat that was due just before the silence. Here
//! nothing is explained: time in which nobody was heard is no evidence about one, so it is not counted.
//!
//! A silence is a hush if at the usual rate [`HUSH_BEATS`] would have come in it. As what piled up comes in
//! its turn, the clocks stand for as long again after its end. Each stops them for at most twice
//! [`HUSH_MAX`], beyond which it is a cut or all are dead; and where silences are usual, since a small fleet
//! beats in step, none is a hush.
//!
//! Cost: two comparisons a datagram; a look through at most [`PAST_MAX`] hushes for a host that would
//! otherwise be suspected.

use std::collections::VecDeque;
use std::time::Duration;

use heartwatch_common::time::Instant;

/// Beats that must be missing: that so many independent ones stay away by chance happens once in e²⁰ times.
const HUSH_BEATS: f64 = 20.0;
/// No shorter silence is a hush: it is well below the least margin.
const HUSH_MIN: Duration = Duration::from_millis(5);
/// So much of one silence is not counted, and no more.
pub(super) const HUSH_MAX: Duration = Duration::from_secs(1);
/// Share of the time, lately, above which silences are usual.
const USUAL_SHARE: f64 = 0.125;
/// How often rate and share are reckoned anew.
const WINDOW: Duration = Duration::from_millis(250);
/// Newest hushes that are kept. At [`USUAL_SHARE`] and [`HUSH_MIN`] a margin of half a second sees all.
const PAST_MAX: usize = 16;

/// Of what rate was heard lately, and when nobody was.
#[derive(Clone, Debug)]
pub(super) struct Hush {
    /// When anybody was last heard.
    heard: Instant,
    /// No shorter silence is one.
    least: Duration,
    /// Proofs of life per second, lately.
    rate: f64,
    /// How much of the time nobody was heard, lately.
    share: f64,
    window: Instant,
    /// Proofs, and silence, of the open window.
    count: u64,
    silent: Duration,
    /// From when until when, oldest first.
    past: VecDeque<(Instant, Instant)>,
    /// Until when clocks stood because of the newest of them.
    until: Instant,
}

impl Hush {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            heard: now,
            least: Duration::MAX,
            rate: 0.0,
            share: 0.0,
            window: now,
            count: 0,
            silent: Duration::ZERO,
            past: VecDeque::with_capacity(PAST_MAX),
            until: Instant(0),
        }
    }

    /// Somebody was heard.
    #[inline]
    pub(super) fn hear(&mut self, arrival: Instant) {
        self.count += 1;
        if arrival > self.heard {
            if arrival.since(self.heard) >= self.least {
                self.end(arrival);
            }
            self.heard = arrival;
        }
    }

    #[cold]
    fn end(&mut self, arrival: Instant) {
        let silence = arrival.since(self.heard).min(HUSH_MAX);
        self.silent += silence;
        if self.share <= USUAL_SHARE {
            if self.past.len() == PAST_MAX {
                self.past.pop_front();
            }
            self.past.push_back((self.heard, arrival));
            self.until = arrival + silence;
        }
    }

    /// Time goes on. To be called at least every few hundred milliseconds.
    pub(super) fn pass(&mut self, now: Instant) {
        let span = now.since(self.window);
        if span < WINDOW {
            return;
        }
        // A longer one is a stop of our own: the mail of it comes all at once, and says nothing of a rate.
        if span < HUSH_MAX {
            let seconds = span.as_secs_f64();
            self.rate += (self.count as f64 / seconds - self.rate) / 16.0;
            self.share += (self.silent.as_secs_f64() / seconds - self.share) / 16.0;
        }
        let least = HUSH_BEATS / self.rate.max(1.0);
        self.least = match least > HUSH_MAX.as_secs_f64() {
            true => Duration::MAX,
            false => HUSH_MIN.max(Duration::from_secs_f64(least)),
        };
        (self.window, self.count, self.silent) = (now, 0, Duration::ZERO);
    }

    /// Whether hushes made a beat late that was expected at `expected` and has come now, at `arrival`: it
    /// teaches nothing about the host. What is later than they account for does.
    #[inline]
    pub(super) fn explains(&self, expected: Instant, arrival: Instant) -> bool {
        expected < self.until && self.accounts_for(expected, arrival)
    }

    #[cold]
    fn accounts_for(&self, expected: Instant, arrival: Instant) -> bool {
        arrival.since(expected) <= self.stopped(expected, arrival) + HUSH_MIN
    }

    /// Whether unanswered probes prove nothing as of `seen`: nobody is heard, or was until just now. Not
    /// beyond [`HUSH_MAX`], nor for longer than that after it.
    pub(super) fn holds(&self, seen: Instant) -> bool {
        let silence = seen.since(self.heard);
        let goes_on = silence >= self.least && silence < HUSH_MAX && self.share <= USUAL_SHARE;
        goes_on || seen < self.until
    }

    /// For how long, from `from` on, clocks stand still, as of `seen`: all that arrived before has been
    /// heard. A silence that goes on counts as one that ends now.
    pub(super) fn stopped(&self, from: Instant, seen: Instant) -> Duration {
        let goes_on = seen.since(self.heard) >= self.least && self.share <= USUAL_SHARE;
        let last = goes_on.then_some((self.heard, seen));
        let stop = |(start, end): (Instant, Instant)| {
            let silence = end.since(start).min(HUSH_MAX);
            (end + silence).since(start.max(from)).min(silence * 2)
        };
        self.past.iter().copied().chain(last).map(stop).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Instant {
        Instant::from_millis(n)
    }

    /// Hears somebody every `every` milliseconds, from `from` to `to`, but not while `silent`.
    fn run(hush: &mut Hush, from: u64, to: u64, every: usize, silent: impl Fn(u64) -> bool) {
        for at in (from..to).step_by(every).filter(|at| !silent(*at)) {
            hush.hear(ms(at));
        }
        for at in (from..to).step_by(50) {
            hush.pass(ms(at));
        }
    }

    /// A thousand beats a second for ten seconds.
    fn heard_well() -> Hush {
        let mut hush = Hush::new(ms(0));
        for s in 0..40 {
            run(&mut hush, s * 250, (s + 1) * 250, 1, |_| false);
        }
        hush
    }

    #[test]
    fn clocks_stand_while_nobody_is_heard_and_as_long_again() {
        let mut hush = heard_well();
        assert_eq!(hush.stopped(ms(9_000), ms(10_010)), Duration::ZERO, "10 beats may be missing");
        // At 9,999 ms the last was heard.
        assert_eq!(hush.stopped(ms(9_000), ms(10_039)), Duration::from_millis(80));
        assert_eq!(hush.stopped(ms(10_019), ms(10_039)), Duration::from_millis(60));
        run(&mut hush, 10_039, 10_100, 1, |_| false);
        assert_eq!(hush.stopped(ms(9_000), ms(10_100)), Duration::from_millis(80));
        assert_eq!(hush.stopped(ms(10_059), ms(10_100)), Duration::from_millis(20));
        assert_eq!(hush.stopped(ms(10_090), ms(10_100)), Duration::ZERO);
    }

    #[test]
    fn who_has_heard_little_knows_of_no_hush() {
        // Ten beats a second: twenty of them are two seconds.
        let mut hush = Hush::new(ms(0));
        for q in 0..200 {
            run(&mut hush, q * 250, (q + 1) * 250, 100, |_| false);
        }
        assert_eq!(hush.stopped(ms(49_000), ms(51_900)), Duration::ZERO);
    }

    /// A fleet whose hosts booted together beats together: a second of which 0.8 are silent is its usual one.
    #[test]
    fn where_silences_are_usual_none_is_a_hush() {
        let mut hush = Hush::new(ms(0));
        for q in 0..80 {
            run(&mut hush, q * 250, (q + 1) * 250, 1, |at| at % 1_000 >= 200);
        }
        assert_eq!(hush.stopped(ms(19_500), ms(20_000)), Duration::ZERO);
        // And once they beat spread out, moments of silence count for nothing again.
        for q in 80..160 {
            run(&mut hush, q * 250, (q + 1) * 250, 1, |_| false);
        }
        assert_eq!(hush.stopped(ms(39_500), ms(40_039)), Duration::from_millis(80));
    }

    #[test]
    fn no_silence_stops_clocks_for_ever() {
        let mut hush = heard_well();
        assert_eq!(hush.stopped(ms(9_000), ms(60_000)), HUSH_MAX * 2);
        hush.hear(ms(60_000));
        assert_eq!(hush.stopped(ms(9_000), ms(60_000)), HUSH_MAX * 2);
        for n in 0..1_000 {
            hush.hear(ms(60_000 + n * 50));
        }
        assert_eq!(hush.past.len(), PAST_MAX);
    }

    /// Ten milliseconds of every hundred were silent, and no beat that was more than 90 ms late was ever
    /// learned from, whatever had made it so.
    #[test]
    fn what_is_later_than_hushes_account_for_is_learned() {
        let mut hush = heard_well();
        run(&mut hush, 10_000, 10_150, 1, |at| at < 10_030);
        // Silent from 9,999 to 10,030 ms: clocks stood until 10,061.
        assert!(hush.explains(ms(10_000), ms(10_035)));
        assert!(hush.explains(ms(9_990), ms(10_036)));
        assert!(!hush.explains(ms(9_990), ms(10_140)), "150 ms late, 62 of them by a hush");
        assert!(!hush.explains(ms(10_062), ms(10_063)));
    }

    /// A suspect's probes fell into a silence of 0.7 s of hosts of the controller's own machine, and it was
    /// called down.
    #[test]
    fn verdicts_wait_while_nobody_is_heard_and_as_long_again_but_not_for_ever() {
        let mut hush = heard_well();
        assert!(!hush.holds(ms(10_005)));
        assert!(hush.holds(ms(10_040)));
        assert!(hush.holds(ms(10_998)));
        assert!(!hush.holds(ms(10_999)), "beyond a second it is a cut, or all are dead");
        hush.hear(ms(10_699));
        assert!(hush.holds(ms(10_700)));
        assert!(hush.holds(ms(11_398)));
        run(&mut hush, 10_700, 11_400, 1, |_| false);
        assert!(!hush.holds(ms(11_400)));
    }
}
