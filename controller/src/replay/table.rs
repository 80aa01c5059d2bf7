//! What a replay found, as rows for people and as JSON for programs.

use serde::Serialize;

use super::Outcome;

/// Column titles, and which of them hold numbers.
pub const HEADER: [&str; 10] = [
    "HOST",
    "SETTING",
    "T_D MEAN",
    "T_D P50",
    "T_D P99",
    "λ_M /DAY",
    "T_M",
    "P_A",
    "BEATS",
    "LOST",
];
/// Columns to be aligned right.
pub const NUMBERS: [usize; 8] = [2, 3, 4, 5, 6, 7, 8, 9];
/// What the titles mean.
pub const LEGEND: &str = "T_D: time from a crash to the suspicion; λ_M: mistakes (suspicions of a host \
that came back) per host and day;\nT_M: how long a mistake lasts; P_A: share of time rightly trusted.";
/// Stands for all hosts together.
pub const ALL: &str = "all hosts";

/// A setting that was tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Named {
    /// `now`, `set 1`, `set 2`…
    pub name: String,
    /// Where it comes from, or what it changes.
    pub what: String,
}

/// What one setting would have done to one host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// [`Named::name`].
    pub setting: String,
    /// Mean detection time (T_D), milliseconds; `None` as below: nothing was measured.
    pub detection_mean_ms: Option<f64>,
    /// Its median.
    pub detection_p50_ms: Option<f64>,
    /// What 99 % of crashes do not exceed.
    pub detection_p99_ms: Option<f64>,
    /// λ_M.
    pub mistakes_per_host_day: Option<f64>,
    /// How many there were.
    pub mistakes: u64,
    /// T_M, milliseconds; `None`: there was none.
    pub mistake_mean_ms: Option<f64>,
    /// P_A.
    pub accuracy_ratio: Option<f64>,
    /// Time measured, seconds.
    pub watched_s: f64,
    /// Beats sent meanwhile.
    pub beats: u64,
    /// Those lost.
    pub lost: u64,
}

/// One host under every setting.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HostMeasured {
    /// Its name.
    pub host: String,
    /// By setting.
    pub results: Vec<Measured>,
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What was tried.
    pub settings: Vec<Named>,
    /// By host.
    pub hosts: Vec<HostMeasured>,
    /// All hosts together, by setting.
    pub all: Vec<Measured>,
}

/// What an outcome says.
pub fn measured(setting: &str, outcome: &Outcome) -> Measured {
    let tally = &outcome.tally;
    let known = |value: f64| value.is_finite().then_some(value);
    Measured {
        setting: setting.to_owned(),
        detection_mean_ms: known(tally.mean_s() * 1e3),
        detection_p50_ms: known(tally.quantile_s(0.5) * 1e3),
        detection_p99_ms: known(tally.quantile_s(0.99) * 1e3),
        mistakes_per_host_day: known(tally.mistakes_per_day()),
        mistakes: tally.mistakes as u64,
        mistake_mean_ms: tally.mistake_s().map(|s| s * 1e3),
        accuracy_ratio: known(tally.accuracy()),
        watched_s: tally.time_s,
        beats: outcome.beats,
        lost: outcome.lost,
    }
}

/// Puts together what each setting did; `outcomes` by setting, then by host.
pub fn report(settings: Vec<Named>, hosts: &[&str], outcomes: &[Vec<Outcome>]) -> Report {
    let by = |host: usize| {
        let all = settings.iter().zip(outcomes);
        all.map(|(s, of)| measured(&s.name, &of[host])).collect()
    };
    let together = |of: &Vec<Outcome>| {
        let mut sum = Outcome::default();
        of.iter().for_each(|o| sum.add(o));
        sum
    };
    let all = settings.iter().zip(outcomes);
    let all = all.map(|(s, of)| measured(&s.name, &together(of))).collect();
    let hosts = hosts.iter().enumerate();
    let hosts =
        hosts.map(|(i, name)| HostMeasured { host: (*name).to_owned(), results: by(i) }).collect();
    Report { settings, hosts, all }
}

impl Report {
    /// Rows under [`HEADER`]; all hosts together come last, if there is more than one.
    pub fn rows(&self) -> Vec<[String; 10]> {
        let mut rows = Vec::new();
        for host in &self.hosts {
            rows.extend(lines(&host.host, &host.results));
        }
        if self.hosts.len() > 1 {
            rows.extend(lines(ALL, &self.all));
        }
        rows
    }
}

fn lines<'a>(host: &'a str, results: &'a [Measured]) -> impl Iterator<Item = [String; 10]> + 'a {
    results.iter().enumerate().map(move |(i, m)| {
        [
            if i == 0 { host.to_owned() } else { String::new() },
            m.setting.clone(),
            time(m.detection_mean_ms),
            time(m.detection_p50_ms),
            time(m.detection_p99_ms),
            m.mistakes_per_host_day.map_or_else(none, rate),
            time(m.mistake_mean_ms),
            m.accuracy_ratio.map_or_else(none, share),
            m.beats.to_string(),
            m.lost.to_string(),
        ]
    })
}

fn none() -> String {
    "-".to_owned()
}

fn time(ms: Option<f64>) -> String {
    match ms {
        None => none(),
        Some(ms) if ms < 999.5 => format!("{ms:.0} ms"),
        Some(ms) if ms < 100_000.0 => format!("{:.2} s", ms / 1e3),
        Some(ms) => format!("{:.0} s", ms / 1e3),
    }
}

fn rate(per_day: f64) -> String {
    match per_day {
        0.0 => "0".to_owned(),
        n if n < 10.0 => format!("{n:.3}"),
        n => format!("{n:.1}"),
    }
}

/// As many nines as there are, and two digits more.
fn share(ratio: f64) -> String {
    if ratio >= 1.0 {
        return "100 %".to_owned();
    }
    let digits = (1.0 - ratio.max(0.0)).log10().abs().floor().clamp(0.0, 8.0) as usize;
    format!("{:.digits$} %", ratio * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_units_and_no_more_digits_than_they_deserve() {
        assert_eq!(
            [Some(0.4), Some(999.4), Some(12_345.0), None].map(time),
            ["0 ms", "999 ms", "12.35 s", "-"]
        );
        assert_eq!([0.0, 0.014_2, 123.46].map(rate), ["0", "0.014", "123.5"]);
        assert_eq!([1.0, 0.999_987, 0.95].map(share), ["100 %", "99.9987 %", "95.0 %"]);
    }
}
