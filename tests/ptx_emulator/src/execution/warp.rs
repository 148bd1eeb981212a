//! A warp, and what an instruction's handler sees of it.
#![allow(unsafe_code, reason = "registers are lanes of several types")]

use std::marker::PhantomData;

use super::async_copy::AsyncCopy;
use super::block::BlockState;
use super::divergence::Divergence;
use super::launch::LaunchState;
use super::ordering::{Causality, Clocks, Moment};
use crate::instruction::{CONSTANT, Instruction, NEGATED, NONE};
use crate::kernel::Kernel;
use crate::memory::Accessor;
use crate::report::{Fault, FaultKind};

/// 32 lanes x 4 bytes of a warp's registers.
#[derive(Clone, Copy)]
#[repr(C, align(128))]
pub(crate) struct Slot([u8; SLOT_BYTES]);

const SLOT_BYTES: usize = 128;
/// Byte that registers and local memory hold before they are written: NaN in every float format.
const POISON: u8 = 0xff;

/// Whether a warp can run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Ready,
    /// Waits at a barrier of its block.
    Waiting,
    Exited,
}

/// A warp: 32 threads that execute one instruction at a time.
pub(crate) struct Warp {
    pub(crate) registers: Vec<Slot>,
    /// A bit for each lane.
    pub(crate) predicates: Vec<u32>,
    pub(crate) state: WarpState,
}

/// All of a warp but its registers.
pub(crate) struct WarpState {
    /// Index in the block.
    pub(crate) index: u32,
    pub(crate) status: Status,
    /// `%tid` by dimension and lane.
    pub(crate) thread_index: [[u32; 32]; 3],
    /// Lanes that are threads of the block.
    pub(crate) lanes: u32,
    /// Lanes that have not exited.
    pub(crate) live: u32,
    pub(crate) divergence: Divergence,
    /// The carry flag of each lane.
    pub(crate) carry: u32,
    /// Private memory, lane after lane.
    pub(crate) local: Vec<u8>,
    /// Asynchronous copies that have not been waited for.
    pub(crate) copies: Vec<AsyncCopy>,
    /// Groups of asynchronous copies that each lane has committed.
    pub(crate) committed_groups: [u32; 32],
    pub(crate) causality: Causality,
    /// Instructions executed so far.
    pub(crate) instructions: u64,
}

impl Warp {
    /// A warp of a block of that shape; [`Warp::reset`] comes before its first instruction.
    pub(crate) fn new(kernel: &Kernel, block: [u32; 3], index: u32) -> Warp {
        let threads = block.iter().product::<u32>() - index * 32;
        let thread = |lane: usize| index * 32 + lane as u32;
        Warp {
            registers: vec![Slot([POISON; SLOT_BYTES]); kernel.register_slots as usize],
            predicates: vec![0; kernel.predicates as usize],
            state: WarpState {
                index,
                status: Status::Ready,
                thread_index: [
                    std::array::from_fn(|lane| thread(lane) % block[0]),
                    std::array::from_fn(|lane| thread(lane) / block[0] % block[1]),
                    std::array::from_fn(|lane| thread(lane) / (block[0] * block[1])),
                ],
                lanes: if threads >= 32 { u32::MAX } else { (1 << threads) - 1 },
                live: 0,
                divergence: Divergence::default(),
                carry: 0,
                local: vec![POISON; kernel.local_bytes as usize * 32],
                copies: vec![],
                committed_groups: [0; 32],
                causality: Causality::default(),
                instructions: 0,
            },
        }
    }

    /// Makes the warp ready for another block.
    pub(crate) fn reset(&mut self) {
        self.registers.fill(Slot([POISON; SLOT_BYTES]));
        self.predicates.fill(0);
        let state = &mut self.state;
        state.status = Status::Ready;
        state.live = state.lanes;
        state.divergence.start(state.lanes);
        state.carry = 0;
        state.local.fill(POISON);
        state.copies.clear();
        state.committed_groups = [0; 32];
        state.causality.clear();
    }

    /// Sets the masked lanes of a 32-bit register.
    pub(crate) fn set_register(&mut self, slot: u32, value: u32, lanes: u32) {
        let Slot(bytes) = &mut self.registers[slot as usize];
        for (lane, bytes) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            if lanes >> lane & 1 != 0 {
                *bytes = value.to_ne_bytes();
            }
        }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// What a lane of a register holds: plain bits of 4 bytes, or of 8 in two slots.
pub trait LaneValue: Copy + sealed::Sealed {}
macro_rules! lane_values {
    ($($value:ty),*) => { $(impl sealed::Sealed for $value {} impl LaneValue for $value {})* };
}
lane_values!(u32, i32, f32, u64, i64, f64);

/// The lanes of a mask, lowest first.
#[derive(Clone, Copy)]
pub(crate) struct Lanes(pub(crate) u32);

impl Iterator for Lanes {
    type Item = u32;

    #[inline(always)]
    fn next(&mut self) -> Option<u32> {
        let lane = self.0.trailing_zeros();
        (self.0 != 0).then(|| {
            self.0 &= self.0 - 1;
            lane
        })
    }
}

/// A warp at an instruction, with its block and launch.
pub struct WarpContext<'a, 'k> {
    /// The lanes that execute the instruction.
    pub mask: u32,
    pub(crate) pc: u32,
    registers: *mut u8,
    constants: *const u8,
    /// What `registers` points into.
    owner: PhantomData<&'a mut [Slot]>,
    predicates: &'a mut [u32],
    pub(crate) warp: &'a mut WarpState,
    pub(crate) block: &'a mut BlockState,
    pub(crate) launch: &'a mut LaunchState<'k>,
    pub(crate) fault: Option<Box<Fault>>,
}

impl<'a, 'k> WarpContext<'a, 'k> {
    pub(crate) fn new(warp: &'a mut Warp, block: &'a mut BlockState, launch: &'a mut LaunchState<'k>) -> Self {
        WarpContext {
            mask: 0,
            pc: 0,
            registers: warp.registers.as_mut_ptr().cast(),
            constants: launch.kernel.constants.as_ptr().cast(),
            owner: PhantomData,
            predicates: &mut warp.predicates,
            warp: &mut warp.state,
            block,
            launch,
            fault: None,
        }
    }

    /// The lanes of a register or constant.
    ///
    /// # Safety
    /// The slot must be one of the running kernel, and a constant must not be written to.
    #[inline(always)]
    pub unsafe fn lanes<S>(&self, slot: u32) -> *mut [S; 32] {
        debug_assert!(slot != NONE);
        let base = if slot & CONSTANT != 0 { self.constants.cast_mut() } else { self.registers };
        // SAFETY: lowering numbers slots below the counts that registers and constants have been allocated with.
        unsafe { base.add((slot & !CONSTANT) as usize * SLOT_BYTES).cast() }
    }

    /// The values of an operand of an instruction of the running kernel.
    #[inline(always)]
    pub(crate) fn values<S: LaneValue>(&self, slot: u32) -> [S; 32] {
        // SAFETY: the instruction's slots are the kernel's, and hold plain bits.
        unsafe { *self.lanes::<S>(slot) }
    }

    /// Sets the active lanes of a destination of an instruction of the running kernel, if it is not [`NONE`].
    #[inline(always)]
    pub(crate) fn set_values<S: LaneValue>(&mut self, slot: u32, values: &[S; 32]) {
        if slot == NONE {
            return;
        }
        // SAFETY: as for `values`; destinations are registers, which nothing else refers to.
        let register = unsafe { &mut *self.lanes::<S>(slot) };
        if self.mask == u32::MAX {
            *register = *values;
        } else {
            for lane in Lanes(self.mask) {
                register[lane as usize] = values[lane as usize];
            }
        }
    }

    /// A predicate operand, negated where it says so: a bit for each lane.
    #[inline(always)]
    pub fn predicate(&self, predicate: u32) -> u32 {
        let value = self.predicates[(predicate & !NEGATED) as usize];
        if predicate & NEGATED != 0 { !value } else { value }
    }

    /// Sets the active lanes of a predicate, if it is not [`NONE`].
    #[inline(always)]
    pub fn set_predicate(&mut self, predicate: u32, value: u32) {
        if predicate != NONE {
            let old = &mut self.predicates[predicate as usize];
            *old = *old & !self.mask | value & self.mask;
        }
    }

    /// The carry flag of each lane.
    pub fn carry_flags(&self) -> u32 {
        self.warp.carry
    }

    /// Sets the carry flag of all lanes.
    pub fn set_carry_flags(&mut self, value: u32) {
        self.warp.carry = value;
    }

    /// Each lane's address: the first source plus the immediate offset.
    #[inline(always)]
    pub(crate) fn addresses(&self, instruction: &Instruction) -> [u64; 32] {
        self.values::<u64>(instruction.sources[0]).map(|address| address.wrapping_add(instruction.immediate as u64))
    }

    /// Stops the launch with a fault of the lane. The first fault counts.
    #[cold]
    #[inline(never)]
    pub(crate) fn fail(&mut self, kind: FaultKind, lane: u32, message: String) {
        let fault = self.launch.fault(kind, message, self.block.index, self.warp, lane, self.pc);
        self.fault.get_or_insert_with(|| Box::new(fault));
    }
}

/// What a lane of a warp knows now.
#[inline(always)]
pub(crate) fn moment<'a>(block: u32, clocks: &'a Clocks, warp: &'a WarpState, lane: u32) -> Moment<'a> {
    let index = warp.index as usize;
    Moment {
        me: Accessor::new(block, warp.index, lane, clocks.now(index)),
        clocks: clocks.known_to(index),
        known: &warp.causality.known,
    }
}
