//! System-level measurements: real controllers, real agents, real sockets, on this machine.
//!
//! Each is a function in the table [`BENCHES`]: it prints for people as it goes, repeats itself as often
//! as [`Context::runs`] says, and answers its figures, medians of the runs. `cargo xtask bench NAME` ends
//! with them as one JSON line. What a figure means stands in the module that measures it.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::machine;

mod agent;
mod bare;
mod delivery;
mod dispatcher;
mod expiry;
mod flood;
mod ingest;
mod memory;
mod million;
pub mod observe;
mod pages;
mod peers;
pub mod plot;
mod prepared;
mod restart;
pub mod sink;
pub mod stage;
mod structures;

/// Hosts of most measurements, unless another number is asked for.
pub const MILLION: usize = 1_000_000;

/// How to measure.
#[derive(Debug)]
pub struct Context {
    /// Fewer runs and shorter ones.
    pub quick: bool,
    /// Hosts of those measurements that are about a million.
    pub hosts: usize,
    /// For whatever waits.
    pub runtime: tokio::runtime::Runtime,
}

impl Context {
    /// How often a measurement is repeated.
    pub fn runs(&self) -> usize {
        if self.quick { 2 } else { 5 }
    }

    /// The same of measurements that take minutes a run, or only compare: `all` shall come to an end.
    pub fn fewer_runs(&self) -> usize {
        if self.quick { 1 } else { 3 }
    }

    /// The same of those that bring ten thousand samples a run.
    pub fn fewest_runs(&self) -> usize {
        if self.quick { 1 } else { 2 }
    }

    /// Hosts of those measurements whose hosts take long to come together: quick, a fifth of a million shows
    /// that they work.
    pub fn fewer_hosts(&self) -> usize {
        if self.quick { self.hosts.div_ceil(5) } else { self.hosts }
    }

    /// Two cores, for what is measured and for what loads it; the same one if there is no other.
    pub fn two_cores(&self) -> (usize, usize) {
        let cores = machine::cores();
        let first = cores.first().copied().unwrap_or(0);
        (first, cores.get(1).copied().unwrap_or(first))
    }
}

/// What a measurement answers: figures by name, and of how many runs they are the medians.
pub struct Figures {
    /// By name, in the order in which they are printed.
    pub values: Vec<(&'static str, f64)>,
    /// How many runs.
    pub runs: usize,
}

impl Figures {
    /// The median of each figure; every run names the same ones in the same order.
    pub fn medians(runs: &[Vec<(&'static str, f64)>]) -> Self {
        let names = runs.first().map_or(&[][..], |r| r.as_slice());
        let of = |at: usize| median(runs.iter().filter_map(|r| r.get(at)).map(|f| f.1).collect());
        let values = names.iter().enumerate().map(|(at, (name, _))| (*name, of(at))).collect();
        Self { values, runs: runs.len() }
    }

    /// As one JSON line. `quick` ones say that they are.
    pub fn json(&self, bench: &str, quick: bool) -> String {
        let mut line = Map::new();
        line.insert("bench".into(), bench.into());
        if quick {
            line.insert("quick".into(), true.into());
        }
        for (name, value) in &self.values {
            line.insert((*name).into(), rounded(*value));
        }
        line.insert("runs".into(), self.runs.into());
        line.insert("cores".into(), machine::cores().len().into());
        line.insert("cpu".into(), machine::cpu_model().into());
        Value::Object(line).to_string()
    }
}

/// Four digits are more than any of these is worth; whole numbers stay whole.
fn rounded(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return json!(value as i64);
    }
    let digits = (3.0 - value.abs().log10().floor()).clamp(0.0, 9.0) as i32;
    let unit = 10f64.powi(digits);
    json!((value * unit).round() / unit)
}

/// The middle one, or the mean of the two in the middle; NaN of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// The value below which a share of all lies (nearest rank); NaN of none.
pub fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// What measures.
pub type Measure = fn(&Context) -> Result<Figures>;

/// One measurement.
pub struct Bench {
    /// What `cargo xtask bench` calls it.
    pub name: &'static str,
    /// What it measures.
    pub what: &'static str,
    /// Measures.
    pub run: Measure,
}

/// All of them, in the order of `all`.
pub const BENCHES: &[Bench] = &[
    Bench {
        name: "ingest",
        what: "beats/s that the controller takes on one core, against a bare counting loop",
        run: ingest::run,
    },
    Bench {
        name: "million",
        what: "a million hosts, one beat a second, generator and controller on the same cores",
        run: million::run,
    },
    Bench {
        name: "observe",
        what: "what a beat costs the detector alone, against one bare change of a record",
        run: observe::run,
    },
    Bench {
        name: "structures",
        what: "LRU rows against a scan, a heap and a timing wheel, on the same beats",
        run: structures::run,
    },
    Bench {
        name: "dispatcher",
        what: "one thread that receives and hands on, against steering by the kernel",
        run: dispatcher::run,
    },
    Bench {
        name: "expiry",
        what: "100,000 of a million hosts fall silent at once",
        run: expiry::run,
    },
    Bench {
        name: "flood",
        what: "200,000 forged datagrams a second beside 100,000 hosts, some of which die",
        run: flood::run,
    },
    Bench {
        name: "memory",
        what: "resident bytes of the controller per host, at a million with names and labels",
        run: memory::run,
    },
    Bench {
        name: "pages",
        what: "filtered pages of a million hosts over the API, while they beat",
        run: pages::run,
    },
    Bench {
        name: "restart",
        what: "kill -9 and start again while a million hosts beat",
        run: restart::run,
    },
    Bench {
        name: "delivery",
        what: "10,000 outages in a minute, told to four receivers of mixed health, while hosts beat",
        run: delivery::run,
    },
    Bench { name: "agent", what: "what an agent costs its host", run: agent::run },
    Bench {
        name: "peers",
        what: "beats per CPU-second against Redis and a dictionary in Python",
        run: peers::run,
    },
];

/// The machine in one line.
pub fn machine_line() -> String {
    let mut line = String::new();
    write!(
        line,
        "{} cores, {}, Linux {}",
        machine::cores().len(),
        machine::cpu_model(),
        machine::kernel()
    )
    .expect("a String takes any text");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quantiles_are_of_all_runs() {
        let runs = [vec![("a", 3.0)], vec![("a", 1.0)], vec![("a", 2.0)]];
        assert_eq!(Figures::medians(&runs).values, [("a", 2.0)]);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((quantile(hundred.clone(), 0.99), quantile(hundred, 1.0)), (99.0, 100.0));
        assert!(median(Vec::new()).is_nan() && quantile(Vec::new(), 0.5).is_nan());
    }

    #[test]
    fn a_figure_keeps_four_digits() {
        for (value, shown) in [(0.0, "0"), (0.123_456, "0.1235"), (12_345.6, "12346"), (7.0, "7")] {
            let text = rounded(value).to_string();
            assert_eq!(text.trim_end_matches(".0"), shown);
        }
    }

    #[test]
    fn benches_are_named_once_each() {
        let mut names: Vec<_> = BENCHES.iter().map(|b| b.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), BENCHES.len());
    }
}
