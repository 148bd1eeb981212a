//! Lane loops are compiled for several instruction sets of the CPU, of which one is chosen when a kernel is loaded.
#![allow(unsafe_code, reason = "functions for instruction sets that not every CPU has")]
use crate::execution::WarpContext;
use crate::instruction::{Handler, Instruction};

/// An instruction set of the CPU that runs the emulator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InstructionSet {
    /// What every CPU of the architecture has.
    Baseline,
    /// x86-64 with AVX2, FMA, F16C, BMI, LZCNT and POPCNT.
    Avx2,
}

impl InstructionSet {
    /// The widest set that this CPU has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt")
        {
            return Self::Avx2;
        }
        Self::Baseline
    }
}

/// What an instruction does to the lanes of a warp.
pub trait LaneLoop {
    /// Executes the instruction. It must be inlined, so that it is compiled for the caller's instruction set.
    ///
    /// # Safety
    /// As for [`Handler`]; with `AVX2` the CPU must have the instructions of [`InstructionSet::Avx2`].
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction);
}

/// A lane loop compiled for each instruction set.
#[derive(Clone, Copy)]
pub struct Handlers {
    baseline: Handler,
    avx2: Handler,
}

impl Handlers {
    /// The handlers that run `L`.
    pub fn new<L: LaneLoop>() -> Self {
        Self { baseline: run_baseline::<L>, avx2: run_avx2::<L> }
    }

    /// The handler for an instruction set, which the CPU must have.
    pub fn of(self, instruction_set: InstructionSet) -> Handler {
        match instruction_set {
            InstructionSet::Baseline => self.baseline,
            InstructionSet::Avx2 => self.avx2,
        }
    }
}

unsafe fn run_baseline<L: LaneLoop>(context: &mut WarpContext, instruction: &Instruction) {
    // SAFETY: the caller's contract
    unsafe { L::run::<false>(context, instruction) }
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt"))]
unsafe fn run_avx2<L: LaneLoop>(context: &mut WarpContext, instruction: &Instruction) {
    // SAFETY: the caller's contract
    unsafe { L::run::<true>(context, instruction) }
}
