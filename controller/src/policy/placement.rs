//! Who could take over a failed host's work: pure.
//!
//! Of the hosts that equal the failed one in the labels that a rule names (its *pool*), whoever may take
//! over is ranked by load, least first: the load that its beats carry, and what was promised away of it
//! lately ([`reserve`]), so that failovers of one moment do not all land on one host. Whoever may not is
//! counted by reason ([`LeftOut`]): a failover without candidates must say why.
//!
//! A candidate shares none of the failed host's smallest failure domains: with the trees `zone, rack` and
//! `power` neither its rack nor its power. If it has a zone but no rack, the zone is the smallest that is
//! known of it, and counts. Larger domains may be shared; one that is in a storm, which it is too when all
//! of it is down, may not. The fleet may always be shared, or nobody could take over.
//!
//! # How good, and at what cost
//!
//! A pool of up to [`Depth::whole_max`] hosts is looked at whole, and the answer is the best there is. Of a
//! larger one [`LOOKED_AT_MAX`] are drawn: the best of 64 is among the least loaded 10 % with a chance of
//! 99.9 %, all of the best five with one of 78 % (binomial). If fewer than wanted may take over, further ones
//! are drawn, [`Depth::looks_max`] at most: where only one in a hundred may, that finds one in 92 of 100
//! cases. Draws differ from failure to failure, which spreads them further.
//!
//! A look reads some words of cold memory; what asks for a host's labels (domains) is asked of the best first
//! and only until enough have passed. In all some 30 µs a failover, whether the fleet has a thousand hosts or
//! a million, and at most ten times that.

use std::collections::{BTreeMap, BTreeSet};

use heartwatch_common::id::HostId;
use heartwatch_common::load::LoadSample;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::event::State;
use crate::store::HostRow;

pub mod reserve;
#[cfg(test)]
mod tests;

/// Candidates that an event names.
pub const CANDIDATES_MAX: usize = 5;
/// Candidates that somebody may ask for.
pub const CANDIDATES_ASKED_MAX: usize = 100;
/// Hosts that are drawn of a large pool in one go.
pub const LOOKED_AT_MAX: usize = 64;

/// How thoroughly a pool is looked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// A pool of so many hosts is looked at whole; of a larger one hosts are drawn.
    pub whole_max: usize,
    /// Most hosts that are drawn.
    pub looks_max: usize,
    /// Candidates that are wanted.
    pub limit: usize,
    /// Goes on when enough are found, so that all reasons are counted.
    pub thorough: bool,
}

impl Depth {
    /// For a failover: it must not cost much.
    pub const ORDER: Self =
        Self { whole_max: 256, looks_max: 256, limit: CANDIDATES_MAX, thorough: false };

    /// For somebody who asks, at most [`CANDIDATES_ASKED_MAX`].
    pub fn asked(limit: usize) -> Self {
        let limit = limit.min(CANDIDATES_ASKED_MAX);
        Self { whole_max: 2_000, looks_max: 2_000, limit, thorough: true }
    }
}

/// A host that could take over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Who.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its load as one figure, 0 (idle) to 1000; see [`LoadSample::score`].
    pub load_score: u16,
    /// What is added to that for ranking, as it was named first for others lately, in the same points.
    #[serde(default)]
    pub reserved: u16,
    /// Its load as its last beat told it.
    pub load: LoadSample,
}

impl Candidate {
    /// A host with its load, of which nothing was promised away.
    pub fn new(row: HostRow, load: LoadSample) -> Self {
        let HostRow { id, name, labels, .. } = row;
        Self { id, name, labels, load_score: load.score(), reserved: 0, load }
    }
}

/// Why a host of the pool may not take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeftOut {
    /// It was never heard, or it left.
    Absent,
    /// It is down.
    Down,
    /// It is overdue.
    Suspect,
    /// Two boots answer under its identity.
    Duplicate,
    /// It comes and goes.
    Flapping,
    /// It is being worked on.
    Maintenance,
    /// It has not told its load yet.
    LoadUnknown,
    /// Its load is above `placement.load_max`.
    Overloaded,
    /// It shares the failed host's smallest failure domain, of any tree.
    SameDomain,
    /// A failure domain of its own is in a storm.
    Storm,
}

impl LeftOut {
    /// Every reason, in the order in which they are asked.
    pub const ALL: [Self; 10] = [
        Self::Absent,
        Self::Down,
        Self::Suspect,
        Self::Duplicate,
        Self::Flapping,
        Self::Maintenance,
        Self::LoadUnknown,
        Self::Overloaded,
        Self::SameDomain,
        Self::Storm,
    ];

    /// In plain words, of several hosts.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Absent => "never heard, or gone",
            Self::Down => "down",
            Self::Suspect => "suspect",
            Self::Duplicate => "two machines under one identity",
            Self::Flapping => "come and go (flapping)",
            Self::Maintenance => "in maintenance",
            Self::LoadUnknown => "load not known yet",
            Self::Overloaded => "load above placement.load_max",
            Self::SameDomain => "in the failed host's own failure domain",
            Self::Storm => "in a failure domain that is down or in a storm",
        }
    }
}

/// What a glance at a host tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Who.
    pub id: HostId,
    /// How it stands.
    pub state: State,
    /// Two boots answer under its identity.
    pub duplicate: bool,
    /// Its load, once it has told it.
    pub load: Option<LoadSample>,
}

/// Where the hosts of a pool are found: the registry.
pub trait Pool {
    /// Shows the hosts other than `failed` that equal it in the labels named `same`, however they stand: all
    /// of them, and answers true, if there are `whole_max` or fewer; else `picks` draws by `seed`, some
    /// perhaps of one host.
    fn look(
        &self,
        failed: &HostRow,
        same: &[String],
        whole_max: usize,
        draw: Draw,
        seen: &mut dyn FnMut(Seen),
    ) -> bool;

    /// The row of one of them; `None` if it was forgotten meanwhile.
    fn row(&self, id: HostId) -> Option<HostRow>;
}

/// How hosts are drawn from a large pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// How many.
    pub picks: usize,
    /// The same seed draws the same places.
    pub seed: u64,
}

/// What is known of hosts beside their rows.
pub trait Circumstances {
    /// Whether a host comes and goes.
    fn is_flapping(&self, host: HostId) -> bool;
    /// Whether a maintenance window covers a host.
    fn is_in_maintenance(&self, host: HostId) -> bool;
    /// What was promised away of a host lately, in points of load.
    fn reserved(&self, host: HostId) -> u16;
    /// The load from which a host is left out, 0 to 1000; 1000 leaves nobody out.
    fn load_max(&self) -> u16;
    /// Labels that make failure domains, each list from the largest down.
    fn trees(&self) -> &[Vec<String>];
    /// Whether a host with these labels lies in a domain, other than the fleet, that is in a storm.
    fn is_stormy(&self, labels: &BTreeMap<String, String>) -> bool;
}

/// For whom somebody is looked for.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// Whose work it is.
    pub failed: &'a HostRow,
    /// Labels in which a candidate must equal it.
    pub same: &'a [String],
    /// What else is known.
    pub circumstances: &'a dyn Circumstances,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// Who could take over, the best first.
    pub candidates: Vec<Candidate>,
    /// Hosts of the pool that were looked at.
    pub looked_at: usize,
    /// These are all; else they were drawn from a larger pool.
    pub whole: bool,
    /// How many of them were left out, by reason. Who was not asked all, as enough were found, is not here.
    pub left_out: BTreeMap<LeftOut, u64>,
}

impl Placement {
    /// Writes it into an event's data.
    pub fn write(self, data: &mut Map<String, Value>) {
        let Self { candidates, looked_at, whole, left_out } = self;
        data.insert("candidates".to_owned(), json!(candidates));
        let how = json!({ "looked_at": looked_at, "whole": whole, "left_out": left_out });
        data.insert("placement".to_owned(), how);
    }
}

/// What a host's own row says against its taking over. Whatever a row comes to tell that matters here, such
/// as that the host is worked upon, belongs into this function.
pub fn objection(seen: &Seen) -> Option<LeftOut> {
    match seen.state {
        State::Duplicate => Some(LeftOut::Duplicate),
        State::Alive if seen.duplicate => Some(LeftOut::Duplicate),
        State::Alive => None,
        State::Suspect => Some(LeftOut::Suspect),
        State::Down => Some(LeftOut::Down),
        State::Pending | State::Left => Some(LeftOut::Absent),
    }
}

/// Whether two hosts share the smallest domain that the first is in, of any tree.
pub fn share_domain(
    trees: &[Vec<String>],
    failed: &BTreeMap<String, String>,
    other: &BTreeMap<String, String>,
) -> bool {
    trees.iter().any(|tree| {
        let mut known = tree.iter().filter(|label| failed.contains_key(*label)).peekable();
        known.peek().is_some() && known.all(|label| failed.get(label) == other.get(label))
    })
}

impl Wanted<'_> {
    /// What is asked of everybody: it costs little. `Ok` is its rank and its load.
    fn glance(&self, seen: &Seen) -> Result<(Rank, LoadSample), LeftOut> {
        if let Some(why) = objection(seen) {
            return Err(why);
        }
        if self.circumstances.is_flapping(seen.id) {
            return Err(LeftOut::Flapping);
        }
        if self.circumstances.is_in_maintenance(seen.id) {
            return Err(LeftOut::Maintenance);
        }
        let load = seen.load.ok_or(LeftOut::LoadUnknown)?;
        let score = load.score();
        if score > self.circumstances.load_max() {
            return Err(LeftOut::Overloaded);
        }
        let reserved = self.circumstances.reserved(seen.id);
        let points = u32::from(score) + u32::from(reserved);
        Ok((Rank { points, id: seen.id, reserved }, load))
    }

    /// What is asked of who would be named.
    fn judge(&self, row: &HostRow) -> Result<(), LeftOut> {
        if share_domain(self.circumstances.trees(), &self.failed.labels, &row.labels) {
            return Err(LeftOut::SameDomain);
        }
        if self.circumstances.is_stormy(&row.labels) {
            return Err(LeftOut::Storm);
        }
        Ok(())
    }
}

/// In which order hosts are named: the least loaded first, and of equals the one with the lower id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    points: u32,
    id: HostId,
    reserved: u16,
}

/// Looks for hosts that could take over. The same pool, circumstances and seed give the same answer.
pub fn find(pool: &dyn Pool, wanted: &Wanted<'_>, depth: Depth, seed: u64) -> Placement {
    let mut known = BTreeSet::new();
    let mut found: Vec<(Rank, Candidate)> = Vec::new();
    let mut placement = Placement::default();
    let mut left_out = BTreeMap::new();
    let mut looks = 0;
    while !placement.whole && looks < depth.looks_max && found.len() < depth.limit {
        let picks = match depth.thorough {
            true => depth.looks_max,
            false => LOOKED_AT_MAX.min(depth.looks_max - looks),
        };
        let draw = Draw { picks, seed: seed.wrapping_add(looks as u64) };
        looks += picks;
        let mut ranked = Vec::new();
        let mut glance = |seen: Seen| {
            if !known.insert(seen.id) {
                return;
            }
            match wanted.glance(&seen) {
                Ok(fits) => ranked.push(fits),
                Err(why) => *left_out.entry(why).or_default() += 1,
            }
        };
        placement.whole = pool.look(wanted.failed, wanted.same, depth.whole_max, draw, &mut glance);
        ranked.sort_unstable_by_key(|(rank, _)| *rank);
        let mut passed = 0;
        for (rank, load) in ranked {
            if passed >= depth.limit && !depth.thorough {
                break;
            }
            let Some(row) = pool.row(rank.id) else { continue };
            if let Err(why) = wanted.judge(&row) {
                *left_out.entry(why).or_default() += 1;
                continue;
            }
            passed += 1;
            if passed <= depth.limit {
                let reserved = rank.reserved;
                found.push((rank, Candidate { reserved, ..Candidate::new(row, load) }));
            }
        }
    }
    // Later draws may have brought better ones than earlier.
    found.sort_unstable_by_key(|(rank, _)| *rank);
    found.truncate(depth.limit);
    placement.candidates = found.into_iter().map(|(_, candidate)| candidate).collect();
    placement.looked_at = known.len();
    placement.left_out = left_out;
    placement
}
