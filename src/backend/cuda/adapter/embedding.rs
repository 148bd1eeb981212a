//! What an adapter changes at an embedding: a [`SlotEmbedding`] and the arrays that it points to.

use super::low_rank::{push_low_rank, push_norm_terms};
use super::norm_terms::norm_terms_of_table;
use crate::adapter::delta::{LowRank, SiteDelta};
use crate::backend::PrepareError;
use crate::backend::cuda::device_image::DeviceImage;
use crate::backend::cuda::tables::{FloatRows, FloatType, NORM_TERMS, SlotEmbedding};
use crate::backend::cuda::weights::embedding::EmbeddingTable;
use crate::error::{Error, ErrorCode, Result};
use crate::tensor::{Tensor, zeros};

/// Bytes that are copied between two calls of `between_parts`, a multiple of the image's alignment.
const COPY_BYTES: usize = 64 << 20;

/// Puts together what an adapter changes at a table of the base.
///
/// # Errors
/// `memory_exhausted`; a DoRA norm of 0; what `between_parts` returned; the device failed.
pub(super) fn push_embedding(
    image: &mut DeviceImage,
    base: &EmbeddingTable,
    delta: &SiteDelta<'_>,
    threads: usize,
    between_parts: &mut dyn FnMut() -> Result<()>,
) -> Result<SlotEmbedding, PrepareError> {
    let mut embedding = SlotEmbedding::default();
    if let Some(table) = &delta.weight {
        embedding.table = push_rows(image, table, table.bytes(), table.shape()[0], between_parts)?;
    }
    if let Some(replaced) = &delta.rows {
        embedding.row_ids = image.slice(&replaced.ids);
        let values = &replaced.values;
        embedding.rows = push_rows(image, values, values.bytes(), replaced.ids.len(), between_parts)?;
    }
    let Some(low) = &delta.low_rank else { return Ok(embedding) };
    embedding.a = push_rows(image, &low.a, &transposed(&low.a)?, low.a.shape()[1], between_parts)?;
    embedding.low_rank = push_low_rank(image, low)?;
    if low.magnitude.is_some() {
        let terms = terms_of(base, delta, low, threads, between_parts)?;
        embedding.low_rank.norm_terms = push_norm_terms(image, delta.site, &terms)?;
    }
    Ok(embedding)
}

/// Rows of a tensor's type, from their bytes.
fn push_rows(
    image: &mut DeviceImage,
    tensor: &Tensor<'_>,
    bytes: &[u8],
    rows: usize,
    between_parts: &mut dyn FnMut() -> Result<()>,
) -> Result<FloatRows> {
    let float_type = FloatType::of(tensor.dtype()).ok_or_else(|| {
        Error::new(ErrorCode::Internal, "an adapter's rows hold no floats").with_found(tensor.dtype())
    })?;
    let mut values = None;
    for part in bytes.chunks(COPY_BYTES) {
        between_parts()?;
        values.get_or_insert(image.slice(part));
    }
    Ok(FloatRows { values: values.unwrap_or(0), rows: rows as u32, float_type: float_type as u32 })
}

/// The bytes of `A [rank, tokens]` as `[tokens, rank]`, so that a token's are adjacent.
fn transposed(a: &Tensor<'_>) -> Result<Vec<u8>> {
    let (rank, tokens, size) = (a.shape()[0], a.shape()[1], a.dtype().bytes());
    let mut out = zeros(a.bytes().len())?;
    for (r, row) in a.bytes().chunks_exact((tokens * size).max(1)).enumerate() {
        for (token, value) in row.chunks_exact(size).enumerate() {
            out[(token * rank + r) * size..][..size].copy_from_slice(value);
        }
    }
    Ok(out)
}

/// DoRA's terms of each column of the table, with the adapter's own replacements in it.
fn terms_of(
    base: &EmbeddingTable,
    delta: &SiteDelta<'_>,
    low: &LowRank<'_>,
    threads: usize,
    between_parts: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<[f64; NORM_TERMS]>> {
    let width = base.hidden;
    let mut bytes = Vec::new();
    let read = |token: usize, rows: &mut [f32]| {
        match &delta.weight {
            Some(table) => table.view().read_f32(token * width..token * width + rows.len(), rows),
            None => {
                if bytes.is_empty() {
                    // The first part is the largest one.
                    bytes = zeros(rows.len() * base.value_bytes())?;
                }
                base.read(token * width, &mut bytes[..rows.len() * base.value_bytes()], rows)?;
            }
        }
        let Some(replaced) = &delta.rows else { return Ok(()) };
        let first = replaced.ids.partition_point(|&id| (id as usize) < token);
        for (index, &id) in replaced.ids.iter().enumerate().skip(first) {
            let Some(row) = rows.chunks_exact_mut(width).nth(id as usize - token) else { break };
            replaced.values.view().read_f32(index * width..(index + 1) * width, row);
        }
        Ok(())
    };
    norm_terms_of_table(read, low, threads, between_parts)
}
