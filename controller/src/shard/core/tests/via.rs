//! What peers bring back: a suspect in one zone, peers in another, all behind one shard.

use super::*;
use crate::event::Cause;

const PEERS: u8 = 3;

/// The host of [`World::alive`] in zone `a`, and peers in zone `b` that beat on.
struct Fleet {
    w: World,
    seq: u32,
    /// Requests to peers: peer, probe inside.
    asked: Vec<(HostId, Fixed)>,
}

fn peer_id(n: u8) -> HostId {
    HostId([100 + n; 16])
}

fn peer_at(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1 + n], 7))
}

fn header(host: HostId) -> Header {
    Header { host, key_id: KeyId(1), generation: Generation(0), flags: 0 }
}

fn key(host: HostId) -> HostKey {
    secret().host_key(host, Generation(0))
}

impl Fleet {
    fn new() -> Self {
        let mut fleet = Self { w: World::alive(), seq: 0, asked: Vec::new() };
        for n in 0..PEERS {
            let stamp = fleet.w.stamp(1, 1, 50, Epoch(0));
            let fields = [Field::Label("zone", "b")];
            let second = Duration::from_secs(1);
            let mut hello = encode_hello(&header(peer_id(n)), &stamp, 0, second, &fields).unwrap();
            key(peer_id(n)).seal(&mut hello);
            fleet.receive(&hello, peer_at(n), 100);
        }
        fleet.peers_beat(500);
        fleet.w.turns();
        fleet
    }

    fn receive(&mut self, bytes: &[u8], from: SocketAddr, at_ms: u64) -> Vec<Send> {
        let (at, mut out) = (ms(at_ms), Vec::new());
        self.w.core.receive(bytes, from, Via::Beats(0), at, at, &mut out);
        out
    }

    fn peers_beat(&mut self, at_ms: u64) {
        self.seq += 1;
        for n in 0..PEERS {
            let stamp = self.w.stamp(1, 1 + self.seq, at_ms, EPOCH);
            let (load, round_trip) = (LoadSample::UNKNOWN, RoundTrip::UNKNOWN);
            let mut beat =
                Beat { stamp, late_ms: 0, checks: 0, load, round_trip }.encode(&header(peer_id(n)));
            key(peer_id(n)).seal(&mut beat);
            self.receive(&beat, peer_at(n), at_ms);
        }
    }

    /// Judges each millisecond of a span, while the peers beat once a second; answers direct probes.
    fn judge(&mut self, from_ms: u64, to_ms: u64) -> Vec<Probe> {
        let mut probes = Vec::new();
        for at in from_ms..=to_ms {
            if at % 1_000 == 500 {
                self.peers_beat(at);
            }
            for send in self.w.judge(at, at) {
                let bytes = send.bytes.as_ref();
                let datagram = wire::decode(bytes).unwrap();
                let host = datagram.header.host;
                assert!(key(host).verify(&datagram), "sealed under the key of whom it is for");
                match datagram.message {
                    Message::Probe(probe) => {
                        assert_eq!((host, send.to), (HOST, here()));
                        probes.push(probe);
                    }
                    Message::ProbeVia(via) => {
                        let n = host.0[0] - 100;
                        assert_eq!((send.to, send.via), (peer_at(n), Via::Beats(0)));
                        assert_eq!((via.to, via.epoch), (here(), EPOCH));
                        assert!(self.w.key.verify(&wire::decode(via.probe).unwrap()));
                        self.asked.push((host, *via.probe));
                    }
                    other => panic!("not expected: {other:?}"),
                }
            }
        }
        probes
    }

    /// Runs until peers are asked for the first time; answers when that was.
    fn until_asked(&mut self) -> u64 {
        let mut at = 1_001;
        while self.asked.is_empty() {
            self.judge(at, at);
            at += 1;
        }
        assert_eq!(self.w.turns(), [Turn::Suspect]);
        at - 1
    }

    fn nonce(&self, which: usize) -> [u8; 16] {
        match wire::decode(&self.asked[which].1).unwrap().message {
            Message::Probe(probe) => probe.nonce,
            other => panic!("not a probe: {other:?}"),
        }
    }

    /// The suspect's true answer to a request, as its peer brings it.
    fn bring(&mut self, which: usize, at_ms: u64) {
        let (nonce, peer) = (self.nonce(which), self.asked[which].0.0[0] - 100);
        let reply = self.w.reply(5, 20, at_ms, nonce);
        assert!(self.receive(&reply, peer_at(peer), at_ms).is_empty(), "never answered");
    }

    fn count(&self, counter: impl Fn(&ShardMetrics) -> u64) -> u64 {
        counter(&self.w.metrics)
    }
}

#[test]
fn a_direct_answer_ends_the_suspicion_whatever_peers_were_asked() {
    let mut f = Fleet::new();
    let at = f.until_asked();
    f.bring(0, at + 5);
    let beat = f.w.beat(5, 30, at + 6, EPOCH);
    f.receive(&beat, here(), at + 6);
    assert_eq!(f.w.turns(), [Turn::Recovered { same_boot: true }]);
    assert_eq!(f.count(|m| get(&m.mistakes)), 1, "we suspected a host that was heard all along");
    f.bring(1, at + 7);
    assert_eq!((f.w.rejects(Reject::UnaskedReply), f.w.turns()), (1, vec![]));
}

#[test]
fn silence_everywhere_is_down_after_all_were_asked() {
    let mut f = Fleet::new();
    let at = f.until_asked();
    f.judge(at + 1, at + 2_000);
    assert_eq!(f.w.turns(), [Turn::Down(Cause::Silent)]);
    assert_eq!(f.asked.len(), 6);
    let mut peers: Vec<HostId> = f.asked[..3].iter().map(|a| a.0).collect();
    peers.sort_unstable();
    assert_eq!(peers, (0..PEERS).map(peer_id).collect::<Vec<_>>(), "each asked once a round");
    let nonces: std::collections::BTreeSet<_> = (0..6).map(|i| f.nonce(i)).collect();
    assert_eq!((nonces.len(), f.count(|m| get(&m.vias))), (6, 6));
}

#[test]
fn an_answer_through_a_peer_makes_a_host_unreachable_and_proves_nothing_else() {
    let mut f = Fleet::new();
    let at = f.until_asked();
    let slot = f.w.core.detector().slot(HOST).unwrap();
    let before = f.w.core.detector().newest(slot);
    f.bring(1, at + 5);
    assert_eq!((f.w.state(), f.w.turns()), (Some(State::Suspect), vec![]), "the verdict waits");
    f.judge(at + 6, at + 1_000);
    assert_eq!((f.w.state(), f.w.turns()), (Some(State::Suspect), vec![Turn::Unreachable]));
    let after = f.w.core.detector().newest(slot);
    assert_eq!((after.seq, after.sent, after.boot), (before.seq, before.sent, before.boot));
    assert_eq!(f.w.core.detector.record(slot).address.get(), Some(here()), "not where the peer is");
    assert_eq!(f.count(|m| get(&m.unreachable_hosts)), 1);
    // Heard again: the network was cut, we were not wrong.
    let at = at + 1_500;
    let beat = f.w.beat(5, 30, at, EPOCH);
    f.receive(&beat, here(), at);
    assert_eq!(f.w.turns(), [Turn::Recovered { same_boot: true }]);
    assert_eq!((f.count(|m| get(&m.mistakes)), f.count(|m| get(&m.testimonies))), (0, 1));
}

#[test]
fn an_unreachable_host_that_dies_is_down_when_its_peers_hear_nothing_either() {
    let mut f = Fleet::new();
    let at = f.until_asked();
    f.bring(0, at + 5);
    f.judge(at + 6, at + 10_000);
    assert_eq!(f.w.turns(), [Turn::Unreachable, Turn::Down(Cause::Silent)]);
    assert_eq!(f.count(|m| get(&m.unreachable_hosts)), 0);
}

#[test]
fn its_kernel_alone_makes_it_agent_lost() {
    let mut f = Fleet::new();
    let at = f.until_asked();
    let sent = f.w.judge(at + 1, at + 300);
    let probe = sent.iter().find(|s| s.via == Via::Probes).unwrap();
    f.w.core.unreachable(probe.bytes.as_ref(), ms(at + 300));
    // What a peer was sent is no probe of ours to the host: quoting it says nothing.
    let via = sent.iter().find(|s| matches!(s.bytes, Packet::Via(_))).unwrap();
    f.w.core.unreachable(via.bytes.as_ref(), ms(at + 300));
    f.judge(at + 301, at + 1_000);
    assert_eq!(f.w.turns(), [Turn::Down(Cause::AgentLost)]);
    assert_eq!(f.count(|m| get(&m.unreachables)), 1);
}

#[test]
fn forged_and_replayed_answers_keep_no_dead_host_up() {
    let mut f = Fleet::new();
    // A true answer of an earlier suspicion, which its peer kept.
    let at = f.until_asked();
    let old = f.w.reply(5, 20, at + 5, f.nonce(0));
    let beat = f.w.beat(5, 30, at + 6, EPOCH);
    f.receive(&beat, here(), at + 6);
    f.w.turns();
    f.asked.clear();
    let mut now = at + 7;
    while f.asked.is_empty() {
        f.judge(now, now);
        now += 1;
    }
    let nonce = f.nonce(0);
    // The right nonce under the peer's own key, and under the host's name.
    let stamp = f.w.stamp(5, 40, now, EPOCH);
    let mut forged = ProbeReply { stamp, nonce }.encode(&header(HOST));
    key(peer_id(0)).seal(&mut forged);
    f.receive(&forged, peer_at(0), now);
    // The right nonce in the peer's own name.
    let mut own = ProbeReply { stamp, nonce }.encode(&header(peer_id(0)));
    key(peer_id(0)).seal(&mut own);
    f.receive(&own, peer_at(0), now);
    // An old answer, as it is and with the nonce put right; and one from before the controller's start.
    f.receive(&old, peer_at(0), now);
    let mut patched = old.clone();
    patched[48..64].copy_from_slice(&nonce);
    f.receive(&patched, peer_at(0), now);
    let earlier = ProbeReply { stamp: f.w.stamp(5, 40, now, Epoch(76)), nonce };
    let earlier = f.w.seal(earlier.encode(&header(HOST)).to_vec());
    f.receive(&earlier, peer_at(0), now);
    assert_eq!(f.w.rejects(Reject::Unauthentic), 2, "forged and patched");
    assert_eq!(f.w.rejects(Reject::UnaskedReply), 3, "in its own name, old, of another epoch");
    assert_eq!(f.count(|m| get(&m.testimonies)), 0);
    f.judge(now, now + 1_000);
    assert_eq!(f.w.turns(), [Turn::Suspect, Turn::Down(Cause::Silent)]);
}

#[test]
fn hosts_of_the_same_zone_are_not_asked() {
    let mut f = Fleet::new();
    for n in 0..PEERS {
        let slot = f.w.core.detector().slot(peer_id(n)).unwrap();
        let own = f.w.core.detector().slot(HOST).unwrap();
        let domain = f.w.core.detector.record(own).domain;
        f.w.core.detector.record(slot).domain = domain;
    }
    f.judge(1_001, 20_000);
    assert!(f.asked.is_empty());
    assert_eq!(f.w.turns(), [Turn::Suspect, Turn::Down(Cause::Silent)]);
}
