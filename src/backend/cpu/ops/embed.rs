//! Rows of an embedding, with what adapters change there.
//!
//! ```text
//! E'[t] = row t of the adapter that replaces the table or that row, else of the base
//!         then, adapter by adapter, + f s B A[:, t]  and with a magnitude  * m / n
//! ```

use std::ops::Range;

use parking_lot::Mutex;

use super::rowwise::for_rows;
use super::shrink::{Shrunk, row_blocks};
use crate::backend::cpu::adapter::embedding::EmbeddingDelta;
use crate::backend::cpu::adapter::resident::Adapter;
use crate::backend::cpu::adapter::routing::Routing;
use crate::backend::cpu::kernels::dispatch::Kernels;
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::cpu::runtime::arena::{Arena, grow};
use crate::backend::cpu::runtime::threads::Pool;
use crate::backend::cpu::weights::embedding::EmbeddingTable;
use crate::error::{Error, ErrorCode, Result};

/// Values that a thread reads, of a file's pages in the kernel's cache, in a nanosecond.
const VALUES_PER_NS: usize = 2;

/// What `embed` reads of the backend.
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
    /// `token_out_of_range`; `memory_exhausted`; `checkpoint_truncated` or `checkpoint_unreadable` if the table's file was changed.
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
        let rank = |adapter: &Adapter| self.delta_of(adapter).map_or(0, EmbeddingDelta::rank);
        for rows in row_blocks(self.routing, tokens.len(), shrunk.max_t, rank) {
            self.shrink(tokens, &rows, shrunk)?;
            let (hidden, shrunk) = (self.table.hidden, &*shrunk);
            let out = &mut out[rows.start * stride..];
            let failed = Mutex::new(None);
            for_rows(pool, rows.len(), hidden, VALUES_PER_NS, out, stride, |row, out| {
                let row = rows.start + row;
                if let Err(error) = self.read(row, tokens[row] as usize, out) {
                    failed.lock().get_or_insert(error);
                }
                self.add(row, shrunk, out);
                out.iter_mut().for_each(|value| *value *= multiplier);
            })?;
            failed.into_inner().map_or(Ok(()), Err)?;
        }
        self.table.check_unchanged()
    }

    /// What an adapter changes at the table.
    fn delta_of<'d>(&self, adapter: &'d Adapter) -> Option<&'d EmbeddingDelta> {
        adapter.embedding(self.index, self.routing.repeat())
    }

    /// Size of a row's vocabulary.
    fn vocab(&self, row: usize) -> usize {
        let tables = self.routing.of_row(row).rev();
        let replaced =
            tables.filter_map(|(.., adapter)| adapter.embedding(self.index, self.routing.repeat())?.tokens()).next();
        replaced.unwrap_or(self.table.vocab)
    }

    /// The columns of A of some of the rows; too little work for several threads.
    fn shrink(&self, tokens: &[u32], rows: &Range<usize>, shrunk: &mut Shrunk) -> Result<()> {
        let Shrunk { t, starts, .. } = shrunk;
        starts.clear();
        let mut t_len = 0;
        for (_, adapter, entries) in self.routing.segments() {
            let Some(delta) = self.delta_of(adapter) else {
                starts.extend(entries.map(|_| t_len));
                continue;
            };
            let of_rows = self.routing.entries_of_rows(entries.clone(), rows);
            grow(t, t_len + of_rows.len() * delta.rank())?;
            for entry in entries {
                starts.push(t_len);
                if !of_rows.contains(&entry) {
                    continue;
                }
                let token = tokens[self.routing.row_of(entry)] as usize;
                delta.shrink(adapter.region(), token, &mut t[t_len..t_len + delta.rank()]);
                t_len += delta.rank();
            }
        }
        Ok(())
    }

    /// The row to embed, by precedence: of the last adapter that replaces this row alone, of the last that replaces the
    /// table, of the base.
    fn read(&self, row: usize, token: usize, out: &mut [f32]) -> Result<()> {
        let repeat = self.routing.repeat();
        for only_alone in [true, false] {
            for (.., adapter) in self.routing.of_row(row).rev() {
                let Some(delta) = adapter.embedding(self.index, repeat) else { continue };
                if delta.read(adapter.region(), token, only_alone, out) {
                    return Ok(());
                }
            }
        }
        self.table.read(self.arena, token, 0..out.len(), out)
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
