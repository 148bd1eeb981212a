//! Attention: the products of q, k, v are finished, normed, rotated and stored by one launch, and read by the next.

use std::sync::Arc;

use super::inputs::Expandable;
use super::{CudaCompute, unknown};
use crate::adapter::batch::AdapterBatch;
use crate::backend::cuda::buffers::{Content, NormRouting};
use crate::backend::cuda::layout::ElementType;
use crate::backend::cuda::ops::attention::Attention;
use crate::backend::cuda::ops::expand::ExpandRopeKv;
use crate::backend::cuda::ops::norms::NormSegments;
use crate::backend::cuda::tables::RoutedNorm;
use crate::backend::{AttentionSpec, HeadNorm, HeadNormScope, NormKind, NormSpec, Rope, RopeLayout, StepRows};
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
        let are_fused = self.are_head_norms_fused(spec);
        if !are_fused {
            self.norm_heads(spec, rows.len(), batch, qkv)?;
        }
        let fused = |norm: Option<HeadNorm>| norm.filter(|_| are_fused);
        let q_norm = self.head_norm(fused(spec.q_norm), spec.heads, spec, rows.len(), batch)?;
        let k_norm = self.head_norm(fused(spec.k_norm), spec.kv_heads, spec, rows.len(), batch)?;
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
            kv_overflow_rows: self.row_reports.kv_overflows(&self.device)?,
            q_norm: q_norm.map_or_else(RoutedNorm::default, |norm| self.routed_norm(norm)),
            k_norm: k_norm.map_or_else(RoutedNorm::default, |norm| self.routed_norm(norm)),
            inv_freq,
            heads: spec.heads as u32,
            head_dim: spec.head_dim as u32,
            rope_pairs: rope.map_or(0, |rope| rope.inv_freq.len() as u32),
            is_interleaved: u32::from(rope.is_some_and(|rope| rope.layout == RopeLayout::Pairs)),
            rope_factor: rope.map_or(1.0, |rope| rope.factor),
            norm_eps: spec.q_norm.or(spec.k_norm).map_or(0.0, |norm| norm.norm.eps),
            temperature_beta: spec.query_temperature.map_or(0.0, |temperature| temperature.beta),
            temperature_positions: spec.query_temperature.map_or(1.0, |temperature| temperature.positions),
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
            overflow_rows: self.row_reports.activation_overflows(&self.device)?,
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
        match are_fused {
            true => self.forget_products(qkv),
            // Queries and keys were normed in their place.
            false => self.set_content(qkv, Content::Undefined),
        }
        self.set_content(out, Content::Elements);
        Ok(())
    }

    /// Whether the kernel that rotates queries and keys norms them first: RMS norms of each head without a bias, with one epsilon.
    fn are_head_norms_fused(&self, spec: &AttentionSpec) -> bool {
        let has_bias =
            |norm: &NormSpec| self.weights.norms.get(norm.id.0 as usize).is_some_and(|weights| weights.form.has_bias());
        let mut norms = [spec.q_norm, spec.k_norm].into_iter().flatten();
        let eps = spec.q_norm.or(spec.k_norm).map(|norm| norm.norm.eps);
        norms.all(|HeadNorm { norm, scope }| {
            norm.kind == NormKind::Rms && scope == HeadNormScope::Head && Some(norm.eps) == eps && !has_bias(&norm)
        })
    }

    /// Norms queries and keys where they are, in f32, by a launch each.
    fn norm_heads(&mut self, spec: &AttentionSpec, rows: usize, batch: &AdapterBatch, qkv: usize) -> Result<()> {
        let x = self.plain_rows(qkv)?;
        let stride = self.buffers[qkv].width as u32;
        let members = [(spec.q_norm, spec.heads, 0), (spec.k_norm, spec.kv_heads, spec.heads * spec.head_dim)];
        for (head_norm, heads, first) in members {
            let Some(routing) = self.head_norm(head_norm, heads, spec, rows, batch)? else { continue };
            let Some(HeadNorm { norm, scope }) = head_norm else { continue };
            let (segments, width) = match scope {
                HeadNormScope::All => (1, heads * spec.head_dim),
                HeadNormScope::Head | HeadNormScope::HeadOwn => (heads, spec.head_dim),
            };
            let arguments = NormSegments {
                x,
                out: x,
                norm: self.routed_norm(routing),
                rows: rows as u32,
                stride,
                first: first as u32,
                width: width as u32,
                weight_stride: if scope == HeadNormScope::HeadOwn { width as u32 } else { 0 },
                bias_offset: self.bias_offset(routing),
                subtracts_mean: u32::from(norm.kind == NormKind::Layer),
                eps: norm.eps,
            };
            self.kernels.norms()?.segments(&arguments, segments, rows)?;
        }
        Ok(())
    }

    /// Where a norm of so many heads is found, if the model has one.
    fn head_norm(
        &mut self,
        norm: Option<HeadNorm>,
        heads: usize,
        spec: &AttentionSpec,
        rows: usize,
        batch: &AdapterBatch,
    ) -> Result<Option<NormRouting>> {
        let Some(HeadNorm { norm, scope }) = norm else { return Ok(None) };
        let routing = self.route_norm(norm.id.0 as usize, rows, batch)?;
        let expected: usize = scope.weight_shape(heads, spec.head_dim).iter().product();
        let width = self.weights.norms[routing.norm].width();
        if width != expected {
            return Err(Error::new(ErrorCode::Internal, "a norm's weight does not fit")
                .with_expected(expected)
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
