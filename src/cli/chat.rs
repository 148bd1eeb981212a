//! `exlora chat`: a conversation, line by line, whose adapters can change between turns.
//!
//! It reads a terminal or a pipe; from a pipe, the first error ends it.

use std::io::{BufRead, IsTerminal};

use clap::Args;

use super::generate::result_line;
use super::mixture_arg::MixtureArg;
use super::model_args::EngineArgs;
use super::output::{note, print, print_json, report};
use super::sampling_args::SamplingArgs;
use crate::engine::{AdapterRef, ChatMessage, Completion, Engine};
use crate::error::{Error, ErrorCode, Result};

const HELP: &str = "/adapter NAME[*WEIGHT][+...]   answer with this adapter or mixture
/adapter none                  answer with the base model
/reset                         forget the conversation
/exit                          quit";

#[derive(Args)]
pub(super) struct ChatArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// Adapter or mixture to start with: sql, sql*0.7, or sql*0.7+wit*0.3.
    #[arg(long = "use", value_name = "MIXTURE")]
    mixture: Vec<MixtureArg>,
    /// A system message before the conversation.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub(super) fn run(args: &ChatArgs, json: bool) -> Result<()> {
    let (engine, load_time) = args.engine.load()?;
    if !engine.tokenizer()?.has_chat_template() {
        let what = "the model has no chat template, which chatting needs";
        return Err(Error::new(ErrorCode::ChatTemplateNotFound, what).with_path(engine.model().path()));
    }
    note(&format!("loaded in {:.2} s: {}", load_time.as_secs_f64(), engine.model().describe_device()));
    let is_terminal = std::io::stdin().is_terminal();
    let mut chat = Chat { args, engine, json, mixture: MixtureArg::default(), messages: Vec::new() };
    chat.reset();
    for mixture in &args.mixture {
        chat.mixture.0.extend(mixture.0.clone());
    }
    chat.check_mixture(&chat.mixture)?;
    if is_terminal {
        note(HELP);
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if is_terminal {
            print("> ")?;
        }
        let Some(line) = lines.next() else { return Ok(()) };
        let line = line.map_err(|e| Error::new(ErrorCode::IoFailed, format!("cannot read stdin: {e}")))?;
        match chat.handle(&line) {
            Ok(Flow::Continue) => {}
            Ok(Flow::Exit) => return Ok(()),
            Err(error) if is_terminal && error.code() != ErrorCode::Interrupted => report(&error, json),
            Err(error) => return Err(error),
        }
    }
}

enum Flow {
    Continue,
    Exit,
}

struct Chat<'a> {
    args: &'a ChatArgs,
    engine: Engine,
    json: bool,
    mixture: MixtureArg,
    messages: Vec<ChatMessage>,
}

impl Chat<'_> {
    fn handle(&mut self, line: &str) -> Result<Flow> {
        let line = line.trim();
        let (command, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (command, argument.trim()) {
            ("", _) => {}
            ("/exit" | "/quit", "") => return Ok(Flow::Exit),
            ("/reset", "") => self.reset(),
            ("/help", "") => note(HELP),
            ("/adapter", "") => note(&format!("answering with {}", self.mixture)),
            ("/adapter", argument) => self.switch(argument)?,
            _ if command.starts_with('/') => {
                return Err(Error::new(ErrorCode::RequestInvalid, format!("'{line}' is not a command"))
                    .with_expected("/adapter, /reset, /help or /exit"));
            }
            _ => self.turn(line)?,
        }
        Ok(Flow::Continue)
    }

    fn reset(&mut self) {
        self.messages = self.args.system.iter().map(|system| ChatMessage::new("system", system)).collect();
    }

    fn switch(&mut self, text: &str) -> Result<()> {
        let mixture = match text {
            "none" => MixtureArg::default(),
            text => text.parse().map_err(|what: String| Error::new(ErrorCode::RequestInvalid, what))?,
        };
        self.check_mixture(&mixture)?;
        self.mixture = mixture;
        note(&format!("answering with {}", self.mixture));
        Ok(())
    }

    fn check_mixture(&self, mixture: &MixtureArg) -> Result<()> {
        mixture.0.iter().try_for_each(|(name, _)| self.engine.model().adapters().lease(name).map(drop))
    }

    /// One question and its answer; neither is kept if answering fails.
    fn turn(&mut self, question: &str) -> Result<()> {
        let before = self.messages.len();
        self.messages.push(ChatMessage::new("user", question));
        match self.answer() {
            Ok(answer) => {
                self.messages.push(ChatMessage::new("assistant", answer));
                Ok(())
            }
            Err(error) => {
                self.messages.truncate(before);
                Err(error)
            }
        }
    }

    fn answer(&self) -> Result<String> {
        let mut request = self.engine.request(self.messages.clone());
        self.args.sampling.apply(&mut request);
        request.adapters =
            self.mixture.0.iter().map(|(name, weight)| (AdapterRef::Name(name.clone()), *weight)).collect();
        let mut done = Completion::unfinished(self.mixture.0.clone(), 0);
        let mut job = self.engine.submit(request)?;
        while let Some(chunk) = job.next_chunk()? {
            if !self.json {
                print(&chunk.text)?;
            }
            done.append(chunk)?;
        }
        if self.json {
            print_json(&result_line(None, &self.mixture, &done))?;
        } else {
            print("\n")?;
        }
        Ok(done.text)
    }
}
