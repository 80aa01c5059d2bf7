//! Real processes on loopback: controllers, agents, receivers, and the tools to look at them.
//!
//! Everything lives in one temporary folder per [`World`], takes ephemeral ports and is ended when its
//! owner is dropped. Nothing here sleeps for a fixed time: [`eventually`] waits for a condition up to a
//! deadline that is generous, since a test says *what* happens and never how fast.

use std::fmt::Write as _;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use heartwatch_common::auth::{FleetSecret, create_secret_file};
use heartwatch_common::id::{Generation, HostId, KeyId};
use heartwatch_common::time::{Clock, Instant, SystemClock};
use serde_json::Value;

mod agent;
mod cage;
mod controller;
mod ctl;
mod manager;
mod netns;
mod process;
mod receiver;
mod udp;

pub use agent::{Agent, AgentSetup};
pub use cage::Cage;
pub use controller::{Api, Controller, ControllerSetup};
pub use ctl::CtlOutput;
pub use manager::Manager;
pub use netns::{Net, Place, Way};
pub use process::{Process, binary};
pub use receiver::{Answer, Call, Plan, Receiver, webhook_secret};
pub use udp::{Said, Station};

/// How long anything may take that should take a second or two: machines that test are busy.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A temporary folder, a fleet secret, and what was made in them.
pub struct World {
    dir: tempfile::TempDir,
    secret: FleetSecret,
}

impl World {
    /// An empty world.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("heartwatch-")
            .tempdir()
            .context("cannot make a temporary folder")?;
        Ok(Self { dir, secret: FleetSecret::new(KeyId(1), [0x42; 32]) })
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in its folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file that everyone may read.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Writes a file that only its owner may read; replaces an older one.
    pub fn write_secret(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        if path.exists() {
            std::fs::remove_file(&path)?;
        }
        create_secret_file(&path, text)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// The fleet secret of every controller of this world.
    pub fn secret(&self) -> &FleetSecret {
        &self.secret
    }

    /// The key of a host of this world.
    pub fn key(&self, host: HostId) -> heartwatch_common::auth::HostKey {
        self.secret.host_key(host, Generation(0))
    }

    /// A controller, not yet started.
    pub fn controller(&self) -> ControllerSetup<'_> {
        ControllerSetup::new(self)
    }

    /// An agent, not yet started. Its host id is [`host_id`] of `name`.
    pub fn agent(&self, name: &str) -> AgentSetup<'_> {
        AgentSetup::new(self, name)
    }

    /// The ends of all log files, for a test that failed.
    pub fn logs(&self, lines_max: usize) -> String {
        let mut out = String::new();
        let Ok(entries) = std::fs::read_dir(self.dir()) else { return out };
        let mut paths: Vec<_> = entries.filter_map(Result::ok).map(|e| e.path()).collect();
        paths.sort();
        for path in paths.iter().filter(|p| p.extension().is_some_and(|e| e == "log")) {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let lines: Vec<_> = text.lines().collect();
            let from = lines.len().saturating_sub(lines_max);
            writeln!(out, "--- {name} ({} lines, the last {})", lines.len(), lines.len() - from)
                .expect("a String takes any text");
            for line in &lines[from..] {
                writeln!(out, "    {line}").expect("a String takes any text");
            }
        }
        out
    }
}

/// Runs one end-to-end test in a world of its own.
///
/// # Panics
/// If the test fails: with what was expected and seen, and the ends of all logs.
pub async fn story(test: impl AsyncFnOnce(&World) -> Result<()>) {
    let world = World::new().expect("a temporary folder can be made");
    if let Err(e) = test(&world).await {
        panic!(
            "{e:#}

{}",
            world.logs(60)
        );
    }
}

/// The host id that tests give to a host of that name.
pub fn host_id(name: &str) -> HostId {
    // FNV-1a, twice: spread well enough over shards, and the same in every run.
    let half = |seed: u64| {
        name.bytes().fold(seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&half(0xcbf2_9ce4_8422_2325).to_be_bytes());
    id[8..].copy_from_slice(&half(0x6c62_272e_07bb_0142).to_be_bytes());
    HostId(id)
}

/// Now, on the monotonic clock.
pub fn now() -> Instant {
    SystemClock.now()
}

/// Waits until `look` answers `Some`, and answers what it found.
///
/// # Errors
/// After `patience`: what was expected, and what `look` last complained of.
pub async fn eventually<T, F, Fut>(patience: Duration, expected: &str, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let deadline = now() + patience;
    let mut last = String::from("it was not so yet");
    loop {
        match look().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(e) => last = format!("{e:#}"),
        }
        if now() >= deadline {
            bail!("expected within {patience:?}: {expected}; seen last: {last}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Checks over and over for `span` that `look` holds; answers its first complaint.
pub async fn throughout<F, Fut>(span: Duration, mut look: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let end = now() + span;
    loop {
        look().await?;
        if now() >= end {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A text field of a JSON object, or an empty text.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A number of a JSON object, or 0.
pub fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

/// How long tests stop or cut off a controller: `usual`, or what `HEARTWATCH_TEST_STOP` says (`60s`).
///
/// # Panics
/// If that is no span of time.
pub fn stop_span(usual: Duration) -> Duration {
    match std::env::var("HEARTWATCH_TEST_STOP") {
        Ok(text) => humantime::parse_duration(&text).expect("HEARTWATCH_TEST_STOP is such as 60s"),
        Err(_) => usual,
    }
}

/// Whether this process may mount file systems in a namespace of its own.
pub fn can_unshare_mounts() -> bool {
    std::process::Command::new("unshare")
        .args(["-m", "true"])
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// Says loudly that a test can't run here, where the summary of `cargo xtask test` finds it.
pub fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
    let Some(log) = std::env::var_os("HEARTWATCH_SKIP_LOG") else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&log);
    let written = file
        .and_then(|mut f| std::io::Write::write_all(&mut f, format!("{test}: {why}\n").as_bytes()));
    if let Err(e) = written {
        eprintln!("cannot note the skip in {}: {e}", log.display());
    }
}
