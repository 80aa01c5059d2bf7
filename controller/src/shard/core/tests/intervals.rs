//! What acks assign.

use super::*;

fn interval_of(acks: &[Message<'static>]) -> Option<(Duration, u16)> {
    match acks {
        [Message::Ack(ack)] => Some((ack.interval, ack.cadence)),
        [] => None,
        other => panic!("expected an ack, got {other:?}"),
    }
}

#[test]
fn an_ack_assigns_the_interval_of_the_hosts_class() {
    let mut w = World::new();
    w.assigned.set(0, Duration::from_secs(9));
    w.assigned.set(1, Duration::from_secs(20));
    let stranger = interval_of(&w.give(&w.beat(5, 1, 0, Epoch(0)), 10));
    assert_eq!(stranger, Some((Duration::from_secs(9), 6)), "its labels are not known yet");
    let hello = interval_of(&w.give(&w.hello(5, 2, 0), 300));
    assert_eq!(hello, Some((Duration::from_secs(20), 3)), "`zone=a` is class 1");
    w.give(&w.beat(5, 3, 400, EPOCH), 400);
    w.core.judge(ms(400), ms(400), ms(400), &mut Vec::new());
    assert_eq!(get(&w.metrics.class_hosts[0]), 0);
    assert_eq!(get(&w.metrics.class_hosts[1]), 1);
    w.assigned.set(1, Duration::from_secs(21));
    let beat = interval_of(&w.give(&w.beat(5, 4, 1_400, EPOCH), 1_400));
    assert_eq!(beat.map(|(interval, _)| interval), Some(Duration::from_secs(21)));
}

#[test]
fn a_host_that_came_back_from_a_suspicion_is_asked_to_beat_faster_for_a_while() {
    let mut w = World::alive();
    w.assigned.set(1, Duration::from_secs(2));
    w.judge(1_200, 32_100);
    assert_ne!(w.state(), Some(State::Alive));
    let nonce = w.nonce_asked(&w.beat(5, 11, 30_900, EPOCH), 32_200);
    assert_eq!(interval_of(&w.give(&w.reply(5, 12, 32_210, nonce), 32_210)), None);
    assert!(w.turns().contains(&Turn::Recovered { same_boot: true }));
    let mut beat = |seq, at| interval_of(&w.give(&w.beat(5, seq, at, EPOCH), at));
    assert_eq!(beat(13, 33_210).map(|(i, _)| i), Some(Duration::from_millis(500)));
    // As tests go, ten minutes without a beat are no silence: nobody judges.
    assert_eq!(beat(14, 632_300).map(|(i, _)| i), Some(Duration::from_secs(2)));
}

/// The rate was once reckoned from a datagram's gap alone: that of a first hello is the time to the first
/// beat, any moment from now on, and the host was told to want an ack for every 120th beat only.
#[test]
fn the_cadence_follows_from_the_hosts_interval_and_not_from_a_hellos_gap() {
    let mut w = World::new();
    for n in 0..80_000u32 {
        let mut id = [7; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        let known = Known { boot: Boot(1), ..Known::new(HostId(id), State::Down) };
        assert!(w.core.register(known, ms(0)));
    }
    let hello = |w: &World, seq: u32, gap: Duration, interval: Duration| {
        let stamp = Stamp { gap, ..w.stamp(5, seq, u64::from(seq), Epoch(0)) };
        w.seal(encode_hello(&w.header(), &stamp, 0, interval, &[]).unwrap())
    };
    let (soon, second) = (Duration::from_micros(1), Duration::from_secs(1));
    let mut cadence = |bytes: Vec<u8>, at| interval_of(&w.give(&bytes, at)).map(|(_, c)| c);
    let world = World::new();
    assert_eq!(cadence(hello(&world, 1, soon, second), 10), Some(20), "4,000 of 80,000/s");
    assert_eq!(cadence(hello(&world, 2, soon, second * 10), 300), Some(10), "as configured");
    assert_eq!(cadence(hello(&world, 3, soon, Duration::ZERO), 600), Some(10), "it tells none");
    assert_eq!(cadence(world.beat(5, 4, 900, Epoch(0)), 900), Some(20), "as its gap says");
}

/// It was suspected at every restart: nothing tells how far apart its beats are until one has come.
#[test]
fn a_known_host_of_a_class_with_long_intervals_is_given_its_time_after_a_restart() {
    let mut w = World::new();
    w.assigned.set(0, Duration::from_secs(20));
    let known = Known {
        id: HOST,
        state: State::Alive,
        boot: Boot(5),
        generation: Generation(0),
        address: None,
        in_state: Duration::ZERO,
        missing_reported: false,
        duplicate: false,
        agent_lost: false,
        profile: Default::default(),
        frozen: None,
        back_in: None,
        domain: Default::default(),
        live: LiveId::NONE,
    };
    assert!(w.core.register(known, ms(0)));
    w.judge(1, 29_999);
    assert_eq!((w.state(), w.turns()), (Some(State::Alive), vec![]));
    w.judge(30_000, 45_001);
    assert_eq!(w.turns().first(), Some(&Turn::Suspect));
}
