use super::*;
use crate::auth::FleetSecret;
use proptest::prelude::*;

const HOST: HostId = HostId([0x11; 16]);

fn header() -> Header {
    Header { host: HOST, key_id: KeyId(3), generation: Generation(0x0102), flags: FLAG_ACK_WANTED }
}

fn stamp() -> Stamp {
    Stamp {
        boot: Boot(7),
        seq: Seq(0x01020304),
        sent: Instant::from_micros(0x1122_3344_5566),
        gap: Duration::from_micros(1_000_000),
        epoch: Epoch(0xdead_beef),
    }
}

fn beat() -> Beat {
    Beat {
        stamp: stamp(),
        late_ms: 12,
        checks: 0b101,
        load: LoadSample {
            cpu_busy: Share::from_ratio(0.5),
            run_queue_centi: 150,
            network_kib_per_s: 9,
            ..LoadSample::UNKNOWN
        },
        round_trip: RoundTrip(77),
    }
}

fn via(probe: &Fixed) -> ProbeVia<'_> {
    let to = "192.0.2.7:40123".parse().unwrap();
    ProbeVia { number: 9, controller: ControllerId(5), epoch: Epoch(4), to, probe }
}

fn kinds() -> Vec<Vec<u8>> {
    let h = header();
    let nonce = [9; 16];
    let controller = ControllerId(5);
    let fields = [Field::Name("db-1"), Field::Label("zone", "a"), Field::AgentVersion("0.1.0")];
    vec![
        beat().encode(&h).to_vec(),
        encode_hello(&h, &stamp(), 0, Duration::from_secs(1), &fields).unwrap(),
        Leave { stamp: stamp(), reason: LeaveReason::Reboot, expected: Duration::from_secs(90) }
            .encode(&h)
            .to_vec(),
        ProbeReply { stamp: stamp(), nonce }.encode(&h).to_vec(),
        Probe { boot: Boot(7), number: 2, controller, epoch: Epoch(4), nonce }.encode(&h).to_vec(),
        Ack {
            boot: Boot(7),
            seq: Seq(1),
            echoed_sent: Instant::from_micros(99),
            interval: Duration::from_millis(250),
            epoch: Epoch(4),
            controller,
            cadence: 10,
            lease: Duration::ZERO,
        }
        .encode(&h)
        .to_vec(),
        via(&[0xab; DATAGRAM_LEN]).encode(&h).to_vec(),
    ]
}

#[test]
fn what_is_encoded_is_what_is_decoded() {
    let bytes = beat().encode(&header());
    let got = decode(&bytes).unwrap();
    assert_eq!((got.header, got.message), (header(), Message::Beat(beat())));
    let hello = kinds().swap_remove(1);
    let Message::Hello(hello) = decode(&hello).unwrap().message else { panic!("not a hello") };
    let fields: Vec<_> = hello.fields().collect();
    assert_eq!(
        fields,
        [Field::Name("db-1"), Field::Label("zone", "a"), Field::AgentVersion("0.1.0")]
    );
    let leave = kinds().swap_remove(2);
    let Message::Leave(leave) = decode(&leave).unwrap().message else { panic!("not a leave") };
    assert_eq!((leave.reason, leave.expected), (LeaveReason::Reboot, Duration::from_secs(90)));
}

#[test]
fn fields_stand_at_the_offsets_of_the_byte_table() {
    let b = beat().encode(&header());
    assert_eq!(b[..8], [2, 1, 1, 3, 1, 2, 0, 0b101]);
    assert_eq!(b[HOST_ID_OFFSET..24], HOST.0);
    assert_eq!(b[24..32], [0, 0, 0, 7, 1, 2, 3, 4]);
    assert_eq!(b[32..40], [0, 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66]);
    assert_eq!(b[40..48], [0, 0x0f, 0x42, 0x40, 0xde, 0xad, 0xbe, 0xef]);
    assert_eq!(b[48..64], [0, 12, 125, 255, 255, 255, 0, 150, 0, 0, 0, 9, 255, 255, 255, 77]);
}

#[test]
fn a_probe_via_carries_address_and_probe_as_they_are() {
    let probe = std::array::from_fn(|i| i as u8);
    let b = via(&probe).encode(&header());
    assert_eq!(b.len(), 160);
    assert_eq!(b[24..40], [0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5]);
    assert_eq!(b[40..48], [0x9c, 0xbb, 0, 0, 0, 0, 0, 4]);
    assert_eq!(b[48..64], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7]);
    assert_eq!(b[64..144], probe);
    assert_eq!(decode(&b).unwrap().message, Message::ProbeVia(via(&probe)));
    let v6 = ProbeVia { to: "[2001:db8::7]:1".parse().unwrap(), ..via(&probe) };
    assert_eq!(decode(&v6.encode(&header())).unwrap().message, Message::ProbeVia(v6));
}

#[test]
fn truncated_and_oversized_datagrams_are_refused() {
    let key = FleetSecret::new(KeyId(3), [5; 32]).host_key(HOST, Generation(0x0102));
    for mut bytes in kinds() {
        key.seal(&mut bytes);
        for len in 0..bytes.len() {
            let cut = decode(&bytes[..len]);
            // Of some kinds zeros may be left out, but not after they were sealed.
            let may_be_short = [3, 5, 6].contains(&bytes[1]) && len >= DATAGRAM_LEN_MIN;
            assert!(cut.is_err() || may_be_short, "kind {} cut to {len}", bytes[1]);
            assert!(!cut.is_ok_and(|d| key.verify(&d)), "kind {} cut to {len}", bytes[1]);
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(decode(&longer).is_err(), "kind {} with a byte more", bytes[1]);
        longer.resize(DATAGRAM_LEN_MAX + 1, 0);
        assert_eq!(decode(&longer).unwrap_err(), DecodeError::TooLong);
    }
}

#[test]
fn unknown_versions_kinds_and_gaps_are_refused() {
    let good = beat().encode(&header());
    let with = |at: usize, byte: u8| {
        let mut b = good;
        b[at] = byte;
        decode(&b).map(|d| d.header).unwrap_err()
    };
    assert_eq!(with(0, 1), DecodeError::Version);
    assert_eq!(with(1, 8), DecodeError::Kind);
    assert_eq!(with(1, 7), DecodeError::TooShort);
    assert_eq!(with(40, 0xff), DecodeError::Gap);
    let mut zero = good;
    zero[40..44].fill(0);
    assert_eq!(decode(&zero).unwrap_err(), DecodeError::Gap);
}

/// A datagram of version 1, as agents sent it before answers were shorter: the same bytes, but for the first.
#[test]
fn of_another_version_it_can_be_told_whose_it_is_and_whether_that_is_true() {
    let key = FleetSecret::new(KeyId(3), [5; 32]).host_key(HOST, Generation(0x0102));
    for mut bytes in kinds() {
        assert_eq!(foreign(&bytes), None, "our own version");
        bytes[0] = 1;
        key.seal(&mut bytes);
        assert_eq!(decode(&bytes).unwrap_err(), DecodeError::Version);
        let told = foreign(&bytes).unwrap();
        let whose = (told.version, told.host, told.key_id, told.generation);
        assert_eq!(whose, (1, HOST, KeyId(3), Generation(0x0102)));
        assert!(key.verify_foreign(&told));
        bytes[0] = 3;
        assert!(!key.verify_foreign(&foreign(&bytes).unwrap()), "the tag covers the version");
    }
    // One of a version to come may be shorter than any of ours, but has a header and a tag.
    assert!(foreign(&[3; 40]).is_some());
    for len in [0, 39, DATAGRAM_LEN_MAX + 1] {
        assert_eq!(foreign(&vec![3; len]), None, "{len} bytes");
    }
}

#[test]
fn a_hello_beyond_the_limit_is_refused_where_it_is_made() {
    let long = "x".repeat(200);
    let fields = vec![Field::Label("k", &long); 6];
    let error = encode_hello(&header(), &stamp(), 0, Duration::from_secs(1), &fields).unwrap_err();
    assert_eq!(error.limit, DATAGRAM_LEN_MAX);
    let field = [Field::Name(&"n".repeat(256))];
    let error = encode_hello(&header(), &stamp(), 0, Duration::from_secs(1), &field).unwrap_err();
    assert_eq!(error.limit, 255);
}

#[test]
fn a_flipped_bit_anywhere_breaks_the_tag() {
    let key = FleetSecret::new(KeyId(3), [5; 32]).host_key(HOST, Generation(0x0102));
    for mut bytes in kinds() {
        key.seal(&mut bytes);
        assert!(key.verify(&decode(&bytes).unwrap()));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(d) = decode(&bytes) {
                assert!(!key.verify(&d), "bit {bit}");
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_decode_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1_300)) {
        if let Ok(Datagram { message: Message::Hello(h), .. }) = decode(&bytes) {
            prop_assert!(h.fields().count() <= bytes.len());
        }
    }

    #[test]
    fn mutated_datagrams_never_panic(
        which in 0..7usize,
        edits in proptest::collection::vec((0..1_200usize, any::<u8>()), 0..8),
        cut in 0..1_300usize,
    ) {
        let mut bytes = kinds().swap_remove(which);
        let len = bytes.len();
        for (at, byte) in edits {
            bytes[at % len] = byte;
        }
        bytes.truncate(cut.max(60));
        if let Ok(Datagram { message: Message::Hello(h), .. }) = decode(&bytes) {
            prop_assert!(h.fields().count() <= bytes.len());
        }
    }
}

#[test]
fn maintenance_is_announced_within_bounds_and_skipped_by_whom_it_means_nothing() {
    let fields_of = |fields: &[Field<'_>]| {
        let bytes = encode_hello(&header(), &stamp(), 0, Duration::from_secs(1), fields).unwrap();
        let Message::Hello(hello) = decode(&bytes).unwrap().message else { panic!("no hello") };
        hello.fields().map(|f| format!("{f:?}")).collect::<Vec<_>>()
    };
    let name = Field::Name("db-1");
    let on = Field::Maintenance(1_800, "new disk, then reboot");
    assert_eq!(fields_of(&[name, on]), [format!("{name:?}"), format!("{on:?}")]);
    let long = "x".repeat(MAINTENANCE_WHY_LEN_MAX + 1);
    for bad in [
        Field::Maintenance(0, "why"),
        Field::Maintenance(MAINTENANCE_MAX_S + 1, "why"),
        Field::Maintenance(5, &long),
    ] {
        assert_eq!(fields_of(&[name, bad]), [format!("{name:?}")], "{bad:?}");
    }
    for bad in ["", "5", "-5 x", "+5 x", "99999999999 x", " x"] {
        assert_eq!(maintenance(bad), None, "{bad}");
    }
}

#[test]
fn zeros_that_end_an_answer_may_be_left_out_and_nothing_else() {
    let h = header();
    let key = FleetSecret::new(KeyId(3), [5; 32]).host_key(HOST, Generation(0x0102));
    let mut nonce = [9; 16];
    nonce[CHALLENGE_NONCE_LEN..].fill(0);
    let (controller, epoch, lease) = (ControllerId(5), Epoch(4), Duration::ZERO);
    let ack = Ack {
        boot: Boot(7),
        seq: Seq(1),
        echoed_sent: Instant::from_micros(99),
        interval: Duration::from_millis(250),
        epoch,
        controller,
        cadence: 10,
        lease,
    };
    let probe = Probe { boot: Boot(7), number: 2, controller, epoch, nonce };
    let reply = ProbeReply { stamp: stamp(), nonce };
    for full in [ack.encode(&h), probe.encode(&h)] {
        let mut short = shorter::<ANSWER_LEN>(&full).unwrap();
        key.seal(&mut short);
        let datagram = decode(&short).unwrap();
        assert_eq!(datagram.message, decode(&full).unwrap().message);
        assert!(key.verify(&datagram) && datagram.signed.len() == ANSWER_LEN - TAG_LEN);
    }
    let full = reply.encode(&h);
    let short = shorter::<DATAGRAM_LEN_MIN>(&full).unwrap();
    assert_eq!(decode(&short).unwrap().message, Message::ProbeReply(reply));
    assert_eq!(decode(&short[1..]).unwrap_err(), DecodeError::TooShort);
    // What is not zero stays.
    let leased = Ack { lease: Duration::from_secs(1), ..ack };
    assert!(shorter::<ANSWER_LEN>(&leased.encode(&h)).is_none());
    let whole = ProbeReply { stamp: stamp(), nonce: [9; 16] };
    assert!(shorter::<DATAGRAM_LEN_MIN>(&whole.encode(&h)).is_none());
    // Of all other kinds nothing may be left out.
    let leave = Leave { stamp: stamp(), reason: LeaveReason::Reboot, expected: Duration::ZERO };
    for full in [beat().encode(&h), leave.encode(&h)] {
        for len in DATAGRAM_LEN_MIN..DATAGRAM_LEN {
            assert_eq!(decode(&full[..len]).unwrap_err(), DecodeError::TooShort);
        }
    }
}
