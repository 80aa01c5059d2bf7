//! Which addresses send what does not authenticate, and whether to look at more of it: pure.
//!
//! A forged datagram costs the kernel what a true one costs, and then decoding, a look into the index, a key
//! and a tag. A budget can save only the latter, and a source address can be made up; so it must never cost
//! a true host anything (ADR 23 has the figures). Hence:
//!
//! - only *failures* are counted, and a source that proves life, were it one beat a minute among a million
//!   forged ones, is always looked at: a site behind one address, or a gateway, is not throttled;
//! - a source is over its budget after [`PROBATION`] in which it failed at least [`FAILURES_PER_S`] in each
//!   second and proved nothing: any host beats at least once in that time;
//! - even then all is looked at as long as the shard keeps up ([`Sources::press`]), and if it does not, still
//!   one of [`SAMPLE`] of what comes from there: who joins from such an address is let in, only later.
//!
//! Memory: [`SEATS`] sources, of which the one that failed least lately gives up its seat. Who floods from
//! made-up addresses keeps no seat and is not held up here; all that he gets is the shard's time.
//!
//! Cost: nothing for a true beat as long as nobody floods, but for one comparison.

use std::net::IpAddr;
use std::time::Duration;

use heartwatch_common::time::Instant;

/// Failures in a second that are a flood and no accident: a site of some thousand hosts whose keys were
/// revoked stays below it.
pub const FAILURES_PER_S: u32 = 10_000;
/// How long a source must flood, and prove nothing, before it is over its budget. As long as the longest
/// interval between two beats.
pub const PROBATION: Duration = Duration::from_secs(60);
/// Of what is over the budget one in so many is looked at.
pub const SAMPLE: u32 = 16;
/// Sources that are remembered: so many sets of [`WAYS`].
const SETS: usize = 16;
const WAYS: usize = 4;
/// How many sources that makes.
pub const SEATS: usize = SETS * WAYS;
const SECOND: Duration = Duration::from_secs(1);

/// What is known of a source.
#[derive(Clone, Copy, Debug)]
struct Seat {
    source: u64,
    /// When the present second began, and failures in it.
    second: Instant,
    failures: u32,
    /// Since when every second was a flood, nothing was proved; [`Instant::FAR`]: it is none.
    floods_since: Instant,
    /// Datagrams that came while it was over its budget.
    over: u32,
}

impl Seat {
    const EMPTY: Self =
        Self { source: 0, second: Instant(0), failures: 0, floods_since: Instant::FAR, over: 0 };

    fn is_over(&self, now: Instant) -> bool {
        self.floods_since <= now
            && now.since(self.floods_since) >= PROBATION
            && now.since(self.second) < SECOND * 2
    }
}

/// See the module's doc.
#[derive(Clone, Debug)]
pub struct Sources {
    seats: [[Seat; WAYS]; SETS],
    salt: u64,
    /// Nobody is looked for before then: no seat is taken that is not past.
    quiet_from: Instant,
    pressed: bool,
}

impl Sources {
    /// Nothing known. `salt` keeps others from choosing addresses that meet in one set.
    pub fn new(salt: u64) -> Self {
        let seats = [[Seat::EMPTY; WAYS]; SETS];
        Self { seats, salt: salt | 1, quiet_from: Instant(0), pressed: false }
    }

    /// Says whether the shard falls behind: its sockets held more than it reads in one pass.
    pub fn press(&mut self, behind: bool) {
        self.pressed = behind;
    }

    /// Whether anybody has failed lately: only then is it worth while to say who proved life.
    #[inline]
    pub fn is_watching(&self, now: Instant) -> bool {
        now < self.quiet_from
    }

    /// Something from there did not authenticate.
    // Out of the way of true beats, as the two below.
    #[cold]
    #[inline(never)]
    pub fn failed(&mut self, from: IpAddr, now: Instant) {
        self.quiet_from = now + PROBATION * 2;
        let source = source_of(from);
        let set = &mut self.seats[set_of(source, self.salt)];
        let at = set.iter().position(|seat| seat.source == source).unwrap_or_else(|| {
            let least =
                (0..WAYS).min_by_key(|at| (set[*at].second, set[*at].failures)).unwrap_or(0);
            set[least] = Seat { source, second: now, ..Seat::EMPTY };
            least
        });
        let seat = &mut set[at];
        let age = now.since(seat.second);
        if age >= SECOND {
            // The second before was none of a flood, or a whole one lies between.
            if seat.failures < FAILURES_PER_S || age >= SECOND * 2 {
                seat.floods_since = Instant::FAR;
            }
            (seat.second, seat.failures) = (now, 0);
        }
        seat.failures = seat.failures.saturating_add(1);
        if seat.failures >= FAILURES_PER_S {
            seat.floods_since = seat.floods_since.min(seat.second);
        }
    }

    /// Something from there proved life: it is no flood, whatever else comes from there.
    #[cold]
    #[inline(never)]
    pub fn proved(&mut self, from: IpAddr, now: Instant) {
        let source = source_of(from);
        let set = &mut self.seats[set_of(source, self.salt)];
        if let Some(seat) = set.iter_mut().find(|seat| seat.source == source) {
            *seat = Seat { source, second: now, ..Seat::EMPTY };
        }
    }

    /// Whether anything may be skipped at all now.
    #[inline]
    pub fn is_pressed(&self, now: Instant) -> bool {
        self.pressed && self.is_watching(now)
    }

    /// Whether not to look at what comes from there.
    #[cold]
    #[inline(never)]
    pub fn skips(&mut self, from: IpAddr, now: Instant) -> bool {
        if !self.is_pressed(now) {
            return false;
        }
        let source = source_of(from);
        let set = &mut self.seats[set_of(source, self.salt)];
        let Some(seat) = set.iter_mut().find(|s| s.source == source && s.is_over(now)) else {
            return false;
        };
        seat.over = seat.over.wrapping_add(1);
        if seat.over.is_multiple_of(SAMPLE) {
            return false;
        }
        // What is not looked at counts as what it was before, or the flood would seem to end.
        if now.since(seat.second) >= SECOND {
            (seat.second, seat.failures) = (now, FAILURES_PER_S);
        }
        true
    }
}

/// A host's address, or the network that a host with IPv6 has to itself.
fn source_of(from: IpAddr) -> u64 {
    match from.to_canonical() {
        IpAddr::V4(v4) => 0xffff_0000_0000 | u64::from(v4.to_bits()),
        IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64 | 1 << 63,
    }
}

fn set_of(source: u64, salt: u64) -> usize {
    (source.wrapping_mul(salt.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 32) as usize % SETS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u32) -> IpAddr {
        IpAddr::V4(std::net::Ipv4Addr::from_bits(n))
    }

    /// So many seconds of a flood from `from`, evenly; `prove` says at which of them it proves life.
    fn flood(s: &mut Sources, from: IpAddr, seconds: std::ops::Range<u64>, prove: &[u64]) {
        for second in seconds {
            for n in 0..u64::from(FAILURES_PER_S) + 500 {
                let now = Instant(second * 1_000_000_000 + n * 90_000);
                // What it skips it does not see fail.
                if !s.skips(from, now) {
                    s.failed(from, now);
                }
            }
            if prove.contains(&second) {
                s.proved(from, Instant(second * 1_000_000_000 + 999_000_000));
            }
        }
    }

    fn skipped(s: &mut Sources, from: IpAddr, at_s: u64) -> usize {
        (0..160).filter(|_| s.skips(from, Instant::from_millis(at_s * 1_000))).count()
    }

    #[test]
    fn who_floods_for_a_minute_and_proves_nothing_is_sampled_while_the_shard_is_behind() {
        let mut s = Sources::new(7);
        flood(&mut s, ip(9), 1..60, &[]);
        s.press(true);
        assert_eq!(skipped(&mut s, ip(9), 60), 0, "on probation");
        flood(&mut s, ip(9), 60..70, &[]);
        assert_eq!(skipped(&mut s, ip(9), 70), 150, "one of 16 is looked at");
        assert_eq!(skipped(&mut s, ip(10), 70), 0, "another address");
        s.press(false);
        assert_eq!(skipped(&mut s, ip(9), 70), 0, "the shard keeps up");
        s.press(true);
        // It goes on although little of it is looked at, and ends when the flood does.
        flood(&mut s, ip(9), 70..90, &[]);
        assert_eq!(skipped(&mut s, ip(9), 90), 150);
        assert_eq!(skipped(&mut s, ip(9), 93), 0, "the flood is over");
    }

    #[test]
    fn one_beat_a_minute_from_the_same_address_keeps_it_from_being_skipped() {
        let mut s = Sources::new(7);
        s.press(true);
        flood(&mut s, ip(9), 1..200, &[10, 60, 110, 160]);
        assert_eq!(skipped(&mut s, ip(9), 200), 0);
        // A host that comes to live behind an address that is over its budget is let in by a sample.
        flood(&mut s, ip(9), 200..280, &[]);
        assert_eq!(skipped(&mut s, ip(9), 280), 150);
        s.proved(ip(9), Instant::from_millis(280_100));
        assert_eq!(skipped(&mut s, ip(9), 281), 0);
    }

    #[test]
    fn failures_below_the_budget_are_no_flood_however_long() {
        let mut s = Sources::new(7);
        s.press(true);
        for ms in 0..200_000 {
            for _ in 0..9 {
                s.failed(ip(9), Instant::from_millis(ms));
            }
        }
        assert_eq!(skipped(&mut s, ip(9), 200), 0);
    }

    #[test]
    fn made_up_addresses_take_no_memory_and_make_nobody_skipped() {
        let mut s = Sources::new(7);
        s.press(true);
        let before = size_of_val(&s);
        for n in 0..3_000_000u32 {
            let now = Instant(u64::from(n) * 50_000);
            assert!(!s.skips(ip(n), now));
            s.failed(ip(n), now);
        }
        assert_eq!(skipped(&mut s, ip(5), 150), 0);
        assert!(size_of_val(&s) == before && before < 4_096, "{before}");
    }

    #[test]
    fn nothing_is_watched_while_nobody_fails_and_networks_of_ipv6_are_one_source() {
        let mut s = Sources::new(7);
        let now = Instant::from_millis(1_000);
        assert!(!s.is_watching(now));
        s.failed(ip(1), now);
        assert!(s.is_watching(now) && !s.is_watching(now + PROBATION * 3));
        let v6 = |text: &str| source_of(text.parse().unwrap());
        assert_eq!(v6("2001:db8::1"), v6("2001:db8::ffff"));
        assert_ne!(v6("2001:db8::1"), v6("2001:db8:0:1::1"));
        assert_eq!(v6("::ffff:192.0.2.1"), source_of("192.0.2.1".parse().unwrap()));
    }
}
