//! The command line: a thin front end over the engine.
//!
//! Results go to stdout, as text or, with `--json`, as JSON lines; progress, logs and errors go to stderr. A command that
//! fails exits with 1, and with `--json` its last line on stdout is `{"error": …}`; wrong usage exits with 2.

mod bench;
mod chat;
mod doctor;
mod generate;
mod inspect;
mod json_requests;
mod mixture_arg;
mod model_args;
mod output;
mod sampling_args;

use std::ffi::OsString;
use std::io::IsTerminal;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::error::Result;

/// Exit status of a command that succeeded.
const SUCCESS: u8 = 0;
/// Exit status of a command that failed.
const FAILED: u8 = 1;
/// Exit status of an invalid command line.
const WRONG_USAGE: u8 = 2;

/// Any PEFT LoRA, on any quantized LLM, chosen per request.
#[derive(Parser)]
#[command(
    name = "exlora",
    version,
    after_help = "Exit status: 0 success, 1 failure, 2 wrong usage. EXLORA_LOG sets the log level on stderr, as in \
                  EXLORA_LOG=info."
)]
struct Cli {
    /// Print JSON lines on stdout instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Complete a prompt, or a file of requests in one batch, each with its own adapters.
    Generate(generate::GenerateArgs),
    /// Chat with a model; adapters can change between turns.
    Chat(chat::ChatArgs),
    /// Describe an adapter or model folder, and check whether it can be used.
    Inspect(inspect::InspectArgs),
    /// Report what this build and this machine support.
    Doctor,
    /// Measure prefill and batched decode, with and without adapters.
    Bench(bench::BenchArgs),
}

/// Runs the command line and returns its exit status: 0 success, 1 failure, 2 wrong usage. The first argument is the
/// command's own name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are such errors too, with status 0. If printing fails, there is nowhere to report it.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(WRONG_USAGE);
        }
    };
    start_logging();
    match run_command(&cli) {
        Ok(code) => code,
        Err(error) => {
            output::report(&error, cli.json);
            FAILED
        }
    }
}

fn run_command(cli: &Cli) -> Result<u8> {
    match &cli.command {
        Command::Generate(args) => generate::run(args, cli.json)?,
        Command::Chat(args) => chat::run(args, cli.json)?,
        Command::Inspect(args) => {
            let is_usable = inspect::run(args, cli.json)?;
            return Ok(if is_usable { SUCCESS } else { FAILED });
        }
        Command::Doctor => doctor::run(cli.json)?,
        Command::Bench(args) => bench::run(args, cli.json)?,
    }
    Ok(SUCCESS)
}

/// Logs to stderr at the level in `EXLORA_LOG`, warnings by default.
fn start_logging() {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::WARN.into())
        .with_env_var("EXLORA_LOG")
        .from_env_lossy();
    // Fails if the process already has a subscriber, which it then keeps.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_argument_has_a_help_text() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
            }
        }
    }
}
