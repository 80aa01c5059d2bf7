//! What this agent passes on for a controller that cannot hear another host itself.
//!
//! The controller hands it a whole probe, sealed under the other host's key, and the other host's
//! address. The agent sends the probe there and brings the answer back; it can make neither and cannot
//! check the answer, so the controller trusts it with nothing but the post.
//!
//! What keeps it from being a tool of others: only an authenticated request with the present epoch of a
//! session counts; each nonce is passed on once; at most [`RELAYS_PER_SECOND`] in the long run; never
//! more bytes than came; and not to addresses that no host can have. An answer is brought back once,
//! within [`RELAY_LIFE`], to where the request came from.
//!
//! Memory: at most [`RELAYS_MAX`] entries, oldest first. An entry that is past its life stays as long as
//! there is room, so that its nonce is not taken twice.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Instant;

use super::Reject;
use super::limit::Bucket;

/// Probes passed on per second in the long run.
pub const RELAYS_PER_SECOND: u32 = 20;
/// Probes passed on at once after a quiet while.
pub const RELAY_BURST: u32 = 40;
/// How long an answer is waited for.
pub const RELAY_LIFE: Duration = Duration::from_secs(3);
/// Probes remembered: more than the limit lets through in one life.
pub const RELAYS_MAX: usize = 128;

#[derive(Clone, Copy, Debug)]
struct Relay {
    nonce: [u8; 16],
    /// Who was asked.
    host: HostId,
    /// Who wants to know.
    back: SocketAddr,
    until: Instant,
    answered: bool,
}

/// See the module's doc.
#[derive(Clone, Debug)]
pub(super) struct Relays {
    entries: VecDeque<Relay>,
    bucket: Bucket,
    /// Probes passed on.
    pub(super) passed_on: u64,
    /// Answers brought back.
    pub(super) brought_back: u64,
}

impl Relays {
    /// Nothing passed on yet.
    pub(super) fn new(now: Instant) -> Self {
        let bucket = Bucket::new(RELAYS_PER_SECOND, RELAY_BURST, now);
        Self { entries: VecDeque::new(), bucket, passed_on: 0, brought_back: 0 }
    }

    /// Books a probe with `nonce` for `host`, wanted by `back`; `Err` says why it is not passed on.
    pub(super) fn pass_on(
        &mut self,
        nonce: [u8; 16],
        host: HostId,
        back: SocketAddr,
        now: Instant,
    ) -> Result<(), Reject> {
        if self.entries.iter().any(|r| r.nonce == nonce) {
            return Err(Reject::RelayStale);
        }
        let full = self.entries.len() >= RELAYS_MAX;
        if (full && self.entries.front().is_some_and(|r| now < r.until)) || !self.bucket.take(now) {
            return Err(Reject::RelayLimit);
        }
        if full {
            self.entries.pop_front();
        }
        let until = now + RELAY_LIFE;
        self.entries.push_back(Relay { nonce, host, back, until, answered: false });
        self.passed_on = self.passed_on.saturating_add(1);
        Ok(())
    }

    /// Where to bring an answer of `host` that carries `nonce`; `None` if nobody waits for it (any more).
    pub(super) fn bring_back(
        &mut self,
        nonce: &[u8; 16],
        host: HostId,
        now: Instant,
    ) -> Option<SocketAddr> {
        let waiting = |r: &&mut Relay| !r.answered && now < r.until;
        let mut relays = self.entries.iter_mut().filter(waiting);
        let relay = relays.find(|r| r.nonce == *nonce && r.host == host)?;
        relay.answered = true;
        self.brought_back = self.brought_back.saturating_add(1);
        Some(relay.back)
    }
}

/// Whether a probe may be sent to `to` on behalf of somebody at `from`.
pub(super) fn may_reach(to: SocketAddr, from: SocketAddr) -> bool {
    let ip = to.ip();
    let nobody = match ip {
        std::net::IpAddr::V4(v4) => v4.is_broadcast() || v4.octets()[0] == 0,
        std::net::IpAddr::V6(v6) => v6.is_unspecified(),
    };
    // Over loopback there is only this machine, which a controller elsewhere has no business with.
    let inward = ip.is_loopback() && !from.ip().to_canonical().is_loopback();
    to.port() != 0 && !nobody && !ip.is_multicast() && !inward
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostId = HostId([3; 16]);
    const NOW: Instant = Instant::from_millis(10_000);

    fn back() -> SocketAddr {
        "192.0.2.1:2328".parse().unwrap()
    }

    fn nonce(n: u32) -> [u8; 16] {
        let mut nonce = [0; 16];
        nonce[..4].copy_from_slice(&n.to_be_bytes());
        nonce
    }

    #[test]
    fn an_answer_is_brought_back_once_to_who_asked_and_only_in_time() {
        let mut relays = Relays::new(NOW);
        for n in 1..=2 {
            relays.pass_on(nonce(n), HOST, back(), NOW).unwrap();
        }
        assert_eq!(relays.bring_back(&nonce(9), HOST, NOW), None, "a nonce never passed on");
        assert_eq!(relays.bring_back(&nonce(1), HostId([4; 16]), NOW), None, "another host's");
        assert_eq!(relays.bring_back(&nonce(1), HOST, NOW), Some(back()));
        assert_eq!(relays.bring_back(&nonce(1), HOST, NOW), None, "once");
        assert_eq!(relays.bring_back(&nonce(2), HOST, NOW + RELAY_LIFE), None, "too late");
        assert_eq!((relays.passed_on, relays.brought_back), (2, 1));
    }

    #[test]
    fn a_nonce_is_passed_on_once_even_long_after() {
        let mut relays = Relays::new(NOW);
        relays.pass_on(nonce(1), HOST, back(), NOW).unwrap();
        let late = NOW + RELAY_LIFE * 10;
        assert_eq!(relays.pass_on(nonce(1), HOST, back(), late), Err(Reject::RelayStale));
    }

    #[test]
    fn the_limit_and_the_table_hold_whatever_is_asked() {
        let mut relays = Relays::new(NOW);
        let mut passed = 0;
        for step in 0..10_000 {
            let now = NOW + Duration::from_millis(step);
            passed += u32::from(relays.pass_on(nonce(step as u32), HOST, back(), now).is_ok());
            assert!(relays.entries.len() <= RELAYS_MAX);
        }
        assert!((235..=RELAY_BURST + RELAYS_PER_SECOND * 10).contains(&passed), "{passed}");
    }

    #[test]
    fn nothing_is_sent_where_no_host_can_be() {
        let from: SocketAddr = "192.0.2.1:2328".parse().unwrap();
        let ok = |to: &str| may_reach(to.parse().unwrap(), from);
        assert!(ok("192.0.2.7:40000") && ok("[2001:db8::1]:40000") && ok("10.0.0.1:1"));
        for to in [
            "192.0.2.7:0",
            "0.0.0.0:9",
            "0.1.2.3:9",
            "255.255.255.255:9",
            "224.0.0.1:9",
            "[::]:9",
            "[ff02::1]:9",
            "127.0.0.1:9",
            "[::1]:9",
        ] {
            assert!(!ok(to), "{to}");
        }
        assert!(may_reach("127.0.0.1:9".parse().unwrap(), "127.0.0.1:2328".parse().unwrap()));
    }
}
