//! `delivery`: ten thousand outages in a minute, told to four receivers of mixed health, while half a million
//! hosts beat once a second.
//!
//! Two receivers take everything at once, one takes a second for each request, one answers 503 to all.
//! `first_attempt_p99_ms`: from the moment at which a host was called down, as its event says, to the moment
//! at which the request's body has arrived at a healthy receiver, 99th percentile over both. `lost`:
//! deliveries that neither arrived nor stand in the outbox. `delivered_per_s`: at the healthy two, from the
//! first to the last. `memory_mib`: the controller's resident memory at the end, the hosts included.
//!
//! Limits of actions per domain are off, and so are storms: this measures the way from verdict to
//! receiver, not how long policy holds an order back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use heartwatch_common::id::HostId;
use heartwatch_common::time::{Clock, Instant, SystemClock};
use tokio::sync::oneshot;

use super::stage::{Stage, StageSetup, sum};
use super::{Context, Figures, quantile};
use crate::fleet::Act;
use crate::machine;
use crate::world::{Answer, Api, Call, Plan, Receiver, World, now, text, webhook_secret};

/// Time between two beats of a host.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// Over how long hosts die: a fifth of them in a quick run, as fast as all.
const SPREAD: Duration = Duration::from_secs(60);
const SPREAD_QUICK: Duration = Duration::from_secs(12);
/// How often some do.
const TICK: Duration = Duration::from_millis(100);
/// How long after the last has died all must have arrived.
const ARRIVED_MAX: Duration = Duration::from_secs(60);
/// How often a receiver's books are looked at before they must have stood still.
const BOOKS_TRIES: usize = 200;
/// One in so many hosts dies, at most [`DEAD_MAX`].
const DEAD_SHARE: usize = 50;
const DEAD_MAX: usize = 10_000;
/// How long the slow receiver takes.
const SLOW: Duration = Duration::from_secs(1);
const HEALTHY: [&str; 2] = ["first", "second"];
const SICK: [&str; 2] = ["slow", "failing"];

/// First calls about each host: how long after its event, milliseconds, and when.
type Arrivals = Arc<Mutex<BTreeMap<String, (f64, Instant)>>>;

struct Receivers {
    urls: BTreeMap<&'static str, String>,
    arrivals: BTreeMap<&'static str, Arrivals>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Receivers {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the receivers' thread panicked");
        }
    }
}

fn note(arrivals: &Arrivals, call: &Call) {
    if call.kind() != "host.down" {
        return;
    }
    let Ok(event) = text(&call.body, "/timestamp").parse::<jiff::Timestamp>() else { return };
    let late = SystemClock.wall().0 - event.as_millisecond();
    let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
    arrivals.entry(call.host().to_owned()).or_insert((late as f64, now()));
}

/// Four receivers on a thread of their own: what this one does must not delay them.
fn receivers(secret: &str) -> Result<Receivers> {
    let (stop, stopped) = oneshot::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    let arrivals: BTreeMap<_, Arrivals> =
        HEALTHY.iter().chain(&SICK).map(|name| (*name, Arrivals::default())).collect();
    let (noted, secret) = (arrivals.clone(), secret.to_owned());
    let thread = std::thread::Builder::new().name("receivers".to_owned()).spawn(move || {
        let run = async {
            let mut all = BTreeMap::new();
            for (name, noted) in noted {
                let receiver = Receiver::start(&secret).await?;
                receiver.plan(Plan::Always(match name {
                    "slow" => Answer::Slow(200, SLOW),
                    "failing" => Answer::Status(503),
                    _ => Answer::Status(200),
                }));
                receiver.tell(move |call| note(&noted, call));
                all.insert(name, receiver);
            }
            let urls: BTreeMap<_, _> = all.iter().map(|(name, r)| (*name, r.url())).collect();
            drop(tell.send(urls));
            // Also once the other side is gone.
            drop(stopped.await);
            anyhow::Ok(())
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime.map(|runtime| runtime.block_on(run)) {
            Ok(Ok(())) => {}
            Ok(Err(e)) => eprintln!("the receivers failed: {e:#}"),
            Err(e) => eprintln!("cannot start tokio: {e}"),
        }
    })?;
    let urls = told.recv().context("the receivers did not start")?;
    Ok(Receivers { urls, arrivals, stop: Some(stop), thread: Some(thread) })
}

async fn kill_some(stage: &Stage<'_>, dead: usize, spread: Duration) {
    let ticks = spread.as_millis() / TICK.as_millis();
    let begin = now();
    let mut killed = 0;
    for tick in 1..=ticks {
        let due = (dead as u128 * tick / ticks) as usize;
        if due > killed {
            stage.mass.act(Act::Kill, killed..due);
            killed = due;
        }
        let at = begin + TICK * u32::try_from(tick).unwrap_or(u32::MAX);
        tokio::time::sleep(at.since(now())).await;
    }
}

/// What a receiver's deliveries are at one moment: delivered, in the outbox, dead letters.
///
/// They come in two answers. A delivery that ended between them stood in neither, and two that a slow
/// receiver was taking were told as lost: so both are asked for until they say the same twice.
async fn still_books(api: &Api, name: &str) -> Result<[f64; 3]> {
    let label = format!("receiver=\"{name}\"");
    let mut before = None;
    for _ in 0..BOOKS_TRIES {
        let status = api.get("/v1/status").await?;
        // States in which no delivery is are not named.
        let mine =
            status["deliveries"].as_object().context("no deliveries in the status")?.get(name);
        let waiting = |key: &str| mine.and_then(|m| m[key].as_f64()).unwrap_or(0.0);
        let (pending, dead_letters) = (waiting("pending"), waiting("dead"));
        let scrape = api.metrics().await?;
        let delivered = sum(&scrape, "heartwatch_deliveries_delivered_total", &label);
        let books = [delivered, pending, dead_letters];
        if before == Some(books) {
            return Ok(books);
        }
        before = Some(books);
    }
    bail!("{name}: deliveries never stand still for two looks")
}

async fn measure(ctx: &Context) -> Result<Vec<(&'static str, f64)>> {
    let world = World::new()?;
    let secret = webhook_secret(7);
    let file = world.write_secret("secret", &secret)?;
    let receivers = receivers(&secret)?;
    let setup = StageSetup {
        hosts: ctx.fewer_hosts() / 2,
        interval: BEAT_EVERY,
        shards: machine::cores().len().clamp(1, 64) as u16,
        gro: true,
        controller_core: None,
        fleet_core: None,
    };
    let dead = (setup.hosts / DEAD_SHARE).min(DEAD_MAX);
    let mut stage = Stage::raise_with(&world, setup, |mut controller| {
        for (name, url) in &receivers.urls {
            controller = controller.receiver(name, url, &file);
        }
        let all: Vec<&str> = HEALTHY.iter().chain(&SICK).copied().collect();
        controller
            .top(
                "domains.storm_hosts = 0\ndomains.fleet_hosts = 0\ndomains.settle = \"0s\"\n\
                 domains.actions_per_minute = 0\ndomains.fleet_actions_per_minute = 0",
            )
            .rule_with("failover", &["host.down"], &all, "candidates_same = [\"zone\"]")
    })
    .await?;
    // Past the cold start.
    tokio::time::sleep(Duration::from_secs(if ctx.quick { 5 } else { 20 })).await;
    let before = stage.look().await?;
    let spread = if ctx.quick { SPREAD_QUICK } else { SPREAD };
    kill_some(&stage, dead, spread).await;
    let arrived = |name: &str| {
        receivers.arrivals[name].lock().unwrap_or_else(PoisonError::into_inner).clone()
    };
    let last = now();
    while HEALTHY.iter().any(|name| arrived(name).len() < dead) && now().since(last) < ARRIVED_MAX {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let w = stage.look().await?.since(&before);
    let of_dead = |host: &str| {
        let id = host.parse::<HostId>().ok();
        id.and_then(|id| stage.mass.place(&id)).is_some_and(|place| place < dead)
    };
    let (mut late, mut lost, mut others) = (Vec::new(), 0, 0);
    let (mut first, mut last) = (Instant::FAR, Instant(0));
    for name in HEALTHY {
        let arrived = arrived(name);
        let (right, wrong): (Vec<_>, Vec<_>) =
            arrived.into_iter().partition(|(host, _)| of_dead(host));
        (lost, others) = (lost + dead - right.len(), others + wrong.len());
        for (_, (ms, at)) in right {
            late.push(ms);
            (first, last) = (first.min(at), last.max(at));
        }
    }
    let mut backlog = Vec::new();
    for name in SICK {
        let [delivered, pending, dead_letters] = still_books(&stage.api, name).await?;
        let known = delivered + pending + dead_letters;
        lost += (dead as f64 - known).max(0.0) as usize;
        backlog.push(format!("{name} {delivered} delivered, {pending} in the outbox"));
    }
    ensure!(!late.is_empty(), "nothing arrived");
    let span = last.since(first).as_secs_f64().max(1e-3);
    let memory = stage.resident()? as f64 / (1 << 20) as f64;
    let p99 = quantile(late.clone(), 0.99);
    println!(
        "  {dead} of {} hosts died in {:.0} s; first attempts at the healthy: p50 {:.0} p99 {p99:.0} max {:.0} \
         ms after the verdict; {}; {lost} lost, {others} of others; {} dropped; controller {:.2} cores, \
         {memory:.0} MiB",
        setup.hosts,
        spread.as_secs_f64(),
        quantile(late.clone(), 0.5),
        quantile(late.clone(), 1.0),
        backlog.join("; "),
        w.dropped,
        w.cpu / w.wall,
    );
    Ok(vec![
        ("first_attempt_p99_ms", p99),
        ("lost", lost as f64),
        ("delivered_per_s", late.len() as f64 / span),
        ("memory_mib", memory),
    ])
}

pub(super) fn run(ctx: &Context) -> Result<Figures> {
    let runs: Vec<_> = (0..ctx.fewest_runs())
        .map(|_| ctx.runtime.block_on(measure(ctx)))
        .collect::<Result<_>>()?;
    Ok(Figures::medians(&runs))
}
