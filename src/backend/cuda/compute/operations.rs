//! [`Compute`]: each operation looks up what its ids name.

use std::ops::Range;
use std::sync::Arc;

use super::inputs::Expandable;
use super::{CudaCompute, unknown};
use crate::adapter::batch::{AdapterBatch, SlotId};
use crate::backend::cuda::adapter::Adapter;
use crate::backend::cuda::buffers::{Buffer, Content};
use crate::backend::cuda::kv_cache::KvCache;
use crate::backend::cuda::ops::expand::{ExpandActivate, activation_kind};
use crate::backend::kv_states::KvStates;
use crate::backend::{
    Activation, AttentionSpec, BufferId, Compute, EmbeddingId, GroupId, HeadSpec, KvDType, KvId, KvPositions, KvShape,
    LargestLogit, LogitRows, MlpShape, NormSpec, PreparedAdapter, StepInputs, StepRows, Write,
};
use crate::error::Result;

/// Adapters of a row for which memory is reserved; larger mixtures allocate more when they are first seen.
const RESERVED_ENTRIES: usize = 4;
/// Most bytes of `t = A x` that are reserved before a step needs them.
const MAX_RESERVED_SHRUNK: usize = 64 << 20;

impl Compute for CudaCompute {
    fn create_buffer(&mut self, width: usize) -> BufferId {
        self.buffers.push(Buffer::new(width));
        BufferId(self.buffers.len() as u32 - 1)
    }

    fn begin_step(&mut self, inputs: &StepInputs<'_>) -> Result<()> {
        self.reserve_rows(inputs.tokens.len())?;
        self.step.announce(inputs, &self.adapters)
    }

    fn reserve_step(&mut self, dry_run: &mut dyn FnMut(&mut dyn Compute) -> Result<()>) -> Result<()> {
        let device = Arc::clone(&self.device);
        let launches_nothing = device.dry_run();
        let done = dry_run(self);
        drop(launches_nothing);
        self.forget_step();
        done?;
        self.step.reserve_entries(self.row_reports.capacity() * RESERVED_ENTRIES)
    }

    fn reserve_rows(&mut self, rows: usize) -> Result<()> {
        self.forget_step();
        self.row_reports.begin(&self.device, rows)?;
        self.buffers.iter_mut().try_for_each(|buffer| buffer.reserve(&self.device, rows))
    }

    fn write_rows(&mut self, buffer: BufferId, first: usize, values: &[f32]) -> Result<()> {
        let index = buffer.0 as usize;
        let buffer = self.buffers.get(index).ok_or_else(|| unknown("a buffer"))?;
        if first * buffer.width + values.len() > buffer.capacity() * buffer.width {
            return Err(unknown("rows"));
        }
        // The other rows stay, so they have to be there in f32.
        match buffer.content {
            Content::Projected(_) | Content::Normed(_) => drop(self.plain_rows(index)?),
            Content::Undefined | Content::Rows { .. } | Content::Elements => {}
        }
        self.buffers[index].write(&self.device, first, values)?;
        self.set_content(index, Content::Rows { has_squares: false });
        Ok(())
    }

    fn read_rows(&mut self, buffer: BufferId, values: &mut [f32]) -> Result<()> {
        let index = buffer.0 as usize;
        let buffer = self.buffers.get(index).ok_or_else(|| unknown("a buffer"))?;
        if values.len() > buffer.capacity() * buffer.width {
            return Err(unknown("rows"));
        }
        if let Content::Elements = buffer.content {
            return buffer.read_elements(self.weights.element, values);
        }
        self.plain_rows(index)?;
        self.buffers[index].read_rows(values)
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        self.device.free_bytes().map(Some)
    }

    fn create_kv(&mut self, shape: KvShape) -> Result<KvId> {
        let cache = KvCache::new(&self.device, shape)?;
        self.memory.add_kv(cache.bytes());
        self.kvs.push(Some(cache));
        Ok(KvId(self.kvs.len() as u32 - 1))
    }

    fn drop_kv(&mut self, kv: KvId) {
        if let Some(cache) = self.kvs.get_mut(kv.0 as usize).and_then(Option::take) {
            self.memory.remove_kv(cache.bytes());
        }
    }

    fn read_kv(&self, kv: KvId, layer: usize, block_table: &[u32], positions: Range<usize>) -> Result<KvStates> {
        self.kv(kv)?.read(layer, block_table, positions)
    }

    fn copy_kv_pages(&mut self, from: KvId, from_pages: &[u32], to: KvId, to_pages: &[u32]) -> Result<()> {
        self.kv(from)?.copy_pages(from_pages, self.kv(to)?, to_pages)
    }

    fn copy_kv_positions(
        &mut self,
        layer: usize,
        from: KvPositions<'_>,
        to: KvPositions<'_>,
        keys: Option<&[f32]>,
    ) -> Result<bool> {
        self.kv(from.kv)?.copy_positions(layer, from, self.kv(to.kv)?, to, keys)
    }

    fn install_adapter(&mut self, slot: SlotId, adapter: PreparedAdapter) -> Result<()> {
        self.forget_step();
        self.adapters.install(slot, adapter)?;
        let stack_rows = self.adapters[slot.0 as usize].as_ref().map_or(0, Adapter::largest_stack);
        if let Err(error) = self.reserve_shrunk(stack_rows) {
            self.adapters.remove(slot);
            return Err(error);
        }
        Ok(())
    }

    fn drop_adapter(&mut self, slot: SlotId) {
        self.forget_step();
        self.adapters.remove(slot);
    }

    fn embed(
        &mut self,
        table: EmbeddingId,
        tokens: &[u32],
        multiplier: f32,
        batch: &AdapterBatch,
        out: BufferId,
    ) -> Result<()> {
        self.run_embed(table.0 as usize, tokens, multiplier, batch, out.0 as usize)
    }

    fn norm(
        &mut self,
        norm: &NormSpec,
        x: BufferId,
        rows: usize,
        batch: &AdapterBatch,
        out: BufferId,
        write: Write,
    ) -> Result<()> {
        self.run_norm(norm, x.0 as usize, rows, batch, out.0 as usize, write)
    }

    fn linear(
        &mut self,
        group: GroupId,
        x: BufferId,
        rows: usize,
        batch: &AdapterBatch,
        y: BufferId,
        write: Write,
    ) -> Result<()> {
        self.run_linear(group.0 as usize, x.0 as usize, rows, batch, y.0 as usize, write)
    }

    fn attend(
        &mut self,
        spec: &AttentionSpec,
        kv: KvId,
        rows: &StepRows,
        batch: &AdapterBatch,
        qkv: BufferId,
        out: BufferId,
    ) -> Result<()> {
        self.run_attention(spec, kv.0 as usize, rows, batch, qkv.0 as usize, out.0 as usize)
    }

    fn take_kv_overflows(&mut self) -> Result<Vec<u32>> {
        self.row_reports.take_kv()
    }

    fn take_activation_overflows(&mut self) -> Result<Vec<u32>> {
        Ok(self.row_reports.take_activations())
    }

    fn activate(
        &mut self,
        activation: Activation,
        shape: MlpShape,
        x: BufferId,
        rows: usize,
        out: BufferId,
    ) -> Result<()> {
        let (up, out) = (x.0 as usize, out.0 as usize);
        let width = self.buffers.get(out).ok_or_else(|| unknown("a buffer"))?.width;
        if up == out {
            return Err(unknown("one buffer for input and output,"));
        }
        let outputs: &[usize] = match shape {
            MlpShape::Gated => &[width; 2],
            MlpShape::Plain => &[width],
        };
        self.expect(up, outputs.iter().sum(), rows)?;
        self.expect(out, width, rows)?;
        if rows == 0 {
            return Ok(());
        }
        let Expandable { projection, step } = self.expandable(up, outputs, rows)?;
        let expand = ExpandActivate {
            projection,
            step,
            activated: self.buffers[out].elements(&self.device)?,
            overflow_rows: self.row_reports.activation_overflows(&self.device)?,
            intermediate_size: width as u32,
            activation: activation_kind(activation),
        };
        self.kernels.expand(KvDType::F16)?.activate(&expand, shape, rows)?;
        self.forget_products(up);
        self.set_content(out, Content::Elements);
        Ok(())
    }

    fn head(
        &mut self,
        head: &HeadSpec,
        x: BufferId,
        rows: LogitRows<'_>,
        logits: &mut [f32],
        stride: usize,
    ) -> Result<()> {
        self.run_head(head, x.0 as usize, rows, logits, stride)
    }

    fn take_largest_logits(&mut self) -> Result<Vec<Option<LargestLogit>>> {
        self.read_largest_logits()
    }
}

impl CudaCompute {
    fn kv(&self, kv: KvId) -> Result<&KvCache> {
        self.kvs.get(kv.0 as usize).and_then(Option::as_ref).ok_or_else(|| unknown("a KV cache"))
    }

    /// Reserves `t = A x` for an adapter on every row that was reserved, alone or in a mixture, so that its first step allocates
    /// nothing. Very large ranks are left to the steps that have them.
    fn reserve_shrunk(&mut self, stack_rows: usize) -> Result<()> {
        let entries = self.row_reports.capacity() * RESERVED_ENTRIES;
        match (entries * stack_rows * size_of::<f32>()).min(MAX_RESERVED_SHRUNK) {
            0 => Ok(()),
            bytes => self.scratch.shrunk.reserve(&self.device, bytes).map(drop),
        }
    }

    /// Forgets the tables of the last step, and with them what waits to be finished by them.
    fn forget_step(&mut self) {
        self.step.clear();
        self.pending = None;
        for buffer in &mut self.buffers {
            if matches!(buffer.content, Content::Projected(_) | Content::Normed(_)) {
                buffer.content = Content::Undefined;
            }
        }
    }
}
