//! How kernels are executed and what is checked.

/// The order in which blocks, warps and lanes of atomics take their turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The first block and warp first.
    Forward,
    /// The last block and warp first.
    Reverse,
    /// Several blocks at a time, warps of them in short turns.
    Random {
        /// Each gives another order.
        seed: u64,
    },
}

/// When the bytes of `cp.async` arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncCopies {
    /// At the wait: a missing wait shows.
    Lazy,
    /// At once: a destination that is still in use shows.
    Eager,
}

/// Between which accesses races are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RaceChecks {
    /// None.
    Off,
    /// Accesses to shared memory.
    Shared,
    /// Accesses to shared and to global memory.
    SharedAndGlobal,
}

/// How `mma` adds its products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixSum {
    /// In f64, rounded once.
    Exact,
    /// As tensor cores do: products and sum are aligned to the largest of them, and what sticks out is cut off.
    Truncating {
        /// Products that are added at a time: 8 (as compute capability 8.0 seems to do) or 16 (9.0).
        products: usize,
    },
}

/// How kernels are executed and what is checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Order of blocks and warps.
    pub order: Order,
    /// When asynchronous copies arrive.
    pub async_copies: AsyncCopies,
    /// Where races are looked for.
    pub race_checks: RaceChecks,
    /// Whether reading memory that nobody has written is a fault.
    pub check_unwritten: bool,
    /// Whether a thread may exit while others of its block use barriers.
    pub allow_exit_before_barrier: bool,
    /// Whether all warps must arrive at a barrier by the same instruction.
    pub require_same_barrier: bool,
    /// Whether bytes and bank conflicts are counted.
    pub count_memory: bool,
    /// How `mma` adds.
    pub matrix_sum: MatrixSum,
    /// Instructions of all warps after which a launch fails, taken for an endless loop.
    pub instruction_limit: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            order: Order::Forward,
            async_copies: AsyncCopies::Lazy,
            race_checks: RaceChecks::SharedAndGlobal,
            check_unwritten: true,
            allow_exit_before_barrier: false,
            require_same_barrier: true,
            count_memory: false,
            matrix_sum: MatrixSum::Exact,
            instruction_limit: 300_000_000,
        }
    }
}
