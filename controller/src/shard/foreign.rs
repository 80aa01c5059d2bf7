//! Hosts whose agents speak another version of the wire: named to people, never believed.
//!
//! A datagram of another version is counted apart if its tag is true (the tag stands where it does in ours:
//! `common/src/wire.rs`), and its host noted here. It may be a recording: it proves no life, registers nobody
//! and is never answered.
//!
//! Bounds: tags of at most [`LOOKS_PER_S`] a second are looked at, so that a flood of made-up ones costs less
//! than one of our own version; [`HOSTS_MAX`] hosts are remembered, [`SHOWN_FOR`] after the last of each.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Instant;
use heartwatch_common::wire;

use crate::control::OtherVersionWhy;
use crate::detector::confirm::Bucket;

/// Tags looked at per second.
pub const LOOKS_PER_S: u32 = 1_000;
/// Hosts remembered.
pub const HOSTS_MAX: usize = 1_024;
/// How long after its last datagram a host is told of.
pub const SHOWN_FOR: Duration = Duration::from_secs(300);
/// Hosts that a summary names of each version.
pub const NAMED_MAX: usize = 3;

/// What came of one host in another version.
#[derive(Clone, Copy, Debug)]
struct Seen {
    version: u8,
    datagrams: u64,
    last: Instant,
    from: SocketAddr,
}

/// What came in one other version, over all hosts of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherVersion {
    /// Which.
    pub version: u8,
    /// Hosts of which such datagrams came lately.
    pub hosts: u64,
    /// Datagrams of theirs.
    pub datagrams: u64,
    /// When the last came.
    pub last: Instant,
    /// Some of the hosts, those heard of last.
    pub named: Vec<HostId>,
}

/// See the module's doc.
#[derive(Debug)]
pub struct Foreigners {
    hosts: BTreeMap<HostId, Seen>,
    looks: Bucket,
    sweep_at: Instant,
}

impl Foreigners {
    /// Nobody.
    pub fn new(now: Instant) -> Self {
        let looks = Bucket::new(LOOKS_PER_S, LOOKS_PER_S, now);
        Self { hosts: BTreeMap::new(), looks, sweep_at: now }
    }

    /// Whether one more tag may be looked at now.
    pub fn may_look(&mut self, now: Instant) -> bool {
        self.looks.take(now)
    }

    /// A datagram of that version came, sealed with the host's key.
    pub fn note(&mut self, host: HostId, version: u8, from: SocketAddr, now: Instant) {
        if now >= self.sweep_at {
            self.sweep_at = now + SHOWN_FOR / 4;
            self.hosts.retain(|_, seen| now.since(seen.last) < SHOWN_FOR);
        }
        let is_full = self.hosts.len() >= HOSTS_MAX;
        match self.hosts.get_mut(&host) {
            Some(seen) if seen.version == version => {
                seen.datagrams = seen.datagrams.saturating_add(1);
                (seen.last, seen.from) = (now, from);
            }
            None if is_full => {}
            _ => {
                self.hosts.insert(host, Seen { version, datagrams: 1, last: now, from });
            }
        }
    }

    /// What came of one host after it was last heard in our version (`None`: never).
    pub fn of(
        &self,
        host: HostId,
        heard: Option<Instant>,
        now: Instant,
    ) -> Option<OtherVersionWhy> {
        let seen = self.hosts.get(&host).filter(|seen| seen.is_news(heard, now))?;
        Some(OtherVersionWhy {
            version: seen.version,
            ours: wire::VERSION,
            datagrams: seen.datagrams,
            last_ago_ms: u64::try_from(now.since(seen.last).as_millis()).unwrap_or(u64::MAX),
            from: seen.from,
        })
    }

    /// What came by version, of hosts not heard in ours since; `heard` says when that was.
    pub fn summary(
        &self,
        heard: impl Fn(HostId) -> Option<Instant>,
        now: Instant,
    ) -> Vec<OtherVersion> {
        let mut by_version = BTreeMap::<u8, Vec<(HostId, Seen)>>::new();
        for (host, seen) in
            self.hosts.iter().filter(|(host, seen)| seen.is_news(heard(**host), now))
        {
            by_version.entry(seen.version).or_default().push((*host, *seen));
        }
        let sum = |(version, mut seen): (u8, Vec<(HostId, Seen)>)| {
            seen.sort_by_key(|(host, seen)| (Reverse(seen.last), *host));
            OtherVersion {
                version,
                hosts: seen.len() as u64,
                datagrams: seen.iter().map(|(_, seen)| seen.datagrams).sum(),
                last: seen.iter().map(|(_, seen)| seen.last).max().unwrap_or(now),
                named: seen.iter().take(NAMED_MAX).map(|(host, _)| *host).collect(),
            }
        };
        by_version.into_iter().map(sum).collect()
    }
}

impl Seen {
    /// Whether it was lately, and the host was not heard in our version since.
    fn is_news(&self, heard: Option<Instant>, now: Instant) -> bool {
        now.since(self.last) < SHOWN_FOR && heard.is_none_or(|heard| heard < self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(1_000_000 + ms)
    }

    #[test]
    fn hosts_are_told_by_version_until_they_are_heard_or_silent_for_long() {
        let mut all = Foreigners::new(at(0));
        let from: SocketAddr = "192.0.2.7:4000".parse().unwrap();
        for n in 1..=5u8 {
            all.note(HostId([n; 16]), 1, from, at(u64::from(n)));
        }
        all.note(HostId([1; 16]), 1, from, at(10));
        all.note(HostId([9; 16]), 3, from, at(11));
        let told = all.summary(|_| None, at(20));
        assert_eq!(
            told.iter().map(|v| (v.version, v.hosts, v.datagrams)).collect::<Vec<_>>(),
            [(1, 5, 6), (3, 1, 1)]
        );
        assert_eq!(told[0].named, [1, 5, 4].map(|n| HostId([n; 16])), "the last ones first");
        let why = all.of(HostId([1; 16]), None, at(20)).unwrap();
        assert_eq!(
            (why.version, why.ours, why.datagrams, why.last_ago_ms),
            (1, wire::VERSION, 2, 10)
        );
        // It was upgraded.
        assert_eq!(all.of(HostId([1; 16]), Some(at(15)), at(20)), None);
        assert!(all.of(HostId([1; 16]), Some(at(5)), at(20)).is_some(), "or went back");
        assert_eq!(
            all.summary(|host| (host == HostId([9; 16])).then_some(at(15)), at(20)).len(),
            1
        );
        let later = at(20) + SHOWN_FOR;
        assert!(all.summary(|_| None, later).is_empty());
        // It speaks yet another one now.
        all.note(HostId([1; 16]), 3, from, later);
        assert_eq!(all.hosts.len(), 1, "the others are forgotten");
    }

    #[test]
    fn hosts_and_looks_are_bounded() {
        let mut all = Foreigners::new(at(0));
        let looked = (0..10_000).filter(|_| all.may_look(at(0))).count();
        assert_eq!(looked, LOOKS_PER_S as usize);
        let from: SocketAddr = "192.0.2.7:4000".parse().unwrap();
        for n in 0..2 * HOSTS_MAX as u128 {
            all.note(HostId(n.to_be_bytes()), 1, from, at(1));
        }
        assert_eq!(all.hosts.len(), HOSTS_MAX);
    }
}
