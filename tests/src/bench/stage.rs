//! A real controller with a mass of hosts that it knows: where every measurement begins.
//!
//! The hosts are in its registry before it starts, so a stage begins as after a restart of the controller;
//! what it costs to register them is measured by itself, in `register`.

use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heartwatch_common::time::Instant;

use super::prepared;
use crate::fleet::{First, Mass, MassSetup, count};
use crate::machine;
use crate::world::{Api, Controller, ControllerSetup, World, eventually, now, number};

/// How long a whole fleet may take to become known and its joining to be journaled.
const JOIN_MAX: Duration = Duration::from_secs(600);

/// Beats a second while the hosts come back to a controller that was away; only then all that is wanted.
const GENTLE_PER_S: f64 = 150_000.0;

/// Steps of niceness of the controller where it shares cores with the generator. The hosts are the world
/// outside: in truth none of them beats later because the controller is busy.
const STEPS: u8 = 10;

/// What a stage is made of.
#[derive(Clone, Copy, Debug)]
pub struct StageSetup {
    /// Hosts.
    pub hosts: usize,
    /// Time between two beats of a host.
    pub interval: Duration,
    /// Shards of the controller.
    pub shards: u16,
    /// Whether the controller takes super-packets. The generator sends for many hosts by one socket, so with
    /// them a datagram costs the kernel a tenth of what it costs from hosts that beat for themselves.
    pub gro: bool,
    /// The core on which the whole controller stays.
    pub controller_core: Option<usize>,
    /// The core on which the generator stays.
    pub fleet_core: Option<usize>,
}

/// What the controller says of itself at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// When.
    pub at: Instant,
    /// CPU time used so far.
    pub cpu: Duration,
    /// Datagrams read.
    pub received: f64,
    /// Datagrams dropped at its sockets.
    pub dropped: f64,
    /// Beats that proved life.
    pub beats: f64,
    /// Beats that never came, by the hosts' numbering.
    pub lost: f64,
    /// Hosts that became suspect.
    pub suspects: f64,
    /// Suspicions that proved wrong.
    pub mistakes: f64,
    /// Hosts that became down.
    pub downs: f64,
    /// Downs that proved wrong.
    pub false_downs: f64,
    /// Datagrams that came to a shard that they do not belong to.
    pub astray: f64,
    /// The longest time that a shard did not look at its sockets, seconds, since the start.
    pub longest_pass: f64,
}

/// Sum over a metric's samples in a scrape whose line holds `label`.
pub fn sum(scrape: &str, name: &str, label: &str) -> f64 {
    let samples = scrape.lines().filter_map(|l| l.strip_prefix(name));
    let mine = samples.filter(|l| l.starts_with(['{', ' ']) && l.contains(label));
    mine.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn greatest(scrape: &str, name: &str) -> f64 {
    let samples = scrape.lines().filter_map(|l| l.strip_prefix(name));
    let mine = samples.filter(|l| l.starts_with(['{', ' ']));
    mine.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).fold(0.0, f64::max)
}

/// Everything that runs.
pub struct Stage<'w> {
    /// The hosts.
    pub mass: Mass,
    /// The controller.
    pub controller: Controller,
    /// Its API.
    pub api: Api,
    /// What it was made of.
    pub setup: StageSetup,
    world: &'w World,
}

impl<'w> Stage<'w> {
    /// Starts a controller, without hosts.
    pub async fn controller(world: &'w World, setup: &StageSetup) -> Result<Controller> {
        Self::controller_with(world, setup, |controller| controller).await
    }

    async fn controller_with(
        world: &'w World,
        setup: &StageSetup,
        more: impl FnOnce(ControllerSetup<'w>) -> ControllerSetup<'w>,
    ) -> Result<Controller> {
        let top = format!("shards = {}\ngro = {}\nlog_level = \"warn\"", setup.shards, setup.gro);
        let controller = more(world.controller().only_top(&top).nice(STEPS));
        Self::on_its_core(setup, controller.start()).await
    }

    /// Has a controller started on its core: what this thread starts inherits it.
    async fn on_its_core<T>(
        setup: &StageSetup,
        start: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let all = machine::cores();
        machine::stay_on(setup.controller_core)?;
        let started = start.await;
        machine::stay_on_all(&all)?;
        started
    }

    /// Starts a controller that knows the hosts, and the hosts, and waits until every one is alive.
    pub async fn raise(world: &'w World, setup: StageSetup) -> Result<Self> {
        Self::raise_with(world, setup, |controller| controller).await
    }

    /// The same, with more in the controller's config.
    pub async fn raise_with(
        world: &'w World,
        setup: StageSetup,
        more: impl FnOnce(ControllerSetup<'w>) -> ControllerSetup<'w>,
    ) -> Result<Self> {
        let begin = now();
        let mut controller = Self::controller_with(world, &setup, more).await?;
        controller.pin_ports()?;
        controller.stop().await?;
        let gentle = setup.interval.max(Duration::from_secs_f64(setup.hosts as f64 / GENTLE_PER_S));
        let mass = Mass::start(&MassSetup {
            interval: gentle,
            shards: setup.shards,
            core: setup.fleet_core,
            first: First::BeatUntilAcked,
            join: gentle,
            ..MassSetup::new(controller.beats(), world.secret().clone(), setup.hosts)
        })?;
        prepared::fill(controller.state_dir(), &mass, setup.hosts).await?;
        let registered = now().since(begin).as_secs_f64();
        // The hosts beat already when it comes back: otherwise it would miss them.
        Self::on_its_core(&setup, controller.start()).await?;
        let api = controller.api()?;
        let mut stage = Self { mass, controller, api, setup, world };
        stage.all_alive().await?;
        let alive = now().since(begin).as_secs_f64();
        stage.mass.set_interval(setup.interval);
        tokio::time::sleep(gentle.mul_f64(1.3)).await;
        stage.all_alive().await?;
        println!(
            "  {} hosts: in the registry after {registered:.1} s, alive after {alive:.1} s, at their own \
             pace after {:.1} s",
            setup.hosts,
            now().since(begin).as_secs_f64()
        );
        Ok(stage)
    }

    /// The world in which it stands.
    pub fn world(&self) -> &'w World {
        self.world
    }

    /// Waits until the controller and the hosts agree that all of them are known, and news is written.
    pub async fn all_alive(&self) -> Result<Duration> {
        let hosts = self.setup.hosts as u64;
        let begin = now();
        eventually(JOIN_MAX, &format!("{hosts} hosts are settled"), || async {
            let settled = count(&self.mass.counts().settled);
            ensure!(settled == hosts, "{settled} of them are");
            Ok(Some(()))
        })
        .await?;
        self.calm().await?;
        Ok(now().since(begin))
    }

    /// Waits until the controller calls all of them alive, and news is written. Hosts whose acks were lost
    /// may still ask for one at every beat: a shard sends 4,000 a second, and one for 64 datagrams read.
    pub async fn calm(&self) -> Result<()> {
        let hosts = self.setup.hosts as u64;
        eventually(JOIN_MAX, &format!("{hosts} hosts are known and alive"), || async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let status = self.api.get("/v1/status").await?;
            let alive = number(&status, "/hosts/alive");
            ensure!(alive == hosts, "{alive} of them are alive: {}", status["hosts"]);
            let scrape = self.api.metrics().await?;
            let waiting = sum(&scrape, "heartwatch_notices_waiting", "")
                + sum(&scrape, "heartwatch_events_waiting", "")
                + sum(&scrape, "heartwatch_rows_waiting", "");
            ensure!(waiting == 0.0, "{waiting} notices, events and rows wait");
            Ok(Some(()))
        })
        .await
    }

    /// Reads the controller's figures.
    pub async fn look(&mut self) -> Result<Seen> {
        let pid = self.controller.process()?.pid();
        let scrape = self.api.metrics().await?;
        let of = |name: &str| sum(&scrape, &format!("heartwatch_{name}"), "");
        Ok(Seen {
            at: now(),
            cpu: machine::cpu_time(pid)?,
            received: of("datagrams_received_total"),
            dropped: of("datagrams_dropped_total"),
            beats: of("beats_received_total"),
            lost: of("beats_lost_total"),
            suspects: of("suspects_total"),
            mistakes: of("mistakes_total"),
            downs: of("downs_total"),
            false_downs: of("false_downs_total"),
            astray: sum(&scrape, "heartwatch_datagrams_rejected_total", "other_shard"),
            longest_pass: greatest(&scrape, "heartwatch_shard_longest_pass_seconds"),
        })
    }

    /// Its resident memory, bytes.
    pub fn resident(&mut self) -> Result<u64> {
        machine::resident(self.controller.process()?.pid())
    }
}

impl Seen {
    /// What has happened since `before`.
    pub fn since(&self, before: &Self) -> Window {
        let wall = self.at.since(before.at).as_secs_f64();
        Window {
            wall,
            cpu: self.cpu.saturating_sub(before.cpu).as_secs_f64(),
            seen: Seen {
                received: self.received - before.received,
                dropped: self.dropped - before.dropped,
                beats: self.beats - before.beats,
                lost: self.lost - before.lost,
                suspects: self.suspects - before.suspects,
                mistakes: self.mistakes - before.mistakes,
                downs: self.downs - before.downs,
                false_downs: self.false_downs - before.false_downs,
                astray: self.astray - before.astray,
                ..*self
            },
        }
    }
}

/// What happened in a span of time.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// How long it was, seconds.
    pub wall: f64,
    /// CPU time of the controller in it, seconds.
    pub cpu: f64,
    seen: Seen,
}

impl Deref for Window {
    type Target = Seen;
    fn deref(&self) -> &Seen {
        &self.seen
    }
}

/// A share such as `10%`, or a number, of `hosts`.
pub fn portion(text: &str, hosts: usize) -> Result<usize> {
    let number = |t: &str| t.parse::<f64>().with_context(|| format!("`{t}` is no number"));
    let many = match text.strip_suffix('%') {
        Some(share) => hosts as f64 * number(share)? / 100.0,
        None => number(text)?,
    };
    ensure!((0.0..=hosts as f64).contains(&many), "`{text}` of {hosts} hosts is not possible");
    Ok(many.round() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_are_shares_or_numbers() {
        assert_eq!(portion("10%", 1_000_000).unwrap(), 100_000);
        assert_eq!(portion("7", 10).unwrap(), 7);
        for bad in ["11", "101%", "-1", "x"] {
            assert!(portion(bad, 10).is_err(), "{bad}");
        }
    }

    #[test]
    fn samples_are_summed_by_name_and_label() {
        let scrape =
            "# HELP a_total x\na_total{shard=\"0\"} 2\na_total{shard=\"1\"} 3\na_totals 9\n";
        assert_eq!(sum(scrape, "a_total", ""), 5.0);
        assert_eq!(sum(scrape, "a_total", "shard=\"1\""), 3.0);
        assert_eq!(greatest(scrape, "a_total"), 3.0);
    }
}
