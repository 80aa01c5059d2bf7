//! `million`: a million hosts at one beat a second, generator and controller on the same cores.
//!
//! `dropped`: datagrams that the kernel dropped, at the controller's sockets or before them. Nobody dies,
//! so every suspicion is false: `false_suspects`. `cpu_cores`: the controller's CPU time ÷ time, all its
//! threads. A run is 60 s, 8 s with `--quick`; the runs follow each other without a pause, so what one
//! leaves behind the next finds.

use std::time::Duration;

use anyhow::Result;

use super::stage::{Stage, StageSetup};
use super::{Context, Figures};
use crate::fleet::count;
use crate::machine;
use crate::world::World;

async fn measure(ctx: &Context) -> Result<Figures> {
    let world = World::new()?;
    let setup = StageSetup {
        hosts: ctx.fewer_hosts(),
        interval: Duration::from_secs(1),
        shards: machine::cores().len().clamp(1, 64) as u16,
        gro: true,
        controller_core: None,
        fleet_core: None,
    };
    let mut stage = Stage::raise(&world, setup).await?;
    // Past the cold start.
    tokio::time::sleep(Duration::from_secs(if ctx.quick { 3 } else { 20 })).await;
    let span = Duration::from_secs(if ctx.quick { 8 } else { 60 });
    let mut runs = Vec::new();
    for run in 1..=ctx.runs() {
        let backlog = machine::backlog_drops();
        let (sent, late) =
            (count(&stage.mass.counts().beats), count(&stage.mass.counts().beats_late));
        let own = machine::own_time();
        let before = stage.look().await?;
        tokio::time::sleep(span).await;
        let w = stage.look().await?.since(&before);
        let dropped = w.dropped + machine::backlog_drops().saturating_sub(backlog) as f64;
        let cores = w.cpu / w.wall;
        println!(
            "  run {run}: {:.0} beats/s sent ({:.2} % of them > 5 ms late), {:.0} taken; {dropped} \
             dropped, {} lost by their numbers, {} suspects, {} downs; controller {cores:.3} cores, \
             {:.0} ns a datagram; generator {:.3} cores",
            (count(&stage.mass.counts().beats) - sent) as f64 / w.wall,
            (count(&stage.mass.counts().beats_late) - late) as f64 * 100.0 / w.beats.max(1.0),
            w.beats / w.wall,
            w.lost,
            w.suspects,
            w.downs,
            w.cpu * 1e9 / w.received.max(1.0),
            machine::own_time().saturating_sub(own).as_secs_f64() / w.wall,
        );
        runs.push(vec![("dropped", dropped), ("false_suspects", w.suspects), ("cpu_cores", cores)]);
    }
    Ok(Figures::medians(&runs))
}

pub(super) fn run(ctx: &Context) -> Result<Figures> {
    ctx.runtime.block_on(measure(ctx))
}
