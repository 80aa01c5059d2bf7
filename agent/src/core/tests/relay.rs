//! Probes passed on, and answers brought back, by the whole core.

use super::*;
use heartwatch_common::wire::{ProbeVia, RoundTrip, ViaDatagram};

const OTHER: HostId = HostId([8; 16]);

fn other_key() -> HostKey {
    FleetSecret::new(KeyId(2), [9; 32]).host_key(OTHER, Generation(0))
}

fn other() -> SocketAddr {
    "192.0.2.200:40000".parse().unwrap()
}

/// A probe for the other host, under its key.
fn inner(host: HostId, nonce: u8) -> Fixed {
    let header = Header { host, key_id: KeyId(2), generation: Generation(0), flags: 0 };
    let (controller, epoch) = (ControllerId(1_000), Epoch(100));
    let nonce = [nonce; 16];
    let mut bytes = Probe { boot: Boot(1), number: 2, controller, epoch, nonce }.encode(&header);
    other_key().seal(&mut bytes);
    bytes
}

fn via(controller: u64, epoch: u32, to: SocketAddr, probe: &Fixed) -> ViaDatagram {
    let (controller, epoch) = (ControllerId(controller), Epoch(epoch));
    let mut bytes = ProbeVia { number: 1, controller, epoch, to, probe }.encode(&header(0));
    key().seal(&mut bytes);
    bytes
}

/// The other host's answer, under its key.
fn reply(nonce: u8) -> Fixed {
    let header = Header { host: OTHER, key_id: KeyId(2), generation: Generation(0), flags: 0 };
    let stamp = Stamp { boot: Boot(3), seq: Seq(9), sent: START, gap: SECOND, epoch: Epoch(100) };
    let mut bytes = ProbeReply { stamp, nonce: [nonce; 16] }.encode(&header);
    other_key().seal(&mut bytes);
    bytes
}

impl Rig {
    /// What the core sends for `bytes`, as they are.
    fn raw(&mut self, from: SocketAddr, bytes: &[u8]) -> Vec<Outgoing> {
        let mut out = Vec::new();
        self.core.receive(from, None, bytes, self.now, &mut out);
        let sent: usize = out.iter().map(|o| o.bytes.as_slice().len()).sum();
        assert!(sent <= bytes.len(), "never larger than the request");
        out
    }
}

#[test]
fn a_probe_is_passed_on_as_it_is_and_its_answer_brought_back_once() {
    let mut rig = Rig::new(1);
    rig.converse(3, |_| {});
    let probe = inner(OTHER, 5);
    let sent = rig.raw(addr(0), &via(1_000, 100, other(), &probe));
    assert_eq!(sent, [Outgoing { to: To::Addr(other()), bytes: Packet::Fixed(probe) }]);
    // The agent has no key to tell a true answer from a false one; what does not fit is not passed.
    assert!(rig.raw(other(), &reply(6)).is_empty());
    let sent = rig.raw(other(), &reply(5));
    assert_eq!(sent, [Outgoing { to: To::Addr(addr(0)), bytes: Packet::Fixed(reply(5)) }]);
    assert!(rig.raw(other(), &reply(5)).is_empty(), "once");
    assert_eq!(rig.core.rejects(Reject::WrongHost), 2);
    let status = rig.core.status(rig.now);
    assert_eq!((status.relayed, status.relay_replies), (1, 1));
}

#[test]
fn requests_of_other_epochs_and_controllers_and_repeats_are_refused() {
    let mut rig = Rig::new(1);
    rig.raw(addr(0), &via(1_000, 100, other(), &inner(OTHER, 1)));
    assert_eq!(rig.core.rejects(Reject::RelayStale), 1, "no session knows that controller yet");
    rig.converse(3, |_| {});
    for (controller, epoch) in [(1_000, 99), (1_001, 100), (1_000, 0)] {
        let request = via(controller, epoch, other(), &inner(OTHER, 1));
        assert!(rig.raw(addr(0), &request).is_empty());
    }
    assert_eq!(rig.core.rejects(Reject::RelayStale), 4);
    let request = via(1_000, 100, other(), &inner(OTHER, 1));
    assert_eq!(rig.raw(addr(0), &request).len(), 1);
    rig.now = rig.now + SECOND * 10;
    assert!(rig.raw(addr(0), &request).is_empty(), "a recording is passed on once");
    assert_eq!(rig.core.rejects(Reject::RelayStale), 5);
}

#[test]
fn forged_malformed_and_misdirected_requests_are_refused() {
    let mut rig = Rig::new(1);
    rig.converse(3, |_| {});
    let mut forged = via(1_000, 100, other(), &inner(OTHER, 1));
    forged[150] ^= 1;
    assert!(rig.raw(addr(0), &forged).is_empty());
    assert_eq!(rig.core.rejects(Reject::WrongTag), 1);
    let no_probe = via(1_000, 100, other(), &reply(1));
    assert!(rig.raw(addr(0), &no_probe).is_empty());
    assert_eq!(rig.core.rejects(Reject::Malformed), 1);
    let nowhere: SocketAddr = "239.1.1.1:9".parse().unwrap();
    for request in
        [via(1_000, 100, nowhere, &inner(OTHER, 1)), via(1_000, 100, other(), &inner(HOST, 1))]
    {
        assert!(rig.raw(addr(0), &request).is_empty());
    }
    assert_eq!(rig.core.rejects(Reject::RelayAddress), 2);
}

#[test]
fn passing_on_has_a_limit_of_its_own() {
    let mut rig = Rig::new(1);
    rig.converse(3, |_| {});
    let count = |rig: &mut Rig, nonces: std::ops::Range<u8>| {
        nonces
            .filter(|n| !rig.raw(addr(0), &via(1_000, 100, other(), &inner(OTHER, *n))).is_empty())
            .count()
    };
    assert_eq!(count(&mut rig, 0..100), RELAY_BURST as usize);
    assert_eq!(rig.core.rejects(Reject::RelayLimit), 100 - u64::from(RELAY_BURST));
    assert_eq!(rig.raw(addr(0), &probe(1_000, 100, 200)).len(), 1, "its own probes are answered");
    rig.now = rig.now + SECOND;
    assert_eq!(count(&mut rig, 100..200), RELAYS_PER_SECOND as usize);
}

#[test]
fn after_a_goodbye_nothing_is_passed_on_or_brought_back() {
    let mut rig = Rig::new(1);
    rig.converse(3, |_| {});
    rig.raw(addr(0), &via(1_000, 100, other(), &inner(OTHER, 1)));
    rig.core.leave(LeaveReason::Shutdown, Duration::ZERO, rig.now, &mut Vec::new());
    assert!(rig.raw(other(), &reply(1)).is_empty());
    assert!(rig.raw(addr(0), &via(1_000, 100, other(), &inner(OTHER, 2))).is_empty());
}

#[test]
fn beats_tell_the_round_trip_once_it_is_known() {
    let trip = |rig: &mut Rig| {
        let mut out = Vec::new();
        while out.is_empty() {
            rig.now = rig.now.max(rig.core.next_wake());
            rig.core.tick(rig.now, &LoadSample::UNKNOWN, 0, &mut rig.rng, &mut out);
        }
        let Ok(datagram) = wire::decode(out.last().unwrap().bytes.as_slice()) else { panic!() };
        let Message::Beat(beat) = datagram.message else { panic!("not a beat") };
        beat.round_trip
    };
    let mut rig = Rig::new(1);
    assert_eq!(trip(&mut rig), RoundTrip::UNKNOWN);
    let mut rig = Rig::new(1);
    rig.converse(1, |_| {});
    assert_eq!(trip(&mut rig), RoundTrip::new(RTT));
}

#[test]
fn one_ack_that_waited_somewhere_does_not_count_and_two_in_a_row_do() {
    let mut rig = Rig::new(1);
    let mut told = Vec::new();
    for wait_ms in [3, 3, 20_000, 3, 700, 800, 900] {
        let sent = loop {
            let sent = rig.beat();
            if let Some(asking) = sent.into_iter().find(|h| h.asks && h.kind == Kind::Beat) {
                break asking;
            }
        };
        rig.now = sent.at + Duration::from_millis(wait_ms);
        rig.ack(&sent, 0, |_| {});
        let trip = rig.core.sessions[0].round_trip.unwrap();
        told.push(trip.usual().as_millis());
    }
    assert_eq!(told, [3, 3, 3, 3, 3, 700, 800]);
}
