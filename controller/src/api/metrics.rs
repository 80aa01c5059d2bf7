//! `/metrics`: Prometheus' classic text, built anew at every scrape from counters kept elsewhere.
//!
//! Names are `heartwatch_<noun>_<unit>`; counters end in `_total`. No label grows with the number of
//! hosts: per-host figures are the API's. The share of beats that came is
//! `rate(heartwatch_beats_received_total) / rate(heartwatch_beats_expected_total)`.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};
use prometheus::{TEXT_FORMAT, TextEncoder};

use super::Api;
use super::extract::Params;
use super::problem::Problem;
use crate::control::{DoubtReason, Status};
use crate::event::State as HostState;
use crate::intervals::ClassStatus;
use crate::metrics::{DETECTION_BUCKETS, Reject, ShardMetrics, get};
use crate::store::Backlog;

/// One receiver's counters, as the delivery keeps them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliveryMetricRow {
    /// Which receiver.
    pub receiver: String,
    /// Attempts that ended, by outcome (label value, count).
    pub attempts: Vec<(&'static str, u64)>,
    /// Attempts that were not the first of their delivery.
    pub retries: u64,
    /// Deliveries that the receiver took.
    pub delivered: u64,
    /// Deliveries that were given up.
    pub dead: u64,
    /// Gauge: attempts under way.
    pub in_flight: u64,
    /// Whether its circuit breaker keeps deliveries back.
    pub breaker_open: bool,
    /// Requests that said again what goes on, and were taken.
    pub resent: u64,
    /// And those that were not.
    pub resends_failed: u64,
}

/// Reads the delivery's counters; called once per scrape.
pub type DeliveryMetricsFn = Box<dyn Fn() -> Vec<DeliveryMetricRow> + Send + Sync>;

/// What one scrape shows.
struct Snapshot<'a> {
    status: &'a Status,
    ready: bool,
    backlog: Option<&'a Backlog>,
    doubted_for: BTreeMap<DoubtReason, Duration>,
    now_ms: i64,
    hosts: [u64; HostState::ALL.len()],
    shards: &'a [std::sync::Arc<ShardMetrics>],
    delivery: Vec<DeliveryMetricRow>,
}

/// `GET /metrics`
pub(super) async fn scrape(State(api): State<Api>, params: Params) -> Result<Response, Problem> {
    params.only(&[])?;
    let status = api.control.status().await;
    let ready = api.control.ready().await.is_ok();
    // A store that can't be read must not hide the rest: its figures are then absent.
    let backlog = api.store.backlog().await.ok();
    let snapshot = Snapshot {
        status: &status,
        ready,
        backlog: backlog.as_ref(),
        doubted_for: api.control.doubted_for(),
        now_ms: api.clock.wall().0,
        hosts: api.view.counts(),
        shards: &api.shards,
        delivery: (api.delivery)(),
    };
    let mut all = Families(families(&snapshot));
    super::access::families(&mut all, &api);
    super::enrol::families(&mut all, &api);
    let text = TextEncoder::new().encode_to_string(&all.0).map_err(|e| {
        let status = axum::http::StatusCode::INTERNAL_SERVER_ERROR;
        Problem::of_status(status, &format!("the metrics cannot be written: {e}"))
    })?;
    Ok(([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response())
}

pub(super) type Labels<'a> = Vec<(&'a str, String)>;

fn label_pairs(labels: Labels<'_>) -> Vec<LabelPair> {
    let pair = |(name, value): (&str, String)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value);
        pair
    };
    labels.into_iter().map(pair).collect()
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(format!("heartwatch_{name}"));
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

/// The families of one scrape. A family without a sample is left out: the encoder refuses it.
#[derive(Default)]
pub(super) struct Families(Vec<MetricFamily>);

impl Families {
    fn push(&mut self, family: MetricFamily) {
        if !family.get_metric().is_empty() {
            self.0.push(family);
        }
    }

    pub(super) fn counters<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, u64)>,
    ) {
        self.sums(name, help, samples.into_iter().map(|(labels, n)| (labels, n as f64)));
    }

    fn sums<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, f64)>,
    ) {
        let metric = |(labels, value): (Labels<'a>, f64)| {
            let mut counter = Counter::default();
            counter.set_value(value);
            let mut metric = Metric::from_label(label_pairs(labels));
            metric.set_counter(counter);
            metric
        };
        let metrics = samples.into_iter().map(metric).collect();
        self.push(family(name, help, MetricType::COUNTER, metrics));
    }

    pub(super) fn gauges<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, f64)>,
    ) {
        let metric = |(labels, value): (Labels<'a>, f64)| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            let mut metric = Metric::from_label(label_pairs(labels));
            metric.set_gauge(gauge);
            metric
        };
        let metrics = samples.into_iter().map(metric).collect();
        self.push(family(name, help, MetricType::GAUGE, metrics));
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.gauges(name, help, [(Vec::new(), value)]);
    }
}

fn families(s: &Snapshot<'_>) -> Vec<MetricFamily> {
    let mut f = Families::default();
    controller(&mut f, s);
    intervals(&mut f, s);
    super::holds::families(&mut f, s.status, s.now_ms);
    super::maintenance::families(&mut f, s.status);
    super::drill::families(&mut f, &s.status.canary);
    shard_counters(&mut f, s.shards);
    shard_gauges(&mut f, s.shards);
    detection(&mut f, s.shards);
    deliveries(&mut f, s);
    f.0
}

fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}

fn intervals(f: &mut Families, s: &Snapshot<'_>) {
    let Some(i) = &s.status.intervals else { return };
    let help = "Beats per second that the fleet may send (intervals.budget).";
    f.gauge("beats_budget_per_second", help, i.budget_per_s);
    let help = "Beats per second by the assigned intervals, if every known host beats.";
    f.gauge("beats_planned_per_second", help, i.planned_per_s);
    let help = "1 while even the longest intervals are more beats than the budget.";
    f.gauge("beats_budget_exceeded", help, flag(i.exceeded));
    let each = |read: fn(&ClassStatus) -> f64| {
        i.classes.iter().map(move |c| (vec![("class", c.class.clone())], read(c)))
    };
    f.gauges(
        "assigned_interval_seconds",
        "Interval that acks assign, by class.",
        each(|c| c.interval_ms / 1e3),
    );
    let help = "Hosts that are alive, suspect or down, by class of intervals.";
    f.gauges("interval_class_hosts", help, each(|c| c.hosts as f64));
}

fn controller(f: &mut Families, s: &Snapshot<'_>) {
    let status = s.status;
    let build =
        vec![("version", status.version.clone()), ("controller", status.controller.to_string())];
    f.gauges("build_info", "Which build runs; always 1.", [(build, 1.0)]);
    let started = status.started_ms.0 as f64 / 1e3;
    f.gauge("start_time_seconds", "When the controller started, seconds since 1970.", started);
    let by_state = HostState::ALL.iter().zip(s.hosts);
    f.gauges(
        "hosts",
        "Registered hosts by state.",
        by_state.map(|(state, n)| (vec![("state", state.to_string())], n as f64)),
    );
    let label = |reason: DoubtReason| vec![("reason", reason.to_string())];
    let active = |reason| status.doubts.iter().filter(|d| d.reason == reason).count() as f64;
    f.gauges(
        "doubt",
        "Why the controller distrusts itself right now, and in how many shards; all zero is good.",
        DoubtReason::ALL.map(|reason| (label(reason), active(reason))),
    );
    f.sums(
        "doubt_seconds_total",
        "For how long each reason for doubt held, over all shards.",
        s.doubted_for.iter().map(|(reason, span)| (label(*reason), span.as_secs_f64())),
    );
    f.gauge("paused", "1 while an operator holds all actions.", flag(status.pause.is_some()));
    f.gauge("ready", "1 while /readyz answers 200.", flag(s.ready));
    let writable = !status.doubts.iter().any(|d| d.reason == DoubtReason::Store);
    f.gauge("store_writable", "1 while the store can be written.", flag(writable));
    let waiting = status.events_waiting as f64;
    f.gauge("events_waiting", "Events that wait in memory for the store.", waiting);
    let waiting = status.rows_waiting as f64;
    let help = "Rows of the registry that changed without an event and wait for the store.";
    f.gauge("rows_waiting", help, waiting);
}

type Read = fn(&ShardMetrics) -> u64;

/// Counters that each shard keeps: name, help, where it stands.
const SHARD_COUNTERS: [(&str, &str, Read); 25] = [
    ("datagrams_received_total", "Datagrams read from the sockets.", |m| get(&m.received)),
    ("received_bytes_total", "Bytes of the datagrams read.", |m| get(&m.received_bytes)),
    (
        "datagrams_dropped_total",
        "Datagrams that the kernel dropped at the controller's own sockets.",
        |m| get(&m.dropped),
    ),
    ("beats_received_total", "Beats that proved life.", |m| get(&m.beats)),
    (
        "beats_expected_total",
        "Beats that hosts sent, by their own numbering: received ones and lost ones.",
        |m| get(&m.beats).saturating_add(get(&m.beats_lost)),
    ),
    ("beats_lost_total", "Beats that hosts numbered but that never came.", |m| get(&m.beats_lost)),
    ("beats_late_total", "Beats that arrived behind a later one.", |m| get(&m.beats_late)),
    ("hellos_received_total", "Hellos taken.", |m| get(&m.hellos)),
    ("leaves_received_total", "Goodbyes taken.", |m| get(&m.leaves)),
    ("probe_replies_received_total", "Replies that answered a probe of ours.", |m| {
        get(&m.probe_replies)
    }),
    (
        "unreachables_received_total",
        "ICMP answers that said that nobody listens on a probed host.",
        |m| get(&m.unreachables),
    ),
    ("acks_sent_total", "Acks sent because they were asked for.", |m| get(&m.acks)),
    ("challenges_sent_total", "Acks sent because an epoch was not ours.", |m| get(&m.challenges)),
    ("probes_sent_total", "Probes sent.", |m| get(&m.probes)),
    ("probes_via_peers_sent_total", "Requests to peers to probe a suspect.", |m| get(&m.vias)),
    (
        "testimonies_received_total",
        "Answers of suspects that peers brought back and that answered a request of ours.",
        |m| get(&m.testimonies),
    ),
    ("send_errors_total", "Datagrams that could not be sent.", |m| get(&m.send_errors)),
    ("suspects_total", "Hosts that became suspect.", |m| get(&m.suspects)),
    ("mistakes_total", "Suspicions that proved wrong: the same boot came back.", |m| {
        get(&m.mistakes)
    }),
    ("downs_total", "Hosts that became down.", |m| get(&m.downs)),
    (
        "false_downs_total",
        "Downs whose same boot came back: false downs, or long network cuts.",
        |m| get(&m.false_downs),
    ),
    (
        "excused_deadlines_total",
        "Deadlines that passed while own losses, or a moment in which nobody was heard, excused the host.",
        |m| get(&m.excused),
    ),
    (
        "record_lines_dropped_total",
        "Lines of `--record` that were not written: its queue was full, or its disk refused.",
        |m| get(&m.record_dropped),
    ),
    ("detections_total", "Detection times recorded.", |m| m.detection.iter().map(get).sum()),
    ("shard_loops_total", "Loops of a shard's thread; standing still means stuck.", |m| {
        get(&m.loops)
    }),
];

fn shard_label(shard: usize) -> (&'static str, String) {
    ("shard", shard.to_string())
}

fn shard_counters(f: &mut Families, shards: &[std::sync::Arc<ShardMetrics>]) {
    for (name, help, read) in SHARD_COUNTERS {
        let samples = shards.iter().enumerate().map(|(i, m)| (vec![shard_label(i)], read(m)));
        f.counters(name, help, samples);
    }
    let rejects = shards.iter().enumerate().flat_map(|(i, m)| {
        let by_reason = Reject::ALL.iter().zip(&m.rejects);
        by_reason.map(move |(why, n)| {
            (vec![shard_label(i), ("reason", why.as_str().to_owned())], get(n))
        })
    });
    f.counters(
        "datagrams_rejected_total",
        "Datagrams that counted for nothing, by reason.",
        rejects,
    );
}

type ReadGauge = fn(&ShardMetrics) -> f64;

/// Gauges that each shard keeps.
const SHARD_GAUGES: [(&str, &str, ReadGauge); 10] = [
    ("shard_hosts", "Hosts of a shard.", |m| get(&m.hosts) as f64),
    ("hosts_probing", "Hosts being probed.", |m| get(&m.probing) as f64),
    ("hosts_unreachable", "Suspects that answer other hosts, but not the controller.", |m| {
        get(&m.unreachable_hosts) as f64
    }),
    ("shard_lag_seconds", "How far judging lags behind now.", |m| get(&m.lag_us) as f64 / 1e6),
    (
        "shard_longest_pass_seconds",
        "The longest time of the last 10 to 20 s that a shard was away from its beat sockets, naps \
         included.",
        |m| get(&m.longest_pass_us) as f64 / 1e6,
    ),
    ("shard_drop_ratio", "Share of datagrams that the kernel dropped in the last window.", |m| {
        get(&m.drop_ppm) as f64 / 1e6
    }),
    ("receive_buffer_bytes", "Receive buffer as the kernel granted it.", |m| {
        get(&m.receive_buffer_bytes) as f64
    }),
    ("notices_waiting", "Notices of a shard that wait for the policy.", |m| {
        get(&m.outbox_len) as f64
    }),
    ("shard_blind", "1 while own losses have excused hosts for longer than doubt_max.", |m| {
        flag(m.blind.load(std::sync::atomic::Ordering::Relaxed))
    }),
    (
        "beats_received_ratio",
        "Share of the expected beats that came, since the start of the controller.",
        |m| {
            let (came, lost) = (get(&m.beats) as f64, get(&m.beats_lost) as f64);
            if came + lost > 0.0 { came / (came + lost) } else { 1.0 }
        },
    ),
];

fn shard_gauges(f: &mut Families, shards: &[std::sync::Arc<ShardMetrics>]) {
    for (name, help, read) in SHARD_GAUGES {
        let samples = shards.iter().enumerate().map(|(i, m)| (vec![shard_label(i)], read(m)));
        f.gauges(name, help, samples);
    }
}

fn detection(f: &mut Families, shards: &[std::sync::Arc<ShardMetrics>]) {
    let histogram = |m: &ShardMetrics| {
        let mut histogram = Histogram::default();
        let mut buckets = Vec::with_capacity(DETECTION_BUCKETS.len());
        // Counted up as it is read, so that the histogram is monotone even while a shard writes.
        let mut below = 0;
        for (bound, count) in DETECTION_BUCKETS.iter().zip(&m.detection) {
            below += get(count);
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(below);
            buckets.push(bucket);
        }
        let rest = m.detection.get(DETECTION_BUCKETS.len()).map_or(0, get);
        histogram.set_bucket(buckets);
        histogram.set_sample_count(below + rest);
        histogram.set_sample_sum(get(&m.detection_us) as f64 / 1e6);
        histogram
    };
    let metrics = shards.iter().enumerate().map(|(i, m)| {
        let mut metric = Metric::from_label(label_pairs(vec![shard_label(i)]));
        metric.set_histogram(histogram(m));
        metric
    });
    let help = "Time from a host's last proof of life to its being down.";
    let metrics = metrics.collect();
    f.push(family("detection_time_seconds", help, MetricType::HISTOGRAM, metrics));
}

fn deliveries(f: &mut Families, s: &Snapshot<'_>) {
    let receiver = |row: &DeliveryMetricRow| ("receiver", row.receiver.clone());
    let rows = &s.delivery;
    let attempts = rows.iter().flat_map(|row| {
        let by_outcome = row.attempts.iter();
        by_outcome
            .map(move |(outcome, n)| (vec![receiver(row), ("outcome", (*outcome).to_owned())], *n))
    });
    f.counters(
        "delivery_attempts_total",
        "Attempts that ended, by receiver and outcome.",
        attempts,
    );
    let each = |read: fn(&DeliveryMetricRow) -> u64| {
        rows.iter().map(move |row| (vec![receiver(row)], read(row)))
    };
    let help = "Attempts that were not the first of their delivery.";
    f.counters("delivery_retries_total", help, each(|r| r.retries));
    f.counters(
        "deliveries_delivered_total",
        "Deliveries that the receiver took.",
        each(|r| r.delivered),
    );
    f.counters("deliveries_dead_total", "Deliveries that were given up.", each(|r| r.dead));
    let each = |read: fn(&DeliveryMetricRow) -> f64| {
        rows.iter().map(move |row| (vec![receiver(row)], read(row)))
    };
    let help = "Requests that said again to a receiver what goes on, by how that ended.";
    let resends = rows.iter().flat_map(|row| {
        let both = [("success", row.resent), ("failure", row.resends_failed)];
        both.map(|(outcome, n)| (vec![receiver(row), ("outcome", outcome.to_owned())], n))
    });
    f.counters("delivery_resends_total", help, resends);
    f.gauges("delivery_attempts_in_flight", "Attempts under way.", each(|r| r.in_flight as f64));
    let help = "1 while a receiver's circuit breaker keeps deliveries back.";
    f.gauges("delivery_breaker_open", help, each(|r| flag(r.breaker_open)));
    let Some(backlog) = s.backlog else { return };
    let counts = backlog.by_receiver.iter().map(|((receiver, state), n)| {
        (vec![("receiver", receiver.clone()), ("state", state.as_str().to_owned())], *n as f64)
    });
    f.gauges("deliveries_backlog", "Unfinished and dead deliveries by receiver and state.", counts);
    let age = backlog.oldest_pending.map_or(0, |at| s.now_ms.saturating_sub(at.0).max(0));
    let help = "Age of the oldest pending delivery; 0 if there is none.";
    f.gauge("delivery_oldest_pending_age_seconds", help, age as f64 / 1e3);
}

#[cfg(test)]
mod tests;
