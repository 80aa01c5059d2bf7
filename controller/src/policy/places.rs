//! The policy's side of [`placement`](super::placement): what it knows of hosts beside their rows, and what
//! it remembers of whom it named.

use std::collections::BTreeMap;

use heartwatch_common::id::HostId;
use heartwatch_common::time::{Instant, Wall};
use serde_json::{Map, Value, json};

use super::guard::Guard;
use super::placement::reserve::Reservations;
use super::placement::{Circumstances, Placement, Wanted};
use super::rules::Subject;
use super::{Policy, order_of, rules};
use crate::config::PlacementConfig;
use crate::event::EventKind;
use crate::store::HostRow;

/// What placement needs over time.
#[derive(Clone, Debug)]
pub(super) struct Places {
    load_max: u16,
    reserved: Reservations,
}

impl Places {
    pub(super) fn new(config: PlacementConfig) -> Self {
        let reserved = Reservations::new(config.reserve_load, config.reserve_half_life);
        Self { load_max: config.load_max, reserved }
    }
}

/// All that is known, as of now.
struct Known<'a> {
    guard: &'a Guard,
    places: &'a Places,
    now: Instant,
}

impl Circumstances for Known<'_> {
    fn is_flapping(&self, host: HostId) -> bool {
        self.guard.flaps.is_flapping(host)
    }

    fn is_in_maintenance(&self, host: HostId) -> bool {
        self.guard.shelter_of(host).is_some()
    }

    fn reserved(&self, host: HostId) -> u16 {
        self.places.reserved.of(host, self.now)
    }

    fn load_max(&self) -> u16 {
        self.places.load_max
    }

    fn trees(&self) -> &[Vec<String>] {
        self.guard.trees()
    }

    fn is_stormy(&self, labels: &BTreeMap<String, String>) -> bool {
        self.guard.is_stormy_place(labels)
    }
}

impl Policy {
    /// The same, and it places as these settings say.
    #[must_use]
    pub fn placing(mut self, config: PlacementConfig) -> Self {
        self.places = Places::new(config);
        self
    }

    /// The labels in which candidates must equal a host, by the first rule for such an order that names any.
    pub fn candidates_same(
        &self,
        kind: EventKind,
        labels: &BTreeMap<String, String>,
    ) -> Vec<String> {
        let of = Subject { kind, labels: Some(labels), from: None };
        rules::matching(&self.rules, of)
            .find(|(_, r)| !r.candidates_same.is_empty())
            .map(|(_, r)| r.candidates_same.clone())
            .unwrap_or_default()
    }

    /// Asks `find` who could take over from a host, without promising anything away.
    pub fn place(
        &self,
        failed: &HostRow,
        same: &[String],
        find: impl FnOnce(&Wanted<'_>) -> Placement,
    ) -> Placement {
        let now = self.guard.now();
        let known = Known { guard: &self.guard, places: &self.places, now };
        find(&Wanted { failed, same, circumstances: &known })
    }

    /// A host's order goes out: who is named first is promised away.
    pub(super) fn promise(&mut self, placement: &Placement) {
        if let Some(first) = placement.candidates.first() {
            self.places.reserved.reserve(first.id, self.guard.now());
        }
    }

    /// The candidates of a held order that goes now: those of the time when it was held are of no use. `row`
    /// is the host as it stands. `None`: the order is no longer true, and will be cancelled.
    pub fn place_again(
        &mut self,
        row: &HostRow,
        at: Wall,
        find: impl FnOnce(&Wanted<'_>) -> Placement,
    ) -> Option<Map<String, Value>> {
        let kind = order_of(Some(row));
        Self::rejudge(Some(row), kind, row.incident).ok()?;
        let same = self.candidates_same(kind, &row.labels);
        let placement = self.place(row, &same, find);
        self.promise(&placement);
        let mut data = Map::new();
        placement.write(&mut data);
        data.insert("placed_again_ms".to_owned(), json!(at));
        Some(data)
    }

    /// What must be kept of promises for the next start, if that has changed, and not too often.
    pub fn save_places(&mut self, at: Wall) -> Option<String> {
        self.places.reserved.save(self.guard.now(), at)
    }

    /// Goes on with what [`Policy::save_places`] answered last. `Err`: it can't be read, and nothing is taken
    /// for promised.
    pub fn resume_places(&mut self, saved: &str, now: Instant, at: Wall) -> Result<(), String> {
        self.guard.advance(now);
        self.places.reserved.resume(saved, now, at)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Duration;

    use super::*;
    use crate::config::{GuardConfig, Rule, Threshold};
    use crate::detector::host::{Evidence, Transition, Turn};
    use crate::event::{Cause, State};
    use crate::policy::placement::{Depth, Draw, Pool, Seen, find};
    use crate::policy::{Author, Decision, new_row};
    use heartwatch_common::id::{Boot, ControllerId};
    use heartwatch_common::load::{LoadSample, Share};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    /// Hosts with their loads, all of one pool.
    struct Fleet(BTreeMap<HostId, (HostRow, LoadSample)>);

    impl Pool for Fleet {
        fn look(
            &self,
            failed: &HostRow,
            _: &[String],
            _: usize,
            _: Draw,
            seen: &mut dyn FnMut(Seen),
        ) -> bool {
            for (row, load) in self.0.values().filter(|(row, _)| row.id != failed.id) {
                let HostRow { id, state, duplicate, .. } = *row;
                seen(Seen { id, state, duplicate, load: Some(*load) });
            }
            true
        }

        fn row(&self, id: HostId) -> Option<HostRow> {
            self.0.get(&id).map(|(row, _)| row.clone())
        }
    }

    fn host(n: u8) -> HostId {
        HostId([n; 16])
    }

    /// Ten racks of ten; host `n` has a load of `n` per mille or so and lies in rack `n / 10`.
    fn fleet() -> Fleet {
        let hosts = (0..100).map(|n| {
            let mut row = HostRow { state: State::Alive, ..new_row(host(n), Wall(0)) };
            row.labels.insert("rack".to_owned(), (n / 10).to_string());
            let load = LoadSample {
                cpu_busy: Share::from_ratio(0.1 + f64::from(n) / 1_000.0),
                memory_used: Share::from_ratio(0.0),
                run_queue_centi: 0,
                ..LoadSample::UNKNOWN
            };
            (row.id, (row, load))
        });
        Fleet(hosts.collect())
    }

    fn policy(storm_hosts: u32) -> Policy {
        let rule = Rule {
            name: "failover".to_owned(),
            events: [EventKind::HostDown].into(),
            receivers: vec!["orchestrator".to_owned()],
            ..Rule::default()
        };
        let guard = GuardConfig {
            trees: vec![vec!["rack".to_owned()]],
            storm: Threshold { share: 0.3, hosts: storm_hosts },
            fleet: Threshold { share: 1.0, hosts: 0 },
            settle: Duration::ZERO,
            ..GuardConfig::default()
        };
        let author = Author { id: ControllerId(1), name: "c".to_owned() };
        Policy::guarded(author, vec![rule], guard)
    }

    /// A host falls; answers what is decided, and notes it in the fleet.
    fn fall(policy: &mut Policy, fleet: &RefCell<Fleet>, n: u8) -> Decision {
        let row = fleet.borrow().row(host(n)).expect("it is there");
        let transition = Transition {
            host: row.id,
            turn: Turn::Down(Cause::Silent),
            state: State::Down,
            boot: Boot(0),
            address: None,
            at: Instant(1_000_000_000_000),
            duplicate: false,
            evidence: Evidence::default(),
        };
        let mut rng = StdRng::seed_from_u64(u64::from(n));
        let find = |wanted: &Wanted<'_>| find(&*fleet.borrow(), wanted, Depth::ORDER, 0);
        let decision = policy.take(&row, &transition, Wall(1_000), find, &mut rng);
        let mut fleet = fleet.borrow_mut();
        fleet.0.get_mut(&row.id).expect("it is there").0 = decision.row.clone();
        decision
    }

    fn named(data: &Map<String, Value>) -> Vec<HostId> {
        let list = data["candidates"].as_array().expect("an order has candidates");
        list.iter().map(|c| c["id"].as_str().unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn orders_of_one_moment_name_different_hosts_first() {
        let (mut policy, fleet) = (policy(0), RefCell::new(fleet()));
        let mut firsts: Vec<HostId> = (50..100)
            .map(|n| named(&fall(&mut policy, &fleet, n).event.expect("it fell").data)[0])
            .collect();
        firsts.sort();
        firsts.dedup();
        // Domains' rates hold some: those promise nothing, and name who may be named again.
        assert!(firsts.len() >= 40, "{}", firsts.len());
    }

    #[test]
    fn no_host_of_a_rack_that_is_in_a_storm_is_named_nor_one_that_flaps() {
        let (mut policy, fleet) = (policy(3), RefCell::new(fleet()));
        (0..3).for_each(|n| drop(fall(&mut policy, &fleet, n)));
        // The first two went, and hosts 10 and 11 were promised; the third made it a storm.
        let other = fall(&mut policy, &fleet, 95).event.expect("it fell");
        assert_eq!(named(&other.data)[0], host(12), "rack 0 has seven idle hosts left");
        assert_eq!(other.data["placement"]["left_out"]["storm"], json!(7));
        assert_eq!(other.data["placement"]["left_out"]["down"], json!(3));
        for _ in 0..4 {
            let penalty = crate::policy::flaps::DOWN_PENALTY;
            policy.guard.flaps.fell(host(13), penalty, Instant(1_000_000_000_000));
        }
        let next = fall(&mut policy, &fleet, 85).event.expect("it fell");
        assert!(!named(&next.data).contains(&host(13)));
        assert_eq!(next.data["placement"]["left_out"]["flapping"], json!(1));
    }

    #[test]
    fn a_held_order_promises_nothing_and_is_placed_again_when_it_goes() {
        let (mut policy, fleet) = (policy(0), RefCell::new(fleet()));
        policy.set_blind(0, true);
        let held = fall(&mut policy, &fleet, 50);
        assert_eq!(named(&held.event.as_ref().expect("it fell").data)[0], host(0));
        policy.set_blind(0, false);
        let gone = fall(&mut policy, &fleet, 60).event.expect("it fell");
        assert_eq!(named(&gone.data)[0], host(0), "nothing was promised by the held one");
        let look = |wanted: &Wanted<'_>| find(&*fleet.borrow(), wanted, Depth::ORDER, 0);
        let fresh = policy.place_again(&held.row, Wall(9), look).expect("it is still true");
        assert_eq!((named(&fresh)[0], &fresh["placed_again_ms"]), (host(1), &json!(9)));
        let back = HostRow { state: State::Alive, cause: None, incident: None, ..held.row };
        assert_eq!(policy.place_again(&back, Wall(9), look), None);
        // Its promises outlive the controller.
        let saved = policy.save_places(Wall(10)).expect("something was promised");
        let mut again = self::policy(0);
        again.resume_places(&saved, Instant(5), Wall(10)).expect("it can be read");
        let next = fall(&mut again, &fleet, 70).event.expect("it fell");
        assert_eq!(named(&next.data)[0], host(2));
    }
}
