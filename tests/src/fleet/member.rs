//! One host of a mass: what an agent does, in 84 bytes.
//!
//! It follows `heartwatch_agent::core` in all that a controller can see: numbers, phase jitter on a fixed
//! grid, true gaps, hellos repeated until acked, acks asked for by cadence and again until answered,
//! epochs and intervals learnt from acks. It leaves out what protects an agent from others: it does not
//! compare an ack's echoed time, nor limit probes.

use std::time::Duration;

use heartwatch_common::auth::HostKey;
use heartwatch_common::id::{Boot, Epoch, Seq};
use heartwatch_common::time::Instant;
use heartwatch_common::wire::{Ack, FLAG_CHALLENGE, FLAG_SAY_HELLO, Stamp};

use super::mix::Draws;

/// A moment of the schedule, milliseconds since the generator's start.
pub(super) type Tick = u32;
/// Never.
pub(super) const NEVER: Tick = Tick::MAX;
/// Datagrams back that an ack may answer, as with the agent's window.
const WINDOW_LEN: u32 = 32;
/// Two hellos are never closer than this, ms.
const HELLO_GAP_MIN: u32 = 200;
/// A hello is repeated at least this often, ms.
const HELLO_GAP_MAX: u32 = 30_000;
/// An assigned interval is brought into these bounds, ms.
const INTERVALS: (u32, u32) = (50, 60_000);
/// Requests without answer before a session counts as lost, and the least time in which, ms.
const UNANSWERED_MAX: u8 = 3;
const UNANSWERED_AGE_MIN: u32 = 2_000;

/// What all hosts of a mass have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Interval unless the controller assigns one, ms.
    pub(super) interval: u32,
    /// Width of the jitter as parts of 1,024 of the interval.
    pub(super) jitter: u32,
    /// Beats between two requests for an ack.
    pub(super) cadence: u16,
}

/// Whether a host does anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It beats and answers.
    Alive,
    /// It stands still.
    Paused,
    /// It is dead, or has left.
    Gone,
}

/// One host.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) key: HostKey,
    boot: u32,
    seq: u32,
    epoch: u32,
    /// The undisturbed schedule's present beat; jitter is laid on top.
    grid: Tick,
    next: Tick,
    /// The interval that `grid` was laid for; 0 = none yet.
    laid_for: u32,
    /// 0 = keep your own.
    assigned: u32,
    hello_due: Tick,
    hello_seq: u32,
    /// The epoch of its newest beat.
    shown: u32,
    since_asked: u16,
    unanswered: u8,
    hello_attempts: u8,
    pub(super) life: Life,
    acked: bool,
    /// Datagrams lost on the way, both ways, parts of 256.
    pub(super) loss: u8,
}

/// What became of an ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It answers nothing of late.
    Unmatched,
    /// Taken; a hello may be due at that tick.
    Yes { hello_at: Tick, challenge: bool },
}

impl Member {
    /// A host that does nothing yet.
    pub(super) fn new(key: HostKey) -> Self {
        Self {
            key,
            boot: 0,
            seq: 0,
            epoch: 0,
            grid: 0,
            next: NEVER,
            laid_for: 0,
            assigned: 0,
            hello_due: NEVER,
            hello_seq: 0,
            shown: 0,
            since_asked: 0,
            unanswered: 0,
            hello_attempts: 0,
            life: Life::Gone,
            acked: false,
            loss: 0,
        }
    }

    /// A new boot, whose first hello and beat are due at `at`. Of its grid nothing but the host's own draw
    /// is known, so the order in which hosts join says nothing about the order in which they beat.
    pub(super) fn start(&mut self, at: Tick, first_boot: u32) {
        self.boot = self.boot.saturating_add(1).max(first_boot);
        self.seq = 0;
        self.epoch = 0;
        self.shown = 0;
        self.next = at;
        self.laid_for = 0;
        self.assigned = 0;
        self.hello_due = at;
        self.hello_attempts = 0;
        self.since_asked = 0;
        self.unanswered = 0;
        self.acked = false;
        self.life = Life::Alive;
    }

    /// When it begins, if that is after `tick`: it has said nothing yet.
    pub(super) fn starts_after(&self, tick: Tick) -> Option<Tick> {
        let begins = self.seq == 0 && self.hello_due != NEVER && self.hello_due > tick;
        begins.then_some(self.hello_due)
    }

    /// Makes it take itself for known, so that it beats without hellos: for those who only count.
    pub(super) fn introduce(&mut self) {
        self.hello_due = NEVER;
        self.acked = true;
    }

    /// Makes it one that the controller knows from before: it beats without hellos, and wants an ack for
    /// each beat until one comes.
    pub(super) fn remember(&mut self) {
        self.hello_due = NEVER;
    }

    /// Goes on after a pause: a beat at once, then the schedule.
    pub(super) fn resume(&mut self, at: Tick) {
        self.life = Life::Alive;
        self.next = at;
    }

    /// Whether a beat is due in just this tick.
    pub(super) fn beat_is_due(&self, tick: Tick) -> bool {
        self.life == Life::Alive && self.next == tick
    }

    /// Whether a hello is due.
    pub(super) fn hello_is_due(&self, tick: Tick) -> bool {
        self.life == Life::Alive && self.hello_due <= tick
    }

    fn interval(&self, pace: &Pace) -> u32 {
        if self.assigned == 0 { pace.interval } else { self.assigned }
    }

    /// Plans the next beat after the one that is due, as the agent's schedule does: on a grid that does
    /// not drift, jittered around it; after a stall, beats are skipped and not made up for.
    pub(super) fn fire(&mut self, now: Tick, pace: &Pace, draws: &mut Draws) -> Tick {
        let interval = self.interval(pace);
        if self.laid_for != interval {
            self.grid = self.next;
            if self.laid_for == 0 {
                // Its first beat: the grid starts anywhere within the coming interval.
                self.grid = self.next.wrapping_sub(draws.below(interval));
            }
            self.laid_for = interval;
        }
        let width = (u64::from(interval) * u64::from(pace.jitter) / 1_024) as u32;
        let offset = i64::from(draws.below(width + 1)) - i64::from(width / 2);
        // The grid of a first beat may lie before tick 0.
        let grid = i64::from(self.grid as i32);
        let interval = i64::from(interval);
        let least = (interval - i64::from(width)) / 2;
        let short = i64::from(now) + least - (grid + interval + offset);
        let skipped = if short > 0 { (short + interval - 1) / interval } else { 0 };
        let grid = grid + interval * (1 + skipped);
        self.grid = grid as u32;
        self.next = u32::try_from(grid + offset).unwrap_or(0).max(now + 1);
        self.next
    }

    /// The tick of the planned beat.
    pub(super) fn next(&self) -> Tick {
        self.next
    }

    /// Says for which tick the planned beat was filed, if not for the asked one.
    pub(super) fn filed(&mut self, tick: Tick) {
        self.next = tick;
    }

    /// Whether the beat of now asks for an ack, and the bookkeeping of having asked.
    pub(super) fn ask(&mut self, pace: &Pace) -> bool {
        let age = u32::from(self.unanswered) * self.interval(pace);
        if self.acked && self.unanswered >= UNANSWERED_MAX && age >= UNANSWERED_AGE_MIN {
            // Acks stopped: what the controller assigned no longer holds.
            self.acked = false;
            self.assigned = 0;
        }
        self.since_asked = self.since_asked.saturating_add(1);
        let ask = !self.acked || self.unanswered > 0 || self.since_asked >= pace.cadence.max(1);
        if ask {
            self.since_asked = 0;
            self.unanswered = self.unanswered.saturating_add(1);
        }
        ask
    }

    /// The stamp of its next datagram.
    pub(super) fn stamp(&mut self, sent: Instant, gap: Duration) -> Stamp {
        self.seq = self.seq.saturating_add(1);
        Stamp { boot: Boot(self.boot), seq: Seq(self.seq), sent, gap, epoch: Epoch(self.epoch) }
    }

    /// Books a hello that is sent now under the newest number; answers when it is repeated.
    pub(super) fn hello_goes_out(&mut self, now: Tick, pace: &Pace, draws: &mut Draws) -> Tick {
        self.hello_seq = self.seq;
        let base = pace.interval.clamp(HELLO_GAP_MIN, HELLO_GAP_MAX);
        let wait = base.saturating_mul(1 << self.hello_attempts.min(8)).min(HELLO_GAP_MAX);
        self.hello_attempts = self.hello_attempts.saturating_add(1);
        let wait = wait - draws.below(wait / 4 + 1);
        self.hello_due = now + wait.max(HELLO_GAP_MIN);
        self.hello_due
    }

    /// Takes an authentic ack.
    pub(super) fn take_ack(&mut self, ack: &Ack, flags: u8, now: Tick) -> Taken {
        let age = self.seq.wrapping_sub(ack.seq.0);
        if ack.boot.0 != self.boot || ack.seq.0 > self.seq || age >= WINDOW_LEN {
            return Taken::Unmatched;
        }
        let news = self.epoch != ack.epoch.0;
        let challenge = flags & FLAG_CHALLENGE != 0;
        let is_hello = ack.seq.0 == self.hello_seq;
        self.learn(ack.epoch);
        self.acked = true;
        self.unanswered = 0;
        let interval = u32::try_from(ack.interval.as_millis()).unwrap_or(u32::MAX);
        self.assigned = if interval == 0 { 0 } else { interval.clamp(INTERVALS.0, INTERVALS.1) };
        if flags & FLAG_SAY_HELLO != 0 || (is_hello && challenge && news) {
            // If one went out just now, its own repetition was filed at least that far off.
            self.hello_due = (now + HELLO_GAP_MIN).min(self.hello_due);
            self.hello_attempts = 0;
        } else if is_hello && !challenge {
            self.hello_due = NEVER;
            self.hello_attempts = 0;
        }
        Taken::Yes { hello_at: self.hello_due, challenge }
    }

    /// Takes an epoch from an ack or a probe.
    pub(super) fn learn(&mut self, epoch: Epoch) {
        if epoch != Epoch(0) {
            self.epoch = epoch.0;
        }
    }

    /// Whether the beat of now is the first that shows this epoch.
    pub(super) fn shows_first(&mut self, epoch: Epoch) -> bool {
        let first = self.epoch == epoch.0 && self.shown != epoch.0;
        self.shown = self.epoch;
        first
    }

    /// Whether it knows an epoch of the controller, and its own hello is acknowledged.
    pub(super) fn is_settled(&self) -> bool {
        self.epoch != 0 && self.hello_due == NEVER
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heartwatch_common::auth::FleetSecret;
    use heartwatch_common::id::{ControllerId, Generation, KeyId};

    const PACE: Pace = Pace { interval: 1_000, jitter: 205, cadence: 10 };

    fn member() -> Member {
        let id = super::super::mass_id(1);
        Member::new(FleetSecret::new(KeyId(1), [1; 32]).host_key(id, Generation(0)))
    }

    fn ack(m: &Member, seq: u32) -> Ack {
        Ack {
            boot: Boot(m.boot),
            seq: Seq(seq),
            echoed_sent: Instant(0),
            interval: Duration::ZERO,
            epoch: Epoch(77),
            controller: ControllerId(1),
            cadence: 10,
            lease: Duration::ZERO,
        }
    }

    #[test]
    fn a_host_takes_at_most_a_hundred_bytes() {
        assert!(size_of::<Member>() <= 100, "{}", size_of::<Member>());
    }

    /// Of a million hosts that were to join over three minutes two thirds began after one, all at once.
    #[test]
    fn who_is_looked_at_before_its_start_waits_for_it() {
        let mut m = member();
        m.start(180_000, 1);
        assert_eq!(m.starts_after(65_535), Some(180_000));
        assert_eq!(m.starts_after(180_000), None);
        m.introduce();
        assert_eq!(m.starts_after(65_535), None, "it says no hello");
    }

    #[test]
    fn beats_keep_to_their_grid_within_the_jitter_and_do_not_drift() {
        let (mut m, mut draws) = (member(), Draws::new(3));
        m.start(5_000, 1);
        m.fire(5_000, &PACE, &mut draws);
        let first = m.grid;
        assert!(first > 5_000 && m.next() > 5_000 && m.next() <= 7_100, "{} {}", first, m.next());
        for n in 1..5_000 {
            let off = m.fire(m.next(), &PACE, &mut draws).abs_diff(m.grid);
            assert!(off <= 100, "{off}");
            assert_eq!(m.grid, first + n * 1_000);
        }
    }

    #[test]
    fn after_a_stall_beats_are_skipped_and_not_made_up_for() {
        let (mut m, mut draws) = (member(), Draws::new(3));
        m.start(0, 1);
        m.fire(0, &PACE, &mut draws);
        let now = m.next() + 90_000;
        m.fire(now, &PACE, &mut draws);
        assert!((now + 390..now + 1_600).contains(&m.next()), "{} {now}", m.next());
    }

    #[test]
    fn acks_are_asked_for_until_one_comes_and_then_by_cadence() {
        let mut m = member();
        m.start(0, 1);
        assert!((0..5).all(|_| m.ask(&PACE)));
        m.stamp(Instant(1), Duration::from_secs(1));
        assert_ne!(m.take_ack(&ack(&m, 1), 0, 0), Taken::Unmatched);
        let asked: Vec<_> = (1..=20).filter(|_| m.ask(&PACE)).collect();
        // The tenth asks; without an answer every one after it does.
        assert_eq!(asked, (10..=20).collect::<Vec<_>>());
    }

    #[test]
    fn a_hello_is_repeated_until_an_ack_for_it_that_is_no_challenge() {
        let (mut m, mut draws) = (member(), Draws::new(3));
        m.start(0, 1);
        m.stamp(Instant(1), Duration::from_secs(1));
        let again = m.hello_goes_out(0, &PACE, &mut draws);
        assert!((750..=1_000).contains(&again), "{again}");
        let both = FLAG_CHALLENGE | FLAG_SAY_HELLO;
        let taken = m.take_ack(&ack(&m, 1), both, 3);
        assert_eq!(taken, Taken::Yes { hello_at: 203, challenge: true });
        assert_eq!((m.epoch, m.is_settled()), (77, false));
        m.stamp(Instant(2), Duration::from_secs(1));
        m.hello_goes_out(203, &PACE, &mut draws);
        m.take_ack(&ack(&m, 2), 0, 204);
        assert!(m.is_settled());
        assert_eq!(m.take_ack(&ack(&m, 3), 0, 204), Taken::Unmatched, "a number never sent");
    }
}
