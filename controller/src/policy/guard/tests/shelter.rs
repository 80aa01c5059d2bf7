//! Hosts in maintenance: what dies there waits, and is evidence of nothing.

use super::*;
use crate::policy::maintenance::{Scope, Window, WindowId};

impl Fleet {
    /// A window that opens now.
    fn open(&mut self, n: u64, scope: Scope, minutes: u64) {
        let window = Window {
            id: WindowId(n),
            scope,
            reason: "new switch".to_owned(),
            by: "ann".to_owned(),
            from_ms: Wall(0),
            until_ms: Wall(minutes as i64 * 60_000),
            announced: false,
            begun: false,
        };
        self.guard.add_window(window, self.now, Wall(0));
        self.turn_windows();
    }

    /// What the caller does as windows open and close.
    fn turn_windows(&mut self) {
        for edge in self.guard.windows_step(self.now) {
            for row in self.rows.values() {
                if edge.window.scope.covers(row.id, &row.labels) {
                    self.guard.observe(Some(row), Some(row));
                }
            }
        }
    }

    fn wait_with_windows(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.now = (self.now + SECOND).min(end);
            self.turn_windows();
            self.guard.step(self.now);
            self.take_news();
        }
    }
}

fn rack(n: u32) -> Scope {
    Scope::Domain(BTreeMap::from([("rack".to_owned(), n.to_string())]))
}

#[test]
fn what_dies_in_maintenance_waits_for_its_end_is_no_storm_and_is_then_acted_upon() {
    let mut f = Fleet::new(100);
    f.open(1, rack(0), 10);
    assert_eq!(f.guard.sheltered_len(), 20);
    (0..20).for_each(|n| f.suspect(n));
    (0..20).for_each(|n| assert!(!f.down(n), "host {n} goes at once"));
    f.wait_with_windows(SECOND * 120);
    assert_eq!(f.kind(3), Some(HoldKind::Maintenance));
    assert!(f.guard.hold_of(id(3), Wall(0)).unwrap().reason.contains("m1 of ann): new switch"));
    assert_eq!((f.told(), f.released.len()), (vec![], 0), "no storm");
    // Somebody else's death is not held by it, and waits for nobody.
    assert!(f.down(50));
    // Half are repaired in time.
    (0..17).for_each(|n| f.back(n));
    f.check();
    f.wait_with_windows(SECOND * 600);
    assert_eq!(f.released, [id(17), id(18), id(19)]);
    assert_eq!((f.held(), f.guard.sheltered_len()), (0, 0));
    f.check();
}

#[test]
fn who_comes_out_of_maintenance_dead_together_is_a_storm() {
    let mut f = Fleet::new(100);
    f.open(1, rack(0), 10);
    (0..20).for_each(|n| f.fall(n));
    f.wait_with_windows(SECOND * 601);
    assert!(f.released.is_empty() && f.at_once.is_empty());
    assert_eq!(f.kind(0), Some(HoldKind::Storm));
    f.wait_with_windows(SECOND * 5);
    assert_eq!(f.told().last(), Some(&(EventKind::DomainDown, "zone=0,rack=0")));
    f.check();
    // What waited in the window is not overdue at once, but it does become so.
    let overdue = |f: &Fleet| f.told.iter().any(|(k, _)| *k == EventKind::HoldOverdue);
    assert!(!overdue(&f));
    f.wait_with_windows(SECOND * 620);
    assert!(overdue(&f));
}

#[test]
fn a_held_order_is_taken_over_by_a_window_and_a_done_one_is_left_alone() {
    let mut f = Fleet::new(100);
    assert!(f.down(99));
    (20..40).for_each(|n| f.fall(n));
    f.wait(SECOND * 5);
    assert_eq!(f.kind(25), Some(HoldKind::Storm));
    f.open(1, rack(1), 10);
    f.open(2, Scope::Host(id(99)), 10);
    assert_eq!((f.kind(25), f.kind(99)), (Some(HoldKind::Maintenance), None));
    f.wait_with_windows(SECOND * 60);
    assert!(f.guard.storms.is_empty(), "its hosts are evidence of nothing any more");
    // By its name one can be let go, by its domain none is.
    let zone = BTreeMap::from([("zone".to_owned(), "0".to_owned())]);
    assert_eq!(f.guard.approve(&Target::Domain(zone)), HoldReport::default());
    assert_eq!(f.guard.approve(&Target::Host(id(25))).released, 1);
    f.check();
    f.wait_with_windows(SECOND * 600);
    assert!(!f.released.contains(&id(99)), "it was acted upon before");
    f.check();
}

#[test]
fn of_two_windows_that_overlap_both_must_end() {
    let mut f = Fleet::new(40);
    f.open(1, rack(0), 5);
    f.open(2, Scope::Labels("zone=0,rack!=1".parse().unwrap()), 10);
    f.fall(3);
    f.wait_with_windows(SECOND * 400);
    assert_eq!((f.kind(3), f.released.len()), (Some(HoldKind::Maintenance), 0));
    f.wait_with_windows(SECOND * 220);
    assert_eq!(f.released, [id(3)]);
}

#[test]
fn ten_thousand_hosts_in_one_window_die_and_are_judged_as_one_storm() {
    let mut f = Fleet::new(10_000);
    f.open(1, Scope::Labels("zone!=99".parse().unwrap()), 5);
    assert_eq!(f.guard.sheltered_len(), 9_900);
    (0..9_900).for_each(|n| f.fall(n));
    assert_eq!((f.held(), f.at_once.len()), (9_900, 0));
    f.wait_with_windows(SECOND * 310);
    assert_eq!(f.released.len(), 0, "it may be us");
    assert_eq!(f.told().last().map(|t| t.1), Some("fleet"));
    f.check();
}

/// Whatever happens in whatever order, the counts are those of hosts that are not in maintenance, and who
/// is down and not acted upon is held.
#[test]
fn counts_never_know_of_hosts_in_maintenance() {
    let mut rng = StdRng::seed_from_u64(5);
    let mut f = Fleet::new(60);
    for step in 0..3_000u64 {
        let n = rng.random_range(0..60);
        match rng.random_range(0..10) {
            0..3 => f.suspect(n),
            3..5 => f.fall(n),
            5..8 => f.back(n),
            8 => {
                let scope = match rng.random_range(0..3) {
                    0 => Scope::Host(id(n)),
                    1 => rack(n / 20),
                    _ => Scope::Labels("rack!=1".parse().unwrap()),
                };
                let now = f.now.since(Instant::from_millis(100_000_000)).as_millis() as i64;
                let window = Window {
                    id: WindowId(step + 1),
                    scope,
                    reason: "r".to_owned(),
                    by: "b".to_owned(),
                    from_ms: Wall(now),
                    until_ms: Wall(now + rng.random_range(1_000..90_000)),
                    announced: false,
                    begun: false,
                };
                f.guard.add_window(window, f.now, Wall(now));
                f.turn_windows();
            }
            _ => f.wait_with_windows(SECOND * rng.random_range(1..20)),
        }
        if step % 50 == 0 {
            f.check();
            let fleet = f.guard.domains.get(DomainId::FLEET).unwrap();
            let outside = |r: &&HostRow| f.guard.shelter_of(r.id).is_none();
            let open = f.rows.values().filter(outside);
            let heard = open.clone().filter(|r| r.state == State::Alive).count();
            let suspect = open.filter(|r| r.state == State::Suspect).count();
            assert_eq!((fleet.heard as usize, fleet.suspect as usize), (heard, suspect));
            for row in f.rows.values() {
                let covered = f.guard.maintenance.cover(row.id, &row.labels).map(|w| w.id);
                assert_eq!(f.guard.shelter_of(row.id).map(|w| w.id), covered, "{step}");
            }
        }
    }
}
