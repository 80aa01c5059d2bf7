//! `cargo xtask fleet`: up to millions of hosts that beat, die, stand still, leave and restart, against a
//! controller that is there or one of its own; at the end, what was done and what the controller saw.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use heartwatch_common::auth::{Keyring, load_secret};
use heartwatch_tests::bench::sink::{Counted, Sink};
use heartwatch_tests::bench::stage::{Stage, StageSetup, portion, sum};
use heartwatch_tests::fleet::{Act, First, Mass, MassSetup, count};
use heartwatch_tests::machine;
use heartwatch_tests::world::{Api, Controller, World, now, number, text};

/// How long all hosts may take to become known.
const JOIN_MAX: Duration = Duration::from_secs(300);

/// A fleet of real, authenticated hosts in one process.
///
/// Without --controller it starts a controller of its own, with a state folder that is thrown away, on
/// free ports of this machine. HOSTS below is a number such as 1000 or a share such as 10%.
#[derive(Parser)]
#[command(name = "heartwatch-fleet", version)]
struct Args {
    /// Whom to beat to.
    #[arg(long, value_name = "ADDRESS:PORT", requires = "secret_file")]
    controller: Option<SocketAddr>,
    /// The controller's fleet secrets; the first one counts.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Beat to a loop that only counts, instead of a controller: what can this fleet offer?
    #[arg(long, conflicts_with = "controller")]
    sink: bool,
    /// The controller's API, to be asked for what it saw, such as http://127.0.0.1:2328.
    #[arg(long, value_name = "URL", requires = "token_file")]
    api: Option<String>,
    /// The API's token.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How many hosts.
    #[arg(long, default_value_t = 100_000)]
    hosts: usize,
    /// Beats of a host, as 1/s, 2/s or 1/5s.
    #[arg(long, default_value = "1/s", value_parser = interval)]
    rate: Duration,
    /// Width of the jitter, as a share of the interval.
    #[arg(long, default_value_t = 0.2)]
    jitter: f64,
    /// Over how long the first hellos are spread; 25,000 a second unless said.
    #[arg(long, value_parser = humantime::parse_duration)]
    join: Option<Duration>,
    /// Number of the first boot; give a higher one to meet a controller again with the same hosts.
    #[arg(long, default_value_t = 1)]
    boot: u32,
    /// Hosts that lose power.
    #[arg(long, value_name = "HOSTS", default_value = "0")]
    kill: String,
    /// Hosts that stand still, until --resume.
    #[arg(long, value_name = "HOSTS", default_value = "0")]
    pause: String,
    /// Hosts that say goodbye.
    #[arg(long, value_name = "HOSTS", default_value = "0")]
    leave: String,
    /// Hosts that boot anew.
    #[arg(long, value_name = "HOSTS", default_value = "0")]
    restart: String,
    /// Hosts that lose one datagram in five, both ways.
    #[arg(long, value_name = "HOSTS", default_value = "0")]
    lossy: String,
    /// When all that happens, after all hosts are known.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    at: Duration,
    /// When those that stand still go on, after --at.
    #[arg(long, value_parser = humantime::parse_duration)]
    resume: Option<Duration>,
    /// How long to go on after --at.
    #[arg(long = "for", default_value = "30s", value_parser = humantime::parse_duration)]
    span: Duration,
    /// Source ports, shared by the hosts.
    #[arg(long, default_value_t = 16)]
    sockets: usize,
    /// The controller's shards: datagrams that travel together must be for one. Default: this machine's
    /// cores, as with the controller.
    #[arg(long)]
    shards: Option<u16>,
    /// Datagrams that travel together; 1 sends each by itself.
    #[arg(long, default_value_t = 64)]
    segments: usize,
    /// Keep the fleet on this core.
    #[arg(long)]
    core: Option<usize>,
    /// Keep the controller of its own, or the counting loop, on this core.
    #[arg(long)]
    controller_core: Option<usize>,
}

/// Reads `1/s`, `5/s`, `1/10s`.
fn interval(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}`: a rate is such as 1/s, 2/s or 1/5s");
    let (beats, span) = text.split_once('/').ok_or_else(wrong)?;
    let beats: f64 = beats.parse().map_err(|_| wrong())?;
    let span = if span.starts_with(|c: char| c.is_ascii_digit()) {
        humantime::parse_duration(span)
    } else {
        humantime::parse_duration(&format!("1{span}"))
    };
    let seconds = span.map_err(|_| wrong())?.as_secs_f64() / beats;
    if (0.001..=60.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("`{text}`: a beat every 1 ms to 60 s is possible"))
    }
}

/// What happens to whom.
struct Plan {
    acts: Vec<(&'static str, Act, Range<usize>)>,
}

impl Plan {
    fn of(args: &Args) -> Result<Self> {
        let mut acts = Vec::new();
        let mut next = 0;
        for (name, act, wanted) in [
            ("killed", Act::Kill, &args.kill),
            ("paused", Act::Pause, &args.pause),
            ("left", Act::Leave, &args.leave),
            ("restarted", Act::Restart, &args.restart),
            ("made lossy", Act::Loss(51), &args.lossy),
        ] {
            let hosts = portion(wanted, args.hosts).with_context(|| name.to_owned())?;
            if hosts > 0 {
                acts.push((name, act, next..next + hosts));
            }
            next += hosts;
        }
        ensure!(next <= args.hosts, "more is to happen than there are hosts");
        Ok(Self { acts })
    }

    fn of_act(&self, act: Act) -> Range<usize> {
        self.acts.iter().find(|a| a.1 == act).map_or(0..0, |a| a.2.clone())
    }
}

struct Run {
    mass: Mass,
    api: Option<Api>,
    own: Option<Controller>,
    sink: Option<(Sink, Counted)>,
    args: Args,
    plan: Plan,
    before: Vec<(&'static str, u64)>,
}

/// What the controller counts of suspicions that proved wrong.
const MISTAKES: &str = "heartwatch_mistakes_total";

const STATES: [&str; 4] = ["alive", "suspect", "down", "left"];

impl Run {
    async fn start(args: Args, world: &World) -> Result<Self> {
        let plan = Plan::of(&args)?;
        let cores = machine::cores().len().clamp(1, 64) as u16;
        let shards = if args.sink { 1 } else { args.shards.unwrap_or(cores) };
        let sink = args.sink.then(|| Sink::start(args.controller_core)).transpose()?;
        let (address, secret, own) = match (args.controller, &args.secret_file, &sink) {
            (_, _, Some(sink)) => (sink.address, world.secret().clone(), None),
            (Some(address), Some(file), _) => {
                let ring: Keyring = load_secret(file)?;
                (address, ring.current().clone(), None)
            }
            _ => {
                let setup = StageSetup {
                    hosts: args.hosts,
                    interval: args.rate,
                    shards,
                    gro: true,
                    controller_core: args.controller_core,
                    fleet_core: args.core,
                };
                let own = Stage::controller(world, &setup).await?;
                println!("a controller of its own at {}, API {}", own.beats(), own.url());
                (own.beats(), world.secret().clone(), Some(own))
            }
        };
        let api = match (&own, &args.api, &args.token_file) {
            (Some(own), ..) => Some(own.api()?),
            (None, Some(url), Some(token)) => Some(Api::new(url, token)?),
            _ => None,
        };
        let mut setup = MassSetup::new(address, secret, args.hosts);
        setup.join = args.join.unwrap_or(setup.join);
        let setup = MassSetup {
            interval: args.rate,
            jitter: args.jitter,
            boot: args.boot,
            sockets: args.sockets,
            shards,
            segments: args.segments,
            core: args.core,
            first: if args.sink { First::Beat } else { First::Hello },
            ..setup
        };
        let mass = Mass::start(&setup)?;
        let before = mass.counts().all();
        let sink = sink.map(|s| (s.counted(), s)).map(|(c, s)| (s, c));
        Ok(Self { mass, api, own, sink, args, plan, before })
    }

    /// One line of progress.
    async fn progress(&mut self, since: heartwatch_common::time::Instant) {
        let all = self.mass.counts().all();
        let late_us = self.mass.counts().late_us.swap(0, Ordering::Relaxed);
        let of =
            |name: &str, rows: &[(&str, u64)]| rows.iter().find(|r| r.0 == name).map_or(0, |r| r.1);
        let grown = |name: &str| of(name, &all).saturating_sub(of(name, &self.before));
        print!(
            "{:>4} s  {} known; {} beats, {} acks, {} probes answered in 1 s; up to {:.1} ms late, {:.0} ns \
             CPU a beat",
            now().since(since).as_secs(),
            of("settled", &all),
            grown("beats"),
            grown("acks"),
            grown("probes_answered"),
            late_us as f64 / 1e3,
            grown("cpu_us") as f64 * 1e3 / grown("beats").max(1) as f64,
        );
        self.before = all;
        if let Some(api) = &self.api
            && let Ok(status) = api.get("/v1/status").await
        {
            let of = |s: &str| format!("{} {s}", number(&status, &format!("/hosts/{s}")));
            print!("; controller: {}", STATES.map(of).join(", "));
            if let Ok(scrape) = api.metrics().await {
                print!(", {} suspected wrongly so far", sum(&scrape, MISTAKES, ""));
            }
        }
        if let Some((sink, before)) = &mut self.sink {
            let is = sink.counted();
            let read = (is.received - before.received) as f64;
            let cpu = is.cpu.saturating_sub(before.cpu).as_nanos() as f64;
            let dropped = is.dropped - before.dropped;
            print!("; {read} read, {dropped} dropped, {:.0} ns CPU each", cpu / read.max(1.0));
            *before = is;
        }
        println!();
    }

    async fn wait(&mut self, span: Duration) {
        let begin = now();
        while now().since(begin) < span {
            let left = span.saturating_sub(now().since(begin));
            tokio::time::sleep(left.min(Duration::from_secs(1))).await;
            self.progress(begin).await;
        }
    }

    async fn go(&mut self) -> Result<()> {
        let begin = now();
        let hosts = self.args.hosts as u64;
        while self.sink.is_none() && count(&self.mass.counts().settled) < hosts {
            ensure!(
                now().since(begin) < JOIN_MAX,
                "after {JOIN_MAX:?} only {} of {hosts} hosts are known to the controller",
                count(&self.mass.counts().settled)
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.progress(begin).await;
        }
        if self.sink.is_none() {
            println!("all {hosts} hosts are known after {:.1} s", now().since(begin).as_secs_f64());
        }
        self.wait(self.args.at).await;
        for (name, act, places) in &self.plan.acts {
            println!("now {} hosts are {name}", places.len());
            self.mass.act(*act, places.clone());
        }
        let paused = self.plan.of_act(Act::Pause);
        match self.args.resume.filter(|at| !paused.is_empty() && *at < self.args.span) {
            Some(at) => {
                self.wait(at).await;
                println!("now the paused go on");
                self.mass.act(Act::Resume, paused);
                self.wait(self.args.span - at).await;
            }
            None => self.wait(self.args.span).await,
        }
        Ok(())
    }

    /// What was done and what was seen.
    async fn tell(&mut self) -> Result<()> {
        println!("\nthe fleet, in all:");
        for (name, value) in self.mass.counts().all() {
            println!("  {:<22} {value}", name.replace('_', " "));
        }
        let Some(api) = &self.api else {
            if self.sink.is_some() {
                return Ok(());
            }
            println!("give --api and --token-file to be told what the controller saw");
            return Ok(());
        };
        let gone: Vec<_> = [Act::Kill, Act::Pause, Act::Leave].map(|a| self.plan.of_act(a)).into();
        let killed = self.plan.of_act(Act::Kill);
        let (mut found, mut falsely) = (0usize, 0usize);
        for host in api.hosts_where("state=down,suspect&").await? {
            let Ok(id) = text(&host, "/id").parse() else { continue };
            let Some(place) = self.mass.place(&id) else { continue };
            if killed.contains(&place) && text(&host, "/state") == "down" {
                found += 1;
            } else if !gone.iter().any(|g| g.contains(&place)) {
                falsely += 1;
            }
        }
        let scrape = api.metrics().await?;
        let total = |name: &str| sum(&scrape, &format!("heartwatch_{name}_total"), "");
        println!("\nthe controller:");
        println!("  {:<44} {}", "killed", killed.len());
        println!("  {:<44} {found}", "of those, down now");
        println!("  {:<44} {falsely}", "living, but suspect or down now");
        println!("  {:<44} {}", "suspicions that proved wrong", total("mistakes"));
        println!("  {:<44} {}", "downs that proved wrong", total("false_downs"));
        println!("  {:<44} {}", "datagrams dropped at its sockets", total("datagrams_dropped"));
        if let Some(own) = &mut self.own {
            let pid = own.process()?.pid();
            let mib = machine::resident(pid)? as f64 / f64::from(1 << 20);
            println!("  {:<44} {mib:.0} MiB", "resident memory");
            println!("  {:<44} {:.1?}", "CPU time", machine::cpu_time(pid)?);
            println!("\n$ heartwatchctl status\n{}", own.ctl(&["status"])?.ok()?);
        }
        Ok(())
    }
}

async fn run(args: Args, world: &World) -> Result<()> {
    let mut run = Run::start(args, world).await?;
    tokio::select! {
        done = run.go() => done?,
        stopped = tokio::signal::ctrl_c() => {
            stopped.context("cannot wait for Ctrl-C")?;
            println!("\nstopped");
        }
    }
    run.tell().await
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let done = match World::new() {
        Ok(world) => {
            let done = run(args, &world).await;
            if done.is_err() {
                eprintln!("{}", world.logs(20));
            }
            done
        }
        Err(e) => Err(e),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("fleet: {e:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_beats_per_span() {
        let ms = |t: &str| interval(t).map(|d| d.as_millis());
        assert_eq!((ms("1/s"), ms("2/s"), ms("1/5s")), (Ok(1_000), Ok(500), Ok(5_000)));
        assert!(["1", "x/s", "0/s", "5000/s", "1/2m"].iter().all(|t| interval(t).is_err()));
    }

    #[test]
    fn a_plan_takes_different_hosts_for_different_things() {
        let line = ["fleet", "--hosts", "1000", "--kill", "10%", "--leave", "5", "--lossy", "2%"];
        let plan = Plan::of(&Args::parse_from(line)).unwrap();
        let spans: Vec<_> = plan.acts.iter().map(|a| a.2.clone()).collect();
        assert_eq!(spans, [0..100, 100..105, 105..125]);
        let all = ["fleet", "--hosts", "10", "--kill", "60%", "--pause", "50%"];
        assert!(Plan::of(&Args::parse_from(all)).is_err());
    }
}
