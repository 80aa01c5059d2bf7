//! The wire format stays what it is: every kind against known answers, both ways.

use heartwatch_common::auth::HostKey;
use heartwatch_common::wire::{Message, decode};
use heartwatch_tests::vectors;
use serde_json::Value;

fn file() -> Value {
    let text = std::fs::read_to_string(vectors::path()).expect("tests/vectors/wire.json is there");
    serde_json::from_str(&text).expect("it is JSON")
}

#[test]
fn the_encoder_makes_exactly_the_known_bytes() {
    let file = file();
    let secret = vectors::secret(&file).unwrap();
    for vector in file["vectors"].as_array().unwrap() {
        let made = hex::encode(vectors::encode(vector, &secret).unwrap());
        assert_eq!(made, vector["datagram"].as_str().unwrap(), "{vector:#}");
    }
}

#[test]
fn the_file_is_what_the_generator_would_write() {
    assert_eq!(file(), vectors::generate().unwrap());
}

#[test]
fn the_decoder_reads_the_known_bytes_and_their_tags_are_right() {
    let file = file();
    let key: HostKey = file["host_key"].as_str().unwrap().parse().unwrap();
    let mut kinds = Vec::new();
    for vector in file["vectors"].as_array().unwrap() {
        let bytes = hex::decode(vector["datagram"].as_str().unwrap()).unwrap();
        let datagram = decode(&bytes).unwrap();
        assert!(key.verify(&datagram), "{vector:#}");
        let fields = &vector["fields"];
        assert_eq!(datagram.header.host.to_string(), fields["host"].as_str().unwrap());
        assert_eq!(u64::from(datagram.header.flags), fields["flags"].as_u64().unwrap());
        let seq = match datagram.message {
            Message::Ack(ack) => u64::from(ack.seq.0),
            Message::Probe(probe) => {
                assert_eq!(u64::from(probe.number), fields["number"].as_u64().unwrap());
                kinds.push("probe");
                continue;
            }
            Message::ProbeVia(via) => {
                assert_eq!(via.to.to_string(), fields["to"].as_str().unwrap());
                assert_eq!(hex::encode(via.probe), fields["probe"].as_str().unwrap());
                let inner = decode(via.probe).unwrap();
                assert!(!key.verify(&inner), "the probe inside is another host's");
                kinds.push("probe-via");
                continue;
            }
            other => u64::from(other.stamp().unwrap().seq.0),
        };
        assert_eq!(seq, fields["seq"].as_u64().unwrap());
        kinds.push(vector["kind"].as_str().unwrap());
    }
    kinds.dedup();
    assert_eq!(kinds, ["beat", "hello", "leave", "probe-reply", "ack", "probe", "probe-via"]);
}

#[test]
fn a_vector_with_any_bit_flipped_is_not_believed() {
    let file = file();
    let key: HostKey = file["host_key"].as_str().unwrap().parse().unwrap();
    for vector in file["vectors"].as_array().unwrap() {
        let sound = hex::decode(vector["datagram"].as_str().unwrap()).unwrap();
        for bit in 0..sound.len() * 8 {
            let mut bytes = sound.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let believed = decode(&bytes).is_ok_and(|d| key.verify(&d));
            assert!(!believed, "bit {bit} of {}", vector["kind"]);
        }
    }
}
