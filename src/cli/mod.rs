//! The command line: a thin front end over the engine.
//!
//! Results go to stdout, as text or, with `--json`, as JSON lines; progress, logs and errors go to stderr. A command that
//! fails exits with 1, and with `--json` its last line on stdout is `{"error": …}`; wrong usage exits with 2. docs/cli.md is the
//! reference.

mod args;
mod bench;
mod chat;
mod config_file;
mod doctor;
mod exit_status;
mod generate;
mod inspect;
mod interrupt;
mod logging;
mod output;
mod result_line;
mod serve;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

use self::exit_status::{FAILED, SUCCESS, WRONG_USAGE};
use crate::error::Result;

/// Any PEFT LoRA, on any quantized LLM, chosen per request.
#[derive(Parser)]
#[command(
    name = "exlora",
    version,
    after_help = "Exit status: 0 success, 1 failure, 2 wrong usage, 3 some requests of a batch failed, 130 Ctrl-C. \
                  EXLORA_LOG sets the log level on stderr, as in EXLORA_LOG=info; EXLORA_LOG_FORMAT=json writes JSON lines."
)]
struct Cli {
    /// Print JSON lines on stdout instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// Defaults of the options; ./exlora.toml, if there is one.
    #[arg(long, global = true, value_name = "FILE", value_parser = args::path(), value_hint = clap::ValueHint::FilePath)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Complete a prompt, or a file of requests in one batch, each with its own adapters.
    Generate(generate::GenerateArgs),
    /// Chat with a model; adapters can change between turns.
    Chat(chat::ChatArgs),
    /// Serve a model over HTTP as OpenAI does; every adapter is a model of its own.
    Serve(serve::ServeArgs),
    /// Describe an adapter or model folder, and check whether it can be used.
    Inspect(inspect::InspectArgs),
    /// Report what this build and this machine support, and check a device's kernels.
    Doctor(doctor::DoctorArgs),
    /// Measure prefill and batched decode, with and without adapters; or a running server.
    Bench(bench::BenchArgs),
    /// Print a script that completes this command in a shell.
    Completions {
        /// The shell: source <(exlora completions bash)
        shell: Shell,
    },
}

/// Runs the command line and returns its exit status: 0 success, 1 failure, 2 wrong usage. The first argument is the
/// command's own name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    let (mut command, settings) = match config_file::with_defaults(command(), &args) {
        Ok(found) => found,
        Err(error) => {
            output::report(&error, args.iter().any(|arg| arg == "--json"));
            return FAILED;
        }
    };
    let parsed = command.try_get_matches_from_mut(args);
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command))) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are such errors too, with status 0. If printing fails, there is nowhere to report it.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(WRONG_USAGE);
        }
    };
    if let Err(error) = logging::start(matches!(cli.command, Command::Serve(_))) {
        output::report(&error, cli.json);
        return FAILED;
    }
    if let Some(path) = settings {
        tracing::info!(path = %path.display(), "defaults of the options");
    }
    match run_command(&cli) {
        Ok(code) => code,
        Err(error) => {
            output::report(&error, cli.json);
            FAILED
        }
    }
}

/// The definition of the command line.
fn command() -> clap::Command {
    Cli::command().mut_subcommand("bench", bench::with_serve)
}

/// Returns the exit status.
fn run_command(cli: &Cli) -> Result<u8> {
    match &cli.command {
        Command::Generate(args) => return generate::run(args, cli.json),
        Command::Chat(args) => chat::run(args, cli.json)?,
        Command::Serve(args) => serve::run(args, cli.json)?,
        Command::Inspect(args) => {
            let is_usable = inspect::run(args, cli.json)?;
            return Ok(if is_usable { SUCCESS } else { FAILED });
        }
        Command::Doctor(args) => {
            let is_well = doctor::run(args, cli.json)?;
            return Ok(if is_well { SUCCESS } else { FAILED });
        }
        Command::Bench(args) => bench::run(args, cli.json)?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut command(), "exlora", &mut script);
            output::print(&String::from_utf8_lossy(&script))?;
        }
    }
    Ok(SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_argument_has_a_help_text() {
        for command in command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
            }
        }
    }
}
