//! Which address of a controller to use, and when to look its name up (a value).
//!
//! A name may have several addresses. The agent stays with one while the controller is heard there;
//! each lookup made because it is *not* heard moves on to the next. A failed lookup keeps the
//! addresses known so far and is tried again after a growing delay; a good one is refreshed now and
//! then, so that a controller that moves is followed even if its old address still answers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use heartwatch_common::backoff::Backoff;
use heartwatch_common::time::Instant;

use crate::config::Endpoint;

/// At most so many addresses of one name are kept.
pub const ADDRESSES_MAX: usize = 16;
/// Delays between failed lookups.
pub const RETRY: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(30) };
/// A good lookup is repeated after this long at the latest.
pub const REFRESH: Duration = Duration::from_secs(600);

/// One configured controller, as the sockets see it.
#[derive(Clone, Debug)]
pub struct Target {
    /// As configured.
    pub endpoint: Endpoint,
    addresses: Vec<SocketAddr>,
    /// Index into `addresses`.
    current: usize,
    lookup_due: Instant,
    lookup_runs: bool,
    failures: u32,
    /// Lookups that failed.
    pub lookup_errors: u64,
    /// Datagrams handed to the system.
    pub sent: u64,
    /// Datagrams that could not be sent, for want of an address or because the system refused.
    pub send_errors: u64,
}

impl Target {
    /// A controller whose name is to be looked up at once. Where an address is configured instead of a
    /// name, that is known already: the first hello need not wait for a lookup, nor get lost before it.
    pub fn new(endpoint: Endpoint, now: Instant) -> Self {
        let literal = endpoint.host.parse::<IpAddr>().ok();
        Self {
            addresses: literal.map(|ip| SocketAddr::new(ip, endpoint.port)).into_iter().collect(),
            endpoint,
            current: 0,
            lookup_due: now,
            lookup_runs: false,
            failures: 0,
            lookup_errors: 0,
            sent: 0,
            send_errors: 0,
        }
    }

    /// Where to send to; `None` before the first good lookup.
    pub fn address(&self) -> Option<SocketAddr> {
        self.addresses.get(self.current).copied()
    }

    /// Whether `from` is one of the controller's addresses.
    pub fn has_address(&self, from: SocketAddr) -> bool {
        self.addresses.contains(&from)
    }

    /// When the name is to be looked up; [`Instant::FAR`] while a lookup runs.
    pub fn lookup_due(&self) -> Instant {
        if self.lookup_runs { Instant::FAR } else { self.lookup_due }
    }

    /// Makes a lookup due now: the controller is not heard.
    pub fn hurry(&mut self, now: Instant) {
        self.lookup_due = self.lookup_due.min(now);
    }

    /// Notes that a lookup begins.
    pub fn lookup_begins(&mut self) {
        self.lookup_runs = true;
    }

    /// Takes the addresses that a lookup found; none means that it failed. `draw` in 0..1 spreads
    /// the next one. Tells whether the address in use is another one now.
    pub fn lookup_ends(
        &mut self,
        mut found: Vec<SocketAddr>,
        is_heard: bool,
        now: Instant,
        draw: f64,
    ) -> bool {
        self.lookup_runs = false;
        let spread = 0.5 + draw.clamp(0.0, 1.0) / 2.0;
        if found.is_empty() {
            self.failures = self.failures.saturating_add(1);
            self.lookup_errors = self.lookup_errors.saturating_add(1);
            self.lookup_due = now + RETRY.bound(self.failures).mul_f64(spread);
            return false;
        }
        found.truncate(ADDRESSES_MAX);
        let before = self.address();
        let held = before.and_then(|address| found.iter().position(|a| *a == address));
        self.current = match held {
            Some(at) if is_heard => at,
            Some(at) => (at + 1) % found.len(),
            None => 0,
        };
        self.addresses = found;
        self.failures = 0;
        self.lookup_due = now + REFRESH.mul_f64(spread);
        before != self.address()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_millis(1_000_000);

    fn a(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 2328))
    }

    fn target() -> Target {
        Target::new("ctl".parse().unwrap(), NOW)
    }

    #[test]
    fn a_name_is_looked_up_at_once_and_only_once_at_a_time() {
        let mut t = target();
        assert_eq!((t.address(), t.lookup_due()), (None, NOW));
        t.lookup_begins();
        t.hurry(NOW);
        assert_eq!(t.lookup_due(), Instant::FAR);
        assert!(t.lookup_ends(vec![a(1)], false, NOW, 1.0));
        assert_eq!((t.address(), t.lookup_due()), (Some(a(1)), NOW + REFRESH));
        t.hurry(NOW);
        assert_eq!(t.lookup_due(), NOW);
    }

    /// A first hello that was due before the lookup of "127.0.0.1" had ended went nowhere, and the host was
    /// first heard some beats later.
    #[test]
    fn a_configured_address_needs_no_lookup_to_be_sent_to() {
        for text in ["192.0.2.1:2328", "[2001:db8::1]:2328"] {
            let mut t = Target::new(text.parse().unwrap(), NOW);
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(t.address(), Some(address));
            assert!(!t.lookup_ends(vec![address], false, NOW, 0.0), "no other address than before");
            assert_eq!(t.address(), Some(address));
        }
    }

    #[test]
    fn failures_are_retried_ever_more_slowly_and_forget_nothing() {
        let mut t = target();
        t.lookup_ends(vec![a(1)], false, NOW, 1.0);
        let mut waits = Vec::new();
        for _ in 0..7 {
            t.lookup_begins();
            assert!(!t.lookup_ends(Vec::new(), false, NOW, 1.0));
            waits.push(t.lookup_due().since(NOW).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!((t.address(), t.lookup_errors), (Some(a(1)), 7));
    }

    #[test]
    fn an_address_that_is_heard_is_kept_and_one_that_is_not_is_left() {
        let mut t = target();
        t.lookup_ends(vec![a(1), a(2), a(3)], false, NOW, 0.0);
        assert!(!t.lookup_ends(vec![a(3), a(1)], true, NOW, 0.0), "heard: it stays");
        assert_eq!(t.address(), Some(a(1)));
        assert!(t.has_address(a(3)) && !t.has_address(a(2)));
        assert!(t.lookup_ends(vec![a(3), a(1)], false, NOW, 0.0), "not heard: the next");
        assert_eq!(t.address(), Some(a(3)));
        assert!(t.lookup_ends(vec![a(9)], true, NOW, 0.0), "it moved away");
        assert_eq!(t.address(), Some(a(9)));
        assert!(!t.lookup_ends(vec![a(9)], false, NOW, 0.0), "there is no other");
    }

    #[test]
    fn no_name_fills_the_memory() {
        let mut t = target();
        t.lookup_ends((0..200).map(a).collect(), false, NOW, 0.0);
        assert!(!t.has_address(a(ADDRESSES_MAX as u8)));
    }
}
