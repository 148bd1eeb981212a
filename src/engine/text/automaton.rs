//! One string looked for in text that arrives byte by byte (Knuth, Morris, Pratt 1977).

/// A string, as an automaton whose state is the length of its longest prefix that ends the text so far. The owner of the text
/// keeps the state.
#[derive(Debug)]
pub struct Automaton {
    string: String,
    /// `borders[i]`: length of the longest proper prefix of `string[..=i]` that is also its suffix.
    borders: Vec<usize>,
}

impl Automaton {
    /// Looks for this string, which is not empty.
    pub fn new(string: String) -> Self {
        let bytes = string.as_bytes();
        let mut borders = vec![0; bytes.len()];
        for i in 1..bytes.len() {
            borders[i] = advance(bytes, &borders, borders[i - 1], bytes[i]);
        }
        Self { string, borders }
    }

    /// The string.
    pub fn string(&self) -> &str {
        &self.string
    }

    /// Length of the string in bytes.
    pub fn len(&self) -> usize {
        self.string.len()
    }

    /// Advances `state` by one byte; whether that completes the string.
    pub fn push(&self, state: &mut usize, byte: u8) -> bool {
        // It may have been completed before.
        *state = advance(self.string.as_bytes(), &self.borders, self.held(*state), byte);
        *state == self.string.len()
    }

    /// Length of the longest beginning of the string, but not all of it, that ends the text so far.
    pub fn held(&self, state: usize) -> usize {
        if state == self.string.len() { self.borders[state - 1] } else { state }
    }
}

/// The state after `byte`; `state` is shorter than `string`.
fn advance(string: &[u8], borders: &[usize], mut state: usize, byte: u8) -> usize {
    while string[state] != byte {
        if state == 0 {
            return 0;
        }
        state = borders[state - 1];
    }
    state + 1
}
