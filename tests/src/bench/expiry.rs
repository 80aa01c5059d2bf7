//! `expiry`: a hundred thousand of a million hosts, which beat every five seconds, fall silent at once.
//!
//! `late_p99_ms`: of the 100,000, how long after its deadline each became suspect, as its event's evidence
//! tells (overdue − margin, whole milliseconds), 99th percentile. `stall_max_ms`: the longest time that
//! a shard was away from its sockets meanwhile, its naps included, as the controller itself measures it
//! (`heartwatch_shard_longest_pass_seconds`). `sweep_growth`: cost of a pass of judging in which nothing
//! is due, at 1 M hosts ÷ at 10 k, on the detector alone.
//!
//! After each run the dead boot anew, and the next run kills others.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use heartwatch_common::id::{Boot, Epoch, Seq};
use heartwatch_common::time::Instant;
use heartwatch_common::wire::Stamp;
use heartwatch_controller::config::RawConfig;
use heartwatch_controller::detector::host::Known;
use heartwatch_controller::detector::knobs::Profile;
use heartwatch_controller::detector::{Detector, Proof, Settings};
use heartwatch_controller::event::State;

use super::stage::{Stage, StageSetup};
use super::{Context, Figures, MILLION, median, quantile};
use crate::fleet::{Act, count, mass_id};
use crate::machine;
use crate::world::{World, eventually, now, number, text};

/// Interval of the fleet: 200,000 beats/s of a million hosts. At one beat a second each, generator and
/// controller need all of two cores for the beats alone, and what is measured is who gets the rest.
const BEAT_EVERY: Duration = Duration::from_secs(5);
/// How long finding all of them may take.
const FOUND_MAX: Duration = Duration::from_secs(120);
/// Passes of judging that are timed.
const PASSES: u64 = 20_000;

struct Found {
    late_p99_ms: f64,
    stall_max_ms: f64,
}

async fn kill(stage: &mut Stage<'_>, from: usize, silent: usize) -> Result<Found> {
    let (_, after) = stage.api.events("").await?;
    let before = stage.look().await?;
    let generator = |stage: &Stage<'_>| {
        let counts = stage.mass.counts();
        (count(&counts.beats), count(&counts.beats_late))
    };
    let (beats, tardy) = generator(stage);
    stage.mass.act(Act::Kill, from..from + silent);
    let killed = now();
    let mut stall = 0f64;
    let wanted = silent as u64;
    loop {
        let status = stage.api.get("/v1/status").await?;
        stall = stall.max(stage.look().await?.longest_pass);
        let down = number(&status, "/hosts/down");
        if down >= wanted {
            break;
        }
        ensure!(now().since(killed) < FOUND_MAX, "only {down} of {silent} are down");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let all_down = now().since(killed);
    let (beats, tardy) = (generator(stage).0 - beats, generator(stage).1 - tardy);
    let (events, _) = stage.api.events(&after).await?;
    let mut late = Vec::with_capacity(silent);
    let mut others = 0;
    for event in events.iter().filter(|e| text(e, "/type") == "host.suspect") {
        let place = text(event, "/host").parse().ok().and_then(|id| stage.mass.place(&id));
        if !place.is_some_and(|p| (from..from + silent).contains(&p)) {
            others += 1;
            continue;
        }
        let evidence = &event["data"]["evidence"];
        let of = |name: &str| evidence[name].as_f64().context("a suspicion has evidence");
        late.push(of("overdue_ms")? - of("margin_ms")?);
    }
    let w = stage.look().await?.since(&before);
    println!(
        "  {} suspicions told of {silent}, {others} others; late p50 {:.1} p99 {:.1} max {:.1} ms; all \
         down after {:.1} s; longest away {:.1} ms; {} dropped; controller {:.2} cores; of {beats} beats \
         {:.2} % left more than 5 ms late",
        late.len(),
        quantile(late.clone(), 0.5),
        quantile(late.clone(), 0.99),
        quantile(late.clone(), 1.0),
        all_down.as_secs_f64(),
        stall * 1e3,
        w.dropped,
        w.cpu / w.wall,
        tardy as f64 * 100.0 / beats.max(1) as f64,
    );
    ensure!(!late.is_empty(), "no suspicion was told");
    Ok(Found { late_p99_ms: quantile(late, 0.99), stall_max_ms: stall * 1e3 })
}

/// Nanoseconds of one pass of judging that finds nothing due, with so many hosts that just beat.
fn idle_pass(hosts: usize) -> Result<f64> {
    let config = RawConfig::default().check().context("the default config")?;
    let begin = Instant::from_millis(1_000_000);
    let settings = Settings::new(&config.detector);
    let mut detector = Detector::new(settings, &config.knobs, 1, begin);
    let from = ([127, 0, 0, 1], 9).into();
    let mut turns = Vec::new();
    for n in 0..hosts {
        let known = Known {
            id: mass_id(n),
            state: State::Alive,
            boot: Boot(1),
            generation: Default::default(),
            address: Some(from),
            in_state: Duration::ZERO,
            missing_reported: false,
            duplicate: false,
            agent_lost: false,
            profile: Profile::default(),
            frozen: None,
            back_in: None,
            domain: Default::default(),
            live: Default::default(),
        };
        let slot = detector.register(known, begin).context("room for the host")?;
        let stamp = Stamp {
            boot: Boot(1),
            seq: Seq(1),
            sent: begin,
            // Anywhere within a minute, as in a fleet.
            gap: Duration::from_millis(20_000 + (n as u64 * 7_919) % 40_000),
            epoch: Epoch(1),
        };
        let proof = Proof {
            stamp: &stamp,
            arrival: begin,
            from,
            late_ms: 0,
            load: None,
            asked: false,
            rebase: false,
        };
        detector.observe(slot, &proof, &mut turns);
        turns.clear();
    }
    let mut judged = Vec::new();
    // The first pass puts everybody where they belong.
    let mut at = begin + Duration::from_millis(1);
    detector.judge(at, at, at, &mut judged);
    judged.clear();
    let timed = now();
    for _ in 0..PASSES {
        at = at + Duration::from_nanos(500);
        detector.judge(at, at, at, &mut judged);
    }
    ensure!(judged.is_empty(), "something was due in an idle pass");
    Ok(now().since(timed).as_nanos() as f64 / PASSES as f64)
}

fn sweep_growth(ctx: &Context) -> Result<f64> {
    let pass = |hosts| -> Result<f64> {
        let runs = (0..ctx.runs().max(3)).map(|_| idle_pass(hosts)).collect::<Result<_>>()?;
        Ok(median(runs))
    };
    let (small, large) = (pass(10_000)?, pass(MILLION)?);
    println!(
        "  an idle pass of judging: {small:.1} ns at 10,000 hosts, {large:.1} ns at {MILLION}"
    );
    Ok(large / small)
}

async fn measure(ctx: &Context) -> Result<Vec<Found>> {
    let world = World::new()?;
    let setup = StageSetup {
        hosts: ctx.fewer_hosts(),
        interval: BEAT_EVERY,
        shards: machine::cores().len().clamp(1, 64) as u16,
        gro: true,
        controller_core: None,
        fleet_core: None,
    };
    let mut stage = Stage::raise(&world, setup).await?;
    let silent = ctx.fewer_hosts() / 10;
    let mut found = Vec::new();
    let runs = if ctx.quick { 1 } else { ctx.runs() };
    for run in 0..runs {
        // Past the cold start, and until the longest pass of what was before is forgotten.
        tokio::time::sleep(Duration::from_secs(21)).await;
        let from = run % 10 * silent;
        found.push(kill(&mut stage, from, silent).await?);
        if run + 1 < runs {
            stage.mass.act(Act::Restart, from..from + silent);
            eventually(FOUND_MAX, "the dead have come back", || async {
                let down = number(&stage.api.get("/v1/status").await?, "/hosts/down");
                ensure!(down == 0, "{down} are down");
                Ok(Some(()))
            })
            .await?;
            stage.calm().await?;
        }
    }
    Ok(found)
}

pub(super) fn run(ctx: &Context) -> Result<Figures> {
    let growth = sweep_growth(ctx)?;
    let found = ctx.runtime.block_on(measure(ctx))?;
    let runs: Vec<_> = found
        .iter()
        .map(|f| {
            vec![
                ("late_p99_ms", f.late_p99_ms),
                ("stall_max_ms", f.stall_max_ms),
                ("sweep_growth", growth),
            ]
        })
        .collect();
    Ok(Figures::medians(&runs))
}
