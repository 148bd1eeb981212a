//! Chat templates: Jinja, rendered as transformers renders them.
//!
//! A template is code from a model folder. It gets what transformers gives it (`messages`, `tools`, `documents`,
//! `add_generation_prompt`, the special tokens and other variables by name) and runs within the bounds of [`crate::jinja`],
//! so that a hostile one can neither end the process, nor hang, nor exhaust memory.
//!
//! Source of the rules: `transformers.utils.chat_template_utils` 5.23.

mod messages;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

pub use messages::{ChatMessage, ChatOptions};

use self::messages::Prepared;
use super::files::{invalid, read, read_object};
use crate::error::{Error, ErrorCode, Result};
use crate::guard::guarded;
use crate::jinja::{Template, TemplateError};

/// Templates in the folder additional_chat_templates. Public models have up to three.
const MAX_ADDITIONAL: usize = 64;

/// The name of the template that is used unless another is asked for.
const DEFAULT: &str = "default";

/// The name of the template that is used where there are tools.
const TOOL_USE: &str = "tool_use";

/// Variables that have arguments of their own.
const RESERVED: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// A model's chat templates and the special tokens they may use.
pub(super) struct ChatTemplates {
    /// By name. A model with one template has it under [`DEFAULT`].
    templates: BTreeMap<String, ChatTemplate>,
    special: Map<String, Json>,
    path: PathBuf,
}

struct ChatTemplate {
    source: String,
    /// Why it was refused is reported when it is used: the model works without it.
    parsed: Result<Template>,
}

impl ChatTemplate {
    fn parse(source: &str) -> Self {
        let refused = |why: &str| {
            let why = format!("the chat template is refused: {why}");
            Error::new(ErrorCode::ChatTemplateFailed, why)
        };
        let parsed = guarded(refused, || Template::parse(source).map_err(|e| refused(&e.to_string())));
        Self { source: source.to_owned(), parsed }
    }
}

impl ChatTemplates {
    /// Finds the templates where transformers does, in its order: chat_template.jinja and additional_chat_templates,
    /// tokenizer_config.json, chat_template.json.
    pub(super) fn find(dir: &Path, config: &Map<String, Json>, special: &BTreeMap<String, String>) -> Result<Self> {
        let path = dir.join("chat_template.jinja");
        let mut sources = additional(&dir.join("additional_chat_templates"))?;
        sources.extend(read(&path)?.map(|source| (DEFAULT.to_owned(), source)));
        if !sources.is_empty() {
            return Ok(Self::parse(&sources, special, path));
        }
        let path = dir.join("tokenizer_config.json");
        let sources = configured(config, &path)?;
        if !sources.is_empty() {
            return Ok(Self::parse(&sources, special, path));
        }
        let path = dir.join("chat_template.json");
        let sources = configured(&read_object(&path)?, &path)?;
        Ok(Self::parse(&sources, special, path))
    }

    fn parse(sources: &BTreeMap<String, String>, special: &BTreeMap<String, String>, path: PathBuf) -> Self {
        let templates = sources.iter().map(|(name, source)| (name.clone(), ChatTemplate::parse(source))).collect();
        let special = special.iter().map(|(name, token)| (name.clone(), token.as_str().into())).collect();
        Self { templates, special, path }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.templates.is_empty()
    }

    /// Whether both have the same templates.
    pub(super) fn equals(&self, other: &Self) -> bool {
        self.templates.len() == other.templates.len()
            && self.templates.iter().zip(&other.templates).all(|((a, x), (b, y))| a == b && x.source == y.source)
    }

    /// Why a template was refused, if one was: the default one, else any.
    pub(super) fn refused(&self) -> Option<&Error> {
        let default = self.templates.get(DEFAULT);
        default.into_iter().chain(self.templates.values()).find_map(|template| template.parsed.as_ref().err())
    }

    /// Renders a chat as a prompt.
    pub(super) fn render(&self, messages: &[ChatMessage], options: &ChatOptions) -> Result<String> {
        let named = self.chosen(options);
        let rendered = match (named, &options.chat_template) {
            (None, Some(source)) => return self.render_with(&ChatTemplate::parse(source), messages, options),
            (None, None) => return Err(self.no_default()),
            (Some(template), _) => self.render_with(template, messages, options),
        };
        rendered.map_err(|e| e.with_path(&self.path))
    }

    /// The model's own template that is asked for; `None` where a text is given instead.
    fn chosen(&self, options: &ChatOptions) -> Option<&ChatTemplate> {
        let single = self.templates.len() == 1 && self.templates.contains_key(DEFAULT);
        match &options.chat_template {
            Some(_) if single => None,
            Some(name) => self.templates.get(name),
            None => {
                let with_tools = options.tools.as_ref().and_then(|_| self.templates.get(TOOL_USE));
                with_tools.or_else(|| self.templates.get(DEFAULT))
            }
        }
    }

    /// The source of the template that a chat is rendered with, if there is one.
    pub(super) fn source<'a>(&'a self, options: &'a ChatOptions) -> Option<&'a str> {
        self.chosen(options).map(|template| template.source.as_str()).or(options.chat_template.as_deref())
    }

    fn render_with(&self, template: &ChatTemplate, messages: &[ChatMessage], options: &ChatOptions) -> Result<String> {
        let failed = |clause: String| Error::new(ErrorCode::ChatTemplateFailed, clause);
        let parsed = template.parsed.as_ref().map_err(|refused| failed(refused.message().to_owned()))?;
        for (what, list) in [("tools", &options.tools), ("documents", &options.documents)] {
            if list.iter().flatten().any(|item| !item.is_object()) {
                return Err(failed(format!("{what} are a list of objects")));
            }
        }
        let kwargs = &options.chat_template_kwargs;
        if let Some(name) = RESERVED.into_iter().find(|&name| kwargs.contains_key(name)) {
            return Err(failed(format!("'{name}' is an argument of its own, and not one of chat_template_kwargs")));
        }
        let prepared = Prepared::new(messages, options, &template.source)?;
        let list = |list: &Option<Vec<Json>>| list.clone().map_or(Json::Null, Json::Array);
        let (tools, documents) = (list(&options.tools), list(&options.documents));
        let starts_answer = options.add_generation_prompt.unwrap_or(options.continue_final_message.is_none());
        let starts_answer = Json::Bool(starts_answer);
        let own = [&prepared.messages, &tools, &documents, &starts_answer];
        let mut variables: Vec<(&str, &Json)> = RESERVED.into_iter().zip(own).collect();
        variables.extend(kwargs.iter().chain(&self.special).map(|(name, value)| (name.as_str(), value)));

        let while_rendering = |e: &str| failed(format!("the chat template failed on these messages: {e}"));
        let prompt = guarded(while_rendering, || {
            parsed.render(&variables).map_err(|e: TemplateError| while_rendering(&e.to_string()))
        })?;
        prepared.cut(prompt)
    }

    fn no_default(&self) -> Error {
        if self.is_empty() {
            return Error::new(ErrorCode::ChatTemplateNotFound, "the model has no chat template");
        }
        let names: Vec<String> = self.templates.keys().take(20).map(|name| name.escape_debug().to_string()).collect();
        Error::new(ErrorCode::ChatTemplateNotFound, "the model has several chat templates, and none is the default")
            .with_expected(format!("chat_template, one of {}", names.join(", ")))
            .with_path(&self.path)
    }
}

/// The templates of the folder additional_chat_templates, by name.
fn additional(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut sources = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(sources) };
    for entry in entries.filter_map(std::io::Result::ok) {
        let path = entry.path();
        let is_template = path.extension().is_some_and(|extension| extension == "jinja");
        let Some(name) = path.file_stem().and_then(|name| name.to_str()).filter(|_| is_template) else { continue };
        if sources.len() == MAX_ADDITIONAL {
            return Err(invalid(format!("more than {MAX_ADDITIONAL} chat templates"), dir));
        }
        sources.extend(read(&path)?.map(|source| (name.to_owned(), source)));
    }
    Ok(sources)
}

/// `chat_template` of a JSON file: the source, or a list of named ones.
fn configured(config: &Map<String, Json>, path: &Path) -> Result<BTreeMap<String, String>> {
    let malformed = || invalid("chat_template is neither a text nor a list of named texts", path);
    match config.get("chat_template") {
        None | Some(Json::Null) => Ok(BTreeMap::new()),
        Some(Json::String(source)) => Ok([(DEFAULT.to_owned(), source.clone())].into()),
        Some(Json::Array(named)) => {
            let entry = |entry: &Json| {
                let text = |key: &str| entry.get(key)?.as_str().map(str::to_owned);
                Some((text("name")?, text("template")?))
            };
            named.iter().map(|one| entry(one).ok_or_else(malformed)).collect()
        }
        Some(_) => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn special() -> BTreeMap<String, String> {
        [("bos_token".to_owned(), "<s>".to_owned()), ("eos_token".to_owned(), "</s>".to_owned())].into()
    }

    fn templates(source: &str) -> ChatTemplates {
        let sources = [(DEFAULT.to_owned(), source.to_owned())].into();
        ChatTemplates::parse(&sources, &special(), "tokenizer_config.json".into())
    }

    fn try_render(source: &str, messages: &[ChatMessage], options: &ChatOptions) -> Result<String> {
        templates(source).render(messages, options)
    }

    fn render(source: &str, messages: &[ChatMessage]) -> String {
        try_render(source, messages, &ChatOptions::default()).expect("renders")
    }

    fn user(text: &str) -> ChatMessage {
        ChatMessage::new("user", text)
    }

    fn continued() -> ChatOptions {
        ChatOptions { continue_final_message: Some("content".to_owned()), ..ChatOptions::default() }
    }

    #[test]
    fn chatml_is_rendered_as_transformers_does() {
        let source = "{% for message in messages %}\n    {% if loop.first and message['role'] != 'system' %}\n\
                      <|im_start|>system\nBe brief.<|im_end|>\n    {% endif %}\n\
                      <|im_start|>{{ message.role }}\n{{ message['content'].strip() }}<|im_end|>\n{% endfor %}\n\
                      {% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}\n";
        let messages = [user(" Hello "), ChatMessage::new("assistant", "Hi")];
        assert_eq!(
            render(source, &messages),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n\
             <|im_start|>assistant\nHi<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn special_tokens_are_variables_and_tools_are_none() {
        let source =
            "{{ bos_token }}{% if tools is none and documents is none %}x{% endif %}{{ pad_token }}{{ eos_token }}";
        assert_eq!(render(source, &[user("hi")]), "<s>x</s>");
    }

    #[test]
    fn nulls_are_left_out_and_every_other_field_passes_in_order() {
        let message = user("hi").with("tool_calls", Json::Null).with("name", "n").with("z", json!([1, {"b": 2.5}]));
        assert_eq!(
            render("{{ messages[0] }}", &[message]),
            "{'role': 'user', 'content': 'hi', 'name': 'n', 'z': [1, {'b': 2.5}]}"
        );
        let null = ChatMessage::new("assistant", Json::Null);
        assert_eq!(render("{{ messages[0].content is defined }}", &[null]), "False");
        let parts = ChatMessage::new("user", json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]));
        assert_eq!(render("{% for part in messages[0].content %}{{ part.text }}{% endfor %}", &[parts]), "ab");
    }

    #[test]
    fn reasoning_is_read_under_each_of_its_names() {
        let message = user("hi").with("reasoning", "why");
        let source = "{{ messages[0].thinking }} {{ messages[0].reasoning_content }} {{ messages[0]|list }}";
        assert_eq!(
            render(source, &[message]),
            "why why ['thinking', 'role', 'content', 'reasoning', 'reasoning_content']"
        );
    }

    #[test]
    fn tools_documents_and_other_variables_reach_the_template() {
        let options = ChatOptions {
            tools: Some(vec![json!({"name": "f"})]),
            documents: Some(vec![json!({"title": "t"})]),
            chat_template_kwargs: json!({"enable_thinking": false, "eos_token": "E"})
                .as_object()
                .cloned()
                .expect("one"),
            ..ChatOptions::default()
        };
        let source = "{{ tools[0].name }}{{ documents[0].title }}{{ enable_thinking }}{{ eos_token }}{{ bos_token }}";
        assert_eq!(try_render(source, &[user("hi")], &options).expect("renders"), "ftFalseE<s>");
        let reserved = ChatOptions {
            chat_template_kwargs: json!({"messages": []}).as_object().cloned().expect("one"),
            ..ChatOptions::default()
        };
        assert!(try_render(source, &[user("hi")], &reserved).is_err());
        let not_objects = ChatOptions { tools: Some(vec![json!("f")]), ..ChatOptions::default() };
        assert!(try_render(source, &[user("hi")], &not_objects).is_err());
    }

    #[test]
    fn the_final_message_is_continued_where_its_text_ends() {
        let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}!{% endif %}";
        let chat = |end: Json| [user("hi"), ChatMessage::new("assistant", end)];
        assert_eq!(
            try_render(source, &chat(json!("So ")), &continued()).expect("renders"),
            "<user>hi</><assistant>So "
        );
        let trims = source.replace("m.content }}", "m.content | trim }}");
        assert_eq!(try_render(&trims, &chat(json!("So ")), &continued()).expect("renders"), "<user>hi</><assistant>So");
        let parts = json!([{"type": "text", "text": "So"}, {"type": "image"}]);
        let by_part =
            source.replace("{{ m.content }}", "{{ m.content if m.content is string else m.content[0].text }}");
        assert_eq!(try_render(&by_part, &chat(parts), &continued()).expect("renders"), "<user>hi</><assistant>So");

        let both = ChatOptions { add_generation_prompt: Some(true), ..continued() };
        assert!(try_render(source, &chat(json!("So")), &both).is_err());
        assert!(try_render(source, &chat(Json::Null), &continued()).is_err());
        assert!(try_render("{{ messages[0].content }}", &chat(json!("So")), &continued()).is_err());
        assert!(try_render("x", &chat(json!("So")), &continued()).is_err());
    }

    #[test]
    fn a_named_template_is_chosen_by_name_and_by_tools() {
        let sources = [("default", "d"), ("tool_use", "t"), ("rag", "r")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        let templates = ChatTemplates::parse(&sources.into(), &special(), "x".into());
        let render = |options: &ChatOptions| templates.render(&[user("hi")], options).expect("renders");
        let mut options = ChatOptions::default();
        assert_eq!(render(&options), "d");
        options.tools = Some(Vec::new());
        assert_eq!(render(&options), "t");
        options.chat_template = Some("rag".to_owned());
        assert_eq!(render(&options), "r");
        options.chat_template = Some("{{ bos_token }}text".to_owned());
        assert_eq!(render(&options), "<s>text");

        let only = [("rag".to_owned(), "r".to_owned())].into();
        let error = ChatTemplates::parse(&only, &special(), "x".into()).render(&[user("hi")], &ChatOptions::default());
        assert_eq!(error.expect_err("no default").code(), ErrorCode::ChatTemplateNotFound);
    }

    #[test]
    fn raise_exception_says_why_in_few_words() {
        let error = try_render("{{ raise_exception('roles must alternate') }}", &[user("hi")], &ChatOptions::default())
            .expect_err("an error");
        assert_eq!(error.code(), ErrorCode::ChatTemplateFailed);
        assert!(error.to_string().contains("roles must alternate"), "{error}");
        let long = "{{ raise_exception('x' * 10000000) }}";
        let error = try_render(long, &[user("hi")], &ChatOptions::default()).expect_err("an error");
        assert!(error.to_string().len() < 1000, "{}", error.to_string().len());
    }

    #[test]
    fn a_broken_template_fails_only_when_it_is_used() {
        let broken = templates("{% if %}");
        assert!(broken.refused().is_some());
        let error = broken.render(&[user("hi")], &ChatOptions::default()).expect_err("an error");
        assert_eq!(error.code(), ErrorCode::ChatTemplateFailed);
        assert_eq!(error.path(), Some(Path::new("tokenizer_config.json")));
        assert!(templates("{{ messages }}").refused().is_none());
    }

    #[test]
    fn an_empty_chat_is_an_error() {
        assert!(try_render("x", &[], &ChatOptions::default()).is_err());
    }

    #[test]
    fn a_long_chat_is_within_the_budget() {
        let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}";
        let messages: Vec<_> = (0..2000).map(|_| user(&"word ".repeat(1000))).collect();
        assert!(render(source, &messages).len() > 9_000_000);
        let messages: Vec<_> = (0..10_000).map(|i| user(&format!("{i} {}", "word ".repeat(200)))).collect();
        assert!(render(source, &messages).len() > 9_000_000);
    }

    #[test]
    fn the_template_is_found_where_transformers_looks() {
        let dir = tempfile::tempdir().expect("a folder");
        let find = |config: Json| {
            let config = config.as_object().cloned().unwrap_or_default();
            let templates = ChatTemplates::find(dir.path(), &config, &BTreeMap::new())?;
            match templates.is_empty() {
                true => Ok(None),
                false => templates.render(&[user("hi")], &ChatOptions::default()).map(Some),
            }
        };
        assert_eq!(find(json!({})).expect("no error"), None);
        assert_eq!(find(json!({"chat_template": "one"})).expect("no error").as_deref(), Some("one"));
        let list =
            json!({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]});
        assert_eq!(find(list).expect("no error").as_deref(), Some("d"));
        assert!(find(json!({"chat_template": 3})).is_err());

        std::fs::write(dir.path().join("chat_template.json"), r#"{"chat_template": "json"}"#).expect("writes");
        assert_eq!(find(json!({})).expect("no error").as_deref(), Some("json"));
        std::fs::write(dir.path().join("chat_template.jinja"), "jinja\n").expect("writes");
        assert_eq!(find(json!({"chat_template": "one"})).expect("no error").as_deref(), Some("jinja"));
        let more = dir.path().join("additional_chat_templates");
        std::fs::create_dir(&more).expect("a folder");
        std::fs::write(more.join("rag.jinja"), "r").expect("writes");
        assert_eq!(find(json!({"chat_template": "one"})).expect("no error").as_deref(), Some("jinja"));
        std::fs::write(more.join("default.jinja"), "d").expect("writes");
        std::fs::remove_file(dir.path().join("chat_template.jinja")).expect("removes");
        assert_eq!(find(json!({"chat_template": "one"})).expect("no error").as_deref(), Some("d"));
    }
}
