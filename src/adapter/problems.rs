//! Collects problems, so that one error reports everything that is wrong with an adapter.

use std::collections::BTreeMap;

use crate::error::{Error, ErrorCode, Result};

/// The problems found so far, in the order in which they were found.
///
/// Problems are of one kind if they have the same code and the same message, except for the names in it. A file that was saved
/// wrongly has the same problem in each of its tensors: of a kind that occurs often, one is shown, with the number of others.
pub(super) struct Problems {
    subject: String,
    list: Vec<Error>,
    /// Of each kind, the index of its first problem in the list and the number of all.
    kinds: BTreeMap<(&'static str, String), (usize, usize)>,
    /// Problems of further kinds: the code of the first and their number.
    overflow: Option<(ErrorCode, usize)>,
    count: usize,
}

impl Problems {
    /// Most problems of one kind that are shown one by one.
    const MAX_OF_KIND: usize = 8;
    /// Most kinds.
    const MAX_KINDS: usize = 100;

    pub(super) fn new(subject: &str) -> Self {
        Self { subject: subject.to_owned(), list: Vec::new(), kinds: BTreeMap::new(), overflow: None, count: 0 }
    }

    pub(super) fn push(&mut self, error: Error) {
        self.count += 1;
        let (kind, kinds) = (kind_of(&error), self.kinds.len());
        match self.kinds.get_mut(&kind) {
            Some((_, count)) if *count >= Self::MAX_OF_KIND => *count += 1,
            Some((_, count)) => {
                *count += 1;
                self.list.push(error);
            }
            None if kinds < Self::MAX_KINDS => {
                self.kinds.insert(kind, (self.list.len(), 1));
                self.list.push(error);
            }
            None => self.overflow.get_or_insert((error.code(), 0)).1 += 1,
        }
    }

    /// Number of problems.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// One error with everything that was found.
    pub(super) fn finish(self) -> Result<()> {
        let mut shown = Vec::new();
        for (index, error) in self.list.into_iter().enumerate() {
            match self.kinds.get(&kind_of(&error)) {
                Some(&(first, count)) if count > Self::MAX_OF_KIND => {
                    shown.extend((index == first).then(|| error.and_more(count - 1)));
                }
                _ => shown.push(error),
            }
        }
        if let Some((code, count)) = self.overflow {
            shown.push(Error::new(code, format!("{count} further problems")).with_hint(""));
        }
        let shown = shown.into_iter().map(|error| error.with_subject(&self.subject)).collect();
        Error::all(shown).map_or(Ok(()), Err)
    }
}

/// The code, and the message without what is quoted in it: the names of modules and tensors.
fn kind_of(error: &Error) -> (&'static str, String) {
    (error.code().as_str(), error.message().split('\'').step_by(2).collect::<Vec<_>>().join("''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(problems: Problems) -> Vec<String> {
        problems.finish().expect_err("problems").into_list().iter().map(|error| error.message().to_owned()).collect()
    }

    #[test]
    fn a_problem_of_many_tensors_is_shown_once_with_their_number() {
        let mut problems = Problems::new("adapter 'sql'");
        for layer in 0..56 {
            problems.push(Error::new(ErrorCode::AdapterShapeMismatch, format!("'layers.{layer}' is empty")));
            if layer % 20 == 0 {
                problems.push(Error::new(ErrorCode::AdapterShapeMismatch, "another problem"));
            }
        }
        problems.push(Error::new(ErrorCode::AdapterTensorMissing, "'layers.0' is empty"));
        assert_eq!(problems.len(), 60);
        assert_eq!(
            messages(problems),
            [
                "'layers.0' is empty (and 55 more like it)",
                "another problem",
                "another problem",
                "another problem",
                "'layers.0' is empty",
            ]
        );
        assert!(Problems::new("adapter 'sql'").finish().is_ok());
    }

    #[test]
    fn kinds_beyond_the_cap_are_counted() {
        let mut problems = Problems::new("adapter 'sql'");
        for kind in 0..Problems::MAX_KINDS + 3 {
            problems.push(Error::new(ErrorCode::AdapterTensorMissing, format!("problem {kind}")));
        }
        let list = messages(problems);
        assert_eq!((list.len(), list[Problems::MAX_KINDS].as_str()), (Problems::MAX_KINDS + 1, "3 further problems"));
    }
}
