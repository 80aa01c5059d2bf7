//! A receiver that is a command: for sites whose orchestrator is a script.
//!
//! The program is run by its absolute path, without a shell, in `/`, in a process group of its own, with the
//! journaled event (JSON, and a newline) on its standard input. Its environment is nothing but
//!
//! | variable | value |
//! | --- | --- |
//! | `PATH` | `/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin` |
//! | `LANG` | `C.UTF-8` |
//! | `HEARTWATCH_EVENT_ID` | the idempotency key: the same on every attempt |
//! | `HEARTWATCH_EVENT_TYPE` | such as `host.down` |
//! | `HEARTWATCH_TOKEN` | the fencing token, if the event has one |
//! | `HEARTWATCH_ATTEMPT` | from 1 |
//! | `HEARTWATCH_RECEIVER` | the receiver's name |
//!
//! How it ends is the answer. Like a refusing webhook, a failing command is tried again: most failures are
//! somebody's to repair, and an order must not be lost because a program was missing for a minute.
//!
//! | end | meaning | counted as |
//! | --- | --- | --- |
//! | exit 0 | accepted | `success` |
//! | exit 75 (`EX_TEMPFAIL`) | not now: tried again, and five in a row open the breaker | `server-error` |
//! | exit 65 (`EX_DATAERR`) | never: a dead letter at once | `gone` |
//! | any other exit | refused: tried again | `client-error` |
//! | a signal ended it | tried again, towards the breaker | `broken` |
//! | still there after `timeout` | SIGTERM, 2 s later SIGKILL, to the whole group | `timeout` |
//! | it cannot be started | tried again, towards the breaker | `connect` |
//!
//! The codes are those of BSD's `sysexits.h`. When it has ended, whatever is left of its group is killed. A
//! controller that is killed itself leaves a running command behind, and the next one runs it again: it must
//! bear that, as every receiver must, by the event id and the token.

use std::fmt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::decision::Decision;
use super::outcome::{Outcome, OutcomeClass, clip};
use crate::store::Outgoing;

/// Time between SIGTERM and SIGKILL.
pub const KILL_AFTER: Duration = Duration::from_secs(2);
/// Bytes of its standard output and of its standard error that are kept; the rest is read and forgotten.
pub const OUTPUT_LEN_MAX: usize = 1_024;
/// How long its output is waited for once it has ended and its group was killed.
const OUTPUT_WAIT_MAX: Duration = Duration::from_secs(1);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// sysexits.h: a failure that will pass.
const EX_TEMPFAIL: i32 = 75;
/// sysexits.h: the input is no good.
const EX_DATAERR: i32 = 65;

/// A command, ready to be run.
pub struct Exec {
    receiver: String,
    command: Vec<String>,
    timeout: Duration,
}

impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its arguments may hold a password.
        f.debug_struct("Exec").field("receiver", &self.receiver).finish_non_exhaustive()
    }
}

/// Kills what is left of a process group when it goes out of scope: also when the attempt is broken off.
struct Group(Pid);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Err(e) = killpg(self.0, signal) {
            // As a rule nobody is left, which is good.
            log::trace!("process group {}: {e}", self.0);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

impl Exec {
    /// Runs `command`, which is not empty, for at most `timeout`.
    pub fn new(receiver: &str, command: &[String], timeout: Duration) -> Self {
        Self { receiver: receiver.to_owned(), command: command.to_vec(), timeout }
    }

    /// Runs it for one event. Ends within the time limit, [`KILL_AFTER`] and a second.
    pub async fn run(&self, outgoing: &Outgoing) -> Outcome {
        let mut child = match self.spawn(outgoing) {
            Ok(child) => child,
            Err(e) => return Outcome::failed(OutcomeClass::Connect, &format!("cannot start: {e}")),
        };
        let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) else {
            return Outcome::failed(OutcomeClass::Broken, "the command has no process id");
        };
        let group = Group(Pid::from_raw(pid));
        let input = child.stdin.take().map(|mut stdin| {
            let body = format!("{}\n", outgoing.body);
            async move {
                // A command that does not read its input is free not to.
                if let Err(e) = stdin.write_all(body.as_bytes()).await {
                    log::trace!("a command closed its input: {e}");
                }
            }
        });
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        // All three at once: a command that writes before it reads must not wait for us, nor we for it.
        let talk = tokio::spawn(async move {
            let write = async {
                if let Some(input) = input {
                    input.await;
                }
            };
            let (_, out, err) = tokio::join!(write, head(stdout), head(stderr));
            (out, err)
        });
        let status = self.wait(&mut child, &group).await;
        drop(group);
        let said = match tokio::time::timeout(OUTPUT_WAIT_MAX, talk).await {
            Ok(Ok((out, err))) => {
                if err.trim().is_empty() {
                    out
                } else {
                    err
                }
            }
            _ => String::new(),
        };
        self.judge(status, &said)
    }

    fn spawn(&self, outgoing: &Outgoing) -> std::io::Result<Child> {
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .current_dir("/")
            .env_clear()
            .env("PATH", PATH)
            .env("LANG", "C.UTF-8")
            .env("HEARTWATCH_EVENT_ID", outgoing.event.to_string())
            .env("HEARTWATCH_EVENT_TYPE", outgoing.kind.as_str())
            .env("HEARTWATCH_ATTEMPT", outgoing.attempt.to_string())
            .env("HEARTWATCH_RECEIVER", &self.receiver)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(token) = outgoing.token {
            command.env("HEARTWATCH_TOKEN", token.0.to_string());
        }
        command.spawn()
    }

    /// `None`: it had to be ended.
    async fn wait(&self, child: &mut Child, group: &Group) -> Option<std::io::Result<ExitStatus>> {
        if let Ok(ended) = tokio::time::timeout(self.timeout, child.wait()).await {
            return Some(ended);
        }
        group.signal(Signal::SIGTERM);
        if tokio::time::timeout(KILL_AFTER, child.wait()).await.is_err() {
            group.signal(Signal::SIGKILL);
            if let Err(e) = child.wait().await {
                log::warn!("receiver {}: cannot wait for its command: {e}", self.receiver);
            }
        }
        None
    }

    fn judge(&self, status: Option<std::io::Result<ExitStatus>>, said: &str) -> Outcome {
        let (class, how) = match status {
            None => {
                let limit = self.timeout.as_secs_f64();
                (OutcomeClass::Timeout, format!("ended after {limit:.1} s, its time limit"))
            }
            Some(Err(e)) => (OutcomeClass::Broken, format!("cannot wait for it: {e}")),
            Some(Ok(status)) => match status.code() {
                Some(0) => (OutcomeClass::Success, "exit 0".to_owned()),
                Some(EX_TEMPFAIL) => (OutcomeClass::ServerError, "exit 75, not now".to_owned()),
                Some(EX_DATAERR) => (OutcomeClass::Gone, "exit 65, never".to_owned()),
                Some(code) => (OutcomeClass::ClientError, format!("exit {code}")),
                None => (OutcomeClass::Broken, status.to_string()),
            },
        };
        let said = said.trim().lines().last().unwrap_or_default().trim();
        let shown: String = said.chars().filter(|c| !c.is_control()).collect();
        let decision = match class {
            OutcomeClass::Success => Decision::parse(said.as_bytes()),
            _ => None,
        };
        let detail = match &decision {
            _ if shown.is_empty() => how,
            Some(_) => how,
            None => format!("{how}: {shown}"),
        };
        Outcome { decision, ..Outcome::failed(class, clip(&detail)) }
    }
}

/// Reads to the end, keeps the first [`OUTPUT_LEN_MAX`] bytes.
async fn head(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else { return String::new() };
    let (mut kept, mut buffer) = (Vec::new(), [0; 4_096]);
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let room = OUTPUT_LEN_MAX - kept.len();
        kept.extend_from_slice(&buffer[..n.min(room)]);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Sample, sample};
    use super::*;
    use crate::event::EventKind;

    fn shell(script: &str, timeout: Duration) -> Exec {
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        Exec::new("script", &command, timeout)
    }

    async fn run(script: &str) -> Outcome {
        let down = sample(EventKind::HostDown, &Sample::default());
        shell(script, Duration::from_secs(20)).run(&down).await
    }

    #[tokio::test]
    async fn it_gets_the_event_on_its_input_and_a_clean_environment() {
        let dir = tempfile::tempdir().unwrap();
        let (body, environment) = (dir.path().join("body"), dir.path().join("env"));
        let script = format!("cat > {}; env > {}; pwd >&2", body.display(), environment.display());
        let outcome = run(&script).await;
        assert_eq!((outcome.class, outcome.detail.as_str()), (OutcomeClass::Success, "exit 0: /"));
        let down = sample(EventKind::HostDown, &Sample::default());
        assert_eq!(std::fs::read_to_string(body).unwrap(), format!("{}\n", down.body));
        let text = std::fs::read_to_string(environment).unwrap();
        let mut names: Vec<_> = text.lines().filter_map(|l| l.split('=').next()).collect();
        // The shell's own.
        names.retain(|n| !["PWD", "OLDPWD", "SHLVL", "_"].contains(n));
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "HEARTWATCH_ATTEMPT",
                "HEARTWATCH_EVENT_ID",
                "HEARTWATCH_EVENT_TYPE",
                "HEARTWATCH_RECEIVER",
                "HEARTWATCH_TOKEN",
                "LANG",
                "PATH"
            ]
        );
        assert!(text.contains("HEARTWATCH_EVENT_TYPE=host.down\n"), "{text}");
        assert!(text.contains(&format!("HEARTWATCH_EVENT_ID={}\n", down.event)), "{text}");
    }

    #[tokio::test]
    async fn how_it_ends_is_the_answer() {
        for (script, class, detail) in [
            ("exit 0", OutcomeClass::Success, "exit 0"),
            ("exit 75", OutcomeClass::ServerError, "exit 75, not now"),
            ("exit 65", OutcomeClass::Gone, "exit 65, never"),
            (
                "echo fine; echo no such thing >&2; exit 3",
                OutcomeClass::ClientError,
                "exit 3: no such thing",
            ),
            ("kill -9 $$", OutcomeClass::Broken, "signal: 9 (SIGKILL)"),
        ] {
            let outcome = run(script).await;
            assert_eq!((outcome.class, outcome.detail.as_str()), (class, detail), "{script}");
        }
        let missing = Exec::new("x", &["/nonexistent/program".to_owned()], Duration::from_secs(9));
        let outcome = missing.run(&sample(EventKind::HostDown, &Sample::default())).await;
        assert_eq!(outcome.class, OutcomeClass::Connect);
        assert!(outcome.detail.contains("No such file"), "{}", outcome.detail);
    }

    #[tokio::test]
    async fn however_much_it_writes_little_is_kept_and_nobody_waits_for_the_other() {
        // Writes more than a pipe holds before it reads, and does not read at all.
        let outcome = run("head -c 3000000 /dev/zero | tr '\\0' x; exit 4").await;
        assert_eq!(outcome.class, OutcomeClass::ClientError);
        assert!(outcome.detail.len() <= super::super::outcome::DETAIL_LEN_MAX);
        assert!(outcome.detail.starts_with("exit 4: xxx"), "{}", outcome.detail);
    }

    #[tokio::test]
    async fn a_command_that_does_not_end_is_ended_with_its_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        // The shell takes SIGTERM and ends by it; its child does not care for it.
        let script = format!(
            "sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' & echo $! > {}; wait",
            pids.display()
        );
        let down = sample(EventKind::HostDown, &Sample::default());
        let outcome = shell(&script, Duration::from_millis(300)).run(&down).await;
        assert_eq!(outcome.class, OutcomeClass::Timeout, "{}", outcome.detail);
        let child: i32 = std::fs::read_to_string(pids).unwrap().trim().parse().unwrap();
        let gone = async {
            while is_running(child) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
    }

    /// Whether a process runs still; one that waits to be reaped does not.
    fn is_running(pid: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        state.is_some_and(|state| state != 'Z')
    }

    #[tokio::test]
    async fn what_it_leaves_behind_is_killed_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        let script = format!("sleep 1000 & echo $! > {}; exit 0", pids.display());
        let outcome = run(&script).await;
        assert_eq!(outcome.class, OutcomeClass::Success, "{}", outcome.detail);
        let child: i32 = std::fs::read_to_string(pids).unwrap().trim().parse().unwrap();
        let gone = async {
            while is_running(child) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
    }
}
