//! What bad bytes are thrown at, and what must hold whatever they are.
//!
//! [`datagram`], [`config`], [`expression`], [`asked`](asked()) and [`enrolment`](fn@enrolment) are called
//! with any bytes at all, by `heartwatch-fuzz` (mutations of the corpus, on every machine) and by libFuzzer
//! in `tests/fuzz` (guided by coverage). They panic if a promise is broken.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use heartwatch_agent::core::{Core, Settings};
use heartwatch_common::auth::{FleetSecret, Keyring, Verdicts};
use heartwatch_common::id::{Boot, Epoch, Generation, HostId, KeyId, Seq};
use heartwatch_common::load::LoadSample;
use heartwatch_common::time::Instant;
use heartwatch_common::wire::{self, Ack, DATAGRAM_LEN_MAX, Datagram, Header, Message, TAG_LEN};
use heartwatch_controller::config::RawConfig;
use heartwatch_controller::ingest::admit::{Newest, Past, admit, nonce_of, prove};
use heartwatch_controller::policy::expression::Expression;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

mod asked;
mod enrolment;

pub use asked::asked;
pub use enrolment::enrolment;

const HOST: HostId = HostId([0x8a; 16]);
const EPOCH: Epoch = Epoch(0xdead_beef);
const NOW: Instant = Instant::from_millis(1_000_000_000);

fn secret() -> FleetSecret {
    FleetSecret::new(KeyId(3), [7; 32])
}

/// Any bytes, as a datagram that reaches a controller and an agent.
///
/// # Panics
/// If a promise of the decoder, of admission or of the agent's protocol is broken.
pub fn datagram(bytes: &[u8]) {
    if let Ok(decoded) = wire::decode(bytes) {
        check_decoded(bytes, &decoded);
    }
    let keyring = Keyring::new(vec![secret()]).expect("one secret makes a ring");
    let is_admitted =
        |datagram: &Datagram<'_>| admit(datagram, &keyring, None, |_| Generation(0)).is_ok();
    let forged = wire::decode(bytes).is_ok_and(|datagram| is_admitted(&datagram));
    assert!(!forged || bytes.len() >= TAG_LEN, "too short to carry a tag");
    to_agent(bytes);
    // The same bytes under a true tag, so that what lies behind authentication is reached too.
    let Some(sealed) = sealed(bytes) else { return };
    check_verdict(bytes, &sealed, &keyring);
    if let Ok(decoded) = wire::decode(&sealed) {
        match decoded.message.stamp() {
            Some(stamp) => {
                assert!(is_admitted(&decoded), "a true tag of an agent was refused");
                judge(stamp);
                if let Message::ProbeReply(reply) = &decoded.message {
                    assert_eq!(nonce_of(&decoded.message), Some(reply.nonce));
                }
            }
            None => assert!(!is_admitted(&decoded), "only agents are admitted"),
        }
    }
    to_agent(&sealed);
}

/// What is said of many datagrams at once is what is said of each alone.
fn check_verdict(bytes: &[u8], sealed: &[u8], keyring: &Keyring) {
    let batch = [bytes, sealed, bytes, sealed];
    let mut verdicts = Verdicts::default();
    keyring.verify_many(batch.into_iter(), &mut verdicts);
    for (i, bytes) in batch.into_iter().enumerate() {
        let (Some(said), Ok(decoded)) = (verdicts.take(i), wire::decode(bytes)) else { continue };
        let Header { host, key_id, generation, .. } = decoded.header;
        let key = keyring.host_key(key_id, host, generation);
        assert_eq!(said, key.is_some_and(|key| key.verify(&decoded)), "as in a batch");
    }
}

fn check_decoded(bytes: &[u8], decoded: &Datagram<'_>) {
    assert!(bytes.len() <= DATAGRAM_LEN_MAX);
    assert_eq!(decoded.signed.len() + decoded.tag.len(), bytes.len());
    if let Message::Hello(hello) = &decoded.message {
        assert!(hello.fields().count() <= bytes.len() / 2, "a field has at least two bytes");
        return;
    }
    // A send time beyond 584 years saturates, so it is the second round that must change nothing.
    let once = encoded(decoded);
    let back = wire::decode(&once).expect("what was encoded can be decoded");
    assert_eq!(encoded(&back), once);
}

/// Anything but a hello, unsealed.
fn encoded(datagram: &Datagram<'_>) -> Vec<u8> {
    let header = &datagram.header;
    let fixed = match &datagram.message {
        Message::Beat(m) => m.encode(header),
        Message::Leave(m) => m.encode(header),
        Message::ProbeReply(m) => m.encode(header),
        Message::Ack(m) => m.encode(header),
        Message::Probe(m) => m.encode(header),
        Message::ProbeVia(m) => return m.encode(header).to_vec(),
        Message::Hello(_) => return Vec::new(),
    };
    fixed.to_vec()
}

/// Whether a stamp proves life must have an answer for any history.
fn judge(stamp: &wire::Stamp) {
    let next = Boot(stamp.boot.0.wrapping_add(1));
    let histories = [
        (Newest::default(), Past::default()),
        (Newest { boot: stamp.boot, seq: stamp.seq, ..Newest::default() }, Past::default()),
        (
            Newest { boot: stamp.boot, seq: Seq(0), sent: Instant(0), baseline_ns: Some(i64::MIN) },
            Past { boot_max: stamp.boot, strict: false, challenged_until: Instant::FAR },
        ),
        (
            Newest {
                boot: next,
                seq: Seq(u32::MAX),
                sent: Instant::FAR,
                baseline_ns: Some(i64::MAX),
            },
            Past { boot_max: next, strict: true, challenged_until: NOW },
        ),
    ];
    for (seen, past) in histories {
        let proof = prove(&seen, || past, stamp, NOW, EPOCH, Duration::from_secs(30));
        if proof.is_ok() {
            assert_eq!(stamp.epoch, EPOCH, "a recording proved life");
            assert!((stamp.boot, stamp.seq) > (seen.boot, seen.seq), "a replay proved life");
        }
    }
}

/// An agent never answers by more than it was sent, nor passes more on, whatever its session knows.
fn to_agent(bytes: &[u8]) {
    let settings = Settings {
        host: HOST,
        key: secret().host_key(HOST, Generation(0)),
        boot: Boot(7),
        interval: Duration::from_secs(1),
        jitter: 0.2,
        interval_min: Duration::from_millis(100),
        interval_max: Duration::from_secs(60),
        ack_every: 10,
        name: "fuzzed".into(),
        os: String::new(),
        labels: BTreeMap::new(),
        controllers: 1,
    };
    let mut rng = StdRng::seed_from_u64(1);
    let core = Core::new(settings, NOW, &mut rng).expect("a short hello fits");
    let from = SocketAddr::from(([127, 0, 0, 1], 2_328));
    let mut greeted = core.clone();
    greet(&mut greeted, bytes, from);
    for (mut core, controller) in [(core.clone(), Some(0)), (core, None), (greeted, Some(0))] {
        let mut out = Vec::new();
        core.receive(from, controller, bytes, NOW, &mut out);
        let sent: usize = out.iter().map(|o| o.bytes.as_slice().len()).sum();
        assert!(sent <= bytes.len(), "{} bytes were answered by {sent}", bytes.len());
    }
}

/// Has the agent meet the controller that a request in `bytes` comes from, so that it is passed on.
fn greet(core: &mut Core, bytes: &[u8], from: SocketAddr) {
    let Ok(Datagram { message: Message::ProbeVia(via), .. }) = wire::decode(bytes) else { return };
    let (mut out, mut rng) = (Vec::new(), StdRng::seed_from_u64(2));
    core.tick(core.next_wake(), &LoadSample::UNKNOWN, 0, &mut rng, &mut out);
    let Some(stamp) = out
        .first()
        .and_then(|o| wire::decode(o.bytes.as_slice()).ok())
        .and_then(|d| d.message.stamp().copied())
    else {
        return;
    };
    let key = secret().host_key(HOST, Generation(0));
    let mut ack = Ack {
        boot: stamp.boot,
        seq: stamp.seq,
        echoed_sent: stamp.sent,
        interval: Duration::ZERO,
        epoch: via.epoch,
        controller: via.controller,
        cadence: 0,
        lease: Duration::ZERO,
    }
    .encode(&Header { host: HOST, key_id: KeyId(3), generation: Generation(0), flags: 0 });
    key.seal(&mut ack);
    core.receive(from, Some(0), &ack, NOW, &mut Vec::new());
}

/// The bytes as a datagram of [`HOST`] with its tag put right.
fn sealed(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    bytes.get_mut(8..24)?.copy_from_slice(&HOST.0);
    bytes.get_mut(3..6)?.copy_from_slice(&[3, 0, 0]);
    if bytes.len() < TAG_LEN + 24 {
        return None;
    }
    secret().host_key(HOST, Generation(0)).seal(&mut bytes);
    Some(bytes)
}

/// Any bytes, as a controller's config file.
///
/// # Panics
/// If reading or checking it does, or if what was accepted is not accepted again as printed.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(raw) = toml::from_str::<RawConfig>(text) else { return };
    if raw.check().is_ok() {
        let printed = toml::to_string(&raw).expect("settings can be printed");
        let again: RawConfig = toml::from_str(&printed).expect("what was printed can be read");
        assert!(again.check().is_ok(), "what was printed is refused");
    }
}

/// Any bytes, as a label expression.
///
/// # Panics
/// If reading it does, if an error points outside of the text, or if an answer and its reason disagree.
pub fn expression(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let hosts = [
        BTreeMap::new(),
        BTreeMap::from([("pool".to_owned(), "db".to_owned()), ("a".to_owned(), "b".to_owned())]),
    ];
    match Expression::parse(text) {
        Ok(e) => {
            for labels in &hosts {
                assert_eq!(e.holds(labels), e.objection(labels).is_none(), "{text}");
            }
            assert_eq!(Expression::parse(e.as_str()).as_ref(), Ok(&e), "{text}");
        }
        Err(e) => assert!((1..=text.chars().count() + 1).contains(&e.column), "{text}: {e}"),
    }
}

/// Changes bytes as bad luck or bad will might: a few random edits, often none where it matters.
pub fn mutate(bytes: &mut Vec<u8>, other: &[u8], rng: &mut StdRng) {
    const LEN_MAX: usize = 1_300;
    const ODD: [u8; 8] = [0, 1, 2, 0x7f, 0x80, 0xfa, 0xfe, 0xff];
    for _ in 0..rng.random_range(1..6) {
        let len = bytes.len();
        let at = |rng: &mut StdRng| rng.random_range(0..len.max(1));
        match rng.random_range(0..8) {
            0 if len > 0 => bytes[at(rng)] ^= 1 << rng.random_range(0..8),
            1 if len > 0 => bytes[at(rng)] = ODD[rng.random_range(0..ODD.len())],
            2 if len > 0 => bytes[at(rng)] = rng.random(),
            3 => bytes.truncate(at(rng)),
            4 => bytes.resize((len + rng.random_range(1..40)).min(LEN_MAX), rng.random()),
            5 if len > 1 => {
                bytes.remove(at(rng));
            }
            6 if !other.is_empty() => {
                // The head of one, the tail of another.
                let cut = at(rng);
                bytes.truncate(cut);
                bytes.extend_from_slice(other.get(cut..).unwrap_or_default());
            }
            7 if len > 8 => {
                let (from, to) = (at(rng), at(rng));
                let width = rng.random_range(1..8).min(len - from.max(to));
                bytes.copy_within(from..from + width, to);
            }
            _ => {}
        }
    }
    bytes.truncate(LEN_MAX);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_hold_for_every_byte_string_of_length_zero_and_one_and_for_zeros() {
        datagram(&[]);
        config(&[]);
        expression(&[]);
        asked(&[]);
        (0..=255).for_each(|b| asked(&[b]));
        enrolment(&[]);
        (0..=255).for_each(|b| datagram(&[b]));
        (0..=255).for_each(|b| expression(&[b]));
        (0..1_300).for_each(|len| datagram(&vec![0; len]));
    }

    #[test]
    fn one_seed_makes_the_same_mutations() {
        let run = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut bytes = vec![1; 80];
            (0..50).for_each(|_| mutate(&mut bytes, &[2; 100], &mut rng));
            bytes
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }
}
