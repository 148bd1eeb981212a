//! The tools of a request, and whether the model may, must or must not call them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use utoipa::ToSchema;

use crate::error::{Error, ErrorCode, Result};

/// Most tools of a request, as at OpenAI.
const MAX_TOOLS: usize = 128;

/// Longest name of a function, as at OpenAI.
const MAX_NAME: usize = 64;

/// A tool that the model may call.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Its kind: `function`.
    pub r#type: ToolType,
    /// The function.
    pub function: Function,
}

/// A kind of tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolType {
    /// A function of the client.
    Function,
}

/// A function that the client computes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Function {
    /// Up to 64 letters, digits, underscores and dashes.
    pub name: String,
    /// What it does, for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A JSON schema of the object of its arguments. Without one it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Map<String, Json>>,
    /// Whether arguments are always valid under the schema, also where the model chooses to call.
    #[serde(default, skip_serializing)]
    pub strict: Option<bool>,
}

impl Function {
    /// The JSON schema of its arguments, which is that of an object.
    pub fn schema(&self) -> Map<String, Json> {
        let mut schema = self.parameters.clone().unwrap_or_default();
        if schema.is_empty() {
            schema.insert("additionalProperties".to_owned(), self.parameters.is_some().into());
        }
        schema.entry("type").or_insert_with(|| "object".into());
        schema
    }

    /// The function as chat templates get it, in OpenAI's form.
    pub fn for_template(&self) -> Json {
        serde_json::json!({"type": "function", "function": self})
    }

    fn check(&self) -> Result<()> {
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if self.name.is_empty() || self.name.len() > MAX_NAME || !self.name.chars().all(is_of_name) {
            return Err(invalid("the name of a function is invalid")
                .with_expected(format!("1 to {MAX_NAME} letters, digits, underscores and dashes"))
                .with_found(self.name.escape_debug()));
        }
        let schema_type = self.parameters.as_ref().and_then(|schema| schema.get("type"));
        if schema_type.is_some_and(|of| of != "object") {
            return Err(invalid(format!("the parameters of {} are no object", self.name))
                .with_expected("a JSON schema with \"type\": \"object\""));
        }
        Ok(())
    }
}

/// Checks the functions of a request.
///
/// # Errors
/// `request_invalid`: too many, a name that is not one, a name twice, or parameters that are no object.
pub fn check_functions(functions: &[Function]) -> Result<()> {
    if functions.len() > MAX_TOOLS {
        return Err(invalid("there are too many tools").with_expected(MAX_TOOLS).with_found(functions.len()));
    }
    for (i, function) in functions.iter().enumerate() {
        function.check()?;
        if functions[..i].iter().any(|other| other.name == function.name) {
            return Err(invalid(format!("two functions are called {}", function.name)));
        }
    }
    Ok(())
}

/// Whether the model calls tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// It does not; the prompt does not mention them.
    None,
    /// It decides.
    Auto,
    /// It calls one or more.
    Required,
    /// It calls this one, once.
    Function(String),
}

impl ToolChoice {
    /// Reads `tool_choice`: `none`, `auto`, `required`, or an object that names a function, which is that of chat
    /// (`{"type", "function": {"name"}}`) or of responses (`{"type", "name"}`). By default the model decides if there are tools.
    ///
    /// # Errors
    /// `request_invalid`: it is none of them, there are no tools, or no such function.
    pub fn parse(choice: Option<&Json>, functions: &[Function]) -> Result<Self> {
        let choice = match choice {
            None | Some(Json::Null) if functions.is_empty() => return Ok(Self::None),
            None | Some(Json::Null) => return Ok(Self::Auto),
            Some(choice) => choice,
        };
        let name = |choice: &Json| choice.get("name")?.as_str().map(str::to_owned);
        let parsed = match choice {
            Json::String(word) => match word.as_str() {
                "none" => Some(Self::None),
                "auto" => Some(Self::Auto),
                "required" => Some(Self::Required),
                _ => None,
            },
            Json::Object(fields) if fields.get("type").is_some_and(|of| of == "function") => {
                name(fields.get("function").unwrap_or(choice)).map(Self::Function)
            }
            _ => None,
        };
        let expected = "none, auto, required, or an object that names a function";
        let parsed = parsed.ok_or_else(|| {
            let found = choice.as_str().map_or_else(|| choice.to_string(), str::to_owned);
            invalid("tool_choice is not supported").with_expected(expected).with_found(shortened(&found))
        })?;
        match &parsed {
            Self::None => Ok(parsed),
            _ if functions.is_empty() => Err(invalid("there is a tool_choice and no tools")),
            Self::Function(name) if functions.iter().all(|function| function.name != *name) => {
                let what = "tool_choice names a function that is not one of the tools";
                Err(invalid(what).with_found(shortened(&name.escape_debug().to_string())))
            }
            _ => Ok(parsed),
        }
    }
}

/// The beginning of a text of the client's, for a message.
fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorCode::RequestInvalid, what)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn function(name: &str) -> Function {
        Function { name: name.to_owned(), ..Function::default() }
    }

    #[test]
    fn functions_have_names_of_their_own_and_take_objects() {
        assert!(check_functions(&[function("get_weather"), function("a-1")]).is_ok());
        for names in [&["a", "a"][..], &[""], &["a b"], &["a\"b"], &["ä"], &["x".repeat(65).as_str()], &["a\nb"]] {
            let functions: Vec<Function> = names.iter().map(|name| function(name)).collect();
            let error = check_functions(&functions).expect_err("refused");
            assert_eq!(error.code(), ErrorCode::RequestInvalid);
        }
        let many: Vec<Function> = (0..=MAX_TOOLS).map(|i| function(&i.to_string())).collect();
        assert!(check_functions(&many).is_err());
        let list = json!({"type": "array"}).as_object().cloned();
        assert!(check_functions(&[Function { parameters: list, ..function("f") }]).is_err());
    }

    #[test]
    fn a_schema_is_that_of_an_object() {
        let schema = |parameters: Json| {
            Json::Object(Function { parameters: parameters.as_object().cloned(), ..function("f") }.schema())
        };
        assert_eq!(schema(Json::Null), json!({"additionalProperties": false, "type": "object"}));
        assert_eq!(schema(json!({})), json!({"additionalProperties": true, "type": "object"}));
        assert_eq!(schema(json!({"properties": {}})), json!({"properties": {}, "type": "object"}));
    }

    #[test]
    fn templates_get_openais_form() {
        let tool = json!({"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}});
        let mut with_strict = tool.clone();
        with_strict["function"]["strict"] = true.into();
        let parsed: Tool = serde_json::from_value(with_strict).expect("a tool");
        assert_eq!(parsed.function.for_template(), tool);
        assert_eq!(function("f").for_template(), json!({"type": "function", "function": {"name": "f"}}));
    }

    #[test]
    fn a_choice_is_a_word_or_names_a_function() {
        let functions = [function("f")];
        let parse = |choice: Json| ToolChoice::parse(Some(&choice), &functions);
        let named = ToolChoice::Function("f".to_owned());
        for (choice, expected) in [
            (json!("none"), ToolChoice::None),
            (json!("auto"), ToolChoice::Auto),
            (json!(null), ToolChoice::Auto),
            (json!("required"), ToolChoice::Required),
            (json!({"type": "function", "function": {"name": "f"}}), named.clone()),
            (json!({"type": "function", "name": "f"}), named),
        ] {
            assert_eq!(parse(choice).expect("understood"), expected);
        }
        for choice in
            [json!("any"), json!(3), json!({"type": "custom"}), json!({"type": "function", "function": {"name": "g"}})]
        {
            assert_eq!(parse(choice).expect_err("refused").code(), ErrorCode::RequestInvalid);
        }
        assert_eq!(ToolChoice::parse(None, &[]).expect("none"), ToolChoice::None);
        assert!(ToolChoice::parse(Some(&json!("auto")), &[]).is_err());
        assert_eq!(ToolChoice::parse(Some(&json!("none")), &[]).expect("none"), ToolChoice::None);
    }
}
