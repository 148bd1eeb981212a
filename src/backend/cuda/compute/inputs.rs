//! Buffers as operations read and write them: what is pending is finished where the reader's kernel does not do that itself.

use super::{CudaCompute, unknown};
use crate::adapter::batch::AdapterBatch;
use crate::backend::cuda::buffers::{Content, NormRouting, PendingNorm, PendingProjection};
use crate::backend::cuda::ops::expand::Projection;
use crate::backend::cuda::ops::rows::{ExpandRows, SquareRows};
use crate::backend::cuda::step::Rows;
use crate::error::{Error, ErrorCode, Result};

/// What the linear kernel reads.
pub(super) enum LinearInput {
    /// Rows of the element type.
    Elements(u64),
    /// Rows in f32.
    Rows(u64),
    /// Rows in f32, to be normed; the normed ones have place in a buffer.
    Normed { rows: u64, squares: u64, norm: NormRouting, eps: f32, buffer: usize },
}

/// What the kernels that expand a group read, and the tables they read it by.
pub(super) struct Expandable {
    pub(super) projection: Projection,
    /// Address of the step's tables.
    pub(super) step: u64,
}

impl CudaCompute {
    /// Looks a buffer up and checks that it holds rows of a width.
    pub(super) fn expect(&self, index: usize, width: usize, rows: usize) -> Result<()> {
        let buffer = self.buffers.get(index).ok_or_else(|| unknown("a buffer"))?;
        if buffer.width == width && rows <= buffer.capacity() {
            return Ok(());
        }
        Err(Error::new(ErrorCode::Internal, "a buffer does not fit an operation")
            .with_expected(format!("{rows} rows of {width} values"))
            .with_found(format!("{} rows of {}", buffer.capacity(), buffer.width)))
    }

    /// Writes down what a buffer holds from now on; norms of what it held before are lost.
    pub(super) fn set_content(&mut self, index: usize, content: Content) {
        self.pending = match content {
            Content::Projected(_) => Some(index),
            _ => self.pending.filter(|&pending| pending != index),
        };
        for buffer in &mut self.buffers {
            if matches!(buffer.content, Content::Normed(norm) if norm.source == index) {
                buffer.content = Content::Undefined;
            }
        }
        self.buffers[index].content = content;
    }

    /// What the linear kernel reads of the first rows of a buffer.
    ///
    /// # Errors
    /// `internal` if it holds nothing; `memory_exhausted`; the device failed.
    pub(super) fn linear_input(&mut self, index: usize) -> Result<LinearInput> {
        match self.buffers[index].content {
            Content::Elements => Ok(LinearInput::Elements(self.buffers[index].elements(&self.device)?)),
            Content::Normed(pending) if self.is_applied_by_linears(&pending) => {
                let PendingNorm { source, norm, eps, .. } = pending;
                let (device, source) = (&self.device, &mut self.buffers[source]);
                let (rows, squares) = (source.rows(device)?, source.squares(device)?);
                Ok(LinearInput::Normed { rows, squares, norm, eps, buffer: index })
            }
            Content::Undefined | Content::Rows { .. } | Content::Projected(_) | Content::Normed(_) => {
                Ok(LinearInput::Rows(self.plain_rows(index)?))
            }
        }
    }

    /// The address of a buffer's rows in f32, finished.
    ///
    /// # Errors
    /// As [`CudaCompute::linear_input`]; `internal` for rows of the element type, which no operation reads as f32.
    pub(super) fn plain_rows(&mut self, index: usize) -> Result<u64> {
        match self.buffers[index].content {
            Content::Rows { .. } => {}
            Content::Projected(pending) => {
                let Expandable { projection, step } = self.pending_expandable(index, &pending)?;
                let y = self.buffers[index].rows(&self.device)?;
                let expand = ExpandRows { projection, step, y, ..ExpandRows::default() };
                self.kernels.rows.expand(&expand, pending.routing.rows)?;
                self.set_content(index, Content::Rows { has_squares: false });
            }
            Content::Normed(norm) => self.norm_rows(index, norm)?,
            Content::Undefined => {
                return Err(unread("a buffer that nothing was written to, or whose content was lost"));
            }
            Content::Elements => return Err(unread("activations, as rows of float32")),
        }
        self.buffers[index].rows(&self.device)
    }

    /// Makes sure that a buffer holds rows with their sums of squares, `rows` of them.
    ///
    /// # Errors
    /// As [`CudaCompute::plain_rows`].
    pub(super) fn rows_with_squares(&mut self, index: usize, rows: usize) -> Result<()> {
        let x = self.plain_rows(index)?;
        if let Content::Rows { has_squares: false } = self.buffers[index].content {
            let sum_squares = self.buffers[index].squares(&self.device)?;
            let width = self.buffers[index].width as u32;
            if rows > 0 {
                self.kernels.rows.square(&SquareRows { x, sum_squares, rows: rows as u32, width })?;
            }
            self.buffers[index].content = Content::Rows { has_squares: true };
        }
        Ok(())
    }

    fn norm_rows(&mut self, index: usize, norm: PendingNorm) -> Result<()> {
        let out = self.buffers[index].rows(&self.device)?;
        self.write_normed(norm, out)?;
        self.set_content(index, Content::Rows { has_squares: false });
        Ok(())
    }

    /// Finishes the products that wait for their reader, before `t = A x` in the scratch is overwritten.
    ///
    /// # Errors
    /// `memory_exhausted`; the device failed.
    pub(super) fn finish_pending(&mut self) -> Result<()> {
        match self.pending {
            Some(index) => self.plain_rows(index).map(drop),
            None => Ok(()),
        }
    }

    /// The products in a buffer, or its rows as if they were finished products, of linears with these outputs.
    ///
    /// # Errors
    /// As [`CudaCompute::plain_rows`].
    pub(super) fn expandable(&mut self, index: usize, out_features: &[usize], rows: usize) -> Result<Expandable> {
        if let Content::Projected(pending) = self.buffers[index].content {
            let linears = &self.weights.groups[pending.group].linears;
            if linears.iter().map(|linear| linear.out_features()).eq(out_features.iter().copied()) {
                return self.pending_expandable(index, &pending);
            }
        }
        let projected = self.plain_rows(index)?;
        let routing = self.step.routing(Rows::First(rows), &AdapterBatch::default(), &self.adapters)?;
        let projection = Projection { projected, ..Projection::of_outputs(out_features.iter().copied()) };
        Ok(Expandable { projection, step: self.step.address(routing.offset) })
    }

    /// Forgets products that a fused kernel has finished while reading them: nobody reads them twice.
    pub(super) fn forget_products(&mut self, index: usize) {
        if let Content::Projected(_) = self.buffers[index].content {
            self.set_content(index, Content::Undefined);
        }
    }

    fn pending_expandable(&mut self, index: usize, pending: &PendingProjection) -> Result<Expandable> {
        let projected = self.buffers[index].rows(&self.device)?;
        let projection = self.projection(pending, projected)?;
        Ok(Expandable { projection, step: self.step.address(pending.routing.offset) })
    }
}

fn unread(what: &str) -> Error {
    Error::new(ErrorCode::Internal, format!("an operation reads {what}"))
}
