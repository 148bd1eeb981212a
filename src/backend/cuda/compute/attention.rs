//! Attention: the products of q, k, v are finished, normed, rotated and stored by one launch, and read by the next.

use std::sync::Arc;

use super::inputs::Expandable;
use super::{CudaCompute, uncomputed, unknown};
use crate::adapter::batch::AdapterBatch;
use crate::backend::cuda::buffers::{Content, NormRouting};
use crate::backend::cuda::layout::ElementType;
use crate::backend::cuda::ops::attention::Attention;
use crate::backend::cuda::ops::expand::ExpandRopeKv;
use crate::backend::cuda::tables::RoutedNorm;
use crate::backend::{AttentionSpec, HeadNorm, HeadNormScope, NormKind, Rope, RopeLayout, StepRows};
use crate::error::{Error, ErrorCode, Result};

impl CudaCompute {
    /// See [`Compute::attend`](crate::backend::Compute::attend).
    pub(super) fn run_attention(
        &mut self,
        spec: &AttentionSpec,
        kv: usize,
        rows: &StepRows,
        batch: &AdapterBatch,
        qkv: usize,
        out: usize,
    ) -> Result<()> {
        let cache = self.kvs.get(kv).and_then(Option::as_ref).ok_or_else(|| unknown("a KV cache"))?;
        spec.check(&cache.shape, rows)?;
        let (layer, dtype) = (cache.layer(spec.layer), cache.shape.dtype);
        let widths = [spec.heads, spec.kv_heads, spec.kv_heads].map(|heads| heads * spec.head_dim);
        if qkv == out {
            return Err(unknown("one buffer for input and output,"));
        }
        self.expect(qkv, widths.iter().sum(), rows.len())?;
        self.expect(out, widths[0], rows.len())?;
        if rows.is_empty() {
            return Ok(());
        }
        if spec.query_temperature.is_some() {
            return Err(uncomputed("a query temperature"));
        }
        let q_norm = self.head_norm(spec.q_norm, spec, rows.len(), batch)?;
        let k_norm = self.head_norm(spec.k_norm, spec, rows.len(), batch)?;
        let positions = self.step.attention(rows)?;
        let Expandable { projection, step } = self.expandable(qkv, &widths, rows.len())?;
        let tables = self.step.address(positions.offset);
        let rope = spec.rope.as_ref();
        let inv_freq = rope.map_or(Ok(0), |rope| self.rope(rope))?;
        let queries = self.scratch.queries.reserve(&self.device, rows.len() * widths[0] * size_of::<f32>())?;
        let expand = ExpandRopeKv {
            projection,
            step,
            attention: tables,
            kv: layer,
            queries,
            kv_overflow_rows: self.row_flags.kv_overflows(&self.device)?,
            q_norm: q_norm.map_or_else(RoutedNorm::default, |norm| self.routed_norm(norm)),
            k_norm: k_norm.map_or_else(RoutedNorm::default, |norm| self.routed_norm(norm)),
            inv_freq,
            heads: spec.heads as u32,
            head_dim: spec.head_dim as u32,
            rope_pairs: rope.map_or(0, |rope| rope.inv_freq.len() as u32),
            is_interleaved: u32::from(rope.is_some_and(|rope| rope.layout == RopeLayout::Pairs)),
            rope_factor: rope.map_or(1.0, |rope| rope.factor),
            norm_eps: spec.q_norm.or(spec.k_norm).map_or(0.0, |norm| norm.norm.eps),
        };
        self.kernels.expand(dtype)?.rope_kv(&expand, rows.len())?;

        let group_heads = spec.heads / spec.kv_heads;
        let kernel = self.kernels.attention(spec.head_dim, group_heads, dtype)?;
        let plan = kernel.plan(rows.len(), spec.kv_heads, positions.longest, spec.window);
        // A dry run stands for all steps with fewer rows too, which may have more partial sums.
        let partial_bytes = match self.device.is_dry_run() {
            true => kernel.most_partial_bytes(rows.len(), spec.kv_heads, positions.longest, spec.window),
            false => plan.partial_bytes,
        };
        let partials = match partial_bytes {
            0 => 0,
            bytes => self.scratch.partials.reserve(&self.device, bytes)?,
        };
        let counters = rows.len() * spec.kv_heads * size_of::<u32>();
        let attention = Attention {
            tables,
            kv: layer,
            queries,
            attended: self.buffers[out].elements(&self.device)?,
            partials,
            arrivals: self.scratch.arrivals.reserve_zeroed(&self.device, counters)?,
            overflow_rows: self.row_flags.activation_overflows(&self.device)?,
            scale: spec.scale,
            score_cap: spec.score_cap.unwrap_or(0.0),
            group_heads: group_heads as u32,
            window: spec.window.map_or(0, |window| u32::try_from(window).unwrap_or(u32::MAX)),
            partial_splits: plan.partial_splits,
            head_dim: spec.head_dim as u32,
            is_bf16: u32::from(self.weights.element == ElementType::Bf16),
            padding: 0,
        };
        kernel.launch(&attention, &plan)?;
        self.forget_products(qkv);
        self.set_content(out, Content::Elements);
        Ok(())
    }

    /// A norm over each head, if the model has one.
    fn head_norm(
        &mut self,
        norm: Option<HeadNorm>,
        spec: &AttentionSpec,
        rows: usize,
        batch: &AdapterBatch,
    ) -> Result<Option<NormRouting>> {
        let Some(HeadNorm { norm, scope }) = norm else { return Ok(None) };
        let other_eps = [spec.q_norm, spec.k_norm].into_iter().flatten().any(|other| other.norm.eps != norm.eps);
        if norm.kind != NormKind::Rms || scope != HeadNormScope::Head || other_eps {
            return Err(uncomputed("norms of queries and keys but the RMS norm of each head, with one epsilon"));
        }
        let routing = self.route_norm(norm.id.0 as usize, rows, batch)?;
        let width = self.weights.norms[routing.norm].width();
        if width != spec.head_dim {
            return Err(Error::new(ErrorCode::Internal, "a norm's weight does not fit")
                .with_expected(spec.head_dim)
                .with_found(width));
        }
        Ok(Some(routing))
    }

    /// The address of a rotation's frequencies, copied to the device at their first use.
    fn rope(&mut self, rope: &Arc<Rope>) -> Result<u64> {
        let known = self.ropes.iter().find(|(known, _)| Arc::ptr_eq(known, rope) || known == rope);
        if let Some((_, memory)) = known {
            return Ok(memory.address());
        }
        let memory = self.device.allocate(size_of_val(&*rope.inv_freq))?;
        memory.upload(0, bytemuck::cast_slice(&rope.inv_freq))?;
        let address = memory.address();
        self.ropes.push((Arc::clone(rope), memory));
        Ok(address)
    }
}
