//! `ingest`: how many beats a second one core takes.
//!
//! The whole controller process stays on one core, the generator on the other. A million hosts are
//! registered and alive. The generator offers a rate, evenly paced and in random order of hosts; after a
//! lead-in, a window is counted. A rate is *sustained* if in that window
//!
//! - the kernel dropped nothing at the controller's sockets nor before them,
//! - the controller read as many datagrams as were sent, within 1 %: no queue grew,
//! - and the generator kept up: it sent as many, within 2 %, or no more than 5 % of its beats left more than
//!   5 ms late (for some seconds after a change of interval the hosts' schedules are uneven).
//!
//! A rate that is not sustained is tried a second time, and only what fails twice is too fast: a machine
//! whose processors are taken away for a few milliseconds drops datagrams at any rate. The sink is treated
//! alike. A window ends early at its first drop: the longer a controller is kept beyond what it can take, the
//! longer it takes until it calls everybody alive again.
//!
//! The highest sustained rate is searched upwards, by what the receiver had left of its core, by 6 % to a
//! half at a time, and once a rate was too fast by bisection to 6 % (quick: 10 %), which is less than two
//! runs differ by; later runs begin near the rate
//! that the one before found. The same is done with the bare sink, in the same run; `ratio` is the one
//! divided by the other. `controller_ns`
//! and `sink_ns` are CPU time per datagram at those rates, all threads of the controller included, and
//! `cpu_ratio` is the second divided by the first: that hardly depends on what else the machine does, and a
//! process that gets less than its core (`busy` far below 100 % at the limit) shows in the first alone.
//!
//! If the generator is the limit, that is said, and the rate is a lower bound.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::sink::Sink;
use super::stage::{Stage, StageSetup};
use super::{Context, Figures};
use crate::fleet::{First, Mass, MassSetup, count};
use crate::machine;
use crate::world::{World, now};

/// No more than this is tried.
const RATE_MAX: f64 = 4_000_000.0;
/// How a rate is searched.
#[derive(Clone, Copy, Debug)]
struct Manner {
    /// The first rate that is tried, beats a second.
    first: f64,
    /// The search ends when bounds are this close, and goes up by no less.
    close: f64,
}

const THOROUGH: Manner = Manner { first: 500_000.0, close: 1.06 };
const QUICK: Manner = Manner { first: 700_000.0, close: 1.1 };
/// The search goes up by no more than this (from a rate that was found, by less), and to where the receiver
/// would be that busy.
const STEP_MAX: f64 = 1.5;
const STEP_NEAR: f64 = 1.06;
const BUSY_WANTED: f64 = 0.93;
/// A window is looked at so often, whether anything was dropped.
const GLANCE_EVERY: Duration = Duration::from_secs(1);
/// A rate that fails now for this reason and now for that is not tried more often.
const TRIES_MAX: u32 = 4;
/// Of what a generator that keeps up sends, no greater share is late.
const LATE_MAX: f64 = 0.05;

/// How one rate went.
#[derive(Clone, Copy, Debug)]
struct Trial {
    /// Sent per second.
    sent: f64,
    /// Read per second.
    read: f64,
    dropped: f64,
    /// Hosts that it suspected; a sink suspects nobody.
    suspects: f64,
    /// CPU time of the receiver per datagram, ns.
    ns: f64,
    /// CPU time of the receiver ÷ time.
    busy: f64,
    /// Share of the beats that left more than 5 ms late.
    late: f64,
}

impl Trial {
    fn verdict(&self, wanted: f64) -> Verdict {
        if self.dropped > 0.0 || self.read < 0.99 * self.sent {
            Verdict::TooFast
        } else if self.late > LATE_MAX && self.sent < 0.98 * wanted {
            Verdict::GeneratorLimit
        } else {
            Verdict::Sustained
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Sustained,
    TooFast,
    /// Everything that was sent was taken, but less was sent than wanted.
    GeneratorLimit,
}

fn interval_for(hosts: usize, rate: f64) -> Duration {
    Duration::from_millis((hosts as f64 * 1_000.0 / rate).round() as u64)
}

/// Searches the highest sustained rate, from `near` if there is one.
async fn search(
    who: &str,
    near: Option<f64>,
    manner: Manner,
    mut attempt: impl AsyncFnMut(f64) -> Result<Trial>,
) -> Result<Trial> {
    let (mut good, mut bad): (Option<(f64, Trial)>, Option<f64>) = (None, None);
    let mut rate = near.map_or(manner.first, |rate| rate * 0.97).min(RATE_MAX);
    let (mut failed, mut tries) = (None, 0);
    let step_max = if near.is_some() { STEP_NEAR } else { STEP_MAX };
    loop {
        let trial = attempt(rate).await?;
        let verdict = trial.verdict(rate);
        println!(
            "  {who:<10} {rate:>9.0}/s wanted, {:>9.0} sent, {:>9.0} read, {:>6.0} dropped, \
             {:>4.0} suspects, {:>4.0} ns CPU each, {:>3.0} % busy, {:.1} % sent late: {verdict:?}",
            trial.sent,
            trial.read,
            trial.dropped,
            trial.suspects,
            trial.ns,
            trial.busy * 100.0,
            trial.late * 100.0
        );
        tries += 1;
        if verdict != Verdict::Sustained && failed != Some(verdict) && tries < TRIES_MAX {
            failed = Some(verdict);
            continue;
        }
        (failed, tries) = (None, 0);
        match verdict {
            Verdict::TooFast => bad = Some(rate),
            Verdict::Sustained => good = Some((rate, trial)),
            Verdict::GeneratorLimit => {
                println!("  {who:<10} the generator is the limit: a lower bound");
                let found = good.map(|g| g.1).filter(|found| found.read > trial.read);
                return Ok(found.unwrap_or(trial));
            }
        }
        rate = match (good, bad) {
            (Some((g, trial)), Some(b)) if b / g <= manner.close => return Ok(trial),
            (Some((g, _)), Some(b)) => (g * b).sqrt(),
            (Some((g, trial)), None) => {
                g * (BUSY_WANTED / trial.busy).clamp(manner.close, step_max)
            }
            (None, Some(b)) => b / manner.close.powi(3),
            (None, None) => rate,
        };
        ensure!(rate > 1_000.0, "{who} takes not even {rate:.0}/s");
        if rate > RATE_MAX {
            println!("  {who:<10} more than {RATE_MAX}/s is not tried");
            return good.map(|g| g.1).ok_or_else(|| anyhow::anyhow!("nothing was sustained"));
        }
    }
}

/// Sets a rate and waits until every host keeps to it.
async fn settle(mass: &mut Mass, interval: Duration) {
    let before = mass.set_interval(interval);
    let longer = before.max(interval).max(Duration::from_secs(1));
    tokio::time::sleep(longer.mul_f64(1.3)).await;
}

/// Beats sent so far, and those of them that left late.
fn sent_and_late(mass: &Mass) -> (u64, u64) {
    let counts = mass.counts();
    (count(&counts.beats), count(&counts.beats_late))
}

async fn controller_trial(stage: &mut Stage<'_>, rate: f64, span: Duration) -> Result<Trial> {
    let hosts = stage.setup.hosts;
    settle(&mut stage.mass, interval_for(hosts, rate)).await;
    let backlog = machine::backlog_drops();
    let begin = stage.look().await?;
    // A look takes the controller a while: what was sent is counted by a clock of its own.
    let (at, (sent, late)) = (now(), sent_and_late(&stage.mass));
    let (w, (sent_2, late_2), sending) = loop {
        tokio::time::sleep(GLANCE_EVERY).await;
        let (counted, sending) = (sent_and_late(&stage.mass), now().since(at));
        let w = stage.look().await?.since(&begin);
        if sending >= span || w.dropped > 0.0 {
            break (w, counted, sending.as_secs_f64());
        }
    };
    let dropped = w.dropped + machine::backlog_drops().saturating_sub(backlog) as f64;
    let trial = Trial {
        sent: (sent_2 - sent) as f64 / sending,
        read: w.received / w.wall,
        dropped,
        suspects: w.suspects,
        ns: w.cpu * 1e9 / w.received.max(1.0),
        busy: w.cpu / w.wall,
        late: (late_2 - late) as f64 / (sent_2 - sent).max(1) as f64,
    };
    if trial.verdict(rate) == Verdict::TooFast {
        // Whom it did not hear it probes: give it room until all is well again.
        settle(&mut stage.mass, interval_for(hosts, rate / 3.0)).await;
        stage.calm().await?;
    }
    Ok(trial)
}

async fn sink_trial(
    sink: &Sink,
    mass: &mut Mass,
    hosts: usize,
    rate: f64,
    span: Duration,
) -> Result<Trial> {
    settle(mass, interval_for(hosts, rate)).await;
    let backlog = machine::backlog_drops();
    let (at, (sent, late), before) = (now(), sent_and_late(mass), sink.counted());
    let ((sent_2, late_2), after, wall) = loop {
        tokio::time::sleep(GLANCE_EVERY).await;
        let (counted, after, wall) = (sent_and_late(mass), sink.counted(), now().since(at));
        if wall >= span || after.dropped > before.dropped {
            break (counted, after, wall.as_secs_f64());
        }
    };
    let received = (after.received - before.received) as f64;
    let lost = machine::backlog_drops().saturating_sub(backlog);
    let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
    Ok(Trial {
        sent: (sent_2 - sent) as f64 / wall,
        read: received / wall,
        dropped: (after.dropped - before.dropped + lost) as f64,
        suspects: 0.0,
        ns: cpu * 1e9 / received.max(1.0),
        busy: cpu / wall,
        late: (late_2 - late) as f64 / (sent_2 - sent).max(1) as f64,
    })
}

async fn measure(ctx: &Context) -> Result<Figures> {
    let (core, other) = ctx.two_cores();
    let hosts = ctx.fewer_hosts();
    let span = Duration::from_secs(if ctx.quick { 3 } else { 4 });
    let world = World::new()?;
    let mut stage = Stage::raise(
        &world,
        StageSetup {
            hosts,
            interval: Duration::from_secs(4),
            shards: 1,
            gro: false,
            controller_core: Some(core),
            fleet_core: Some(other),
        },
    )
    .await?;
    let (runs, manner) = if ctx.quick { (1, QUICK) } else { (ctx.runs(), THOROUGH) };
    let mut controller = Vec::new();
    let mut near = None;
    for _ in 0..runs {
        let found = search("controller", near, manner, async |r| {
            controller_trial(&mut stage, r, span).await
        })
        .await?;
        near = Some(found.sent);
        controller.push(found);
    }
    drop(stage);
    let sink = Sink::start(Some(core))?;
    let mut mass = Mass::start(&MassSetup {
        first: First::Beat,
        join: Duration::from_secs(1),
        core: Some(other),
        ..MassSetup::new(sink.address, world.secret().clone(), hosts)
    })?;
    let mut bare = Vec::new();
    let mut near = None;
    for _ in 0..runs {
        let found = search("bare sink", near, manner, async |r| {
            sink_trial(&sink, &mut mass, hosts, r, span).await
        })
        .await?;
        near = Some(found.sent);
        bare.push(found);
    }
    let runs: Vec<_> = controller
        .iter()
        .zip(&bare)
        .map(|(c, s)| {
            vec![
                ("ratio", c.read / s.read),
                ("cpu_ratio", s.ns / c.ns),
                ("controller_per_s", c.read),
                ("sink_per_s", s.read),
                ("controller_ns", c.ns),
                ("sink_ns", s.ns),
            ]
        })
        .collect();
    Ok(Figures::medians(&runs))
}

pub(super) fn run(ctx: &Context) -> Result<Figures> {
    ctx.runtime.block_on(measure(ctx))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A receiver that takes `capacity` a second, at a cost that does not change, from a generator that
    /// sends no more than `generator` a second. Every trial whose number is in `disturbed` drops something.
    struct Rig {
        capacity: f64,
        generator: f64,
        disturbed: Vec<usize>,
        tried: Vec<f64>,
    }

    impl Rig {
        fn new(capacity: f64, generator: f64) -> Self {
            Self { capacity, generator, disturbed: Vec::new(), tried: Vec::new() }
        }

        fn attempt(&mut self, rate: f64) -> Trial {
            let disturbed = self.disturbed.contains(&self.tried.len());
            self.tried.push(rate);
            let sent = rate.min(self.generator);
            let read = sent.min(self.capacity);
            Trial {
                sent,
                read,
                dropped: if disturbed { 1.0 } else { sent - read },
                suspects: 0.0,
                ns: 1e9 / self.capacity,
                busy: read / self.capacity,
                late: if sent < rate { 1.0 } else { 0.0 },
            }
        }

        fn search(&mut self, near: Option<f64>) -> Result<Trial> {
            let runtime = tokio::runtime::Builder::new_current_thread().build()?;
            runtime.block_on(search("rig", near, THOROUGH, async |rate| Ok(self.attempt(rate))))
        }
    }

    #[test]
    fn the_highest_sustained_rate_is_found_from_anywhere() {
        for capacity in [120_000.0, 480_000.0, 1_000_000.0, 1_370_000.0, 3_000_000.0] {
            for near in [None, Some(capacity / 2.0), Some(capacity), Some(capacity * 2.0)] {
                let mut rig = Rig::new(capacity, f64::INFINITY);
                let found = rig.search(near).unwrap();
                assert!(found.read <= capacity && found.dropped == 0.0, "{near:?}: {found:?}");
                assert!(
                    found.read * THOROUGH.close.powi(2) >= capacity,
                    "{near:?}: {found:?} of {capacity}"
                );
                assert!(rig.tried.len() < 40, "{} trials", rig.tried.len());
            }
        }
    }

    #[test]
    fn one_disturbed_trial_is_tried_again_and_changes_nothing() {
        let calm = Rig::new(1_000_000.0, f64::INFINITY).search(None).unwrap();
        for disturbed in 0..4 {
            let mut rig =
                Rig { disturbed: vec![disturbed], ..Rig::new(1_000_000.0, f64::INFINITY) };
            let found = rig.search(None).unwrap();
            assert_eq!(found.read, calm.read, "trial {disturbed} was disturbed");
        }
    }

    #[test]
    fn a_generator_that_is_the_limit_is_a_lower_bound_and_no_more() {
        let mut rig = Rig::new(2_000_000.0, 1_100_000.0);
        let found = rig.search(None).unwrap();
        assert_eq!((found.read, found.dropped), (1_100_000.0, 0.0));
        assert_eq!(found.verdict(*rig.tried.last().unwrap()), Verdict::GeneratorLimit);
    }

    #[test]
    fn a_receiver_that_takes_nothing_is_an_error_and_an_endless_one_ends_the_search() {
        assert!(Rig::new(0.5, f64::INFINITY).search(None).is_err());
        let found = Rig::new(1e9, f64::INFINITY).search(None).unwrap();
        assert!(found.read <= RATE_MAX && found.read > RATE_MAX / STEP_MAX);
    }
}
