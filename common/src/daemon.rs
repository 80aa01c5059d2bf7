//! How a process lives under systemd or a shell: log lines, exit codes, readiness.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::time::Instant;

/// Stopped as asked.
pub const EXIT_OK: u8 = 0;
/// Anything that the other codes do not name; a service manager may restart it.
pub const EXIT_FAILURE: u8 = 1;
/// The command line makes no sense (`EX_USAGE` of sysexits.h): restarting will not help.
pub const EXIT_USAGE: u8 = 64;
/// The configuration cannot be used (`EX_CONFIG` of sysexits.h): restarting will not help.
pub const EXIT_CONFIG: u8 = 78;

struct StderrLog {
    prefixed: bool,
}

impl log::Log for StderrLog {
    fn enabled(&self, meta: &log::Metadata<'_>) -> bool {
        // Libraries may warn; what they merely tell is noise at 3 a.m.
        meta.level() <= log::Level::Warn || meta.target().starts_with("heartwatch")
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (priority, name) = match record.level() {
            log::Level::Error => (3, "error"),
            log::Level::Warn => (4, "warning"),
            log::Level::Info => (6, "info"),
            log::Level::Debug | log::Level::Trace => (7, "debug"),
        };
        let line = if self.prefixed {
            // The journal reads the priority and adds the time itself: sd-daemon(3).
            format!("<{priority}>{}\n", record.args())
        } else {
            format!("{name}: {}\n", record.args())
        };
        // A closed stderr must not end the process, and there is nowhere left to report it.
        drop(std::io::stderr().write_all(line.as_bytes()));
    }

    fn flush(&self) {}
}

/// Sends log lines to stderr: with journal priorities under systemd, with plain words elsewhere.
/// Later calls change only the level.
pub fn init_log(level: log::LevelFilter) {
    let prefixed = std::env::var_os("JOURNAL_STREAM").is_some();
    // An error means that a logger is already set, which is as good.
    drop(log::set_boxed_logger(Box::new(StderrLog { prefixed })));
    log::set_max_level(level);
}

/// Tells the service manager something; a no-op where there is none.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        log::debug!("cannot notify the service manager: {e}");
    }
}

/// Keeps this process's memory, which holds secrets, from files and from other processes of its user: no core
/// is written, nor handed to a program that the system has for that (which a limit of zero alone does not
/// prevent), nobody but root attaches a debugger, and `/proc/PID/{mem,environ,maps,fd,…}` are root's.
/// `/proc/PID/{stat,status,cmdline}` stay readable, and what the process reads of itself here does too.
/// To be called before a secret is read. Programs that it executes are not concerned.
pub fn keep_memory_private() {
    use nix::sys::prctl;
    use nix::sys::resource::{Resource, setrlimit};
    let done = setrlimit(Resource::RLIMIT_CORE, 0, 0).and_then(|()| prctl::set_dumpable(false));
    if let Err(e) = done {
        log::warn!("a crash may write a core file, with secrets in it: {e}");
    }
}

/// Tells the service manager that the work has begun.
pub fn ready(status: &str) {
    notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(status)]);
}

/// Tells the service manager that the process is about to end as asked.
pub fn stopping() {
    notify(&[sd_notify::NotifyState::Stopping]);
}

/// Feeds the watchdog: to be called from the loop whose progress matters, not from a timer of its own.
pub fn watchdog() {
    notify(&[sd_notify::NotifyState::Watchdog]);
}

/// How often the service manager wants [`watchdog`] called at the least (half its limit), if at all.
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// Allows this process as many open files as it may have, up to `wanted`: a shell's usual thousand would be
/// used up by idle clients. Nothing is said if that fails; it works with fewer.
pub fn raise_file_limit(wanted: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard).max(soft), hard)
    });
    if let Err(e) = raised {
        log::debug!("cannot raise the limit of open files: {e}");
    }
}

/// Lets one log line through per period, so that a broken peer cannot fill the journal.
#[derive(Debug)]
pub struct Throttle {
    period: Duration,
    /// Nanoseconds of the instant from which the next line may pass.
    next: AtomicU64,
    suppressed: AtomicU64,
}

impl Throttle {
    /// At most one line per `period`.
    pub const fn new(period: Duration) -> Self {
        Self { period, next: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// Whether to log now; if so, how many were swallowed since the last.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let next = self.next.load(Ordering::Relaxed);
        let after = (now + self.period).0;
        let mine = now.0 >= next
            && self
                .next
                .compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if mine {
            Some(self.suppressed.swap(0, Ordering::Relaxed))
        } else {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_with_secrets_in_it_is_closed_to_other_processes_of_its_user() {
        use nix::sys::resource::{Resource, getrlimit};
        keep_memory_private();
        assert!(!nix::sys::prctl::get_dumpable().unwrap());
        assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap().0, 0);
        // It still reads of itself what the agent needs.
        for file in ["status", "oom_score_adj", "mountinfo"] {
            assert!(std::fs::read(format!("/proc/self/{file}")).is_ok(), "{file}");
        }
    }

    #[test]
    fn a_throttle_lets_one_through_and_counts_the_rest() {
        let throttle = Throttle::new(Duration::from_secs(1));
        let at = Instant::from_millis(5_000);
        assert_eq!(throttle.pass(at), Some(0));
        assert_eq!(throttle.pass(at), None);
        assert_eq!(throttle.pass(at + Duration::from_millis(999)), None);
        assert_eq!(throttle.pass(at + Duration::from_millis(1_000)), Some(2));
    }
}
