//! Data types, shapes and borrowed views of stored tensors.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use half::{bf16, f16};

use crate::error::{Error, ErrorCode, Result};

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// IEEE single precision.
    F32,
    /// 32-bit integer: packed codes, group indices.
    I32,
    /// 16-bit integer.
    I16,
    /// 64-bit integer.
    I64,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            DType::F16 | DType::BF16 | DType::I16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::I64 => 8,
        }
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F16 | DType::BF16 | DType::F32)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            DType::F32 => "float32",
            DType::I32 => "int32",
            DType::I16 => "int16",
            DType::I64 => "int64",
        })
    }
}

/// A borrowed view of a stored tensor: little-endian, row-major, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    dtype: DType,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// A view of `bytes` with a shape, or `None` if their sizes disagree.
    pub fn new(dtype: DType, shape: &'a [usize], bytes: &'a [u8]) -> Option<Self> {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        (elements.checked_mul(dtype.bytes())? == bytes.len()).then_some(Self { dtype, shape, bytes })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extent of each dimension.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The stored bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.bytes()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Widens the elements of `range` to f32, without rounding.
    ///
    /// # Panics
    /// If the range is out of bounds, the lengths differ, or the dtype is not a float.
    pub fn read_f32(&self, range: Range<usize>, out: &mut [f32]) {
        assert_eq!(range.len(), out.len());
        let size = self.dtype.bytes();
        let bytes = &self.bytes[range.start * size..range.end * size];
        match self.dtype {
            DType::F32 => widen(bytes, out, f32::from_le_bytes),
            DType::F16 => widen(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            DType::BF16 => widen(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            other => panic!("{other} is not a float"),
        }
    }

    /// All elements widened to f32, without rounding.
    ///
    /// # Panics
    /// If the dtype is not a float.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.read_f32(0..self.len(), &mut out);
        out
    }

    /// As [`TensorView::to_f32`], for a tensor of any size.
    ///
    /// # Errors
    /// `memory_exhausted`.
    ///
    /// # Panics
    /// If the dtype is not a float.
    pub(crate) fn try_to_f32(&self) -> Result<Vec<f32>> {
        let mut out = zeros(self.len())?;
        self.read_f32(0..self.len(), &mut out);
        Ok(out)
    }

    /// Element `index` of an int32 tensor.
    ///
    /// # Panics
    /// If the index is out of bounds or the dtype is not int32.
    pub fn i32_at(&self, index: usize) -> i32 {
        assert_eq!(self.dtype, DType::I32);
        let at = index * 4;
        i32::from_le_bytes([self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]])
    }
}

fn widen<const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    for (chunk, value) in bytes.as_chunks::<N>().0.iter().zip(out) {
        *value = read(*chunk);
    }
}

/// A tensor that borrows its bytes from a file or, if no file contains them in this form, owns them.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<'a> {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Tensor<'a> {
    /// An owned float32 tensor.
    ///
    /// # Panics
    /// If the number of values is not the product of the shape.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dtype: DType::F32, shape: shape.to_vec(), bytes: Cow::Owned(bytes) }
    }

    /// As [`Tensor::from_f32`], for a tensor of any size.
    ///
    /// # Errors
    /// `memory_exhausted`.
    ///
    /// # Panics
    /// As [`Tensor::from_f32`].
    pub(crate) fn try_from_f32(shape: &[usize], values: &[f32]) -> Result<Self> {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        let mut bytes = zeros::<u8>(size_of_val(values))?;
        bytes.as_chunks_mut().0.iter_mut().zip(values).for_each(|(bytes, value)| *bytes = value.to_le_bytes());
        Ok(Self { dtype: DType::F32, shape: shape.to_vec(), bytes: Cow::Owned(bytes) })
    }

    /// A view of the tensor.
    pub fn view(&self) -> TensorView<'_> {
        TensorView { dtype: self.dtype, shape: &self.shape, bytes: &self.bytes }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extent of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes, little-endian and row-major.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A range of rows (indices of the first dimension).
    ///
    /// # Panics
    /// If the range is out of bounds, or the tensor has no dimensions.
    pub fn rows(&self, range: Range<usize>) -> Tensor<'a> {
        let row_bytes = self.shape[1..].iter().product::<usize>() * self.dtype.bytes();
        assert!(range.end <= self.shape[0]);
        let mut shape = self.shape.clone();
        shape[0] = range.len();
        let range = range.start * row_bytes..range.end * row_bytes;
        let bytes = match &self.bytes {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[range]),
            Cow::Owned(bytes) => Cow::Owned(bytes[range].to_vec()),
        };
        Tensor { dtype: self.dtype, shape, bytes }
    }
}

impl<'a> From<TensorView<'a>> for Tensor<'a> {
    fn from(view: TensorView<'a>) -> Self {
        Self { dtype: view.dtype, shape: view.shape.to_vec(), bytes: Cow::Borrowed(view.bytes) }
    }
}

/// A vector of zeros, of a length that a file or a request decides.
///
/// # Errors
/// `memory_exhausted`.
pub(crate) fn zeros<T: Copy + Default>(len: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| {
        let bytes = len.saturating_mul(size_of::<T>());
        Error::new(ErrorCode::MemoryExhausted, format!("cannot allocate {bytes} bytes"))
    })?;
    values.resize(len, T::default());
    Ok(values)
}

/// A shape as error messages show it: `[4096, 16]`.
pub fn shape_text(shape: &[usize]) -> String {
    format!("{shape:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_needs_exactly_as_many_bytes_as_its_shape() {
        assert!(TensorView::new(DType::F16, &[2, 3], &[0; 12]).is_some());
        assert!(TensorView::new(DType::F16, &[2, 3], &[0; 11]).is_none());
        assert!(TensorView::new(DType::F32, &[usize::MAX, 2], &[0; 8]).is_none());
    }

    #[test]
    fn floats_widen_exactly_from_any_alignment() {
        let bytes: Vec<u8> = [0u8].into_iter().chain(f16::from_f32(-1.5).to_le_bytes()).collect();
        let view = TensorView::new(DType::F16, &[1], &bytes[1..]).expect("two bytes");
        assert_eq!(view.to_f32(), [-1.5]);
        let bytes = bf16::from_f32(3.0).to_le_bytes();
        assert_eq!(TensorView::new(DType::BF16, &[1], &bytes).expect("two bytes").to_f32(), [3.0]);
    }

    #[test]
    fn rows_of_owned_and_of_borrowed_tensors_are_the_same() {
        let whole = Tensor::from_f32(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let view = whole.view();
        for tensor in [whole.clone(), Tensor::from(view)] {
            let rows = tensor.rows(1..3);
            assert_eq!((rows.shape(), rows.view().to_f32()), (&[2, 2][..], vec![3.0, 4.0, 5.0, 6.0]));
        }
    }
}
