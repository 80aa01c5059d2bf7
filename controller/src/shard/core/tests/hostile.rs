//! What somebody can do who sends datagrams of his own making, of others', or recorded ones.

use super::*;
use heartwatch_common::wire::TAG_LEN;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn elsewhere() -> SocketAddr {
    "192.0.2.66:666".parse().unwrap()
}

/// Gives bytes that come from `from`; answers who is sent how many bytes.
fn give_from(
    w: &mut World,
    bytes: &[u8],
    from: SocketAddr,
    at_ms: u64,
) -> Vec<(SocketAddr, usize)> {
    let out = w.give_next(bytes, from, at_ms);
    out.iter().map(|s| (s.to, s.bytes.as_ref().len())).collect()
}

/// Every kind of datagram that there is, sealed under the host's key, of one stamp.
fn every_kind(w: &World, stamp: Stamp) -> Vec<(&'static str, Vec<u8>)> {
    let header = w.header();
    let beat = Beat {
        stamp,
        late_ms: 0,
        checks: 0,
        load: LoadSample::UNKNOWN,
        round_trip: RoundTrip::UNKNOWN,
    };
    let fields = [Field::Name("h"), Field::Label("zone", "a")];
    let hello = encode_hello(&header, &stamp, 0, Duration::from_secs(1), &fields).unwrap();
    let (reason, expected) = (LeaveReason::Shutdown, Duration::ZERO);
    let ack = Ack {
        boot: stamp.boot,
        seq: stamp.seq,
        echoed_sent: stamp.sent,
        interval: Duration::ZERO,
        epoch: stamp.epoch,
        controller: ControllerId(1),
        cadence: 1,
        lease: Duration::ZERO,
    };
    let (controller, epoch, nonce) = (ControllerId(1), stamp.epoch, [7; 16]);
    let probe = Probe { boot: stamp.boot, number: 1, controller, epoch, nonce };
    let inner = probe.encode(&header);
    let via = ProbeVia { number: 1, controller, epoch, to: elsewhere(), probe: &inner };
    let kinds = vec![
        ("hello", hello),
        ("beat", beat.encode(&header).to_vec()),
        ("probe-reply", ProbeReply { stamp, nonce }.encode(&header).to_vec()),
        ("ack", ack.encode(&header).to_vec()),
        ("probe", inner.to_vec()),
        ("probe-via", via.encode(&header).to_vec()),
        ("leave", Leave { stamp, reason, expected }.encode(&header).to_vec()),
    ];
    kinds.into_iter().map(|(kind, bytes)| (kind, w.seal(bytes))).collect()
}

/// Bytes out ÷ bytes in is below one for every kind, true, recorded, forged, cut, of known hosts and of
/// strangers; and what does not authenticate is not answered at all.
#[test]
fn every_kind_of_datagram_is_answered_by_fewer_bytes_than_it_had_or_not_at_all() {
    let mut most: BTreeMap<&str, f64> = BTreeMap::new();
    for (epoch, boot, seq) in
        [(EPOCH, 5, 11), (EPOCH, 5, 10), (EPOCH, 4, 99), (EPOCH, 6, 1), (Epoch(1), 5, 11)]
    {
        for known in [true, false] {
            for at in 0..7 {
                let mut w = if known { World::alive() } else { World::new() };
                let stamp = w.stamp(boot, seq, 2_000, epoch);
                let (kind, bytes) = every_kind(&w, stamp).swap_remove(at);
                // Twice: the second one is a replay.
                for now in [2_000, 2_300] {
                    let answers = give_from(&mut w, &bytes, elsewhere(), now);
                    assert!(answers.iter().all(|(to, _)| *to == elsewhere()), "{kind}");
                    let out: usize = answers.iter().map(|(_, len)| len).sum();
                    let factor = out as f64 / bytes.len() as f64;
                    assert!(factor < 1.0, "{kind}: {out} bytes for {}", bytes.len());
                    let of_kind = most.entry(kind).or_default();
                    *of_kind = of_kind.max(factor);
                }
                let mut forged = bytes.clone();
                let end = forged.len() - 1;
                forged[end] ^= 1;
                for bad in [&forged[..], &bytes[..end], &bytes[..bytes.len() - TAG_LEN]] {
                    assert_eq!(give_from(&mut w, bad, elsewhere(), 3_000), [], "{kind}");
                }
            }
        }
    }
    println!("bytes out / bytes in, the most of each kind: {most:?}");
    let unanswered = ["ack", "probe", "probe-via", "probe-reply"];
    assert!(unanswered.iter().all(|kind| most[kind] == 0.0), "{most:?}");
    let worst = most.values().copied().fold(0.0, f64::max);
    assert_eq!(worst, 74.0 / 80.0, "SECURITY.md says so: {most:?}");
}

#[test]
fn a_flood_of_recordings_is_answered_once_a_second_and_moves_no_address() {
    let mut w = World::alive();
    let recording = w.beat(5, 10, 1_000, EPOCH);
    let mut answered = 0;
    for i in 0..10_000 {
        let answers = give_from(&mut w, &recording, elsewhere(), 1_100 + i);
        answered += answers.len();
        // The true beats go on, and are answered where they come from.
        if i % 1_000 == 500 {
            let at = 1_100 + i;
            let beat = w.beat(5, 11 + (i / 1_000) as u32, at, EPOCH);
            assert_eq!(give_from(&mut w, &beat, here(), at), [(here(), 74)]);
        }
    }
    assert!((9..=11).contains(&answered), "{answered} answers in ten seconds");
    assert_eq!(w.turns(), []);
    // Whom it would probe is where the last proof of life came from.
    let probes = w.judge(11_100, 60_000);
    assert!(!probes.is_empty() && probes.iter().all(|p| p.to == here()), "probes went elsewhere");
}

/// Right after a restart every host is asked for proof, at most five times a second. Somebody who plays
/// recordings all the time gets all of these, and the host none: it is suspected in the end, probed where
/// it was known to be, and its answer proves that it lives. It is never called down.
#[test]
fn recordings_that_take_all_challenges_after_a_restart_cost_a_suspicion_and_no_more() {
    let mut w = World::new();
    let known = Known {
        boot: Boot(5),
        address: Some(here()),
        in_state: Duration::from_secs(3_600),
        ..Known::new(HOST, State::Alive)
    };
    assert!(w.core.register(known, ms(0)));
    w.core.begin(ms(0));
    let recording = w.beat(5, 10, 1_000, Epoch(76));
    let (mut seq, mut epoch, mut turns, mut proved_at) = (100, Epoch(76), Vec::new(), None);
    for at in 1..60_000 {
        let mut out = Vec::new();
        let mut give = |w: &mut World, bytes: &[u8], from| {
            w.core.receive(bytes, from, Via::Beats(0), ms(at), ms(at), &mut out);
        };
        give(&mut w, &recording, elsewhere());
        if at % 1_000 == 0 {
            seq += 1;
            let beat = w.beat(5, seq, at, epoch);
            give(&mut w, &beat, here());
        }
        w.core.judge(ms(at), ms(at), ms(at), &mut out);
        let to_host: Vec<_> = out.drain(..).filter(|s| s.to == here()).collect();
        for sent in to_host {
            match w.open(&sent.bytes) {
                Message::Ack(ack) => epoch = ack.epoch,
                Message::Probe(probe) => {
                    (seq, epoch) = (seq + 1, probe.epoch);
                    let reply = w.reply(5, seq, at, probe.nonce);
                    give_from(&mut w, &reply, here(), at);
                }
                _ => {}
            }
        }
        if proved_at.is_none() && get(&w.metrics.beats) > 0 {
            proved_at = Some(at);
        }
        turns.extend(w.turns());
    }
    println!("proved after {proved_at:?} ms; {turns:?}");
    assert!(!turns.iter().any(|t| matches!(t, Turn::Down(_))), "{turns:?}");
    assert!(turns.iter().filter(|t| **t == Turn::Suspect).count() <= 1, "{turns:?}");
    assert!(proved_at.is_some_and(|at| at <= 31_000), "{proved_at:?}");
    assert_eq!(w.state(), Some(State::Alive));
}

#[test]
fn a_key_makes_no_other_host_however_many_names_it_takes() {
    let mut w = World::alive();
    let mut rng = StdRng::seed_from_u64(1);
    for i in 0..10_000 {
        let mut hello = w.hello(5, 11 + i, 0);
        hello[HOST_ID_OFFSET..HOST_ID_OFFSET + 16].copy_from_slice(&rng.random::<[u8; 16]>());
        w.key.seal(&mut hello);
        assert_eq!(give_from(&mut w, &hello, elsewhere(), 2_000), []);
    }
    assert_eq!((w.core.detector().len(), w.rejects(Reject::Unauthentic)), (1, 10_000));
}

#[test]
fn whoever_holds_many_keys_fills_the_table_no_faster_than_news_is_taken() {
    let mut w = World::new();
    let mut hosts = 0;
    for n in 0..200_000u32 {
        let mut id = [1; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        let header = Header { host: HostId(id), ..w.header() };
        let stamp = w.stamp(1, 1, 50, Epoch(0));
        let fields = [Field::Name("n")];
        let hello = encode_hello(&header, &stamp, 0, Duration::from_secs(1), &fields);
        let mut hello = hello.unwrap();
        secret().host_key(HostId(id), Generation(0)).seal(&mut hello);
        give_from(&mut w, &hello, elsewhere(), 100);
        hosts = w.core.detector().len();
    }
    // Nobody has taken any news meanwhile, so most of them wait outside.
    println!("{hosts} of 200000 were let in; {} wait outside", w.rejects(Reject::UnknownHost));
    assert!(hosts <= 20_000 && w.rejects(Reject::UnknownHost) >= 180_000, "{hosts}");
}

#[test]
fn a_closed_port_that_somebody_makes_up_is_believed_of_nobody() {
    let mut w = World::alive();
    let (controller, epoch) = (ControllerId(1), EPOCH);
    // He knows all but the nonce, which is drawn for each probe.
    for n in 0..1_000u32 {
        let mut nonce = [0; 16];
        nonce[..4].copy_from_slice(&n.to_be_bytes());
        let probe = Probe { boot: Boot(5), number: 1, controller, epoch, nonce };
        w.core.unreachable(&probe.encode(&w.header()), ms(2_000));
    }
    assert_eq!(get(&w.metrics.unreachables), 0);
    w.judge(2_000, 60_000);
    let turns = w.turns();
    assert!(!turns.contains(&Turn::Down(crate::event::Cause::AgentLost)), "{turns:?}");
}

/// A site behind one address from which somebody floods: its hosts are heard all the time, also by a shard
/// that is behind; and once nobody proves life from there, what comes is looked at by samples.
#[test]
fn a_site_behind_one_address_is_never_throttled_for_what_somebody_floods_from_there() {
    let mut w = World::alive();
    w.core.press(true);
    let mut forged = w.beat(5, 11, 2_000, EPOCH);
    forged[79] ^= 1;
    let mut seq = 10;
    for at in 2_000..180_000 {
        for _ in 0..11 {
            assert_eq!(give_from(&mut w, &forged, here(), at), []);
        }
        // The host beats until the 70th second, and again from the 150th.
        if at % 1_000 == 0 && !(70_000..150_000).contains(&at) {
            seq += 1;
            let before = get(&w.metrics.beats);
            let beat = w.beat(5, seq, at, EPOCH);
            give_from(&mut w, &beat, here(), at);
            let taken = get(&w.metrics.beats) - before;
            assert!(taken == 1 || at >= 150_000, "a true beat was not looked at, at {at}");
        }
        if at == 128_000 {
            assert_eq!(w.rejects(Reject::OverBudget), 0);
        }
    }
    let (looked, skipped) = (w.rejects(Reject::Unauthentic), w.rejects(Reject::OverBudget));
    println!("{looked} forged ones were looked at, {skipped} were not");
    assert!(skipped > 100_000 && looked > 1_000_000, "{looked} {skipped}");
    // It was let in again, by a sample, and is heard as ever.
    let slot = w.core.detector.slot(HOST).unwrap();
    let last = w.core.detector.record(slot).last_arrival();
    assert!(last >= Some(ms(179_000)), "{last:?}");
}

/// Two shards get the same datagrams, one in batches whose tags are looked at side by side, one each alone.
/// They count and answer alike, whatever is in a batch, and under other secrets from one batch to the next.
#[test]
fn a_batch_is_taken_as_its_datagrams_alone() {
    let mut rng = StdRng::seed_from_u64(31);
    let (mut batched, mut alone) = (World::alive(), World::alive());
    let mut seq = 20;
    for round in 0..300u64 {
        let at = 2_000 + round * 100;
        if round % 50 == 49 {
            // The secret that hosts beat under only renews, or beats again.
            let ring = Keyring::new(vec![secret()]).unwrap();
            let next = ring.rotated([3; 32]).unwrap();
            let ring = if round % 100 == 49 { next.retired(KeyId(1)).unwrap() } else { ring };
            batched.core.set_keyring(ring.clone());
            alone.core.set_keyring(ring);
        }
        let mut batch = Vec::new();
        for _ in 0..rng.random_range(0..40) {
            seq += 1;
            let stamp = alone.stamp(5, seq, at, EPOCH);
            let kinds = every_kind(&alone, stamp);
            // A goodbye would end it.
            let (_, mut bytes) = kinds[rng.random_range(0..kinds.len() - 1)].clone();
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..8) {
                0 => bytes[at] ^= 1 << rng.random_range(0..8),
                1 => bytes.truncate(at),
                2 => bytes[0] = 9,
                _ => {}
            }
            batch.push(bytes);
        }
        let (mut said, mut naive) = (Vec::new(), Vec::new());
        let (via, now) = (Via::Beats(0), ms(at));
        batched.core.look_at(batch.iter().map(Vec::as_slice));
        for (i, bytes) in batch.iter().enumerate() {
            batched.core.receive_next(i, bytes, here(), via, now, now, &mut said);
            alone.core.receive(bytes, here(), via, now, now, &mut naive);
        }
        let shown = |sends: &[Send]| -> Vec<(SocketAddr, Vec<u8>)> {
            sends.iter().map(|s| (s.to, s.bytes.as_ref().to_vec())).collect()
        };
        assert_eq!(shown(&said), shown(&naive), "round {round}");
        assert_eq!(
            format!("{:?}", batched.metrics),
            format!("{:?}", alone.metrics),
            "round {round}"
        );
    }
    let taken = get(&alone.metrics.beats);
    assert!((300..5_000).contains(&taken), "{taken} beats: both ways were gone");
}

/// What was found out of a batch is good for one keyring: a secret taken away meanwhile admits nobody.
#[test]
fn a_verdict_does_not_outlive_its_keyring() {
    let mut w = World::alive();
    let beat = w.beat(5, 11, 2_000, EPOCH);
    let give = |w: &mut World, ring: Keyring| {
        w.core.look_at([beat.as_slice(); 3].into_iter());
        w.core.set_keyring(ring);
        let before = get(&w.metrics.beats);
        let (via, now) = (Via::Beats(0), ms(2_000));
        w.core.receive_next(0, &beat, here(), via, now, now, &mut Vec::new());
        get(&w.metrics.beats) - before
    };
    let other = Keyring::new(vec![FleetSecret::new(KeyId(1), [3; 32])]).unwrap();
    assert_eq!(give(&mut w, other), 0);
    w.core.set_keyring(Keyring::new(vec![secret()]).unwrap());
    assert_eq!(give(&mut w, Keyring::new(vec![secret()]).unwrap()), 1);
}
