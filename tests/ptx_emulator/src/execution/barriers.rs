//! Barriers of a block: `bar` and `barrier`.
use super::block::Block;
use super::launch::LaunchState;
use super::ordering::{Causality, join};
use super::warp::{Status, Warp, WarpContext};
use crate::instruction::{BarrierKind, Instruction, Modifiers, NONE};
use crate::report::{Fault, FaultKind};

/// Barriers that a block has.
pub(crate) const BARRIERS: usize = 16;

/// A warp's arrival, with the operands of its instruction.
pub(crate) struct Arrival {
    barrier: u32,
    /// How many threads the barrier waits for, if not for all of the block.
    threads: Option<u32>,
    kind: BarrierKind,
    /// Lanes whose predicate is true.
    predicate: u32,
    destination: u32,
    lanes: u32,
    pc: u32,
}

/// A warp that waits.
struct Waiting {
    warp: usize,
    lanes: u32,
    destination: u32,
    kind: BarrierKind,
}

/// A barrier, between the first arrival and the last.
#[derive(Default)]
pub(crate) struct Barrier {
    /// Warps that have arrived, and how many are needed.
    arrived: u32,
    needed: u32,
    /// Whether the instruction names a count of threads.
    is_counted: bool,
    /// The first arrival's instruction.
    pc: u32,
    waiting: Vec<Waiting>,
    /// What the warps know together.
    clocks: Vec<u32>,
    causality: Causality,
    /// Threads whose predicate is true, and whether all are.
    count_true: u32,
    all_true: bool,
}

impl Barrier {
    /// The warps that wait, and where, if any do.
    pub(crate) fn describe(&self, id: usize, launch: &LaunchState) -> Option<String> {
        let warps: Vec<String> = self.waiting.iter().map(|waiting| waiting.warp.to_string()).collect();
        (self.arrived > 0).then(|| {
            let (arrived, needed, at) = (self.arrived, self.needed, launch.kernel.describe(self.pc as usize));
            format!("warps {} wait at barrier {id} ({arrived} of {needed} have arrived), {at}", warps.join(" "))
        })
    }
}

impl WarpContext<'_, '_> {
    /// The arrival of the warp at a barrier instruction, or `None` with the fault set.
    pub(crate) fn arrival(&mut self, instruction: &Instruction) -> Option<Arrival> {
        let Modifiers::Barrier(kind) = instruction.modifiers else { unreachable!("not a barrier") };
        let (lanes, live, all) = (self.mask, self.warp.live, self.warp.lanes);
        let lane = lanes.trailing_zeros();
        let [barrier, threads, predicate, ..] = instruction.sources;
        let operand = |context: &Self, slot| context.values::<u32>(slot)[lane as usize];
        let barrier = operand(self, barrier);
        let threads = (threads != NONE).then(|| operand(self, threads));
        let message = if lanes != live {
            format!("divergent barrier: of the warp's lanes {live:#010x}, only {lanes:#010x} reach it")
        } else if live != all && !self.launch.settings.allow_exit_before_barrier {
            format!("exit before a barrier: lanes {:#010x} of this warp have exited, the others wait here", all & !live)
        } else if barrier as usize >= BARRIERS {
            format!("barrier {barrier}: only 0 to 15 exist")
        } else if threads.is_some_and(|threads| threads == 0 || threads % 32 != 0) {
            format!("barrier {barrier}: {} threads are no multiple of 32", threads.unwrap_or_default())
        } else {
            let predicate = if predicate == NONE { 0 } else { self.predicate(predicate) & lanes };
            let (destination, pc) = (instruction.destinations[0], self.pc);
            return Some(Arrival { barrier, threads, kind, predicate, destination, lanes, pc });
        };
        self.fail(FaultKind::LaunchFailed, lane, message);
        None
    }
}

impl Block {
    /// A warp arrives at a barrier; the last one lets all go on.
    pub(crate) fn arrive(&mut self, warp: usize, arrival: &Arrival, launch: &mut LaunchState) -> Result<(), Fault> {
        let (id, warps) = (arrival.barrier, self.warps.len() as u32);
        let needed = arrival.threads.map_or(warps, |threads| threads / 32);
        let barrier = &mut self.barriers[id as usize];
        let message = if needed > warps {
            Some(format!("barrier {id} waits for {} threads, the block has {}", needed * 32, warps * 32))
        } else if barrier.arrived == 0 {
            *barrier = Barrier {
                needed,
                is_counted: arrival.threads.is_some(),
                pc: arrival.pc,
                all_true: true,
                clocks: vec![0; warps as usize],
                ..Barrier::default()
            };
            None
        } else if barrier.needed != needed {
            let at = launch.kernel.describe(barrier.pc as usize);
            let (mine, first) = (needed * 32, barrier.needed * 32);
            Some(format!("barrier {id}: this warp waits for {mine} threads, an earlier one for {first}, {at}"))
        } else if launch.settings.require_same_barrier && !barrier.is_counted && barrier.pc != arrival.pc {
            let at = launch.kernel.describe(barrier.pc as usize);
            Some(format!("divergent barrier {id}: another warp of this block waits at another one, {at}"))
        } else {
            None
        };
        let state = &mut self.warps[warp].state;
        if let Some(message) = message {
            let (block, lane) = (self.state.index, arrival.lanes.trailing_zeros());
            return Err(launch.fault(FaultKind::LaunchFailed, message, block, state, lane, arrival.pc));
        }
        launch.counters.barriers += 1;
        barrier.arrived += 1;
        join(&mut barrier.clocks, self.state.clocks.known_to(warp));
        if !state.causality.is_empty() {
            barrier.causality.merge(&state.causality);
        }
        barrier.count_true += arrival.predicate.count_ones();
        barrier.all_true &= arrival.predicate == arrival.lanes;
        if arrival.kind == BarrierKind::Arrive {
            // What follows is not covered by the arrival.
            self.state.clocks.advance(warp);
        } else {
            state.status = Status::Waiting;
            let (lanes, destination, kind) = (arrival.lanes, arrival.destination, arrival.kind);
            barrier.waiting.push(Waiting { warp, lanes, destination, kind });
        }
        if barrier.arrived == barrier.needed {
            self.complete(id as usize);
        }
        Ok(())
    }

    /// Lets the warps that wait at a barrier go on.
    fn complete(&mut self, id: usize) {
        let barrier = std::mem::take(&mut self.barriers[id]);
        for waiting in &barrier.waiting {
            let warp = &mut self.warps[waiting.warp];
            warp.state.status = Status::Ready;
            self.state.clocks.learn(waiting.warp, &barrier.clocks);
            self.state.clocks.advance(waiting.warp);
            if !barrier.causality.is_empty() {
                warp.state.causality.merge(&barrier.causality);
            }
            if waiting.destination != NONE {
                barrier.set_result(warp, waiting);
            }
        }
    }

    /// Completes barriers that wait only for warps that have exited, where that is allowed; whether there were any.
    pub(crate) fn complete_without_exited(&mut self, exited: u32) -> bool {
        let is_due = |barrier: &Barrier| {
            barrier.arrived > 0 && !barrier.is_counted && barrier.arrived + exited >= barrier.needed
        };
        let due: Vec<usize> = (0..BARRIERS).filter(|&id| is_due(&self.barriers[id])).collect();
        due.iter().for_each(|&id| self.complete(id));
        !due.is_empty()
    }
}

impl Barrier {
    fn set_result(&self, warp: &mut Warp, waiting: &Waiting) {
        let value = match waiting.kind {
            BarrierKind::CountTrue => return warp.set_register(waiting.destination, self.count_true, waiting.lanes),
            BarrierKind::All => self.all_true,
            BarrierKind::Any => self.count_true > 0,
            BarrierKind::Sync | BarrierKind::Arrive => return,
        };
        let predicate = &mut warp.predicates[waiting.destination as usize];
        *predicate = if value { *predicate | waiting.lanes } else { *predicate & !waiting.lanes };
    }
}
