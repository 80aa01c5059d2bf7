//! What keeps beats on time while the machine starves: memory that is not paged out, and a place near the end
//! of the OOM killer's list.
//!
//! Memory is locked as it is first touched (`MCL_ONFAULT`), not all at once: the agent's threads reserve
//! megabytes of stack that they never use. After the first beats everything on a beat's way has been touched,
//! and no beat waits for a disk again. The rest (priority, OOM score, CPU weight) is the service unit's to
//! give; [`Resistance`] tells what was granted.

use std::fmt;
use std::path::Path;

use nix::libc::MCL_ONFAULT;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// What the system has granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resistance {
    /// Whether memory stays in memory; else why not.
    memory: Result<(), String>,
    /// -1000 to 1000, the lower the longer spared; `None` if it cannot be read.
    oom_score: Option<i32>,
}

impl fmt::Display for Resistance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.memory {
            Ok(()) => f.write_str("memory is locked")?,
            Err(why) => write!(f, "memory is not locked ({why})")?,
        }
        match self.oom_score {
            Some(score) if score < 0 => write!(f, "; spared by the OOM killer ({score})"),
            Some(score) => write!(f, "; not spared by the OOM killer ({score})"),
            None => f.write_str("; the OOM killer's score is not known"),
        }
    }
}

/// Locks what can be locked and looks at the rest. To be called before threads are started: their stacks
/// are covered too.
pub fn prepare() -> Resistance {
    let score = std::fs::read_to_string(Path::new("/proc/self/oom_score_adj"));
    Resistance { memory: lock(), oom_score: score.ok().and_then(|text| text.trim().parse().ok()) }
}

fn lock() -> Result<(), String> {
    // Under a limit the lock may well succeed now, and then the first allocation beyond the limit fails:
    // either there is none, or nothing is locked. The process's size is bounded by the unit's MemoryMax.
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).map_err(|e| e.to_string())?;
    if soft != RLIM_INFINITY && !may_lock_anything() {
        setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)
            .map_err(|_| "the limit of locked memory is not `infinity`".to_owned())?;
    }
    let flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE;
    let on_fault = MlockAllFlags::from_bits_retain(MCL_ONFAULT);
    mlockall(flags | on_fault).map_err(|e| e.desc().to_owned())
}

/// Whether the limit does not count for this process (`CAP_IPC_LOCK`).
fn may_lock_anything() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|text| has_ipc_lock(&text))
}

fn has_ipc_lock(status: &str) -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let bits = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    bits.is_some_and(|bits| bits & (1 << CAP_IPC_LOCK) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_outranks_the_limit() {
        assert!(has_ipc_lock("Name:\tx\nCapEff:\t000001fffeffffff\n"));
        assert!(!has_ipc_lock("CapEff:\t0000000000000000\n"));
        assert!(!has_ipc_lock("CapPrm:\t000001ffffffffff\n"));
    }

    #[test]
    fn what_was_granted_is_told_in_one_line() {
        let granted = Resistance { memory: Ok(()), oom_score: Some(-900) };
        assert_eq!(granted.to_string(), "memory is locked; spared by the OOM killer (-900)");
        let refused = Resistance { memory: Err("not permitted".into()), oom_score: Some(0) };
        assert_eq!(
            refused.to_string(),
            "memory is not locked (not permitted); not spared by the OOM killer (0)"
        );
    }
}
