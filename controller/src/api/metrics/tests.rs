//! The exposition's form and figures.

use super::*;
use crate::api::testing::{check_exposition, status};
use crate::control::Doubt;
use crate::store::DeliveryState;
use heartwatch_common::time::Wall;
use std::sync::Arc;

fn text(shards: &[Arc<ShardMetrics>], delivery: Vec<DeliveryMetricRow>) -> String {
    let mut status = status();
    let error = Some("disk full".to_owned());
    status.doubts.push(Doubt { error, ..Doubt::new(DoubtReason::Store) });
    let by_receiver = BTreeMap::from([(("a\"b".to_owned(), DeliveryState::Dead), 3)]);
    let backlog = Backlog { by_receiver, oldest_pending: Some(Wall(1_000)) };
    let snapshot = Snapshot {
        status: &status,
        ready: false,
        backlog: Some(&backlog),
        doubted_for: BTreeMap::from([(DoubtReason::Drops, Duration::from_millis(1_500))]),
        now_ms: 3_500,
        hosts: [1, 2, 3, 4, 5, 6],
        shards,
        delivery,
    };
    TextEncoder::new().encode_to_string(&families(&snapshot)).unwrap()
}

#[test]
fn the_text_is_sane_and_holds_the_figures() {
    let shard = ShardMetrics::default();
    crate::metrics::add(&shard.beats, 90);
    crate::metrics::add(&shard.beats_lost, 10);
    shard.reject(Reject::NotRising);
    for micros in [100_000, 1_200_000, 999_000_000] {
        shard.detected(micros);
    }
    let row = DeliveryMetricRow {
        receiver: "orchestrator".to_owned(),
        attempts: vec![("2xx", 4), ("timeout", 1)],
        retries: 1,
        ..DeliveryMetricRow::default()
    };
    let text = text(&[Arc::new(shard), Arc::default()], vec![row]);
    check_exposition(&text);
    for line in [
        "heartwatch_beats_expected_total{shard=\"0\"} 100",
        "heartwatch_beats_received_ratio{shard=\"0\"} 0.9",
        "heartwatch_datagrams_rejected_total{shard=\"0\",reason=\"not_rising\"} 1",
        "heartwatch_detection_time_seconds_bucket{shard=\"0\",le=\"1.5\"} 2",
        "heartwatch_detection_time_seconds_bucket{shard=\"0\",le=\"+Inf\"} 3",
        "heartwatch_delivery_attempts_total{receiver=\"orchestrator\",outcome=\"timeout\"} 1",
        "heartwatch_deliveries_backlog{receiver=\"a\\\"b\",state=\"dead\"} 3",
        "heartwatch_delivery_oldest_pending_age_seconds 2.5",
        "heartwatch_store_writable 0",
        "heartwatch_doubt{reason=\"store\"} 1",
        "heartwatch_doubt{reason=\"cut\"} 0",
        "heartwatch_doubt_seconds_total{reason=\"drops\"} 1.5",
        "heartwatch_hosts{state=\"left\"} 5",
        "heartwatch_holds{kind=\"storm\"} 1",
        "heartwatch_holds{kind=\"rate\"} 0",
        "heartwatch_hold_oldest_seconds 3",
        "heartwatch_storms 1",
        "heartwatch_storm_fleet 0",
        "heartwatch_hosts_flapping 2",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    }
}

#[test]
fn without_shards_and_receivers_the_text_is_still_sane() {
    check_exposition(&text(&[], Vec::new()));
}
