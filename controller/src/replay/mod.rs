//! What a setting would have done: a recording, run through the production detector in virtual time.
//!
//! All hosts of a recording are hosts of one [`Detector`], in one group, so they teach each other as they
//! would in one shard. Arrivals come in their order, and between them the detector judges at every moment
//! at which it has something to judge, as if nothing ever waited to be read. Probes get no answer: what
//! counts as a mistake (λ_M) is a suspicion of a host that came back in the same life, as a probe's answer
//! can correct it in production but not undo the suspicion.
//!
//! Margins are judged here, not doubt: a cut of the controller's own link, or its own losses, which excuse
//! hosts in production, show as mistakes of all hosts at once.
//!
//! Detection times are measured as [`measure`] says, from the deadline that stood after each beat.
//! Nothing is counted across the end of a life or a hole in the recording.
//!
//! Cost: half a microsecond a beat; memory as [`read`] bounds it, and a few hundred bytes a host.

pub mod measure;
pub mod read;
pub mod record;
pub mod settings;
pub mod svg;
pub mod table;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::Duration;

use heartwatch_common::id::{Boot, Epoch, Generation, HostId, Seq};
use heartwatch_common::time::Instant;
use heartwatch_common::wire::Stamp;

use crate::detector::host::Known;
use crate::detector::knobs::{AllKnobs, Knobs, Profile};
use crate::detector::{Detector, Judged, Proof, Settings};
use crate::event::State;
use crate::view::LiveId;
use measure::Tally;
use read::{Clocks, HostLog, LOST};

/// Virtual time of the earliest arrival: nothing is sent before the origin of time.
const START_US: u64 = 2 * 3_600_000_000;
/// Between two looks of the detector at what it can't settle yet.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Beats between two words about progress.
pub const PROGRESS_EVERY: u64 = 1 << 16;
/// Unless told otherwise, this much of each host's beginning is not measured…
pub const SKIP_DEFAULT: Duration = Duration::from_secs(3_600);
/// …or this part of its recording, if that is less.
const SKIP_SHARE: u64 = 10;

/// What is to be tried.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The detector's other settings.
    pub settings: Settings,
    /// The margin's knobs; the same for all, for recordings have no labels.
    pub knobs: Knobs,
}

/// How it is to be tried.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The detector's dice.
    pub seed: u64,
    /// How much of each host's beginning is not measured; `None`: [`SKIP_DEFAULT`], or a tenth.
    pub skip: Option<Duration>,
}

/// What became of one host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Detection times and mistakes.
    pub tally: Tally,
    /// Beats sent while it was measured.
    pub beats: u64,
    /// Those that did not arrive, or too late to be believed.
    pub lost: u64,
}

impl Outcome {
    /// Adds another host's.
    pub fn add(&mut self, other: &Self) {
        self.tally.add(&other.tally, 1.0);
        self.beats += other.beats;
        self.lost += other.lost;
    }
}

/// A host on its way through its recording.
struct Walk<'a> {
    log: &'a HostLog,
    offsets: Vec<i64>,
    /// What is added to times of the recording to have virtual ones.
    shift_us: i64,
    slot: u32,
    /// The next beat.
    next: usize,
    /// Index into the log's lives of the next one.
    life: usize,
    deadline: Option<Instant>,
    /// Beats sent before this, on the receiver's clock in virtual µs, are not measured.
    measure_from: i64,
    outcome: Outcome,
}

impl Walk<'_> {
    /// When a beat was sent on the receiver's clock, µs of virtual time.
    fn sent(&self, beat: usize) -> i64 {
        let offset = self.offsets[HostLog::block(beat)];
        self.log.beats[beat].sent_us as i64 + offset + self.shift_us
    }

    /// When the beat after this one was sent, or would have been.
    fn next_sent(&self, beat: usize) -> i64 {
        let sent = self.sent(beat);
        let ends = self.log.lives.get(self.life).copied().unwrap_or(self.log.beats.len());
        if beat + 1 < ends {
            self.sent(beat + 1).max(sent)
        } else {
            sent + i64::from(self.log.beats[beat].gap_us)
        }
    }

    /// Moves past lost beats to the next that arrived, and answers when; `None` at the end.
    fn seek(&mut self) -> Option<u64> {
        while let Some(beat) = self.log.beats.get(self.next) {
            if self.begins_life() {
                self.life += 1;
                self.deadline = None;
            }
            if beat.arrived_us != LOST {
                return Some(beat.arrived_us.wrapping_add_signed(self.shift_us));
            }
            self.measure(self.next);
            self.next += 1;
        }
        None
    }

    fn begins_life(&self) -> bool {
        self.log.lives.get(self.life) == Some(&self.next)
    }

    /// Counts the time after a beat, with the deadline that stands.
    fn measure(&mut self, beat: usize) {
        let sent = self.sent(beat);
        if sent < self.measure_from {
            return;
        }
        self.outcome.beats += 1;
        self.outcome.lost += u64::from(self.log.beats[beat].arrived_us == LOST);
        let Some(deadline) = self.deadline else { return };
        // Relative to the beat, so that no precision is lost far from the origin.
        let next = (self.next_sent(beat) - sent) as f64 / 1e6;
        let deadline = (deadline.0 as i128 - i128::from(sent) * 1_000) as f64 / 1e9;
        // A draw that differs from beat to beat and from the jitter: the golden ratio's steps.
        let draw = (beat as f64 * 0.618_033_988_749_895).fract();
        self.outcome.tally.gap(0.0, next, deadline, draw);
    }
}

/// Runs a recording through a detector with these settings; answers by host, in the logs' order. Every
/// [`PROGRESS_EVERY`] beats it tells how many have been.
pub fn replay(
    logs: &[HostLog],
    setting: &Setting,
    options: &Options,
    progress: &mut dyn FnMut(u64),
) -> Vec<Outcome> {
    let (outcomes, _) = run(logs, setting, options, progress);
    outcomes
}

/// As [`replay`]; answers also which beats ended a suspicion: host, life and number.
fn run(
    logs: &[HostLog],
    setting: &Setting,
    options: &Options,
    progress: &mut dyn FnMut(u64),
) -> (Vec<Outcome>, Vec<(usize, usize, u32)>) {
    let knobs = AllKnobs {
        default: setting.knobs,
        overrides: Vec::new(),
        group_labels: Vec::new(),
        classes: Vec::new(),
    };
    let start = Instant::from_micros(START_US) - Duration::from_secs(1);
    let mut detector = Detector::new(setting.settings, &knobs, options.seed, start);
    let mut walks = Vec::new();
    let mut queue = BinaryHeap::new();
    for (i, log) in logs.iter().enumerate() {
        let Some(slot) = detector.register(stranger(i), start) else { break };
        let mut walk = Walk {
            log,
            offsets: log.offsets(),
            shift_us: shift_us(logs, log.clocks),
            slot,
            next: 0,
            life: 0,
            deadline: None,
            measure_from: i64::MAX,
            outcome: Outcome::default(),
        };
        walk.measure_from = measure_from(&walk, options.skip);
        queue.extend(walk.seek().map(|at| Reverse((at, i))));
        walks.push(walk);
    }
    let (mut ended, mut turns, mut judged, mut done) = (Vec::new(), Vec::new(), Vec::new(), 0u64);
    let mut now = start;
    while let Some(Reverse((at_us, i))) = queue.pop() {
        let at = Instant::from_micros(at_us).max(now);
        judge(&mut detector, &mut now, at, &mut judged);
        let walk = &mut walks[i];
        let beat = &walk.log.beats[walk.next];
        let stamp = Stamp {
            boot: Boot(walk.life as u32 + 1),
            seq: Seq(beat.seq),
            sent: Instant::from_micros(beat.sent_us),
            gap: Duration::from_micros(u64::from(beat.gap_us)),
            epoch: Epoch(1),
        };
        let from = SocketAddr::from(([127, 0, 0, 1], 1));
        let proof = Proof {
            stamp: &stamp,
            arrival: at,
            from,
            late_ms: 0,
            load: None,
            asked: false,
            rebase: false,
        };
        let observed = detector.observe(walk.slot, &proof, &mut turns);
        turns.clear();
        if let (Some(_), Some(deadline)) = (observed.mistake, walk.deadline) {
            ended.push((i, walk.life, beat.seq));
            if walk.sent(walk.next) >= walk.measure_from {
                walk.outcome.tally.mistake(at.since(deadline).as_secs_f64());
            }
        }
        walk.deadline = Some(detector.deadline(walk.slot));
        walk.measure(walk.next);
        walk.next += 1;
        queue.extend(walk.seek().map(|at| Reverse((at, i))));
        done += 1;
        if done.is_multiple_of(PROGRESS_EVERY) {
            progress(done);
        }
    }
    (walks.into_iter().map(|w| w.outcome).collect(), ended)
}

/// Judges at each moment until just before `until` at which there is something to judge.
fn judge(detector: &mut Detector, now: &mut Instant, until: Instant, judged: &mut Vec<Judged>) {
    let before = Instant(until.0.saturating_sub(1));
    while let Some(due) = detector.next_due()
        && due <= before
        && *now < before
    {
        *now = due.max(*now + LOOK_EVERY).min(before);
        detector.judge(*now, *now, *now, judged);
        judged.clear();
    }
    *now = until.max(*now);
}

/// What to add to the times of logs of a kind so that their first arrival is at the start of virtual
/// time: delay series have clocks of their own.
fn shift_us(logs: &[HostLog], clocks: Clocks) -> i64 {
    let first = |log: &HostLog| log.beats.iter().map(|b| b.arrived_us).find(|at| *at != LOST);
    let earliest = logs.iter().filter(|log| log.clocks == clocks).filter_map(first).min();
    START_US as i64 - earliest.unwrap_or(0) as i64
}

/// From when on a host is measured.
fn measure_from(walk: &Walk<'_>, skip: Option<Duration>) -> i64 {
    let (Some(_), Some(last)) = (walk.log.beats.first(), walk.log.beats.len().checked_sub(1))
    else {
        return i64::MAX;
    };
    let (first, last) = (walk.sent(0), walk.sent(last));
    let skip = skip.unwrap_or_else(|| {
        let all = u64::try_from(last - first).unwrap_or(0);
        SKIP_DEFAULT.min(Duration::from_micros(all / SKIP_SHARE))
    });
    first.saturating_add(i64::try_from(skip.as_micros()).unwrap_or(i64::MAX))
}

fn stranger(host: usize) -> Known {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&(host as u64).to_be_bytes());
    Known {
        id: HostId(id),
        state: State::Pending,
        boot: Boot(0),
        generation: Generation(0),
        address: None,
        in_state: Duration::ZERO,
        // Nobody waits for its first beat.
        missing_reported: true,
        duplicate: false,
        agent_lost: false,
        profile: Profile::default(),
        frozen: None,
        back_in: None,
        domain: Default::default(),
        live: LiveId::NONE,
    }
}

/// Whether detection times of this log leave out the shortest delay.
pub fn leaves_out_delay(logs: &[HostLog]) -> bool {
    logs.iter().any(|log| log.clocks == Clocks::Apart)
}
