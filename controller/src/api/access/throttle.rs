//! How often somebody may show a wrong token. Pure.
//!
//! A token bucket per source: an IPv4 address, or a /64 of IPv6, which is what one customer has at least
//! (RFC 6177). Only failures are counted and only failures are refused: whoever shows a right token is never
//! asked here, so that people behind the same address translation do not suffer for each other, and a full
//! table harms nobody who belongs here. The table has room for [`SOURCES_MAX`]; beyond that the source that
//! failed longest ago is forgotten, which gives it a full bucket again. Guessing a token of 256 bits is
//! hopeless at any rate; this keeps the log readable and the work small.
//!
//! Cost: O(log sources) per failure, nothing per success.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use heartwatch_common::time::Instant;

/// Sources that are remembered.
pub(in crate::api) const SOURCES_MAX: usize = 4_096;
/// Failures that a rested source has free.
pub(in crate::api) const BURST: u32 = 10;
/// Time that gives one back.
pub(in crate::api) const REFILL: Duration = Duration::from_secs(6);

/// Who counts as one.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        ip => ip,
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// When it will be full again. The emptier, the later: at most [`BURST`] refills from now.
    full_at: Instant,
    /// Its place in the order of failures.
    turn: u64,
}

/// Failures by source.
#[derive(Debug, Default)]
pub(in crate::api) struct Throttle {
    sources: HashMap<IpAddr, Bucket>,
    /// By turn: the first failed longest ago.
    order: BTreeMap<u64, IpAddr>,
    turns: u64,
}

impl Throttle {
    /// A failure from there. `Err`: one too many; how long until another is free.
    pub(in crate::api) fn fail(&mut self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let source = source(address);
        let known = self.sources.get(&source).copied();
        let full_at = known.map_or(now, |b| b.full_at.max(now));
        let after = full_at + REFILL;
        let over = after.since(now).checked_sub(REFILL * BURST).filter(|over| !over.is_zero());
        if let Some(known) = known {
            self.order.remove(&known.turn);
        } else if self.sources.len() >= SOURCES_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.sources.remove(&oldest);
        }
        self.turns += 1;
        // One that is refused is not counted again: it would never end for who keeps trying.
        let full_at = if over.is_some() { full_at } else { after };
        self.sources.insert(source, Bucket { full_at, turn: self.turns });
        self.order.insert(self.turns, source);
        over.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(secs: u64) -> Instant {
        Instant(1_000_000_000_000) + Duration::from_secs(secs)
    }

    #[test]
    fn a_burst_is_free_then_one_per_refill() {
        let mut throttle = Throttle::default();
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        for _ in 0..BURST {
            assert_eq!(throttle.fail(ip, at(0)), Ok(()));
        }
        for _ in 0..3 {
            assert_eq!(throttle.fail(ip, at(0)), Err(REFILL), "refusals cost nothing");
        }
        assert_eq!(throttle.fail(ip, at(4)), Err(Duration::from_secs(2)));
        assert_eq!(throttle.fail(ip, at(6)), Ok(()));
        assert!(throttle.fail(ip, at(6)).is_err());
        assert_eq!(throttle.fail("192.0.2.2".parse().unwrap(), at(6)), Ok(()));
    }

    #[test]
    fn a_whole_ipv6_network_is_one_source_and_mapped_addresses_are_ipv4() {
        let mut throttle = Throttle::default();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for n in 0..BURST {
            assert_eq!(throttle.fail(ip(&format!("2001:db8::{n:x}")), at(0)), Ok(()));
        }
        assert!(throttle.fail(ip("2001:db8::ffff:1"), at(0)).is_err());
        assert_eq!(throttle.fail(ip("2001:db8:0:1::1"), at(0)), Ok(()));
        assert_eq!(source(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_failed_longest_ago() {
        let mut throttle = Throttle::default();
        let ip = |n: u32| IpAddr::V4(std::net::Ipv4Addr::from_bits(n));
        for n in 0..3 * SOURCES_MAX as u32 {
            assert_eq!(throttle.fail(ip(n), at(0)), Ok(()));
            // This one fails all the time, and is not forgotten.
            if u64::from(n).is_multiple_of(100) {
                throttle.fail(ip(u32::MAX), at(0)).unwrap_or_default();
            }
        }
        assert_eq!((throttle.sources.len(), throttle.order.len()), (SOURCES_MAX, SOURCES_MAX));
        assert!(throttle.fail(ip(u32::MAX), at(0)).is_err());
    }

    /// A bucket by the book: so many marbles, one comes back every [`REFILL`].
    struct Marbles(f64, Instant);

    proptest! {
        #[test]
        fn it_lets_through_what_a_bucket_of_marbles_would(steps in prop::collection::vec(0_u64..20, 1..200)) {
            let (mut throttle, mut now) = (Throttle::default(), at(0));
            let mut marbles = Marbles(f64::from(BURST), now);
            for step in steps {
                now = now + Duration::from_secs(step);
                let back = now.since(marbles.1).as_secs_f64() / REFILL.as_secs_f64();
                marbles = Marbles((marbles.0 + back).min(f64::from(BURST)), now);
                let free = marbles.0 >= 1.0 - 1e-9;
                if free {
                    marbles.0 -= 1.0;
                }
                let said = throttle.fail("192.0.2.1".parse().unwrap(), now);
                prop_assert_eq!(said.is_ok(), free);
                if let Err(wait) = said {
                    prop_assert!(!wait.is_zero() && wait <= REFILL);
                }
            }
        }
    }
}
