//! Runs other programs, shows what they print, and counts test results in it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::report::Counts;

/// What became of a program.
pub(crate) struct Ended {
    pub(crate) success: bool,
    /// Its exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) counts: Counts,
    pub(crate) took: Duration,
}

/// Runs `f` and tells how long it took.
#[expect(clippy::disallowed_methods, reason = "xtask has no dependencies, not even on our clock")]
pub(crate) fn timed<T>(f: impl FnOnce() -> T) -> (T, Duration) {
    let start = std::time::Instant::now();
    let value = f();
    (value, start.elapsed())
}

/// How a command looks on a command line.
fn shown(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let program = program.rsplit('/').next().unwrap_or(&program).to_owned();
    let args = command.get_args().map(|a| a.to_string_lossy().into_owned());
    std::iter::once(program).chain(args).collect::<Vec<_>>().join(" ")
}

/// Runs a program to its end, passing its output on line by line.
pub(crate) fn stream(command: &mut Command) -> Result<Ended, String> {
    println!("\n$ {}", shown(command));
    let (ended, took) = timed(|| {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot run {}: {e}", shown(command)))?;
        let mut counts = Counts::default();
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).split(b'\n') {
                let line = line.map_err(|e| format!("cannot read the output: {e}"))?;
                let line = String::from_utf8_lossy(&line);
                counts.add(Counts::of_line(&line));
                println!("{line}");
            }
        }
        let status = child.wait().map_err(|e| format!("cannot wait: {e}"))?;
        Ok::<_, String>((status, counts))
    });
    let (status, counts) = ended?;
    Ok(Ended { success: status.success(), code: status.code(), counts, took })
}

/// Runs a program with our own terminal (for colours and Ctrl-C).
pub(crate) fn attached(command: &mut Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{} ended with {status}", shown(command))),
        Err(e) => Err(format!("cannot run {}: {e}", shown(command))),
    }
}
