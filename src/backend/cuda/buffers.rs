//! A step's buffers: what each holds, and what is still to be computed for it.
//!
//! The forward pass names an operation at a time, the kernels do several at once. So a buffer may hold less than it says:
//!
//! ```text
//! norm(w, x, out)        out: x, to be normed         the next linear on out applies an RMS norm while reading x
//! linear(group, x, y)    y: W x, to be expanded       the next operation on y finishes it while reading
//! attend, activate       out: elements                what the next linear reads
//! ```
//!
//! What no fused kernel reads in this form is finished by a plain one first (`ops/rows.rs`).

use std::sync::Arc;

use super::driver::{Device, DeviceMemory};
use super::layout::ElementType;
use super::ops::embed::SQUARES_COLUMNS;
use super::table_builder::PlacedRouting;
use crate::backend::NormKind;
use crate::error::Result;

/// Rows of a buffer are added in multiples of this many.
const ROW_STEP: usize = 64;

/// What a buffer holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Content {
    /// Nothing that may be read.
    #[default]
    Undefined,
    /// Rows in f32.
    Rows {
        /// Whether `sum_squares` is that of the rows.
        has_squares: bool,
    },
    /// Rows in the element type.
    Elements,
    /// The rows of another buffer, to be normed.
    Normed(PendingNorm),
    /// The products of a group, to be expanded: in f32, without bias and adapters.
    Projected(PendingProjection),
}

/// A norm that the next reader applies.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingNorm {
    /// The buffer whose rows are normed, which holds rows, with their sums of squares if linears apply the norm.
    pub(super) source: usize,
    /// The norm.
    pub(super) norm: NormRouting,
    /// What it divides by.
    pub(super) kind: NormKind,
    /// Its epsilon.
    pub(super) eps: f32,
    /// Number of rows.
    pub(super) rows: usize,
}

/// A norm, and where its weight may be found for each row.
#[derive(Clone, Copy, Debug)]
pub(super) struct NormRouting {
    /// The norm.
    pub(super) norm: usize,
    /// The norm as adapters count it, by repeats of its layer.
    pub(super) slot_norm: usize,
    /// Routing of the rows, if an adapter of theirs replaces the weight.
    pub(super) routing: Option<PlacedRouting>,
}

/// Products that the next reader expands. `t = A x` is in the step's scratch, hence one such buffer at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingProjection {
    /// The group.
    pub(super) group: usize,
    /// The group as adapters count it, by repeats of its layer.
    pub(super) slot_group: usize,
    /// Routing of the rows.
    pub(super) routing: PlacedRouting,
    /// Values from one entry's t to the next.
    pub(super) shrunk_stride: usize,
    /// Whether an adapter of the step replaces rows of a weight of the group, or takes something out of one.
    pub(super) changes_weights: bool,
}

/// Rows of one width, in the forms in which operations have needed them so far.
pub(super) struct Buffer {
    /// Values of a row.
    pub(super) width: usize,
    /// What it holds.
    pub(super) content: Content,
    /// Rows that it can hold.
    capacity: usize,
    rows: Scratch,
    squares: Scratch,
    elements: Scratch,
}

impl Buffer {
    /// An empty buffer.
    pub(super) fn new(width: usize) -> Self {
        Self {
            width,
            content: Content::Undefined,
            capacity: 0,
            rows: Scratch::default(),
            squares: Scratch::default(),
            elements: Scratch::default(),
        }
    }

    /// Makes room for that many rows, in each form that it has had. Content that does not fit is lost.
    ///
    /// # Errors
    /// `memory_exhausted`, which leaves the buffer as it was or empty.
    pub(super) fn reserve(&mut self, device: &Arc<Device>, rows: usize) -> Result<()> {
        if rows <= self.capacity {
            return Ok(());
        }
        (self.content, self.capacity) = (Content::Undefined, 0);
        let capacity = rows.next_multiple_of(ROW_STEP);
        let (row_bytes, square_bytes, element_bytes) = (self.row_bytes(), self.square_bytes(), self.element_bytes());
        self.rows.grow_if_used(device, capacity * row_bytes)?;
        self.squares.grow_if_used(device, capacity * square_bytes)?;
        self.elements.grow_if_used(device, capacity * element_bytes)?;
        self.capacity = capacity;
        Ok(())
    }

    /// Rows that it can hold.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Address of the rows in f32.
    ///
    /// # Errors
    /// `memory_exhausted`, if they are needed for the first time.
    pub(super) fn rows(&mut self, device: &Arc<Device>) -> Result<u64> {
        self.rows.reserve(device, self.capacity * self.row_bytes())
    }

    /// Address of the sums of squares of the rows.
    ///
    /// # Errors
    /// As [`Buffer::rows`].
    pub(super) fn squares(&mut self, device: &Arc<Device>) -> Result<u64> {
        self.squares.reserve(device, self.capacity * self.square_bytes())
    }

    /// Address of the rows in the element type.
    ///
    /// # Errors
    /// As [`Buffer::rows`].
    pub(super) fn elements(&mut self, device: &Arc<Device>) -> Result<u64> {
        self.elements.reserve(device, self.capacity * self.element_bytes())
    }

    /// Copies rows in, from row `first` on.
    ///
    /// # Errors
    /// `memory_exhausted`; the device failed.
    pub(super) fn write(&mut self, device: &Arc<Device>, first: usize, values: &[f32]) -> Result<()> {
        self.rows(device)?;
        self.rows.upload(first * self.row_bytes(), bytemuck::cast_slice(values))?;
        self.content = Content::Rows { has_squares: false };
        Ok(())
    }

    /// Copies the first rows out of f32.
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn read_rows(&self, values: &mut [f32]) -> Result<()> {
        self.rows.download(bytemuck::cast_slice_mut(values))
    }

    /// Copies the first rows out of the element type.
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn read_elements(&self, element: ElementType, values: &mut [f32]) -> Result<()> {
        let mut bits = vec![0u16; values.len()];
        self.elements.download(bytemuck::cast_slice_mut(&mut bits))?;
        values.iter_mut().zip(bits).for_each(|(value, bits)| *value = element.value_of(bits));
        Ok(())
    }

    fn row_bytes(&self) -> usize {
        self.width * size_of::<f32>()
    }

    fn square_bytes(&self) -> usize {
        self.width.div_ceil(SQUARES_COLUMNS) * size_of::<f32>()
    }

    fn element_bytes(&self) -> usize {
        self.width * size_of::<u16>()
    }
}

/// Device memory that grows to what was needed at most, and loses its content then.
#[derive(Default)]
pub(super) struct Scratch(Option<DeviceMemory>);

impl Scratch {
    /// The address of at least that many bytes.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub(super) fn reserve(&mut self, device: &Arc<Device>, bytes: usize) -> Result<u64> {
        if let Some(memory) = self.0.as_ref().filter(|memory| memory.len() >= bytes) {
            return Ok(memory.address());
        }
        // The old memory is freed first: both may not fit. Steps that grow by a row at a time allocate only now and then.
        self.0 = None;
        let step = (bytes / 8).next_power_of_two();
        let memory = device.allocate(bytes.next_multiple_of(step))?;
        let address = memory.address();
        self.0 = Some(memory);
        Ok(address)
    }

    /// The same, zeroed where it is new.
    ///
    /// # Errors
    /// `memory_exhausted`; the device failed.
    pub(super) fn reserve_zeroed(&mut self, device: &Arc<Device>, bytes: usize) -> Result<u64> {
        let is_new = self.0.as_ref().is_none_or(|memory| memory.len() < bytes);
        let address = self.reserve(device, bytes)?;
        if is_new {
            self.zero()?;
        }
        Ok(address)
    }

    /// Sets all bytes to zero.
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn zero(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), DeviceMemory::fill_zero)
    }

    /// Copies bytes in, from byte `offset` on.
    ///
    /// # Errors
    /// `internal` if it ends before them; the device failed.
    pub(super) fn upload(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |memory| memory.upload(offset, bytes))
    }

    /// Copies the first bytes out.
    ///
    /// # Errors
    /// `internal` if there are fewer; the device failed.
    pub(super) fn download(&self, bytes: &mut [u8]) -> Result<()> {
        self.download_at(0, bytes)
    }

    /// Copies bytes out, from byte `offset` on.
    ///
    /// # Errors
    /// `internal` if there are fewer; the device failed.
    pub(super) fn download_at(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |memory| memory.download(offset, bytes))
    }

    fn grow_if_used(&mut self, device: &Arc<Device>, bytes: usize) -> Result<()> {
        if self.0.is_some() {
            self.reserve(device, bytes)?;
        }
        Ok(())
    }
}
