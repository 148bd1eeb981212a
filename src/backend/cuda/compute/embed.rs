//! The embedding: rows of the base's table, or of those that adapters replace, with their low-rank parts.

use super::{CudaCompute, unknown};
use crate::adapter::batch::AdapterBatch;
use crate::backend::cuda::buffers::Content;
use crate::backend::cuda::ops::embed::Embed;
use crate::backend::cuda::step::Rows;
use crate::error::{Error, ErrorCode, Result};

impl CudaCompute {
    /// See [`Compute::embed`](crate::backend::Compute::embed).
    pub(super) fn run_embed(
        &mut self,
        table: usize,
        tokens: &[u32],
        multiplier: f32,
        batch: &AdapterBatch,
        out: usize,
    ) -> Result<()> {
        let base = self.weights.tables.get(table).ok_or_else(|| unknown("an embedding table"))?;
        let (rows, hidden_size) = (base.rows(), base.hidden);
        self.expect(out, hidden_size, tokens.len())?;
        if tokens.is_empty() {
            return Ok(());
        }
        let embedding = batch.repeat() as usize * self.weights.tables.len() + table;
        let routing = self.step.routing(Rows::Tokens(tokens), batch, &self.adapters)?;
        for (row, &token) in tokens.iter().enumerate() {
            let vocab = self.vocab(row, batch, embedding).unwrap_or(rows.rows as usize);
            if token as usize >= vocab {
                return Err(Error::new(ErrorCode::TokenOutOfRange, "a token is outside the vocabulary")
                    .with_expected(format!("below {vocab}"))
                    .with_found(token));
            }
        }
        let buffer = &mut self.buffers[out];
        let embed = Embed {
            step: self.step.address(routing.offset),
            table: rows,
            hidden: buffer.rows(&self.device)?,
            sum_squares: buffer.squares(&self.device)?,
            hidden_size: hidden_size as u32,
            embedding: embedding as u32,
            multiplier,
            padding: 0,
        };
        self.kernels.embed.launch(&embed, tokens.len())?;
        self.set_content(out, Content::Rows { has_squares: true });
        Ok(())
    }

    /// Size of a row's vocabulary, if an adapter of it replaces the table.
    fn vocab(&self, row: usize, batch: &AdapterBatch, embedding: usize) -> Option<usize> {
        let entries = if batch.is_base_only() { &[] } else { batch.of_row(row) };
        entries.iter().rev().find_map(|&index| {
            let slot = batch.entries()[index].slot;
            self.adapters.get(slot.0 as usize)?.as_ref()?.tokens(embedding)
        })
    }
}
