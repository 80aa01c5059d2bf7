//! How long one host may be overdue: a margin learned from how overdue its beats were.
//!
//! A beat says when it was sent (on the agent's own monotonic clock) and when the next will be. With
//! `o = arrival − sent` (clock offset plus delay; only its changes matter), S a slow average of o and
//! `B = max(o, S)`, the next beat is expected at `E = sent + gap + B`. Its residual `x = arrival − E` is
//! how *overdue* it was. Sender jitter, clock skew and the plain delay cancel out; lateness of the host,
//! queueing on the path and lost beats (x ≈ lost · gap) remain, and that is what a timeout is about.
//!
//! The host's learned state is a decayed histogram of x in logarithmic counters of one byte. The margin
//! M minimises `M + C · P(x > M)`: seconds of detection time against false suspicions, where C says how
//! many seconds one false suspicion per beat is worth. The probability is the host's own frequency drawn
//! towards that of its [`siblings`] (empirical Bayes), so that a new host starts with what they know.
//!
//! There are two histograms. A host is *disturbed* while one of its last [`DISTURBED_FOR`] beats was
//! among its most overdue [`UNUSUAL_SHARE`], or missing: trouble comes in bursts, and what is normal
//! within one would be a false alarm to a calm host and needless patience with it. Each context learns
//! and waits by itself. This is also how a host under load is treated: pressure that makes beats late
//! widens its margin within a beat, as far as it proved to need when it was late before, and sixteen
//! calm beats later the margin is short again.
//!
//! Source: the project's own detector study, whose fast and slow deviations the quantile replaced, as it
//! is better on measured delays, smaller, and easier to explain; B as in 2W-FD (Tomsic et al., IPDPS
//! 2015), the expectation as in NFD-E (Chen, Toueg, Aguilera, IEEE ToC 51(5), 2002) with the sender's
//! schedule taken from the beat. Measured by `cargo xtask eval`; the tables are in `controller/README.md`.
//!
//! Cost: a beat that is not overdue by 10 ms costs some integer operations; the margins are computed anew
//! at every 64th beat on average, and at once after a beat that was missing. 57 bytes a host, and 8 for
//! the expectation; those of them that stand in [`Histograms`] only a beat that is overdue needs, and
//! whoever computes margins.

use std::time::Duration;

use heartwatch_common::time::{Instant, nanos};

mod counter;
pub mod siblings;
pub mod target;
#[cfg(test)]
mod tests;

pub use siblings::{GroupId, Prior, Siblings};

/// Number of histogram edges, which are the margins to choose from.
pub const EDGES: usize = 19;
/// Edges of the histogram in thousandths: the first five of a second (of the interval, if that is
/// shorter), the others of the interval.
const EDGE_MILLI: [u32; EDGES] = [
    10, 25, 60, 150, 350, 750, 1_120, 1_400, 2_220, 2_700, 3_400, 4_400, 5_600, 7_000, 9_000,
    11_500, 15_000, 20_000, 30_000,
];
/// Edges below this index are in seconds.
const EDGES_IN_SECONDS: usize = 5;
/// Overdue times beyond this are outages, not behaviour to be patient with: not learned.
pub const LEARN_MAX: Duration = Duration::from_secs(30);
/// Bins: nothing beyond the last edge is learned.
const BINS: usize = EDGES - 1;
/// First bin of the disturbed context; a disturbed host gets no shorter margin.
const DISTURBED_FIRST: usize = 3;
/// The margins are computed anew when these bits of a beat's dice are all zero: every 64 beats.
const CHOOSE_MASK: u32 = 63;
/// The histograms decay when these bits of a beat's dice are all zero: every 1,024 beats.
const DECAY_MASK: u32 = 1_023;
const _: () =
    assert!(DECAY_MASK & CHOOSE_MASK == CHOOSE_MASK, "whenever they decay, margins are chosen");
/// Memory of the histograms in beats: 30 days of one a second.
const MEMORY_BEATS: f32 = 30.0 * 86_400.0;
/// A host is disturbed for so many beats after an unusual one.
pub const DISTURBED_FOR: u8 = 16;
/// A beat is unusual if at most this share of the host's beats are as overdue.
pub const UNUSUAL_SHARE: f32 = 0.05;
/// An offset that falls by more than this has a new cause, and is taken as it is.
const OFFSET_FALL_MAX_NS: i64 = 1_000_000_000;
/// A bin whose (decayed) count is less than this is empty.
const SEEN_MIN: f32 = 0.5;
/// Beats below which a margin is mostly the siblings'.
const OWN_BEATS_MIN: u32 = 1_000;

/// Whether a host's beats have lately come as usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Context {
    /// As usual.
    Calm = 0,
    /// One of the last [`DISTURBED_FOR`] was missing, or unusually overdue.
    Disturbed = 1,
}

impl Context {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Calm, Self::Disturbed];

    /// As it stands in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Disturbed => "disturbed",
        }
    }

    const fn first(self) -> usize {
        match self {
            Self::Calm => 0,
            Self::Disturbed => DISTURBED_FIRST,
        }
    }
}

/// Edge j in microseconds for beats that come once per `interval_us`.
#[inline]
fn edge_us(j: usize, interval_us: u32) -> u64 {
    let scale = if j < EDGES_IN_SECONDS { interval_us.min(1_000_000) } else { interval_us };
    u64::from(EDGE_MILLI[j]) * u64::from(scale) / 1_000
}

/// All edges in seconds, near enough to weigh them against each other.
#[inline]
fn edges_s(interval_us: u32) -> [f32; EDGES] {
    const EDGE: [f32; EDGES] = {
        let (mut edges, mut j) = ([0.0; EDGES], 0);
        while j < EDGES {
            edges[j] = EDGE_MILLI[j] as f32 / 1e3;
            j += 1;
        }
        edges
    };
    let interval_s = interval_us as f32 / 1e6;
    let mut edges = EDGE.map(|edge| edge * interval_s);
    for (edge, own) in edges.iter_mut().zip(&EDGE).take(EDGES_IN_SECONDS) {
        *edge = own * interval_s.min(1.0);
    }
    edges
}

/// The bin of an overdue time; `None`: on time.
#[inline]
fn bin_of(overdue_us: u64, interval_us: u32) -> Option<usize> {
    if overdue_us < edge_us(0, interval_us) {
        return None;
    }
    late_bin_of(overdue_us, interval_us)
}

#[cold]
fn late_bin_of(overdue_us: u64, interval_us: u32) -> Option<usize> {
    (0..BINS).rev().find(|j| overdue_us >= edge_us(*j, interval_us))
}

/// What decides margins, beside what was learned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patience {
    /// C: seconds of later detection that one false suspicion per beat is worth.
    pub cost_s: f32,
    /// Least and greatest margin, nanoseconds: every beat is held to them.
    min_ns: u64,
    max_ns: u64,
}

impl Patience {
    /// With the least and the greatest margin (up to 584 years).
    pub const fn new(cost_s: f32, min: Duration, max: Duration) -> Self {
        Self { cost_s, min_ns: nanos(min), max_ns: nanos(max) }
    }

    /// Least margin.
    pub const fn min(&self) -> Duration {
        Duration::from_nanos(self.min_ns)
    }

    /// Greatest margin.
    pub const fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns)
    }
}

/// What set a margin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarginSource {
    /// The host's own beats.
    Learned,
    /// Mostly its siblings': it has beaten too little yet.
    Prior,
    /// The configured minimum.
    Floor,
    /// The configured maximum.
    Ceiling,
    /// An operator.
    Frozen,
}

impl MarginSource {
    /// As it stands in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Learned => "learned",
            Self::Prior => "prior",
            Self::Floor => "floor",
            Self::Ceiling => "ceiling",
            Self::Frozen => "frozen",
        }
    }
}

/// A number below 2²⁴ in three bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct U24([u8; 3]);

impl U24 {
    const MAX: u32 = 0xFF_FFFF;

    #[inline]
    pub(crate) fn get(self) -> u32 {
        let [a, b, c] = self.0;
        u32::from_le_bytes([a, b, c, 0])
    }

    #[inline]
    pub(crate) fn set(&mut self, value: u32) {
        let [a, b, c, _] = value.min(Self::MAX).to_le_bytes();
        self.0 = [a, b, c];
    }
}

/// What a host's beats have taught so far, but for its [`Histograms`], which stand apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learned {
    /// S: slow average of `arrival − sent`, nanoseconds; meaningless unless `is_based`.
    slow_ns: i64,
    /// Slow average of announced gaps, microseconds; 0 = none yet.
    interval_us: u32,
    /// Beats learned from in each context, decayed.
    beats: [u32; 2],
    /// In each context, the index of the edge that is the margin.
    margins: [u8; 2],
    /// Index of the edge beyond which a beat is unusual.
    unusual: u8,
    /// Lowest bits: beats for which it stays disturbed. Highest bit: `slow_ns` counts.
    flags: u8,
}

/// How overdue a host's beats were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histograms {
    /// Overdue times of a calm host: bin j counts those between edge j and edge j + 1.
    calm: [u8; BINS],
    /// Those of a disturbed one, from bin [`DISTURBED_FIRST`] on.
    disturbed: [u8; BINS - DISTURBED_FIRST],
}

const _: () = assert!(
    size_of::<Learned>() + size_of::<Histograms>() + size_of::<Instant>() <= 72,
    "state per host"
);

impl Default for Histograms {
    fn default() -> Self {
        Self { calm: [0; BINS], disturbed: [0; BINS - DISTURBED_FIRST] }
    }
}

impl Histograms {
    #[cold]
    fn count(&mut self, context: Context, bin: usize, dice: u16) {
        let counter = match context {
            Context::Calm => self.calm.get_mut(bin),
            Context::Disturbed => {
                bin.checked_sub(DISTURBED_FIRST).and_then(|i| self.disturbed.get_mut(i))
            }
        };
        if let Some(counter) = counter {
            *counter = counter::counting(counter::value(*counter) + 1.0, dice);
        }
    }

    fn counts(&self, context: Context) -> &[u8] {
        match context {
            Context::Calm => &self.calm,
            Context::Disturbed => &self.disturbed,
        }
    }

    #[inline]
    fn is_empty(&self, context: Context) -> bool {
        match context {
            Context::Calm => self.calm == [0; BINS],
            Context::Disturbed => self.disturbed == [0; BINS - DISTURBED_FIRST],
        }
    }

    fn decay(&mut self, keep: f32, dice: u32) {
        for (j, bin) in self.calm.iter_mut().chain(&mut self.disturbed).enumerate() {
            // One draw serves all bins: multiply it apart so that they do not move together.
            let mixed = dice.wrapping_mul(0x9E37_79B9).rotate_left(j as u32) >> 16;
            *bin = counter::counting(counter::value(*bin) * keep, mixed as u16);
        }
    }

    /// How many (decayed) beats of a context were overdue beyond each edge. Below the first edge of the
    /// context: all that it counts.
    fn tails(&self, context: Context) -> [f32; EDGES] {
        let (mut tails, mut tail, first) = ([0.0; EDGES], 0.0, context.first());
        // As those of most hosts are, of new ones above all, whose margins are chosen most often.
        if self.is_empty(context) {
            return tails;
        }
        let values = counter::values();
        for (tail_of, count) in tails[first..BINS].iter_mut().zip(self.counts(context)).rev() {
            tail += values[usize::from(*count)];
            *tail_of = tail;
        }
        tails[..first].fill(tail);
        tails
    }
}

/// Bit of [`Learned::flags`].
const BASED: u8 = 0x80;

impl Default for Learned {
    fn default() -> Self {
        Self {
            slow_ns: 0,
            interval_us: 0,
            beats: [0; 2],
            margins: [(EDGES - 1) as u8; 2],
            unusual: (EDGES - 1) as u8,
            flags: 0,
        }
    }
}

/// `arrival − sent` in nanoseconds: a clock offset plus a delay, of which only changes matter.
#[inline]
pub fn offset_ns(arrival: Instant, sent: Instant) -> i64 {
    arrival.0.wrapping_sub(sent.0) as i64
}

/// Whether a host with so many beats learns so much from one that its margin is chosen anew: each of the
/// first sixteen, and every fourth until [`CHOOSE_MASK`].
#[inline]
fn is_early(beats: u32) -> bool {
    beats <= CHOOSE_MASK && (beats <= 16 || beats.is_multiple_of(4))
}

impl Learned {
    /// The offset that beats of this boot usually have; `None` before the first.
    #[inline]
    pub fn baseline_ns(&self) -> Option<i64> {
        (self.flags & BASED != 0).then_some(self.slow_ns)
    }

    /// Forgets the offset, keeps the habits: the agent's clock starts anew (new boot, stepped clock).
    pub fn rebase(&mut self) {
        self.flags &= !BASED;
    }

    /// Goes on with an offset that was learned before, nanoseconds; `None`: with none.
    pub fn base(&mut self, offset_ns: Option<i64>) {
        self.rebase();
        if let Some(offset_ns) = offset_ns {
            self.slow_ns = offset_ns;
            self.flags |= BASED;
        }
    }

    /// Slow average of announced gaps; zero before the first beat.
    pub fn interval(&self) -> Duration {
        Duration::from_micros(u64::from(self.interval_us))
    }

    /// Whether its beats have lately come as usual.
    #[inline]
    pub fn context(&self) -> Context {
        if self.flags & !BASED == 0 { Context::Calm } else { Context::Disturbed }
    }

    /// Takes the offset of a proof of life and says when the next beat is expected to arrive.
    #[inline]
    pub fn expect(&mut self, arrival: Instant, sent: Instant, gap_us: u32) -> Instant {
        let offset = offset_ns(arrival, sent);
        // If our own clock stood still for a while (a suspended machine), following slowly would make
        // every deadline of the fleet late for minutes.
        let based = self.flags & BASED != 0;
        if based && self.slow_ns.saturating_sub(offset) < OFFSET_FALL_MAX_NS {
            self.slow_ns = self.slow_ns.wrapping_add(offset.wrapping_sub(self.slow_ns) >> 6);
        } else {
            self.slow_ns = offset;
            self.flags |= BASED;
        }
        self.interval_us = match self.interval_us {
            0 => gap_us,
            old => (i64::from(old) + ((i64::from(gap_us) - i64::from(old)) >> 6)) as u32,
        };
        // sent + gap + max(offset, slow) = arrival + gap + max(0, slow − offset)
        let usual = self.slow_ns.saturating_sub(offset).max(0);
        let gap_ns = u64::from(gap_us) * 1_000;
        Instant(arrival.0.saturating_add(gap_ns + usual.unsigned_abs()))
    }

    /// Learns that a beat was overdue by `overdue_ns` (negative: early). `dice` is uniformly random.
    #[inline]
    pub fn learn(
        &mut self,
        histograms: &mut Histograms,
        overdue_ns: i64,
        patience: &Patience,
        siblings: &mut Siblings,
        group: GroupId,
        dice: u32,
    ) {
        let context = self.context();
        let beats = &mut self.beats[context as usize];
        *beats = beats.saturating_add(1);
        let overdue_us = overdue_ns.max(0).unsigned_abs() / 1_000;
        // What is less overdue than the first edge is in no bin, nor missing, nor unusual.
        let (mut bin, mut missing, mut unusual) = (None, false, false);
        if overdue_us >= edge_us(0, self.interval_us) {
            bin = bin_of(overdue_us, self.interval_us);
            missing = overdue_us > u64::from(self.interval_us / 2);
            unusual = overdue_us >= edge_us(usize::from(self.unusual), self.interval_us);
        }
        if let Some(bin) = bin {
            histograms.count(context, bin, dice as u16);
        }
        siblings.learn(group, context, bin);
        if dice >> 16 & CHOOSE_MASK == 0 || missing || is_early(self.beats()) {
            if dice >> 16 & DECAY_MASK == 0 {
                self.decay(histograms, dice);
            }
            self.choose(histograms, patience, siblings.prior(group));
            unusual = overdue_us >= edge_us(usize::from(self.unusual), self.interval_us);
        }
        let left = (self.flags & !BASED).saturating_sub(1);
        let disturbed_for = if missing || unusual { DISTURBED_FOR } else { left };
        self.flags = self.flags & BASED | disturbed_for;
    }

    #[cold]
    fn decay(&mut self, histograms: &mut Histograms, dice: u32) {
        let keep = 1.0 - (DECAY_MASK + 1) as f32 / MEMORY_BEATS;
        for beats in &mut self.beats {
            *beats = (*beats as f32 * keep).round() as u32;
        }
        histograms.decay(keep, dice);
    }

    /// Chooses, in each context, the edge that costs least as the margin; of two that cost the same the
    /// shorter one.
    #[inline(never)]
    pub fn choose(&mut self, histograms: &Histograms, patience: &Patience, prior: &Prior) {
        let tails = Context::ALL.map(|context| histograms.tails(context));
        let edges_s = edges_s(self.interval_us);
        for context in Context::ALL {
            let n = self.beats[context as usize] as f32;
            // All costs first, with nothing to decide in between: the divisions then run side by side.
            let mut costs = prior.chances(context, &tails[context as usize], n);
            for (cost, edge_s) in costs.iter_mut().zip(&edges_s) {
                *cost = edge_s + patience.cost_s * *cost;
            }
            let own = &costs[context.first()..];
            let least = own.iter().fold(f32::INFINITY, |a, b| if *b < a { *b } else { a });
            let best = own.iter().position(|cost| *cost == least).unwrap_or(own.len() - 1);
            self.margins[context as usize] = (context.first() + best) as u8;
        }
        let most = UNUSUAL_SHARE * self.beats() as f32;
        let unusual = (0..EDGES).find(|j| tails[0][*j] + tails[1][*j] <= most);
        self.unusual = unusual.unwrap_or(EDGES - 1) as u8;
    }

    /// How much later than expected a beat may come, and what says so.
    pub fn margin(&self, patience: &Patience) -> (Duration, MarginSource) {
        let raw = self.chosen(self.context());
        if raw < patience.min() {
            (patience.min(), MarginSource::Floor)
        } else if raw > patience.max() {
            (patience.max(), MarginSource::Ceiling)
        } else if self.beats() < OWN_BEATS_MIN {
            (raw, MarginSource::Prior)
        } else {
            (raw, MarginSource::Learned)
        }
    }

    /// [`Self::margin`] alone, nanoseconds.
    #[inline]
    pub fn margin_ns(&self, patience: &Patience) -> u64 {
        let j = usize::from(self.margins[self.context() as usize]);
        (edge_us(j, self.interval_us) * 1_000).min(patience.max_ns).max(patience.min_ns)
    }

    /// The margin that costs least in a context, before the operator's bounds.
    pub fn chosen(&self, context: Context) -> Duration {
        let j = usize::from(self.margins[context as usize]);
        Duration::from_micros(edge_us(j, self.interval_us))
    }

    /// Chance that a beat in the present context is overdue beyond its chosen margin.
    pub fn chance(&self, histograms: &Histograms, prior: &Prior) -> f32 {
        let context = self.context();
        let j = usize::from(self.margins[context as usize]);
        let n = self.beats[context as usize] as f32;
        prior.chance(context, j, histograms.tails(context)[j], n)
    }

    /// The longest overdue time from which the host has come back, to the edge above; it is forgotten
    /// after about three weeks. Zero: hardly any.
    pub fn longest(&self, histograms: &Histograms) -> Duration {
        let seen = |context: Context| {
            let last =
                histograms.counts(context).iter().rposition(|c| counter::value(*c) >= SEEN_MIN)?;
            Some(context.first() + last + 1)
        };
        let edge = seen(Context::Calm).max(seen(Context::Disturbed));
        edge.map_or(Duration::ZERO, |j| Duration::from_micros(edge_us(j, self.interval_us)))
    }

    /// For how long after its expected beat silence alone is no proof of its death: twice the longest from
    /// which it has come back; three times if that was more than one beat, for whoever loses beats in
    /// bursts loses bursts in rows.
    pub fn given_time(&self, histograms: &Histograms) -> Duration {
        let longest = self.longest(histograms);
        longest * if longest > self.interval() * 2 { 3 } else { 2 }
    }

    /// Beats learned from, decayed.
    #[inline]
    pub fn beats(&self) -> u32 {
        self.beats[0].saturating_add(self.beats[1])
    }

    /// The histogram of a context: lower edge and decayed count of each bin.
    pub fn histogram<'a>(
        &'a self,
        histograms: &'a Histograms,
        context: Context,
    ) -> impl Iterator<Item = (Duration, f32)> + 'a {
        let first = context.first();
        histograms.counts(context).iter().enumerate().map(move |(i, c)| {
            (Duration::from_micros(edge_us(first + i, self.interval_us)), counter::value(*c))
        })
    }
}
