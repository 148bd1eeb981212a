//! Where a chat's lines come from: a terminal with line editing and history, or a pipe.

use std::io::{BufRead, ErrorKind, IsTerminal};
use std::path::{Path, PathBuf};

use rustyline::Editor;
use rustyline::config::{CompletionType, Config};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;

use super::command::needs_more;
use super::completer::ChatHelper;
use crate::cli::output::note;
use crate::engine::Engine;
use crate::error::{Error, ErrorCode, Result};

const PROMPT: &str = "> ";

/// Lines that the history keeps.
const HISTORY_LINES: usize = 1000;

pub(super) enum LineReader {
    Terminal(Box<LineEditor>),
    Pipe,
}

/// What was read.
pub(super) enum Line {
    /// One line, or several that belong together.
    Text(String),
    /// A line that is not UTF-8, and so no text.
    NotText(Error),
    /// Ctrl-C, which cleared what was typed.
    Interrupted,
    End,
}

impl LineReader {
    /// Reads the terminal if both ends are one, else a pipe.
    pub(super) fn new(engine: &Engine, keeps_history: bool) -> Result<Self> {
        if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
            let history = if keeps_history { history_file() } else { None };
            return Ok(LineReader::Terminal(Box::new(LineEditor::new(engine, history)?)));
        }
        Ok(LineReader::Pipe)
    }

    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, LineReader::Terminal(_))
    }

    /// # Errors
    /// `io_failed`.
    pub(super) fn read(&mut self) -> Result<Line> {
        match self {
            LineReader::Terminal(editor) => editor.read(),
            LineReader::Pipe => read_pipe(&mut std::io::stdin().lock()),
        }
    }
}

fn read_pipe(input: &mut impl BufRead) -> Result<Line> {
    let (mut text, mut bytes) = (String::new(), Vec::new());
    loop {
        bytes.clear();
        let read = input.read_until(b'\n', &mut bytes).map_err(|e| cannot_read(&e))?;
        if read == 0 && text.is_empty() {
            return Ok(Line::End);
        }
        match std::str::from_utf8(&bytes) {
            Ok(line) => text.push_str(line),
            // With it go the lines before, to which it belongs.
            Err(error) => return Ok(Line::NotText(not_text(&bytes[error.valid_up_to()..]))),
        }
        let line = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).unwrap_or(&text);
        if read == 0 || !needs_more(line) {
            let len = line.len();
            text.truncate(len);
            return Ok(Line::Text(text));
        }
    }
}

fn cannot_read(error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorCode::IoFailed, format!("cannot read stdin: {error}"))
}

/// The error of a line that goes on with bytes that are not UTF-8.
fn not_text(rest: &[u8]) -> Error {
    let error = Error::new(ErrorCode::RequestInvalid, "a line is left out, since it is not UTF-8");
    match rest.first() {
        Some(byte) => error.with_found(format!("byte {byte:#04x}")),
        None => error,
    }
}

/// A line editor with completion and a history.
pub(super) struct LineEditor {
    editor: Editor<ChatHelper, FileHistory>,
    /// `None` if the history is not kept.
    history: Option<PathBuf>,
}

impl LineEditor {
    fn new(engine: &Engine, history: Option<PathBuf>) -> Result<Self> {
        let config = Config::builder()
            .max_history_size(HISTORY_LINES)
            .map(|config| config.completion_type(CompletionType::List).build())
            .and_then(Editor::with_config);
        let mut editor = config.map_err(|e| cannot_read(&e))?;
        editor.set_helper(Some(ChatHelper::new(engine.clone())));
        // The first time there is none.
        if let Some(file) = &history {
            let _ = editor.load_history(file);
        }
        Ok(Self { editor, history })
    }

    fn read(&mut self) -> Result<Line> {
        match self.editor.readline(PROMPT) {
            Ok(text) => {
                self.remember(&text);
                Ok(Line::Text(text))
            }
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::End),
            // As the editor reports bytes of the terminal that are no text.
            Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => Ok(Line::NotText(not_text(&[]))),
            Err(e) => Err(cannot_read(&e)),
        }
    }

    /// Adds a line to the history and its file at once, so that a crash loses nothing.
    fn remember(&mut self, text: &str) {
        if text.trim().is_empty() || !matches!(self.editor.add_history_entry(text), Ok(true)) {
            return;
        }
        let Some(file) = &self.history else { return };
        let saved =
            create_private_folder(file).map_err(ReadlineError::from).and_then(|()| self.editor.append_history(file));
        if let Err(e) = saved {
            note(&format!("the history is not kept: {}: {e}", file.display()));
            self.history = None;
        }
    }
}

fn create_private_folder(file: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let Some(folder) = file.parent() else { return Ok(()) };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// `$XDG_STATE_HOME/exlora/chat_history`, by default in `~/.local/state`.
fn history_file() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("exlora/chat_history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_pipe_are_joined_as_typed_ones_are() {
        let input = b"one\r\ntwo\\\nthree\n\n\"\"\"\na\n\nb\"\"\"\nlast\\";
        assert_eq!(lines(input), ["one", "two\\\nthree", "", "\"\"\"\na\n\nb\"\"\"", "last\\"]);
    }

    /// The lines of a pipe; the error of one that is no text.
    fn lines(mut input: &[u8]) -> Vec<String> {
        let read = || match read_pipe(&mut input).expect("reads") {
            Line::Text(text) => Some(text),
            Line::NotText(error) => Some(error.to_string()),
            _ => None,
        };
        std::iter::from_fn(read).collect()
    }

    #[test]
    fn a_line_that_is_no_text_is_an_error_of_its_own() {
        let found = lines(b"one\nb\xffd\ntwo\\\n\xc3\nthree");
        assert_eq!((found[0].as_str(), found[3].as_str(), found.len()), ("one", "three", 4));
        for (line, byte) in [(1, "0xff"), (2, "0xc3")] {
            assert!(found[line].contains("not UTF-8") && found[line].contains(byte), "{}", found[line]);
        }
    }
}
