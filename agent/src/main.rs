//! `heartwatch-agent`: flags → settings → run → exit code.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use heartwatch_agent::app::{self, AppError, Joined, chain};
use heartwatch_agent::config::{self, AgentConfig, Overrides};
use heartwatch_agent::control::{self, Request};
use heartwatch_agent::{identity, status};
use heartwatch_common::cli::{self, Generate};
use heartwatch_common::config::Span;
use heartwatch_common::daemon::{EXIT_CONFIG, EXIT_FAILURE, EXIT_OK, EXIT_USAGE};
use heartwatch_common::secret;
use heartwatch_common::time::SystemClock;
use heartwatch_common::wire::LeaveReason;

mod enroll;

/// Tells the Heartwatch controllers that this host lives, and how busy it is.
#[derive(Parser)]
#[command(
    name = "heartwatch-agent",
    version,
    after_help = "Setting a host up: `heartwatch-agent enroll --controller https://CONTROLLER:2328 \
                  --token-file FILE`. Or by hand: name the controllers in \
                  /etc/heartwatch/agent.toml; put the line that `heartwatchctl key ID` prints into \
                  /var/lib/heartwatch-agent/key, which only the agent's user may read (`id` prints \
                  the ID); then `systemctl start heartwatch-agent`.\n\n\
                  Exit codes: 0 stopped as asked, 64 wrong usage, 78 unusable configuration, 1 all \
                  else."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    overrides: Overrides,
}

#[derive(Subcommand)]
enum Command {
    /// Beat until told to stop
    ///
    /// SIGTERM and SIGINT say goodbye to the controllers (with the reason in
    /// $HEARTWATCH_LEAVE_REASON: shutdown, restart, reboot or upgrade; shutdown if not set), SIGHUP
    /// reads the config file and the key anew.
    Run,
    /// Get this host's key from a controller by a join token, and start the agent
    ///
    /// Needs `--controller https://HOST:2328`. The token says which certificate the controller has; or give
    /// --ca. Run it as often as you like: neither a repetition after a failure takes a second use of the
    /// token, nor a host that has its key already and gains no labels by it, which stays who it is.
    Enroll {
        /// File with the join token, mode 600; `-` reads the standard input [default: join_token_file,
        /// else systemd's credential `join-token`]
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// Certificate of the authority that signed the controller's, PEM [default: the token's pin]
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
        /// Leave the agent as it is, do not (re)start it
        #[arg(long)]
        no_start: bool,
    },
    /// Show what the running agent knows: acks, round trips, losses, load
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Announce to the controllers that this host is being worked on, so that nobody acts on it
    Maintenance {
        #[command(subcommand)]
        verb: Maintenance,
    },
    /// Say beforehand why and for how long the running agent will be stopped, for its goodbye
    ///
    /// For scripts that are about to stop it, by systemd for one: the stop must come within ten minutes.
    /// A host that is not back in that time is overdue, and then taken for dead.
    Leave {
        /// Why: shutdown, restart, reboot or upgrade
        #[arg(long, value_parser = leave_reason)]
        reason: LeaveReason,
        /// For how long, such as 2m; 0s: for good [default: restart 1m, upgrade 5m, reboot 10m,
        /// shutdown 0s]
        #[arg(long = "for")]
        span: Option<Span>,
    },
    /// Check the configuration and print the effective one as TOML; it holds no secret
    ///
    /// Reads the files that it names too, as `run` would: the key, the join token, the machine id, the
    /// enrolment. Tells all that is wrong with them, and then exits with 78. What an enrolment makes may
    /// still be missing.
    CheckConfig {
        /// Leave those files alone: for a config that is meant for another host
        #[arg(long)]
        no_files: bool,
    },
    /// Print this host's id, for `heartwatchctl key`
    Id,
    /// Succeed if there is a controller to beat to and a key, or if `run` would tell what is wrong;
    /// else say what is missing. For the service unit: an agent that nobody has set up yet is skipped
    #[command(hide = true)]
    Configured,
    /// Make manual pages or shell completions
    #[command(hide = true)]
    Generate(Generate),
}

#[derive(Subcommand)]
enum Maintenance {
    /// Begin, or go on for longer; controllers may cut it (maintenance.announced_max there)
    On {
        /// For how long, 1s to 7d
        #[arg(long = "for")]
        span: Span,
        /// Why; others will ask
        #[arg(long)]
        reason: String,
    },
    /// End it now: if the host is down then, it is acted upon
    Off,
    /// Show it, and how many controllers know of it
    Status,
}

fn leave_reason(text: &str) -> Result<LeaveReason, String> {
    match text {
        "shutdown" => Ok(LeaveReason::Shutdown),
        "restart" => Ok(LeaveReason::Restart),
        "reboot" => Ok(LeaveReason::Reboot),
        "upgrade" => Ok(LeaveReason::Upgrade),
        _ => Err("use shutdown, restart, reboot or upgrade".to_owned()),
    }
}

/// Seconds, begun ones whole.
fn seconds(span: Span) -> u64 {
    span.0.as_secs() + u64::from(span.0.subsec_nanos() > 0)
}

/// Tells the running agent something.
fn tell(config: &AgentConfig, request: &Request) -> anyhow::Result<()> {
    request.check().map_err(anyhow::Error::msg)?;
    let answer = control::tell(&config.runtime_dir, request)?;
    if !answer.done {
        anyhow::bail!(answer.text);
    }
    print(&format!("{}\n", answer.text))
}

/// Prints to stdout; that the reader has gone away is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn check_config(overrides: &Overrides, no_files: bool) -> anyhow::Result<()> {
    if no_files {
        let config = config::read(overrides, &identity::hostname()).map_err(AppError::from)?;
        return print(&config.to_toml().map_err(AppError::from)?);
    }
    let joined = Joined::read(overrides)?;
    let (mut wrong, odd) = joined.inspect();
    // Not errors: a package checks its configuration before the host is enrolled.
    odd.iter().for_each(|e| eprintln!("warning: {}", chain(e)));
    let Some(last) = wrong.pop() else {
        return print(&joined.config.to_toml().map_err(AppError::from)?);
    };
    wrong.iter().for_each(|e| eprintln!("heartwatch-agent: {}", chain(e)));
    Err(last.into())
}

fn execute(cli: Cli) -> anyhow::Result<()> {
    let read = || config::read(&cli.overrides, &identity::hostname()).map_err(AppError::from);
    match cli.command {
        Command::Run => app::run(cli.overrides, Arc::new(SystemClock))?,
        Command::Enroll { token_file, ca, no_start } => {
            enroll::enroll(cli.overrides, token_file, ca, no_start)?;
        }
        Command::Status { json } => {
            let text = status::ask(&read()?.runtime_dir)?;
            let shown = status::parse(&text)?;
            print(&if json { text + "\n" } else { shown.to_string() })?;
        }
        Command::Maintenance { verb: Maintenance::On { span, reason } } => {
            tell(&read()?, &Request::MaintenanceOn { seconds: seconds(span), reason })?;
        }
        Command::Maintenance { verb: Maintenance::Off } => {
            tell(&read()?, &Request::MaintenanceOff)?
        }
        Command::Maintenance { verb: Maintenance::Status } => {
            let shown = status::parse(&status::ask(&read()?.runtime_dir)?)?;
            let line = shown.maintenance.map(|m| m.text(&shown.controllers));
            print(&format!("{}\n", line.as_deref().unwrap_or("not in maintenance")))?;
        }
        Command::Leave { reason, span } => {
            let span = span.unwrap_or_else(|| Span(app::expected_absence(reason)));
            tell(&read()?, &Request::Leave { reason, seconds: seconds(span) })?;
        }
        Command::CheckConfig { no_files } => check_config(&cli.overrides, no_files)?,
        Command::Id => {
            let id = app::host_id(&Joined::read(&cli.overrides)?.config).map_err(AppError::from)?;
            print(&format!("{id}\n"))?;
        }
        Command::Configured => app::configured(&cli.overrides)?,
        Command::Generate(generate) => generate.run::<Cli>()?,
    }
    Ok(())
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            cli::tell(&e);
            return ExitCode::from(if e.use_stderr() { EXIT_USAGE } else { EXIT_OK });
        }
    };
    match execute(cli) {
        Ok(()) => ExitCode::from(EXIT_OK),
        Err(e) => {
            // Paths of the command line are quoted, and one may be a secret in the place of its file.
            eprintln!("heartwatch-agent: {}", secret::surely_hidden(&chain(e.as_ref())));
            let code = e.downcast_ref::<AppError>().map_or(EXIT_FAILURE, AppError::exit_code);
            debug_assert!(code == EXIT_CONFIG || code == EXIT_FAILURE);
            ExitCode::from(code)
        }
    }
}
