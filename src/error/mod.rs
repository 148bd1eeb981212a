//! Errors: a stable code, what is wrong, where, what was expected and found, and what to do about it.
//!
//! Once released, a code never changes: scripts and servers match on it. The message may improve. Every failure that
//! reaches a user, in Rust, on the command line or in Python, is an [`Error`] built and rendered here.
//!
//! ```
//! use exlora::{Error, ErrorCode};
//!
//! let error = Error::new(ErrorCode::AdapterShapeMismatch, "a tensor has the wrong shape")
//!     .with_subject("adapter 'sql'")
//!     .with_tensor("base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight")
//!     .with_expected("[4096, 16]")
//!     .with_found("[4096, 8]")
//!     .with_hint("r = 16 in adapter_config.json; a rank_pattern would have to name this module");
//! assert_eq!(error.code().as_str(), "adapter_shape_mismatch");
//! assert!(error.to_string().contains("expected [4096, 16], found [4096, 8]"));
//! ```

#[cfg(feature = "server")]
mod client_view;
mod codes;
mod printable;

use std::fmt;
use std::path::{Path, PathBuf};

pub use self::codes::{ErrorCode, ErrorKind};
use self::printable::bounded;
pub(crate) use self::printable::printable;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How many further problems are rendered; all of them are in [`Error::others`].
const MAX_OTHERS: usize = 200;

/// What went wrong, where, and what to do. Cheap to move; rendered by `Display`.
///
/// Parts that come from a file or request are cut where they are very long, and escaped where they are rendered: no tensor
/// name forges a line of a log.
#[derive(Clone, PartialEq)]
pub struct Error(Box<Details>);

#[derive(Clone, PartialEq)]
struct Details {
    code: ErrorCode,
    message: String,
    setting: Option<String>,
    subject: Option<String>,
    path: Option<PathBuf>,
    tensor: Option<String>,
    expected: Option<String>,
    found: Option<String>,
    hint: Option<String>,
    others: Vec<Error>,
}

impl Error {
    /// An error with this code; `message` is a clause without a period.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Box::new(Details {
            code,
            message: bounded(message.into()),
            setting: None,
            subject: None,
            path: None,
            tensor: None,
            expected: None,
            found: None,
            hint: None,
            others: Vec::new(),
        }))
    }

    /// The same under another code.
    pub(crate) fn with_code(mut self, code: ErrorCode) -> Self {
        self.0.code = code;
        self
    }

    /// Sets the field of a request or the option that is wrong, by its name or its path (`stop[1]`), unless it is set. A message
    /// that names it begins with it.
    pub fn with_setting(mut self, path: impl Into<String>) -> Self {
        self.0.setting.get_or_insert_with(|| bounded(path.into()));
        self
    }

    /// Sets what the error is about: `adapter 'sql'`, `request 3`. A later subject replaces an earlier one, also in the
    /// further problems joined to this one.
    pub fn with_subject(mut self, subject: impl Into<String>) -> Self {
        let subject = bounded(subject.into());
        let others = std::mem::take(&mut self.0.others);
        self.0.others = others.into_iter().map(|other| other.with_subject(subject.as_str())).collect();
        self.0.subject = Some(subject);
        self
    }

    /// Sets the file or folder, unless it is set.
    pub fn with_path(mut self, path: impl AsRef<Path>) -> Self {
        self.0.path.get_or_insert_with(|| path.as_ref().to_path_buf());
        self
    }

    /// Sets the tensor, by its full name in the file, unless it is set.
    pub fn with_tensor(mut self, tensor: impl Into<String>) -> Self {
        self.0.tensor.get_or_insert_with(|| bounded(tensor.into()));
        self
    }

    /// Sets what was expected.
    pub fn with_expected(mut self, expected: impl fmt::Display) -> Self {
        self.0.expected = Some(bounded(expected.to_string()));
        self
    }

    /// Sets what was found instead.
    pub fn with_found(mut self, found: impl fmt::Display) -> Self {
        self.0.found = Some(bounded(found.to_string()));
        self
    }

    /// Sets what to do about it, in place of the code's usual remedy.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(bounded(hint.into()));
        self
    }

    /// Notes that there were `count` more such problems, which are not listed.
    pub(crate) fn and_more(mut self, count: usize) -> Self {
        self.0.message.push_str(&format!(" (and {count} more like it)"));
        self
    }

    /// Joins problems found together: the first one carries the others. `None` for an empty list.
    pub fn all(problems: Vec<Error>) -> Option<Self> {
        let mut problems = problems.into_iter();
        let mut first = problems.next()?;
        first.0.others.extend(problems);
        Some(first)
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        self.0.code
    }

    /// The clause that says what is wrong.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The path of the field of a request or the option that is wrong, if it is one.
    pub fn setting(&self) -> Option<&str> {
        self.0.setting.as_deref()
    }

    /// The file or folder, if there is one.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The tensor's name, if there is one.
    pub fn tensor(&self) -> Option<&str> {
        self.0.tensor.as_deref()
    }

    /// What was expected, if known.
    pub fn expected(&self) -> Option<&str> {
        self.0.expected.as_deref()
    }

    /// What was found, if known.
    pub fn found(&self) -> Option<&str> {
        self.0.found.as_deref()
    }

    /// What to do: the error's own hint, else the code's usual remedy.
    pub fn remedy(&self) -> &str {
        self.0.hint.as_deref().unwrap_or(self.0.code.remedy())
    }

    /// Further problems found at the same time.
    pub fn others(&self) -> &[Error] {
        &self.0.others
    }

    /// Splits what [`Error::all`] joined: this problem, then each further one.
    pub fn into_list(mut self) -> Vec<Error> {
        let others = std::mem::take(&mut self.0.others);
        std::iter::once(self).chain(others).collect()
    }
}

impl fmt::Display for Error {
    /// `adapter 'sql': a tensor has the wrong shape: tensor 'T' in FILE: expected E, found F. Remedy. [code]`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let d = &*self.0;
        if let Some(subject) = &d.subject {
            write!(f, "{}: ", printable(subject))?;
        }
        write!(f, "{}", printable(&d.message))?;
        match (&d.tensor, &d.path) {
            (Some(tensor), Some(path)) => {
                write!(f, ": tensor '{}' in {}", printable(tensor), printable(&path.display().to_string()))?;
            }
            (Some(tensor), None) => write!(f, ": tensor '{}'", printable(tensor))?,
            (None, Some(path)) => write!(f, ": {}", printable(&path.display().to_string()))?,
            (None, None) => {}
        }
        match (&d.expected, &d.found) {
            (Some(expected), Some(found)) => {
                write!(f, ": expected {}, found {}", printable(expected), printable(found))?;
            }
            (Some(expected), None) => write!(f, ": expected {}", printable(expected))?,
            (None, Some(found)) => write!(f, ": found {}", printable(found))?,
            (None, None) => {}
        }
        let remedy = self.remedy();
        if !remedy.is_empty() {
            write!(f, " ({})", printable(remedy))?;
        }
        write!(f, " [{}]", d.code.as_str())?;
        for other in d.others.iter().take(MAX_OTHERS) {
            write!(f, "\n  also: {other}")?;
        }
        match d.others.len().saturating_sub(MAX_OTHERS) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

impl serde::Serialize for Error {
    /// Every part by name, `null` if absent.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;

        let d = &*self.0;
        let mut parts = serializer.serialize_struct("Error", 10)?;
        parts.serialize_field("code", d.code.as_str())?;
        parts.serialize_field("message", &d.message)?;
        parts.serialize_field("setting", &d.setting)?;
        parts.serialize_field("subject", &d.subject)?;
        parts.serialize_field("path", &d.path.as_deref().map(Path::to_string_lossy))?;
        parts.serialize_field("tensor", &d.tensor)?;
        parts.serialize_field("expected", &d.expected)?;
        parts.serialize_field("found", &d.found)?;
        parts.serialize_field("hint", self.remedy())?;
        parts.serialize_field("others", &d.others)?;
        parts.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_every_part_by_name() {
        let error =
            Error::new(ErrorCode::AdapterRankMismatch, "ranks differ").with_tensor("t").with_path("a/b").with_found(8);
        assert_eq!(
            serde_json::to_value(&error).expect("serializes"),
            serde_json::json!({
                "code": "adapter_rank_mismatch", "message": "ranks differ", "setting": null, "subject": null, "path": "a/b",
                "tensor": "t", "expected": null, "found": "8", "hint": "adapter_config.json and the weights come from different training runs",
                "others": []
            })
        );
    }

    #[test]
    fn control_characters_of_a_file_are_escaped() {
        let error =
            Error::new(ErrorCode::AdapterTensorUnexpected, "a tensor is unknown").with_tensor("a\nroot: \x1b[31mb");
        assert!(!error.to_string().contains('\n'));
        assert!(error.to_string().contains("a\\nroot: \\u{1b}[31mb"));
    }

    #[test]
    fn the_first_problem_carries_the_others() {
        let problem = |n: usize| Error::new(ErrorCode::AdapterTensorMissing, format!("problem {n}"));
        let all = Error::all(vec![problem(1), problem(2), problem(3)]).expect("not empty");
        assert_eq!(all.others().len(), 2);
        assert!(all.to_string().contains("also: problem 3"));
        assert_eq!(all.into_list(), vec![problem(1), problem(2), problem(3)]);
        assert!(Error::all(Vec::new()).is_none());
    }
}
