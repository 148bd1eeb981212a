//! The methods of `str` that ask about its characters.

use crate::jinja::chars::{case, is_alpha, is_decimal, is_number, is_printable, is_space};
use crate::jinja::error::{Result, fail};

/// The answer of a method that asks; `None` where the name is another method's.
pub(super) fn call(text: &str, name: &str) -> Result<Option<bool>> {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    Ok(Some(match name {
        "isascii" => text.is_ascii(),
        "isspace" => all(is_space),
        "isalpha" => all(is_alpha),
        "isdecimal" => all(is_decimal),
        "isprintable" => text.chars().all(is_printable),
        "isdigit" => all_numbers(text, false, false)?,
        "isnumeric" => all_numbers(text, true, false)?,
        "isalnum" => all_numbers(text, true, true)?,
        "islower" => cased(text, false),
        "isupper" => cased(text, true),
        "istitle" => is_title(text),
        "isidentifier" => {
            !text.is_empty()
                && text.chars().enumerate().all(|(i, c)| c == '_' || is_alpha(c) || (i > 0 && is_decimal(c)))
        }
        _ => return Ok(None),
    }))
}

/// `isdigit` and its relatives. Which characters beyond decimal digits count is known for `isnumeric` only.
fn all_numbers(text: &str, numeric: bool, letters: bool) -> Result<bool> {
    for c in text.chars() {
        if is_decimal(c) || (letters && is_alpha(c)) {
            continue;
        }
        if is_number(c) {
            if numeric {
                continue;
            }
            return fail("isdigit is not supported for numbers other than decimal digits");
        }
        if numeric && !c.is_ascii() && is_alpha(c) {
            return fail("isnumeric is not supported for letters that may be numbers");
        }
        return Ok(false);
    }
    Ok(!text.is_empty())
}

/// Whether all characters that have a case have this one, and there is one.
fn cased(text: &str, upper: bool) -> bool {
    let mut cases = text.chars().filter_map(case).peekable();
    cases.peek().is_some() && cases.all(|is_upper| is_upper == upper)
}

/// Whether upper case begins words, and only lower case goes on in them.
fn is_title(text: &str) -> bool {
    let (mut in_word, mut any) = (false, false);
    for c in text.chars() {
        match case(c) {
            Some(upper) if upper == in_word => return false,
            Some(_) => (in_word, any) = (true, true),
            None => in_word = false,
        }
    }
    any
}
