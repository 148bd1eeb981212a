//! A block: its warps take turns.
#![allow(unsafe_code, reason = "handlers have a contract")]

use super::barriers::{Arrival, BARRIERS, Barrier};
use super::launch::LaunchState;
use super::ordering::Clocks;
use super::settings::Order;
use super::warp::{Lanes, Status, Warp, WarpContext};
use crate::instruction::{Instruction, Kind, NONE};
use crate::memory::SharedMemory;
use crate::report::{Fault, FaultKind};

/// Branches that a warp takes before the limit of instructions is looked at.
const TURN: u64 = 100_000;
/// Longest turn of a warp in random order, in branches, and turns before another block may run.
const SHORT_TURN: u64 = 8;
const TURNS_OF_A_BLOCK: u32 = 64;

/// A block of threads.
pub(crate) struct Block {
    pub(crate) warps: Vec<Warp>,
    pub(crate) barriers: [Barrier; BARRIERS],
    pub(crate) state: BlockState,
}

/// What the warps of a block share.
pub(crate) struct BlockState {
    /// `%ctaid`
    pub(crate) index: [u32; 3],
    /// The index, counted along x, then y, then z.
    pub(crate) linear: u32,
    pub(crate) shared: SharedMemory,
    pub(crate) clocks: Clocks,
}

/// Why a warp's turn ended.
enum TurnEnd {
    /// Others may run.
    Paused,
    Exited,
    AtBarrier(Arrival),
    Fault(Box<Fault>),
}

impl Block {
    /// Memory and warps for a block of the launch; [`Block::reset`] makes it one.
    pub(crate) fn new(launch: &LaunchState) -> Block {
        let threads = launch.configuration.block;
        let warps = threads.iter().product::<u32>().div_ceil(32);
        Block {
            warps: (0..warps).map(|index| Warp::new(launch.kernel, threads, index)).collect(),
            barriers: Default::default(),
            state: BlockState {
                index: [0; 3],
                linear: 0,
                shared: SharedMemory::new(launch.kernel, launch.configuration.dynamic_shared_bytes),
                clocks: Clocks::default(),
            },
        }
    }

    /// Begins the block with that index.
    pub(crate) fn reset(&mut self, launch: &LaunchState, linear: u32) {
        self.state.index = launch.configuration.block_index(linear);
        self.state.linear = linear;
        self.state.shared.reset(launch.kernel);
        self.state.clocks.reset(self.warps.len());
        self.barriers = Default::default();
        self.warps.iter_mut().for_each(Warp::reset);
    }

    /// Runs the block: to its end (true), or in random order until others may run (false).
    pub(crate) fn run(&mut self, launch: &mut LaunchState) -> Result<bool, Fault> {
        let is_random = matches!(launch.settings.order, Order::Random { .. });
        for turn in 0.. {
            if is_random && turn == TURNS_OF_A_BLOCK {
                return Ok(false);
            }
            let of_status = |status| {
                let warps = self.warps.iter().enumerate().filter(move |(_, warp)| warp.state.status == status);
                warps.fold(0, |mask, (index, _)| mask | 1u32 << index)
            };
            let (ready, exited) = (of_status(Status::Ready), of_status(Status::Exited).count_ones());
            if ready == 0 {
                if exited as usize == self.warps.len() {
                    return Ok(true);
                }
                if launch.settings.allow_exit_before_barrier && self.complete_without_exited(exited) {
                    continue;
                }
                return Err(self.deadlock(launch, exited));
            }
            let (warp, branches) = match launch.settings.order {
                Order::Forward => (ready.trailing_zeros(), TURN),
                Order::Reverse => (31 - ready.leading_zeros(), TURN),
                Order::Random { .. } => {
                    let nth = launch.random() % u64::from(ready.count_ones());
                    let warp = Lanes(ready).nth(nth as usize).unwrap_or_default();
                    (warp, 1 + launch.random() % SHORT_TURN)
                }
            };
            self.run_warp(warp as usize, branches, launch)?;
        }
        Ok(true)
    }

    /// Gives a warp a turn of so many branches.
    fn run_warp(&mut self, index: usize, branches: u64, launch: &mut LaunchState) -> Result<(), Fault> {
        let warp = &mut self.warps[index];
        let before = warp.state.instructions;
        let end = WarpContext::new(warp, &mut self.state, launch).take_turn(branches);
        launch.counters.warp_instructions += warp.state.instructions - before;
        if launch.counters.warp_instructions > launch.settings.instruction_limit {
            let limit = launch.settings.instruction_limit;
            let message = format!("endless loop: more than {limit} instructions of warps");
            let lane = warp.state.live.trailing_zeros() & 31;
            let pc = warp.state.divergence.pc.min(launch.kernel.code.len() as u32 - 1);
            return Err(launch.fault(FaultKind::Timeout, message, self.state.index, &warp.state, lane, pc));
        }
        match end {
            TurnEnd::Paused => Ok(()),
            TurnEnd::Exited => {
                warp.state.status = Status::Exited;
                let copies = warp.state.copies.iter().filter(|copy| copy.source_bytes > 0).count();
                if copies > 0 {
                    let ([x, y, z], name) = (self.state.index, &launch.kernel.name);
                    launch.warnings.push(format!(
                        "kernel {name}, block ({x},{y},{z}): warp {index} exits with {copies} cp.async copies in flight"
                    ));
                }
                Ok(())
            }
            TurnEnd::AtBarrier(arrival) => self.arrive(index, &arrival, launch),
            TurnEnd::Fault(fault) => Err(*fault),
        }
    }

    fn deadlock(&self, launch: &LaunchState, exited: u32) -> Fault {
        let [x, y, z] = self.state.index;
        let barriers = self.barriers.iter().enumerate().filter_map(|(id, barrier)| barrier.describe(id, launch));
        let mut message = barriers.collect::<Vec<_>>().join("; ");
        if exited > 0 {
            message += &format!("; {exited} warp(s) have exited");
        }
        let message = format!("deadlock: {message}; kernel {}, block ({x},{y},{z})", launch.kernel.name);
        Fault { kind: FaultKind::LaunchFailed, message }
    }
}

impl WarpContext<'_, '_> {
    /// Executes instructions until the warp waits, exits, faults or has taken so many branches.
    fn take_turn(mut self, mut branches: u64) -> TurnEnd {
        let kernel = self.launch.kernel;
        let mut lanes = std::mem::take(&mut self.warp.divergence);
        let mut instructions = 0;
        let end = loop {
            lanes.settle();
            let pc = lanes.pc;
            let instruction = &kernel.code[pc as usize];
            let guard = if instruction.guard == NONE { u32::MAX } else { self.predicate(instruction.guard) };
            let mask = lanes.active & guard;
            self.mask = mask;
            instructions += 1;
            self.launch.executions[pc as usize] += u64::from(mask.count_ones());
            match instruction.kind {
                Kind::Arithmetic => {
                    if mask != 0 {
                        self.execute(instruction);
                    }
                    lanes.pc += 1;
                }
                Kind::MayFault => {
                    if mask != 0 {
                        self.pc = pc;
                        self.execute(instruction);
                        if let Some(fault) = self.fault.take() {
                            break TurnEnd::Fault(fault);
                        }
                    }
                    lanes.pc += 1;
                }
                Kind::Branch | Kind::IndexedBranch => {
                    if instruction.kind == Kind::Branch {
                        lanes.branch(mask, instruction.immediate as u32);
                    } else if let Some(fault) = self.branch_by_index(instruction, &mut lanes) {
                        break TurnEnd::Fault(fault);
                    }
                    branches -= 1;
                    if branches == 0 {
                        break TurnEnd::Paused;
                    }
                }
                Kind::Exit => {
                    self.warp.live &= !mask;
                    lanes.active &= !mask;
                    lanes.pc += 1;
                    if !lanes.resume() {
                        break TurnEnd::Exited;
                    }
                }
                Kind::Barrier => {
                    lanes.pc += 1;
                    if mask != 0 {
                        self.pc = pc;
                        break match self.arrival(instruction) {
                            Some(arrival) => TurnEnd::AtBarrier(arrival),
                            None => {
                                TurnEnd::Fault(self.fault.take().unwrap_or_else(|| unreachable!("no fault is set")))
                            }
                        };
                    }
                }
            }
        };
        self.warp.divergence = lanes;
        self.warp.instructions += instructions;
        end
    }

    #[inline(always)]
    fn execute(&mut self, instruction: &Instruction) {
        // SAFETY: the instruction is one of the kernel that the warp runs.
        unsafe { (instruction.handler)(self, instruction) }
    }

    /// `brx.idx`: the lanes part by their index into a table of targets.
    fn branch_by_index(
        &mut self,
        instruction: &Instruction,
        lanes: &mut super::divergence::Divergence,
    ) -> Option<Box<Fault>> {
        let indices = self.values::<u32>(instruction.sources[0]);
        let targets = &self.launch.kernel.branch_tables[instruction.immediate as usize];
        let (pc, others) = (lanes.pc, lanes.active & !self.mask);
        let mut rest = self.mask;
        while rest != 0 {
            let lane = rest.trailing_zeros();
            let index = indices[lane as usize];
            let Some(&target) = targets.get(index as usize) else {
                self.pc = pc;
                let message = format!("brx.idx: index {index} into a table of {}", targets.len());
                self.fail(FaultKind::IllegalInstruction, lane, message);
                return self.fault.take();
            };
            let group =
                Lanes(rest).filter(|&lane| indices[lane as usize] == index).fold(0, |mask, lane| mask | 1 << lane);
            lanes.part(group, target);
            rest &= !group;
        }
        if others != 0 {
            lanes.part(others, pc + 1);
        }
        lanes.resume();
        None
    }
}
