//! A real controller, and its HTTP API as tests ask it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use heartwatch_common::id::HostId;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::manager::Manager;
use super::netns::inside;
use super::process::{Process, binary};
use super::{PATIENCE, World, eventually, now, text};

/// A controller to be started: a config file in the making.
pub struct ControllerSetup<'w> {
    world: &'w World,
    name: String,
    listen: String,
    api_listen: String,
    state_dir: PathBuf,
    top: String,
    detector: BTreeMap<String, String>,
    tail: String,
    tmpfs: Option<u32>,
    space: Option<String>,
    nice: u8,
    args: Vec<String>,
    manager: Option<Arc<Manager>>,
}

impl<'w> ControllerSetup<'w> {
    pub(super) fn new(world: &'w World) -> Self {
        Self {
            world,
            name: "controller".into(),
            listen: "127.0.0.1:0".into(),
            api_listen: "127.0.0.1:0".into(),
            state_dir: world.path("controller"),
            top: "shards = 2\nlog_level = \"debug\"\n".into(),
            detector: BTreeMap::new(),
            tail: String::new(),
            tmpfs: None,
            space: None,
            nice: 0,
            args: Vec::new(),
            manager: None,
        }
    }

    /// Has a service manager start it, which keeps its descriptors. Not together with other ways to start.
    pub fn managed(mut self, manager: &Arc<Manager>) -> Self {
        self.manager = Some(Arc::clone(manager));
        self
    }

    /// Runs it in a network namespace.
    pub fn within(mut self, space: &str) -> Self {
        self.space = Some(space.into());
        self
    }

    /// Puts its state folder on a file system of so many KiB, in a mount namespace of its own: needs
    /// root. Its secrets stay outside.
    pub fn on_tmpfs(mut self, kib: u32) -> Self {
        self.tmpfs = Some(kib);
        let secret = self.world.path("tmpfs-fleet-secret");
        let token = self.world.path("tmpfs-api-token");
        self.top(&format!("fleet_secret_file = \"{}\"", secret.display()))
            .top(&format!("api_token_file = \"{}\"", token.display()))
    }

    /// Further words for `run`.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args = args.iter().map(|a| (*a).to_owned()).collect();
        self
    }

    /// Lets everything else go first, by so many steps of niceness.
    pub fn nice(mut self, steps: u8) -> Self {
        self.nice = steps;
        self
    }

    /// Another name, which also names its state folder, config and log.
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self.state_dir = self.world.path(name);
        self
    }

    /// Where it hears beats; port 0 takes a free one.
    pub fn listen(mut self, address: &str) -> Self {
        self.listen = address.into();
        self
    }

    /// Where its API listens; port 0 takes a free one.
    pub fn api_listen(mut self, address: &str) -> Self {
        self.api_listen = address.into();
        self
    }

    /// Another state folder.
    pub fn state_dir(mut self, dir: &Path) -> Self {
        self.state_dir = dir.to_owned();
        self
    }

    /// All that stands at the top of the config, instead of two shards and a talkative log.
    pub fn only_top(mut self, lines: &str) -> Self {
        self.top = format!("{lines}\n");
        self
    }

    /// A line for the top of the config, such as `log_level = "warn"`.
    pub fn top(mut self, line: &str) -> Self {
        self.top.push_str(line);
        self.top.push('\n');
        self
    }

    /// A value of `[detector]`, as TOML: `("timeout_max", "\"2s\"")`.
    pub fn detector(mut self, key: &str, value: &str) -> Self {
        self.detector.insert(key.into(), value.into());
        self
    }

    /// A webhook receiver, with retries that do not make a test wait.
    pub fn receiver(self, name: &str, url: &str, secret: &Path) -> Self {
        self.receiver_with(name, url, secret, "timeout = \"2s\"\n")
    }

    /// A webhook receiver with further lines of TOML, which may set other waits between attempts.
    pub fn receiver_with(mut self, name: &str, url: &str, secret: &Path, lines: &str) -> Self {
        let waits = match lines.contains("retry_base") {
            true => "",
            false => "retry_base = \"50ms\"\nretry_cap = \"1s\"\n",
        };
        write!(
            self.tail,
            "[receivers.{name}]\nurl = \"{url}\"\nsecret_file = \"{}\"\n{waits}{lines}\n",
            secret.display()
        )
        .expect("a String takes any text");
        self
    }

    /// A receiver of which all is said by lines of TOML, but for waits that do not make a test wait.
    pub fn receiver_of(mut self, name: &str, lines: &str) -> Self {
        let waits = "retry_base = \"50ms\"\nretry_cap = \"1s\"";
        write!(self.tail, "[receivers.{name}]\n{waits}\n{lines}\n")
            .expect("a String takes any text");
        self
    }

    /// A rule for all hosts.
    pub fn rule(self, name: &str, events: &[&str], receivers: &[&str]) -> Self {
        self.rule_with(name, events, receivers, "")
    }

    /// A rule with further lines of TOML.
    pub fn rule_with(
        mut self,
        name: &str,
        events: &[&str],
        receivers: &[&str],
        lines: &str,
    ) -> Self {
        write!(
            self.tail,
            "[[rules]]\nname = \"{name}\"\nevents = {events:?}\nreceivers = {receivers:?}\n{lines}\n"
        )
        .expect("a String takes any text");
        self
    }

    /// The config as TOML.
    pub fn config(&self) -> String {
        let detector: String = self.detector.iter().map(|(k, v)| format!("{k} = {v}\n")).collect();
        // All hosts are this machine: a busy one would leave out them all.
        let placement = match self.top.contains("placement.") || self.tail.contains("[placement]") {
            true => "",
            false => "[placement]\nload_max = 1.0\n\n",
        };
        format!(
            "name = \"{}\"\nlisten = [\"{}\"]\napi_listen = \"{}\"\nstate_dir = \"{}\"\n{}\n{placement}\
             [detector]\n{detector}\n{}",
            self.name,
            self.listen,
            self.api_listen,
            self.state_dir.display(),
            self.top,
            self.tail
        )
    }

    /// Writes the config and this world's fleet secret.
    pub fn write(&self) -> Result<PathBuf> {
        std::fs::create_dir_all(&self.state_dir)
            .with_context(|| format!("cannot make {}", self.state_dir.display()))?;
        let secret = match self.tmpfs {
            Some(_) => self.world.path("tmpfs-fleet-secret"),
            None => self.state_dir.join("fleet-secret"),
        };
        if self.tmpfs.is_some() {
            self.world.write_secret("tmpfs-api-token", "0123456789abcdef0123456789abcdef")?;
        }
        if !secret.exists() {
            heartwatch_common::auth::create_secret_file(&secret, &self.world.secret().to_text())?;
        }
        self.world.write(&format!("{}.toml", self.name), &self.config())
    }

    /// Starts it and waits until it is ready.
    pub async fn start(self) -> Result<Controller> {
        let config = self.write()?;
        let mut controller = Controller {
            name: self.name.clone(),
            log: self.world.path(format!("{}.log", self.name)),
            config,
            state_dir: self.state_dir.clone(),
            token_file: match self.tmpfs {
                Some(_) => self.world.path("tmpfs-api-token"),
                None => self.state_dir.join("api-token"),
            },
            tmpfs: self.tmpfs,
            space: self.space.clone(),
            nice: self.nice,
            args: self.args,
            manager: self.manager,
            env: Vec::new(),
            process: None,
            ready: Ready::default(),
        };
        controller.start().await?;
        Ok(controller)
    }
}

/// Where a ready controller is to be found.
#[derive(Clone, Debug, Default)]
struct Ready {
    listen: Vec<SocketAddr>,
    api: Option<SocketAddr>,
}

/// A real controller; killed when dropped.
pub struct Controller {
    name: String,
    config: PathBuf,
    log: PathBuf,
    state_dir: PathBuf,
    token_file: PathBuf,
    tmpfs: Option<u32>,
    space: Option<String>,
    nice: u8,
    args: Vec<String>,
    manager: Option<Arc<Manager>>,
    env: Vec<(String, String)>,
    process: Option<Process>,
    ready: Ready,
}

impl Controller {
    /// Starts it again; it must not run.
    pub async fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_ready().await
    }

    /// What its next processes find in their environment beside ours.
    pub fn set_env(&mut self, env: &[(&str, &str)]) {
        self.env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    }

    /// Starts its process without waiting for anything.
    pub fn spawn(&mut self) -> Result<()> {
        let program = binary("heartwatch-controller")?;
        // What is passed must be open until the process is there.
        let mut passed = Vec::new();
        let mut command = match self.tmpfs {
            None if self.manager.is_some() => {
                let manager = self.manager.as_ref().context("there is one")?;
                let (command, fds) = manager.command(&program)?;
                passed = fds;
                command
            }
            None => match &self.space {
                Some(space) => inside(space, &program),
                None if self.nice > 0 => {
                    // It replaces itself by the program, so its id stays that of the controller.
                    let mut command = Command::new("nice");
                    command.args(["-n", &self.nice.to_string()]).arg(program);
                    command
                }
                None => Command::new(program),
            },
            Some(kib) => {
                // Every step replaces the process, so its id stays that of the controller.
                let script =
                    format!("mount -t tmpfs -o size={kib}k,mode=0700 tmpfs \"$0\" && exec \"$@\"");
                let mut command = Command::new("unshare");
                command.args(["-m", "sh", "-c", &script]).arg(&self.state_dir).arg(program);
                command
            }
        };
        command.arg("run").args(&self.args).arg("--config").arg(&self.config);
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        self.process = Some(Process::start(&self.name, &mut command, &self.log)?);
        drop(passed);
        Ok(())
    }

    /// Waits until it has said where it listens.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let deadline = now() + PATIENCE;
        loop {
            let dir = self.visible_state_dir();
            let process = self.process.as_mut().context("the controller was not started")?;
            if let Some(status) = process.ended()? {
                bail!("the controller ended with {status} at once; its log:\n{}", process.log());
            }
            let pid = process.pid();
            if let Some(ready) = read_ready(&dir, pid) {
                self.ready = ready;
                return Ok(());
            }
            if now() >= deadline {
                bail!("the controller was not ready in {PATIENCE:?}; its log:\n{}", process.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Writes its ports into its config, so that it comes back where agents look for it.
    pub fn pin_ports(&self) -> Result<()> {
        let text = std::fs::read_to_string(&self.config)?;
        let lines = text.lines().map(|line| {
            if line.starts_with("listen = ") {
                format!("listen = [\"{}\"]", self.beats())
            } else {
                line.to_owned()
            }
        });
        let pinned: Vec<String> = lines.collect();
        std::fs::write(&self.config, pinned.join("\n"))?;
        Ok(())
    }

    /// Writes its API's port into its config too.
    pub fn pin_api(&self) -> Result<()> {
        let api = self.ready.api.context("it was not ready yet")?;
        let text = std::fs::read_to_string(&self.config)?;
        let lines = text.lines().map(|line| match line.starts_with("api_listen = ") {
            true => format!("api_listen = \"{api}\""),
            false => line.to_owned(),
        });
        let pinned: Vec<String> = lines.collect();
        std::fs::write(&self.config, pinned.join("\n"))?;
        Ok(())
    }

    /// Where it hears beats.
    ///
    /// # Panics
    /// Before it was ready once.
    pub fn beats(&self) -> SocketAddr {
        *self.ready.listen.first().expect("the controller was ready once")
    }

    /// Its config file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Its state folder.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Its state folder as this process can reach it, also if it is in another mount namespace.
    pub fn visible_state_dir(&self) -> PathBuf {
        match (&self.tmpfs, &self.process) {
            (Some(_), Some(process)) => {
                let inside = self.state_dir.strip_prefix("/").unwrap_or(&self.state_dir);
                Path::new("/proc").join(process.pid().to_string()).join("root").join(inside)
            }
            _ => self.state_dir.clone(),
        }
    }

    /// Its API's base URL.
    pub fn url(&self) -> String {
        // From elsewhere than its own machine it is reached by TLS alone.
        let scheme = |a: &SocketAddr| if a.ip().is_loopback() { "http" } else { "https" };
        self.ready.api.map(|a| format!("{}://{a}", scheme(&a))).unwrap_or_default()
    }

    /// The same by TLS.
    pub fn https(&self) -> String {
        self.ready.api.map(|a| format!("https://{a}")).unwrap_or_default()
    }

    /// The certificate that it made for itself.
    pub fn certificate(&self) -> PathBuf {
        self.visible_state_dir().join("api-certificate.pem")
    }

    /// The file that holds its API's token.
    pub fn token_file(&self) -> PathBuf {
        self.token_file.clone()
    }

    /// Its API. Ask again after a restart: the port may differ.
    pub fn api(&self) -> Result<Api> {
        let url = self.url();
        let own = url.starts_with("https:").then(|| self.certificate());
        Api::trusting(&url, &self.token_file(), own.as_deref())
    }

    /// Its process.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the controller does not run")
    }

    /// Everything that it said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process()?.kill()
    }

    /// SIGTERM; expects a clean end.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        let status = self.process()?.stop(PATIENCE).await?;
        ensure!(status.success(), "expected exit 0 after SIGTERM, seen {status}:\n{}", self.log());
        Ok(status)
    }

    /// SIGSTOP: it exists, but does nothing.
    pub fn freeze(&mut self) -> Result<()> {
        self.process()?.signal(Signal::SIGSTOP)
    }

    /// SIGCONT.
    pub fn thaw(&mut self) -> Result<()> {
        self.process()?.signal(Signal::SIGCONT)
    }

    /// Runs `heartwatchctl` against it.
    pub fn ctl(&self, args: &[&str]) -> Result<super::CtlOutput> {
        let url = self.url();
        let certificate = self.certificate().display().to_string();
        let mut all = args.to_vec();
        if url.starts_with("https:") {
            all.extend(["--ca", &certificate]);
        }
        super::ctl::run(&url, &self.token_file(), &all)
    }
}

fn read_ready(state_dir: &Path, pid: u32) -> Option<Ready> {
    let text = std::fs::read_to_string(state_dir.join("runtime.json")).ok()?;
    let value: Value = serde_json::from_str(&text).ok()?;
    // One that was killed leaves its file behind.
    (value["pid"].as_u64() == Some(u64::from(pid))).then_some(())?;
    let listen: Option<Vec<SocketAddr>> =
        value["listen"].as_array()?.iter().map(|a| a.as_str()?.parse().ok()).collect();
    Some(Ready { listen: listen?, api: Some(value["api"].as_str()?.parse().ok()?) })
}

/// A controller's HTTP API, asked as any client would.
#[derive(Clone)]
pub struct Api {
    base: String,
    token: String,
    http: reqwest::Client,
}

impl Api {
    /// An API at `http://ADDRESS`.
    pub fn new(base: &str, token_file: &Path) -> Result<Self> {
        Self::trusting(base, token_file, None)
    }

    /// The same, or at `https://ADDRESS` with a certificate that is believed.
    pub fn trusting(base: &str, token_file: &Path, certificate: Option<&Path>) -> Result<Self> {
        let token = std::fs::read_to_string(token_file)
            .with_context(|| format!("cannot read {}", token_file.display()))?;
        // An error means that it is installed already.
        drop(rustls::crypto::ring::default_provider().install_default());
        // A connection that idles is closed by the controller after 20 s: a request sent in that very moment
        // would meet a closed door, which once ended a benchmark.
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .pool_idle_timeout(Duration::from_secs(10))
            .timeout(Duration::from_secs(20));
        if let Some(path) = certificate {
            let pem =
                std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            builder = builder.tls_certs_only([reqwest::Certificate::from_pem(&pem)?]);
        }
        let http = builder.build().context("cannot make an HTTP client")?;
        Ok(Self { base: base.to_owned(), token: token.trim().to_owned(), http })
    }

    /// GET: status and text.
    pub async fn get_text(&self, path: &str) -> Result<(u16, String)> {
        let url = format!("{}{path}", self.base);
        let answer = self.http.get(&url).bearer_auth(&self.token).send().await;
        let answer = answer.with_context(|| format!("GET {path}"))?;
        let status = answer.status().as_u16();
        Ok((status, answer.text().await.with_context(|| format!("GET {path}"))?))
    }

    /// GET of what must be there.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let (status, body) = self.get_text(path).await?;
        ensure!(status == 200, "GET {path}: expected 200, seen {status}: {body}");
        serde_json::from_str(&body).with_context(|| format!("GET {path} is no JSON: {body}"))
    }

    /// A request with or without the token: status and text.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
        with_token: bool,
    ) -> Result<(u16, String)> {
        let method: reqwest::Method = method.parse().context("a method")?;
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if with_token {
            request = request.bearer_auth(&self.token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.with_context(|| path.to_owned())?;
        let status = answer.status().as_u16();
        Ok((status, answer.text().await.with_context(|| path.to_owned())?))
    }

    /// Every host, through all pages.
    pub async fn hosts(&self) -> Result<Vec<Value>> {
        self.hosts_where("").await
    }

    /// Every host that a filter such as `state=down&` leaves, through all pages.
    pub async fn hosts_where(&self, filter: &str) -> Result<Vec<Value>> {
        let mut hosts = Vec::new();
        let mut page: Option<String> = None;
        loop {
            let path = match &page {
                Some(page) => format!("/v1/hosts?{filter}limit=1000&page={page}"),
                None => format!("/v1/hosts?{filter}limit=1000"),
            };
            let answer = self.get(&path).await?;
            let list = answer["hosts"].as_array().context("`hosts` is a list")?;
            hosts.extend(list.iter().cloned());
            match answer["next_page"].as_str() {
                Some(next) => page = Some(next.to_owned()),
                None => return Ok(hosts),
            }
        }
    }

    /// State of one host; empty if it is not registered.
    pub async fn state(&self, host: HostId) -> Result<String> {
        let (status, body) = self.get_text(&format!("/v1/hosts/{host}")).await?;
        if status == 404 {
            return Ok(String::new());
        }
        ensure!(status == 200, "host {host}: expected 200, seen {status}: {body}");
        let value: Value = serde_json::from_str(&body)?;
        Ok(text(&value, "/state").to_owned())
    }

    /// Waits until a host is in a state.
    pub async fn wait_state(&self, host: HostId, state: &str) -> Result<()> {
        eventually(PATIENCE, &format!("host {host} is {state}"), || async {
            let seen = self.state(host).await?;
            ensure!(seen == state, "it is `{seen}`");
            Ok(Some(()))
        })
        .await
    }

    /// All events after a cursor (empty: from the beginning), and the cursor after them.
    pub async fn events(&self, after: &str) -> Result<(Vec<Value>, String)> {
        let mut all = Vec::new();
        let mut cursor = after.to_owned();
        loop {
            let path = match cursor.as_str() {
                "" => "/v1/events?limit=1000".to_owned(),
                cursor => format!("/v1/events?limit=1000&after={cursor}"),
            };
            let answer = self.get(&path).await?;
            let list = answer["events"].as_array().context("`events` is a list")?;
            all.extend(list.iter().cloned());
            cursor = answer["cursor"].as_str().context("`cursor` is a text")?.to_owned();
            if answer["more"] != Value::Bool(true) {
                return Ok((all, cursor));
            }
        }
    }

    /// Kinds of a host's events, oldest first.
    pub async fn kinds_of(&self, host: HostId) -> Result<Vec<String>> {
        let id = host.to_string();
        let (events, _) = self.events("").await?;
        let of_host = events.iter().filter(|e| event_host(e) == id);
        Ok(of_host.map(|e| text(e, "/type").to_owned()).collect())
    }

    /// Waits for an event of a host, and answers it.
    pub async fn wait_event(&self, host: HostId, kind: &str, patience: Duration) -> Result<Value> {
        let id = host.to_string();
        eventually(patience, &format!("{kind} of {host}"), || async {
            let (events, _) = self.events("").await?;
            let found =
                events.iter().rev().find(|e| event_host(e) == id && text(e, "/type") == kind);
            if found.is_none() {
                let kinds: Vec<_> = events
                    .iter()
                    .filter(|e| event_host(e) == id)
                    .map(|e| text(e, "/type"))
                    .collect();
                bail!("its events are {kinds:?}");
            }
            Ok(found.cloned())
        })
        .await
    }

    /// All deliveries.
    pub async fn deliveries(&self) -> Result<Vec<Value>> {
        let mut all: Vec<Value> = Vec::new();
        let mut after = 0;
        loop {
            let path = format!("/v1/deliveries?limit=1000&after={after}");
            let answer = self.get(&path).await?;
            let list = answer["deliveries"].as_array().context("`deliveries` is a list")?;
            all.extend(list.iter().cloned());
            match answer["next_after"].as_u64() {
                Some(next) => after = next,
                None => return Ok(all),
            }
        }
    }

    /// The metrics' text.
    pub async fn metrics(&self) -> Result<String> {
        let (status, body) = self.get_text("/metrics").await?;
        ensure!(status == 200, "/metrics: expected 200, seen {status}: {body}");
        Ok(body)
    }

    /// Sum over all samples of a metric whose line holds every one of `labels`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let text = self.metrics().await?;
        let mut sum = None;
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let Some(rest) = line.strip_prefix(name) else { continue };
            if !(rest.starts_with('{') || rest.starts_with(' ')) {
                continue;
            }
            if labels.iter().all(|l| rest.contains(l)) {
                let value = rest.rsplit(' ').next().unwrap_or("0");
                *sum.get_or_insert(0.0) += value.parse::<f64>().unwrap_or(f64::NAN);
            }
        }
        sum.with_context(|| format!("no metric {name} with {labels:?}"))
    }
}

/// The host id of an event, as text; empty for the controller's own.
pub(super) fn event_host(event: &Value) -> &str {
    event["host"].as_str().unwrap_or_else(|| text(event, "/host/id"))
}
