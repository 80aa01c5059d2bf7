//! How many connections each source has: nobody alone may hold all that there are.
//!
//! A source is an IPv4 address, the first 64 bits of an IPv6 one (what one network is given at the least),
//! or this machine itself by whatever loopback address. Bounded by the connections that there are.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// See the module.
#[derive(Debug)]
pub(super) struct Sources {
    most: usize,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// The place of one connection, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    sources: Arc<Sources>,
    of: IpAddr,
}

fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        loopback if loopback.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) => {
            const NETWORK: u128 = u128::MAX << 64;
            Ipv6Addr::from_bits(v6.to_bits() & NETWORK).into()
        }
        v4 => v4,
    }
}

impl Sources {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, counts: Mutex::default() })
    }

    /// A place for one more connection from there; `None`: it has as many as it may.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let of = source(address);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(of).or_default();
        // `most` is not zero, so that an entry that was made just now is not left behind empty.
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place { sources: Arc::clone(self), of })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.sources.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_so_many_places_and_takes_none_from_others() {
        let sources = Sources::new(2);
        let take = |text: &str| sources.take(text.parse().unwrap());
        let (a, b) = (take("192.0.2.1"), take("::ffff:192.0.2.1"));
        assert!(a.is_some() && b.is_some() && take("192.0.2.1").is_none());
        assert!(take("192.0.2.2").is_some());
        drop(a);
        let c = take("192.0.2.1");
        assert!(c.is_some());
        // One network of IPv6, and this machine, however it calls itself, are one.
        let (d, e) = (take("2001:db8::1"), take("2001:db8::2:3"));
        assert!(take("2001:db8::4").is_none() && take("2001:db8:0:1::4").is_some());
        let (f, g) = (take("127.0.0.1"), take("::1"));
        assert!(take("127.3.2.1").is_none());
        drop((b, c, d, e, f, g));
        assert!(sources.counts.lock().unwrap().is_empty());
    }
}
