//! `heartwatchctl plan`: what a fleet costs, and what the present config promises it.

use std::io::{self, Write};
use std::time::Duration;

use heartwatch_common::config::Span;
use serde_json::json;

use super::args::{Global, Plan as Args};
use super::text::{Table, human, human_f64};
use super::{CtlError, chain, local};
use crate::config::{Config, RawConfig};
use crate::intervals::solve;
use crate::plan::loss::Loss;
use crate::plan::{FIGURES, Figure, Given, Plan, Settings, interval_for, plan};

/// What agents keep to if nobody assigns them an interval.
const AGENT_INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn run(global: &Global, args: &Args, out: &mut dyn Write) -> Result<(), CtlError> {
    let file = local::config_file(global);
    let raw = RawConfig::load(file.as_deref());
    let config = raw.and_then(|raw| raw.check()).map_err(|e| CtlError::Config(chain(&e)))?;
    let (given, why) = given(args, &config)?;
    let plan = plan(&given);
    if global.json {
        let answer = json!({ "given": shown(&given), "plan": plan });
        serde_json::to_writer(&mut *out, &answer).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    let from = file.map_or_else(
        || "the defaults (no config file)".to_owned(),
        |path| path.display().to_string(),
    );
    writeln!(out, "Settings: {from}. {why}")?;
    writeln!(out, "Assumed: {}\n", assumed(&given))?;
    write_figures(out, args, &plan)?;
    if let Some(wanted) = args.detect {
        let kept = plan.down_p99_s <= wanted.0.as_secs_f64();
        let verdict = if kept { "kept" } else { "not kept" };
        writeln!(out, "\n{wanted} from a crash to `down` at p99: {verdict}.")?;
    }
    if !args.explain {
        writeln!(out, "\n--explain prints every formula with its source.")?;
    }
    Ok(())
}

/// What is asked for, and where the interval comes from.
fn given(args: &Args, config: &Config) -> Result<(Given, String), CtlError> {
    let usage = |message: &str| Err(CtlError::Usage(message.to_owned()));
    let d = &config.detector;
    let knobs = &config.knobs.default.patience;
    let settings = Settings {
        timeout_min: knobs.min(),
        timeout_max: knobs.max(),
        false_suspicion_cost_s: f64::from(knobs.cost_s),
        probes: d.probes,
        probe_spacing: d.probe_spacing,
        confirm_max: d.confirm_max,
        peers: d.peers,
        ack_every: d.ack_every,
        shards: config.shards,
    };
    if args.burst_longest.is_some() && args.burst.is_none() {
        return usage("--burst-longest needs --burst");
    }
    let loss = match args.burst {
        Some(mean) if mean.0 < Duration::from_millis(1) || mean.0 > Duration::from_secs(3_600) => {
            return usage("--burst takes 1ms to 1h");
        }
        Some(mean) if args.burst_longest.is_some_and(|l| l.0 < mean.0) => {
            return usage("--burst-longest is not shorter than --burst");
        }
        Some(mean) => Loss::Bursts {
            share: args.loss.0,
            mean: mean.0,
            longest: args.burst_longest.map(|l| l.0),
        },
        None => Loss::Independent(args.loss.0),
    };
    let mut given = Given {
        hosts: args.hosts as f64,
        interval: AGENT_INTERVAL,
        loss,
        delay_spread: args.delay_spread.0,
        round_trip: args.round_trip.0,
        mtbf: args.mtbf.0,
        failover: args.failover.0,
        stall: args.stall.0,
        ipv6: args.ipv6,
        settings,
    };
    let (interval, why) = match (args.interval, args.detect, &config.intervals) {
        (Some(interval), _, _) => (interval.0, "The interval is yours.".to_owned()),
        (None, Some(wanted), _) => match interval_for(&given, wanted.0) {
            Some(interval) => {
                (interval, format!("The interval is the longest that finds crashes in {wanted}."))
            }
            None => {
                return Err(CtlError::Failed(format!(
                    "no interval tells crashes within {wanted}: probes alone take {}, and the margin comes \
                     on top; fewer detector.probes, a shorter detector.probe_spacing or a lower \
                     detector.false_suspicion_cost would help",
                    human(d.probe_spacing * u32::from(d.probes)),
                )));
            }
        },
        (None, None, Some(rules)) => {
            let interval = solve(&rules.classes[..1], &[args.hosts], rules.budget)[0];
            (interval, "The interval is what intervals.budget leaves each host.".to_owned())
        }
        (None, None, None) if !d.interval.is_zero() => {
            (d.interval, "The interval is detector.interval.".to_owned())
        }
        (None, None, None) => (AGENT_INTERVAL, "The interval is the agents' default.".to_owned()),
    };
    if !(Duration::from_millis(10)..=Duration::from_secs(3_600)).contains(&interval) {
        return usage("--interval takes 10ms to 1h");
    }
    given.interval = interval;
    Ok((given, why))
}

/// What was given, as JSON.
fn shown(g: &Given) -> serde_json::Value {
    let loss = match g.loss {
        Loss::Independent(share) => json!({ "share": share }),
        Loss::Bursts { share, mean, longest } => json!({
            "share": share,
            "burst_mean_s": mean.as_secs_f64(),
            "burst_longest_s": longest.map(|l| l.as_secs_f64()),
        }),
    };
    json!({
        "hosts": g.hosts,
        "interval_s": g.interval.as_secs_f64(),
        "loss": loss,
        "delay_spread_s": g.delay_spread.as_secs_f64(),
        "round_trip_s": g.round_trip.as_secs_f64(),
        "mtbf_s": g.mtbf.as_secs_f64(),
        "failover_s": g.failover.as_secs_f64(),
        "stall_s": g.stall.as_secs_f64(),
        "ipv6": g.ipv6,
    })
}

fn assumed(g: &Given) -> String {
    let loss = match g.loss {
        Loss::Independent(p) => format!("{} lost, each datagram by itself", share(p)),
        Loss::Bursts { share: s, mean, longest } => {
            let cut = longest.map_or_else(
                || "without a longest length".to_owned(),
                |l| format!("at most {}", human(l)),
            );
            format!("{} lost in bursts of {} on average, {cut}", share(s), human(mean))
        }
    };
    format!(
        "{loss}; up to {} of delay beyond the usual; round trips of {}; a host fails every {}; failing over \
         takes {}.",
        human(g.delay_spread),
        human(g.round_trip),
        human(g.mtbf),
        human(g.failover)
    )
}

fn share(p: f64) -> String {
    format!("{}%", significant(p * 100.0))
}

/// Three significant digits, without trailing zeros; tiny and huge ones as powers of ten.
fn significant(n: f64) -> String {
    if n == 0.0 {
        return "0".to_owned();
    }
    if !(1e-3..1e6).contains(&n.abs()) {
        return format!("{n:.1e}");
    }
    let digits = (2 - n.abs().log10().floor() as i32).max(0) as usize;
    let text = format!("{n:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// With the unit's prefix: `1.17 Gbit/s`.
fn scaled(n: f64, unit: &str) -> String {
    let (by, prefix) = match n {
        n if n >= 1e9 => (1e9, "G"),
        n if n >= 1e6 => (1e6, "M"),
        n if n >= 1e3 => (1e3, "k"),
        _ => (1.0, ""),
    };
    format!("{} {prefix}{unit}", significant(n / by))
}

fn bytes(n: f64) -> String {
    let (by, unit) = match n {
        n if n >= 1_073_741_824.0 => (1_073_741_824.0, "GiB"),
        n if n >= 1_048_576.0 => (1_048_576.0, "MiB"),
        _ => (1_024.0, "KiB"),
    };
    format!("{} {unit}", significant(n / by))
}

/// `99.9999%`, with one digit behind the first that is not a nine.
fn nines(a: f64) -> String {
    let away = 1.0 - a;
    if away <= 0.0 {
        return "100%".to_owned();
    }
    // Less what rounding adds to a whole power of ten.
    let digits = ((-away.log10() - 1e-9).ceil() as usize).clamp(2, 12) - 1;
    format!("{:.digits$}%", a * 100.0)
}

fn seconds(s: f64) -> String {
    human_f64(s * 1e3)
}

/// A figure as people read it.
fn value(key: &str, p: &Plan) -> String {
    match key {
        "interval_s" => seconds(p.interval_s),
        "beats_per_s" => scaled(p.beats_per_s, "/s"),
        "datagrams_per_s" => scaled(p.datagrams_per_s, "/s"),
        "bits_per_s_in" => scaled(p.bits_per_s_in, "bit/s"),
        "bits_per_s_out" => scaled(p.bits_per_s_out, "bit/s"),
        "cores_busy" => format!("{:.2}", p.cores_busy),
        "cores" => format!("{:.0}", p.cores),
        "memory_bytes" => bytes(p.memory_bytes),
        "buffer_bytes_per_shard" => bytes(p.buffer_bytes_per_shard),
        "margin_s" => {
            format!("{} ({} lost beats borne)", seconds(p.margin_s), p.lost_beats_borne)
        }
        "false_suspects_per_year" => significant(p.false_suspects_per_year),
        "false_downs_per_year" => {
            // Below one in the age of the universe it is no figure any more.
            if p.false_downs_per_year < 1e-10 {
                "none to be expected".to_owned()
            } else {
                format!("at most {}", significant(p.false_downs_per_year))
            }
        }
        "suspect_p50_s" => seconds(p.suspect_p50_s),
        "suspect_p99_s" => seconds(p.suspect_p99_s),
        "down_p50_s" => seconds(p.down_p50_s),
        "down_p99_s" => seconds(p.down_p99_s),
        "down_worst_s" => seconds(p.down_worst_s),
        "availability" => nines(p.availability),
        "downtime_s_per_host_year" => seconds(p.downtime_s_per_host_year),
        // A test demands words of every figure.
        _ => String::new(),
    }
}

fn write_figures(out: &mut dyn Write, args: &Args, p: &Plan) -> io::Result<()> {
    if args.explain {
        for Figure { key, name, formula, source } in FIGURES {
            writeln!(out, "{name}: {}\n    = {formula}", value(key, p))?;
            if source != "-" {
                writeln!(out, "    Source: {source}.")?;
            }
        }
        return Ok(());
    }
    let mut table = Table::new(&["FIGURE", "OF THE FLEET"], &[]);
    for figure in FIGURES {
        table.row([figure.name.to_owned(), value(figure.key, p)]);
    }
    table.write(out)
}

/// A share as it is typed: `0.01` or `1%`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Share(pub(super) f64);

impl std::str::FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |t: &str| t.trim().parse::<f64>().ok();
        let share = match text.strip_suffix('%') {
            Some(percent) => number(percent).map(|p| p / 100.0),
            None => number(text),
        };
        match share {
            Some(share) if (0.0..=0.5).contains(&share) => Ok(Self(share)),
            _ => Err("a share from 0 to 0.5 is needed, such as 0.01 or 1%".to_owned()),
        }
    }
}

/// A length of time of at least a second, such as a mean time between failures.
pub(super) fn at_least_a_second(text: &str) -> Result<Span, String> {
    let span: Span = text.parse().map_err(|e: <Span as std::str::FromStr>::Err| e.to_string())?;
    if span.0 < Duration::from_secs(1) {
        return Err("at least 1s is needed".to_owned());
    }
    Ok(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_have_units() {
        assert_eq!(scaled(1.168e9, "bit/s"), "1.17 Gbit/s");
        assert_eq!(scaled(400.0, "/s"), "400 /s");
        assert_eq!(bytes(432e6), "412 MiB");
        assert_eq!(
            [0.0, 1.0, 0.05, 123.4, 1e-9].map(significant),
            ["0", "1", "0.05", "123", "1.0e-9"]
        );
        assert_eq!(
            [0.9, 0.99, 0.999_9, 0.999_999_01, 1.0].map(nines),
            ["90.0%", "99.0%", "99.990%", "99.999901%", "100%"]
        );
        assert_eq!("1%".parse(), Ok(Share(0.01)));
        assert_eq!("0.25".parse(), Ok(Share(0.25)));
        for bad in ["-1%", "51%", "x", "NaN"] {
            assert!(bad.parse::<Share>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_figure_has_its_words() {
        for figure in FIGURES {
            assert!(!value(figure.key, &Plan::default()).is_empty());
        }
    }
}
