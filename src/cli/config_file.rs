//! The file `exlora.toml`: defaults of the command's options, by their names.
//!
//! ```toml
//! model = "models/qwen"
//! adapter = { sql = "adapters/sql", tone = "adapters/tone" }
//! temperature = 0.7
//!
//! [chat]
//! system = "You answer in one sentence."
//! ```
//!
//! A key at the top is for every command that has the option, one in a command's table for that command alone. What is given on
//! the command line replaces what is in the file. What a run reads and writes is not set in a file.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use clap::builder::{Arg, Command};
use clap::{ArgAction, ArgMatches};
use toml::{Table, Value};

use super::args::{INPUT_AND_OUTPUT, did_you_mean};
use crate::error::{Error, ErrorCode, Result};

/// The file that is read if `--config` names no other.
const NAME: &str = "exlora.toml";

/// No such file is longer.
const MAX_BYTES: u64 = 1 << 20;

/// Options that a file cannot set, besides those that name inputs and outputs.
const NOT_IN_A_FILE: [&str; 5] = ["config", "json", "help", "version", "serve"];

/// The command with the file's values as defaults, and the file, if there is one.
///
/// # Errors
/// `io_failed`; `request_invalid` for an unknown key or a value that its option does not take.
pub(super) fn with_defaults(command: Command, args: &[OsString]) -> Result<(Command, Option<PathBuf>)> {
    // If these arguments are wrong, the real parse says so.
    let matches = without_requirements(command.clone()).try_get_matches_from(args).ok();
    let Some((_, matches)) = matches.as_ref().and_then(ArgMatches::subcommand) else { return Ok((command, None)) };
    let named = matches.get_one::<PathBuf>("config");
    let path = named.map_or(Path::new(NAME), PathBuf::as_path);
    let Some(text) = read(path, named.is_some())? else { return Ok((command, None)) };
    let command = apply(command, &text).map_err(|e| e.with_path(path))?;
    Ok((command, Some(path.to_owned())))
}

/// The command with every argument optional, for a first look.
fn without_requirements(command: Command) -> Command {
    command.mut_subcommands(|command| command.mut_args(|arg| arg.required(false)))
}

/// The file's text; `None` if it does not exist and need not.
fn read(path: &Path, is_named: bool) -> Result<Option<String>> {
    let failed = |what: String| Error::new(ErrorCode::IoFailed, what).with_path(path);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound && !is_named => return Ok(None),
        Err(e) => return Err(failed(format!("cannot read the settings: {e}"))),
    };
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|e| failed(format!("cannot read the settings: {e}")))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(failed("the file is too long for settings".to_owned()).with_expected(format!("{MAX_BYTES} bytes")));
    }
    Ok(Some(text))
}

fn apply(mut command: Command, text: &str) -> Result<Command> {
    let table: Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        invalid(format!("line {line}: {}", e.message()))
    })?;
    let names: Vec<String> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let is_of_one_command = |key: &String, value: &Value| value.is_table() && names.contains(key);
    let (of_one, of_all): (Vec<_>, Vec<_>) = table.into_iter().partition(|(key, value)| is_of_one_command(key, value));
    let every: Vec<&str> = names.iter().map(String::as_str).collect();
    for (key, value) in &of_all {
        command = set(command, &every, key, value).map_err(|e| e.with_subject(key.as_str()))?;
    }
    // After the values for all commands, which they replace.
    for (name, table) in &of_one {
        for (key, value) in table.as_table().into_iter().flatten() {
            command = set(command, &[name], key, value).map_err(|e| e.with_subject(format!("{name}.{key}")))?;
        }
    }
    Ok(command)
}

/// Makes a value the default of an option in those of the commands that have it.
fn set(mut command: Command, commands: &[&str], key: &str, value: &Value) -> Result<Command> {
    let option = key.replace('_', "-");
    let options = |command: &Command, name: &str| -> Vec<Arg> {
        let command = command.find_subcommand(name);
        command.into_iter().flat_map(Command::get_arguments).filter(|arg| can_be_set(arg)).cloned().collect()
    };
    let mut is_known = false;
    for name in commands {
        let Some(arg) = options(&command, name).into_iter().find(|arg| arg.get_long() == Some(&option)) else {
            continue;
        };
        is_known = true;
        let values = values(&option, value)?;
        check(&arg, &values)?;
        let id = arg.get_id().clone();
        command = command
            .mut_subcommand(name, |command| command.mut_arg(id, |arg| arg.required(false).default_values(values)));
    }
    if is_known {
        return Ok(command);
    }
    let known: Vec<String> = commands
        .iter()
        .flat_map(|name| options(&command, name))
        .filter_map(|arg| arg.get_long().map(str::to_owned))
        .chain(if commands.len() > 1 { commands.iter().map(|name| (*name).to_owned()).collect() } else { Vec::new() })
        .collect();
    let similar = did_you_mean(&option, known.iter().map(String::as_str));
    Err(invalid(format!("unknown key{similar}")).with_hint("keys are the names of options, as in --help"))
}

fn can_be_set(arg: &Arg) -> bool {
    let name = arg.get_long().unwrap_or_default();
    arg.get_help_heading() != Some(INPUT_AND_OUTPUT) && !name.is_empty() && !NOT_IN_A_FILE.contains(&name)
}

/// A value as it would be written on the command line; several for an option that is repeated.
fn values(option: &str, value: &Value) -> Result<Vec<String>> {
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(value) => Ok(value.to_string()),
        other => Err(invalid("the value cannot be given to an option".to_owned()).with_found(other.type_str())),
    };
    match value {
        Value::Array(items) => items.iter().map(text).collect(),
        // The table of a mixture, or of names and what they stand for.
        Value::Table(table) => {
            let between = if ["use", "draft-use"].contains(&option) { '*' } else { '=' };
            table.iter().map(|(name, value)| Ok(format!("{name}{between}{}", text(value)?))).collect()
        }
        one => Ok(vec![text(one)?]),
    }
}

/// Checks that an option takes the values, so that an error names the file and the key.
fn check(arg: &Arg, values: &[String]) -> Result<()> {
    let option = arg.get_long().unwrap_or_default();
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    if is_switch {
        return match values {
            [value] if value == "true" || value == "false" => Ok(()),
            _ => Err(invalid("the value is not true or false".to_owned())),
        };
    }
    let alone = Arg::new("value").long(option.to_owned()).action(arg.get_action().clone());
    let alone = alone.value_parser(arg.get_value_parser().clone()).allow_hyphen_values(true);
    let args = values.iter().map(|value| format!("--{option}={value}"));
    match Command::new("check").no_binary_name(true).arg(alone).try_get_matches_from(args) {
        Ok(_) => Ok(()),
        Err(e) => {
            let message = e.to_string();
            Err(invalid(message.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()))
        }
    }
}

fn invalid(what: String) -> Error {
    Error::new(ErrorCode::RequestInvalid, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command;

    fn value(toml: &str, args: &str, option: &str) -> String {
        let command = apply(command(), toml).expect("applies");
        let matches = command.try_get_matches_from(args.split(' ')).unwrap_or_else(|e| panic!("{e}"));
        let (_, matches) = matches.subcommand().expect("a command");
        let raw = matches.get_raw(option).expect("a value").map(|value| value.to_string_lossy().into_owned());
        raw.collect::<Vec<_>>().join(" ")
    }

    fn error(toml: &str) -> String {
        apply(command(), toml).expect_err("an error").to_string()
    }

    #[test]
    fn keys_are_options_and_flags_win() {
        let toml = "model = 'm'\ntemperature = 0.5\nstop = ['a', 'b']\nkv_tokens = 100\n[chat]\ntemperature = 1\n";
        assert_eq!(value(toml, "exlora generate", "model"), "m");
        assert_eq!(value(toml, "exlora generate", "temperature"), "0.5");
        assert_eq!(value(toml, "exlora chat", "temperature"), "1");
        assert_eq!(value(toml, "exlora chat --temperature 2", "temperature"), "2");
        assert_eq!(value(toml, "exlora generate", "stop"), "a b");
        assert_eq!(value(toml, "exlora generate --stop c", "stop"), "c");
        assert_eq!(value(toml, "exlora generate", "kv_tokens"), "100");
        let toml = "adapter = { sql = 'a/b', tone = 'c' }\nuse = { sql = 0.5, tone = 1 }\nprefix-cache = false";
        assert_eq!(value(toml, "exlora chat -m x", "adapters"), "sql=a/b tone=c");
        assert_eq!(value(toml, "exlora chat -m x", "mixture"), "sql*0.5 tone*1");
        assert_eq!(value(toml, "exlora chat -m x", "prefix_cache"), "false");
        let toml = "draft_model = 'd'\ndraft_adapter = { wit = 'w' }\ndraft_use = { wit = 0.5 }\nngram_draft = true";
        assert_eq!(value(toml, "exlora chat -m x", "draft_adapters"), "wit=w");
        assert_eq!(value(toml, "exlora chat -m x", "draft_mixture"), "wit*0.5");
        assert_eq!(value(toml, "exlora generate -m x", "ngram_draft"), "true");
    }

    #[test]
    fn a_mistake_is_named_by_its_key() {
        assert!(error("temprature = 1").starts_with("temprature: unknown key; did you mean 'temperature'?"));
        assert!(error("[chat]\nsytem = 'x'").starts_with("chat.sytem: unknown key; did you mean 'system'?"));
        assert!(error("[chta]\nsystem = 'x'").starts_with("chta: unknown key; did you mean 'chat'?"));
        assert!(
            error("temperature = 'hot'").starts_with("temperature: invalid value 'hot'"),
            "{}",
            error("temperature = 'hot'")
        );
        assert!(error("max-new-tokens = -5").starts_with("max-new-tokens: invalid value '-5'"));
        assert!(error("model = 1979-05-27").starts_with("model: the value cannot be given to an option"));
        assert!(error("threads = [[1]]").starts_with("threads: the value cannot be given"));
        assert!(error("no-history = 3").starts_with("no-history: the value is not true or false"));
        assert!(error("a = 1\nb = = 2").starts_with("line 2:"), "{}", error("a = 1\nb = = 2"));
        for key in ["requests", "output", "config", "json", "help", "file"] {
            assert!(error(&format!("{key} = 'x'")).starts_with(&format!("{key}: unknown key")), "{key}");
        }
    }

    #[test]
    fn no_option_has_the_name_of_a_command() {
        let command = command();
        for name in command.get_subcommands().map(Command::get_name) {
            // What a file cannot set needs no key.
            let is_key = |arg: &&clap::Arg| !NOT_IN_A_FILE.contains(&arg.get_id().as_str());
            let keys = command.get_subcommands().flat_map(Command::get_arguments).filter(is_key);
            assert!(keys.filter_map(clap::Arg::get_long).all(|key| key != name));
        }
    }
}
