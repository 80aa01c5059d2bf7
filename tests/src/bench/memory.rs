//! `memory`: resident bytes of the whole controller ÷ hosts.
//!
//! A million hosts with a name and three labels each, all registered and beating once a second. Nothing is
//! subtracted: code, threads, buffers of the store and receive batches are in it. (Socket buffers are
//! the kernel's and are not.) The runs are readings of one controller, some seconds apart.

use std::time::Duration;

use anyhow::Result;

use super::stage::{Stage, StageSetup};
use super::{Context, Figures};
use crate::machine;
use crate::world::World;

async fn measure(ctx: &Context) -> Result<Figures> {
    let world = World::new()?;
    let setup = StageSetup {
        hosts: ctx.hosts,
        interval: Duration::from_secs(1),
        shards: machine::cores().len().clamp(1, 64) as u16,
        gro: true,
        controller_core: None,
        fleet_core: None,
    };
    let mut stage = Stage::raise(&world, setup).await?;
    let mut runs = Vec::new();
    for run in 1..=ctx.runs() {
        tokio::time::sleep(Duration::from_secs(if ctx.quick { 3 } else { 5 })).await;
        let bytes = stage.resident()? as f64;
        let per_host = bytes / ctx.hosts as f64;
        println!("  run {run}: {:.0} MiB, {per_host:.1} bytes a host", bytes / f64::from(1 << 20));
        runs.push(vec![("bytes_per_host", per_host)]);
    }
    Ok(Figures::medians(&runs))
}

pub(super) fn run(ctx: &Context) -> Result<Figures> {
    ctx.runtime.block_on(measure(ctx))
}
