//! `exlora generate`: completes one prompt, or a file of requests.

mod batch;
mod json_request;
mod request_lines;
mod results_file;
mod single;

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};

use self::batch::BatchArgs;
use self::request_lines::MAX_LINE_BYTES;
use super::args::{EngineArgs, INPUT_AND_OUTPUT, RequestSettings, UseArgs, path};
use super::exit_status::WRONG_USAGE;
use super::output::note;
use crate::error::{Error, ErrorCode, Result};

#[derive(Args)]
#[command(after_help = after_help())]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    batch: BatchArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    adapters: UseArgs,
    #[command(flatten)]
    sampling: RequestSettings,
}

#[derive(Args)]
#[command(next_help_heading = INPUT_AND_OUTPUT)]
#[group(multiple = false)]
struct InputArgs {
    /// The text to complete; - reads it from stdin, as does a pipe without this option.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A file with the text to complete.
    #[arg(long, value_name = "FILE", value_parser = path(), value_hint = ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// Requests to run together, one JSON object per line; - reads stdin.
    #[arg(long, value_name = "FILE", value_parser = path(), value_hint = ValueHint::FilePath)]
    requests: Option<PathBuf>,
}

fn after_help() -> String {
    format!(
        "Each line of --requests has a prompt (text, token ids, or chat messages) and may have these keys: {}.\nA request that \
         fails has an error as its result; the exit status is then 3.",
        json_request::keys().join(", ")
    )
}

/// Returns the exit status.
pub(super) fn run(args: &GenerateArgs, json: bool) -> Result<u8> {
    let prompt = match &args.input.requests {
        Some(_) => None,
        None => match prompt(&args.input)? {
            Some(prompt) => Some(prompt),
            None => {
                note(
                    "error: there is no prompt: give --prompt <TEXT>, --file <FILE> or --requests <FILE>, or pipe one to stdin",
                );
                return Ok(WRONG_USAGE);
            }
        },
    };
    let (engine, load_time) = args.engine.load()?;
    note(&format!("loaded in {:.2} s: {}", load_time.as_secs_f64(), engine.model().describe_device()));
    let mut request = engine.request(prompt.unwrap_or_default());
    args.sampling.apply(&mut request)?;
    request.adapters = args.adapters.mixture().refs();
    request.draft_adapters = args.adapters.draft_mixture().refs();
    match &args.input.requests {
        Some(source) => batch::run(&engine, source, &args.batch, &request, json),
        None => single::run(&engine, request, json),
    }
}

/// The prompt; `None` if none is given and nothing is piped.
fn prompt(input: &InputArgs) -> Result<Option<String>> {
    match (input.prompt.as_deref(), &input.file) {
        (Some("-"), _) => read_prompt(std::io::stdin(), Path::new("-")).map(Some),
        (Some(text), _) => Ok(Some(text.to_owned())),
        (None, Some(path)) => {
            let file = File::open(path).map_err(|e| cannot_read(path, &e))?;
            read_prompt(file, path).map(Some)
        }
        (None, None) if std::io::stdin().is_terminal() => Ok(None),
        (None, None) => {
            read_prompt(std::io::stdin(), Path::new("-")).map(|text| Some(text).filter(|text| !text.is_empty()))
        }
    }
}

/// Reads a prompt, without the newline at the end that editors and `echo` add.
fn read_prompt(input: impl Read, path: &Path) -> Result<String> {
    let mut text = String::new();
    input.take(MAX_LINE_BYTES as u64 + 1).read_to_string(&mut text).map_err(|e| cannot_read(path, &e))?;
    if text.len() > MAX_LINE_BYTES {
        return Err(Error::new(ErrorCode::PromptTooLong, "the prompt is too long")
            .with_path(path)
            .with_expected(format!("at most {MAX_LINE_BYTES} bytes")));
    }
    if text.ends_with('\n') {
        text.truncate(text.len() - if text.ends_with("\r\n") { 2 } else { 1 });
    }
    Ok(text)
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorCode::IoFailed, format!("cannot read the prompt: {error}")).with_path(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_newline_at_the_end_is_not_part_of_a_prompt() {
        for (text, prompt) in
            [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("\n", ""), ("", ""), ("a\r", "a\r")]
        {
            assert_eq!(read_prompt(text.as_bytes(), Path::new("-")).expect("reads"), prompt, "{text:?}");
        }
        assert!(read_prompt(&[0xff, 0xfe][..], Path::new("x")).is_err());
        assert!(read_prompt(std::io::repeat(b'a'), Path::new("x")).is_err());
    }
}
