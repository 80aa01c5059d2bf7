//! Whether a shard rests between two passes, how, and for how long: a value.
//!
//! Where little arrives it waits for the next datagram, which wakes it. Where datagrams arrive densely, each
//! would wake it: two shards spent 3.6 µs on a datagram at 150,000/s in all. There it takes naps, and reads
//! what has come meanwhile. A nap ends at no deadline: of so many hosts one is due every millisecond, nearly
//! always in vain.

use std::time::Duration;

use heartwatch_common::time::Instant;

/// Longest wait, so that the loop's progress shows even when nothing happens.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// Longest wait while the policy's queue is full.
const WAIT_FULL: Duration = Duration::from_millis(10);
/// Longest nap; what comes meanwhile carries its time of arrival. A deadline that passes meanwhile is seen
/// that much later, and an ack leaves that much later.
const NAP_MAX: Duration = Duration::from_millis(4);
/// Shortest, and first.
const NAP_MIN: Duration = Duration::from_micros(250);
/// No more than this share of a receive buffer should fill in a nap: bursts need the rest.
const NAP_FILLS: f64 = 0.1;
/// So many datagrams must arrive in a second for naps to be worth while.
const DENSE_PER_S: f64 = 4_000.0;
/// How long arrivals are counted to tell.
const CROWD_SPAN: Duration = Duration::from_millis(50);

/// What a pass left behind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Left {
    /// A socket was not read empty.
    pub datagrams: bool,
    /// More commands may wait than a pass takes. They have had their ring: nothing would wake us for them.
    pub commands: bool,
    /// More hosts may be due than a pass judges.
    pub verdicts: bool,
    /// The policy's queue takes no more.
    pub notices: bool,
}

/// What to do before the next pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing: work waits.
    Go,
    /// Sleep so long, whatever comes.
    Nap(Duration),
    /// Wait for a datagram or a command, so long at most.
    Wait(Duration),
}

/// Decides it.
#[derive(Debug)]
pub struct Rests {
    crowd: Crowd,
    nap: Nap,
}

impl Rests {
    /// Nothing has arrived yet.
    pub fn new(now: Instant) -> Self {
        Self { crowd: Crowd::new(now), nap: Nap::default() }
    }

    /// A pass has read so many datagrams.
    pub fn read(&mut self, datagrams: u64, now: Instant) {
        self.crowd.note(datagrams, now);
    }

    /// What to do after a pass. `due` tells how long until the next host is due, if any is; it is asked only
    /// where it matters.
    pub fn after(&mut self, left: Left, due: impl FnOnce() -> Option<Duration>) -> Rest {
        if left.datagrams || left.commands || left.verdicts {
            return Rest::Go;
        }
        if self.crowd.is_dense() {
            return Rest::Nap(self.nap.span);
        }
        self.nap = Nap::default();
        Rest::Wait(due().unwrap_or(WAIT_MAX).min(if left.notices { WAIT_FULL } else { WAIT_MAX }))
    }

    /// After a nap the fullest buffer was filled to that share.
    pub fn found(&mut self, fill: f64) {
        self.nap.found(fill);
    }
}

/// How densely datagrams arrive.
#[derive(Debug)]
struct Crowd {
    since: Instant,
    /// Datagrams read since then.
    read: u64,
    dense: bool,
}

impl Crowd {
    fn new(now: Instant) -> Self {
        Self { since: now, read: 0, dense: false }
    }

    fn note(&mut self, read: u64, now: Instant) {
        self.read += read;
        let span = now.since(self.since);
        if span >= CROWD_SPAN {
            let per_s = self.read as f64 / span.as_secs_f64();
            *self = Self { since: now, read: 0, dense: per_s >= DENSE_PER_S };
        }
    }

    /// Whether several arrive within a nap.
    fn is_dense(&self) -> bool {
        self.dense
    }
}

/// How long to nap: as long as the receive buffers have room for. What a datagram takes of them depends on
/// the network card, so it is not reckoned but looked at.
#[derive(Clone, Copy, Debug)]
struct Nap {
    span: Duration,
}

impl Default for Nap {
    fn default() -> Self {
        Self { span: NAP_MIN }
    }
}

impl Nap {
    fn found(&mut self, fill: f64) {
        let span = if fill > NAP_FILLS { self.span / 2 } else { self.span.mul_f64(1.1) };
        self.span = span.clamp(NAP_MIN, NAP_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(3);

    fn at(ms: u64) -> Instant {
        Instant::from_millis(1_000 + ms)
    }

    /// After a tenth of a second in which so many came in each millisecond.
    fn rests(per_ms: u64) -> Rests {
        let mut rests = Rests::new(at(0));
        (1..100).for_each(|ms| rests.read(per_ms, at(ms)));
        rests
    }

    #[test]
    fn where_little_comes_it_waits_for_mail_until_somebody_is_due() {
        let mut rests = rests(3);
        assert_eq!(rests.after(Left::default(), || Some(SOON)), Rest::Wait(SOON));
        assert_eq!(rests.after(Left::default(), || None), Rest::Wait(WAIT_MAX));
        let full = Left { notices: true, ..Left::default() };
        assert_eq!(rests.after(full, || None), Rest::Wait(WAIT_FULL));
        assert_eq!(rests.after(full, || Some(SOON)), Rest::Wait(SOON));
    }

    #[test]
    fn where_much_comes_it_naps_and_asks_for_no_deadline() {
        let mut rests = rests(5);
        let nap = rests.after(Left::default(), || panic!("nobody's deadline matters"));
        assert_eq!(nap, Rest::Nap(NAP_MIN));
        let full = Left { notices: true, ..Left::default() };
        assert_eq!(rests.after(full, || None), Rest::Nap(NAP_MIN));
    }

    /// More than 256 commands once waited up to a tenth of a second for each 256: their bell had been
    /// answered. A nap while hosts were due made each thousand of a hundred thousand dead 4 ms later.
    #[test]
    fn work_that_a_pass_left_does_not_wait() {
        for per_ms in [0, 5] {
            let mut rests = rests(per_ms);
            for left in [
                Left { datagrams: true, ..Left::default() },
                Left { commands: true, ..Left::default() },
                Left { commands: true, notices: true, ..Left::default() },
                Left { verdicts: true, ..Left::default() },
            ] {
                assert_eq!(rests.after(left, || Some(SOON)), Rest::Go, "{per_ms}: {left:?}");
            }
        }
    }

    #[test]
    fn naps_begin_short_again_after_a_quiet_time() {
        let mut rests = rests(5);
        (0..100).for_each(|_| rests.found(0.01));
        assert_eq!(rests.after(Left::default(), || None), Rest::Nap(NAP_MAX));
        rests.read(0, at(1_000));
        assert_eq!(rests.after(Left::default(), || Some(SOON)), Rest::Wait(SOON));
        (1_001..1_100).for_each(|ms| rests.read(5, at(ms)));
        assert_eq!(rests.after(Left::default(), || None), Rest::Nap(NAP_MIN));
    }

    #[test]
    fn naps_are_as_long_as_the_buffers_have_room_for() {
        let mut nap = Nap::default();
        (0..100).for_each(|_| nap.found(0.01));
        assert_eq!(nap.span, NAP_MAX);
        // Half as full after half the nap: where a tenth is filled it neither grows nor shrinks for long.
        let fill = |nap: &Nap| nap.span.as_secs_f64() / 0.01;
        let mut spans = Vec::new();
        for _ in 0..100 {
            nap.found(fill(&nap));
            spans.push(nap.span);
        }
        let settled = Duration::from_micros(500)..=Duration::from_micros(1_100);
        assert!(spans[10..].iter().all(|s| settled.contains(s)), "{spans:?}");
        (0..100).for_each(|_| nap.found(1.0));
        assert_eq!(nap.span, NAP_MIN);
    }

    #[test]
    fn a_crowd_is_dense_when_several_come_in_a_millisecond() {
        let mut crowd = Crowd::new(at(0));
        (1..60).for_each(|ms| crowd.note(3, at(ms)));
        assert!(!crowd.is_dense(), "three a millisecond");
        (60..120).for_each(|ms| crowd.note(5, at(ms)));
        assert!(crowd.is_dense(), "five a millisecond");
        crowd.note(10, at(1_000));
        assert!(!crowd.is_dense(), "a quiet second");
    }
}
