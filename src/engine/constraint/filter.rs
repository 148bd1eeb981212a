//! Filters: code of the caller that chooses the tokens that are allowed.

use std::sync::Arc;

use crate::error::Result;

/// What a filter allows next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterTokens {
    /// The ids that may be chosen; `None` allows all.
    pub allowed: Option<Vec<u32>>,
    /// The ids that end the text, if one of them is chosen.
    pub ending: Vec<u32>,
}

/// Decides which tokens a request may choose. It is asked before each token and told each token, from any thread, never by two
/// threads at once.
pub trait TokenFilter: Send + Sync {
    /// A text begins: nothing was generated yet.
    ///
    /// # Errors
    /// Any; the request ends with it.
    fn begin(&self) -> Result<()>;

    /// What may follow.
    ///
    /// # Errors
    /// Any; the request ends with it.
    fn next(&self) -> Result<FilterTokens>;

    /// A token was chosen.
    ///
    /// # Errors
    /// Any; the request ends with it.
    fn feed(&self, token: u32) -> Result<()>;

    /// Whether [`TokenFilter::next`] may run while the step computes.
    fn in_background(&self) -> bool {
        false
    }
}

/// The filters of a request; a token must be allowed by all of them.
#[derive(Clone, Default)]
pub struct Filters {
    /// In the order in which they are asked.
    pub filters: Vec<Arc<dyn TokenFilter>>,
    /// Whether a token that ends the text is chosen as soon as one is allowed.
    pub prefer_eos: bool,
}

impl PartialEq for Filters {
    /// Filters are equal if they are the same objects.
    fn eq(&self, other: &Self) -> bool {
        self.prefer_eos == other.prefer_eos
            && self.filters.len() == other.filters.len()
            && self.filters.iter().zip(&other.filters).all(|(one, other)| Arc::ptr_eq(one, other))
    }
}

impl std::fmt::Debug for Filters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filters").field("filters", &self.filters.len()).field("prefer_eos", &self.prefer_eos).finish()
    }
}
