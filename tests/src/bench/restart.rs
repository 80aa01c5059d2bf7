//! `restart`: kill -9 and start again, while a million hosts beat.
//!
//! `blind_s`: from the kill until every host has sent a beat with the new controller's epoch, which it can
//! know from this start only: a proof of life, so from then on each is judged by its own beats again.
//! `false_downs`: hosts called down in the 15 s (quick: 8 s) after that or before; nobody died. Each run
//! kills the controller that the one before it has started.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::{Stage, StageSetup, sum};
use super::{Context, Figures};
use crate::fleet::count;
use crate::machine;
use crate::world::{World, eventually, now};

/// How long the return of all hosts may take.
const BACK_MAX: Duration = Duration::from_secs(180);

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
    stage.controller.pin_ports()?;
    let mut runs = Vec::new();
    for run in 1..=ctx.runs() {
        let begin = now();
        stage.controller.kill()?;
        stage.controller.start().await?;
        let ready = now().since(begin);
        stage.api = stage.controller.api()?;
        eventually(BACK_MAX, "all hosts beat with the new epoch", || async {
            let shown = count(&stage.mass.counts().shown);
            ensure!(shown == ctx.fewer_hosts() as u64, "{shown} of {} do", ctx.fewer_hosts());
            Ok(Some(()))
        })
        .await?;
        let blind = now().since(begin);
        tokio::time::sleep(Duration::from_secs(if ctx.quick { 8 } else { 15 })).await;
        let scrape = stage.api.metrics().await?;
        let of = |name: &str| sum(&scrape, &format!("heartwatch_{name}_total"), "");
        println!(
            "  run {run}: ready after {:.1} s, all proven after {:.1} s; {} down, {} suspected, {} \
             dropped",
            ready.as_secs_f64(),
            blind.as_secs_f64(),
            of("downs"),
            of("suspects"),
            of("datagrams_dropped"),
        );
        runs.push(vec![("blind_s", blind.as_secs_f64()), ("false_downs", of("downs"))]);
        stage.all_alive().await?;
    }
    Ok(Figures::medians(&runs))
}

pub(super) fn run(ctx: &Context) -> Result<Figures> {
    ctx.runtime.block_on(measure(ctx))
}
