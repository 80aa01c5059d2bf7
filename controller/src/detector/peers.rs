//! Who may speak for a suspect: alive hosts of other failure domains. Pure.
//!
//! A host's *domain* is a hash of the labels that `detector.domain_labels` names. Hosts with none of them
//! have no domain, and count as outside every other. Whoever shares the suspect's rack is likely to share
//! its fate, or its switch: what it cannot reach proves little.
//!
//! Choosing looks at no more than [`TRIES_MAX`] hosts, however many there are; up to that many hosts, it
//! looks at all of them.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use heartwatch_common::time::Instant;

use super::dice::Dice;
use super::host::{DUPLICATE, Host};
use super::slab::Slab;
use crate::event::State;

/// Hosts that are looked at to find peers for one suspect.
pub const TRIES_MAX: usize = 64;

/// Which labels make a failure domain.
#[derive(Clone, Debug)]
pub struct DomainLabels(Arc<[String]>);

impl DomainLabels {
    /// By these labels; hosts differ in domain if they differ in any of them.
    pub fn new(labels: Vec<String>) -> Self {
        Self(labels.into())
    }

    /// The domain of a host with these labels.
    pub fn domain(&self, labels: &BTreeMap<String, String>) -> Domain {
        if !self.0.iter().any(|name| labels.contains_key(name)) {
            return Domain(0);
        }
        let mut hasher = std::hash::DefaultHasher::new();
        self.0.iter().for_each(|name| labels.get(name).hash(&mut hasher));
        Domain((hasher.finish() as u32).max(1))
    }
}

/// A failure domain; 0 = unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Domain(pub u32);

impl Domain {
    /// Whether what befalls one need not befall the other.
    fn is_apart_from(self, other: Self) -> bool {
        self.0 == 0 || self != other
    }
}

/// Slots of at most `k` hosts that may be asked about `suspect` as of the watermark `seen`. `witness`
/// comes first if it is still good; those in `asked` come last.
pub(crate) fn choose(
    hosts: &Slab,
    suspect: u32,
    k: usize,
    seen: Instant,
    asked: &[u32],
    witness: Option<u32>,
    dice: &mut Dice,
) -> Vec<u32> {
    let mut chosen = Vec::with_capacity(k);
    let Some(domain) = hosts.get(suspect).map(|host| host.domain) else { return chosen };
    let good = |slot: u32| {
        slot != suspect
            && hosts.get(slot).is_some_and(|h| is_good(h, seen) && h.domain.is_apart_from(domain))
    };
    chosen.extend(witness.filter(|w| k > 0 && good(*w)));
    let mut again = Vec::new();
    // A walk by an odd stride over the next power of two meets every slot once before any twice, and
    // neighbours, which are often of one rack, far apart.
    let mask = hosts.len().next_power_of_two() as u32 - 1;
    let (start, stride) = (dice.roll(), dice.roll() | 1);
    for i in 0..TRIES_MAX as u32 {
        if chosen.len() >= k || i > mask {
            break;
        }
        let slot = start.wrapping_add(i.wrapping_mul(stride)) & mask;
        if !chosen.contains(&slot) && good(slot) {
            if asked.contains(&slot) { again.push(slot) } else { chosen.push(slot) }
        }
    }
    let room = k.saturating_sub(chosen.len());
    chosen.extend(again.into_iter().take(room));
    chosen
}

/// Whether a host is heard well enough to speak for others: alive, and within two of its own gaps.
fn is_good(h: &Host, seen: Instant) -> bool {
    h.state == State::Alive
        && !h.is(DUPLICATE)
        && h.address.get().is_some()
        && h.last_arrival().is_some_and(|at| seen.since(at) <= h.gap() * 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use heartwatch_common::id::{Boot, HostId};

    use crate::detector::host::Known;
    use crate::view::LiveId;

    const SEEN: Instant = Instant::from_millis(100_000);

    /// A host that may be asked.
    fn host(slot: u32, domain: Domain) -> Host {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&slot.to_be_bytes());
        let known = Known {
            boot: Boot(1),
            address: Some("192.0.2.1:9".parse().unwrap()),
            domain,
            ..Known::new(HostId(id), State::Alive)
        };
        let mut host = Host::new(&known, None, SEEN);
        host.hear(SEEN);
        host
    }

    /// `n` hosts that may all be asked, four to a domain.
    fn fleet(n: u32) -> Slab {
        let mut slab = Slab::default();
        for slot in 0..n {
            assert_eq!(slab.add(host(slot, Domain(1 + slot / 4)), LiveId::NONE), Some(slot));
        }
        slab
    }

    fn pick(hosts: &Slab, k: usize, asked: &[u32], seed: u64) -> Vec<u32> {
        choose(hosts, 0, k, SEEN, asked, None, &mut Dice::new(seed))
    }

    #[test]
    fn peers_are_of_other_domains_distinct_and_not_the_suspect() {
        let hosts = fleet(1_000);
        for seed in 1..500 {
            let peers = pick(&hosts, 3, &[], seed);
            assert_eq!(peers.len(), 3);
            assert!(peers.iter().all(|p| *p >= 4), "{peers:?}");
            assert!(peers[0] != peers[1] && peers[1] != peers[2] && peers[0] != peers[2]);
        }
    }

    #[test]
    fn the_choice_is_spread_over_the_fleet() {
        let hosts = fleet(1_000);
        let mut times = [0u32; 1_000];
        for seed in 1..20_000 {
            pick(&hosts, 3, &[], seed * 7_919).iter().for_each(|p| times[*p as usize] += 1);
        }
        let (least, most) = (times[4..].iter().min().unwrap(), times.iter().max().unwrap());
        assert!(*least > 20 && *most < 140, "{least} to {most}, 60 each were fair");
    }

    #[test]
    fn in_a_small_fleet_the_only_good_peer_is_always_found() {
        for n in [2, 3, 7, 33, 64] {
            let mut hosts = fleet(n);
            let only = n - 1;
            for slot in 0..n {
                hosts.get_mut(slot).unwrap().domain = Domain(1 + u32::from(slot == only));
            }
            for seed in 1..200 {
                assert_eq!(pick(&hosts, 3, &[], seed), [only], "{n} hosts, seed {seed}");
            }
        }
    }

    #[test]
    fn whoever_is_not_well_heard_is_not_asked() {
        let spoil: [fn(&mut Host); 6] = [
            |h| h.state = State::Suspect,
            |h| h.flag(DUPLICATE, true),
            |h| h.address = Default::default(),
            |h| h.hear(Instant(0)),
            |h| h.hear(SEEN - Duration::from_millis(2_001)),
            |h| h.domain = Domain(1),
        ];
        for spoil in spoil {
            let mut hosts = fleet(8);
            hosts.take(3);
            (4..8).for_each(|slot| spoil(hosts.get_mut(slot).unwrap()));
            assert!(pick(&hosts, 3, &[], 5).is_empty());
        }
        assert!(choose(&Slab::default(), 0, 3, SEEN, &[], None, &mut Dice::new(1)).is_empty());
        assert!(pick(&fleet(8), 0, &[], 5).is_empty());
    }

    #[test]
    fn those_asked_before_come_last_and_a_witness_first() {
        let hosts = fleet(8);
        let mut last = pick(&hosts, 4, &[4, 5, 6], 9);
        assert_eq!(last[0], 7);
        last.sort_unstable();
        assert_eq!(last, [4, 5, 6, 7]);
        assert!(!pick(&hosts, 1, &[4, 5, 6], 9).contains(&4));
        let witness = |w| choose(&hosts, 0, 2, SEEN, &[], Some(w), &mut Dice::new(3));
        assert_eq!((witness(6)[0], witness(6).len()), (6, 2));
        assert!(!witness(1).contains(&1), "not of the suspect's own domain, whatever it once said");
        assert!(!witness(99).contains(&99));
    }

    #[test]
    fn domains_follow_the_labels_and_without_any_a_host_stands_alone() {
        let by = DomainLabels::new(vec!["zone".to_owned(), "rack".to_owned()]);
        let of = |pairs: &[(&str, &str)]| {
            let labels = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            by.domain(&labels)
        };
        let (a, b) = (of(&[("zone", "a"), ("rack", "1")]), of(&[("zone", "a"), ("rack", "2")]));
        assert!(a.is_apart_from(b) && !a.is_apart_from(a));
        assert_eq!(a, of(&[("zone", "a"), ("rack", "1"), ("pool", "web")]));
        assert_ne!(of(&[("zone", "a")]), of(&[("rack", "a")]));
        let none = of(&[("pool", "web")]);
        assert_eq!(none, Domain(0));
        assert!(none.is_apart_from(none) && a.is_apart_from(none) && none.is_apart_from(a));
    }
}
