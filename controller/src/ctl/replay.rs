//! `heartwatchctl replay`: what settings would have done to recorded beats.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use heartwatch_common::time::{Clock, SystemClock};

use super::args::{Global, Replay};
use super::text::{Table, clean, count};
use super::{CtlError, chain, local};
use crate::config::{Config, RawConfig};
use crate::replay::read::{self, HostLog, Pace};
use crate::replay::settings::{SWEEP_COSTS_S, changed};
use crate::replay::svg::{self, Point};
use crate::replay::table::{self, Measured, Named, Report};
use crate::replay::{Options, Outcome, Setting, leaves_out_delay, replay};

/// No word about progress before work has taken so long, and between two words.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

pub(super) fn run(global: &Global, args: &Replay, out: &mut dyn Write) -> Result<(), CtlError> {
    let (named, raw) = load(global)?;
    let checked = |raw: &RawConfig| raw.check().map_err(|e| CtlError::Config(chain(&e)));
    let config = checked(&raw)?;
    let now = match &named {
        Some(path) => path.display().to_string(),
        None => "the defaults (no config file)".to_owned(),
    };
    let mut settings = vec![(Named { name: "now".to_owned(), what: now }, Setting::of(&config))];
    for (i, set) in args.sets.iter().enumerate() {
        let config = changed(&raw, set).map_err(|e| CtlError::Usage(chain(&e)))?;
        let name = Named { name: format!("set {}", i + 1), what: set.clone() };
        settings.push((name, Setting::of(&config)));
    }
    let options = Options { seed: args.seed, skip: args.skip.map(|s| s.0) };
    let pace = pace(args)?;
    let logs = read::read(&args.files, &pace).map_err(|e| CtlError::Failed(chain(&e)))?;

    let curve = if args.svg.is_some() { SWEEP_COSTS_S.len() } else { 0 };
    let arrivals = logs.iter().flat_map(|l| &l.beats).filter(|b| b.arrived_us != read::LOST);
    let mut work = Progress::new(arrivals.count() as u64 * (settings.len() + curve) as u64);
    let mut outcomes = Vec::new();
    for (_, setting) in &settings {
        outcomes.push(work.replay(&logs, setting, &options));
    }
    let sweep =
        if args.svg.is_some() { sweep(&mut work, &logs, &settings[0].1, &options) } else { vec![] };
    work.end();

    let hosts: Vec<&str> = logs.iter().map(|l| l.name.as_str()).collect();
    let present = settings[0].1.clone();
    let named = settings.into_iter().map(|(name, _)| name).collect();
    let report = table::report(named, &hosts, &outcomes);
    if let Some(file) = &args.svg {
        draw(file, &report, &sweep, &present)?;
    }
    if global.json {
        serde_json::to_writer(&mut *out, &report).map_err(std::io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    write(out, &report, &config, &logs)
}

/// The config and the file that it comes from.
fn load(global: &Global) -> Result<(Option<PathBuf>, RawConfig), CtlError> {
    let named = local::config_file(global);
    let raw = RawConfig::load(named.as_deref()).map_err(|e| CtlError::Config(chain(&e)))?;
    Ok((named, raw))
}

fn pace(args: &Replay) -> Result<Pace, CtlError> {
    let interval = args.interval.0;
    if !(Duration::from_millis(10)..=Duration::from_secs(1_800)).contains(&interval) {
        return Err(CtlError::Usage("--interval: 10ms to 30m are allowed".to_owned()));
    }
    if !(0.0..=0.5).contains(&args.jitter) {
        return Err(CtlError::Usage("--jitter: 0 to 0.5 are allowed".to_owned()));
    }
    Ok(Pace { interval, jitter: args.jitter, seed: args.seed })
}

fn sweep(
    work: &mut Progress,
    logs: &[HostLog],
    present: &Setting,
    options: &Options,
) -> Vec<Point> {
    let one = |cost_s: &f32| {
        let setting = present.with_cost(*cost_s);
        setting.point(&together(&work.replay(logs, &setting, options)))
    };
    SWEEP_COSTS_S.iter().filter_map(one).collect()
}

fn together(outcomes: &[Outcome]) -> Measured {
    let mut all = Outcome::default();
    outcomes.iter().for_each(|o| all.add(o));
    table::measured("", &all)
}

fn draw(file: &Path, report: &Report, sweep: &[Point], present: &Setting) -> Result<(), CtlError> {
    let Some(present) = present.point(&report.all[0]) else {
        let reason = "nothing was measured: the recording is too short, or --skip too long";
        return Err(CtlError::Failed(reason.to_owned()));
    };
    let days = report.all[0].watched_s / 86_400.0;
    let title = format!("{}, {days:.1} host-days", count(report.hosts.len(), "host"));
    std::fs::write(file, svg::draw(&title, sweep, &present))
        .map_err(|e| CtlError::Failed(format!("cannot write {}: {e}", file.display())))
}

fn write(
    out: &mut dyn Write,
    report: &Report,
    config: &Config,
    logs: &[HostLog],
) -> Result<(), CtlError> {
    for setting in &report.settings {
        writeln!(out, "{:<6}  {}", setting.name, clean(&setting.what))?;
    }
    writeln!(out)?;
    let mut table = Table::new(&table::HEADER, &table::NUMBERS);
    for row in report.rows() {
        table.row(row);
    }
    table.write(out)?;
    let days = report.all[0].watched_s / 86_400.0;
    let hosts = count(logs.len(), "host");
    writeln!(out, "\nMeasured over {days:.2} host-days of {hosts}.\n{}", table::LEGEND)?;
    if leaves_out_delay(logs) {
        writeln!(
            out,
            "T_D of arrival logs leaves out the shortest delay: the clocks at both ends differ."
        )?;
    }
    if !config.knobs.overrides.is_empty() {
        writeln!(out, "[[detector.overrides]] are left out: recordings have no labels.")?;
    }
    Ok(())
}

/// Tells a person how far long work is.
struct Progress {
    /// Beats of all runs.
    all: u64,
    /// Those of runs that are done.
    done: u64,
    terminal: bool,
    told: heartwatch_common::time::Instant,
    shown: bool,
}

impl Progress {
    fn new(all: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { all, done: 0, terminal, told: SystemClock.now(), shown: false }
    }

    fn replay(&mut self, logs: &[HostLog], setting: &Setting, options: &Options) -> Vec<Outcome> {
        let outcomes = replay(logs, setting, options, &mut |n| self.tell(n));
        let arrived = |l: &HostLog| l.beats.iter().filter(|b| b.arrived_us != read::LOST).count();
        self.done += logs.iter().map(|l| arrived(l) as u64).sum::<u64>();
        outcomes
    }

    fn tell(&mut self, beats: u64) {
        let now = SystemClock.now();
        if !self.terminal || now.since(self.told) < PROGRESS_EVERY {
            return;
        }
        self.told = now;
        self.shown = true;
        let share = (self.done + beats) * 100 / self.all.max(1);
        let line = format!("\r{share:>3} % of {} beats", self.all);
        // A closed stderr must not end the work.
        drop(std::io::stderr().write_all(line.as_bytes()));
    }

    fn end(&self) {
        if self.shown {
            drop(std::io::stderr().write_all(b"\r\x1b[K"));
        }
    }
}
