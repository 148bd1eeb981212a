//! From the members of a tokenizer.json to its components.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokenizers::{AddedToken, PostProcessorWrapper, SplitDelimiterBehavior, TokenizerImpl};

use super::super::tokenizer_file::TokenizerFile;
use super::bounded_regex::Needle;
use super::components::{Decoder, InnerTokenizer, Normalizer, PreTokenizer};
use super::fault::Fault;
use super::{charsmap, model};

/// Caps on the components beside the model. Public tokenizers have at most about twenty, three levels deep, and the largest
/// holds a table of 300 KB.
const MAX_COMPONENTS: usize = 64;
const MAX_DEPTH: usize = 8;
const MAX_COMPONENT_BYTES: usize = 4 << 20;

/// The longest text that a component may insert into another.
const MAX_INSERTED_BYTES: usize = 1 << 10;

/// How much the pre-tokenizers of a tokenizer may lengthen a text together.
const MAX_GROWTH: usize = 64;

/// Caps on what a post-processor adds.
const MAX_PIECES: usize = 64;
const MAX_PIECE_IDS: usize = 1 << 10;

pub(super) fn tokenizer(file: &TokenizerFile<'_>) -> Result<InnerTokenizer, Fault> {
    if let Some(version) = file.member("version") {
        let version: String = parsed("'version'", version.get())?;
        if version != "1.0" {
            return Err(format!("version '{version}' is unknown").into());
        }
    }
    let Some(stored_model) = file.member("model") else { return Err("it has no 'model'".into()) };
    let mut components = Components::default();
    let mut tokenizer = TokenizerImpl::new(model::read(stored_model.get())?);
    // Padding and truncation are not taken over: a prompt is never cut or filled up silently.
    tokenizer
        .with_normalizer(components.read(file, "normalizer", Components::normalizer)?)
        .map_err(Fault::from)?
        .with_pre_tokenizer(components.read(file, "pre_tokenizer", Components::pre_tokenizer)?)
        .with_post_processor(components.read(file, "post_processor", Components::post_processor)?)
        .with_decoder(components.read(file, "decoder", Components::decoder)?);
    let added = file.added_tokens().map_err(|error| format!("'added_tokens': {error}"))?;
    added.iter().try_for_each(|(id, token)| model::check_id(&token.content, *id))?;
    let added: Vec<AddedToken> = added.into_iter().map(|(_, token)| token).collect();
    model::check_added_tokens(&added)?;
    tokenizer.add_tokens(added)?;
    Ok(tokenizer)
}

/// A post-processor that puts a token before each text.
pub(super) fn begin_texts_with(token: &str, id: Option<u32>) -> Result<PostProcessorWrapper, Fault> {
    let Some(id) = id else { return Err("it is not in the vocabulary".into()) };
    let special = |text: u32| json!({"SpecialToken": {"id": token, "type_id": text}});
    let sequence = |name: &str, text: u32| json!({"Sequence": {"id": name, "type_id": text}});
    let template = json!({
        "type": "TemplateProcessing",
        "single": [special(0), sequence("A", 0)],
        "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}
    });
    serde_json::from_value(template).map_err(|error| error.to_string().into())
}

fn parsed<'a, T: Deserialize<'a>>(what: &str, json: &'a str) -> Result<T, Fault> {
    serde_json::from_str(json).map_err(|error| Fault::from(format!("{what}: {error}")))
}

fn typed<T: DeserializeOwned>(component: Map<String, Value>) -> Result<T, Fault> {
    let name = type_of(&component)?.to_owned();
    serde_json::from_value(Value::Object(component)).map_err(|error| format!("{name}: {error}").into())
}

fn type_of(component: &Map<String, Value>) -> Result<&str, Fault> {
    component.get("type").and_then(Value::as_str).ok_or_else(|| "a component has no 'type'".into())
}

fn inserted(component: &Map<String, Value>, field: &str) -> Result<String, Fault> {
    let text = component.get(field).and_then(Value::as_str);
    let Some(text) = text else { return Err(format!("{} has no '{field}'", type_of(component)?).into()) };
    if text.len() > MAX_INSERTED_BYTES {
        return Err(format!(
            "'{field}' of {} has {} bytes; {MAX_INSERTED_BYTES} are the most",
            type_of(component)?,
            text.len()
        )
        .into());
    }
    Ok(text.to_owned())
}

/// What a `Split` or `Replace` looks for: `{"String": …}` or `{"Regex": …}`.
fn needle(component: &Map<String, Value>) -> Result<Needle, Fault> {
    let pattern = component.get("pattern").and_then(Value::as_object);
    let member = pattern.filter(|pattern| pattern.len() == 1).and_then(|pattern| pattern.iter().next());
    match member.map(|(kind, text)| (kind.as_str(), text.as_str())) {
        Some(("String", Some(text))) => Needle::text(text.to_owned()),
        Some(("Regex", Some(pattern))) => Needle::regex(pattern),
        _ => Err(format!("{} has no 'pattern' that is a String or a Regex", type_of(component)?).into()),
    }
}

fn flag(component: &Map<String, Value>, field: &str) -> Result<bool, Fault> {
    match component.get(field).map(Value::as_bool) {
        Some(Some(flag)) => Ok(flag),
        _ => Err(format!("'{field}' of {} is not a boolean", type_of(component)?).into()),
    }
}

/// Builds the components of one file and counts them.
#[derive(Default)]
struct Components {
    count: usize,
    /// How much the pre-tokenizers so far lengthen a text.
    growth: usize,
    /// Post-processors so far that add ids.
    adding: usize,
}

type Object = Map<String, Value>;

impl Components {
    /// The component of that name; `None` where there is none.
    fn read<T>(
        &mut self,
        file: &TokenizerFile<'_>,
        name: &str,
        build: fn(&mut Self, Object, usize) -> Result<T, Fault>,
    ) -> Result<Option<T>, Fault> {
        let Some(json) = file.member(name).map(|stored| stored.get()) else { return Ok(None) };
        if json.len() > MAX_COMPONENT_BYTES {
            return Err(format!("'{name}' has {} bytes; {MAX_COMPONENT_BYTES} are the most", json.len()).into());
        }
        match parsed(name, json)? {
            Value::Null => Ok(None),
            Value::Object(component) => {
                build(self, component, 0).map(Some).map_err(|fault| format!("{name}: {fault}").into())
            }
            _ => Err(format!("'{name}' is not an object").into()),
        }
    }

    fn count(&mut self, depth: usize) -> Result<(), Fault> {
        self.count += 1;
        if depth > MAX_DEPTH {
            return Err(format!("components are nested more than {MAX_DEPTH} deep").into());
        }
        if self.count > MAX_COMPONENTS {
            return Err(format!("it has more than {MAX_COMPONENTS} components").into());
        }
        Ok(())
    }

    /// The components that a Sequence contains.
    fn steps<T>(
        &mut self,
        mut sequence: Object,
        field: &str,
        depth: usize,
        build: fn(&mut Self, Object, usize) -> Result<T, Fault>,
    ) -> Result<Vec<T>, Fault> {
        let Some(Value::Array(steps)) = sequence.remove(field) else {
            return Err(format!("a Sequence has no list '{field}'").into());
        };
        let mut step = |step| match step {
            Value::Object(step) => build(self, step, depth + 1),
            _ => Err(format!("an element of '{field}' is not an object").into()),
        };
        steps.into_iter().map(&mut step).collect()
    }

    fn normalizer(&mut self, component: Object, depth: usize) -> Result<Normalizer, Fault> {
        self.count(depth)?;
        match type_of(&component)? {
            "Sequence" => Ok(Normalizer::Sequence(self.steps(component, "normalizers", depth, Self::normalizer)?)),
            "Replace" => {
                Ok(Normalizer::Replace { needle: needle(&component)?, content: inserted(&component, "content")? })
            }
            "Prepend" if inserted(&component, "prepend")?.is_empty() => Err("Prepend has nothing to prepend".into()),
            "Precompiled" => {
                charsmap::check(component.get("precompiled_charsmap").and_then(Value::as_str).unwrap_or_default())?;
                Ok(Normalizer::Library(typed(component)?))
            }
            "Bert" | "BertNormalizer" | "Strip" | "StripAccents" | "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase"
            | "Nmt" | "Prepend" | "ByteLevel" => Ok(Normalizer::Library(typed(component)?)),
            unknown => Err(format!("'{unknown}' is not known").into()),
        }
    }

    fn pre_tokenizer(&mut self, component: Object, depth: usize) -> Result<PreTokenizer, Fault> {
        self.count(depth)?;
        match type_of(&component)? {
            "Sequence" => {
                return Ok(PreTokenizer::Sequence(self.steps(
                    component,
                    "pretokenizers",
                    depth,
                    Self::pre_tokenizer,
                )?));
            }
            "Split" => {
                let behavior = component.get("behavior").cloned().unwrap_or_default();
                let behavior: SplitDelimiterBehavior =
                    serde_json::from_value(behavior).map_err(|error| format!("'behavior' of Split: {error}"))?;
                let (needle, invert) = (needle(&component)?, flag(&component, "invert")?);
                return Ok(PreTokenizer::Split { needle, behavior, invert });
            }
            "FixedLength" if component.get("length").is_some_and(|length| length.as_u64() == Some(0)) => {
                return Err("FixedLength has the length 0".into());
            }
            // Each byte, and a space, becomes a character of up to two or three bytes.
            "ByteLevel" => self.lengthen(2)?,
            "Metaspace" => self.lengthen(4)?,
            "BertPreTokenizer" | "CharDelimiterSplit" | "Delimiter" | "Digits" | "FixedLength" | "Punctuation"
            | "UnicodeScripts" | "Whitespace" | "WhitespaceSplit" => {}
            unknown => return Err(format!("'{unknown}' is not known").into()),
        }
        Ok(PreTokenizer::Library(typed(component)?))
    }

    fn lengthen(&mut self, factor: usize) -> Result<(), Fault> {
        self.growth = self.growth.max(1) * factor;
        if self.growth > MAX_GROWTH { Err("the pre-tokenizers lengthen a text too much".into()) } else { Ok(()) }
    }

    fn post_processor(&mut self, component: Object, depth: usize) -> Result<PostProcessorWrapper, Fault> {
        self.count(depth)?;
        match type_of(&component)? {
            "Sequence" => {
                let steps = self.steps(component, "processors", depth, Self::post_processor)?;
                return Ok(PostProcessorWrapper::Sequence(tokenizers::processors::sequence::Sequence::new(steps)));
            }
            "TemplateProcessing" => check_template(&component)?,
            "BertProcessing" | "RobertaProcessing" => {}
            "ByteLevel" => return typed(component),
            unknown => return Err(format!("'{unknown}' is not known").into()),
        }
        self.adding += 1;
        if self.adding > 1 {
            return Err("more than one post-processor adds tokens".into());
        }
        typed(component)
    }

    fn decoder(&mut self, component: Object, depth: usize) -> Result<Decoder, Fault> {
        self.count(depth)?;
        match type_of(&component)? {
            "Sequence" => Ok(Decoder::Sequence(self.steps(component, "decoders", depth, Self::decoder)?)),
            "Replace" => {
                Ok(Decoder::Replace { needle: needle(&component)?, content: inserted(&component, "content")? })
            }
            "BPEDecoder" | "ByteLevel" | "WordPiece" | "Metaspace" | "CTC" | "Fuse" | "Strip" | "ByteFallback" => {
                Ok(Decoder::Library(typed(component)?))
            }
            unknown => Err(format!("'{unknown}' is not known").into()),
        }
    }
}

/// Refuses a template that the library would fail on, or that makes many texts of one.
fn check_template(component: &Object) -> Result<(), Fault> {
    let ids_of = |token: &str| -> Result<usize, Fault> {
        let stored = component.get("special_tokens").and_then(|tokens| tokens.get(token));
        let length = |field: &str| Some(stored?.get(field)?.as_array()?.len());
        match (length("ids"), length("tokens")) {
            (Some(ids), Some(tokens)) if ids == tokens && ids <= MAX_PIECE_IDS => Ok(ids),
            (Some(ids), Some(_)) => {
                Err(format!("'{token}' of TemplateProcessing has {ids} ids that do not fit").into())
            }
            _ => Err(format!("'{token}' of TemplateProcessing is not among its special tokens").into()),
        }
    };
    for template in ["single", "pair"] {
        let pieces = component.get(template).and_then(Value::as_array);
        let Some(pieces) = pieces.filter(|pieces| pieces.len() <= MAX_PIECES) else {
            return Err(
                format!("'{template}' of TemplateProcessing is not a list of at most {MAX_PIECES} pieces").into()
            );
        };
        let (mut texts, mut ids) = (0, 0);
        for piece in pieces {
            if let Some(token) = piece.pointer("/SpecialToken/id").and_then(Value::as_str) {
                ids += ids_of(token)?;
            } else if template == "single" && piece.pointer("/Sequence/id").is_some_and(|id| id != "A") {
                return Err("'single' of TemplateProcessing uses a second text".into());
            } else {
                texts += 1;
            }
        }
        if ids > MAX_PIECE_IDS || texts > 2 {
            return Err(format!("'{template}' of TemplateProcessing adds too much to a text").into());
        }
    }
    Ok(())
}
