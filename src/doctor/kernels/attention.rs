//! Cases of attention: rotation, the KV cache, and both phases of a sequence.

use std::ops::Range;
use std::sync::Arc;

use super::case::{BaseWeight, Case, Loading, Precision, base_rows, buffers, read};
use crate::backend::{
    AttentionSpec, Backend, HeadNorm, HeadNormScope, KvDType, KvShape, NormKind, NormSpec, QueryTemperature, Rope,
    StepRows, Write,
};
use crate::error::Result;

/// Positions of a page.
const PAGE_TOKENS: usize = 32;
/// Pages of the cache.
const PAGES: usize = 12;
/// Width of the rows from which queries, keys and values are projected.
const INPUTS: usize = 64;

/// The norm of queries and keys that most families have, if any.
const HEAD_NORM: (NormKind, HeadNormScope) = (NormKind::Rms, HeadNormScope::Head);

/// What a case attends with.
#[derive(Clone, Copy)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    norm: Option<(NormKind, HeadNormScope)>,
    temperature: Option<QueryTemperature>,
    kv: KvDType,
    /// Tokens of the prompt that the first step computes.
    prompt: usize,
}

const HEADS: Heads = Heads {
    heads: 4,
    kv_heads: 1,
    head_dim: 64,
    window: None,
    norm: None,
    temperature: None,
    kv: KvDType::F16,
    prompt: 70,
};

/// What only some families have.
pub(super) fn rarer_cases() -> Vec<Case> {
    let of_heads = Some((NormKind::Layer, HeadNormScope::HeadOwn));
    vec![
        attention("64 wide, norms over all heads", Heads { norm: Some((NormKind::Rms, HeadNormScope::All)), ..HEADS }),
        attention("64 wide, layer norms of each head", Heads { kv_heads: 2, norm: of_heads, ..HEADS }),
        attention(
            "64 wide, queries scaled by their position",
            Heads { temperature: Some(QueryTemperature { beta: 0.1, positions: 16.0 }), ..HEADS },
        ),
    ]
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        attention("64 wide", HEADS),
        // Positions are cut into parts of 256.
        attention("64 wide, long", Heads { heads: 2, prompt: 258, ..HEADS }),
        attention("128 wide, window", Heads { heads: 8, kv_heads: 2, head_dim: 128, window: Some(20), ..HEADS }),
        attention("64 wide, head norms", Heads { heads: 2, kv_heads: 2, norm: Some(HEAD_NORM), ..HEADS }),
        attention("64 wide, f32 cache", Heads { kv: KvDType::F32, ..HEADS }),
        attention("64 wide, q8 cache", Heads { kv: KvDType::Q8, ..HEADS }),
        attention("128 wide, q6 cache", Heads { heads: 8, kv_heads: 2, head_dim: 128, kv: KvDType::Q6, ..HEADS }),
        attention("80 wide, q4 cache", Heads { head_dim: 80, norm: Some(HEAD_NORM), kv: KvDType::Q4, ..HEADS }),
    ]
}

/// A prompt, then a step with the next token of its sequence and the prompt of another one. Only a few rows of the first
/// step are compared, since each of its keys and values is read by the last row.
///
/// A quantized cache turns the last bits of a product into whole steps of a code, so its queries, keys and values are not projected
/// but given.
fn attention(name: &str, heads: Heads) -> Case {
    let precision = match heads.kv {
        KvDType::F32 => Precision::Half,
        _ => Precision::HalfCache,
    };
    Case::new(format!("rope, KV cache, attention, {name}"), precision, move |loading| {
        let spec = spec(loading, heads)?;
        let Heads { heads, kv_heads, head_dim, prompt, kv, .. } = heads;
        let (out_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let width = out_width + 2 * kv_width;
        let qkv = match kv.code_bits() {
            None => Some(loading.group(BaseWeight::Dense, INPUTS, &[out_width, kv_width, kv_width])?),
            Some(_) => None,
        };
        let second = 6;
        let x_width = if qkv.is_some() { INPUTS } else { width };
        let x = loading.rng.normals((prompt + second) * x_width, 1.0);
        let shape = KvShape { layers: 1, pages: PAGES, page_tokens: PAGE_TOKENS, kv_heads, head_dim, dtype: kv };
        Ok(Box::new(move |backend: &mut Backend| {
            let compute = &mut *backend.compute;
            let kv = compute.create_kv(shape)?;
            let mut values = Vec::new();
            let steps = [
                (0..prompt, rows_of(&[(0..prompt, 0)])),
                // The row after the prompt, and the first rows of a sequence whose page is the last.
                (prompt..prompt + second, rows_of(&[(prompt..prompt + 1, 0), (0..second - 1, PAGES - 1)])),
            ];
            for (tokens, rows) in steps {
                let count = rows.len();
                let [input, product, out] = buffers(compute, count, [x_width, width, out_width])?;
                let x = &x[tokens.start * x_width..tokens.end * x_width];
                let batch = base_rows(count);
                if let Some(qkv) = &qkv {
                    compute.write_rows(input, 0, x)?;
                    compute.linear(qkv.id, input, count, &batch, product, Write::Replace)?;
                } else {
                    compute.write_rows(product, 0, x)?;
                }
                compute.attend(&spec, kv, &rows, &batch, product, out)?;
                let attended = read(compute, out, count, out_width)?;
                values.extend(&attended[count.saturating_sub(8) * out_width..]);
            }
            compute.drop_kv(kv);
            Ok(values)
        }))
    })
}

fn spec(loading: &mut Loading<'_>, heads: Heads) -> Result<AttentionSpec> {
    let Heads { heads, kv_heads, head_dim, window, norm, temperature, .. } = heads;
    let mut head_norm = |heads: usize| -> Result<Option<HeadNorm>> {
        let Some((kind, scope)) = norm else { return Ok(None) };
        let id = loading.norm_of(&scope.weight_shape(heads, head_dim))?;
        Ok(Some(HeadNorm { norm: NormSpec { id, kind, eps: 1e-6 }, scope }))
    };
    let (q_norm, k_norm) = (head_norm(heads)?, head_norm(kv_heads)?);
    let inv_freq = (0..head_dim / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
    Ok(AttentionSpec {
        scale: (head_dim as f32).powf(-0.5),
        window,
        q_norm,
        k_norm,
        rope: Some(Arc::new(Rope::halves(inv_freq, 1.0))),
        query_temperature: temperature,
        ..AttentionSpec::new(heads, kv_heads, head_dim)
    })
}

/// Rows of sequences, each with its positions and its first page; pages of a sequence are every other one, downwards.
fn rows_of(sequences: &[(Range<usize>, usize)]) -> StepRows {
    let mut rows = StepRows::default();
    for (positions, first_page) in sequences {
        let pages = positions.end.div_ceil(PAGE_TOKENS);
        rows.push(positions.clone(), (0..pages).map(|page| ((first_page + PAGES - page) % PAGES) as u32));
    }
    rows
}
