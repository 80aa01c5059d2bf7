//! The daemon: flags → config → run → exit code.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use heartwatch_common::cli::{self, Generate};
use heartwatch_common::daemon;
use heartwatch_common::id::HostId;
use heartwatch_common::secret;
use heartwatch_common::time::{Clock, SystemClock};
use heartwatch_common::words::count;
use heartwatch_controller::app::{App, Reloading, Report, inspect};
use heartwatch_controller::config::{Config, RawConfig, reference};
use heartwatch_controller::policy::review::{Survey, warnings};
use heartwatch_controller::replay::record;
use tokio::signal::unix::{SignalKind, signal};

/// Where the config file is looked for if none is named.
const CONFIG_FILE: &str = "/etc/heartwatch/controller.toml";

#[derive(Parser)]
#[command(name = "heartwatch-controller", version, about)]
/// Watches a fleet's beats, decides who is down, and delivers the failover.
struct Cli {
    /// The config file [default: /etc/heartwatch/controller.toml, if it exists]
    #[arg(long, short, global = true, env = "HEARTWATCH_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run until told to stop (SIGTERM or Ctrl-C)
    ///
    /// SIGHUP reads the API's certificate and the fleet secrets anew, unless that would silence hosts; all
    /// other settings are read at start.
    Run(Recording),
    /// Check the configuration and print the effective one.
    ///
    /// Reads the files that it names too, as a start would: secrets, tokens, certificates and their keys,
    /// templates. Tells all that is wrong with them, and then exits with 78. Changes nothing, and makes none
    /// of what a first start makes.
    CheckConfig {
        /// Leave those files alone: for a config that is meant for another machine
        #[arg(long)]
        no_files: bool,
    },
    /// Print what can be configured.
    Config {
        /// Every key with its default, unit and bounds, and when to change it (Markdown)
        #[arg(long, required = true)]
        reference: bool,
    },
    /// Make manual pages or shell completions
    #[command(hide = true)]
    Generate(Generate),
}

#[derive(Args)]
struct Recording {
    /// Records every accepted beat to this arrival log, for `heartwatchctl replay`
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Only of these hosts, by id, commas between; or all
    #[arg(long, value_name = "ID,…", default_value = "all", requires = "record")]
    record_hosts: Hosts,
    /// Bytes that FILE and its predecessor FILE.1 may have together, 64KiB to 1TiB
    #[arg(long, value_name = "SIZE", default_value = "100MiB", requires = "record")]
    record_max: Size,
}

/// Whom to record; `None`: all.
#[derive(Clone)]
struct Hosts(Option<BTreeSet<HostId>>);

impl FromStr for Hosts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self(None));
        }
        let ids: Result<_, _> = text.split(',').map(|id| id.trim().parse::<HostId>()).collect();
        ids.map(|ids| Self(Some(ids))).map_err(|e| e.to_string())
    }
}

/// Bytes.
#[derive(Clone)]
struct Size(u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return Err("write a size as 512KiB, 100MiB or 2GiB".to_owned()),
        };
        let size = digits.trim().parse().ok().and_then(|n: u64| n.checked_mul(unit));
        let size = size.filter(|n| record::SIZE.contains(n));
        size.map(Self).ok_or_else(|| "64KiB to 1TiB are allowed".to_owned())
    }
}

impl Recording {
    fn plan(self) -> Option<record::Plan> {
        let (hosts, len_max) = (self.record_hosts.0, self.record_max.0);
        self.record.map(|file| record::Plan { file, hosts, len_max })
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            cli::tell(&e);
            let code = if e.use_stderr() { daemon::EXIT_USAGE } else { daemon::EXIT_OK };
            return ExitCode::from(code);
        }
    };
    let recording = match cli.command {
        Command::Config { .. } => {
            // Without reading a file: who looks up a key may have one that is wrong.
            print(&reference::markdown());
            return ExitCode::from(daemon::EXIT_OK);
        }
        Command::Generate(generate) => {
            return match generate.run::<Cli>() {
                Ok(()) => ExitCode::from(daemon::EXIT_OK),
                Err(e) => {
                    eprintln!("heartwatch-controller: cannot write there: {e}");
                    ExitCode::from(daemon::EXIT_FAILURE)
                }
            };
        }
        Command::CheckConfig { no_files } => Err(no_files),
        Command::Run(recording) => Ok(recording),
    };
    daemon::init_log(log::LevelFilter::Info);
    let named = cli.config.or_else(|| {
        let usual = Path::new(CONFIG_FILE);
        usual.exists().then(|| usual.to_owned())
    });
    let checked = RawConfig::load(named.as_deref()).and_then(|raw| Ok((raw.check()?, raw)));
    let (config, raw) = match checked {
        Ok(both) => both,
        Err(e) => {
            // Paths of the command line are quoted, and one may be a secret in the place of its file.
            log::error!("{}", secret::hidden(&format!("{:#}", anyhow::Error::from(e))));
            return ExitCode::from(daemon::EXIT_CONFIG);
        }
    };
    ExitCode::from(match recording {
        Err(no_files) => check_config(&raw, &config, no_files),
        Ok(recording) => run(config, recording.plan()),
    })
}

fn print(text: &str) {
    use std::io::Write;
    // Nothing to be done about a closed stdout.
    std::io::stdout().write_all(text.as_bytes()).unwrap_or_default();
}

fn check_config(raw: &RawConfig, config: &Config, no_files: bool) -> u8 {
    if !no_files {
        let Report { wrong, odd } = inspect(config, SystemClock.wall());
        odd.iter().for_each(|text| log::warn!("{text}"));
        wrong.iter().for_each(|text| log::error!("{text}"));
        if !wrong.is_empty() {
            let all = count(wrong.len() as u64, "problem");
            log::error!(
                "{all} with files that the config names (--no-files leaves them alone, for a config that is meant for \
                 another machine)"
            );
            return daemon::EXIT_CONFIG;
        }
    }
    // What is odd whatever hosts there are; `heartwatchctl rules` knows those that are.
    for odd in warnings(&config.rules, &Survey::new(&config.rules)) {
        log::warn!("rules {}: {}", odd.rules.join(", "), odd.text);
    }
    match raw.shown() {
        Ok(text) => {
            print(&text);
            daemon::EXIT_OK
        }
        Err(e) => {
            log::error!("cannot print the configuration: {e}");
            daemon::EXIT_FAILURE
        }
    }
}

/// Open files that are enough for all sockets, API connections and deliveries at once.
const FILES: u64 = 65_536;

fn run(config: Config, recording: Option<record::Plan>) -> u8 {
    daemon::init_log(config.log_level);
    daemon::raise_file_limit(FILES);
    daemon::keep_memory_private();
    for receiver in config.receivers.values().filter(|r| r.should_sign() && r.secret_file.is_none())
    {
        log::warn!(
            "receiver {} has no secret_file: what it gets is not signed, so it can't tell a true \
             failover from a forged one",
            receiver.name
        );
    }
    if config.rules.is_empty() {
        log::warn!("there are no rules: hosts are watched, but nobody is told");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            log::error!("cannot start the run time: {e}");
            return daemon::EXIT_FAILURE;
        }
    };
    runtime.block_on(async {
        let mut app = match App::start_recording(config, Arc::new(SystemClock), recording).await {
            Ok(app) => app,
            Err(e) => {
                let code = e.exit_code();
                log::error!("{:#}", anyhow::Error::from(e));
                return code;
            }
        };
        let reloading = app.reloading();
        let code = tokio::select! {
            failure = app.failed() => {
                log::error!("{:#}", anyhow::Error::from(failure));
                daemon::EXIT_FAILURE
            }
            () = told_to_stop(reloading) => daemon::EXIT_OK,
        };
        app.stop().await;
        code
    })
}

/// Waits for SIGTERM or SIGINT. SIGHUP has read anew what can be; other settings are read at start.
async fn told_to_stop(reloading: Reloading) {
    let signals = (|| {
        std::io::Result::Ok((
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        ))
    })();
    let (mut term, mut interrupt, mut hangup) = match signals {
        Ok(signals) => signals,
        Err(e) => {
            log::error!("cannot wait for signals: {e}");
            return;
        }
    };
    loop {
        tokio::select! {
            _ = term.recv() => return,
            _ = interrupt.recv() => return,
            _ = hangup.recv() => reloading.begin(),
        }
    }
}
