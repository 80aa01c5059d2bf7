//! `heartwatchctl`, the operator's command line, and the API client underneath it.
//!
//! Most commands ask the controller's API; `key`, `secret`, `enroll`, `restore`, `replay`, `plan` and
//! `receivers preview` work on this machine's files alone. Tables are for people and may change; `--json`
//! prints what the API says. Exit codes: 0 done, 64 usage, 78 a config or secret file cannot be used, 1 the
//! rest ("no such host" among it).

use std::ffi::OsString;
use std::io::{self, BufWriter, Write};

use clap::Parser;
use clap::error::ErrorKind;
use heartwatch_common::daemon::{EXIT_CONFIG, EXIT_FAILURE, EXIT_OK, EXIT_USAGE};
use heartwatch_common::secret;

mod api_token;
mod args;
mod by;
mod candidates;
pub mod client;
mod drill;
mod enrol;
mod holds;
mod import;
mod incidents;
mod local;
mod maintenance;
mod margin;
mod place;
mod plan;
mod receivers;
mod remote;
mod replay;
mod rules;
mod short;
mod show;
mod story;
mod text;
mod token;
mod trust;
mod twin;

#[cfg(test)]
mod tests;

use args::{Cli, Command, Secret};
use client::ClientError;

/// Why a command failed, by what its exit code says.
#[derive(Debug, thiserror::Error)]
enum CtlError {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A config or secret file on this machine cannot be used.
    #[error("{0}")]
    Config(String),
    /// The rest.
    #[error("{0}")]
    Failed(String),
    /// The controller could not be asked, or said no.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Nobody reads what is printed.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

impl CtlError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Client(ClientError::Url { .. } | ClientError::Secret) => {
                EXIT_USAGE
            }
            Self::Config(_) | Self::Client(ClientError::NoToken) => EXIT_CONFIG,
            // `heartwatchctl events --follow | head` ends as it should.
            Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => EXIT_OK,
            Self::Failed(_) | Self::Client(_) | Self::Output(_) => EXIT_FAILURE,
        }
    }
}

/// An error with all its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let part = e.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = e.source();
    }
    text
}

/// Runs a command line, prints to stdout and stderr, and answers the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    if let Err(e) = without_secret(&args) {
        drop(writeln!(io::stderr(), "error: {e}"));
        return e.exit_code();
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            heartwatch_common::cli::tell(&e);
            return match e.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => EXIT_OK,
                _ => EXIT_USAGE,
            };
        }
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let done = execute(&cli, &mut out).and_then(|()| Ok(out.flush()?));
    // Nothing more may be written when it is dropped: a broken pipe was told already.
    drop(out.into_parts());
    let Err(error) = done else { return EXIT_OK };
    let code = error.exit_code();
    if code != EXIT_OK {
        let line = format!("error: {}\n", text::clean(&secret::surely_hidden(&chain(&error))));
        drop(io::stderr().write_all(line.as_bytes()));
    }
    code
}

/// No command takes a secret itself, only the file of one. Looked at before all else: what is wrong with a
/// command line is told with its words.
fn without_secret(args: &[OsString]) -> Result<(), CtlError> {
    let Some(at) = args.iter().position(|arg| secret::is_in(&arg.to_string_lossy())) else {
        return Ok(());
    };
    Err(CtlError::Usage(format!(
        "the command's word {at} is or holds a key or a token itself: nothing was done and nothing was sent. Names \
         of tokens are told by `heartwatchctl token list` and `heartwatchctl api-token list`; secrets are given by \
         files. It is in your shell's history now: revoke it"
    )))
}

fn execute(cli: &Cli, out: &mut dyn Write) -> Result<(), CtlError> {
    match &cli.command {
        Command::Enroll(args) => enrol::offline(&cli.global, args, out),
        Command::Key { host, generation } => local::key(&cli.global, *host, *generation, out),
        Command::Secret { command: Secret::New { key_id } } => {
            local::new_secret(&cli.global, *key_id, out)
        }
        Command::Restore { file, state_dir } => {
            local::restore(&cli.global, file, state_dir.as_deref(), out)
        }
        Command::Replay(args) => replay::run(&cli.global, args, out),
        Command::Plan(args) => plan::run(&cli.global, args, out),
        Command::Generate(generate) => {
            generate.run::<Cli>().map_err(|e| CtlError::Failed(format!("cannot write there: {e}")))
        }
        Command::Receivers(args) if let Some(preview) = args.preview() => {
            receivers::preview(&cli.global, preview, out)
        }
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| CtlError::Failed(format!("cannot start: {e}")))?;
            runtime.block_on(remote::execute(&cli.global, command, out))
        }
    }
}
