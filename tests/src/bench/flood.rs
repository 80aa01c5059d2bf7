//! `flood`: 200,000 forged datagrams a second beside 100,000 hosts that beat once a second each.
//!
//! A quarter each: beats of known hosts under wrong tags, beats of hosts that do not exist, noise, and true
//! beats that were recorded. Each goes by itself (no super-packets), so it costs the kernel what a
//! stranger's datagram costs. In the midst of it 100 hosts die, ten of which the attacker has recordings of.
//!
//! `accepted_share`: true beats taken ÷ sent, by the hosts' own numbers. `false_suspects`, `false_downs`: of
//! hosts that live. `killed_found`: share of those killed that were called down. `detect_s`: from the kill
//! until the median one of them was down; `detect_max_s`: the last. `dropped`: datagrams of either kind
//! that the kernel dropped, at the controller's sockets or before. `forged_per_s`: what was reached;
//! attacker, hosts and controller share the cores. `cpu_cores`: the controller's CPU time ÷ time.
//!
//! Before that, `forged_ns` and `true_ns`: what a datagram costs a shard in user space, alone, in CPU time.

use std::time::Duration;

use anyhow::{Result, ensure};
use heartwatch_common::id::{Epoch, HostId};

use super::stage::{Stage, StageSetup, sum};
use super::{Context, Figures, quantile};
use crate::beatpath::BeatPath;
use crate::fleet::{Act, Flood, FloodSetup, Forgery, count};
use crate::machine;
use crate::world::{World, now, number, text};

const HOSTS: usize = 100_000;
const FORGED_PER_S: u32 = 200_000;
/// Hosts that die, and how many of them the attacker has recordings of.
const KILLED: usize = 100;
const KILLED_RECORDED: usize = 10;
/// Hosts that he has recordings of.
const RECORDED: usize = 2_000;
/// How long finding the dead may take.
const FOUND_MAX: Duration = Duration::from_secs(60);
/// Of the cost in user space: hosts, and beats fed at once.
const COST_HOSTS: usize = 10_000;
const COST_BEATS: usize = 200_000;

/// Nanoseconds of CPU time that a true and a forged beat cost a shard, both without what the kernel does.
fn costs() -> Result<(f64, f64)> {
    let mut path = BeatPath::new(COST_HOSTS)?;
    let mut of = [f64::INFINITY; 2];
    for _ in 0..3 {
        let beats = path.seal(COST_BEATS);
        let forged = BeatPath::forge(&beats);
        for (at, fed) in [(1, &forged), (0, &beats)] {
            let begin = machine::thread_time();
            let taken = path.feed(fed);
            let spent = machine::thread_time().saturating_sub(begin);
            let wanted = if at == 0 { COST_BEATS as u64 } else { 0 };
            ensure!(taken.beats == wanted, "{} beats were taken of {wanted}", taken.beats);
            of[at] = of[at].min(spent.as_nanos() as f64 / COST_BEATS as f64);
        }
    }
    Ok((of[0], of[1]))
}

/// When each of those killed was found, in order, seconds after the kill.
async fn find(stage: &Stage<'_>, killed: &[HostId], after: &str) -> Result<Vec<f64>> {
    let begin = now();
    let mut found = Vec::with_capacity(killed.len());
    let mut cursor = after.to_owned();
    while found.len() < killed.len() && now().since(begin) < FOUND_MAX {
        let (events, next) = stage.api.events(&cursor).await?;
        cursor = next;
        let at = now().since(begin).as_secs_f64();
        let downs = events.iter().filter(|e| {
            let is_end = ["host.down", "host.agent-lost"].contains(&text(e, "/type"));
            is_end && text(e, "/host").parse().is_ok_and(|id| killed.contains(&id))
        });
        found.extend(downs.map(|_| at));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(found)
}

async fn once(
    stage: &mut Stage<'_>,
    run: usize,
    span: Duration,
) -> Result<Vec<(&'static str, f64)>> {
    let status = stage.api.get("/v1/status").await?;
    let epoch = Epoch(u32::try_from(number(&status, "/epoch"))?);
    let mass = &stage.mass;
    let hosts = stage.setup.hosts;
    let flood = Flood::start(FloodSetup {
        controller: stage.controller.beats(),
        secret: stage.world().secret().clone(),
        hosts: (0..hosts).map(|place| mass.id(place)).collect(),
        recorded: (0..RECORDED.min(hosts)).map(|place| mass.id(place)).collect(),
        epoch,
        rate: FORGED_PER_S,
        kinds: Forgery::ALL.to_vec(),
        sockets: 16,
        seed: run as u64,
    })?;
    // Each run kills others: some that are recorded, and some that are not.
    let recorded = (run - 1) * KILLED_RECORDED;
    let others = RECORDED + (run - 1) * KILLED;
    let spans = [recorded..recorded + KILLED_RECORDED, others..others + KILLED - KILLED_RECORDED];
    let killed: Vec<HostId> = spans.iter().cloned().flatten().map(|place| mass.id(place)).collect();

    let (backlog, begin) = (machine::backlog_drops(), now());
    let (sent, late) = (count(&mass.counts().beats), count(&mass.counts().beats_late));
    let before = stage.look().await?;
    tokio::time::sleep(span / 2).await;
    let (_, after) = stage.api.events("").await?;
    spans.iter().for_each(|places| stage.mass.act(Act::Kill, places.clone()));
    let found = find(stage, &killed, &after).await?;
    tokio::time::sleep((span / 2).saturating_sub(now().since(begin).saturating_sub(span / 2)))
        .await;
    let w = stage.look().await?.since(&before);
    let counts = stage.mass.counts();
    let (sent, late) = (count(&counts.beats) - sent, count(&counts.beats_late) - late);
    let forged = count(&flood.counts().sent) as f64 / now().since(begin).as_secs_f64();
    let (errors, flood_cpu) = (count(&flood.counts().errors), count(&flood.counts().cpu_us));
    drop(flood);

    let dropped = w.dropped + machine::backlog_drops().saturating_sub(backlog) as f64;
    let scrape = stage.api.metrics().await?;
    let unauthentic = sum(&scrape, "heartwatch_datagrams_rejected_total", "reason=\"unauthentic\"");
    // Not by what was taken: answers to probes count as beats there.
    let share = 1.0 - w.lost / sent.max(1) as f64;
    let false_suspects = w.suspects - killed.len() as f64;
    let false_downs = (w.downs - found.len() as f64).max(0.0);
    println!(
        "  run {run}: {forged:.0} forged/s ({errors} not sent), {:.0} true beats/s ({:.2} % of them > 5 \
         ms late); {:.0} datagrams/s read, {dropped} dropped, {} beats lost by their numbers; accepted \
         {share:.5}; {} of {} killed found, the median after {:.2} s, the last after {:.2} s; {} \
         suspects, {} downs, {unauthentic} unauthentic so far; controller {:.2} cores, flood {:.2}",
        sent as f64 / w.wall,
        late as f64 * 100.0 / sent.max(1) as f64,
        w.received / w.wall,
        w.lost,
        found.len(),
        killed.len(),
        quantile(found.clone(), 0.5),
        quantile(found.clone(), 1.0),
        w.suspects,
        w.downs,
        w.cpu / w.wall,
        flood_cpu as f64 / 1e6 / now().since(begin).as_secs_f64(),
    );
    // For the next run they live again.
    spans.iter().for_each(|places| stage.mass.act(Act::Restart, places.clone()));
    stage.all_alive().await?;
    Ok(vec![
        ("accepted_share", share),
        ("false_suspects", false_suspects.max(0.0)),
        ("false_downs", false_downs),
        ("killed_found", found.len() as f64 / killed.len() as f64),
        ("detect_s", quantile(found.clone(), 0.5)),
        ("detect_max_s", quantile(found, 1.0)),
        ("dropped", dropped),
        ("forged_per_s", forged),
        ("cpu_cores", w.cpu / w.wall),
    ])
}

async fn measure(ctx: &Context) -> Result<Figures> {
    let (true_ns, forged_ns) = costs()?;
    println!(
        "  a true beat costs a shard {true_ns:.0} ns in user space, a forged one {forged_ns:.0} ns"
    );
    let world = World::new()?;
    let setup = StageSetup {
        hosts: HOSTS.min(ctx.hosts),
        interval: Duration::from_secs(1),
        shards: machine::cores().len().clamp(1, 64) as u16,
        gro: true,
        controller_core: None,
        fleet_core: None,
    };
    // A hundred dead of so many hosts are no storm, but they are of few racks: their orders are not looked
    // at here.
    let mut stage = Stage::raise(&world, setup).await?;
    // Past the cold start.
    tokio::time::sleep(Duration::from_secs(if ctx.quick { 3 } else { 20 })).await;
    let span = Duration::from_secs(if ctx.quick { 16 } else { 30 });
    let mut runs = Vec::new();
    for run in 1..=ctx.fewer_runs() {
        let mut figures = once(&mut stage, run, span).await?;
        figures.extend([("true_ns", true_ns), ("forged_ns", forged_ns)]);
        runs.push(figures);
    }
    Ok(Figures::medians(&runs))
}

pub(super) fn run(ctx: &Context) -> Result<Figures> {
    ctx.runtime.block_on(measure(ctx))
}
