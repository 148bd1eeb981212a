//! What the tools and the `response_format` of a request change: its prompt, the tokens that may be chosen, and how its text is
//! read.

use serde_json::Value as Json;

use super::call_id::CallIds;
use super::format::{ToolCallFormat, special_id};
use super::grammar::{CallGrammar, MistralStyle, OtherText};
use super::message::MessageReader;
use super::parser::ToolCallParser;
use super::tools::{Function, ToolChoice, check_functions};
use crate::engine::{Grammar, Request, Tokenizer};
use crate::error::{Error, ErrorCode, Result};
use crate::server::client_names::ClientNames;
use crate::server::error::{ApiError, ApiResult};

/// What a request asks for about tools and the form of its text, checked as far as that needs no tokenizer.
#[derive(Clone, Debug)]
pub struct ToolRequest {
    /// The functions.
    pub functions: Vec<Function>,
    /// Whether they are called.
    pub choice: ToolChoice,
    /// Whether several may be called at once.
    pub parallel: bool,
    /// The JSON schema of the text, if it has one.
    pub schema: Option<Json>,
}

/// How the text of a request is read whose model may call tools.
#[derive(Clone, Debug)]
pub struct ToolUse {
    functions: Vec<String>,
    parallel: bool,
    format: ToolCallFormat,
}

impl ToolRequest {
    /// Checks the functions of a request and the choice among them.
    ///
    /// # Errors
    /// `request_invalid`.
    pub fn new(
        functions: Vec<Function>,
        choice: Option<&Json>,
        parallel: Option<bool>,
        schema: Option<Json>,
    ) -> ApiResult<Self> {
        check_functions(&functions).map_err(|error| ApiError::of_field("tools", error))?;
        let choice = ToolChoice::parse(choice, &functions).map_err(|error| ApiError::of_field("tool_choice", error))?;
        Ok(Self { functions, choice, parallel: parallel.unwrap_or(true), schema })
    }

    /// Notes which field of the client's the grammar that [`ToolRequest::apply`] sets comes from; `format` is that of the schema.
    pub fn name_grammar(&self, request: &Request, format: &str, names: &mut ClientNames) {
        match (&request.grammar, &self.choice, &self.schema) {
            // It is one of the client's other fields, and a second one is refused.
            (Some(_), ..) | (None, ToolChoice::None, None) => {}
            (None, ToolChoice::None, Some(_)) => names.add("json_schema", format),
            (None, ..) => names.add("grammar", "tools"),
        }
    }

    /// What completes a request once its tokenizer is known, as [`ToolRequest::apply`] does.
    pub fn prepare(
        self,
        format: Option<ToolCallFormat>,
    ) -> impl FnOnce(&mut Request, Option<&Tokenizer>) -> Result<Option<ToolUse>> + Send + 'static {
        // Without a tokenizer there is no chat, which the engine says.
        move |request, tokenizer| tokenizer.map_or(Ok(None), |tokenizer| self.apply(format, request, tokenizer))
    }

    /// Sets the tools of a request, its grammar, and whether its text has special tokens. `None` where no tool may be called.
    /// `format` is that of the server's option.
    ///
    /// # Errors
    /// `setting_unsupported`: the format of the model's calls is not known. `request_invalid`: the request has another grammar.
    pub fn apply(
        self,
        format: Option<ToolCallFormat>,
        request: &mut Request,
        tokenizer: &Tokenizer,
    ) -> Result<Option<ToolUse>> {
        if self.choice == ToolChoice::None {
            let grammar = self.schema.map(|schema| Grammar::JsonSchema(schema.to_string()));
            request.grammar = Grammar::only(request.grammar.take().into_iter().chain(grammar))?;
            return Ok(None);
        }
        request.chat.tools = Some(self.functions.iter().map(Function::for_template).collect());
        let template = tokenizer.chat_template(&request.chat).unwrap_or_default();
        let format = format.or_else(|| ToolCallFormat::of_template(template)).ok_or_else(unknown_format)?;
        let grammar = self.grammar(format, MistralStyle::of_template(template), tokenizer);
        if format.has_special_tokens(tokenizer) {
            request.skip_special_tokens = false;
        }
        request.grammar = Grammar::only(request.grammar.take().into_iter().chain(grammar))?;
        let functions = self.functions.into_iter().map(|function| function.name).collect();
        Ok(Some(ToolUse { functions, parallel: self.parallel, format }))
    }

    /// What the text has to match, if anything of it is asked for.
    fn grammar(&self, format: ToolCallFormat, mistral_style: MistralStyle, tokenizer: &Tokenizer) -> Option<Grammar> {
        let is_strict = |function: &Function| function.strict == Some(true);
        let other_text = match (&self.choice, &self.schema) {
            (ToolChoice::Required | ToolChoice::Function(_), _) => OtherText::Forbidden,
            (ToolChoice::Auto, Some(schema)) => OtherText::Json(schema.clone()),
            (ToolChoice::Auto, None) if self.functions.iter().any(is_strict) => OtherText::Any,
            (ToolChoice::Auto, None) | (ToolChoice::None, _) => return None,
        };
        let is_called = |function: &&Function| match &self.choice {
            ToolChoice::Function(name) => function.name == *name,
            _ => true,
        };
        let functions: Vec<&Function> = self.functions.iter().filter(is_called).collect();
        let grammar = CallGrammar {
            format,
            mistral_style,
            functions: &functions,
            parallel: self.parallel && !matches!(self.choice, ToolChoice::Function(_)),
            other_text,
            special_id: &|marker| special_id(tokenizer, marker),
        };
        Some(grammar.build())
    }
}

impl ToolUse {
    /// What reads the text of a choice of the response with this id.
    pub fn reader(&self, response_id: &str, choice: usize) -> MessageReader {
        MessageReader::new(self.parser(), self.call_ids(response_id, choice))
    }

    /// What splits the text of a choice into content and calls.
    pub fn parser(&self) -> ToolCallParser {
        ToolCallParser::new(self.format, self.functions.iter().cloned(), self.parallel)
    }

    /// The ids of the calls of a choice of the response with this id.
    pub fn call_ids(&self, response_id: &str, choice: usize) -> CallIds {
        CallIds::new(self.format, response_id, choice)
    }
}

fn unknown_format() -> Error {
    let what = "tools are not supported with this model: its chat template has no known format for their calls";
    Error::new(ErrorCode::SettingUnsupported, what)
        .with_expected("a chat template of Hermes or Qwen, Llama 3, or Mistral models")
        .with_hint("start the server with --tool-call-parser hermes, llama3 or mistral, or send tool_choice \"none\"")
}
