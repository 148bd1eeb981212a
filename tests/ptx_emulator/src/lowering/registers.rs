//! The last step: blocks in their order, branches to their targets, virtual registers to few slots.
use std::collections::BTreeMap;

use super::block_order::reconvergent_order;
use super::control_flow::ControlFlow;
use super::liveness::{Liveness, reads, register_of, writes};
use super::{Lowering, RegisterClass, Result};
use crate::execution;
use crate::instruction::{Class, Instruction, Kind, Modifiers, NEGATED, NONE};
use crate::kernel::Kernel;

/// The kernel with its code.
pub(super) fn finish(lowering: Lowering<'_>, mut kernel: Kernel) -> Result<Kernel> {
    let graph = ControlFlow::new(&lowering)?;
    let order = reconvergent_order(&graph.successors);
    let liveness = Liveness::new(&lowering.code, &graph, &order, lowering.registers.len());
    kernel.warnings.extend(read_before_written(&lowering, &graph, &order, &liveness));
    let mut code = OrderedCode::new(&lowering, &graph, &order);
    code.resolve_branches(&lowering, &graph);
    kernel.branch_tables =
        lowering.branch_tables.iter().map(|labels| code.targets(&lowering, &graph, labels)).collect();
    let slots = allocate(&lowering.registers, &live_intervals(&code, &liveness, lowering.registers.len()));
    for instruction in &mut code.instructions {
        let operands = instruction.sources.iter_mut().chain(&mut instruction.destinations);
        for operand in operands.chain(std::iter::once(&mut instruction.guard)) {
            if let Some(register) = register_of(*operand) {
                *operand = slots.slot_of[register as usize] | *operand & NEGATED;
            }
        }
    }
    kernel.code = code.instructions;
    kernel.opcodes = code.opcodes;
    kernel.locations = lowering.locations;
    kernel.constants = lowering.constants.bytes;
    kernel.register_slots = slots.register_slots;
    kernel.predicates = slots.predicates;
    Ok(kernel)
}

/// A warning if some path reads a register that it has not written.
fn read_before_written(
    lowering: &Lowering<'_>,
    graph: &ControlFlow,
    order: &[usize],
    liveness: &Liveness,
) -> Option<String> {
    let undefined = liveness.at_start[0].iter().collect::<Vec<_>>();
    if undefined.is_empty() {
        return None;
    }
    let mut readers = BTreeMap::new();
    for position in order.iter().flat_map(|block| graph.range(*block)) {
        let instruction = &lowering.code[position];
        if reads(instruction).any(|register| undefined.contains(&register)) {
            readers.insert(instruction.line, &lowering.opcodes[position]);
        }
    }
    let first = readers.iter().take(3).map(|(line, opcode)| format!("{line} `{opcode}`")).collect::<Vec<_>>();
    let count = undefined.len();
    Some(format!("{count} register(s) may be read before they are written, first at PTX line {}", first.join(", ")))
}

/// The code in the order of its blocks.
struct OrderedCode {
    instructions: Vec<Instruction>,
    opcodes: Vec<String>,
    /// Position of each block's first instruction.
    starts: Vec<usize>,
    /// Block, first position and end, in order.
    blocks: Vec<(usize, usize, usize)>,
    /// Branches that replace a fall-through, with their blocks.
    added_branches: Vec<(usize, usize)>,
}

impl OrderedCode {
    fn new(lowering: &Lowering<'_>, graph: &ControlFlow, order: &[usize]) -> Self {
        let mut code = Self {
            instructions: vec![],
            opcodes: vec![],
            starts: vec![0; graph.len()],
            blocks: vec![],
            added_branches: vec![],
        };
        for (index, &block) in order.iter().enumerate() {
            let next = order.get(index + 1).copied();
            let start = code.instructions.len();
            code.starts[block] = start;
            for position in graph.range(block) {
                let instruction = &lowering.code[position];
                let goes_to_next = instruction.kind == Kind::Branch
                    && instruction.guard == NONE
                    && graph.block_of_label(lowering, instruction.immediate as u32) == next;
                if !goes_to_next {
                    code.instructions.push(instruction.clone());
                    code.opcodes.push(lowering.opcodes[position].clone());
                }
            }
            if let Some(target) = graph.falls_through[block].filter(|target| Some(*target) != next) {
                let last = &lowering.code[graph.range(block).end - 1];
                code.added_branches.push((code.instructions.len(), target));
                code.instructions.push(Instruction {
                    handler: execution::no_operation,
                    kind: Kind::Branch,
                    class: Class::Control,
                    guard: NONE,
                    destinations: [NONE; 4],
                    sources: [NONE; 10],
                    immediate: 0,
                    modifiers: Modifiers::None,
                    line: last.line,
                    location: last.location,
                });
                code.opcodes.push("bra".into());
            }
            code.blocks.push((block, start, code.instructions.len()));
        }
        code
    }

    /// Replaces labels by positions.
    fn resolve_branches(&mut self, lowering: &Lowering<'_>, graph: &ControlFlow) {
        for instruction in self.instructions.iter_mut().filter(|instruction| instruction.kind == Kind::Branch) {
            if let Some(block) = graph.block_of_label(lowering, instruction.immediate as u32) {
                instruction.immediate = self.starts[block] as i64;
            }
        }
        for &(position, block) in &self.added_branches {
            self.instructions[position].immediate = self.starts[block] as i64;
        }
    }

    /// Positions of labels; unreachable tables may have labels that are nowhere.
    fn targets(&self, lowering: &Lowering<'_>, graph: &ControlFlow, labels: &[u32]) -> Vec<u32> {
        let position = |label| graph.block_of_label(lowering, label).map_or(0, |block| self.starts[block] as u32);
        labels.iter().map(|label| position(*label)).collect()
    }
}

/// Where a virtual register is live: twice the position of the first and last instruction, plus one for a result.
#[derive(Clone, Copy)]
struct Interval {
    start: usize,
    end: usize,
}

fn live_intervals(code: &OrderedCode, liveness: &Liveness, registers: usize) -> Vec<Option<Interval>> {
    let mut intervals: Vec<Option<Interval>> = vec![None; registers];
    let mut extend = |register: u32, point: usize| {
        let interval = intervals[register as usize].get_or_insert(Interval { start: point, end: point });
        interval.start = interval.start.min(point);
        interval.end = interval.end.max(point);
    };
    for &(block, start, end) in &code.blocks {
        liveness.at_start[block].iter().for_each(|register| extend(register, 2 * start));
        liveness.at_end[block].iter().for_each(|register| extend(register, 2 * end));
        for position in start..end {
            let instruction = &code.instructions[position];
            reads(instruction).for_each(|register| extend(register, 2 * position));
            writes(instruction).for_each(|register| extend(register, 2 * position + 1));
        }
    }
    intervals
}

/// The slots that virtual registers get.
struct Slots {
    slot_of: Vec<u32>,
    register_slots: u32,
    predicates: u32,
}

/// Slots of one class: those given back, and those never given.
#[derive(Default)]
struct Pool {
    free: Vec<u32>,
}

impl Pool {
    fn take(&mut self, top: &mut u32, slots: u32) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            *top += slots;
            *top - slots
        })
    }
}

/// Linear scan: registers whose intervals do not overlap share a slot.
fn allocate(classes: &[RegisterClass], intervals: &[Option<Interval>]) -> Slots {
    let mut used = intervals.iter().enumerate().filter_map(|(index, x)| Some((index, (*x)?))).collect::<Vec<_>>();
    used.sort_by_key(|(_, interval)| interval.start);
    let mut slots = Slots { slot_of: vec![NONE; classes.len()], register_slots: 0, predicates: 0 };
    let (mut predicates, mut bits_32, mut bits_64) = (Pool::default(), Pool::default(), Pool::default());
    let mut active: Vec<(usize, Interval)> = vec![];
    for (register, interval) in used {
        active.retain(|(old, lived)| {
            let ended = lived.end < interval.start;
            if ended {
                let pool = match classes[*old] {
                    RegisterClass::Predicate => &mut predicates,
                    RegisterClass::Bits32 => &mut bits_32,
                    RegisterClass::Bits64 => &mut bits_64,
                };
                pool.free.push(slots.slot_of[*old]);
            }
            !ended
        });
        slots.slot_of[register] = match classes[register] {
            RegisterClass::Predicate => predicates.take(&mut slots.predicates, 1),
            RegisterClass::Bits32 => bits_32.take(&mut slots.register_slots, 1),
            RegisterClass::Bits64 => bits_64.take(&mut slots.register_slots, 2),
        };
        active.push((register, interval));
    }
    slots
}
