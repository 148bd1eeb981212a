//! A file of requests: run together, read as there is room for them, and written line by line as results complete.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::json_request;
use super::request_lines::{RequestLine, RequestLines, count};
use super::results_file::{self, FinishedResults};
use crate::cli::args::{INPUT_AND_OUTPUT, MixtureArg, path};
use crate::cli::exit_status::{INTERRUPTED, SOME_FAILED, SUCCESS};
use crate::cli::interrupt::Interrupt;
use crate::cli::output::{note, print, print_json, to_line};
use crate::cli::result_line::{RequestKeys, ResultLine};
use crate::engine::{Completion, Engine, InFlight, Request, samples_of};
use crate::error::{Error, ErrorCode, Result};

/// With `--ordered`, requests are read at most this many ahead of the first one that has no result yet, so that the results
/// that wait for it stay few.
const ORDERED_AHEAD: usize = 256;

#[derive(Args)]
#[command(next_help_heading = INPUT_AND_OUTPUT)]
pub(super) struct BatchArgs {
    /// Write the results of --requests to a file, as JSON lines.
    #[arg(long, value_name = "FILE", requires = "requests", conflicts_with_all = ["prompt", "file"], value_parser = path())]
    output: Option<PathBuf>,
    /// Continue the --output file: run the requests that have no result in it.
    #[arg(long, requires = "output")]
    resume: bool,
    /// Write the results in the order of the requests, not as they complete.
    #[arg(long, requires = "requests", conflicts_with_all = ["prompt", "file"])]
    ordered: bool,
}

/// Runs a file of requests; returns the exit status. `defaults` is what a line does not say.
pub(super) fn run(engine: &Engine, source: &Path, args: &BatchArgs, defaults: &Request, json: bool) -> Result<u8> {
    let (file, finished) = match &args.output {
        None => (None, FinishedResults::default()),
        Some(path) if args.resume => {
            let (file, finished) = results_file::resume(path)?;
            (Some((file, path.clone())), finished)
        }
        Some(path) => (Some((results_file::create(path)?, path.clone())), FinishedResults::default()),
    };
    if finished.len() > 0 {
        note(&format!("{} results are there already", finished.len()));
    }
    let mut batch = Batch {
        in_flight: InFlight::new(engine),
        lines: RequestLines::open(source)?,
        defaults,
        waiting: BTreeMap::new(),
        next_index: 0,
        unwritten: BTreeMap::new(),
        results: Results { file, json, progress: progress(source) },
        ordered: args.ordered,
        finished,
        counts: Counts::default(),
    };
    let start = Instant::now();
    let interrupt = Interrupt::catch()?;
    let outcome = batch.run(&interrupt);
    batch.results.progress.finish_and_clear();
    let Counts { results, failed, skipped, prompt_tokens, new_tokens } = batch.counts;
    let seconds = start.elapsed().as_secs_f64();
    let speed = if seconds > 0.0 { new_tokens as f64 / seconds } else { 0.0 };
    let more = |count: usize, what: &str| if count > 0 { format!(", {count} {what}") } else { String::new() };
    note(&format!(
        "{results} results{}{}, {prompt_tokens} prompt tokens, {new_tokens} new tokens in {seconds:.2} s: {speed:.1} tokens/s",
        more(failed, "failed"),
        more(skipped, "done before"),
    ));
    match outcome {
        Err(_) if interrupt.is_set() => {
            let remedy = if args.output.is_some() { "; --resume runs the rest" } else { "" };
            note(&format!("interrupted{remedy}"));
            Ok(INTERRUPTED)
        }
        Err(error) => Err(error),
        Ok(()) => Ok(if failed > 0 { SOME_FAILED } else { SUCCESS }),
    }
}

struct Batch<'a> {
    in_flight: InFlight,
    lines: RequestLines,
    defaults: &'a Request,
    /// Requests without all of their results, by index.
    waiting: BTreeMap<usize, Waiting>,
    /// Index of the next request that is read.
    next_index: usize,
    /// With `--ordered`: results that wait for those before them.
    unwritten: BTreeMap<(usize, usize), Result<Completion>>,
    results: Results,
    ordered: bool,
    finished: FinishedResults,
    counts: Counts,
}

struct Waiting {
    keys: RequestKeys,
    line: usize,
    mixture: MixtureArg,
    /// Samples, and how many of them were written.
    samples: usize,
    written: usize,
}

#[derive(Default)]
struct Counts {
    results: usize,
    failed: usize,
    /// Requests whose results were there before.
    skipped: usize,
    prompt_tokens: usize,
    new_tokens: usize,
}

impl Batch<'_> {
    fn run(&mut self, interrupt: &Interrupt) -> Result<()> {
        loop {
            interrupt.check()?;
            while self.has_room() {
                let Some(line) = self.lines.take()? else { break };
                self.submit(line)?;
            }
            if self.waiting.is_empty() {
                if !self.lines.wait() {
                    return Ok(());
                }
                continue;
            }
            // A step later there may be another line to submit.
            let can_submit = self.has_room();
            let (in_flight, lines) = (&mut self.in_flight, &mut self.lines);
            let mut has_line = false;
            let next = in_flight.next_with(&mut || {
                interrupt.check()?;
                has_line = can_submit && lines.is_ready();
                if has_line { Err(Error::new(ErrorCode::Interrupted, "there is another request")) } else { Ok(()) }
            });
            match next {
                Ok(Some(done)) => self.take(done.index, done.sample, done.result)?,
                Ok(None) => return Err(Error::new(ErrorCode::Internal, "a request ended without a result")),
                Err(_) if has_line => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn has_room(&self) -> bool {
        let first = self.waiting.keys().next().copied().unwrap_or(self.next_index);
        self.in_flight.has_room() && !(self.ordered && self.next_index - first >= ORDERED_AHEAD)
    }

    /// Submits a request, unless its results are there already.
    fn submit(&mut self, line: RequestLine) -> Result<()> {
        let index = self.next_index;
        self.next_index += 1;
        let (keys, request) = match line.text {
            Ok(text) => json_request::parse(&text, index, self.defaults),
            Err(error) => (RequestKeys { index, ..Default::default() }, Err(error)),
        };
        let samples = request.as_ref().map_or(1, samples_of);
        if self.finished.has_all(&keys, samples)? {
            self.counts.skipped += 1;
            self.results.progress.inc(1);
            return Ok(());
        }
        let mixture = request.as_ref().map(MixtureArg::of).unwrap_or_default();
        self.waiting.insert(index, Waiting { keys, line: line.number, mixture, samples, written: 0 });
        match request {
            Ok(request) => self.in_flight.submit(index, request),
            Err(error) => self.take(index, 0, Err(error))?,
        }
        Ok(())
    }

    /// Writes a result, or keeps it until those before it are written.
    fn take(&mut self, index: usize, sample: usize, result: Result<Completion>) -> Result<()> {
        if !self.ordered {
            return self.write(index, sample, result);
        }
        self.unwritten.insert((index, sample), result);
        while let Some(((index, sample), result)) = self.take_first() {
            self.write(index, sample, result)?;
        }
        Ok(())
    }

    /// The first unwritten result, if no other one comes before it.
    fn take_first(&mut self) -> Option<((usize, usize), Result<Completion>)> {
        let (&(index, sample), _) = self.unwritten.first_key_value()?;
        let (&first, waiting) = self.waiting.first_key_value()?;
        if (index, sample) == (first, waiting.written) { self.unwritten.pop_first() } else { None }
    }

    fn write(&mut self, index: usize, sample: usize, result: Result<Completion>) -> Result<()> {
        let Some(request) = self.waiting.get_mut(&index) else { return Ok(()) };
        let result = result.map_err(|e| e.with_subject(format!("line {}", request.line)));
        match &result {
            Ok(done) => {
                self.counts.results += 1;
                self.counts.prompt_tokens += done.finish.usage.prompt_tokens;
                self.counts.new_tokens += done.token_ids.len();
            }
            Err(_) => self.counts.failed += 1,
        }
        if !self.finished.has(index, sample) {
            self.results.write(request, sample, &result)?;
        }
        request.written += 1;
        if request.written == request.samples {
            self.waiting.remove(&index);
            self.results.progress.inc(1);
        }
        Ok(())
    }
}

/// Where results go.
struct Results {
    file: Option<(File, PathBuf)>,
    json: bool,
    progress: ProgressBar,
}

impl Results {
    fn write(&mut self, request: &Waiting, sample: usize, result: &Result<Completion>) -> Result<()> {
        let line = ResultLine::of(&request.keys, sample, result.as_ref());
        match &mut self.file {
            // In one call, so that a line is whole or missing if the process is killed.
            Some((file, path)) => file
                .write_all(to_line(&line)?.as_bytes())
                .map_err(|e| Error::new(ErrorCode::IoFailed, format!("cannot write a result: {e}")).with_path(path)),
            None => self.progress.suspend(|| match result {
                _ if self.json => print_json(&line),
                Ok(done) => print(&readable(request, done)),
                Err(error) => {
                    note(&format!("exlora: {error}"));
                    Ok(())
                }
            }),
        }
    }
}

/// A header and the text.
fn readable(request: &Waiting, done: &Completion) -> String {
    let RequestKeys { index, id, custom_id } = &request.keys;
    let mut name = match id.as_ref().or(custom_id.as_ref()) {
        Some(Value::String(id)) => id.clone(),
        Some(id) => id.to_string(),
        None => index.to_string(),
    };
    if done.sample > 0 {
        name += &format!(".{}", done.sample);
    }
    let (tokens, reason) = (done.token_ids.len(), done.finish.reason.as_str());
    format!("== {name} [{}] {tokens} tokens, {reason}\n{}\n", request.mixture, done.text)
}

/// A progress bar, if stderr is a terminal.
fn progress(source: &Path) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    }
    let (bar, template) = match count(source) {
        Some(lines) => (ProgressBar::new(lines), "{wide_bar} {pos}/{len} requests, {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {pos} requests in {elapsed}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
