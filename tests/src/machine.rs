//! The machine that a measurement runs on: its cores and model, and what a process costs it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Cores that this process may use.
pub fn cores() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return vec![0] };
    (0..CpuSet::count()).filter(|c| set.is_set(*c).unwrap_or(false)).collect()
}

/// The processor's name.
pub fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("model name"));
    line.and_then(|l| l.split(':').nth(1)).map_or("unknown".into(), |m| m.trim().to_owned())
}

/// The running kernel.
pub fn kernel() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// Keeps this thread, and what it starts from now on, on one core; `None` changes nothing.
pub fn stay_on(core: Option<usize>) -> Result<()> {
    match core {
        None => Ok(()),
        Some(core) => stay_on_all(&[core]),
    }
}

/// Keeps this thread, and what it starts from now on, on some cores.
pub fn stay_on_all(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core).with_context(|| format!("there is no core {core}"))?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot stay on {cores:?}"))
}

/// Does something that starts processes or threads which stay on one core.
pub fn on_core<T>(core: Option<usize>, act: impl FnOnce() -> T) -> Result<T> {
    let before = cores();
    stay_on(core)?;
    let answer = act();
    stay_on_all(&before)?;
    Ok(answer)
}

/// CPU time that a process has used, user and system, threads that ended included.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The name in brackets may hold anything: count fields from behind it (proc(5): 14 and 15).
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).context("a number");
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    Ok(Duration::from_secs_f64((ticks(11)? + ticks(12)?) as f64 / per_second as f64))
}

/// CPU time of a process's living threads, to the nanosecond.
pub fn threads_time(pid: u32) -> Result<Duration> {
    let dir = format!("/proc/{pid}/task");
    let mut total = 0u64;
    for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot read {dir}"))? {
        // A thread may end just now.
        let text = std::fs::read_to_string(entry?.path().join("schedstat")).unwrap_or_default();
        total += text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(total))
}

/// CPU time that this thread has used.
pub fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// CPU time that this process has used.
pub fn own_time() -> Duration {
    let part =
        |t: nix::sys::time::TimeVal| Duration::new(t.tv_sec() as u64, t.tv_usec() as u32 * 1_000);
    let usage = getrusage(UsageWho::RUSAGE_SELF);
    usage.map(|u| part(u.user_time()) + part(u.system_time())).unwrap_or_default()
}

/// Resident memory of a process, bytes.
pub fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.split_whitespace().next().context("no number")?.parse()?;
    Ok(kib * 1_024)
}

/// Packets that the kernel dropped before any socket because a core's queue was full.
pub fn backlog_drops() -> u64 {
    let text = std::fs::read_to_string(Path::new("/proc/net/softnet_stat")).unwrap_or_default();
    let second = |l: &str| l.split_whitespace().nth(1).map(|f| u64::from_str_radix(f, 16));
    text.lines().filter_map(second).filter_map(Result::ok).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_time() {
        let me = std::process::id();
        assert!(resident(me).unwrap() > 100_000);
        assert!(cpu_time(me).unwrap() <= own_time() + Duration::from_secs(1));
        assert!(!cores().is_empty());
    }
}
