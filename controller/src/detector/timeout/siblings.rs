//! What hosts teach each other: how overdue beats are in a group of hosts, and in the whole fleet.
//!
//! One formula draws a frequency towards what is known above it, at three levels. With n beats of which
//! `tail` were overdue beyond an edge, and π the chance of that one level up,
//!
//! ```text
//! P(x > edge) = (tail + a) / (n + a/π)
//! ```
//!
//! is the mean of a Gamma distribution with mean π and weight a (in overdue beats) after seeing them: a
//! level that has seen little says what the level above says, one that has seen much says what it saw. A
//! host is drawn towards its group with weight [`HOST_WEIGHT`], a group towards the fleet and the fleet
//! towards the built-in table with weight [`POOL_WEIGHT`].
//!
//! Cost: two additions a beat; a pool's table is computed anew every `REFRESH_EVERY` of its beats.

use super::{BINS, Context, EDGE_MILLI, EDGES};

/// Weight of the group's frequency against a host's own, in overdue beats.
pub const HOST_WEIGHT: f32 = 0.5;
/// Weight of the fleet's frequency against a group's, and of the built-in one against the fleet's.
pub const POOL_WEIGHT: f64 = 3.0;
/// Most groups that learn apart; hosts of further ones are in the one without a name.
pub const GROUPS_MAX: usize = 64;
/// Beats of a pool between two refreshes of its table (more often in the beginning).
const REFRESH_EVERY: u64 = 4_096;
/// Beats after which a pool's past weighs half.
const HALVE_AT: u64 = 100_000_000;

/// Which hosts learn together; 0 is the group without a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupId(pub u8);

/// How likely a beat is to be overdue beyond each edge, before a host has shown its own ways.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prior {
    beyond: [[f32; EDGES]; 2],
    /// [`HOST_WEIGHT`] through each of these.
    weight: [[f32; EDGES]; 2],
}

impl Prior {
    /// The start value, for a fleet of which nothing is known: hardly a beat is overdue, and a missing one
    /// is one of ten thousand; a disturbed host's are three times as likely to be.
    pub fn built_in() -> Self {
        let calm = EDGE_MILLI.map(|milli| {
            let edge = milli as f32 / 1e3;
            if edge < 1.12 {
                (3e-3 * (0.1 / edge).powf(0.3)).min(0.5)
            } else {
                1e-4 * (1.12 / edge).powi(2)
            }
        });
        Self::new([calm, calm.map(|p| (3.0 * p).min(0.5))])
    }

    fn new(beyond: [[f32; EDGES]; 2]) -> Self {
        Self { beyond, weight: beyond.map(|of| of.map(|p| HOST_WEIGHT / p)) }
    }

    /// Chance that a beat of a host is overdue beyond edge j, if `tail` of its n (decayed) beats were.
    pub fn chance(&self, context: Context, j: usize, tail: f32, n: f32) -> f32 {
        (tail + HOST_WEIGHT) / (n + self.weight[context as usize][j])
    }

    /// The same for every edge at once.
    pub(super) fn chances(&self, context: Context, tails: &[f32; EDGES], n: f32) -> [f32; EDGES] {
        let mut chances = [0.0; EDGES];
        let of = tails.iter().zip(&self.weight[context as usize]);
        for (chance, (tail, weight)) in chances.iter_mut().zip(of) {
            *chance = (tail + HOST_WEIGHT) / (n + weight);
        }
        chances
    }

    /// Chance that a beat is overdue beyond edge j.
    pub fn beyond(&self, context: Context, j: usize) -> f32 {
        self.beyond[context as usize][j]
    }
}

/// Beats of many hosts together.
#[derive(Clone, Debug)]
struct Pool {
    beats: [u64; 2],
    /// At how many there is more to do than to count.
    next: [u64; 2],
    bins: [[u64; BINS]; 2],
    prior: Prior,
}

/// How many beats after `n` a pool's table is next computed anew, or its counts are halved: at every power of
/// two first.
fn next_after(n: u64) -> u64 {
    let next = if n < REFRESH_EVERY {
        (n + 1).next_power_of_two()
    } else {
        (n / REFRESH_EVERY + 1) * REFRESH_EVERY
    };
    next.min(HALVE_AT)
}

impl Pool {
    fn new() -> Self {
        let next = [next_after(0); 2];
        Self { beats: [0; 2], next, bins: [[0; BINS]; 2], prior: Prior::built_in() }
    }

    /// Counts a beat. `true`: its table should be computed anew.
    #[inline]
    fn learn(&mut self, context: Context, bin: Option<usize>) -> bool {
        let at = context as usize;
        self.beats[at] += 1;
        if let Some(j) = bin {
            self.bins[at][j] += 1;
        }
        let is_due = self.beats[at] >= self.next[at];
        if is_due {
            self.go_on(at);
        }
        is_due
    }

    #[cold]
    fn go_on(&mut self, at: usize) {
        if self.beats[at] >= HALVE_AT {
            self.halve();
        }
        self.next = self.beats.map(next_after);
    }

    fn halve(&mut self) {
        self.beats.iter_mut().for_each(|n| *n /= 2);
        self.bins.iter_mut().flatten().for_each(|n| *n /= 2);
    }

    #[cold]
    fn refresh(&mut self, above: &Prior) {
        let mut beyond = self.prior.beyond;
        for (context, beyond) in beyond.iter_mut().enumerate() {
            let n = self.beats[context] as f64;
            let mut tail: u64 = self.bins[context].iter().sum();
            for (j, beyond) in beyond.iter_mut().enumerate() {
                let pi = f64::from(above.beyond[context][j]);
                let p = (tail as f64 + POOL_WEIGHT) / (n + POOL_WEIGHT / pi);
                *beyond = p.clamp(1e-12, 0.5) as f32;
                tail -= self.bins[context].get(j).copied().unwrap_or(0);
            }
        }
        self.prior = Prior::new(beyond);
    }
}

/// The fleet and its groups.
#[derive(Clone, Debug)]
pub struct Siblings {
    fleet: Pool,
    groups: Vec<Pool>,
}

impl Default for Siblings {
    fn default() -> Self {
        Self { fleet: Pool::new(), groups: vec![Pool::new()] }
    }
}

impl Siblings {
    /// Makes room for one more group that starts with what the fleet knows; the group without a name if
    /// there are [`GROUPS_MAX`].
    pub fn add_group(&mut self) -> GroupId {
        if self.groups.len() >= GROUPS_MAX {
            return GroupId(0);
        }
        let mut pool = Pool::new();
        pool.refresh(&self.fleet.prior);
        self.groups.push(pool);
        GroupId((self.groups.len() - 1) as u8)
    }

    /// What a host of this group starts with.
    pub fn prior(&self, group: GroupId) -> &Prior {
        &self.groups[usize::from(group.0)].prior
    }

    /// What the fleet does.
    pub fn fleet(&self) -> &Prior {
        &self.fleet.prior
    }

    /// Beats that a group has learned from.
    pub fn beats(&self, group: GroupId) -> u64 {
        self.groups[usize::from(group.0)].beats.iter().sum()
    }

    /// Counts a beat of a host of this group.
    #[inline]
    pub fn learn(&mut self, group: GroupId, context: Context, bin: Option<usize>) {
        if self.fleet.learn(context, bin) {
            self.fleet.refresh(&Prior::built_in());
        }
        let pool = &mut self.groups[usize::from(group.0)];
        if pool.learn(context, bin) {
            pool.refresh(&self.fleet.prior);
        }
    }
}
