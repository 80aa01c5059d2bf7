use super::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const MINUTE: Duration = Duration::from_secs(60);
const START: Instant = Instant::from_millis(1_000_000);
const WALL: Wall = Wall(1_700_000_000_000);

fn host(n: u8) -> HostId {
    HostId([n; 16])
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn window(id: u64, scope: Scope, from: u64, until: u64) -> Window {
    let at = |minutes: u64| Wall(WALL.0 + minutes as i64 * 60_000);
    Window {
        id: WindowId(id),
        scope,
        reason: "new switch".to_owned(),
        by: "ann".to_owned(),
        from_ms: at(from),
        until_ms: at(until),
        announced: false,
        begun: false,
    }
}

fn edges(m: &mut Maintenance, now: Instant) -> Vec<(u64, bool)> {
    m.step(now).into_iter().map(|e| (e.window.id.0, e.opened)).collect()
}

#[test]
fn a_window_opens_and_closes_in_its_time_and_covers_whom_it_names() {
    let mut m = Maintenance::default();
    m.add(window(1, Scope::Host(host(1)), 0, 10), START, WALL);
    m.add(window(2, Scope::Domain(labels(&[("zone", "a")])), 5, 20), START, WALL);
    m.add(window(3, Scope::Labels("pool=db,zone!=a".parse().unwrap()), 5, 6), START, WALL);
    assert!(m.cover(host(1), &labels(&[])).is_none(), "nothing opens by being planned");
    assert_eq!(edges(&mut m, START), [(1, true)]);
    assert_eq!(m.cover(host(1), &labels(&[])).unwrap().id, WindowId(1));
    assert_eq!(edges(&mut m, START + MINUTE * 4), []);
    assert_eq!(edges(&mut m, START + MINUTE * 5), [(2, true), (3, true)]);
    let of = |m: &Maintenance, n, pairs: &[_]| m.cover(host(n), &labels(pairs)).map(|w| w.id.0);
    assert_eq!(of(&m, 2, &[("zone", "a"), ("pool", "db")]), Some(2));
    assert_eq!(of(&m, 2, &[("zone", "b"), ("pool", "db")]), Some(3));
    assert_eq!(of(&m, 2, &[("pool", "db")]), Some(3), "no zone is not zone a");
    assert_eq!(of(&m, 2, &[("zone", "b")]), None);
    // Two overlap: the one that closes last says for how long.
    assert_eq!(of(&m, 1, &[("zone", "a")]), Some(2));
    assert_eq!((m.len(), m.open_len()), (3, 3));
    assert_eq!(edges(&mut m, START + MINUTE * 10), [(1, false), (3, false)]);
    assert_eq!(of(&m, 1, &[]), None);
    assert_eq!(of(&m, 1, &[("zone", "a")]), Some(2), "the other still covers it");
    assert_eq!(edges(&mut m, START + MINUTE * 20), [(2, false)]);
    assert!(m.is_empty() && m.by_host.is_empty() && m.broad.is_empty());
}

#[test]
fn a_restart_inside_a_window_keeps_it_open_and_after_it_closes_it() {
    let mut m = Maintenance::default();
    m.add(window(4, Scope::Host(host(1)), 0, 10), START, WALL);
    m.step(START);
    let saved = serde_json::to_string(&**m.get(WindowId(4)).unwrap()).unwrap();
    let load = |minutes: u64| {
        let mut m = Maintenance::default();
        let wall = Wall(WALL.0 + minutes as i64 * 60_000);
        m.add(serde_json::from_str(&saved).unwrap(), START, wall);
        m
    };
    let mut early = load(3);
    assert!(early.cover(host(1), &labels(&[])).is_some(), "before the first step");
    assert_eq!(edges(&mut early, START + MINUTE * 6), []);
    assert_eq!(edges(&mut early, START + MINUTE * 7), [(4, false)]);
    let mut late = load(11);
    assert_eq!(edges(&mut late, START), [(4, false)], "its end is told, however late");
    assert_eq!(late.next_id(), WindowId(5), "no name is used again");
}

#[test]
fn a_step_of_the_wall_clock_moves_no_window_that_is_known() {
    // The wall clock is read when a window is made; what it does later is nobody's business.
    let mut m = Maintenance::default();
    m.add(window(1, Scope::Host(host(1)), 5, 10), START, WALL);
    let stepped = Wall(WALL.0 + 3_600_000);
    m.add(Window { from_ms: stepped, ..window(2, Scope::Host(host(2)), 0, 70) }, START, stepped);
    assert_eq!(edges(&mut m, START + MINUTE * 4), [(2, true)]);
    assert_eq!(edges(&mut m, START + MINUTE * 5), [(1, true)]);
    assert_eq!(edges(&mut m, START + MINUTE * 10), [(1, false), (2, false)]);
}

#[test]
fn a_window_that_passed_unseen_opens_and_closes_at_once() {
    let mut m = Maintenance::default();
    m.add(window(1, Scope::Host(host(1)), 1, 2), START, WALL);
    assert_eq!(edges(&mut m, START + MINUTE * 3), [(1, true), (1, false)]);
}

#[test]
fn windows_are_bounded_and_those_that_cover_many_more_so() {
    let mut m = Maintenance::default();
    let broad = Scope::Domain(BTreeMap::new());
    for n in 1..=BROAD_MAX as u64 {
        m.add(window(n, broad.clone(), 1, 2), START, WALL);
    }
    assert_eq!(m.has_room(&broad), Err(Refused::FullOfBroad));
    assert_eq!(m.has_room(&Scope::Host(host(1))), Ok(()));
    for n in BROAD_MAX as u64 + 1..=WINDOWS_MAX as u64 {
        m.add(window(n, Scope::Host(host(1)), 1, 2), START, WALL);
    }
    assert_eq!(m.has_room(&Scope::Host(host(1))), Err(Refused::Full));
}

#[test]
fn expressions_and_names_survive_their_text_form_and_nonsense_is_refused() {
    for text in ["pool=db", "pool=db,zone!=a", "a!=b"] {
        assert_eq!(text.parse::<Labels>().unwrap().to_string(), text);
    }
    for text in ["", "pool", "=db", "pool=", "pool=db,,zone=a", &"a=b,".repeat(17)] {
        assert!(text.parse::<Labels>().unwrap_err().contains("pool=db,zone!=a"), "{text}");
    }
    assert_eq!("m7".parse(), Ok(WindowId(7)));
    assert_eq!("7".parse(), Ok(WindowId(7)));
    assert!("x".parse::<WindowId>().unwrap_err().contains("m7"));
    for scope in [
        Scope::Host(host(3)),
        Scope::Domain(labels(&[("zone", "a"), ("rack", "7")])),
        Scope::Domain(BTreeMap::new()),
        Scope::Labels("pool!=db".parse().unwrap()),
    ] {
        let text = serde_json::to_string(&scope).unwrap();
        assert_eq!(serde_json::from_str::<Scope>(&text).unwrap(), scope, "{text}");
    }
}

/// Whatever is added, removed and let pass, who is covered by what is what a loop over all windows says.
#[test]
fn who_is_covered_is_what_a_loop_over_all_windows_says() {
    let mut rng = StdRng::seed_from_u64(18);
    let mut m = Maintenance::default();
    let mut all: Vec<Window> = Vec::new();
    let mut now = START;
    for step in 0..3_000 {
        match rng.random_range(0..10) {
            0..4 => {
                let zone = labels(&[("zone", ["a", "b"][rng.random_range(0..2usize)])]);
                let scope = match rng.random_range(0..3) {
                    0 => Scope::Host(host(rng.random_range(0..4))),
                    1 => Scope::Domain(zone),
                    _ => Scope::Labels("zone!=a".parse().unwrap()),
                };
                let from = rng.random_range(0..20);
                let mut w = window(m.next_id().0, scope, from, from + rng.random_range(1..20));
                let passed = now.since(START).as_millis() as i64;
                w.from_ms.0 += passed;
                w.until_ms.0 += passed;
                if m.has_room(&w.scope).is_ok() {
                    m.add(w.clone(), now, Wall(WALL.0 + passed));
                    all.push(w);
                }
            }
            4 if !all.is_empty() => {
                let gone = all.swap_remove(rng.random_range(0..all.len()));
                m.remove(gone.id);
            }
            _ => now = now + Duration::from_secs(rng.random_range(0..200)),
        }
        m.step(now);
        let wall = WALL.0 + now.since(START).as_millis() as i64;
        all.retain(|w| w.until_ms.0 > wall);
        for n in 0..4 {
            for pairs in [&[("zone", "a")][..], &[("zone", "b")], &[]] {
                let has = labels(pairs);
                let open = all.iter().filter(|w| w.from_ms.0 <= wall);
                let open = open.filter(|w| w.scope.covers(host(n), &has));
                let last = open.max_by_key(|w| (w.until_ms.0, w.id)).map(|w| w.id);
                assert_eq!(m.cover(host(n), &has).map(|w| w.id), last, "step {step}");
            }
        }
    }
}
