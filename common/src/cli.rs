//! Manual pages and shell completions, made from the same definition that parses the command line.
//!
//! The packages are built from the hidden verb `generate` of each program, so a page cannot name an
//! option that the program does not know.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory, ValueEnum};
use clap_complete::Shell;

use crate::secret;

/// What is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// One manual page (roff, section 1) for the program and one for each of its commands.
    Man,
    /// Completions for bash, fish and zsh, under the names that those shells look for.
    Completions,
}

/// The arguments of the hidden verb.
#[derive(Clone, Debug, Args)]
pub struct Generate {
    /// What to make
    #[arg(value_enum)]
    form: Form,
    /// The folder to make it in; it must exist
    dir: PathBuf,
}

impl Generate {
    /// Writes the files, replacing older ones of the same names. The same program writes the same bytes.
    pub fn run<Cli: CommandFactory>(&self) -> io::Result<()> {
        let mut command = Cli::command().disable_help_subcommand(true);
        match self.form {
            Form::Man => clap_mangen::generate_to(command, &self.dir),
            Form::Completions => completions(&mut command, &self.dir),
        }
    }
}

/// Prints what is to be said of a command line: a complaint, or the help that was asked for. Complaints
/// quote what was typed, and show no secret.
pub fn tell(e: &clap::Error) {
    let plain = e.render().to_string();
    let shown = secret::hidden(&plain);
    // A closed stdout or stderr leaves nobody to tell.
    if e.use_stderr() && *shown != *plain {
        drop(io::stderr().write_all(shown.as_bytes()));
    } else {
        drop(e.print());
    }
}

fn completions(command: &mut Command, dir: &Path) -> io::Result<()> {
    let name = command.get_name().to_owned();
    for (shell, file) in [
        (Shell::Bash, name.clone()),
        (Shell::Fish, format!("{name}.fish")),
        (Shell::Zsh, format!("_{name}")),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, command, &name, &mut text);
        std::fs::write(dir.join(file), text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// Frobnicates.
    #[derive(Parser)]
    #[command(name = "frob")]
    enum Cli {
        /// Turns it
        Turn,
        #[command(hide = true)]
        Generate(Generate),
    }

    #[test]
    fn pages_and_completions_tell_of_every_command_but_hidden_ones() {
        let dir = tempfile::tempdir().unwrap();
        for form in ["man", "completions"] {
            let path = dir.path().to_string_lossy();
            let Cli::Generate(generate) = Cli::parse_from(["frob", "generate", form, &path]) else {
                panic!("it was asked to generate")
            };
            generate.run::<Cli>().unwrap();
        }
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["_frob", "frob", "frob-turn.1", "frob.1", "frob.fish"]);
        let page = std::fs::read_to_string(dir.path().join("frob.1")).unwrap();
        assert!(page.contains("Frobnicates") && !page.contains("generate"), "{page}");
    }
}
