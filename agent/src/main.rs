//! `heartwatch-agent`: flags → settings → run → exit code.

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use heartwatch_agent::app::{self, AppError, chain};
use heartwatch_agent::config::{self, Overrides};
use heartwatch_agent::{identity, status};
use heartwatch_common::cli::Generate;
use heartwatch_common::daemon::{EXIT_CONFIG, EXIT_FAILURE, EXIT_OK, EXIT_USAGE};
use heartwatch_common::time::SystemClock;

/// Tells the Heartwatch controllers that this host lives, and how busy it is.
#[derive(Parser)]
#[command(
    name = "heartwatch-agent",
    version,
    after_help = "Setting a host up: name the controllers in /etc/heartwatch/agent.toml; put the line \
                  that `heartwatchctl key ID` prints into /var/lib/heartwatch-agent/key, which only \
                  the agent's user may read (`id` prints the ID); then `systemctl start \
                  heartwatch-agent`.\n\n\
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
    /// reads the config file anew.
    Run,
    /// Show what the running agent knows: acks, round trips, losses, load
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check the configuration and print the effective one as TOML; it holds no secret
    CheckConfig,
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

/// Prints to stdout; that the reader has gone away is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn check_config(overrides: &Overrides) -> anyhow::Result<()> {
    let config = config::read(overrides, &identity::hostname()).map_err(AppError::from)?;
    config.check_controllers().map_err(AppError::from)?;
    print(&config.to_toml().map_err(AppError::from)?)?;
    // Not errors: a package checks its configuration before the host is enrolled.
    if let Err(e) = app::host_id(&config) {
        eprintln!("warning: {}", chain(&e));
    }
    if let Err(e) = identity::host_key(&app::key_path(&config)) {
        eprintln!("warning: {}", chain(&e));
    }
    Ok(())
}

fn execute(cli: Cli) -> anyhow::Result<()> {
    let read = || config::read(&cli.overrides, &identity::hostname()).map_err(AppError::from);
    match cli.command {
        Command::Run => app::run(cli.overrides, Arc::new(SystemClock))?,
        Command::Status { json } => {
            let text = status::ask(&read()?.runtime_dir)?;
            let shown = status::parse(&text)?;
            print(&if json { text + "\n" } else { shown.to_string() })?;
        }
        Command::CheckConfig => check_config(&cli.overrides)?,
        Command::Id => {
            let id = app::host_id(&read()?).map_err(AppError::from)?;
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
            // If even that cannot be printed, the exit code still tells.
            drop(e.print());
            return ExitCode::from(if e.use_stderr() { EXIT_USAGE } else { EXIT_OK });
        }
    };
    match execute(cli) {
        Ok(()) => ExitCode::from(EXIT_OK),
        Err(e) => {
            eprintln!("heartwatch-agent: {}", chain(e.as_ref()));
            let code = e.downcast_ref::<AppError>().map_or(EXIT_FAILURE, AppError::exit_code);
            debug_assert!(code == EXIT_CONFIG || code == EXIT_FAILURE);
            ExitCode::from(code)
        }
    }
}
