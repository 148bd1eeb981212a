//! Collects problems, so that one error reports everything that is wrong with an adapter.

use crate::error::{Error, ErrorCode, Result};

/// The problems found so far, in the order in which they were found.
pub(super) struct Problems {
    subject: String,
    list: Vec<Error>,
    /// Problems beyond the cap: the code of the first and their number.
    overflow: Option<(ErrorCode, usize)>,
}

impl Problems {
    /// Most problems that are reported one by one: a hostile file can have one per tensor.
    const MAX: usize = 100;

    pub(super) fn new(subject: &str) -> Self {
        Self { subject: subject.to_owned(), list: Vec::new(), overflow: None }
    }

    pub(super) fn push(&mut self, error: Error) {
        if self.list.len() < Self::MAX {
            self.list.push(error.with_subject(&self.subject));
        } else {
            self.overflow.get_or_insert((error.code(), 0)).1 += 1;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len() + self.overflow.map_or(0, |(_, count)| count)
    }

    /// One error with everything that was found.
    pub(super) fn finish(mut self) -> Result<()> {
        if let Some((code, count)) = self.overflow {
            self.list
                .push(Error::new(code, format!("{count} further problems")).with_subject(&self.subject).with_hint(""));
        }
        Error::all(self.list).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_beyond_the_cap_are_counted() {
        let mut problems = Problems::new("adapter 'sql'");
        for _ in 0..Problems::MAX + 3 {
            problems.push(Error::new(ErrorCode::AdapterTensorMissing, "missing"));
        }
        assert_eq!(problems.len(), Problems::MAX + 3);
        let list = problems.finish().expect_err("problems").into_list();
        assert_eq!((list.len(), list[Problems::MAX].message()), (Problems::MAX + 1, "3 further problems"));
        assert!(Problems::new("adapter 'sql'").finish().is_ok());
    }
}
