//! What a client calls the settings of its request, where that is not what they are called here.

use crate::error::Error;

/// The fields that a client has set, by the names of the settings that they set.
#[derive(Clone, Debug, Default)]
pub struct ClientNames {
    names: Vec<(&'static str, String)>,
}

impl ClientNames {
    /// Notes that a setting was given by this field, `max_tokens` or `structured_outputs.regex`.
    pub fn add(&mut self, setting: &'static str, field: impl Into<String>) {
        self.names.push((setting, field.into()));
    }

    /// The field that a setting was given by, if it is called otherwise.
    pub fn field_of(&self, setting: &str) -> Option<&str> {
        self.names.iter().find(|(known, _)| *known == setting).map(|(_, field)| field.as_str())
    }

    /// An error in the words of the client.
    pub fn error(&self, error: Error) -> Error {
        error.with_settings_called(&|setting| self.field_of(setting).map(str::to_owned))
    }
}
