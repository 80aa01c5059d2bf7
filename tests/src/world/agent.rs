//! A real agent.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, ensure};
use heartwatch_common::id::HostId;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::ctl::{CtlOutput, output};
use super::netns::inside;
use super::process::{Process, binary};
use super::{PATIENCE, World, host_id};

/// An agent to be started: a config file in the making.
pub struct AgentSetup<'w> {
    world: &'w World,
    name: String,
    host: HostId,
    controllers: Vec<String>,
    labels: Vec<(String, String)>,
    interval: String,
    log_level: &'static str,
    lines: String,
    space: Option<String>,
}

impl<'w> AgentSetup<'w> {
    pub(super) fn new(world: &'w World, name: &str) -> Self {
        Self {
            world,
            name: name.into(),
            host: host_id(name),
            controllers: Vec::new(),
            labels: Vec::new(),
            interval: "200ms".into(),
            log_level: "debug",
            lines: String::new(),
            space: None,
        }
    }

    /// Runs it in a network namespace.
    pub fn within(mut self, space: &str) -> Self {
        self.space = Some(space.into());
        self
    }

    /// Whom it beats to; may be called again for another one.
    pub fn beats_to(mut self, controller: SocketAddr) -> Self {
        self.controllers.push(controller.to_string());
        self
    }

    /// Takes another agent's identity, as a cloned machine does.
    pub fn clone_of(mut self, name: &str) -> Self {
        self.host = host_id(name);
        self
    }

    /// A label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// Time between beats, as in the config. The default is 200ms, to keep tests quick.
    pub fn interval(mut self, interval: &str) -> Self {
        self.interval = interval.into();
        self
    }

    /// How much it tells, as in the config. The default is debug.
    pub fn log_level(mut self, level: &'static str) -> Self {
        self.log_level = level;
        self
    }

    /// A further line of config.
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push_str(line);
        self.lines.push('\n');
        self
    }

    /// The config as TOML.
    pub fn config(&self) -> String {
        let dir = self.dir();
        let labels: String = self.labels.iter().map(|(k, v)| format!("{k} = \"{v}\"\n")).collect();
        format!(
            "controllers = {:?}\nkey_file = \"{}\"\nhost_id = \"{}\"\nname = \"{}\"\n\
             interval = \"{}\"\nack_every = 5\nstate_dir = \"{}\"\nruntime_dir = \"{}\"\n\
             log_level = \"{}\"\n{}\n[labels]\n{labels}",
            self.controllers,
            dir.join("key").display(),
            self.host,
            self.name,
            self.interval,
            dir.join("state").display(),
            dir.join("run").display(),
            self.log_level,
            self.lines,
        )
    }

    fn dir(&self) -> PathBuf {
        self.world.path(format!("agent-{}", self.name))
    }

    /// Writes config and key, without starting anything.
    pub fn write(&self) -> Result<PathBuf> {
        let dir = self.dir();
        for dir in [dir.join("state"), dir.join("run")] {
            std::fs::create_dir_all(&dir)
                .with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let key = dir.join("key");
        if !key.exists() {
            heartwatch_common::auth::create_secret_file(
                &key,
                &self.world.key(self.host).to_text(),
            )?;
        }
        let config = dir.join("agent.toml");
        std::fs::write(&config, self.config())?;
        Ok(config)
    }

    /// Starts it.
    pub fn start(self) -> Result<Agent> {
        let config = self.write()?;
        let log = self.world.path(format!("agent-{}.log", self.name));
        let state_dir = self.dir().join("state");
        let mut agent = Agent {
            name: self.name.clone(),
            host: self.host,
            config,
            log,
            state_dir,
            space: self.space.clone(),
            process: None,
        };
        agent.start()?;
        Ok(agent)
    }
}

/// A real agent; killed when dropped.
pub struct Agent {
    name: String,
    host: HostId,
    config: PathBuf,
    log: PathBuf,
    state_dir: PathBuf,
    space: Option<String>,
    process: Option<Process>,
}

impl Agent {
    /// Starts it again; it must not run.
    pub fn start(&mut self) -> Result<()> {
        let program = binary("heartwatch-agent")?;
        let mut command = match &self.space {
            Some(space) => inside(space, &program),
            None => Command::new(program),
        };
        command.arg("run").arg("--config").arg(&self.config);
        self.process = Some(Process::start(&self.name, &mut command, &self.log)?);
        Ok(())
    }

    /// Its host id.
    pub fn host(&self) -> HostId {
        self.host
    }

    /// Its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its config file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Its state folder.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Its process.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the agent does not run")
    }

    /// SIGKILL: no goodbye.
    pub fn kill(&mut self) -> Result<()> {
        self.process()?.kill()
    }

    /// SIGSTOP: it exists, but neither beats nor answers.
    pub fn freeze(&mut self) -> Result<()> {
        self.process()?.signal(Signal::SIGSTOP)
    }

    /// SIGCONT.
    pub fn thaw(&mut self) -> Result<()> {
        self.process()?.signal(Signal::SIGCONT)
    }

    /// SIGTERM: a polite leave; expects a clean end.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        let status = self.process()?.stop(PATIENCE).await?;
        let log = self.process()?.log();
        ensure!(status.success(), "expected exit 0 after SIGTERM, seen {status}:\n{log}");
        Ok(status)
    }

    /// SIGHUP: read the config again.
    pub fn reload(&mut self) -> Result<()> {
        self.process()?.signal(Signal::SIGHUP)
    }

    /// `heartwatch-agent status --json`.
    pub fn status(&self) -> Result<Value> {
        let mut command = Command::new(binary("heartwatch-agent")?);
        command.args(["status", "--json", "--config"]).arg(&self.config);
        output(&mut command)?.json()
    }

    /// Runs another verb of the agent with its config.
    pub fn verb(&self, verb: &str) -> Result<CtlOutput> {
        self.verbs(&[verb])
    }

    /// The same with arguments.
    pub fn verbs(&self, args: &[&str]) -> Result<CtlOutput> {
        let mut command = Command::new(binary("heartwatch-agent")?);
        command.args(args).arg("--config").arg(&self.config);
        output(&mut command)
    }
}
