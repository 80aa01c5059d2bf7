//! Judges the detector: ours and those of others, on synthetic and measured delays.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use clap::Parser;
use heartwatch_tests::eval::contest::{
    self, AKKA_DEFAULT, Line, Point, Setting, contestants, oracle, oracle_margins,
};
use heartwatch_tests::eval::curve::draw;
use heartwatch_tests::eval::downs::{
    Haste, Loss, detection_after_return, detection_times, false_downs,
};
use heartwatch_tests::eval::families::read_traces;
use heartwatch_tests::eval::fleet::{Fleet, Size};
use heartwatch_tests::eval::verdict::{Curve, Verdict, tables};

#[derive(Parser)]
#[command(name = "heartwatch-eval")]
/// Compares detectors: detection time against mistakes, on synthetic and on measured delays. Ends with one
/// JSON line a mix.
struct Cli {
    /// Directory of `NAME[-NN].delays`, one one-way delay in milliseconds or `lost` per line. May repeat.
    /// Without any, only the synthetic mix is judged.
    #[arg(long, value_name = "DIR")]
    traces: Vec<PathBuf>,
    /// Print the JSON lines only.
    #[arg(long)]
    json: bool,
    /// Hosts of a mix, about.
    #[arg(long, default_value_t = 160)]
    hosts: usize,
    /// Days of each host; the first third is for learning and is not counted.
    #[arg(long, default_value_t = 3.0)]
    days: f64,
    /// Share of the interval by which gaps differ from it.
    #[arg(long, default_value_t = 0.1)]
    jitter: f64,
    /// What everything random follows from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Instead: simulate so many host-days of living hosts on lossy ways with probes and peers, count those
    /// called down, and time how soon dead ones are.
    #[arg(long, value_name = "HOST_DAYS")]
    downs: Option<f64>,
    /// With --downs: hosts that have come back from a suspicion beat so many times faster for ten minutes.
    #[arg(long, default_value_t = 1, value_name = "FACTOR")]
    haste: u32,
    /// Write the trade-off curves there, as SVG.
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let usable =
        cli.hosts > 0 && (0.01..=60.0).contains(&cli.days) && (0.0..=0.5).contains(&cli.jitter);
    if !usable {
        eprintln!(
            "heartwatch-eval: --hosts from 1, --days from 0.01 to 60, --jitter from 0 to 0.5"
        );
        return ExitCode::from(64);
    }
    if let Some(host_days) = cli.downs {
        if !(0.1..=1e6).contains(&host_days) {
            eprintln!("heartwatch-eval: --downs takes 0.1 to 1000000 host-days");
            return ExitCode::from(64);
        }
        if !(1..=16).contains(&cli.haste) {
            eprintln!("heartwatch-eval: --haste takes 1 to 16");
            return ExitCode::from(64);
        }
        downs(host_days, cli.haste, cli.seed);
        return ExitCode::SUCCESS;
    }
    let size = Size {
        hosts: cli.hosts,
        beats: (cli.days * 86_400.0) as usize,
        jitter: cli.jitter,
        seed: cli.seed,
    };
    let mut traces = Vec::new();
    for dir in &cli.traces {
        match read_traces(dir) {
            Ok(read) => traces.extend(read),
            Err(e) => {
                eprintln!("heartwatch-eval: {e}");
                return ExitCode::FAILURE;
            }
        }
    }
    let mut lines = vec![judge(&Fleet::synthetic(&size), &cli)];
    if !traces.is_empty() {
        lines.push(judge(&Fleet::traced(&traces, &size), &cli));
    }
    for line in lines {
        match line {
            Ok(line) => println!("{line}"),
            Err(e) => {
                eprintln!("heartwatch-eval: {e}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// Prints how often living hosts were called down, and how soon dead ones were; one JSON line each.
fn downs(host_days: f64, factor: u32, seed: u64) {
    let haste = Haste { factor, span: Duration::from_secs(600) };
    let ways = [("independent 1 %", Loss::Independent(0.01)), ("bursts 5 %", Loss::Bursts(0.05))];
    let hosts = 100;
    let results = std::thread::scope(|scope| {
        let runs = ways.map(|(name, loss)| {
            scope.spawn(move || {
                let tell = |done: f64| {
                    if std::io::stderr().is_terminal() {
                        eprint!("{name}: {:.0} %   \r", done * 100.0);
                    }
                };
                (name, false_downs(hosts, host_days, loss, haste, seed, tell))
            })
        });
        runs.map(|run| run.join().expect("a run does not panic"))
    });
    for (name, d) in results {
        println!(
            "{}",
            serde_json::json!({
                "eval": "false_downs", "loss": name, "host_days": d.host_days,
                "false_suspicions": d.false_suspicions, "false_downs": d.false_downs,
                "expected_false_downs_in_1e6_host_days": d.per_million_host_days,
            })
        );
    }
    for (name, loss) in ways {
        let (suspect, down) = detection_after_return(800, loss, haste, seed);
        let at = |times: &[f64], q: f64| {
            times.get(((times.len() as f64 - 1.0) * q).round() as usize).copied()
        };
        println!(
            "{}",
            serde_json::json!({
                "eval": "crash_after_return", "loss": name, "haste": factor, "crashes": down.len(),
                "suspect_p50_s": at(&suspect, 0.5), "suspect_p99_s": at(&suspect, 0.99),
                "down_p50_s": at(&down, 0.5), "down_p99_s": at(&down, 0.99),
            })
        );
    }
    let times = detection_times(2_000, Duration::from_secs(6 * 3_600), seed);
    let quantile = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
    println!(
        "{}",
        serde_json::json!({
            "eval": "crash_to_down", "network": "clean lan", "crashes": times.len(),
            "p50_s": quantile(0.5), "p99_s": quantile(0.99), "max_s": quantile(1.0),
        })
    );
}

/// Judges one mix, prints its tables, answers its JSON line.
fn judge(fleet: &Fleet, cli: &Cli) -> Result<String, String> {
    let contestants = contestants();
    let mut settings: Vec<Setting> = vec![AKKA_DEFAULT, Setting::Steered(1.0)];
    settings.extend(oracle_margins().into_iter().map(Setting::Constant));
    let constants = 2..settings.len();
    for (_, lines) in &contestants {
        settings.extend(lines.iter().flatten().cloned());
    }
    let points = contest::run(fleet, &settings, progress(fleet.mix, settings.len()));
    let mut next = constants.end;
    let mut curves = Vec::new();
    for (name, lines) in &contestants {
        let mut take = |line: &Line| -> Vec<Point> {
            next += line.len();
            points[next - line.len()..next].to_vec()
        };
        let lines: Vec<Vec<Point>> = lines.iter().map(&mut take).collect();
        curves.push(Curve::new(name, &lines));
    }
    curves.push(Curve::oracle(fleet, &oracle(fleet, &points[constants])));
    if !cli.json {
        println!("{}", tables(fleet, &curves));
    }
    if let Some(dir) = &cli.svg {
        let file = dir.join(format!("detectors-{}.svg", fleet.mix));
        std::fs::create_dir_all(dir)
            .and_then(|()| std::fs::write(&file, draw(fleet.mix, &curves)))
            .map_err(|e| format!("cannot write {}: {e}", file.display()))?;
    }
    let verdict = Verdict::new(fleet, &curves, &points[0], &points[1]);
    Ok(serde_json::to_string(&verdict).expect("a verdict is plain data"))
}

/// Tells on a terminal how far the work is.
fn progress(mix: &'static str, of: usize) -> impl Fn(usize) + Sync {
    let out = Mutex::new(std::io::stderr());
    move |done| {
        let mut out = out.lock().expect("no thread panics while it holds this");
        if out.is_terminal() {
            let end = if done == of { '\n' } else { '\r' };
            // Nobody is hurt if progress can't be shown.
            write!(out, "{mix}: {done} of {of} runs{end}").unwrap_or(());
        }
    }
}
