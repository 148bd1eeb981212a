//! What an adapter changes, in plain math: V = W + f s B A itself is formed, and its norms are computed from it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use super::matrix::{Matrix, dot_f64, matrix};
use crate::adapter::delta::{self, SiteDelta};
use crate::error::Result;
use crate::sites::SiteId;
use crate::tensor::Tensor;

/// An adapter: what it changes at each site and repeat.
#[derive(Default)]
pub(super) struct Adapter {
    pub(super) deltas: HashMap<(SiteId, u32), Delta>,
    pub(super) norms: Norms,
}

impl Adapter {
    /// Resident bytes.
    pub(super) fn bytes(&self) -> usize {
        self.deltas.values().map(Delta::bytes).sum()
    }
}

/// What an adapter changes at a site, in one repeat of its layer.
#[derive(Default)]
pub(super) struct Delta {
    pub(super) weight: Option<Matrix>,
    pub(super) bias: Option<Vec<f32>>,
    /// The packed values of a norm, in place of weight and bias.
    pub(super) norm: Option<Vec<f32>>,
    /// Rows of the weight that are replaced, ascending, and their values.
    pub(super) row_ids: Vec<u32>,
    pub(super) row_values: Matrix,
    pub(super) low_rank: Option<LowRank>,
    /// What truncation (KaSA) subtracts from the weight, at any request weight.
    pub(super) removed: Option<LowRank>,
}

/// A low-rank delta.
pub(super) struct LowRank {
    pub(super) a: Matrix,
    b: Matrix,
    b_bias: Option<Vec<f32>>,
    scale: f64,
    pub(super) magnitude: Option<Vec<f32>>,
}

/// The weight of a site as an adapter finds it.
#[derive(Clone, Copy)]
pub(super) struct BaseWeight<'a> {
    pub(super) values: &'a Matrix,
    /// `[inputs, outputs]`, as embeddings are, and not `[outputs, inputs]`.
    pub(super) is_table: bool,
}

impl Delta {
    /// # Errors
    /// `memory_exhausted`.
    pub(super) fn new(delta: &SiteDelta<'_>) -> Result<Self> {
        let rows = delta.rows.as_ref();
        Ok(Self {
            weight: delta.weight.as_ref().map(|weight| matrix(&weight.view())).transpose()?,
            bias: vector(delta.bias.as_ref())?,
            norm: None,
            row_ids: rows.map_or_else(Vec::new, |rows| rows.ids.clone()),
            row_values: rows.map(|rows| matrix(&rows.values.view())).transpose()?.unwrap_or_default(),
            low_rank: delta.low_rank.as_ref().map(LowRank::new).transpose()?,
            removed: delta.removed.as_ref().map(LowRank::new).transpose()?,
        })
    }

    pub(super) fn bytes(&self) -> usize {
        let low = self.low_rank.iter().chain(&self.removed).flat_map(|low| {
            let vectors = [&low.b_bias, &low.magnitude].into_iter().flatten().map(|v| size_of_val(&**v));
            [low.a.bytes(), low.b.bytes()].into_iter().chain(vectors)
        });
        let weight = self.weight.as_ref().map_or(0, Matrix::bytes) + self.row_values.bytes();
        let vectors = self.bias.iter().chain(&self.norm).map(|values| size_of_val(&**values));
        weight + vectors.sum::<usize>() + low.sum::<usize>()
    }

    /// The replaced rows of the weight.
    pub(super) fn rows(&self) -> impl Iterator<Item = (usize, &[f32])> {
        self.row_ids.iter().enumerate().map(|(at, &id)| (id as usize, self.row_values.row(at)))
    }

    /// Norm of each output of `W + f s B A` over the inputs; W is the base's with this adapter's replacements.
    fn norms(&self, base: BaseWeight<'_>, low: &LowRank, weight: f32) -> Vec<f64> {
        let row = |i: usize| match self.row_ids.binary_search(&(i as u32)) {
            Ok(at) => self.row_values.row(at),
            Err(_) => self.weight.as_ref().unwrap_or(base.values).row(i),
        };
        let factor = f64::from(weight) * low.scale;
        let norm = |output: usize| {
            let squares = (0..low.a.width).map(|input| {
                let ba = (0..low.a.rows()).map(|r| f64::from(low.b.row(output)[r]) * f64::from(low.a.row(r)[input]));
                let w = if base.is_table { row(input)[output] } else { row(output)[input] };
                (f64::from(w) + factor * ba.sum::<f64>()).powi(2)
            });
            squares.sum::<f64>().sqrt()
        };
        (0..low.b.rows()).map(norm).collect()
    }
}

impl LowRank {
    fn new(low: &delta::LowRank<'_>) -> Result<Self> {
        Ok(Self {
            a: matrix(&low.a.view())?,
            b: matrix(&low.b.view())?,
            b_bias: vector(low.b_bias.as_ref())?,
            scale: f64::from(low.scale),
            magnitude: vector(low.magnitude.as_ref())?,
        })
    }

    /// Adds the delta of an input whose `A x` is `t` to `y`, whose bias is `bias`.
    pub(super) fn apply(&self, t: &[f32], weight: f32, norms: Option<&[f64]>, bias: Option<&[f32]>, y: &mut [f32]) {
        for (i, y) in y.iter_mut().enumerate().take(self.b.rows()) {
            let b_bias = self.b_bias.as_ref().map_or(0.0, |bias| f64::from(bias[i]));
            let added = f64::from(weight) * self.scale * (dot_f64(self.b.row(i), t) + b_bias);
            let result = match (&self.magnitude, norms) {
                (Some(magnitude), Some(norms)) => {
                    let b = bias.and_then(|bias| bias.get(i)).map_or(0.0, |&b| f64::from(b));
                    b + f64::from(magnitude[i]) / norms[i] * (f64::from(*y) - b + added)
                }
                _ => f64::from(*y) + added,
            };
            *y = result as f32;
        }
    }
}

fn vector(tensor: Option<&Tensor<'_>>) -> Result<Option<Vec<f32>>> {
    tensor.map(|tensor| tensor.view().try_to_f32()).transpose()
}

/// Site, repeat, and the bits of a request's weight.
type NormKey = (SiteId, u32, u32);

/// DoRA norms of one adapter that were computed already.
#[derive(Default)]
pub(super) struct Norms(RefCell<HashMap<NormKey, Arc<[f64]>>>);

impl Norms {
    /// The norms of a delta, if it has a magnitude.
    pub(super) fn of(
        &self,
        (site, repeat): (SiteId, u32),
        delta: &Delta,
        base: BaseWeight<'_>,
        weight: f32,
    ) -> Option<Arc<[f64]>> {
        let low = delta.low_rank.as_ref().filter(|low| low.magnitude.is_some())?;
        let mut known = self.0.borrow_mut();
        let norms = known.entry((site, repeat, weight.to_bits()));
        Some(Arc::clone(norms.or_insert_with(|| delta.norms(base, low, weight).into())))
    }
}
