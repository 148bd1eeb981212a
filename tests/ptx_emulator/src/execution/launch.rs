//! A launch: blocks run one after another.
use std::collections::HashMap;
use std::time::Instant;

use super::block::Block;
use super::ordering::Knowledge;
use super::settings::{Order, Settings};
use super::warp::WarpState;
use crate::counters::Counters;
use crate::kernel::Kernel;
use crate::memory::DeviceMemory;
use crate::report::{Fault, FaultKind};

/// Blocks that take turns in random order.
const BLOCKS_AT_A_TIME: usize = 4;

/// The shape of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Configuration {
    /// Blocks of the grid by dimension.
    pub grid: [u32; 3],
    /// Threads of a block by dimension.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub dynamic_shared_bytes: u32,
}

impl Configuration {
    /// Index by dimension of the block with a linear index.
    pub(crate) fn block_index(&self, linear: u32) -> [u32; 3] {
        let [x, y, _] = self.grid;
        [linear % x, linear / x % y, linear / x / y]
    }

    fn blocks(&self) -> u64 {
        self.grid.iter().map(|&blocks| u64::from(blocks)).product()
    }
}

/// What a launch did.
pub struct Outcome {
    /// Whether it finished.
    pub result: Result<(), Fault>,
    /// What was counted.
    pub counters: Counters,
    /// What looks wrong without being a fault.
    pub warnings: Vec<String>,
}

/// A launch while it runs.
pub(crate) struct LaunchState<'k> {
    pub(crate) kernel: &'k Kernel,
    pub(crate) memory: &'k mut DeviceMemory,
    pub(crate) settings: &'k Settings,
    pub(crate) configuration: Configuration,
    pub(crate) parameters: &'k [u8],
    pub(crate) counters: Counters,
    /// How many threads have executed each instruction.
    pub(crate) executions: Vec<u64>,
    /// What strong accesses find out, by address.
    pub(crate) published: HashMap<u64, Knowledge>,
    pub(crate) warnings: Vec<String>,
    random: u64,
}

/// Runs a kernel. `parameters` are the bytes of its parameter space.
///
/// # Panics
/// If the grid is empty, or the block has no or more than 1024 threads.
pub fn run(
    kernel: &Kernel,
    memory: &mut DeviceMemory,
    settings: &Settings,
    configuration: Configuration,
    parameters: &[u8],
) -> Outcome {
    let threads = configuration.block.iter().product::<u32>();
    assert!(configuration.blocks() > 0 && (1..=1024).contains(&threads), "{configuration:?} is no launch");
    let start = Instant::now();
    let seed = if let Order::Random { seed } = settings.order { seed } else { 0 };
    memory.begin_launch();
    let mut launch = LaunchState {
        kernel,
        memory,
        settings,
        configuration,
        parameters,
        counters: Counters::default(),
        executions: vec![0; kernel.code.len()],
        published: HashMap::new(),
        warnings: vec![],
        random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
    };
    let result = launch.run_blocks();
    let mut counters = launch.counters;
    for (instruction, threads) in kernel.code.iter().zip(launch.executions) {
        counters.thread_instructions += threads;
        counters.by_class[instruction.class as usize] += threads;
    }
    counters.launches = 1;
    counters.nanoseconds = start.elapsed().as_nanos() as u64;
    Outcome { result, counters, warnings: launch.warnings }
}

impl LaunchState<'_> {
    fn run_blocks(&mut self) -> Result<(), Fault> {
        let blocks = self.configuration.blocks();
        let at_a_time = if matches!(self.settings.order, Order::Random { .. }) { BLOCKS_AT_A_TIME } else { 1 };
        let (mut running, mut idle) = (Vec::<Block>::new(), Vec::<Block>::new());
        let mut started = 0;
        while started < blocks || !running.is_empty() {
            while started < blocks && running.len() < at_a_time {
                let mut block = idle.pop().unwrap_or_else(|| Block::new(self));
                block.reset(self, self.nth_block(started, blocks));
                running.push(block);
                started += 1;
            }
            let turn = if running.len() > 1 { self.random() as usize % running.len() } else { 0 };
            if running[turn].run(self)? {
                idle.push(running.swap_remove(turn));
            }
        }
        Ok(())
    }

    /// The linear index of the block that starts as the `nth`.
    fn nth_block(&self, nth: u64, blocks: u64) -> u32 {
        let block = match self.settings.order {
            Order::Forward => nth,
            Order::Reverse => blocks - 1 - nth,
            Order::Random { seed } => {
                // A stride without a common divisor visits each block once.
                let stride = (seed % blocks + 1..).find(|&stride| greatest_common_divisor(stride, blocks) == 1);
                ((u128::from(nth) * u128::from(stride.unwrap_or(1)) + u128::from(seed)) % u128::from(blocks)) as u64
            }
        };
        block as u32
    }

    /// A pseudorandom number, by xorshift.
    pub(crate) fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// A fault of a thread at an instruction.
    pub(crate) fn fault(
        &self,
        kind: FaultKind,
        message: String,
        [x, y, z]: [u32; 3],
        warp: &WarpState,
        lane: u32,
        pc: u32,
    ) -> Fault {
        let [tx, ty, tz] = warp.thread_index.map(|index| index[lane as usize % 32]);
        let (name, index, at) = (&self.kernel.name, warp.index, self.kernel.describe(pc as usize));
        let message = format!(
            "{message}; kernel {name}, block ({x},{y},{z}), thread ({tx},{ty},{tz}) [warp {index} lane {lane}], {at}"
        );
        Fault { kind, message }
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
