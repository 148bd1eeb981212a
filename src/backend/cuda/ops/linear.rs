//! The products of a group: its base weights, the stacks of the step's adapters and the weights that adapters replace, in one launch.

use std::sync::{Arc, OnceLock};

use bytemuck::{Pod, Zeroable};

use crate::backend::cuda::compiler::sources::{LINEAR, LINEAR_VARIANTS};
use crate::backend::cuda::driver::{Arguments, Device, Kernel};
use crate::backend::cuda::layout::{ElementType, ScaleType, Weight};
use crate::backend::cuda::tables::{GROUP_LINEARS, RoutedNorm};
use crate::error::{Error, ErrorCode, Result};

/// Outputs of a tile: of a weight or of a stack.
pub const TILE_OUTPUTS: usize = 32;
/// Rows that the variants of the kernel compute at a time.
pub const VARIANT_TOKENS: [usize; 4] = [8, 16, 32, 64];

/// The widest of [`VARIANT_TOKENS`] that a major compute capability is given: from 10 on, sums of 64 rows do not fit in registers.
pub fn widest_variant(major: u32) -> usize {
    if major < 10 { 3 } else { 2 }
}

/// Slices of the inputs, one warp each.
const SLICES: usize = 8;
/// Threads of a block.
const BLOCK_THREADS: usize = 32 * SLICES;
/// Floats from the partial sums of one token to those of the next.
const PARTIAL_STRIDE: usize = TILE_OUTPUTS + 4;
/// Words of a unit of x, 64 inputs, of 8 tokens.
const UNIT_X_WORDS: usize = 256;
/// Lanes of a warp.
const LANES: usize = 32;

/// What [`LinearArguments::input`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum InputType {
    /// f32, normed where sums of squares are given.
    F32 = 0,
    /// The element type.
    Elements = 1,
}

/// The argument of the kernel.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct LinearArguments {
    /// The linears of the group, in the order of their outputs.
    pub weights: [Weight; GROUP_LINEARS],
    /// Where the outputs of each begin in a row of `projected`.
    pub first_columns: [u32; GROUP_LINEARS],
    /// Number of linears.
    pub linears: u32,
    /// `[*, in_features]` of `input_type`.
    pub input: u64,
    /// `[*, ceil(in_features / 256)]` f32: sums of squares of an f32 input that is to be normed, or 0.
    pub sum_squares: u64,
    /// The norm, of whose routing row i is row i of the input.
    pub norm: RoutedNorm,
    /// `[*]` u32: set to 1 where a value of the row exceeds the element type, by row of the input. Only for an f32 input.
    pub overflow_rows: u64,
    /// The norm's epsilon.
    pub epsilon: f32,
    /// An [`InputType`].
    pub input_type: u32,
    /// `[rows, projected_stride]` f32: `W x`, written.
    pub projected: u64,
    /// `[entries, shrunk_stride]` f32: the products of each entry's stack, written.
    pub shrunk: u64,
    /// Values of a row of `projected`.
    pub projected_stride: u32,
    /// Values of an entry of `shrunk`, at least the rows of the largest stack.
    pub shrunk_stride: u32,
    /// The step's [`StepTables`](crate::backend::cuda::tables::StepTables).
    pub step: u64,
    /// The group, as slots count groups.
    pub group: u32,
    /// Tiles of [`TILE_OUTPUTS`] rows of the largest stack; 0 if no slot of the step has one here.
    pub stack_tiles: u32,
    /// Tiles of outputs of each linear's largest replacing weight; 0 if no slot of the step replaces it.
    pub replaced_tiles: [u32; GROUP_LINEARS],
    /// Bytes of the codes of a step of two strips; set by the launch.
    pub stage_code_bytes: u32,
    /// The same with their scales and zeros; set by the launch.
    pub stage_bytes: u32,
    /// Always 0.
    pub padding: u32,
}

/// The kernels, each compiled when it is first needed.
pub struct LinearKernels {
    device: Arc<Device>,
    element: ElementType,
    /// In the order of [`VARIANT_TOKENS`].
    kernels: [OnceLock<Kernel>; VARIANT_TOKENS.len()],
}

impl LinearKernels {
    /// Compiles the kernel for few rows, or takes it from the cache.
    ///
    /// # Errors
    /// As [`Device::module`].
    pub fn load(device: &Arc<Device>, element: ElementType) -> Result<Self> {
        let kernels = Self { device: Arc::clone(device), element, kernels: Default::default() };
        kernels.kernel(0)?;
        Ok(kernels)
    }

    /// The kernel of one of [`VARIANT_TOKENS`].
    fn kernel(&self, variant: usize) -> Result<&Kernel> {
        if let Some(kernel) = self.kernels[variant].get() {
            return Ok(kernel);
        }
        let of_element = match self.element {
            ElementType::F16 => 0,
            ElementType::Bf16 => VARIANT_TOKENS.len(),
        };
        let kernel = self.device.module(&LINEAR, LINEAR_VARIANTS[of_element + variant])?.kernel("linear")?;
        Ok(self.kernels[variant].get_or_init(|| kernel))
    }

    /// Computes that many rows, whose step has that many tiles of entries.
    ///
    /// # Errors
    /// As [`Kernel::launch`] and [`Device::module`]; `internal` if the arguments have no linear.
    pub fn launch(&self, arguments: &LinearArguments, rows: usize, entry_tiles: usize) -> Result<()> {
        let widest = widest_variant(self.device.properties().compute_capability.0);
        let mut variant = VARIANT_TOKENS[..widest].iter().position(|&tokens| tokens >= rows).unwrap_or(widest);
        let stage = Stage::of(linears(arguments)?);
        // Not every card has the memory for the most rows at a time.
        while variant > 0
            && stage.shared_bytes(VARIANT_TOKENS[variant]) > self.kernel(variant)?.max_shared_bytes() as usize
        {
            variant -= 1;
        }
        self.launch_staged(arguments, stage, variant, tiles(arguments, VARIANT_TOKENS[variant], rows, entry_tiles))
    }

    /// Launches one of [`VARIANT_TOKENS`] with any number of blocks, which changes no bit of the result. For tests.
    ///
    /// # Errors
    /// As [`LinearKernels::launch`].
    pub fn launch_with(&self, arguments: &LinearArguments, variant: usize, blocks: usize) -> Result<()> {
        self.launch_staged(arguments, Stage::of(linears(arguments)?), variant, blocks)
    }

    /// Launches a variant, whose warps have such stages.
    fn launch_staged(&self, arguments: &LinearArguments, stage: Stage, variant: usize, blocks: usize) -> Result<()> {
        if blocks == 0 {
            return Ok(());
        }
        let arguments = LinearArguments {
            stage_code_bytes: 4 * stage.code_words as u32,
            stage_bytes: 4 * stage.words() as u32,
            ..*arguments
        };
        let shared_bytes = stage.shared_bytes(VARIANT_TOKENS[variant]);
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX).min(i32::MAX as u32);
        let arguments = Arguments::of(&arguments);
        self.kernel(variant)?.launch([blocks, 1, 1], BLOCK_THREADS as u32, shared_bytes as u32, &arguments)
    }
}

/// The linears of a launch.
fn linears(arguments: &LinearArguments) -> Result<&[Weight]> {
    let linears = arguments.weights.get(..arguments.linears as usize).filter(|linears| !linears.is_empty());
    linears.ok_or_else(|| Error::new(ErrorCode::Internal, "a group has one to three linears"))
}

/// Tiles of a launch.
fn tiles(arguments: &LinearArguments, tokens: usize, rows: usize, entry_tiles: usize) -> usize {
    let outputs = |weight: &Weight| (weight.out_features as usize).div_ceil(TILE_OUTPUTS);
    let base: usize = arguments.weights.iter().take(arguments.linears as usize).map(outputs).sum();
    let replaced: u32 = arguments.replaced_tiles.iter().sum();
    base * rows.div_ceil(tokens) + entry_tiles * (arguments.stack_tiles + replaced) as usize
}

/// A stage of a warp: a step of weights.
#[derive(Clone, Copy, Debug)]
struct Stage {
    /// Words of the codes of two strips.
    code_words: usize,
    /// Words of their scales and zeros.
    scale_words: usize,
}

impl Stage {
    /// The largest that some linears need.
    fn of(linears: &[Weight]) -> Self {
        Self {
            // Stacks and replacing weights have 16-bit elements.
            code_words: linears.iter().map(stage_code_words).max().unwrap_or(0).max(2 * step_words(16)),
            scale_words: linears.iter().map(stage_scale_words).max().unwrap_or(0),
        }
    }

    fn words(self) -> usize {
        self.code_words + self.scale_words
    }

    /// Dynamic shared memory of a block that computes that many rows at a time: x and weights of each warp, whose place the
    /// partial sums take.
    fn shared_bytes(self, tokens: usize) -> usize {
        let x_words = tokens / 8 * UNIT_X_WORDS;
        4 * (SLICES * stages(tokens) * (x_words + self.words())).max(SLICES * tokens * PARTIAL_STRIDE)
    }
}

/// Steps of weights and units of x that a warp holds in shared memory.
fn stages(tokens: usize) -> usize {
    match tokens {
        8 => 4,
        16 => 3,
        _ => 2,
    }
}

/// Words of a step of one strip: a unit of codes of up to 6 bits, half a unit of 8 bits, a quarter of one of floats.
fn step_words(bits: usize) -> usize {
    let tiles = match bits {
        16 => 1,
        8 => 2,
        _ => 4,
    };
    bits * LANES * tiles / 4
}

/// Words of the widest step of two strips.
fn stage_code_words(weight: &Weight) -> usize {
    let sections = weight.sections.iter().take(weight.section_count as usize);
    2 * sections.map(|section| step_words(section.bits as usize)).max().unwrap_or(0)
}

/// Words of the scales and zeros of a step.
fn stage_scale_words(weight: &Weight) -> usize {
    let scales = match weight {
        Weight { scales: 0, .. } => 0,
        weight if weight.scale_type == ScaleType::F32 as u32 => 2 * LANES,
        _ => LANES,
    };
    scales + if weight.zeros == 0 { 0 } else { LANES }
}
