//! The command line: a thin face over the engine.
//!
//! What a command found goes to stdout, as text or, with `--json`, as JSON lines; progress, logs and errors go to stderr.
//! A failed command ends with 1, and with `--json` its last line on stdout is `{"error": …}`; wrong usage ends with 2.

mod bench;
mod chat;
mod doctor;
mod generate;
mod inspect;
mod load;
mod mixture;
mod output;
mod requests;
mod sampling;

use std::ffi::OsString;
use std::io::IsTerminal;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::error::Result;

/// Exit status of a command that did its work.
const DONE: u8 = 0;
/// Exit status of a command whose work failed.
const FAILED: u8 = 1;
/// Exit status of a command line that is not understood.
const WRONG_USAGE: u8 = 2;

/// Any PEFT LoRA, on any quantized LLM, chosen per request.
#[derive(Parser)]
#[command(
    name = "exlora",
    version,
    after_help = "Exit status: 0 done, 1 the work failed, 2 wrong usage. EXLORA_LOG chooses what is logged on stderr: \
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
    /// Continue one prompt, or a file of requests in one batch, each with its own adapters.
    Generate(generate::GenerateArgs),
    /// Talk with a model; adapters can be changed between turns.
    Chat(chat::ChatArgs),
    /// Tell what an adapter or a model folder holds, and whether it can be used.
    Inspect(inspect::InspectArgs),
    /// Tell what this build and this machine can do.
    Doctor,
    /// Measure prefill and decode, without an adapter and with one, by turns.
    Bench(bench::BenchArgs),
}

/// Runs the command line; 0 done, 1 the work failed, 2 wrong usage. The first argument is the command's own name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are such errors too, with status 0. There is no one to tell that printing failed.
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
        Command::Inspect(args) => return inspect::run(args, cli.json),
        Command::Doctor => doctor::run(cli.json)?,
        Command::Bench(args) => bench::run(args, cli.json)?,
    }
    Ok(DONE)
}

/// Logs to stderr what `EXLORA_LOG` asks for, warnings by default.
fn start_logging() {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::WARN.into())
        .with_env_var("EXLORA_LOG")
        .from_env_lossy();
    // A process that has a subscriber already keeps it.
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
    fn the_definition_is_consistent() {
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
