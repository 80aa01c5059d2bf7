//! Known answers of the wire format: what `tests/vectors/wire.json` holds, and how it is made.
//!
//! Regenerate with `cargo run -p heartwatch-tests --bin vectors` after a deliberate change of the
//! format, and read the difference: a byte that moved is a new version of the wire.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use heartwatch_common::auth::FleetSecret;
use heartwatch_common::id::{Boot, ControllerId, Epoch, Generation, HostId, KeyId, Seq};
use heartwatch_common::load::{LoadSample, Share};
use heartwatch_common::time::Instant;
use heartwatch_common::wire::{
    Ack, Beat, Field, Header, Leave, LeaveReason, Probe, ProbeReply, ProbeVia, RoundTrip, Stamp,
    TAG_LEN, encode_hello,
};
use serde_json::{Value, json};

/// Lengths around BLAKE3's block (64) and chunk (1,024), up to more than any datagram.
const TAG_LENS: [usize; 12] = [0, 1, 63, 64, 65, 128, 1_023, 1_024, 1_025, 1_184, 2_049, 5_000];

fn tag_of(key: &heartwatch_common::auth::HostKey, len: usize) -> String {
    let body = (0..len).map(|i| u8::try_from(i % 251).unwrap_or_default());
    let mut datagram: Vec<u8> = body.chain([0; 16]).collect();
    key.seal(&mut datagram);
    hex::encode(&datagram[len..])
}

/// Where the file is.
pub fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors/wire.json")
}

/// Reads a hexadecimal text of a known length.
fn bytes<const N: usize>(value: &Value) -> Result<[u8; N]> {
    let text = value.as_str().context("hexadecimal text is needed")?;
    let mut out = [0; N];
    hex::decode_to_slice(text, &mut out).with_context(|| format!("`{text}`"))?;
    Ok(out)
}

fn int(fields: &Value, key: &str) -> Result<u64> {
    fields[key].as_u64().with_context(|| format!("the number `{key}` is missing"))
}

fn small<T: TryFrom<u64>>(fields: &Value, key: &str) -> Result<T> {
    T::try_from(int(fields, key)?).map_err(|_| anyhow::anyhow!("`{key}` is too large"))
}

fn micros(fields: &Value, key: &str) -> Result<Duration> {
    Ok(Duration::from_micros(int(fields, key)?))
}

fn stamp(fields: &Value) -> Result<Stamp> {
    Ok(Stamp {
        boot: Boot(small(fields, "boot")?),
        seq: Seq(small(fields, "seq")?),
        sent: Instant::from_micros(int(fields, "sent_us")?),
        gap: micros(fields, "gap_us")?,
        epoch: Epoch(small(fields, "epoch")?),
    })
}

fn share(fields: &Value, key: &str) -> Result<Share> {
    Ok(Share::from_byte(small(fields, key)?))
}

/// The sealed datagram that the fields of one vector make.
pub fn encode(vector: &Value, secret: &FleetSecret) -> Result<Vec<u8>> {
    let f = &vector["fields"];
    let host = HostId(bytes(&f["host"])?);
    let generation = Generation(small(f, "generation")?);
    let header =
        Header { host, key_id: KeyId(small(f, "key_id")?), generation, flags: small(f, "flags")? };
    let mut sealed = match vector["kind"].as_str().unwrap_or_default() {
        "beat" => Beat {
            stamp: stamp(f)?,
            late_ms: small(f, "late_ms")?,
            checks: small(f, "checks")?,
            load: LoadSample {
                cpu_busy: share(f, "cpu_busy")?,
                memory_used: share(f, "memory_used")?,
                swap_used: share(f, "swap_used")?,
                disk_used: share(f, "disk_used")?,
                run_queue_centi: small(f, "run_queue_centi")?,
                network_kib_per_s: small(f, "network_kib_per_s")?,
                psi_cpu: share(f, "psi_cpu")?,
                psi_memory: share(f, "psi_memory")?,
                psi_io: share(f, "psi_io")?,
            },
            round_trip: RoundTrip(small(f, "round_trip")?),
        }
        .encode(&header)
        .to_vec(),
        "hello" => {
            let text = |key: &str| f[key].as_str().unwrap_or_default();
            let empty = Vec::new();
            let labels = f["labels"].as_array().unwrap_or(&empty);
            let pairs = labels.iter().filter_map(|l| l.as_str()?.split_once('='));
            let mut fields = vec![
                Field::Name(text("name")),
                Field::AgentVersion(text("agent_version")),
                Field::Os(text("os")),
            ];
            fields.extend(pairs.map(|(k, v)| Field::Label(k, v)));
            if f.get("maintenance_s").is_some() {
                fields.push(Field::Maintenance(
                    small(f, "maintenance_s")?,
                    text("maintenance_reason"),
                ));
            }
            let late_ms = small(f, "late_ms")?;
            encode_hello(&header, &stamp(f)?, late_ms, micros(f, "interval_us")?, &fields)?
        }
        "leave" => Leave {
            stamp: stamp(f)?,
            reason: match int(f, "reason")? {
                1 => LeaveReason::Shutdown,
                2 => LeaveReason::Restart,
                3 => LeaveReason::Reboot,
                4 => LeaveReason::Upgrade,
                other => bail!("{other} is not a reason"),
            },
            expected: Duration::from_secs(int(f, "expected_s")?),
        }
        .encode(&header)
        .to_vec(),
        "probe-reply" => {
            ProbeReply { stamp: stamp(f)?, nonce: bytes(&f["nonce"])? }.encode(&header).to_vec()
        }
        "ack" => Ack {
            boot: Boot(small(f, "boot")?),
            seq: Seq(small(f, "seq")?),
            echoed_sent: Instant::from_micros(int(f, "echoed_sent_us")?),
            interval: micros(f, "interval_us")?,
            epoch: Epoch(small(f, "epoch")?),
            controller: ControllerId(u64::from_be_bytes(bytes(&f["controller"])?)),
            cadence: small(f, "cadence")?,
            lease: Duration::from_millis(int(f, "lease_ms")?),
        }
        .encode(&header)
        .to_vec(),
        "probe" => Probe {
            boot: Boot(small(f, "boot")?),
            number: small(f, "number")?,
            controller: ControllerId(u64::from_be_bytes(bytes(&f["controller"])?)),
            epoch: Epoch(small(f, "epoch")?),
            nonce: bytes(&f["nonce"])?,
        }
        .encode(&header)
        .to_vec(),
        "probe-via" => {
            let to = f["to"].as_str().context("`to` is missing")?;
            ProbeVia {
                number: small(f, "number")?,
                controller: ControllerId(u64::from_be_bytes(bytes(&f["controller"])?)),
                epoch: Epoch(small(f, "epoch")?),
                to: to.parse().with_context(|| format!("`{to}`"))?,
                probe: &bytes(&f["probe"])?,
            }
            .encode(&header)
            .to_vec()
        }
        other => bail!("`{other}` is not a kind"),
    };
    // Zeros that are left out stand before the tag.
    if let Some(left_out) = vector.get("left_out").and_then(Value::as_u64) {
        let end = sealed.len() - TAG_LEN;
        let begin = end - usize::try_from(left_out)?;
        ensure!(sealed.drain(begin..end).all(|byte| byte == 0), "what is left out is not zero");
    }
    secret.host_key(host, generation).seal(&mut sealed);
    Ok(sealed)
}

/// The fleet secret of a vectors file.
pub fn secret(file: &Value) -> Result<FleetSecret> {
    let text = file["fleet_secret"].as_str().context("`fleet_secret` is missing")?;
    text.parse().context("`fleet_secret`")
}

fn from_agent(mut more: Value, seq: u64) -> Value {
    let mut fields = json!({
        "host": "8a4e3b1c5d6f70819203a4b5c6d7e8f9", "key_id": 3, "generation": 258, "flags": 1,
        "boot": 7, "seq": seq, "sent_us": 18_838_586_676_582_u64, "gap_us": 1_200_000,
        "epoch": 3_735_928_559_u32,
    });
    if let (Some(fields), Some(more)) = (fields.as_object_mut(), more.as_object_mut()) {
        fields.append(more);
    }
    fields
}

/// The whole file, as it should be.
pub fn generate() -> Result<Value> {
    let host = "8a4e3b1c5d6f70819203a4b5c6d7e8f9";
    let nonce = "000102030405060708090a0b0c0d0e0f";
    let controller = "0123456789abcdef";
    let text: String = "0123456789abcdef".repeat(4);
    let short_nonce = "00010203040506070000000000000000";
    let mut vectors = vec![
        json!({ "kind": "beat", "fields": from_agent(json!({
            "checks": 5, "late_ms": 12, "cpu_busy": 125, "memory_used": 250, "swap_used": 0,
            "disk_used": 200, "run_queue_centi": 150, "network_kib_per_s": 70_000,
            "psi_cpu": 1, "psi_memory": 2, "psi_io": 255, "round_trip": 71 }), 16_909_060) }),
        json!({ "kind": "beat", "fields": from_agent(json!({
            "checks": 0, "late_ms": 65_535, "cpu_busy": 255, "memory_used": 255, "swap_used": 255,
            "disk_used": 255, "run_queue_centi": 65_535, "network_kib_per_s": 4_294_967_295_u32,
            "psi_cpu": 255, "psi_memory": 255, "psi_io": 255, "round_trip": 0 }), 1) }),
        json!({ "kind": "hello", "fields": from_agent(json!({
            "late_ms": 0, "interval_us": 1_000_000, "name": "db-1", "agent_version": "0.1.0",
            "os": "Debian GNU/Linux 12", "labels": ["rack=r7", "zone=zürich"] }), 1) }),
        json!({ "kind": "leave", "fields": from_agent(json!({
            "reason": 3, "expected_s": 90 }), 99) }),
        json!({ "kind": "probe-reply", "fields": from_agent(json!({ "nonce": nonce }), 100) }),
        json!({ "kind": "ack", "fields": {
            "host": host, "key_id": 3, "generation": 258, "flags": 7, "boot": 7, "seq": 16_909_060,
            "echoed_sent_us": 18_838_586_676_582_u64, "interval_us": 250_000,
            "epoch": 3_735_928_559_u32, "controller": controller, "cadence": 10, "lease_ms": 0 } }),
        json!({ "kind": "probe", "fields": {
            "host": host, "key_id": 3, "generation": 258, "flags": 0, "boot": 7, "number": 2,
            "controller": controller, "epoch": 3_735_928_559_u32, "nonce": nonce } }),
    ];
    let secret_text = format!("hwf1:3:{text}");
    let secret: FleetSecret = secret_text.parse().context("the secret of the vectors")?;
    let key = secret.host_key(host.parse().context("the host id")?, Generation(258));
    for vector in &mut vectors {
        let datagram = encode(vector, &secret)?;
        vector["datagram"] = json!(hex::encode(datagram));
    }
    // A probe for another host, as this one is asked to pass it on, over both families.
    let other = "17a1b2c3d4e5f60718293a4b5c6d7e8f";
    let mut probe = vectors[6].clone();
    probe["fields"]["host"] = json!(other);
    let probe = hex::encode(encode(&probe, &secret)?);
    for to in ["192.0.2.7:40123", "[2001:db8::7]:40123"] {
        let mut vector = json!({ "kind": "probe-via", "fields": {
            "host": host, "key_id": 3, "generation": 258, "flags": 0, "number": 2,
            "controller": controller, "epoch": 3_735_928_559_u32, "to": to, "probe": probe } });
        vector["datagram"] = json!(hex::encode(encode(&vector, &secret)?));
        vectors.push(vector);
    }
    let mut vector = json!({ "kind": "hello", "fields": from_agent(json!({
        "late_ms": 0, "interval_us": 1_000_000, "name": "db-1", "agent_version": "0.2.0",
        "os": "Debian GNU/Linux 12", "labels": ["zone=a"], "maintenance_s": 1_800,
        "maintenance_reason": "new disk" }), 1) });
    vector["datagram"] = json!(hex::encode(encode(&vector, &secret)?));
    // Behind the other hello.
    vectors.insert(3, vector);
    // Without zeros that may be left out, each behind the one that has them.
    for (kind, left_out) in [("probe-reply", 8), ("ack", 6), ("probe", 6)] {
        let at = vectors.iter().position(|v| v["kind"] == kind).context("each kind is there")?;
        let mut vector = vectors[at].clone();
        if kind != "ack" {
            vector["fields"]["nonce"] = json!(short_nonce);
        }
        vector["left_out"] = json!(left_out);
        vector["datagram"] = json!(hex::encode(encode(&vector, &secret)?));
        vectors.insert(at + 1, vector);
    }
    let tags = TAG_LENS.map(|len| json!({ "len": len, "tag": tag_of(&key, len) }));
    Ok(json!({
        "about": "Known answers of the wire format of common/src/wire.rs. Made by \
                  `cargo run -p heartwatch-tests --bin vectors`; shares are bytes as on the wire.",
        "fleet_secret": secret_text,
        "host_key": *key.to_text(),
        "tags_about": "Tags under host_key of bodies whose byte i is i modulo 251: for whoever brings \
                       a BLAKE3 of their own.",
        "tags": tags,
        "vectors": vectors,
    }))
}
