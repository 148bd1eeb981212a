//! The special and added tokens of a folder, collected from all the files that transformers reads them from.
//!
//! Source: `PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__` of transformers 5.23. Later files win:
//! tokenizer.json, then `added_tokens_decoder` of tokenizer_config.json; only where that is missing, added_tokens.json and
//! special_tokens_map.json. Named tokens (`eos_token`) and extra ones that no file declares are added as special tokens.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::files::{invalid, read_object};
use crate::error::Result;

/// Names of special tokens that every tokenizer may have, in the order in which transformers adds them.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The special and added tokens of a folder.
#[derive(Debug, Default)]
pub(super) struct SpecialTokens {
    /// By name (`eos_token`), names of its own included.
    named: Map<String, Value>,
    extra: Vec<Token>,
    /// Tokens with the ids that the files give them. The ids only order them: the vocabulary assigns its own.
    by_id: BTreeMap<i64, AddedToken>,
}

/// A token as a file writes it: its text alone, or with its flags.
#[derive(Clone, Debug, PartialEq)]
enum Token {
    Text(String),
    Added(AddedToken),
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Text(text) => text,
            Token::Added(token) => &token.content,
        }
    }

    /// A token that a file names as a special one.
    fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Token::Text(text.clone())),
            Value::Object(fields) => Some(Token::Added(added_token(fields, true)?)),
            _ => None,
        }
    }
}

/// A serialized `AddedToken`; flags that are missing have transformers' defaults. `None` if a field has a wrong type.
fn added_token(fields: &Map<String, Value>, special: bool) -> Option<AddedToken> {
    let flag = |name: &str, default: bool| match fields.get(name) {
        None => Some(default),
        Some(value) => value.as_bool(),
    };
    let special = flag("special", special)?;
    Some(
        AddedToken::from(fields.get("content")?.as_str()?, special)
            .single_word(flag("single_word", false)?)
            .lstrip(flag("lstrip", false)?)
            .rstrip(flag("rstrip", false)?)
            .normalized(flag("normalized", !special)?),
    )
}

impl SpecialTokens {
    /// Collects the tokens of a folder. `in_tokenizer_json` are the added tokens of tokenizer.json with their ids, and
    /// `defaults` the named tokens where tokenizer_config.json does not mention them.
    ///
    /// # Errors
    /// `tokenizer_invalid`: a token is neither a string nor an object with `content` and flags.
    pub fn read(
        dir: &Path,
        config: &Map<String, Value>,
        in_tokenizer_json: impl IntoIterator<Item = (u32, AddedToken)>,
        defaults: &[(&str, &str)],
    ) -> Result<Self> {
        let config_path = dir.join("tokenizer_config.json");
        let mut fields = config.clone();
        use_one_name_for_extra(&mut fields);
        let mut tokens = Self::default();
        let mut own = take_own_names(&mut fields, Value::is_string);
        own.extend(take_named_extra(&mut fields));
        match config.get("added_tokens_decoder") {
            Some(declared) => tokens.read_added_tokens_decoder(declared, &config_path)?,
            None => {
                read_special_tokens_map(&dir.join("special_tokens_map.json"), &mut fields)?;
                own.extend(take_named_extra(&mut fields));
                tokens.read_added_tokens(&dir.join("added_tokens.json"), &fields)?;
                tokens.by_id.extend(in_tokenizer_json.into_iter().map(|(id, token)| (i64::from(id), token)));
            }
        }
        for (name, default) in defaults {
            fields.entry(*name).or_insert_with(|| Value::from(*default));
        }
        for name in NAMED {
            if let Some(value) = fields.get(name).filter(|value| !value.is_null()) {
                tokens.named.insert(name.to_owned(), value.clone());
            }
        }
        let is_token =
            |value: &Value| value.is_string() || value.get("__type").is_some_and(|kind| kind == "AddedToken");
        tokens.named.extend(take_own_names(&mut fields, is_token));
        tokens.named.extend(own);
        let not_a_token = |name: &str| {
            invalid(format!("{name} is not a token"), &config_path)
                .with_expected("a string, or an object with a content and flags")
        };
        if let Some((name, _)) = tokens.named.iter().find(|(_, value)| Token::parse(value).is_none()) {
            return Err(not_a_token(name));
        }
        if let Some(Value::Array(extra)) = fields.get("extra_special_tokens") {
            let parse = |value| Token::parse(value).ok_or_else(|| not_a_token("an element of extra_special_tokens"));
            tokens.extra = extra.iter().map(parse).collect::<Result<_>>()?;
        }
        Ok(tokens)
    }

    /// The named tokens' texts.
    pub fn names(&self) -> BTreeMap<String, String> {
        let text = |value| Token::parse(value).map(|token| token.text().to_owned());
        self.named.iter().filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect()
    }

    /// All special tokens, named and extra ones, with the flags of an ordinary special token.
    pub fn all(&self) -> Vec<AddedToken> {
        let named = self.named.values().filter_map(Token::parse);
        named.chain(self.extra.iter().cloned()).map(|token| AddedToken::from(token.text(), true)).collect()
    }

    /// The tokens to add to a vocabulary whose added tokens have these texts, in order.
    pub fn to_add(&self, present: &HashSet<String>) -> Vec<AddedToken> {
        let mut tokens: Vec<Token> = self.by_id.values().cloned().map(Token::Added).collect();
        let declared: HashSet<&str> = self.by_id.values().map(|token| token.content.as_str()).collect();
        let named: Vec<Token> = self.named.values().filter_map(Token::parse).collect();
        for token in named.iter().chain(&self.extra) {
            if !present.contains(token.text()) && !declared.contains(token.text()) && !tokens.contains(token) {
                tokens.push(token.clone());
            }
        }
        let as_added = |token| match token {
            Token::Text(text) => AddedToken::from(text, true),
            Token::Added(token) => {
                let special = token.special || named.iter().any(|named| named.text() == token.content);
                token.special(special)
            }
        };
        tokens.into_iter().map(as_added).collect()
    }

    fn read_added_tokens_decoder(&mut self, declared: &Value, path: &Path) -> Result<()> {
        let parse = |(id, token): (&String, &Value)| {
            let id = id.trim().parse().ok()?;
            Some((id, added_token(token.as_object()?, false)?))
        };
        let malformed = || {
            invalid("added_tokens_decoder cannot be understood", path)
                .with_expected("an object of token ids with serialized tokens")
        };
        let declared = declared.as_object().ok_or_else(malformed)?;
        for entry in declared {
            let (id, token) = parse(entry).ok_or_else(malformed)?;
            self.by_id.insert(id, token);
        }
        Ok(())
    }

    /// added_tokens.json: ids by token text. Those that are also named or extra tokens are special.
    fn read_added_tokens(&mut self, path: &Path, fields: &Map<String, Value>) -> Result<()> {
        let named = NAMED.iter().filter_map(|&name| Token::parse(fields.get(name)?));
        let extra = fields.get("extra_special_tokens").and_then(Value::as_array);
        let extra = extra.into_iter().flatten().filter_map(Token::parse);
        let special: HashSet<String> = named.chain(extra).map(|token| token.text().to_owned()).collect();
        for (text, id) in read_object(path)? {
            let id = id.as_i64().ok_or_else(|| {
                invalid("an added token has no id", path).with_expected("an integer").with_found(format!("{id}"))
            })?;
            let is_special = special.contains(&text);
            self.by_id.insert(id, AddedToken::from(text, is_special));
        }
        Ok(())
    }
}

/// `additional_special_tokens` is the old name of `extra_special_tokens`, which wins unless it is empty.
fn use_one_name_for_extra(fields: &mut Map<String, Value>) {
    let is_empty = match fields.get("extra_special_tokens") {
        None | Some(Value::Null) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(named)) => named.is_empty(),
        Some(_) => false,
    };
    if is_empty && let Some(additional) = fields.shift_remove("additional_special_tokens") {
        fields.insert("extra_special_tokens".to_owned(), additional);
    }
}

/// Takes out tokens under names of the tokenizer's own, such as `image_token`.
fn take_own_names(fields: &mut Map<String, Value>, is_token: impl Fn(&Value) -> bool) -> Map<String, Value> {
    let is_own = |name: &str| name.ends_with("_token") && !NAMED.contains(&name);
    let own = fields.iter().filter(|(name, value)| is_own(name) && is_token(value));
    let names: Vec<String> = own.map(|(name, _)| name.clone()).collect();
    names.into_iter().filter_map(|name| fields.shift_remove_entry(&name)).collect()
}

/// Takes out `extra_special_tokens` if they have names.
fn take_named_extra(fields: &mut Map<String, Value>) -> Map<String, Value> {
    match fields.get_mut("extra_special_tokens") {
        Some(Value::Object(named)) => {
            let named = std::mem::take(named);
            fields.shift_remove("extra_special_tokens");
            named
        }
        _ => Map::new(),
    }
}

/// special_tokens_map.json overrides tokenizer_config.json, and its tokens are special whatever it says.
fn read_special_tokens_map(path: &Path, fields: &mut Map<String, Value>) -> Result<()> {
    for (name, mut value) in read_object(path)? {
        if name == "extra_special_tokens" {
            if let (Value::Array(list), Some(Value::Array(known))) = (&mut value, fields.get("extra_special_tokens")) {
                let new = list.iter().filter(|token| !known.contains(token)).cloned();
                *list = known.iter().cloned().chain(new.collect::<Vec<_>>()).collect();
            }
        } else if let Value::Object(token) = &mut value {
            token.insert("special".to_owned(), true.into());
            token.insert("__type".to_owned(), "AddedToken".into());
        }
        fields.insert(name, value);
    }
    use_one_name_for_extra(fields);
    Ok(())
}
