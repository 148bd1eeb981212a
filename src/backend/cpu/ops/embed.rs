//! Rows of an embedding, with what adapters change there.
//!
//! ```text
//! E'[t] = row t of the adapter that replaces the table or that row, else of the base
//!         then, adapter by adapter, + f s B A[:, t]  and with a magnitude  * m / n
//! ```

use super::rowwise::for_rows;
use super::shrink::Shrunk;
use crate::backend::cpu::adapter::routing::Routing;
use crate::backend::cpu::kernels::dispatch::Kernels;
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::cpu::runtime::arena::{Arena, grow};
use crate::backend::cpu::runtime::threads::Pool;
use crate::backend::cpu::weights::embedding::EmbeddingTable;
use crate::error::{Error, ErrorCode, Result};

/// The parts of a backend that `embed` works with.
pub(crate) struct Embedding<'a> {
    pub(crate) kernels: &'a Kernels,
    pub(crate) arena: &'a Arena,
    pub(crate) table: &'a EmbeddingTable,
    /// Index of the table.
    pub(crate) index: usize,
    pub(crate) routing: Routing<'a>,
}

impl Embedding<'_> {
    /// `out[i] = multiplier * E'[tokens[i]]`, rows `stride` values apart.
    ///
    /// # Errors
    /// `token_out_of_range`; `memory_exhausted`.
    pub(crate) fn run(
        &self,
        pool: &mut Pool,
        tokens: &[u32],
        multiplier: f32,
        out: &mut [f32],
        stride: usize,
        shrunk: &mut Shrunk,
    ) -> Result<()> {
        for (row, &token) in tokens.iter().enumerate() {
            let vocab = self.vocab(row);
            if token as usize >= vocab {
                return Err(Error::new(ErrorCode::TokenOutOfRange, "a token is outside the vocabulary")
                    .with_expected(format!("below {vocab}"))
                    .with_found(token));
            }
        }
        self.shrink(tokens, shrunk)?;
        let (hidden, shrunk) = (self.table.hidden, &*shrunk);
        for_rows(pool, tokens.len(), hidden, out, stride, |row, out| {
            self.read(row, tokens[row] as usize, out);
            self.add(row, shrunk, out);
            out.iter_mut().for_each(|value| *value *= multiplier);
        })
    }

    /// Tokens that a row may have.
    fn vocab(&self, row: usize) -> usize {
        let tables = self.routing.of_row(row).rev();
        let replaced =
            tables.filter_map(|(.., adapter)| adapter.embedding(self.index, self.routing.repeat())?.tokens()).next();
        replaced.unwrap_or(self.table.vocab)
    }

    /// The columns of A: little enough for one thread.
    fn shrink(&self, tokens: &[u32], shrunk: &mut Shrunk) -> Result<()> {
        let Shrunk { t, starts, .. } = shrunk;
        let repeat = self.routing.repeat();
        starts.clear();
        let mut t_len = 0;
        for (_, adapter, entries) in self.routing.segments() {
            let Some(delta) = adapter.embedding(self.index, repeat) else {
                starts.extend(entries.map(|_| t_len));
                continue;
            };
            grow(t, t_len + entries.len() * delta.rank())?;
            for entry in entries {
                starts.push(t_len);
                let token = tokens[self.routing.row_of(entry)] as usize;
                delta.shrink(adapter.region(), token, &mut t[t_len..t_len + delta.rank()]);
                t_len += delta.rank();
            }
        }
        Ok(())
    }

    /// The row that is embedded, from whoever has the last word on it: an adapter that replaces the row alone, one that
    /// replaces the table, the base.
    fn read(&self, row: usize, token: usize, out: &mut [f32]) {
        let repeat = self.routing.repeat();
        for only_alone in [true, false] {
            for (.., adapter) in self.routing.of_row(row).rev() {
                let Some(delta) = adapter.embedding(self.index, repeat) else { continue };
                if delta.read(adapter.region(), token, only_alone, out) {
                    return;
                }
            }
        }
        self.table.read(self.arena, token, 0..out.len(), out);
    }

    /// Each adapter's delta in the order of the request, tile by tile of channels.
    fn add(&self, row: usize, shrunk: &Shrunk, out: &mut [f32]) {
        let repeat = self.routing.repeat();
        for (entry, weight, adapter) in self.routing.of_row(row) {
            let Some(delta) = adapter.embedding(self.index, repeat).filter(|delta| delta.rank() > 0) else { continue };
            let t = &shrunk.of(entry)[..delta.rank()];
            for (tile, out) in out.chunks_mut(LANES).enumerate() {
                let mut y = [0.0; LANES];
                y[..out.len()].copy_from_slice(out);
                delta.apply(adapter.region(), self.kernels, tile, t, weight, &mut y);
                out.copy_from_slice(&y[..out.len()]);
            }
        }
    }
}
