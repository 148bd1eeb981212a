//! The formats in which models write calls of tools, and how a model's is told.

use std::str::FromStr;

use crate::engine::Tokenizer;
use crate::error::{Error, ErrorCode, Result};

/// How a model writes calls of tools in its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolCallFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`, of Hermes and Qwen models.
    Hermes,
    /// `{"name": …, "parameters": …}`, also after `<|python_tag|>`, several separated by `;`, of Llama 3 models.
    Llama3,
    /// `[TOOL_CALLS] [{"name": …, "arguments": …}]`, or `[TOOL_CALLS]name[ARGS]{…}`, of Mistral models.
    Mistral,
}

impl FromStr for ToolCallFormat {
    type Err = Error;

    /// The format with this name.
    ///
    /// # Errors
    /// `request_invalid`: there is none.
    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            Error::new(ErrorCode::RequestInvalid, "the tool call parser is unknown")
                .with_expected("hermes, llama3 or mistral")
                .with_found(name.escape_debug())
        })
    }
}

impl ToolCallFormat {
    /// All formats.
    pub const ALL: [Self; 3] = [Self::Hermes, Self::Llama3, Self::Mistral];

    /// The name that the option `--tool-call-parser` has for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hermes => "hermes",
            Self::Llama3 => "llama3",
            Self::Mistral => "mistral",
        }
    }

    /// The text that a call begins with; Llama 3 models may leave it out.
    pub fn marker(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Llama3 => "<|python_tag|>",
            Self::Mistral => "[TOOL_CALLS]",
        }
    }

    /// All texts that are part of the format, each of which may be a special token of the model.
    pub fn markers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Llama3 => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
        }
    }

    /// Whether the text that is parsed needs the special tokens, which are otherwise left out of it.
    pub fn has_special_tokens(self, tokenizer: &Tokenizer) -> bool {
        self.markers().iter().any(|marker| special_id(tokenizer, marker).is_some())
    }

    /// The format that a chat template teaches its model; `None` for one that is not known.
    pub fn of_template(template: &str) -> Option<Self> {
        let has = |text: &str| template.contains(text);
        // Both write calls of their own between Hermes' markers: Qwen3-Coder as XML, GLM as keys and values.
        let is_other_hermes = has("<function=") || has("<arg_key>");
        if has("<tool_call>") && has("arguments") && !is_other_hermes {
            Some(Self::Hermes)
        } else if has("[TOOL_CALLS]") {
            Some(Self::Mistral)
        } else if has("\"parameters\":") && has("<|start_header_id|>") {
            Some(Self::Llama3)
        } else {
            None
        }
    }
}

/// The id of a marker that is a special token.
pub(super) fn special_id(tokenizer: &Tokenizer, marker: &str) -> Option<u32> {
    tokenizer.id_of(marker).filter(|&id| tokenizer.is_special(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_told_from_the_chat_template() {
        let hermes = "For each function call return <tool_call>\\n{\"name\": <n>, \"arguments\": <a>}\\n</tool_call>";
        let llama =
            "<|start_header_id|>user Respond in the format {\"name\": function name, \"parameters\": dictionary}.";
        for (template, format) in [
            (hermes, Some(ToolCallFormat::Hermes)),
            (llama, Some(ToolCallFormat::Llama3)),
            ("{{ '[TOOL_CALLS]' + call.function.name + '[ARGS]' }}", Some(ToolCallFormat::Mistral)),
            ("<tool_call>\\n<function=name>\\n<parameter=a> arguments", None),
            ("<tool_call>name <arg_key>k</arg_key> arguments", None),
            ("<|im_start|>{{ message.content }}<|im_end|>", None),
            ("", None),
        ] {
            assert_eq!(ToolCallFormat::of_template(template), format, "{template}");
        }
    }

    #[test]
    fn a_format_has_one_name() {
        for format in ToolCallFormat::ALL {
            assert_eq!(format.name().parse::<ToolCallFormat>().expect("known"), format);
        }
        assert!("pythonic".parse::<ToolCallFormat>().is_err());
    }
}
