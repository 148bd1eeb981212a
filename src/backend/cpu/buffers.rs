//! Activations of a step.

use super::arena::Region;
use super::tile::BLOCK;
use crate::error::{Error, ErrorCode, Result};

/// Rows of activations, `stride` values apart; what lies beyond a row's width is zero.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
}

impl<'a> Rows<'a> {
    /// Row `i` with its padding.
    pub(super) fn row(&self, i: usize) -> &'a [f32] {
        &self.values[i * self.stride..(i + 1) * self.stride]
    }
}

/// Activations. Rows are padded to whole blocks by zeros that nothing ever writes, so that a linear may read them
/// whole.
pub(super) struct Buffer {
    pub(super) width: usize,
    pub(super) stride: usize,
    rows: usize,
    region: Option<Region>,
}

impl Buffer {
    /// No rows of that width yet.
    pub(super) fn new(width: usize) -> Self {
        Self { width, stride: width.next_multiple_of(BLOCK), rows: 0, region: None }
    }

    /// Copies rows in, without their padding.
    pub(super) fn write(&mut self, values: &[f32]) -> Result<()> {
        self.expect(self.width, values.len().div_ceil(self.width.max(1)))?;
        let (width, stride) = (self.width.max(1), self.stride.max(1));
        for (row, values) in self.values_mut().chunks_exact_mut(stride).zip(values.chunks(width)) {
            row[..values.len()].copy_from_slice(values);
        }
        Ok(())
    }

    /// Copies rows out, without their padding.
    pub(super) fn read(&self, values: &mut [f32]) -> Result<()> {
        self.expect(self.width, values.len().div_ceil(self.width.max(1)))?;
        for (i, values) in values.chunks_mut(self.width.max(1)).enumerate() {
            values.copy_from_slice(&self.rows().row(i)[..values.len()]);
        }
        Ok(())
    }

    pub(super) fn reserve(&mut self, rows: usize) -> Result<()> {
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

    pub(super) fn rows(&self) -> Rows<'_> {
        Rows { values: self.region.as_ref().map_or(&[], Region::values), stride: self.stride }
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        self.region.as_mut().map_or(&mut [], Region::values_mut)
    }

    pub(super) fn expect(&self, width: usize, rows: usize) -> Result<()> {
        if self.width == width && rows <= self.rows {
            return Ok(());
        }
        Err(Error::new(ErrorCode::Internal, "a buffer does not fit the operation")
            .with_expected(format!("[{rows}, {width}]"))
            .with_found(format!("[{}, {}]", self.rows, self.width)))
    }
}
