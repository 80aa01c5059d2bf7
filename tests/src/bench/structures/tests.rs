use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[test]
fn everybody_beats_once_a_second_and_a_tenth_can_fall_silent() {
    let mut stream = Stream::new(1_000);
    let (mut block, mut beats) = (Vec::new(), vec![0u32; 1_000]);
    for _ in 0..300 {
        stream.block(SWEEP_EVERY, &mut block);
        for b in &block {
            beats[b.slot as usize] += 1;
            let timeout = b.deadline.since(b.at);
            assert!((Duration::from_millis(860)..Duration::from_millis(3_300)).contains(&timeout));
        }
    }
    assert!(beats.iter().all(|n| *n == 3));
    stream.silence_a_tenth();
    stream.block(Duration::from_secs(1), &mut block);
    assert_eq!((block.len(), stream.silent()), (900, 100));
}

#[test]
fn a_short_measurement_of_each_finds_exactly_the_silent() {
    // `measure` asserts it.
    for (_, make) in CONTESTANTS {
        let cost = measure(make, 500, 2_000);
        assert!(cost.bytes >= 8.0);
    }
}

#[test]
fn names_stand_in_the_order_of_the_contestants() {
    for (names, (who, _)) in NAMES.iter().zip(&CONTESTANTS) {
        for (names, (_, size)) in names.iter().zip(&SIZES) {
            assert!(names[0] == format!("{who}_beat_ns_{size}"), "{names:?}");
        }
    }
}

proptest! {
    #[test]
    fn each_finds_what_a_sorted_map_finds(
        // Slot, deadline ahead, time gone by (both in tenths of a millisecond); every fourth a sweep.
        ops in proptest::collection::vec((0..4u8, 0..16u32, 0..90_000u64, 0..9_000u64), 1..300),
        far in proptest::bool::ANY,
    ) {
        for (who, make) in CONTESTANTS {
            let mut kept = make();
            let mut naive: BTreeMap<u32, Instant> = BTreeMap::new();
            let mut now = Instant(7_654_321_000);
            for &(op, slot, ahead, gone) in &ops {
                if op == 0 {
                    now = now + Duration::from_micros(100 * gone);
                    let mut found = Vec::new();
                    kept.expire(now, &mut found);
                    found.sort_unstable();
                    let wanted: Vec<u32> =
                        naive.iter().filter(|(_, d)| **d <= now).map(|(s, _)| *s).collect();
                    prop_assert_eq!(&found, &wanted, "{} at {:?}", who, now);
                    naive.retain(|_, d| *d > now);
                } else {
                    // Now and then hours ahead: the coarser wheels, the last rows.
                    let ahead = if far && op == 3 { ahead * 1_000 } else { ahead };
                    let deadline = now + Duration::from_micros(100 * ahead);
                    kept.beat(slot, deadline, now);
                    naive.insert(slot, deadline);
                }
            }
        }
    }
}
