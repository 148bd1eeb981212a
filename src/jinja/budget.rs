//! What one rendering may use: work, memory and printed text.
//!
//! Everything that a template can make walk or grow pays here first, in proportion to what it walks or makes. Memory is
//! paid when it is taken and not paid back when it is freed, so that one number bounds the peak.

use std::cell::Cell;

use super::error::{Result, fail};

/// Work of evaluating one node of the template, in units of about a nanosecond.
pub(super) const NODE_WORK: usize = 100;

/// Memory of one element of a list, or one entry of a dict.
pub(super) const ELEMENT_BYTES: usize = 96;

/// Deepest nesting of lists and dicts. Values are dropped, compared and written recursively, with less than 1 KiB of stack
/// for each level.
pub(super) const MAX_DEPTH: u32 = 400;

/// Deepest nesting of the evaluation: expressions in statements in macros that call macros. One level takes less than
/// 16 KiB of stack, so that all of them fit into the 256 MiB of a guarded call several times.
pub(super) const MAX_EVALUATION_DEPTH: usize = 3000;

/// Work of a rendering with small messages, and what each byte of messages adds.
const WORK: u64 = 1_000_000_000;
const WORK_PER_BYTE: u64 = 100;

/// The same for memory, in bytes.
const MEMORY: u64 = 192 << 20;
const MEMORY_PER_BYTE: u64 = 8;

/// The same for the length of the prompt, in bytes.
const PRINTED: usize = 16 << 20;
const PRINTED_PER_BYTE: usize = 4;

/// What is left of the work and memory of one rendering.
pub(super) struct Budget {
    work: Cell<u64>,
    memory: Cell<u64>,
    printed: usize,
}

impl Budget {
    /// The budget for messages and other variables of so many bytes.
    pub(super) fn for_input(bytes: usize) -> Self {
        let input = bytes as u64;
        Self {
            work: Cell::new(WORK + WORK_PER_BYTE * input),
            memory: Cell::new(MEMORY + MEMORY_PER_BYTE * input),
            printed: PRINTED + PRINTED_PER_BYTE * bytes,
        }
    }

    /// Largest length of the prompt, in bytes.
    pub(super) fn max_printed(&self) -> usize {
        self.printed
    }

    /// Pays for work, in units of about a nanosecond.
    pub(super) fn work(&self, units: usize) -> Result<()> {
        match self.work.get().checked_sub(units as u64) {
            Some(left) => {
                self.work.set(left);
                Ok(())
            }
            None => fail("the template takes too many steps"),
        }
    }

    /// Pays for memory, before it is taken, and for the work of filling it.
    pub(super) fn memory(&self, bytes: usize) -> Result<()> {
        self.work(bytes / 4)?;
        match self.memory.get().checked_sub(bytes as u64) {
            Some(left) => {
                self.memory.set(left);
                Ok(())
            }
            None => fail("the template needs too much memory"),
        }
    }

    /// Pays for so many elements of lists and dicts.
    pub(super) fn elements(&self, count: usize) -> Result<()> {
        self.memory(count.saturating_mul(ELEMENT_BYTES))
    }
}

/// A text that grows on a budget.
pub(super) struct Text<'b> {
    text: String,
    budget: &'b Budget,
}

impl<'b> Text<'b> {
    pub(super) fn new(budget: &'b Budget) -> Self {
        Self { text: String::new(), budget }
    }

    pub(super) fn push(&mut self, text: &str) -> Result<()> {
        // A growing string holds up to twice its length.
        self.budget.work(5)?;
        self.budget.memory(2 * text.len())?;
        self.text.push_str(text);
        Ok(())
    }

    pub(super) fn push_char(&mut self, c: char) -> Result<()> {
        self.push(c.encode_utf8(&mut [0; 4]))
    }

    /// Appends a text several times.
    pub(super) fn repeat(&mut self, text: &str, count: usize) -> Result<()> {
        self.budget.memory(text.len().saturating_mul(count).saturating_mul(2))?;
        (0..count).for_each(|_| self.text.push_str(text));
        Ok(())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn into_string(self) -> String {
        self.text
    }
}
