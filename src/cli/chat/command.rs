//! What a line typed into a chat means: a message, or a command that begins with a slash.

use crate::cli::args::did_you_mean;
use crate::error::{Error, ErrorCode, Result};

/// A command of the chat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Command {
    Help,
    Adapter,
    Adapters,
    Load,
    Unload,
    System,
    Set,
    Retry,
    Undo,
    Reset,
    Save,
    Stats,
    Exit,
}

/// Every command: its name, the argument it takes, and what it does.
pub(super) const COMMANDS: [(Command, &str, &str, &str); 13] = [
    (
        Command::Adapter,
        "/adapter",
        "MIXTURE",
        "answer with this adapter or mixture: sql*0.7+tone*0.3; none is the base",
    ),
    (Command::Adapters, "/adapters", "", "list the adapters"),
    (Command::Load, "/load", "NAME=PATH", "load an adapter folder under a name, or replace it"),
    (Command::Unload, "/unload", "NAME", "forget an adapter"),
    (Command::System, "/system", "TEXT", "change the system message; none removes it"),
    (Command::Set, "/set", "KEY=VALUE", "change a setting: temperature=0.7; KEY=default resets it"),
    (Command::Retry, "/retry", "", "answer the last message again"),
    (Command::Undo, "/undo", "", "forget the last message and its answer"),
    (Command::Reset, "/reset", "", "forget the conversation"),
    (Command::Save, "/save", "FILE", "write the conversation as JSON messages"),
    (Command::Stats, "/stats", "", "show memory, tokens and speed"),
    (Command::Help, "/help", "", "show this list"),
    (Command::Exit, "/exit", "", "leave, as does Ctrl-D"),
];

/// What was typed.
#[derive(Debug, PartialEq)]
pub(super) enum Input<'a> {
    Nothing,
    Message(String),
    /// A command with its argument, which may be empty.
    Command(Command, &'a str),
}

/// Reads what was typed: all lines that [`needs_more`] asked for.
///
/// # Errors
/// `request_invalid` for an unknown command, or an argument where none belongs.
pub(super) fn parse(text: &str) -> Result<Input<'_>> {
    if !text.starts_with('/') {
        let message = message(text);
        return Ok(if message.is_empty() { Input::Nothing } else { Input::Message(message) });
    }
    let (name, argument) = text.trim_end().split_once(char::is_whitespace).unwrap_or((text.trim_end(), ""));
    let argument = argument.trim();
    let invalid = |what: String| Error::new(ErrorCode::RequestInvalid, what);
    // The word of many other programs.
    let name = if name == "/quit" { "/exit" } else { name };
    let Some((command, _, takes, _)) = COMMANDS.iter().find(|known| known.1 == name) else {
        let similar = did_you_mean(name, COMMANDS.iter().map(|known| known.1));
        return Err(invalid(format!("'{name}' is not a command{similar}"))
            .with_hint("/help lists the commands; a message that begins with a slash is typed after a space"));
    };
    if takes.is_empty() && !argument.is_empty() {
        return Err(invalid(format!("{name} takes no argument")).with_found(argument));
    }
    Ok(Input::Command(*command, argument))
}

const QUOTES: &str = "\"\"\"";

/// Whether further lines belong to what was typed: after a backslash at the end, or in a text between triple quotes.
pub(super) fn needs_more(text: &str) -> bool {
    match text.trim_start().strip_prefix(QUOTES) {
        Some(quoted) => !quoted.contains(QUOTES),
        None => ends_in_backslash(text),
    }
}

fn ends_in_backslash(text: &str) -> bool {
    // Two of them are a backslash that is meant.
    text.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
}

/// The message, without the marks that joined its lines.
fn message(text: &str) -> String {
    if let Some(quoted) = text.trim_start().strip_prefix(QUOTES) {
        let quoted = quoted.trim_end();
        return quoted.strip_suffix(QUOTES).unwrap_or(quoted).trim_matches('\n').to_owned();
    }
    let lines: Vec<&str> =
        text.lines().map(|line| if ends_in_backslash(line) { &line[..line.len() - 1] } else { line }).collect();
    lines.join("\n").trim().to_owned()
}

/// The table of commands.
pub(super) fn help() -> String {
    let line =
        |(_, name, takes, what): &(Command, &str, &str, &str)| format!("{:<20} {what}", format!("{name} {takes}"));
    let mut lines: Vec<String> = COMMANDS.iter().map(line).collect();
    lines.push(format!("A line that ends in a backslash goes on in the next, as does a text between {QUOTES}."));
    lines.push("Ctrl-C stops an answer, and Tab completes commands, adapters and files.".to_owned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_message_or_a_command() {
        assert_eq!(parse("  hello  ").expect("parses"), Input::Message("hello".into()));
        assert_eq!(parse(" \t").expect("parses"), Input::Nothing);
        assert_eq!(parse("/adapter  a*0.5 + b ").expect("parses"), Input::Command(Command::Adapter, "a*0.5 + b"));
        assert_eq!(parse("/quit").expect("parses"), Input::Command(Command::Exit, ""));
        assert_eq!(parse(" /etc/fstab is what?").expect("parses"), Input::Message("/etc/fstab is what?".into()));
        for (_, name, takes, _) in COMMANDS {
            assert!(parse(name).is_ok(), "{name}");
            assert_eq!(parse(&format!("{name} x")).is_ok(), !takes.is_empty(), "{name}");
        }
        let message = parse("/adaptor x").expect_err("refused").to_string();
        assert!(message.starts_with("'/adaptor' is not a command; did you mean '/adapter'?"), "{message}");
    }

    #[test]
    fn lines_are_joined_by_a_backslash_or_between_quotes() {
        for text in ["a\\", "\"\"\"", "\"\"\"a\nb", "a\nb\\\\\\"] {
            assert!(needs_more(text), "{text}");
        }
        for text in ["a", "", "a\\\\", "a\\\n", "\"\"\"a\nb\"\"\"", "say \"\"\"", "/help"] {
            assert!(!needs_more(text), "{text}");
        }
        let read = |text| match parse(text) {
            Ok(Input::Message(message)) => message,
            other => panic!("{other:?}"),
        };
        assert_eq!(read("one\\\ntwo\\\n three"), "one\ntwo\n three");
        assert_eq!(read("\"\"\"\n  indented\\\n\nend\n\"\"\""), "  indented\\\n\nend");
        assert_eq!(read("\"\"\"never closed"), "never closed");
        assert_eq!(read("pasted\nlines"), "pasted\nlines");
    }
}
