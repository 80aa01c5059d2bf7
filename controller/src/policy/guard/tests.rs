use super::*;
use crate::policy::new_row;
use heartwatch_common::time::Wall;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SECOND: Duration = Duration::from_secs(1);

fn id(n: u32) -> HostId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    HostId(id)
}

/// Hosts 0 to 19 are in rack 0 of zone a, 20 to 39 in rack 1, and so on, five racks a zone.
struct Fleet {
    guard: Guard,
    rows: BTreeMap<HostId, HostRow>,
    now: Instant,
    released: Vec<HostId>,
    at_once: Vec<HostId>,
    told: Vec<(EventKind, String)>,
}

impl Fleet {
    fn new(hosts: u32) -> Self {
        Self::with(hosts, GuardConfig::default())
    }

    fn with(hosts: u32, config: GuardConfig) -> Self {
        let mut fleet = Self {
            guard: Guard::new(config),
            rows: BTreeMap::new(),
            now: Instant::from_millis(100_000_000),
            released: Vec::new(),
            at_once: Vec::new(),
            told: Vec::new(),
        };
        fleet.guard.advance(fleet.now);
        for n in 0..hosts {
            let mut row = new_row(id(n), Wall(0));
            row.state = State::Alive;
            row.labels.insert("zone".to_owned(), (n / 100).to_string());
            row.labels.insert("rack".to_owned(), (n / 20).to_string());
            fleet.guard.register(&row, Duration::ZERO);
            fleet.rows.insert(row.id, row);
        }
        fleet
    }

    fn set(&mut self, n: u32, state: State, cause: Option<Cause>) {
        let old = self.rows[&id(n)].clone();
        let new = HostRow { state, cause, ..old.clone() };
        self.guard.observe(Some(&old), Some(&new));
        self.rows.insert(new.id, new);
    }

    fn suspect(&mut self, n: u32) {
        self.set(n, State::Suspect, None);
    }

    /// Goes down; whether its order goes at once.
    fn down(&mut self, n: u32) -> bool {
        self.set(n, State::Down, Some(Cause::Silent));
        self.guard.order(id(n), SECOND).is_none()
    }

    fn fall(&mut self, n: u32) {
        if self.down(n) {
            self.at_once.push(id(n));
        }
    }

    fn back(&mut self, n: u32) {
        self.set(n, State::Alive, None);
    }

    fn wait(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.now = (self.now + Duration::from_millis(200)).min(end);
            self.guard.step(self.now);
            self.take_news();
        }
    }

    fn take_news(&mut self) {
        while let Some(news) = self.guard.news() {
            match news {
                News::Release(host) => self.released.push(host),
                News::Tell(kind, _, data) => {
                    let name = data["domain"].as_str().unwrap_or("-").to_owned();
                    self.told.push((kind, name));
                }
                News::Cancel(..) | News::Steady(_) => {}
            }
        }
    }

    fn kind(&self, n: u32) -> Option<HoldKind> {
        self.guard.hold_of(id(n), Wall(0)).map(|h| h.kind)
    }

    fn held(&self) -> u64 {
        self.guard.held.iter().sum()
    }

    fn told(&self) -> Vec<(EventKind, &str)> {
        self.told.iter().map(|(kind, name)| (*kind, name.as_str())).collect()
    }

    /// What holds must agree with itself.
    fn check(&self) {
        let g = &self.guard;
        let held: Vec<_> =
            g.entries.iter().filter(|(_, e)| matches!(e.stage, Stage::Held(_))).collect();
        assert_eq!(held.len() as u64, self.held());
        let ages: BTreeSet<_> = held.iter().map(|(host, e)| (e.since, **host)).collect();
        assert_eq!(ages, g.by_age);
        let due: BTreeSet<_> = g.entries.iter().filter_map(|(h, e)| Some((e.due?, *h))).collect();
        assert_eq!(due, g.timers);
        for id in g.domains.ids() {
            let domain = g.domains.get(id).unwrap();
            let inside = || g.entries.values().filter(|e| e.path.contains(&id));
            assert_eq!(domain.counted as usize, inside().filter(|e| e.counted).count());
            let held = inside().filter(|e| matches!(e.stage, Stage::Held(_))).count();
            assert_eq!(domain.held as usize, held);
        }
        for (host, entry) in &held {
            match entry.stage {
                Stage::Held(Why::Storm(id)) => {
                    assert!(g.storms.contains_key(&id) || g.again.contains(host));
                    assert!(g.stormbound[&id].contains(host));
                }
                Stage::Held(Why::Rate(id)) => assert!(g.lines[&id].contains(host)),
                Stage::Held(Why::Own) => assert!(g.doubted.contains(host)),
                Stage::Held(Why::Flap | Why::Settle) => assert!(entry.due.is_some()),
                _ => {}
            }
        }
        let out: BTreeSet<_> = self.rows.values().filter(|r| is_out(r)).map(|r| r.id).collect();
        assert!(g.entries.keys().all(|host| out.contains(host)), "who is back has no order");
    }
}

#[test]
fn a_host_that_falls_alone_is_acted_upon_at_once() {
    let mut f = Fleet::new(200);
    f.suspect(7);
    assert!(f.down(7));
    assert!(f.down(150), "elsewhere, too");
    f.check();
    assert_eq!(f.held(), 0);
}

#[test]
fn a_dead_rack_is_one_event_and_none_of_its_failovers_slips_through() {
    let mut f = Fleet::new(200);
    (0..12).for_each(|n| f.suspect(n));
    assert!((0..20).all(|n| !f.down(n)), "the first ones wait, as others are suspect");
    f.wait(SECOND * 5);
    assert_eq!(f.told(), [(EventKind::DomainDown, "zone=0,rack=0")]);
    assert!((0..20).all(|n| f.kind(n) == Some(HoldKind::Storm)));
    assert!(f.released.is_empty());
    assert!(f.down(120), "another zone goes on");
    let words = f.guard.hold_of(id(3), Wall(0)).unwrap().reason;
    assert!(words.contains("zone=0,rack=0: 20 of 20 hosts"), "{words}");
    f.check();
}

#[test]
fn a_slow_cascade_adds_up_and_no_more_than_the_threshold_less_one_are_acted_upon() {
    let mut f = Fleet::new(200);
    let mut acted = 0;
    for n in 0..15 {
        acted += u32::from(f.down(n));
        f.wait(SECOND * 30);
    }
    acted += f.released.len() as u32;
    // Thirty of a hundred of 20 are 6.
    assert_eq!(acted, 5);
    assert_eq!(f.told(), [(EventKind::DomainStorm, "zone=0,rack=0")]);
    f.check();
}

#[test]
fn who_fell_long_ago_and_was_acted_upon_is_no_evidence_any_more() {
    let mut f = Fleet::new(200);
    for n in 0..15 {
        f.fall(n);
        f.wait(SECOND * 180);
    }
    assert_eq!((f.told().len(), f.at_once.len() + f.released.len()), (0, 15));
    // Of 20 five are left, and those that are long dead are not counted among those that could fall.
    assert_eq!(f.guard.domains.get(DomainId::FLEET).unwrap().base(), 185 + 4 - 1);
    f.check();
}

#[test]
fn when_the_rack_comes_back_the_storm_ends_and_the_dead_rest_is_acted_upon() {
    let mut f = Fleet::new(200);
    (0..20).for_each(|n| f.suspect(n));
    (0..20).for_each(|n| f.fall(n));
    f.wait(SECOND * 60);
    (0..18).for_each(|n| f.back(n));
    f.wait(SECOND * 29);
    assert!(f.released.is_empty(), "it may come again");
    f.wait(SECOND * 2);
    assert_eq!(f.told().last(), Some(&(EventKind::DomainCalm, "zone=0,rack=0")));
    f.wait(SECOND * 3);
    f.released.sort_unstable();
    assert_eq!(f.released, [id(18), id(19)]);
    f.check();
}

#[test]
fn a_storm_that_sways_about_its_threshold_begins_and_ends_once() {
    let mut f = Fleet::new(200);
    (0..8).for_each(|n| f.fall(n));
    for round in 0..20 {
        let n = 4 + round % 2;
        f.back(n);
        f.wait(SECOND * 10);
        f.down(n);
        f.wait(SECOND * 10);
    }
    assert_eq!(f.told(), [(EventKind::DomainStorm, "zone=0,rack=0")]);
    f.check();
}

#[test]
fn what_is_steadily_dead_is_acted_upon_at_the_domains_rate() {
    let mut f = Fleet::new(200);
    (0..20).for_each(|n| f.fall(n));
    f.wait(SECOND * 890);
    assert_eq!((f.released.len(), f.at_once.len()), (0, 2), "the first two might be just these");
    assert_eq!(f.told()[1].0, EventKind::HoldOverdue);
    f.wait(SECOND * 15);
    assert_eq!(f.told()[2].0, EventKind::DomainCalm);
    assert_eq!(f.released.len(), 10, "a burst of ten");
    assert_eq!(f.kind(19), Some(HoldKind::Rate));
    f.back(15);
    f.wait(SECOND * 60);
    assert_eq!(f.released.len(), 17, "one in six seconds, and who came back is passed over");
    assert!(!f.released.contains(&id(15)));
    assert_eq!(f.told().len(), 3, "acting upon them is no new storm");
    f.check();
}

#[test]
fn most_of_the_fleet_silent_may_be_us_and_never_lets_go_by_itself() {
    let mut f = Fleet::new(200);
    (0..200).for_each(|n| f.suspect(n));
    (0..130).for_each(|n| assert!(!f.down(n)));
    f.wait(SECOND * 7_200);
    assert!(f.released.is_empty());
    let storms: Vec<_> =
        f.told().into_iter().filter(|(k, _)| *k != EventKind::HoldOverdue).collect();
    assert_eq!(storms, [(EventKind::DomainDown, "fleet")], "one for all");
    assert!(f.guard.hold_of(id(5), Wall(0)).unwrap().reason.contains("it may be us"));
    f.check();
}

#[test]
fn a_dead_rack_is_no_storm_of_its_zone_nor_of_the_fleet_while_others_are_heard() {
    let mut f = Fleet::new(40);
    (0..20).for_each(|n| f.suspect(n));
    (0..20).for_each(|n| f.fall(n));
    f.wait(SECOND * 5);
    assert_eq!(f.told(), [(EventKind::DomainDown, "zone=0,rack=0")], "half of all, but one rack");
    f.fall(25);
    f.wait(SECOND * 3);
    assert_eq!(f.released, [id(25)], "the other rack goes on, after a moment");
    (26..36).for_each(|n| f.fall(n));
    f.wait(SECOND * 5);
    assert!(f.told().contains(&(EventKind::DomainStorm, "fleet")), "{:?}", f.told());
    f.check();
}

#[test]
fn own_doubt_holds_all_and_what_it_held_is_judged_again() {
    let mut f = Fleet::new(200);
    f.guard.set_own(Some("paused".to_owned()));
    assert!(!f.down(3) && !f.down(150));
    f.guard.release_own();
    f.wait(SECOND);
    assert_eq!(f.held(), 2, "the pause goes on");
    f.back(150);
    f.guard.set_own(None);
    f.guard.release_own();
    f.wait(SECOND);
    assert_eq!((f.released.clone(), f.held()), (vec![id(3)], 0));
    f.check();
}

#[test]
fn a_flapping_host_is_acted_upon_once_it_has_been_down_for_a_while() {
    let mut f = Fleet::new(200);
    (0..6).for_each(|_| {
        assert!(!f.guard.flaps.fell(id(3), 700.0, f.now) || f.guard.flaps.is_flapping(id(3)))
    });
    assert!(!f.down(3));
    assert_eq!(f.kind(3), Some(HoldKind::Flapping));
    f.wait(SECOND * 119);
    assert!(f.released.is_empty());
    f.wait(SECOND * 2);
    assert_eq!(f.released, [id(3)]);
    f.check();
}

#[test]
fn an_operator_lets_one_go_at_once_and_a_domain_at_its_rate() {
    let mut f = Fleet::new(200);
    (0..20).for_each(|n| f.suspect(n));
    (0..20).for_each(|n| f.fall(n));
    f.wait(SECOND * 5);
    assert_eq!(f.guard.approve(&Target::Host(id(9))).released, 1);
    assert_eq!(f.guard.approve(&Target::Host(id(9))), HoldReport::default(), "not held any more");
    assert_eq!(f.guard.reject(&Target::Host(id(8)), "no").rejected, 1);
    f.take_news();
    assert_eq!(f.released, [id(9)]);
    let rack = crate::policy::parse_domain("zone=0,rack=0").unwrap();
    assert_eq!(f.guard.approve(&Target::Domain(rack)).queued, 18);
    f.wait(SECOND);
    assert_eq!(f.released.len(), 10);
    f.down(20);
    f.wait(SECOND * 70);
    assert!(!f.released.contains(&id(8)) && f.released.len() == 20, "{}", f.released.len());
    f.check();
}

#[test]
fn a_restart_in_a_storm_lets_nothing_go() {
    let mut f = Fleet::new(200);
    (0..20).for_each(|n| f.suspect(n));
    (0..20).for_each(|n| f.fall(n));
    f.wait(SECOND * 60);
    // Below what trips it, but not calm.
    (0..16).for_each(|n| f.back(n));
    let saved = f.guard.save(Wall(60_000)).unwrap();
    let held: Vec<HostId> = f.guard.by_age.iter().map(|(_, host)| *host).collect();
    let mut again = Fleet::with(0, GuardConfig::default());
    again.rows = f.rows.clone();
    again.rows.values().for_each(|row| again.guard.register(row, SECOND * 60));
    for host in &held {
        again.guard.restore(*host, f.rows.get(host), SECOND * 60);
    }
    again.guard.resume(Some(&saved), Wall(61_000)).unwrap();
    again.check();
    again.wait(SECOND * 9);
    assert_eq!((again.held(), again.released.len()), (4, 0), "every host has its chance first");
    again.guard.release_own();
    again.wait(SECOND);
    assert_eq!(again.kind(17), Some(HoldKind::Storm));
    assert!(again.told().is_empty(), "it was told before");
    let damaged = again.guard.resume(Some("{"), Wall(0));
    assert!(damaged.is_err());
    again.check();
}

#[test]
fn a_storm_is_found_again_from_what_it_holds_alone() {
    let mut f = Fleet::new(0);
    let whole = Fleet::new(200);
    for (host, row) in &whole.rows {
        let mut row = row.clone();
        if *host < id(12) {
            (row.state, row.cause) = (State::Down, Some(Cause::Silent));
        }
        f.guard.register(&row, SECOND * 9_000);
        f.rows.insert(*host, row);
    }
    for n in 0..12 {
        f.guard.restore(id(n), f.rows.get(&id(n)), SECOND * 9_000);
    }
    f.guard.resume(None, Wall(0)).unwrap();
    f.guard.release_own();
    f.wait(SECOND * 3);
    assert_eq!(f.kind(5), Some(HoldKind::Storm));
    assert_eq!(f.told()[0].0, EventKind::DomainStorm);
    // One that is not known any more is not held for ever.
    f.guard.restore(id(9_999), None, SECOND);
    f.wait(SECOND);
    assert_eq!(f.released, [id(9_999)]);
    f.check();
}

#[test]
fn agent_lost_is_no_evidence_and_unreachable_hosts_are_for_a_while() {
    let mut f = Fleet::new(200);
    (0..20).for_each(|n| f.set(n, State::Down, Some(Cause::AgentLost)));
    assert!(f.guard.storms.is_empty());
    (0..20).for_each(|n| f.back(n));
    (0..8).for_each(|n| f.set(n, State::Suspect, Some(Cause::Unreachable)));
    assert_eq!(f.guard.storms.len(), 1);
    f.wait(SECOND * 640);
    assert!(f.guard.storms.is_empty(), "that network is cut; who dies elsewhere is no storm");
    f.check();
}

#[test]
fn holds_are_listed_by_age_page_by_page() {
    let mut f = Fleet::new(200);
    (0..20).for_each(|n| f.suspect(n));
    for n in 0..20 {
        f.down(n);
        f.wait(SECOND);
    }
    let rack = crate::policy::parse_domain("rack=0,zone=0").unwrap();
    let (mut seen, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = f.guard.page(Some(&rack), after.as_deref(), 7, Wall(1_000_000)).unwrap();
        assert_eq!(page.total, 20);
        seen.extend(page.holds.iter().map(|h| h.host));
        after = page.next_after;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, (0..20).map(id).collect::<Vec<_>>());
    let other = crate::policy::parse_domain("zone=1").unwrap();
    assert!(f.guard.page(Some(&other), None, 7, Wall(0)).unwrap().holds.is_empty());
    assert!(f.guard.page(None, Some("nonsense"), 7, Wall(0)).is_none());
    let status = f.guard.status(Wall(1_000_000));
    assert_eq!((status.holds[&HoldKind::Storm], status.storms_total), (20, 1));
    assert_eq!(status.oldest_ms, Some(Wall(980_000)));
}

/// Whatever happens in whatever order: the books agree, a window sees no more actions than the rate allows,
/// and once nothing happens any more and somebody approves, nothing is left held.
#[test]
fn any_story_keeps_the_books_and_ends() {
    for seed in 0..60 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut f = Fleet::new(200);
        let mut acted: BTreeMap<u32, Vec<Instant>> = BTreeMap::new();
        for _ in 0..600 {
            let hosts = if rng.random_bool(0.7) { 40 } else { 200 };
            let n = rng.random_range(0..hosts);
            match rng.random_range(0..10) {
                0..=3 if !is_out(&f.rows[&id(n)]) && f.down(n) => {
                    acted.entry(n / 20).or_default().push(f.now);
                }
                4 if f.rows[&id(n)].state == State::Alive => f.suspect(n),
                5 | 6 => f.back(n),
                7 => {
                    let span = Duration::from_millis(rng.random_range(0..90_000));
                    f.wait(span);
                }
                8 if rng.random_bool(0.2) => {
                    let own = rng.random_bool(0.3).then(|| "blind".to_owned());
                    f.guard.set_own(own);
                    f.guard.release_own();
                }
                9 if rng.random_bool(0.1) => {
                    let target = match rng.random_bool(0.5) {
                        true => Target::Host(id(n)),
                        false => Target::Domain(f.rows[&id(n)].labels.clone()),
                    };
                    match rng.random_bool(0.5) {
                        true => f.guard.approve(&target),
                        false => f.guard.reject(&target, "no"),
                    };
                }
                _ => {}
            }
            f.wait(Duration::from_millis(200));
            let (now, released) = (f.now, std::mem::take(&mut f.released));
            for host in released {
                let n = u32::from_be_bytes(host.0[..4].try_into().unwrap());
                acted.entry(n / 20).or_default().push(now);
            }
            f.check();
        }
        for times in acted.values() {
            for (i, from) in times.iter().enumerate() {
                let minute = times[i..].iter().filter(|t| t.since(*from) < SECOND * 60).count();
                // A burst, and one in six seconds; and what was approved by name.
                assert!(minute <= 10 + 10 + 3, "seed {seed}: {minute} in a minute");
            }
        }
        f.guard.set_own(None);
        f.guard.release_own();
        f.guard.approve(&Target::Domain(BTreeMap::new()));
        f.wait(SECOND * 1_200);
        assert_eq!(f.held(), 0, "seed {seed}");
        assert!(f.guard.storms.len() <= 3 && f.guard.lines.is_empty());
        f.check();
    }
}

/// A turn must not cost more because much is held elsewhere.
#[test]
fn a_hundred_thousand_turns_take_a_moment() {
    let mut f = Fleet::new(100_000);
    for n in 0..100_000 {
        f.down(n);
        if n % 1_000 == 0 {
            f.wait(Duration::from_millis(200));
        }
    }
    (0..100_000).for_each(|n| f.back(n));
    f.wait(SECOND * 40);
    assert_eq!(f.held(), 0);
    assert!(f.guard.entries.is_empty() && f.guard.timers.is_empty());
    f.check();
}

mod shelter;
