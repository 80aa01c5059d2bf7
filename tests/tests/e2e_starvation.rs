//! A machine without processor time and memory to spare: the agent, set up as its unit does, beats on.

use std::net::UdpSocket;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heartwatch_common::time::Instant;
use heartwatch_common::wire::{self, DATAGRAM_LEN_MAX};
use heartwatch_tests::world::{Cage, Process, World, binary, now, skip, story};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Loops that want a processor, on the one that the agent has.
const LOOPS: usize = 16;
/// What agent and memory eaters may have together; they want several times that.
const MEMORY_MAX: u64 = 48 << 20;
/// How long beats are counted. They come ten times a second.
const WATCH: Duration = Duration::from_secs(10);
/// A beat is late if it comes so much after the time that the one before it announced.
const LATE: Duration = Duration::from_millis(100);

/// Processes that end with this, all of them: they are a group.
struct Eaters(Vec<std::process::Child>);

impl Drop for Eaters {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself.
            killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap_or_default();
            drop(child.wait());
        }
    }
}

/// A shell in the cage, on the first processor.
fn caged(cage: &Cage, words: &str) -> Command {
    let mut command = Command::new("sh");
    let enter = format!("echo $$ > {} && {words}", cage.procs().display());
    command.args(["-c", &enter]);
    command
}

fn starve(cage: &Cage, dir: &Path) -> Result<Eaters> {
    let mut eaters = Eaters(Vec::new());
    let file = dir.join("churn");
    let churn = format!(
        "while :; do dd if=/dev/zero of={} bs=1M count=100 2>/dev/null; done",
        file.display()
    );
    let idle_memory = "while :; do head -c 25M /dev/zero | tail >/dev/null; done".to_owned();
    let spin = || "exec taskset -c 0 sh -c 'while :; do :; done'".to_owned();
    for words in (0..LOOPS).map(|_| spin()).chain([churn, idle_memory]) {
        let mut command = caged(cage, &words);
        eaters.0.push(command.process_group(0).spawn().context("cannot starve the machine")?);
    }
    Ok(eaters)
}

/// How many beats came, and by how much each was late.
fn count(socket: &UdpSocket) -> Result<Vec<Duration>> {
    let end = now() + WATCH;
    let mut late = Vec::new();
    let mut expected: Option<Instant> = None;
    let mut buffer = [0; DATAGRAM_LEN_MAX];
    while now() < end {
        let Ok(len) = socket.recv(&mut buffer) else { continue };
        let at = now();
        let datagram = wire::decode(&buffer[..len]).context("not a datagram of ours")?;
        let Some(stamp) = datagram.message.stamp() else { continue };
        late.extend(expected.map(|expected| at.since(expected)));
        expected = Some(at + stamp.gap);
    }
    Ok(late)
}

#[tokio::test]
async fn an_agent_beats_on_time_while_its_machine_starves() {
    const TEST: &str = "an_agent_beats_on_time_while_its_machine_starves";
    let cage = match Cage::new("starvation", MEMORY_MAX) {
        Ok(cage) => cage,
        Err(e) => return skip(TEST, &format!("{e:#}: it needs root and cgroups")),
    };
    if !Command::new("taskset").arg("-V").output().is_ok_and(|o| o.status.success()) {
        return skip(TEST, "taskset is missing: apt-get install -y util-linux");
    }
    story(async |world: &World| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let to = socket.local_addr()?;
        let config = world.agent("hungry").beats_to(to).interval("100ms").write()?;
        let program = binary("heartwatch-agent")?;
        let eaters = starve(&cage, world.dir())?;
        let mut figures = Vec::new();
        // As its unit has it; and, for comparison, as one that has to stand back for everybody.
        for nice in ["-15", "19"] {
            let words = format!(
                "exec taskset -c 0 nice -n {nice} {} run --config {}",
                program.display(),
                config.display()
            );
            let log = world.path(format!("hungry-{nice}.log"));
            let mut agent = Process::start("hungry", &mut caged(&cage, &words), &log)?;
            // The first ones are those during which memory is touched.
            socket.set_read_timeout(Some(Duration::from_secs(20)))?;
            let first = (0..10).try_for_each(|_| {
                socket.recv(&mut [0; DATAGRAM_LEN_MAX]).map(drop).context("no beat within 20 s")
            });
            // Who stands back for everybody gets nothing at all where others have work as well.
            if let (Err(e), "19") = (&first, nice) {
                println!("nice {nice}: {e:#}");
                agent.kill()?;
                continue;
            }
            first?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            let late = count(&socket)?;
            let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
            let locked = status.lines().find(|l| l.starts_with("VmLck")).unwrap_or("VmLck: ?");
            let said = agent.log().lines().next().unwrap_or_default().to_owned();
            agent.kill()?;
            let n = late.iter().filter(|l| **l > LATE).count();
            let worst = late.iter().max().copied().unwrap_or_default();
            println!(
                "nice {nice}: {n} of {} beats late, the latest by {worst:?}; {locked}; {said}",
                late.len()
            );
            figures.push((late.len(), n));
        }
        drop(eaters);
        let (beats, late) = figures[0];
        // Ten a second, less the jitter and those that a machine full of tests swallows.
        ensure!(beats >= 70, "only {beats} beats in {WATCH:?}");
        ensure!(late * 50 <= beats, "{late} of {beats} beats were late");
        Ok(())
    })
    .await;
}
