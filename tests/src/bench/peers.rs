//! `peers`: the same number of hosts kept alive, and one found dead, by others' usual means.
//!
//! A million hosts, each monitor alone with its load; *beats per CPU-second* = beats taken ÷ CPU time of the
//! monitor's process in the same span. Then one host falls silent, and the monitor must say so.
//!
//! - **ours**: the controller as it is shipped, two shards, one beat a second of each host; authenticated
//!   beats that carry load. Measured once each host has beaten so often that its margin is chosen anew at
//!   few beats only, as of any host but in its first minute.
//! - **Redis**: `SET host 1 EX 10` in pipelines of 500 over a unix socket, one a second of each host or as
//!   many as it takes, without persistence, `notify-keyspace-events Ex` and a subscriber. Nothing
//!   authenticated, nothing learnt; and what the program costs that must receive the hosts' datagrams and
//!   turn them into `SET`s is not counted. Of keys that expire it tells when it comes across them, which is
//!   waited for so long and no longer. As the hosts' beats come to us, by the jitter of their schedules, its
//!   keys come in an order that is not the one in which they were first set. What it takes in that order,
//!   where one key lies in memory beside the one before, is printed too.
//! - **Python**: `tests/clients/naive_monitor.py`, which hears the same datagrams as the controller, 100,000
//!   a second, or one every ten seconds of each of a million hosts: more it does not take.
//!
//! `redis_ratio`, `python_ratio`: ours ÷ theirs, medians each. Redis is measured before us and after us.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use heartwatch_common::time::Instant;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::stage::{Stage, StageSetup};
use super::{Context, Figures, median};
use crate::fleet::{Act, First, Mass, MassSetup, count, mass_id};
use crate::machine;
use crate::world::{PATIENCE, Process, World, now};

/// Commands in one pipeline.
const PIPELINE: usize = 500;
/// A host is dead for Redis after this, seconds: several times what it takes for all keys, or it would find
/// the living dead, and close the connection of a subscriber that does not keep up.
const TIMEOUT: &str = "10";
/// How long it is waited for others to find the dead.
const FOUND_MAX: Duration = Duration::from_secs(30);
/// Beats of each host before the controller is measured, seconds: the first 64 choose margins anew far more
/// often.
const WARM_UP: u64 = 66;
/// Of a quick run, which says more of Redis than of us.
const WARM_UP_QUICK: u64 = 10;
/// All beats together to the naive monitor, a second.
const PYTHON_RATE: f64 = 100_000.0;

/// How long after its death the dead was found; inner `None`: not while it was waited for; outer: it was
/// not waited for.
type Found = Option<Option<Duration>>;

/// Prints, and answers, beats per CPU-second.
fn rated(who: &str, beats: f64, cpu: Duration, wall: f64, found: Found) -> f64 {
    let beats_per_cpu_s = beats / cpu.as_secs_f64().max(1e-9);
    let found = match found {
        None => String::new(),
        Some(None) => format!("; the dead was not told within {} s", FOUND_MAX.as_secs()),
        Some(Some(d)) => format!("; the dead was found after {:.1} s", d.as_secs_f64()),
    };
    println!(
        "  {who:<7} {:>7.0} beats/s with {:.3} cores: {beats_per_cpu_s:>9.0} a CPU-second{found}",
        beats / wall,
        cpu.as_secs_f64() / wall,
    );
    beats_per_cpu_s
}

async fn ours(hosts: usize, warm_up: u64, span: Duration, runs: usize) -> Result<Vec<f64>> {
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
    tokio::time::sleep(Duration::from_secs(warm_up)).await;
    let mut rates = Vec::new();
    for run in 0..runs {
        let before = stage.look().await?;
        tokio::time::sleep(span).await;
        let w = stage.look().await?.since(&before);
        ensure!(
            w.dropped == 0.0 && w.suspects == 0.0,
            "{} dropped, {} suspects",
            w.dropped,
            w.suspects
        );
        stage.mass.act(Act::Kill, run..run + 1);
        let killed = now();
        stage.api.wait_state(stage.mass.id(run), "down").await?;
        let cpu = Duration::from_secs_f64(w.cpu);
        rates.push(rated("ours", w.beats, cpu, w.wall, Some(Some(now().since(killed)))));
    }
    Ok(rates)
}

async fn python(hosts: usize, span: Duration, runs: usize) -> Result<Vec<f64>> {
    let world = World::new()?;
    let interval = Duration::from_secs_f64((hosts as f64 / PYTHON_RATE).round().max(1.0));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/naive_monitor.py");
    let log = world.path("python.log");
    let mut command = Command::new("python3");
    command.args(["-u", script, "0", &(interval.as_secs() * 3).to_string()]);
    let mut monitor = Process::start("naive_monitor.py", &mut command, &log)?;
    let said = |words: &str| -> Option<String> {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().rev().find_map(|l| Some(l.strip_prefix(words)?.trim().to_owned()))
    };
    monitor.says("listening", PATIENCE).await?;
    let port: u16 = said("listening").context("it tells its port")?.parse()?;
    let mass = Mass::start(&MassSetup {
        first: First::Beat,
        interval,
        join: interval,
        ..MassSetup::new(([127, 0, 0, 1], port).into(), world.secret().clone(), hosts)
    })?;
    tokio::time::sleep(interval + Duration::from_secs(5)).await;
    let received =
        || -> Result<f64> { Ok(said("received").context("it tells what it received")?.parse()?) };
    let pid = monitor.pid();
    // It tells that about once a second: a window begins and ends when it does, or CPU time is counted in
    // which beats were taken that are not.
    let told = async || -> Result<(Instant, f64, Duration)> {
        let (before, asked) = (received()?, now());
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let count = received()?;
            if count > before {
                return Ok((now(), count, machine::threads_time(pid)?));
            }
            ensure!(now().since(asked) < PATIENCE, "the naive monitor counts no more");
        }
    };
    let mut rates = Vec::new();
    for run in 1..=runs {
        let (begin, first, cpu) = told().await?;
        tokio::time::sleep(span).await;
        let (end, last, cpu_2) = told().await?;
        let (wall, cpu) = (end.since(begin).as_secs_f64(), cpu_2.saturating_sub(cpu));
        // Once is enough: it finds everybody alike.
        let found = if run == runs {
            mass.act(Act::Kill, 0..1);
            let killed = now();
            monitor.says(&format!("down {}", mass.id(0)), PATIENCE).await?;
            Some(Some(now().since(killed)))
        } else {
            None
        };
        rates.push((last - first, cpu, wall, found));
    }
    ensure!(count(&mass.counts().send_errors) == 0, "not all beats were sent");
    let rate = |(beats, cpu, wall, found)| rated("Python", beats, cpu, wall, found);
    Ok(rates.into_iter().map(rate).collect())
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
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    Ok(BufReader::new(stream))
}

/// One `SET key 1 EX TIMEOUT`, as Redis's clients write it.
fn set(batch: &mut Vec<u8>, id: &str) -> Result<()> {
    write!(batch, "*5\r\n$3\r\nSET\r\n")?;
    for word in [id, "1", "EX", TIMEOUT] {
        write!(batch, "${}\r\n{word}\r\n", word.len())?;
    }
    Ok(())
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
                    set(&mut batch, id)?;
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

/// Measures a fresh Redis; it must find a dead host as well if it shall.
fn redis(hosts: usize, span: Duration, runs: usize, find: bool) -> Result<Vec<f64>> {
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
    let mut ids: Vec<String> = (0..hosts).map(|n| mass_id(n).to_string()).collect();
    beat(&mut stream, &ids, None, Duration::from_secs(3))?;
    let measure = |stream: &mut UnixStream, ids: &[String]| -> Result<(f64, Duration, f64)> {
        let (begin, cpu) = (now(), machine::threads_time(server.pid())?);
        let sent = beat(stream, ids, None, span)?;
        let wall = now().since(begin).as_secs_f64();
        Ok((sent as f64, machine::threads_time(server.pid())?.saturating_sub(cpu), wall))
    };
    let (sent, cpu, _) = measure(&mut stream, &ids)?;
    println!(
        "  (Redis, in the order in which its keys were first set: {:.0} a CPU-second)",
        sent / cpu.as_secs_f64().max(1e-9)
    );
    ids.shuffle(&mut StdRng::seed_from_u64(1));
    // Once, until all have been set in that order.
    beat(&mut stream, &ids, None, Duration::from_secs(3))?;
    let mut measured = Vec::new();
    for _ in 0..runs {
        measured.push(measure(&mut stream, &ids)?);
    }
    let found = if find {
        // Once is enough: it finds everybody alike.
        let (dead, killed) = (0, now());
        let found = std::thread::scope(|scope| -> Result<Option<Duration>> {
            let waiting = scope.spawn(|| is_told(&mut expired, &ids[dead], killed));
            while !waiting.is_finished() {
                // Long enough for all keys, or the last ones would die as well.
                beat(&mut stream, &ids, Some(dead), Duration::from_secs(4))?;
            }
            waiting.join().map_err(|_| anyhow::anyhow!("the subscriber has panicked"))?
        });
        Some(found.with_context(|| format!("Redis says:\n{}", server.log()))?)
    } else {
        None
    };
    let all = measured.len();
    let rate = |(run, (sent, cpu, wall))| {
        rated("Redis", sent, cpu, wall, found.filter(|_| run + 1 == all))
    };
    Ok(measured.into_iter().enumerate().map(rate).collect())
}

/// Waits until Redis tells that a key is gone; when that was after `killed`, if it was soon enough.
fn is_told(
    expired: &mut BufReader<UnixStream>,
    key: &str,
    killed: Instant,
) -> Result<Option<Duration>> {
    let mut line = String::new();
    loop {
        line.clear();
        match expired.read_line(&mut line) {
            Ok(0) => bail!("Redis has closed the connection"),
            Ok(_) if line.trim() == key => return Ok(Some(now().since(killed))),
            Ok(_) => {}
            // Nothing was told for a second.
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e).context("cannot listen to Redis"),
        }
        if now().since(killed) >= FOUND_MAX {
            return Ok(None);
        }
    }
}

pub(super) fn run(ctx: &Context) -> Result<Figures> {
    // Before minutes are spent.
    redis_server()?;
    let span = Duration::from_secs(if ctx.quick { 4 } else { 6 });
    let runs = if ctx.quick { 1 } else { ctx.runs() };
    let (hosts, warm_up) = (ctx.fewer_hosts(), if ctx.quick { WARM_UP_QUICK } else { WARM_UP });
    // A machine is not as fast now as some minutes later: Redis is measured before us and after us.
    let first = runs.div_ceil(2);
    let mut theirs = redis(hosts, span, first, false)?;
    let ours = median(ctx.runtime.block_on(ours(hosts, warm_up, span, runs))?);
    theirs.extend(redis(hosts, span, (runs - first).max(1), true)?);
    let redis = median(theirs);
    let python = median(ctx.runtime.block_on(python(hosts, span, runs))?);
    let values = vec![("redis_ratio", ours / redis), ("python_ratio", ours / python)];
    Ok(Figures { values, runs })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length that was written by hand fell behind its word: Redis read `EX 1`, took the rest for an
    /// empty command, and let the living expire.
    #[test]
    fn redis_is_told_the_length_of_every_word() {
        let mut batch = Vec::new();
        set(&mut batch, "a-host").unwrap();
        let wanted = "*5\r\n$3\r\nSET\r\n$6\r\na-host\r\n$1\r\n1\r\n$2\r\nEX\r\n$2\r\n10\r\n";
        assert_eq!(String::from_utf8(batch).unwrap(), wanted);
    }
}
