//! One real process: started, stopped, killed by its id, its words kept in a file.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{eventually, now};

/// A binary of the product, beside the binary that runs.
///
/// # Errors
/// If it is not there: with the command that builds it.
pub fn binary(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe().context("cannot find the running binary")?;
    let mut dir = me.parent().context("the running binary is in no folder")?;
    if dir.ends_with("deps") {
        dir = dir.parent().unwrap_or(dir);
    }
    let path = dir.join(name);
    if path.is_file() {
        return Ok(path);
    }
    let profile = match dir.file_name().and_then(|n| n.to_str()) {
        Some("debug") | None => String::new(),
        Some(profile) => format!(" --profile {profile}"),
    };
    bail!(
        "{} is not built: run `cargo build --workspace --bins{profile}` (cargo xtask e2e does)",
        path.display()
    )
}

/// A process that ends when this is dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`; both its outputs are appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let twin: File = file.try_clone().context("cannot share the log")?;
        let foreign: Vec<_> = std::env::vars_os()
            .map(|(name, _)| name)
            .filter(|n| n.to_string_lossy().starts_with("HEARTWATCH_"))
            .collect();
        foreign.iter().for_each(|name| {
            command.env_remove(name);
        });
        let child = command
            // Open for as long as this lives: a helper may wait for its end.
            .stdin(Stdio::piped())
            .stdout(file)
            .stderr(twin)
            // Nothing of the machine that runs the tests may change what they see.
            .env_remove("JOURNAL_STREAM")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), ended: None })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("a process id fits an i32")?;
        kill(Pid::from_raw(pid), signal)
            .with_context(|| format!("cannot send {signal} to {} ({pid})", self.name))
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().context("cannot wait")?;
        }
        Ok(self.ended)
    }

    /// Kills it with SIGKILL and reaps it.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
            self.ended = Some(self.child.wait().context("cannot wait")?);
        }
        Ok(())
    }

    /// Waits for its end.
    pub async fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = now() + patience;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if now() >= deadline {
                bail!("{} did not end within {patience:?}; its log:\n{}", self.name, self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks it to end with SIGTERM and waits.
    pub async fn stop(&mut self, patience: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        self.wait(patience).await
    }

    /// Waits until its log holds `words`.
    pub async fn says(&mut self, words: &str, patience: Duration) -> Result<()> {
        let (name, log) = (self.name.clone(), self.log.clone());
        let what = format!("{name} says `{words}`");
        eventually(patience, &what, || async {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            Ok(text.contains(words).then_some(()))
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL ends a stopped process too. Both calls fail only for one that is gone already.
        if self.ended.is_none() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}
