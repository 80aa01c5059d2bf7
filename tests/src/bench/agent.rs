//! `agent`: what the real agent costs its host at one beat a second.
//!
//! `rss_mib`: resident memory at the end of 60 s; `cpu_percent`: of one core, over those 60 s, after a
//! lead-in of 5 s; `binary_mib`: size of the release binary. The runs are agents that run side by side,
//! all to one real controller, with the default config but for names and paths.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Context, Figures};
use crate::machine;
use crate::world::{PATIENCE, World, binary, eventually, number};

const MIB: f64 = (1 << 20) as f64;

async fn measure(ctx: &Context) -> Result<Figures> {
    let world = World::new()?;
    let controller =
        world.controller().only_top("shards = 1\nlog_level = \"warn\"").start().await?;
    let api = controller.api()?;
    let binary_mib = std::fs::metadata(binary("heartwatch-agent")?)?.len() as f64 / MIB;
    let mut agents = Vec::new();
    for n in 0..ctx.runs() {
        let agent = world
            .agent(&format!("bench-{n}"))
            .label("pool", "web")
            .label("zone", "a")
            .label("rack", "r1")
            .interval("1s")
            .log_level("info")
            .beats_to(controller.beats())
            .start()?;
        agents.push(agent);
    }
    eventually(PATIENCE, "all agents are alive", || async {
        let alive = number(&api.get("/v1/status").await?, "/hosts/alive");
        ensure!(alive == ctx.runs() as u64, "{alive} are");
        Ok(Some(()))
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let pids: Vec<u32> =
        agents.iter_mut().map(|a| Ok(a.process()?.pid())).collect::<Result<_>>()?;
    let beats = || api.metric("heartwatch_beats_received_total", &[]);
    let (first, before) = (beats().await?, times(&pids)?);
    let span = Duration::from_secs(if ctx.quick { 10 } else { 60 });
    tokio::time::sleep(span).await;
    let (last, after) = (beats().await?, times(&pids)?);
    println!("  {} beats of {} agents in {} s", last - first, pids.len(), span.as_secs());
    let mut runs = Vec::new();
    for ((pid, before), after) in pids.iter().zip(before).zip(after) {
        let percent = after.saturating_sub(before).as_secs_f64() * 100.0 / span.as_secs_f64();
        let rss_mib = machine::resident(*pid)? as f64 / MIB;
        println!("  agent {pid}: {rss_mib:.2} MiB resident, {percent:.3} % of a core");
        runs.push(vec![("rss_mib", rss_mib), ("cpu_percent", percent), ("binary_mib", binary_mib)]);
    }
    Ok(Figures::medians(&runs))
}

fn times(pids: &[u32]) -> Result<Vec<Duration>> {
    pids.iter().map(|p| machine::threads_time(*p).context("an agent's CPU time")).collect()
}

pub(super) fn run(ctx: &Context) -> Result<Figures> {
    ctx.runtime.block_on(measure(ctx))
}
