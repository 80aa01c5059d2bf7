//! `peers`: the same number of hosts kept alive, and one found dead, by others' usual means.
//!
//! 100,000 hosts at one beat a second, each monitor alone with its load; *beats per CPU-second* = beats
//! taken ÷ CPU time of the monitor's process in the same span. Then one host falls silent, and the
//! monitor must say so.
//!
//! - **ours**: the controller as it is shipped, two shards; authenticated beats that carry load.
//! - **Redis**: `SET host 1 EX 3` in pipelines of 500 over a unix socket, without persistence,
//!   `notify-keyspace-events Ex` and a subscriber. Nothing authenticated, nothing learnt; and that cost of
//!   the program that must receive the hosts' datagrams and turn them into `SET`s is not counted.
//! - **Python**: `tests/clients/naive_monitor.py`, which hears the same datagrams as the controller.
//!
//! `redis_ratio`, `python_ratio`: ours ÷ theirs.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::stage::{Stage, StageSetup};
use super::{Context, Figures};
use crate::fleet::{Act, First, Mass, MassSetup, count, mass_id};
use crate::machine;
use crate::world::{PATIENCE, Process, World, now};

/// Commands in one pipeline.
const PIPELINE: usize = 500;
/// A host is dead for the others after this, seconds.
const TIMEOUT: usize = 3;

/// Beats per CPU-second, and how long the dead host took to be found.
struct Rated {
    beats_per_cpu_s: f64,
    found: Duration,
}

fn rated(who: &str, beats: f64, cpu: Duration, wall: f64, found: Duration) -> Rated {
    let beats_per_cpu_s = beats / cpu.as_secs_f64().max(1e-9);
    println!(
        "  {who:<7} {:>7.0} beats/s with {:.3} cores: {beats_per_cpu_s:>9.0} a CPU-second; the dead \
         found after {:.1} s",
        beats / wall,
        cpu.as_secs_f64() / wall,
        found.as_secs_f64()
    );
    Rated { beats_per_cpu_s, found }
}

async fn ours(hosts: usize, span: Duration) -> Result<Rated> {
    let world = World::new()?;
    let setup = StageSetup {
        hosts,
        interval: Duration::from_secs(1),
        shards: 2,
        gro: true,
        controller_core: None,
        fleet_core: None,
    };
    let mut stage = Stage::raise(&world, setup).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = stage.look().await?;
    tokio::time::sleep(span).await;
    let w = stage.look().await?.since(&before);
    stage.mass.act(Act::Kill, 0..1);
    let killed = now();
    stage.api.wait_state(stage.mass.id(0), "down").await?;
    let cpu = Duration::from_secs_f64(w.cpu);
    Ok(rated("ours", w.beats, cpu, w.wall, now().since(killed)))
}

async fn python(hosts: usize, span: Duration) -> Result<Rated> {
    let world = World::new()?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/naive_monitor.py");
    let log = world.path("python.log");
    let mut command = Command::new("python3");
    command.args(["-u", script, "0", &TIMEOUT.to_string()]);
    let mut monitor = Process::start("naive_monitor.py", &mut command, &log)?;
    let said = |words: &str| -> Option<String> {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().rev().find_map(|l| Some(l.strip_prefix(words)?.trim().to_owned()))
    };
    monitor.says("listening", PATIENCE).await?;
    let port: u16 = said("listening").context("it tells its port")?.parse()?;
    let mass = Mass::start(&MassSetup {
        first: First::Beat,
        join: Duration::from_secs(1),
        ..MassSetup::new(([127, 0, 0, 1], port).into(), world.secret().clone(), hosts)
    })?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let received =
        || -> Result<f64> { Ok(said("received").context("it tells what it received")?.parse()?) };
    let (begin, first, cpu) = (now(), received()?, machine::threads_time(monitor.pid())?);
    tokio::time::sleep(span).await;
    let (wall, last) = (now().since(begin).as_secs_f64(), received()?);
    let cpu = machine::threads_time(monitor.pid())?.saturating_sub(cpu);
    mass.act(Act::Kill, 0..1);
    let killed = now();
    let line = format!("down {}", mass.id(0));
    monitor.says(&line, PATIENCE).await?;
    ensure!(count(&mass.counts().send_errors) == 0, "not all beats were sent");
    Ok(rated("Python", last - first, cpu, wall, now().since(killed)))
}

/// Redis's server: Debian's `redis-tools` carries it under another name, and starts no service.
fn redis_server() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let find =
        |name: &str| std::env::split_paths(&path).map(|d| d.join(name)).find(|p| p.is_file());
    match find("redis-server").or_else(|| find("redis-check-rdb")) {
        Some(found) => Ok(found),
        None => bail!("Redis is missing: apt-get install -y --no-install-recommends redis-tools"),
    }
}

fn subscribe(socket: &std::path::Path) -> Result<BufReader<UnixStream>> {
    let mut stream = UnixStream::connect(socket).context("cannot reach Redis")?;
    stream.write_all(b"SUBSCRIBE __keyevent@0__:expired\r\n")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(BufReader::new(stream))
}

/// Sets the keys of all hosts but the dead, a second's worth evenly over a second, until `end`.
fn beat(
    stream: &mut UnixStream,
    ids: &[String],
    dead: Option<usize>,
    span: Duration,
) -> Result<u64> {
    let (begin, mut sent) = (now(), 0u64);
    let mut answers = vec![0; PIPELINE * 5];
    loop {
        for (n, chunk) in ids.chunks(PIPELINE).enumerate() {
            let mut batch = Vec::with_capacity(PIPELINE * 80);
            let mut commands = 0;
            for (i, id) in chunk.iter().enumerate() {
                if dead != Some(n * PIPELINE + i) {
                    write!(
                        batch,
                        "*5\r\n$3\r\nSET\r\n$32\r\n{id}\r\n$1\r\n1\r\n$2\r\nEX\r\n$1\r\n"
                    )?;
                    write!(batch, "{TIMEOUT}\r\n")?;
                    commands += 1;
                }
            }
            stream.write_all(&batch)?;
            // Each is answered by "+OK\r\n".
            let wanted = &mut answers[..commands * 5];
            stream.read_exact(wanted)?;
            ensure!(wanted.starts_with(b"+OK"), "Redis refuses");
            sent += commands as u64;
            if now().since(begin) >= span {
                return Ok(sent);
            }
            let due = begin + Duration::from_secs_f64(sent as f64 / ids.len() as f64);
            std::thread::park_timeout(due.since(now()));
        }
    }
}

fn redis(hosts: usize, span: Duration) -> Result<Rated> {
    let world = World::new()?;
    let socket = world.path("redis.sock");
    let mut command = Command::new(redis_server()?);
    command.arg0("redis-server").arg("--port").arg("0").arg("--unixsocket").arg(&socket);
    command.args(["--save", "", "--appendonly", "no", "--notify-keyspace-events", "Ex"]);
    command.arg("--dir").arg(world.dir());
    let server = Process::start("redis", &mut command, &world.path("redis.log"))?;
    let deadline = now() + PATIENCE;
    let mut stream = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(e) if now() >= deadline => return Err(e).context(server.log()),
            Err(_) => std::thread::park_timeout(Duration::from_millis(50)),
        }
    };
    let mut expired = subscribe(&socket)?;
    let ids: Vec<String> = (0..hosts).map(|n| mass_id(n).to_string()).collect();
    beat(&mut stream, &ids, None, Duration::from_secs(3))?;
    let (begin, cpu) = (now(), machine::threads_time(server.pid())?);
    let sent = beat(&mut stream, &ids, None, span)?;
    let wall = now().since(begin).as_secs_f64();
    let cpu = machine::threads_time(server.pid())?.saturating_sub(cpu);
    let dead = 7;
    let killed = now();
    let found = std::thread::scope(|scope| -> Result<Duration> {
        let waiting = scope.spawn(|| -> Result<Duration> {
            let mut line = String::new();
            while line.trim() != ids[dead] {
                line.clear();
                expired.read_line(&mut line).context("Redis never told that the host is gone")?;
            }
            Ok(now().since(killed))
        });
        while !waiting.is_finished() && now().since(killed) < PATIENCE {
            beat(&mut stream, &ids, Some(dead), Duration::from_secs(1))?;
        }
        waiting.join().map_err(|_| anyhow::anyhow!("the subscriber has panicked"))?
    })?;
    Ok(rated("Redis", sent as f64, cpu, wall, found))
}

pub(super) fn run(ctx: &Context) -> Result<Figures> {
    let span = Duration::from_secs(if ctx.quick { 5 } else { 10 });
    let hosts = ctx.hosts / 10;
    let mut runs = Vec::new();
    for _ in 0..ctx.runs() {
        let ours = ctx.runtime.block_on(ours(hosts, span))?;
        let redis = redis(hosts, span)?;
        let python = ctx.runtime.block_on(python(hosts, span))?;
        ensure!(ours.found < PATIENCE, "the dead host was not found");
        runs.push(vec![
            ("redis_ratio", ours.beats_per_cpu_s / redis.beats_per_cpu_s),
            ("python_ratio", ours.beats_per_cpu_s / python.beats_per_cpu_s),
        ]);
    }
    Ok(Figures::medians(&runs))
}
