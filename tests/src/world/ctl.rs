//! `heartwatchctl`, run as an operator would.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::process::binary;

/// What a run of `heartwatchctl` printed.
#[derive(Clone, Debug)]
pub struct CtlOutput {
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl CtlOutput {
    /// Expects success; answers standard output.
    pub fn ok(self) -> Result<String> {
        ensure!(
            self.code == 0,
            "expected heartwatchctl to succeed, seen exit {}:\n{}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }

    /// Expects success and JSON.
    pub fn json(self) -> Result<Value> {
        let text = self.ok()?;
        serde_json::from_str(&text).with_context(|| format!("expected JSON, seen: {text}"))
    }
}

/// Runs `heartwatchctl` against an API.
pub(super) fn run(url: &str, token_file: &Path, args: &[&str]) -> Result<CtlOutput> {
    let mut command = Command::new(binary("heartwatchctl")?);
    command.arg("--url").arg(url).arg("--token-file").arg(token_file).args(args);
    output(&mut command)
}

/// Runs a command to its end.
pub(super) fn output(command: &mut Command) -> Result<CtlOutput> {
    let out = command
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    Ok(CtlOutput {
        code: out.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    })
}

impl CtlOutput {
    /// Runs any binary of the product to its end.
    pub fn of(program: &str, args: &[&str]) -> Result<Self> {
        output(Command::new(binary(program)?).args(args))
    }
}
