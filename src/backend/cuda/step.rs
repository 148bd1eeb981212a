//! The tables of the running step, on the device: uploaded once where the step was announced, and once for each other routing
//! or set of positions that an operation is called with.

use std::sync::Arc;

use super::adapter::Adapter;
use super::driver::{Device, DeviceMemory, StagingBuffers, Stream};
use super::table_builder::{PlacedAttention, PlacedRouting, TableBuilder};
use super::tables::Slot;
use crate::adapter::batch::{AdapterBatch, SlotId};
use crate::backend::{LogitRows, StepInputs, StepRows};
use crate::error::{Error, ErrorCode, Result};

/// Least bytes of the buffer, enough for the decoding of some hundred rows.
const LEAST_BYTES: usize = 64 << 10;
/// Pinned buffers through which tables go, and the bytes of each. While the card still reads those of one step, the next step's
/// are written into another one.
const PINNED_BUFFERS: usize = 3;
const PINNED_BYTES: usize = 1 << 20;

/// The tables of the running step, and the buffer that holds them.
pub(super) struct Step {
    device: Arc<Device>,
    builder: TableBuilder,
    buffer: DeviceMemory,
    pinned: StagingBuffers,
    /// Bytes of the builder that the buffer has.
    uploaded: usize,
    /// Most bytes of a step's tables so far.
    largest: usize,
    routings: Reused<Routing>,
    attentions: Reused<Attention>,
}

/// A routing that is on the device.
#[derive(Default)]
struct Routing {
    batch: AdapterBatch,
    tokens: Vec<u32>,
    input_rows: Vec<u32>,
    placed: PlacedRouting,
}

/// Positions and pages that are on the device.
#[derive(Default)]
struct Attention {
    rows: StepRows,
    placed: PlacedAttention,
}

/// The rows of a step that an operation computes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rows<'a> {
    /// The first ones, with their tokens.
    Tokens(&'a [u32]),
    /// That many of the first ones, whose tokens are not read.
    First(usize),
    /// Those whose logits are wanted.
    Picked(&'a [u32]),
}

impl Step {
    /// No step yet.
    pub(super) fn new(device: &Arc<Device>) -> Result<Self> {
        let buffer = device.allocate(LEAST_BYTES)?;
        let mut builder = TableBuilder::default();
        builder.set_base(buffer.address());
        Ok(Self {
            device: Arc::clone(device),
            builder,
            buffer,
            pinned: StagingBuffers::new(device, Stream::Compute, PINNED_BUFFERS, PINNED_BYTES)?,
            uploaded: 0,
            largest: 0,
            routings: Reused::default(),
            attentions: Reused::default(),
        })
    }

    /// Forgets the tables of the last step.
    pub(super) fn clear(&mut self) {
        self.builder.clear();
        self.uploaded = 0;
        self.routings.clear();
        self.attentions.clear();
    }

    /// Makes room for the tables of the last step with that many entries of adapters besides, twice: of its rows, and of those
    /// whose logits are wanted.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(super) fn reserve_entries(&mut self, entries: usize) -> Result<()> {
        self.reserve(self.largest + 2 * entries * TableBuilder::ENTRY_BYTES)
    }

    /// Uploads all tables of a step.
    ///
    /// # Errors
    /// `memory_exhausted`; `internal` if the step names an empty slot or a row that does not exist; the device failed.
    pub(super) fn announce(&mut self, inputs: &StepInputs<'_>, adapters: &[Option<Adapter>]) -> Result<()> {
        self.push_routing(Rows::Tokens(inputs.tokens), inputs.adapters, adapters)?;
        for rows in inputs.kv_groups {
            self.push_attention(rows)?;
        }
        let LogitRows { rows: logit_rows, adapters: logit_adapters, .. } = inputs.logits;
        if !logit_rows.is_empty() {
            self.push_routing(Rows::Picked(logit_rows), logit_adapters, adapters)?;
        }
        self.upload()
    }

    /// The address of a table, until the next one is added.
    pub(super) fn address(&self, offset: usize) -> u64 {
        self.buffer.address() + offset as u64
    }

    /// The routing of some rows, uploaded unless the step has it.
    ///
    /// # Errors
    /// Those of [`Step::announce`].
    pub(super) fn routing(
        &mut self,
        rows: Rows<'_>,
        batch: &AdapterBatch,
        adapters: &[Option<Adapter>],
    ) -> Result<PlacedRouting> {
        if !self.routings.used().iter().any(|routing| routing.serves(rows, batch)) {
            self.push_routing(rows, batch, adapters)?;
            self.upload()?;
        }
        let placed = self.routings.used().iter().find(|routing| routing.serves(rows, batch)).map(|r| r.placed);
        placed.ok_or_else(lost)
    }

    /// The positions and pages of a step's rows, uploaded unless the step has them.
    ///
    /// # Errors
    /// Those of [`Step::announce`].
    pub(super) fn attention(&mut self, rows: &StepRows) -> Result<PlacedAttention> {
        if !self.attentions.used().iter().any(|attention| attention.rows == *rows) {
            self.push_attention(rows)?;
            self.upload()?;
        }
        let placed = self.attentions.used().iter().find(|attention| attention.rows == *rows).map(|a| a.placed);
        placed.ok_or_else(lost)
    }

    fn push_routing(&mut self, rows: Rows<'_>, batch: &AdapterBatch, adapters: &[Option<Adapter>]) -> Result<()> {
        let slot_of = |slot: SlotId| -> Option<Slot> { Some(adapters.get(slot.0 as usize)?.as_ref()?.slot()) };
        let placed = match rows {
            Rows::Tokens(tokens) => self.builder.push_step(tokens, batch, slot_of)?,
            Rows::First(rows) => self.builder.push_rows(rows, batch, slot_of)?,
            Rows::Picked(input_rows) => self.builder.push_picked(input_rows, batch, slot_of)?,
        };
        let routing = self.routings.next();
        routing.batch.clone_from(batch);
        routing.tokens.clear();
        routing.input_rows.clear();
        match rows {
            Rows::Tokens(tokens) => routing.tokens.extend_from_slice(tokens),
            Rows::First(_) => {}
            Rows::Picked(input_rows) => routing.input_rows.extend_from_slice(input_rows),
        }
        routing.placed = placed;
        Ok(())
    }

    fn push_attention(&mut self, rows: &StepRows) -> Result<()> {
        let placed = self.builder.push_attention(rows)?;
        let attention = self.attentions.next();
        attention.rows.positions.clone_from(&rows.positions);
        attention.rows.sequences.clone_from(&rows.sequences);
        attention.rows.block_tables.clone_from(&rows.block_tables);
        attention.placed = placed;
        Ok(())
    }

    /// Makes the buffer at least that long. What it held is uploaded again.
    fn reserve(&mut self, bytes: usize) -> Result<()> {
        if bytes > self.buffer.len() {
            self.buffer = self.device.allocate(bytes.next_power_of_two())?;
            self.builder.set_base(self.buffer.address());
            self.uploaded = 0;
        }
        Ok(())
    }

    /// Copies to the device what it does not have, behind the kernels that read what the buffer held before, and does not wait.
    fn upload(&mut self) -> Result<()> {
        let needed = self.builder.image().len();
        self.largest = self.largest.max(needed);
        self.reserve(needed)?;
        self.pinned.upload(&self.buffer, self.uploaded, &self.builder.image().bytes()[self.uploaded..])?;
        self.uploaded = needed;
        Ok(())
    }
}

impl Routing {
    /// Whether kernels can use it for those rows.
    fn serves(&self, rows: Rows<'_>, batch: &AdapterBatch) -> bool {
        // The first rows are the same to a kernel that reads tokens and to one that does not.
        let same_rows = match rows {
            Rows::Tokens(tokens) => self.tokens == tokens && self.input_rows.is_empty(),
            Rows::First(rows) => self.placed.rows == rows && self.input_rows.is_empty(),
            Rows::Picked(input_rows) => self.input_rows == input_rows && self.tokens.is_empty(),
        };
        same_rows && self.batch.routes_as(batch)
    }
}

fn lost() -> Error {
    Error::new(ErrorCode::Internal, "the step's tables were not kept")
}

/// Values that keep their buffers from step to step.
struct Reused<T> {
    values: Vec<T>,
    used: usize,
}

impl<T> Default for Reused<T> {
    fn default() -> Self {
        Self { values: Vec::new(), used: 0 }
    }
}

impl<T: Default> Reused<T> {
    fn clear(&mut self) {
        self.used = 0;
    }

    fn used(&self) -> &[T] {
        &self.values[..self.used]
    }

    /// One more, which may hold anything.
    fn next(&mut self) -> &mut T {
        if self.used == self.values.len() {
            self.values.push(T::default());
        }
        self.used += 1;
        &mut self.values[self.used - 1]
    }
}
