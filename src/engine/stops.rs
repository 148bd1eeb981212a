//! Stop strings. SKELETON

/// Finds stop strings in a stream of text.
pub struct StopStrings {}

/// What became certain with a piece of text.
pub struct StopStep {
    /// Text that can go out.
    pub emit: String,
    /// The stop string that was found, if one was; nothing after it is ever emitted.
    pub matched: Option<String>,
}

impl StopStrings {
    /// Looks for these strings.
    pub fn new(_stops: Vec<String>) -> Self {
        todo!()
    }

    /// Takes a piece of text in.
    pub fn push(&mut self, _text: &str) -> StopStep {
        todo!()
    }

    /// The text that was held back.
    pub fn finish(&mut self) -> String {
        todo!()
    }
}
