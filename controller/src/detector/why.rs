//! What is known of one host, for people.

use std::time::Duration;

use heartwatch_common::time::Instant;

use super::host::{DUPLICATE, Host};
use super::timeout::Context;
use super::{Detector, ms_between};
use crate::control::{ExcuseWhy, HostWhy, KnobsWhy, OverdueBin, ProbeWhy};
use crate::event::State;
use crate::view::habits_of;

impl Detector {
    /// What is known of a host right now, for people.
    pub fn why(&self, slot: u32, shard: u16, now: Instant, lag: Duration) -> HostWhy {
        let h = self.host(slot);
        let habits = self.hosts.cell(slot).map(habits_of).unwrap_or_default();
        let (margin, source) = self.margin(h);
        let timed = matches!(h.state, State::Alive) && h.last_arrival().is_some();
        // Of one that has not been heard, or has left, no beat is expected.
        let expects =
            h.last_arrival().is_some() && !matches!(h.state, State::Pending | State::Left);
        HostWhy {
            state: match h.state {
                State::Alive if h.is(DUPLICATE) => State::Duplicate,
                state => state,
            },
            shard,
            boot: h.boot,
            seq: h.seq,
            silence_ms: h.last_arrival().map(|a| now.since(a).as_millis() as u64),
            expected_in_ms: expects.then(|| ms_between(now, h.expected)),
            margin_ms: expects.then_some(margin.as_secs_f64() * 1e3),
            margin_source: source.as_str().to_owned(),
            deadline_in_ms: timed.then(|| ms_between(now, self.deadline(slot))),
            gap_ms: h.gap().as_millis() as u64,
            inter_arrival_mean_ms: f64::from(habits.mean_us) / 1e3,
            inter_arrival_deviation_ms: f64::from(habits.deviation_us) / 1e3,
            inter_arrival_p99_ms: f64::from(habits.p99_us) / 1e3,
            overdue: overdue_bins(h, Context::Calm),
            overdue_disturbed: overdue_bins(h, Context::Disturbed),
            context: h.learned.context().as_str().to_owned(),
            margin_calm_ms: h.learned.chosen(Context::Calm).as_secs_f64() * 1e3,
            margin_disturbed_ms: h.learned.chosen(Context::Disturbed).as_secs_f64() * 1e3,
            mistakes_foreseen_per_day: self.foreseen(h),
            knobs: self.knobs_why(h),
            beats_learned: f64::from(h.learned.beats()),
            group: String::new(),
            group_beats: self.siblings.beats(h.group),
            last_overdue_ms: habits.recent_ms(),
            last_late_ms: habits.recent_late_ms(),
            late_ms: habits.late_ms,
            mistakes: h.mistakes.into(),
            probes: self.confirm.get(slot).filter(|_| h.state == State::Suspect).map(|p| {
                ProbeWhy {
                    sent: p.tally.sent,
                    of: self.confirm.plan().probes,
                    unreachable: p.tally.unreachable,
                    peers_asked: p.tally.asked,
                    testimonies: p.tally.testimonies,
                    spacing_ms: p.spacing.as_millis() as u64,
                }
            }),
            excuse: self.excused(slot).map(|e| ExcuseWhy {
                reason: e.why,
                since_ms: now.since(e.since).as_millis() as u64,
                remaining_ms: e.until().since(now).as_millis() as u64,
            }),
            twin: self.twin(slot, now),
            // What other versions are there is known before a host is.
            other_version: None,
            listening_ms: now.since(self.begun).as_millis() as u64,
            shard_drop_ppm: self.doubt.drop_ppm(),
            shard_lag_ms: lag.as_millis() as u64,
        }
    }

    /// Suspicions of a living host to be foreseen in a day: the chance of one a beat, times its beats.
    fn foreseen(&self, h: &Host) -> Option<f64> {
        let interval = h.learned.interval();
        if interval.is_zero() || h.frozen().is_some() {
            return None;
        }
        let chance = f64::from(h.learned.chance(&h.histograms, self.siblings.prior(h.group)));
        Some(chance * 86_400.0 / interval.as_secs_f64())
    }

    fn knobs_why(&self, h: &Host) -> KnobsWhy {
        let knobs = &self.knobs[usize::from(h.knobs)];
        KnobsWhy {
            name: knobs.name.clone(),
            false_suspicion_cost_s: f64::from(knobs.patience.cost_s),
            max_mistakes_per_host_day: knobs.target.as_ref().map(|t| t.per_host_day()),
            timeout_min_ms: knobs.patience.min().as_millis() as u64,
            timeout_max_ms: knobs.patience.max().as_millis() as u64,
            frozen_ms: h.frozen().map(|f| f.as_millis() as u64),
        }
    }
}

fn overdue_bins(h: &Host, context: Context) -> Vec<OverdueBin> {
    let bin = |(above, count): (Duration, f32)| OverdueBin {
        above_ms: above.as_secs_f64() * 1e3,
        count: f64::from(count),
    };
    h.learned.histogram(&h.histograms, context).map(bin).collect()
}
