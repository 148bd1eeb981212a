//! What bounds every other kernel: how fast memory is read, what a launch costs.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::backend::cuda::compiler::sources::CEILINGS;
use crate::backend::cuda::driver::{Arguments, Device, DeviceMemory, Kernel};
use crate::error::Result;

/// Threads of a block.
const BLOCK_THREADS: u32 = 256;
/// Blocks for each multiprocessor: as many as fit.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 8;
/// Bytes of a word.
const WORD_BYTES: usize = 16;

/// The argument of the kernels.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Ceiling {
    /// `[count]` words of 16 bytes.
    pub words: u64,
    /// Number of words.
    pub count: u64,
    /// `[1]` u32
    pub sink: u64,
}

/// Memory to be read, and the compiled kernels.
pub struct CeilingKernels {
    device: Arc<Device>,
    memory: DeviceMemory,
    argument: Ceiling,
    read: Kernel,
    empty: Kernel,
}

impl CeilingKernels {
    /// Allocates that many bytes, of which whole words are used, and fills them.
    ///
    /// # Errors
    /// As [`Device::module`] and [`Device::allocate`].
    pub fn load(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let module = device.module(&CEILINGS, &[])?;
        let count = (bytes / WORD_BYTES).max(1);
        let memory = device.allocate((count + 1) * WORD_BYTES)?;
        let sink = memory.address() + (count * WORD_BYTES) as u64;
        let kernels = Self {
            argument: Ceiling { words: memory.address(), count: count as u64, sink },
            device: Arc::clone(device),
            memory,
            read: module.kernel("read_memory")?,
            empty: module.kernel("empty")?,
        };
        kernels.launch(&module.kernel("fill_memory")?)?;
        Ok(kernels)
    }

    /// Bytes that a read reads.
    pub fn bytes(&self) -> usize {
        self.memory.len() - WORD_BYTES
    }

    /// Reads all of the memory once.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    pub fn read(&self) -> Result<()> {
        self.launch(&self.read)
    }

    /// Launches a kernel that does nothing.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    pub fn launch_empty(&self) -> Result<()> {
        self.empty.launch([1, 1, 1], BLOCK_THREADS, 0, &Arguments::of(&self.argument))
    }

    fn launch(&self, kernel: &Kernel) -> Result<()> {
        let needed = self.argument.count.div_ceil(u64::from(BLOCK_THREADS));
        let resident = self.device.properties().multiprocessors * BLOCKS_PER_MULTIPROCESSOR;
        let blocks = u32::try_from(needed).map_or(resident, |needed| needed.min(resident));
        kernel.launch([blocks, 1, 1], BLOCK_THREADS, 0, &Arguments::of(&self.argument))
    }
}
