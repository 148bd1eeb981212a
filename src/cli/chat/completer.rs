//! Completion while typing into a chat: commands, adapter names, settings and files.

use rustyline::completion::{Completer, FilenameCompleter};
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Helper};

use super::command::{COMMANDS, needs_more};
use crate::cli::args::RequestSettings;
use crate::engine::Engine;

/// Knows what can be typed, and whether it goes on in another line.
pub(super) struct ChatHelper {
    engine: Engine,
    files: FilenameCompleter,
}

impl ChatHelper {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine, files: FilenameCompleter::new() }
    }
}

impl Completer for ChatHelper {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, context: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = &line[..pos];
        if takes_file(typed) {
            let (start, files) = self.files.complete(line, pos, context)?;
            return Ok((start, files.into_iter().map(|file| file.replacement).collect()));
        }
        let names: Vec<String> = self.engine.adapters().into_iter().map(|adapter| adapter.name).collect();
        Ok(candidates(typed, &names))
    }
}

/// Whether a file name comes next.
fn takes_file(typed: &str) -> bool {
    typed.starts_with("/save ") || typed.starts_with("/load ") && typed.contains('=')
}

/// Where the word under the cursor begins, and what it can become.
fn candidates(typed: &str, adapters: &[String]) -> (usize, Vec<String>) {
    let Some((command, argument)) = typed.split_once(' ') else {
        let names = COMMANDS
            .iter()
            .map(|(_, name, takes, _)| if takes.is_empty() { (*name).to_owned() } else { format!("{name} ") });
        let is_command = typed.starts_with('/');
        return (0, names.filter(|name| is_command && name.starts_with(typed)).collect());
    };
    let words: Vec<String> = match command {
        "/adapter" => adapters.iter().cloned().chain(["none".to_owned()]).collect(),
        "/unload" => adapters.to_vec(),
        "/load" => adapters.iter().map(|name| format!("{name}=")).collect(),
        "/set" => RequestSettings::names().iter().map(|name| format!("{name}=")).collect(),
        _ => Vec::new(),
    };
    // A mixture's last part.
    let word = argument.rsplit(['+', ' ']).next().unwrap_or_default();
    (typed.len() - word.len(), words.into_iter().filter(|name| name.starts_with(word)).collect())
}

impl Validator for ChatHelper {
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        let is_complete = !needs_more(context.input());
        Ok(if is_complete { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

impl Hinter for ChatHelper {
    type Hint = String;
}

impl Highlighter for ChatHelper {}

impl Helper for ChatHelper {}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(typed: &str) -> String {
        let (start, words) = candidates(typed, &["sql".to_owned(), "sqlite".to_owned(), "tone".to_owned()]);
        let (before, words) = (&typed[..start], words.join("|"));
        format!("{before}[{words}]")
    }

    #[test]
    fn commands_adapters_and_settings_are_completed() {
        assert_eq!(complete("/ad"), "[/adapter |/adapters]");
        assert_eq!(complete("/unl"), "[/unload ]");
        assert_eq!(complete("/adapter s"), "/adapter [sql|sqlite]");
        assert_eq!(complete("/adapter sql*0.5+t"), "/adapter sql*0.5+[tone]");
        assert_eq!(complete("/adapter sql + n"), "/adapter sql + [none]");
        assert_eq!(complete("/unload "), "/unload [sql|sqlite|tone]");
        assert_eq!(complete("/set temperature"), "/set [temperature=|temperature-last=]");
        assert_eq!(complete("/exit x"), "/exit []");
        assert_eq!(complete("hello s"), "hello []");
        assert_eq!(complete(""), "[]");
    }

    #[test]
    fn files_are_completed_where_files_are_named() {
        assert!(takes_file("/load sql=adap") && takes_file("/save ta"));
        assert!(!takes_file("/load sq") && !takes_file("/save") && !takes_file("a=b"));
    }
}
