//! Classes of characters as Python defines them.

use std::sync::{LazyLock, OnceLock};

use regex::Regex;

/// `str.isspace` of one character, which `strip`, `split` and the regular expression `\s` use.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Where `str.splitlines` ends a line (`\r\n` counts once).
pub(super) fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// A character class, asked for characters outside of ASCII. Asking a regular expression takes long, so the answers are
/// kept, for 256 characters at a time.
struct Class {
    regex: Option<Regex>,
    pages: Vec<OnceLock<[u64; 4]>>,
}

impl Class {
    fn new(class: &str) -> Self {
        Self { regex: Regex::new(class).ok(), pages: vec![OnceLock::new(); 0x1100] }
    }

    fn contains(&self, c: char) -> bool {
        let code = c as u32;
        let page = self.pages[code as usize >> 8].get_or_init(|| self.page(code & !0xff));
        page[(code as usize & 0xff) >> 6] >> (code & 63) & 1 == 1
    }

    fn page(&self, first: u32) -> [u64; 4] {
        let mut page = [0; 4];
        for i in 0..256 {
            let is_in = |c: char| self.regex.as_ref().is_some_and(|class| class.is_match(c.encode_utf8(&mut [0; 4])));
            if char::from_u32(first + i).is_some_and(is_in) {
                page[i as usize >> 6] |= 1 << (i & 63);
            }
        }
        page
    }
}

/// `str.isprintable` of one character: neither a separator (but the space) nor a control or unassigned character.
pub(super) fn is_printable(c: char) -> bool {
    static OTHER: LazyLock<Class> = LazyLock::new(|| Class::new(r"[\p{C}\p{Z}]"));
    if c.is_ascii() { (' '..='~').contains(&c) } else { !OTHER.contains(c) }
}

/// `str.isalpha` of one character.
pub(super) fn is_alpha(c: char) -> bool {
    static LETTER: LazyLock<Class> = LazyLock::new(|| Class::new(r"\p{L}"));
    if c.is_ascii() { c.is_ascii_alphabetic() } else { LETTER.contains(c) }
}

/// `str.isdecimal` of one character.
pub(super) fn is_decimal(c: char) -> bool {
    static DECIMAL: LazyLock<Class> = LazyLock::new(|| Class::new(r"\p{Nd}"));
    if c.is_ascii() { c.is_ascii_digit() } else { DECIMAL.contains(c) }
}

/// Whether a character is a number of any kind: `isdigit` and `isnumeric` tell these apart by tables that are not here.
pub(super) fn is_number(c: char) -> bool {
    static NUMBER: LazyLock<Class> = LazyLock::new(|| Class::new(r"\p{N}"));
    if c.is_ascii() { c.is_ascii_digit() } else { NUMBER.contains(c) }
}

/// The regular expression `\w`.
pub(super) fn is_word(c: char) -> bool {
    c == '_' || is_alpha(c) || is_number(c)
}

/// Whether a character has two cases and is an upper-case (or title-case) one; for a lower-case one `Some(false)`.
pub(super) fn case(c: char) -> Option<bool> {
    static TITLE: LazyLock<Class> = LazyLock::new(|| Class::new(r"\p{Lt}"));
    if c.is_lowercase() {
        Some(false)
    } else if c.is_uppercase() || (!c.is_ascii() && TITLE.contains(c)) {
        Some(true)
    } else {
        None
    }
}

/// The title case of a character; `None` where it is another character than the upper case, which has no table here.
pub(super) fn title_case(c: char) -> Option<char> {
    if ('\u{10d0}'..='\u{10ff}').contains(&c) {
        return Some(c); // Georgian has upper case, but no title case
    }
    let mut upper = c.to_uppercase();
    let one = upper.next().filter(|_| upper.next().is_none())?;
    (!matches!(c, '\u{1c4}'..='\u{1cc}' | '\u{1f1}'..='\u{1f3}')).then_some(one)
}
