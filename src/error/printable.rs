//! Text of unknown origin made safe to print.

/// Most bytes of such a text that an error keeps, and that are printed.
const MAX_BYTES: usize = 4 << 10;

/// Text from a file or request, safe for a terminal and a log: what could move the cursor, begin a line, turn the direction of
/// writing or stay invisible is escaped, and a long text is cut: `… (N bytes)`.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if out.len() >= MAX_BYTES {
            return out + &rest(text);
        }
        if is_unsafe(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// The text, cut where it is too long to be kept.
pub(super) fn bounded(mut text: String) -> String {
    if text.len() > 2 * MAX_BYTES {
        let rest = rest(&text);
        text.truncate(text.floor_char_boundary(MAX_BYTES));
        text.shrink_to_fit();
        text.push_str(&rest);
    }
    text
}

fn rest(whole: &str) -> String {
    format!("… ({} bytes)", whole.len())
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Line and paragraph separators; marks, embeddings, overrides and isolates of the writing direction.
            '\u{2028}' | '\u{2029}' | '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}'
            // Invisible characters that join no letters: soft hyphen, zero-width spaces, annotations, tags.
            | '\u{00AD}' | '\u{200B}' | '\u{2060}'..='\u{2065}' | '\u{206A}'..='\u{206F}' | '\u{FEFF}'
            | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E0FFF}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped() {
        assert_eq!(
            printable("a\nb\t\x1b[31m\u{9b}\u{202e}\u{2028}\u{feff}"),
            r"a\nb\t\u{1b}[31m\u{9b}\u{202e}\u{2028}\u{feff}"
        );
        assert_eq!(printable("ü 日本 👩\u{200d}👩 ‘x’"), "ü 日本 👩\u{200d}👩 ‘x’");
    }

    #[test]
    fn a_long_text_is_cut() {
        let cut = printable(&"é".repeat(1 << 20));
        assert!(cut.len() < MAX_BYTES + 40);
        assert!(cut.ends_with("é… (2097152 bytes)"), "{}", &cut[cut.len() - 40..]);
        assert!(printable(&"\x1b".repeat(1 << 20)).len() < MAX_BYTES + 60);
        let kept = bounded("é".repeat(1 << 20));
        assert!(kept.len() < MAX_BYTES + 40 && kept.ends_with("(2097152 bytes)"));
        assert_eq!(bounded("short".into()), "short");
    }
}
