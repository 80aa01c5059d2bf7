//! The operator's command line; all of it stands in the library's `ctl`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(heartwatch_controller::ctl::run(std::env::args_os()))
}
