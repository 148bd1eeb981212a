//! A result or an error of a request as a line of JSON.

use serde::Serialize;
use serde_json::Value;

use crate::engine::Completion;
use crate::error::Error;

/// One line: what tells the request apart, if it is one of a batch, and the names and values of Python's
/// `Completion.to_dict()`, or `error`.
#[derive(Serialize)]
pub(super) struct ResultLine<'a> {
    #[serde(flatten)]
    request: Option<&'a RequestKeys>,
    #[serde(flatten)]
    completion: Option<&'a Completion>,
    #[serde(flatten)]
    failure: Option<Failure<'a>>,
}

#[derive(Serialize)]
struct Failure<'a> {
    sample: usize,
    error: &'a Error,
}

/// The place of a request in the input, and the caller's own id by the name that it was given.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct RequestKeys {
    /// Number of requests before it.
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom_id: Option<Value>,
}

impl<'a> ResultLine<'a> {
    /// The result of a request that is alone.
    pub(super) fn new(completion: &'a Completion) -> Self {
        Self { request: None, completion: Some(completion), failure: None }
    }

    /// The result of a sample of a request in a batch.
    pub(super) fn of(request: &'a RequestKeys, sample: usize, result: Result<&'a Completion, &'a Error>) -> Self {
        let failure = result.err().map(|error| Failure { sample, error });
        Self { request: Some(request), completion: result.ok(), failure }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    #[test]
    fn a_line_names_its_request_and_has_the_fields_of_a_completion_or_an_error() {
        let done = Completion::unfinished(vec![("sql".into(), 1.0)], 0);
        let completion = serde_json::to_string(&done).expect("serializes");
        assert_eq!(serde_json::to_string(&ResultLine::new(&done)).expect("serializes"), completion);
        let keys = RequestKeys { index: 2, id: None, custom_id: Some("a".into()) };
        assert_eq!(
            serde_json::to_string(&ResultLine::of(&keys, 0, Ok(&done))).expect("serializes"),
            format!(r#"{{"index":2,"custom_id":"a",{}"#, &completion[1..])
        );
        let error = Error::new(ErrorCode::PromptEmpty, "the prompt has no tokens");
        let line = serde_json::to_value(ResultLine::of(&keys, 1, Err(&error))).expect("serializes");
        assert_eq!(
            (&line["index"], &line["sample"], &line["error"]["code"]),
            (&2.into(), &1.into(), &"prompt_empty".into())
        );
        assert!(line.get("text").is_none(), "{line}");
    }
}
