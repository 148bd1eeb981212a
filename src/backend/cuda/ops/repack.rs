//! Packing weights on the device, from the bytes of their checkpoint, in parts of a bounded size.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::backend::cuda::compiler::sources::REPACK;
use crate::backend::cuda::driver::{Arguments, Device, DeviceMemory, Kernel, StagingBuffers, Stream};
use crate::backend::cuda::layout::{ElementType, PADDING, STRIP_ROWS, Weight, WeightLayout};
use crate::error::{Error, ErrorCode, Result};
use crate::quant::{QuantizedWeight, StoredWeight};
use crate::tensor::{DType, TensorView};

/// Units that a block packs at a time.
const BLOCK_UNITS: usize = 8;
/// Pinned buffers through which a checkpoint goes, and the bytes of each: the host fills one while another is copied.
const PINNED_BUFFERS: usize = 2;
const PINNED_BYTES: usize = 8 << 20;
/// Bytes of a buffer that suffices for the inputs of nearly every weight.
const FIRST_BITS_BYTES: usize = 256 << 10;
/// Threads of a block.
const BLOCK_THREADS: u32 = 32 * BLOCK_UNITS as u32;

/// The argument of the kernel for codes.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct RepackCodesArguments {
    /// The weight; its addresses are not read.
    pub weight: Weight,
    /// `[64 units]` u32: where each padded input's code begins in a stream, or [`PADDING`].
    pub first_bits: u64,
    /// `[rows, columns]` u32: bit streams of the part's outputs.
    pub words: u64,
    /// Outputs of the part, padding included.
    pub columns: u32,
    /// Outputs of the part.
    pub outputs: u32,
    /// `[strips, strip_words]` u32: the part's strips, written.
    pub strips: u64,
}

/// The argument of the kernel for floats.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct RepackFloatsArguments {
    /// The weight; its addresses are not read.
    pub weight: Weight,
    /// `[outputs, in_features]` of `float_type`.
    pub floats: u64,
    /// `[strips, strip_words]` u32: the part's strips, written.
    pub strips: u64,
    /// u32: set to 1 if a finite value becomes infinite.
    pub has_overflow: u64,
    /// Outputs of the part.
    pub outputs: u32,
    /// 0: f16, 1: bf16, 2: f32.
    pub float_type: u32,
}

/// The compiled kernels and the buffers through which checkpoints go.
pub struct Repacker {
    codes: Kernel,
    floats: Kernel,
    element: ElementType,
    device: Arc<Device>,
    pinned: StagingBuffers,
    /// A part of a checkpoint that is packed.
    part: DeviceMemory,
    first_bits: DeviceMemory,
    has_overflow: DeviceMemory,
}

impl Repacker {
    /// Compiles the kernels, or takes them from the cache, and allocates a buffer of that size for parts of a checkpoint. It
    /// grows where a strip needs more.
    ///
    /// # Errors
    /// As [`Device::module`], [`Device::allocate`] and [`StagingBuffers::new`].
    pub fn new(device: &Arc<Device>, element: ElementType, part_bytes: usize) -> Result<Self> {
        let module = device.module(&REPACK, element.defines())?;
        Ok(Self {
            codes: module.kernel("repack_codes")?,
            floats: module.kernel("repack_floats")?,
            element,
            device: Arc::clone(device),
            pinned: StagingBuffers::new(device, Stream::Compute, PINNED_BUFFERS, PINNED_BYTES)?,
            part: device.allocate(part_bytes)?,
            first_bits: device.allocate(FIRST_BITS_BYTES)?,
            has_overflow: device.allocate(size_of::<u32>())?,
        })
    }

    /// Writes the strips of a weight to device memory that begins at an address and has room for `[strips, strip_words]` words.
    ///
    /// # Errors
    /// `checkpoint_dtype_unsupported` if a value exceeds the element type; `memory_exhausted`; `internal` if the weight is no
    /// matrix of floats; the device failed.
    pub fn repack(&mut self, layout: &WeightLayout, weight: &StoredWeight<'_>, strips: u64) -> Result<()> {
        match weight {
            StoredWeight::Dense(view) => self.repack_floats(layout, *view, strips),
            StoredWeight::Quantized(weight) => self.repack_codes(layout, &**weight, strips),
        }
    }

    /// Copies bytes to device memory, behind what was packed before.
    ///
    /// # Errors
    /// As [`StagingBuffers::upload`].
    pub fn upload(&mut self, memory: &DeviceMemory, offset: usize, bytes: &[u8]) -> Result<()> {
        self.pinned.upload(memory, offset, bytes)
    }

    fn repack_codes(&mut self, layout: &WeightLayout, weight: &dyn QuantizedWeight, strips: u64) -> Result<()> {
        let streams = weight.code_streams();
        let rows = streams.words.len() / streams.columns.max(1);
        let first_bits = first_bits(layout, weight)?;
        grow(&self.device, &mut self.first_bits, size_of_val(&*first_bits))?;
        self.pinned.upload(&self.first_bits, 0, bytemuck::cast_slice(&first_bits))?;
        let descriptor = layout.descriptor()?;
        let mut part_words: Vec<[u8; 4]> = Vec::new();
        for part in parts(layout, rows * STRIP_ROWS * size_of::<u32>(), self.part.len()) {
            let outputs = outputs_of(layout, &part);
            part_words.clear();
            for row in streams.words.chunks_exact(streams.columns) {
                part_words.extend_from_slice(&row[outputs.clone()]);
            }
            self.stage(part_words.as_flattened())?;
            let arguments = RepackCodesArguments {
                weight: descriptor,
                first_bits: self.first_bits.address(),
                words: self.part.address(),
                columns: outputs.len() as u32,
                outputs: outputs.len() as u32,
                strips: strips + strip_offset(layout, part.start),
            };
            self.codes.launch(grid(layout, &part), BLOCK_THREADS, 0, &Arguments::of(&arguments))?;
        }
        Ok(())
    }

    fn repack_floats(&mut self, layout: &WeightLayout, view: TensorView<'_>, strips: u64) -> Result<()> {
        let float_type = match (view.dtype(), view.shape()) {
            (DType::F16, [_, _]) => 0,
            (DType::BF16, [_, _]) => 1,
            (DType::F32, [_, _]) => 2,
            _ => {
                return Err(Error::new(ErrorCode::Internal, "a dense weight must be a matrix of floats")
                    .with_found(view.dtype()));
            }
        };
        let row_bytes = layout.in_features * view.dtype().bytes();
        self.has_overflow.fill_zero()?;
        for part in parts(layout, row_bytes * STRIP_ROWS, self.part.len()) {
            let outputs = outputs_of(layout, &part);
            self.stage(&view.bytes()[outputs.start * row_bytes..outputs.end * row_bytes])?;
            let arguments = RepackFloatsArguments {
                weight: layout.descriptor()?,
                floats: self.part.address(),
                strips: strips + strip_offset(layout, part.start),
                has_overflow: self.has_overflow.address(),
                outputs: outputs.len() as u32,
                float_type,
            };
            self.floats.launch(grid(layout, &part), BLOCK_THREADS, 0, &Arguments::of(&arguments))?;
        }
        let mut has_overflow = [0; size_of::<u32>()];
        self.has_overflow.download(0, &mut has_overflow)?;
        if has_overflow == [0; 4] {
            return Ok(());
        }
        let element = match self.element {
            ElementType::F16 => DType::F16,
            ElementType::Bf16 => DType::BF16,
        };
        Err(Error::new(
            ErrorCode::CheckpointDtypeUnsupported,
            "a weight has values beyond the type in which it is computed",
        )
        .with_expected(element)
        .with_found(view.dtype()))
    }

    /// Copies a part of a checkpoint to the device, behind the kernel that packs the part before.
    fn stage(&mut self, bytes: &[u8]) -> Result<()> {
        grow(&self.device, &mut self.part, bytes.len())?;
        self.pinned.upload(&self.part, 0, bytes)
    }
}

/// Where the code of each padded input begins in a stream.
fn first_bits(layout: &WeightLayout, weight: &dyn QuantizedWeight) -> Result<Vec<u32>> {
    let first_bit = |&stored: &u32| match stored {
        PADDING => Ok(PADDING),
        stored => u32::try_from(weight.first_bit(stored as usize)).map_err(|_| {
            Error::new(ErrorCode::MemoryExhausted, "a weight is too large for a kernel's 32-bit indices")
                .with_found(layout.in_features)
        }),
    };
    layout.stored_inputs.iter().map(first_bit).collect()
}

/// Replaces memory that is too small; what it held is lost.
fn grow(device: &Arc<Device>, memory: &mut DeviceMemory, bytes: usize) -> Result<()> {
    if bytes > memory.len() {
        *memory = device.allocate(bytes.next_power_of_two())?;
    }
    Ok(())
}

/// Runs of strips that come from at most so many bytes, but at least one.
fn parts(layout: &WeightLayout, strip_bytes: usize, part_bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let (strips, run) = (layout.strips(), (part_bytes / strip_bytes.max(1)).max(1));
    (0..strips).step_by(run).map(move |start| start..strips.min(start + run))
}

/// The outputs of some strips.
fn outputs_of(layout: &WeightLayout, strips: &Range<usize>) -> Range<usize> {
    strips.start * STRIP_ROWS..layout.out_features.min(strips.end * STRIP_ROWS)
}

/// Where a strip begins, in bytes.
fn strip_offset(layout: &WeightLayout, strip: usize) -> u64 {
    (strip * layout.strip_words * size_of::<u32>()) as u64
}

fn grid(layout: &WeightLayout, strips: &Range<usize>) -> [u32; 3] {
    [strips.len() as u32, layout.units.div_ceil(BLOCK_UNITS).clamp(1, 64) as u32, 1]
}
