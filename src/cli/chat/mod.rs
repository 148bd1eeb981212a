//! `exlora chat`: a conversation whose adapters and settings can change between turns.
//!
//! On a terminal, lines are edited with completion and a history, Ctrl-C stops an answer, and errors do not end the chat. From
//! a pipe, the first error does. A line that is no text is left out and reported in both.

mod command;
mod completer;
mod conversation;
mod line_reader;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::time::Instant;

use clap::Args;

use self::command::{Command, Input, help, parse};
use self::conversation::Conversation;
use self::line_reader::{Line, LineReader};
use super::args::{EngineArgs, MixtureArg, NamedAdapter, RequestSettings, UseArgs, expand_home};
use super::interrupt::Interrupt;
use super::output::{note, print, print_json, report};
use super::result_line::ResultLine;
use crate::engine::{Completion, Engine, FinishReason, Job, Usage};
use crate::error::{Error, ErrorCode, Result};

#[derive(Args)]
pub(super) struct ChatArgs {
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    adapters: UseArgs,
    /// A system message before the conversation.
    #[arg(long, value_name = "TEXT", help_heading = "Chat", allow_hyphen_values = true)]
    system: Option<String>,
    /// Neither read nor write the history of typed lines ($XDG_STATE_HOME/exlora/chat_history).
    #[arg(long, help_heading = "Chat")]
    no_history: bool,
    #[command(flatten)]
    sampling: RequestSettings,
}

pub(super) fn run(args: &ChatArgs, json: bool) -> Result<()> {
    check_one_answer(&args.sampling)?;
    let (engine, load_time) = args.engine.load()?;
    if !engine.tokenizer()?.has_chat_template() {
        let what = "the model has no chat template, which chatting needs";
        return Err(Error::new(ErrorCode::ChatTemplateNotFound, what).with_path(engine.model().path()));
    }
    note(&format!("loaded in {:.2} s: {}", load_time.as_secs_f64(), engine.model().describe_device()));
    let mut lines = LineReader::new(&engine, !args.no_history)?;
    let mut chat = Chat {
        initial: args.sampling.clone(),
        sampling: args.sampling.clone(),
        changed: BTreeMap::new(),
        conversation: Conversation::new(args.system.clone()),
        mixture: MixtureArg::default(),
        draft_mixture: args.adapters.draft_mixture(),
        last: None,
        // From a pipe there is no talk to keep.
        interrupt: if lines.is_terminal() { Interrupt::catch()? } else { Interrupt::not_caught() },
        is_terminal: lines.is_terminal(),
        engine,
        json,
    };
    chat.switch(args.adapters.mixture())?;
    if chat.is_terminal {
        note("/help lists the commands");
    }
    chat.converse(&mut lines)
}

struct Chat {
    engine: Engine,
    json: bool,
    is_terminal: bool,
    interrupt: Interrupt,
    conversation: Conversation,
    mixture: MixtureArg,
    /// Of the draft model.
    draft_mixture: MixtureArg,
    /// The command line's settings, and what `/set` changed in them.
    initial: RequestSettings,
    changed: BTreeMap<String, String>,
    sampling: RequestSettings,
    /// The last answer's counts and its seconds.
    last: Option<(Usage, f64)>,
}

/// What follows a line.
#[derive(PartialEq)]
enum Flow {
    Continue,
    Exit,
}

impl Chat {
    /// Handles lines until they end.
    fn converse(&mut self, lines: &mut LineReader) -> Result<()> {
        let mut interrupted_before = false;
        loop {
            let text = match lines.read()? {
                Line::Text(text) => text,
                Line::NotText(error) => {
                    report(&error, self.json);
                    continue;
                }
                Line::End => return Ok(()),
                Line::Interrupted if interrupted_before => return Ok(()),
                Line::Interrupted => {
                    note("Ctrl-C again, Ctrl-D or /exit leaves");
                    interrupted_before = true;
                    continue;
                }
            };
            interrupted_before = false;
            self.interrupt.clear();
            match self.handle(&text) {
                Ok(Flow::Continue) => {}
                Ok(Flow::Exit) => return Ok(()),
                Err(error) if self.is_terminal && error.code() != ErrorCode::Interrupted => report(&error, self.json),
                Err(error) => return Err(error),
            }
        }
    }

    fn handle(&mut self, text: &str) -> Result<Flow> {
        match parse(text)? {
            Input::Nothing => {}
            Input::Message(question) => self.turn(question)?,
            Input::Command(Command::Exit, _) => return Ok(Flow::Exit),
            Input::Command(command, argument) => self.obey(command, argument)?,
        }
        Ok(Flow::Continue)
    }

    fn obey(&mut self, command: Command, argument: &str) -> Result<()> {
        match (command, argument) {
            (Command::Exit, _) => {}
            (Command::Help, _) => note(&help()),
            (Command::Adapter, "") => note(&format!("answering with {}", self.mixture)),
            (Command::Adapter, "none") => self.switch(MixtureArg::default())?,
            (Command::Adapter, mixture) => self.switch(mixture.parse().map_err(invalid)?)?,
            (Command::Adapters, _) => self.list_adapters(),
            (Command::Load, argument) => {
                let adapter: NamedAdapter = argument.parse().map_err(invalid)?;
                let info = adapter.load(&self.engine)?;
                let name = adapter.name;
                note(&format!("loaded {name}: rank {}; /adapter {name} answers with it", info.summary.max_rank));
            }
            (Command::Unload, "") => return Err(invalid("write /unload NAME".to_owned())),
            (Command::Unload, name) => self.unload(name)?,
            (Command::System, "") => note(self.conversation.system.as_deref().unwrap_or("no system message")),
            (Command::System, "none") => self.conversation.system = None,
            (Command::System, text) => self.conversation.system = Some(text.to_owned()),
            (Command::Set, "") => self.list_settings(),
            (Command::Set, setting) => self.set(setting)?,
            (Command::Retry, _) => self.retry()?,
            (Command::Undo, _) => match self.conversation.pop() {
                Some(turn) => note(&format!("forgot: {}", turn.question)),
                None => return Err(invalid("there is no message to forget".to_owned())),
            },
            (Command::Reset, _) => self.conversation.clear(),
            (Command::Save, "") => return Err(invalid("write /save FILE".to_owned())),
            (Command::Save, file) => self.save(file)?,
            (Command::Stats, _) => self.show_stats(),
        }
        Ok(())
    }

    fn switch(&mut self, mixture: MixtureArg) -> Result<()> {
        mixture.0.iter().try_for_each(|(name, _)| self.engine.model().adapters().lease(name).map(drop))?;
        if mixture != self.mixture {
            self.mixture = mixture;
            note(&format!("answering with {}", self.mixture));
        }
        Ok(())
    }

    fn unload(&mut self, name: &str) -> Result<()> {
        if self.mixture.0.iter().any(|(used, _)| used == name) {
            return Err(invalid(format!("'{name}' is in use")).with_hint("switch to another one first: /adapter none"));
        }
        self.engine.unload_adapter(name)
    }

    fn list_adapters(&self) {
        let adapters = self.engine.adapters();
        if adapters.is_empty() {
            note("no adapters; /load NAME=PATH loads one");
        }
        for adapter in adapters {
            let summary = &adapter.summary;
            note(&format!("{}: rank {}, {}", adapter.name, summary.max_rank, summary.path.display()));
        }
    }

    fn list_settings(&self) {
        let given = self.sampling.given();
        let lines: Vec<String> =
            given.iter().map(|(name, value)| format!("{}={value}", name.replace('_', "-"))).collect();
        note(&if lines.is_empty() { "every setting has its default".to_owned() } else { lines.join("\n") });
        note(&format!("settings: {}", RequestSettings::names().join(", ")));
    }

    /// Changes a setting, or takes the change back.
    fn set(&mut self, setting: &str) -> Result<()> {
        let Some((name, value)) = setting.split_once('=') else {
            return Err(invalid("write /set KEY=VALUE, as in /set temperature=0.7".to_owned()));
        };
        let (name, value) = (name.trim().replace('_', "-"), value.trim());
        let mut changed = self.changed.clone();
        match value {
            "default" => drop(changed.remove(&name)),
            value => drop(changed.insert(name, value.to_owned())),
        }
        let mut sampling = self.initial.clone();
        changed.iter().try_for_each(|(name, value)| sampling.set(name, value))?;
        check_one_answer(&sampling)?;
        (self.changed, self.sampling) = (changed, sampling);
        Ok(())
    }

    /// Answers the last question again; the old answer stays if that fails.
    fn retry(&mut self) -> Result<()> {
        let left_out = self.conversation.counts().1;
        let Some(turn) = self.conversation.pop() else {
            return Err(invalid("there is no message to answer again".to_owned()));
        };
        let turns = self.conversation.len();
        let result = self.turn(turn.question.clone());
        if self.conversation.len() == turns {
            self.conversation.push(turn.question, turn.answer);
            self.conversation.set_left_out(left_out);
        }
        result
    }

    fn save(&self, file: &str) -> Result<()> {
        let path = expand_home(file.as_ref());
        let failed = |e: std::io::Error| {
            Error::new(ErrorCode::IoFailed, format!("cannot save the conversation: {e}")).with_path(&path)
        };
        let text = serde_json::to_string_pretty(&self.conversation.messages())
            .map_err(|e| Error::new(ErrorCode::Internal, format!("cannot write messages as JSON: {e}")))?;
        let mut file = File::create_new(&path).map_err(failed)?;
        file.write_all((text + "\n").as_bytes()).map_err(failed)?;
        note(&format!("saved to {}", path.display()));
        Ok(())
    }

    fn show_stats(&self) {
        let stats = self.engine.stats();
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        let (seen, left_out) = self.conversation.counts();
        note(&format!("turns          {seen}, {left_out} left out of the context"));
        if let Some((usage, seconds)) = self.last {
            let Usage { prompt_tokens, cached_tokens, completion_tokens, .. } = usage;
            note(&format!(
                "last answer    {prompt_tokens} prompt tokens ({cached_tokens} cached), {completion_tokens} new tokens \
                 in {seconds:.2} s"
            ));
        }
        note(&format!("context        at most {} tokens", self.engine.max_tokens()));
        note(&format!("weights        {:.1} MiB", mib(stats.weights_bytes)));
        note(&format!("adapters       {:.1} MiB in {}", mib(stats.adapters_bytes), stats.adapters_resident));
        note(&format!("KV cache       {:.1} MiB", mib(stats.kv_bytes)));
        if let Some(device) = stats.device {
            let [buffers, free, total] = [device.buffers_bytes, device.free_bytes, device.total_bytes].map(mib);
            note(&format!("buffers        {buffers:.1} MiB"));
            note(&format!("device         {free:.1} of {total:.1} MiB free"));
        }
    }

    /// One question and its answer; neither is kept if answering fails.
    fn turn(&mut self, question: String) -> Result<()> {
        let start = Instant::now();
        let left_out = self.conversation.counts().1;
        let job = self.submit(&question).inspect_err(|_| self.conversation.set_left_out(left_out))?;
        let left_out_now = self.conversation.counts().1;
        if left_out_now > left_out {
            self.note_full_context(left_out_now - left_out);
        }
        let done = self.answer(job)?;
        self.last = Some((done.finish.usage, start.elapsed().as_secs_f64()));
        if !done.text.is_empty() || done.finish.reason != FinishReason::Cancelled {
            self.conversation.push(question, done.text);
        }
        match done.finish.reason {
            FinishReason::Cancelled => note("[stopped]"),
            FinishReason::Length => self.note_cut(&done.finish.usage),
            _ => {}
        }
        self.interrupt.clear();
        Ok(())
    }

    /// Submits a question. While the conversation leaves no room for an answer, its oldest turn is left out.
    fn submit(&mut self, question: &str) -> Result<Job> {
        let context = self.engine.max_tokens();
        loop {
            let mut request = self.engine.request(self.conversation.prompt(question));
            if self.engine.generation_config().new_tokens().is_none() {
                request.max_new_tokens = context;
            }
            // An answer is one sample, also where the generation config asks for several.
            request.n = 1;
            self.sampling.apply(&mut request)?;
            request.adapters = self.mixture.refs();
            request.draft_adapters = self.draft_mixture.refs();
            let room = request.max_new_tokens.min(context / 4);
            match self.engine.submit(request) {
                Ok(job) if job.prompt_tokens().len() + room <= context => return Ok(job),
                Err(error) if error.code() != ErrorCode::PromptTooLong => return Err(error),
                refused_or_tight => {
                    if !self.conversation.leave_out_oldest() {
                        return refused_or_tight;
                    }
                }
            }
        }
    }

    /// Prints an answer as it is generated. Ctrl-C ends it as cancelled.
    fn answer(&self, mut job: Job) -> Result<Completion> {
        let mut done = Completion::unfinished(self.mixture.0.clone(), 0);
        loop {
            let chunk = match job.next_chunk_with(&mut || self.interrupt.check()) {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(_) if self.interrupt.is_set() => break,
                Err(error) => return Err(error),
            };
            if !self.json {
                print(&chunk.text)?;
            }
            done.append(chunk)?;
        }
        if done.finish.reason == FinishReason::Cancelled {
            done.finish.usage.prompt_tokens = job.prompt_tokens().len();
            done.finish.usage.completion_tokens = done.token_ids.len();
            done.finish.seed = job.seed();
        }
        if self.json {
            print_json(&ResultLine::new(&done))?;
        } else {
            print("\n")?;
        }
        Ok(done)
    }

    fn note_full_context(&self, turns: usize) {
        let what = if turns == 1 { "the oldest turn is".to_owned() } else { format!("the {turns} oldest turns are") };
        note(&format!("[the context of {} is full: {what} left out from now on]", self.context()));
    }

    fn note_cut(&self, usage: &Usage) {
        if usage.prompt_tokens + usage.completion_tokens >= self.engine.max_tokens() {
            note(&format!("[cut: the context of {} is full; /undo or /reset makes room]", self.context()));
        } else {
            note(&format!("[cut after {} tokens; /set max-new-tokens=N changes that]", usage.completion_tokens));
        }
    }

    fn context(&self) -> String {
        let tokens = self.engine.max_tokens();
        let remedy = if tokens < self.engine.model().max_seq_len() { " (see --kv-tokens)" } else { "" };
        format!("{tokens} tokens{remedy}")
    }
}

/// Refuses settings that ask for several answers, of which the conversation could go on with one only.
fn check_one_answer(settings: &RequestSettings) -> Result<()> {
    match settings.n() {
        None | Some(1) => Ok(()),
        Some(n) => Err(invalid("a chat has one answer for each message".to_owned())
            .with_setting("n")
            .with_expected("n = 1")
            .with_found(n)
            .with_hint("/retry gives another answer; generate takes --n")),
    }
}

fn invalid(what: String) -> Error {
    Error::new(ErrorCode::RequestInvalid, what)
}
