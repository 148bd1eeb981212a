//! A backend for tests that fails where a test wants it to.

use std::ops::Range;

use crate::adapter::batch::{AdapterBatch, SlotId};
use crate::backend::{
    Activation, AttentionSpec, BufferId, Compute, EmbeddingId, GroupId, HeadSpec, KvId, KvPositions, KvShape, KvStates,
    LargestLogit, LogitRows, MlpShape, NormSpec, PreparedAdapter, StepRows, Write,
};
use crate::error::{Error, ErrorCode, Result};

/// A step that contains this token panics.
pub(super) const PANIC: u32 = 2000;
/// A step that contains this token fails.
pub(super) const FAIL: u32 = 2001;

/// Computes as the backend it wraps, but fails where a test wants it to.
pub(super) struct FaultyCompute {
    pub inner: Box<dyn Compute>,
    /// Steps of more rows lack memory.
    pub max_rows: usize,
}

impl Compute for FaultyCompute {
    fn embed(
        &mut self,
        table: EmbeddingId,
        tokens: &[u32],
        multiplier: f32,
        batch: &AdapterBatch,
        out: BufferId,
    ) -> Result<()> {
        assert!(!tokens.contains(&PANIC), "this token is right out");
        if tokens.contains(&FAIL) || tokens.len() > self.max_rows {
            return Err(Error::new(ErrorCode::MemoryExhausted, "no memory for this step"));
        }
        self.inner.embed(table, tokens, multiplier, batch, out)
    }

    fn create_buffer(&mut self, width: usize) -> BufferId {
        self.inner.create_buffer(width)
    }

    fn reserve_rows(&mut self, rows: usize) -> Result<()> {
        self.inner.reserve_rows(rows)
    }

    fn write_rows(&mut self, buffer: BufferId, first: usize, values: &[f32]) -> Result<()> {
        self.inner.write_rows(buffer, first, values)
    }

    fn read_rows(&mut self, buffer: BufferId, values: &mut [f32]) -> Result<()> {
        self.inner.read_rows(buffer, values)
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        self.inner.free_bytes()
    }

    fn create_kv(&mut self, shape: KvShape) -> Result<KvId> {
        self.inner.create_kv(shape)
    }

    fn drop_kv(&mut self, kv: KvId) {
        self.inner.drop_kv(kv);
    }

    fn read_kv(&self, kv: KvId, layer: usize, block_table: &[u32], positions: Range<usize>) -> Result<KvStates> {
        self.inner.read_kv(kv, layer, block_table, positions)
    }

    fn copy_kv_pages(&mut self, from: KvId, from_pages: &[u32], to: KvId, to_pages: &[u32]) -> Result<()> {
        self.inner.copy_kv_pages(from, from_pages, to, to_pages)
    }

    fn copy_kv_positions(
        &mut self,
        layer: usize,
        from: KvPositions<'_>,
        to: KvPositions<'_>,
        keys: Option<&[f32]>,
    ) -> Result<bool> {
        self.inner.copy_kv_positions(layer, from, to, keys)
    }

    fn install_adapter(&mut self, slot: SlotId, adapter: PreparedAdapter) -> Result<()> {
        self.inner.install_adapter(slot, adapter)
    }

    fn drop_adapter(&mut self, slot: SlotId) {
        self.inner.drop_adapter(slot);
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
        self.inner.norm(norm, x, rows, batch, out, write)
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
        self.inner.linear(group, x, rows, batch, y, write)
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
        self.inner.attend(spec, kv, rows, batch, qkv, out)
    }

    fn take_kv_overflows(&mut self) -> Result<Vec<u32>> {
        self.inner.take_kv_overflows()
    }

    fn take_activation_overflows(&mut self) -> Result<Vec<u32>> {
        self.inner.take_activation_overflows()
    }

    fn activate(
        &mut self,
        activation: Activation,
        shape: MlpShape,
        x: BufferId,
        rows: usize,
        out: BufferId,
    ) -> Result<()> {
        self.inner.activate(activation, shape, x, rows, out)
    }

    fn head(
        &mut self,
        head: &HeadSpec,
        x: BufferId,
        rows: LogitRows<'_>,
        logits: &mut [f32],
        stride: usize,
    ) -> Result<()> {
        self.inner.head(head, x, rows, logits, stride)
    }

    fn take_largest_logits(&mut self) -> Result<Vec<Option<LargestLogit>>> {
        self.inner.take_largest_logits()
    }
}
