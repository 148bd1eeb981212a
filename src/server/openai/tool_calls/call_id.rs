//! Ids of calls, by which a client says which call it answers.

use sha2::{Digest as _, Sha256};

use super::format::ToolCallFormat;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Characters of an id of Mistral's, whose templates take no other length.
const MISTRAL_CHARACTERS: usize = 9;

/// Characters of an id of OpenAI's, behind `call_`.
const CHARACTERS: usize = 24;

/// Makes the ids of the calls of one choice: different ones, as the ids of responses differ.
#[derive(Clone, Debug)]
pub struct CallIds {
    format: ToolCallFormat,
    choice: String,
    calls: usize,
}

impl CallIds {
    /// The ids of a choice of the response with this id.
    pub fn new(format: ToolCallFormat, response_id: &str, choice: usize) -> Self {
        Self { format, choice: format!("{response_id}/{choice}"), calls: 0 }
    }

    /// The next call's id: nine letters and digits for Mistral's templates, OpenAI's form for all others.
    pub fn next_id(&mut self) -> String {
        let bytes = Sha256::digest(format!("{}/{}", self.choice, self.calls));
        self.calls += 1;
        let characters = bytes.iter().map(|&byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
        match self.format {
            ToolCallFormat::Mistral => characters.take(MISTRAL_CHARACTERS).collect(),
            ToolCallFormat::Hermes | ToolCallFormat::Llama3 => {
                format!("call_{}", characters.take(CHARACTERS).collect::<String>())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_differ_and_have_the_form_that_templates_take() {
        for format in ToolCallFormat::ALL {
            let mut ids = HashSet::new();
            for choice in 0..10 {
                for response in ["chatcmpl-1", "chatcmpl-2"] {
                    let mut of_choice = CallIds::new(format, response, choice);
                    ids.extend((0..100).map(|_| of_choice.next_id()));
                }
            }
            assert_eq!(ids.len(), 2000);
            assert!(ids.iter().all(|id| id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')));
            if format == ToolCallFormat::Mistral {
                assert!(ids.iter().all(|id| id.len() == 9 && !id.contains('_')));
            }
        }
    }
}
