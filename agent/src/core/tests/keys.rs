use super::*;

fn next() -> HostKey {
    FleetSecret::new(KeyId(3), [8; 32]).host_key(HOST, Generation(4))
}

/// Goes on to the next beat and answers the stamps of what was sent, each sealed with `key`.
fn beat(rig: &mut Rig, key: &HostKey) -> Vec<Stamp> {
    let mut sent = Vec::new();
    let mut beaten = false;
    while !beaten {
        rig.now = rig.now.max(rig.core.next_wake());
        let mut out = Vec::new();
        rig.core.tick(rig.now, &LoadSample::UNKNOWN, 0, &mut rig.rng, &mut out);
        for outgoing in &out {
            let datagram = wire::decode(outgoing.bytes.as_slice()).unwrap();
            assert!(key.verify(&datagram), "sealed with another key");
            assert_eq!(datagram.header.key_id, key.key_id());
            beaten |= matches!(datagram.message, Message::Beat(_));
            sent.push(*datagram.message.stamp().unwrap());
        }
    }
    sent
}

fn ack(rig: &mut Rig, stamp: &Stamp, key: &HostKey, flags: u8) {
    let ack = Ack {
        boot: stamp.boot,
        seq: stamp.seq,
        echoed_sent: stamp.sent,
        interval: Duration::ZERO,
        epoch: Epoch(5),
        controller: ControllerId(1),
        cadence: 0,
        lease: Duration::ZERO,
    };
    let header = Header { host: HOST, key_id: key.key_id(), generation: key.generation(), flags };
    let mut bytes = ack.encode(&header);
    key.seal(&mut bytes);
    rig.core.receive(addr(0), Some(0), &bytes, rig.now, &mut Vec::new());
}

#[test]
fn a_key_changes_between_two_beats_and_the_first_ack_settles_it() {
    let mut rig = Rig::new(1);
    let first = *beat(&mut rig, &key()).last().unwrap();
    assert!(!rig.core.wants_renewal());
    ack(&mut rig, &first, &key(), FLAG_RENEW);
    assert!(rig.core.wants_renewal());
    let before = *beat(&mut rig, &key()).last().unwrap();
    rig.core.rekey(next(), rig.now);
    assert!(!rig.core.wants_renewal());
    let after = beat(&mut rig, &next())[0];
    assert_eq!((after.boot, after.seq.0), (before.boot, before.seq.0 + 1), "no gap");
    // One that was on its way still counts, and asks for nothing more.
    ack(&mut rig, &before, &key(), FLAG_RENEW);
    assert!(rig.core.is_heard(0) && !rig.core.wants_renewal());
    assert_eq!(rig.core.take_key_news(), None);
    ack(&mut rig, &after, &next(), 0);
    assert_eq!(rig.core.take_key_news(), Some(KeyNews::Good));
    assert_eq!(rig.core.take_key_news(), None);
    let later = *beat(&mut rig, &next()).last().unwrap();
    let rejects = rig.core.status(rig.now).rejects;
    ack(&mut rig, &later, &key(), 0);
    assert_ne!(rig.core.status(rig.now).rejects, rejects, "the old key is no more");
}

#[test]
fn a_key_that_nobody_answers_is_given_up() {
    let mut rig = Rig::new(1);
    let first = *beat(&mut rig, &key()).last().unwrap();
    ack(&mut rig, &first, &key(), 0);
    rig.core.rekey(next(), rig.now);
    let since = rig.now;
    // A gap is at most 1.2 s.
    while rig.now.since(since) + SECOND * 2 <= PROBATION {
        beat(&mut rig, &next());
        assert_eq!(rig.core.take_key_news(), None);
    }
    rig.now = since + PROBATION + SECOND;
    let sent = *beat(&mut rig, &key()).last().unwrap();
    assert_eq!(rig.core.take_key_news(), Some(KeyNews::GivenUp));
    ack(&mut rig, &sent, &key(), FLAG_RENEW);
    assert!(rig.core.is_heard(0) && rig.core.wants_renewal());
}

#[test]
fn a_recorded_wish_for_renewal_is_none() {
    let mut rig = Rig::new(1);
    let first = *beat(&mut rig, &key()).last().unwrap();
    ack(&mut rig, &first, &key(), 0);
    ack(&mut rig, &first, &key(), FLAG_RENEW);
    assert!(!rig.core.wants_renewal(), "it answers nothing that is open");
    let second = *beat(&mut rig, &key()).last().unwrap();
    ack(&mut rig, &second, &next(), FLAG_RENEW);
    assert!(!rig.core.wants_renewal(), "it is not sealed with this host's key");
}
