//! The executable form of an instruction.
use crate::execution::WarpContext;

/// Executes an instruction for the active lanes of a warp.
///
/// # Safety
/// The context must be that of a warp that runs the kernel which holds the instruction.
pub type Handler = unsafe fn(&mut WarpContext, &Instruction);

/// An operand that is not there.
pub const NONE: u32 = u32::MAX;
/// Operands with this bit are slots of the kernel's constants instead of the warp's registers.
pub const CONSTANT: u32 = 1 << 30;
/// Predicate operands with this bit are negated.
pub const NEGATED: u32 = 1 << 31;

/// How the interpreter's loop treats an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Runs its handler, which cannot fault.
    Arithmetic,
    /// Runs its handler, which may fault.
    MayFault,
    /// `bra`: the target is `immediate`.
    Branch,
    /// `brx.idx`: the index is the first source, the table is `branch_tables[immediate]`.
    IndexedBranch,
    /// `exit`, or `ret` of an entry function.
    Exit,
    /// `bar` and `barrier`: the barrier's number, the count of threads and the predicate are the sources.
    Barrier,
}

/// What an instruction is counted as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Class {
    /// Integer arithmetic and logic.
    Integer,
    /// Arithmetic of f32 and f64.
    Float,
    /// Arithmetic of f16 and bf16.
    Half,
    /// The special function unit: reciprocals, roots, exponentials.
    Special,
    /// Conversions.
    Convert,
    /// Moves and selections.
    Move,
    /// Branches and other control flow.
    Control,
    /// Loads from global memory.
    LoadGlobal,
    /// Stores to global memory.
    StoreGlobal,
    /// Loads from shared memory.
    LoadShared,
    /// Stores to shared memory.
    StoreShared,
    /// Accesses to the other state spaces.
    OtherMemory,
    /// Atomics and reductions.
    Atomic,
    /// `cp.async` and its waits.
    AsyncCopy,
    /// Shuffles, votes and other exchanges within a warp.
    Collective,
    /// `mma`.
    Tensor,
    /// Barriers of a block or warp.
    Barrier,
    /// Memory fences.
    Fence,
}

impl Class {
    /// Number of classes.
    pub const COUNT: usize = 18;
    /// The classes' names, in their order.
    pub const NAMES: [&str; Self::COUNT] = [
        "integer",
        "float",
        "half",
        "special",
        "convert",
        "move",
        "control",
        "ld.global",
        "st.global",
        "ld.shared",
        "st.shared",
        "other memory",
        "atomic",
        "cp.async",
        "collective",
        "tensor",
        "barrier",
        "fence",
    ];
}

/// State spaces of the PTX ISA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateSpace {
    /// A generic address, resolved at each access.
    Generic,
    /// Device memory.
    Global,
    /// Shared memory of the block.
    Shared,
    /// Private memory of the thread.
    Local,
    /// Parameters of the kernel.
    Param,
    /// Constant memory.
    Const,
}

/// How memory is accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// The state space that the address belongs to.
    pub space: StateSpace,
    /// Elements per lane: 1, 2 or 4.
    pub elements: u8,
    /// The elements are sign-extended to the register.
    pub signed: bool,
    /// The destination registers have 64 bits.
    pub wide: bool,
    /// Strong accesses (volatile, relaxed, acquire, release) do not race with each other.
    pub strong: bool,
    /// Orders the accesses that follow.
    pub acquire: bool,
    /// Orders the accesses that come before.
    pub release: bool,
}

/// Operations of `atom` and `red`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AtomicOperation {
    /// old + b
    Add,
    /// min(old, b)
    Min,
    /// max(old, b)
    Max,
    /// old & b
    And,
    /// old | b
    Or,
    /// old ^ b
    Xor,
    /// b
    Exchange,
    /// c if old is b
    CompareAndSwap,
    /// old + 1, or 0 from b on
    Increment,
    /// old - 1, or b from 0 and from above b
    Decrement,
}

/// Element types of `atom` and `red`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AtomicType {
    /// `.u32` and `.b32`
    U32,
    /// `.s32`
    S32,
    /// `.u64` and `.b64`
    U64,
    /// `.s64`
    S64,
    /// `.f32`
    F32,
    /// `.f64`
    F64,
}

impl AtomicType {
    /// Bytes of an element.
    pub fn bytes(self) -> u32 {
        match self {
            Self::U32 | Self::S32 | Self::F32 => 4,
            Self::U64 | Self::S64 | Self::F64 => 8,
        }
    }
}

/// Modes of `shfl`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShuffleMode {
    /// From the lane `b` below.
    Up,
    /// From the lane `b` above.
    Down,
    /// From the lane whose index differs by xor with `b`.
    Butterfly,
    /// From lane `b`.
    Index,
}

/// Modes of `vote`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VoteMode {
    /// True in all lanes.
    All,
    /// True in any lane.
    Any,
    /// The same in all lanes.
    Uniform,
    /// The mask of the lanes where it is true.
    Ballot,
}

/// Operations of `redux`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reduction {
    /// The wrapping sum.
    Add,
    /// The least unsigned value.
    MinU32,
    /// The greatest unsigned value.
    MaxU32,
    /// The least signed value.
    MinS32,
    /// The greatest signed value.
    MaxS32,
    /// Bitwise and.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
}

/// What a barrier does besides ordering.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarrierKind {
    /// Waits.
    Sync,
    /// Does not wait.
    Arrive,
    /// Waits and counts the threads whose predicate is true.
    CountTrue,
    /// Waits; true if all predicates are.
    All,
    /// Waits; true if any predicate is.
    Any,
}

/// Element type of the A and B fragments of `mma`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmaElement {
    /// `.f16`
    F16,
    /// `.bf16`
    Bf16,
}

/// Special registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpecialRegister {
    /// `%tid`, by dimension
    Tid(u8),
    /// `%ntid`, by dimension
    Ntid(u8),
    /// `%ctaid`, by dimension
    Ctaid(u8),
    /// `%nctaid`, by dimension
    Nctaid(u8),
    /// `%laneid`
    LaneId,
    /// `%warpid`
    WarpId,
    /// `%nwarpid`
    WarpCount,
    /// `%smid`
    SmId,
    /// `%nsmid`
    SmCount,
    /// `%gridid`
    GridId,
    /// `%clock`
    Clock,
    /// `%clock64` and `%globaltimer`
    Clock64,
    /// `%lanemask_eq`
    LaneMaskEq,
    /// `%lanemask_le`
    LaneMaskLe,
    /// `%lanemask_lt`
    LaneMaskLt,
    /// `%lanemask_ge`
    LaneMaskGe,
    /// `%lanemask_gt`
    LaneMaskGt,
    /// `%dynamic_smem_size`
    DynamicSharedBytes,
    /// `%total_smem_size`
    TotalSharedBytes,
}

impl SpecialRegister {
    /// The register that PTX writes as `name`, percent sign included.
    pub fn named(name: &str) -> Option<Self> {
        let name = name.strip_prefix('%')?;
        if let Some((register, dimension)) = name.split_once('.') {
            let dimension = ["x", "y", "z"].iter().position(|d| *d == dimension)? as u8;
            return Some(match register {
                "tid" => Self::Tid(dimension),
                "ntid" => Self::Ntid(dimension),
                "ctaid" => Self::Ctaid(dimension),
                "nctaid" => Self::Nctaid(dimension),
                _ => return None,
            });
        }
        Some(match name {
            "laneid" => Self::LaneId,
            "warpid" => Self::WarpId,
            "nwarpid" => Self::WarpCount,
            "smid" => Self::SmId,
            "nsmid" => Self::SmCount,
            "gridid" => Self::GridId,
            "clock" => Self::Clock,
            "clock64" | "globaltimer" => Self::Clock64,
            "lanemask_eq" => Self::LaneMaskEq,
            "lanemask_le" => Self::LaneMaskLe,
            "lanemask_lt" => Self::LaneMaskLt,
            "lanemask_ge" => Self::LaneMaskGe,
            "lanemask_gt" => Self::LaneMaskGt,
            "dynamic_smem_size" => Self::DynamicSharedBytes,
            "total_smem_size" => Self::TotalSharedBytes,
            _ => return None,
        })
    }

    /// Whether the register has 64 bits.
    pub fn is_wide(self) -> bool {
        matches!(self, Self::GridId | Self::Clock64)
    }
}

/// How a predicate operand is combined with the result of `setp`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PredicateOperation {
    /// Both.
    And,
    /// Either.
    Or,
    /// One of them.
    Xor,
}

/// What an opcode's modifiers leave for execution; what the handler is made for is not repeated here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Modifiers {
    /// Nothing.
    None,
    /// `ld`, `st`
    Access(Access),
    /// `atom`, `red`
    Atomic {
        /// The access of the old value.
        access: Access,
        /// The operation.
        operation: AtomicOperation,
        /// The type of the operands.
        element: AtomicType,
    },
    /// `ldmatrix`
    Ldmatrix {
        /// State space of the rows' addresses.
        space: StateSpace,
        /// Matrices: 1, 2 or 4.
        matrices: u8,
        /// Each matrix is transposed.
        transposed: bool,
    },
    /// `mma.m16n8k8` and `mma.m16n8k16`
    Mma {
        /// Type of A and B.
        element: MmaElement,
        /// The inner dimension: 8 or 16.
        k: u8,
        /// C is f16 instead of f32.
        f16_addend: bool,
        /// D is f16 instead of f32.
        f16_result: bool,
    },
    /// `cp.async`: bytes per lane (4, 8 or 16).
    CopyBytes(u8),
    /// `shfl`
    Shuffle(ShuffleMode),
    /// `vote`
    Vote(VoteMode),
    /// `redux`
    Reduction(Reduction),
    /// `bar`, `barrier`
    Barrier(BarrierKind),
    /// `membar`, `fence`: whether it reaches beyond the block.
    Fence {
        /// `.gpu` or wider.
        beyond_block: bool,
    },
    /// `isspacep`
    Space(StateSpace),
    /// `mov` from a special register
    SpecialRegister(SpecialRegister),
    /// `setp` with a predicate operand
    Combine(PredicateOperation),
    /// `add.cc`, `addc`, `sub.cc`, `subc`
    Carry {
        /// Subtracts.
        subtract: bool,
        /// Reads the carry flag.
        carry_in: bool,
        /// Writes the carry flag.
        carry_out: bool,
    },
}

/// One instruction: operands are slots of 32 lanes x 4 bytes (64-bit values take two).
#[derive(Clone)]
pub struct Instruction {
    /// What executes it.
    pub handler: Handler,
    /// How the interpreter's loop treats it.
    pub kind: Kind,
    /// What it is counted as.
    pub class: Class,
    /// The guard predicate, perhaps with [`NEGATED`], or [`NONE`].
    pub guard: u32,
    /// Destination slots, predicates' numbers or [`NONE`].
    pub destinations: [u32; 4],
    /// Source slots, predicates' numbers or [`NONE`].
    pub sources: [u32; 10],
    /// A branch target, an address offset, a shift or a truth table.
    pub immediate: i64,
    /// What the modifiers leave for execution.
    pub modifiers: Modifiers,
    /// Line of the PTX text.
    pub line: u32,
    /// Index into [`crate::kernel::Kernel::locations`].
    pub location: u32,
}
