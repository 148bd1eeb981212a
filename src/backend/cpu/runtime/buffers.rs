//! Activations of a step.

use super::arena::Region;
use crate::backend::cpu::kernels::tile::BLOCK;
use crate::backend::{HeadSpec, Write};
use crate::error::{Error, ErrorCode, Result};

/// Rows of activations, `stride` values apart; the padding beyond a row's width is zero.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
}

impl<'a> Rows<'a> {
    /// Row `i` with its padding.
    pub(crate) fn row(&self, i: usize) -> &'a [f32] {
        &self.values[i * self.stride..(i + 1) * self.stride]
    }
}

/// Activations. Rows are padded to whole blocks by zeros that nothing ever writes, so that a linear may read them
/// whole.
pub(crate) struct Buffer {
    pub(crate) width: usize,
    pub(crate) stride: usize,
    rows: usize,
    region: Option<Region>,
}

impl Buffer {
    /// No rows of that width yet.
    pub(crate) fn new(width: usize) -> Self {
        Self { width, stride: width.next_multiple_of(BLOCK), rows: 0, region: None }
    }

    /// Copies rows in, without their padding, from row `first` on.
    pub(crate) fn write(&mut self, first: usize, values: &[f32]) -> Result<()> {
        self.expect(self.width, first + values.len().div_ceil(self.width.max(1)))?;
        let (width, stride) = (self.width.max(1), self.stride.max(1));
        for (row, values) in self.values_mut().chunks_exact_mut(stride).skip(first).zip(values.chunks(width)) {
            row[..values.len()].copy_from_slice(values);
        }
        Ok(())
    }

    /// Copies rows out, without their padding.
    pub(crate) fn read(&self, values: &mut [f32]) -> Result<()> {
        self.expect(self.width, values.len().div_ceil(self.width.max(1)))?;
        for (i, values) in values.chunks_mut(self.width.max(1)).enumerate() {
            values.copy_from_slice(&self.rows().row(i)[..values.len()]);
        }
        Ok(())
    }

    pub(crate) fn reserve(&mut self, rows: usize) -> Result<()> {
        if rows > self.rows {
            let bytes = rows.checked_mul(self.stride * size_of::<f32>());
            let bytes =
                bytes.ok_or_else(|| Error::new(ErrorCode::MemoryExhausted, "a step exceeds the address space"))?;
            self.region = None;
            self.rows = 0;
            self.region = Some(Region::new(bytes)?);
            self.rows = rows;
        }
        Ok(())
    }

    pub(crate) fn rows(&self) -> Rows<'_> {
        Rows { values: self.region.as_ref().map_or(&[], Region::values), stride: self.stride }
    }

    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        self.region.as_mut().map_or(&mut [], Region::values_mut)
    }

    pub(crate) fn expect(&self, width: usize, rows: usize) -> Result<()> {
        if self.width == width && rows <= self.rows {
            return Ok(());
        }
        Err(Error::new(ErrorCode::Internal, "a buffer does not fit the operation")
            .with_expected(format!("[{rows}, {width}]"))
            .with_found(format!("[{}, {}]", self.rows, self.width)))
    }
}

/// The input rows of a product.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) x: Rows<'a>,
    /// Number of rows.
    pub(crate) rows: usize,
    /// Which rows of `x`; `None` for all, from the first on.
    pub(crate) picked: Option<&'a [u32]>,
}

impl<'a> Inputs<'a> {
    /// The input row of row `i` of the step.
    pub(crate) fn row(&self, i: usize) -> &'a [f32] {
        self.x.row(self.picked.map_or(i, |picked| picked[i] as usize))
    }
}

/// Where results go.
pub(crate) struct Output<'a> {
    pub(crate) y: &'a mut [f32],
    pub(crate) stride: usize,
    /// Values of a row that may be written.
    pub(crate) width: usize,
    pub(crate) store: Store,
}

/// What is done with a linear's results where they are stored.
#[derive(Clone, Copy)]
pub(crate) enum Store {
    /// They replace what is there.
    Replace,
    /// They are added to it, times a factor.
    Add { factor: f32 },
    /// They are multiplied by a factor and bounded by a cap, and replace what is there.
    Bounded { factor: f32, cap: Option<f32> },
}

impl From<Write> for Store {
    fn from(write: Write) -> Self {
        match write {
            Write::Replace => Store::Replace,
            Write::Add { factor } => Store::Add { factor },
        }
    }
}

impl From<&HeadSpec> for Store {
    fn from(head: &HeadSpec) -> Self {
        match *head {
            HeadSpec { multiplier: 1.0, cap: None, .. } => Store::Replace,
            HeadSpec { multiplier: factor, cap, .. } => Store::Bounded { factor, cap },
        }
    }
}
