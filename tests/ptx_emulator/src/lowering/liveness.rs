//! Which virtual registers are live where.
use super::control_flow::ControlFlow;
use crate::instruction::{CONSTANT, Instruction, NEGATED, NONE};

/// The virtual register of an operand, if it is one.
pub(super) fn register_of(operand: u32) -> Option<u32> {
    if operand == NONE {
        return None;
    }
    let register = operand & !NEGATED;
    (register & CONSTANT == 0).then_some(register)
}

/// The registers that an instruction reads.
pub(super) fn reads(instruction: &Instruction) -> impl Iterator<Item = u32> + '_ {
    std::iter::once(&instruction.guard).chain(&instruction.sources).filter_map(|operand| register_of(*operand))
}

/// The registers that an instruction writes.
pub(super) fn writes(instruction: &Instruction) -> impl Iterator<Item = u32> + '_ {
    instruction.destinations.iter().filter_map(|operand| register_of(*operand))
}

/// A set of virtual registers.
#[derive(Clone, PartialEq)]
pub(super) struct RegisterSet(Vec<u64>);

impl RegisterSet {
    fn new(registers: usize) -> Self {
        Self(vec![0; registers.div_ceil(64)])
    }

    pub fn contains(&self, register: u32) -> bool {
        self.0[register as usize / 64] >> (register % 64) & 1 != 0
    }

    fn insert(&mut self, register: u32) {
        self.0[register as usize / 64] |= 1 << (register % 64);
    }

    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.0.len() as u32 * 64).filter(|register| self.contains(*register))
    }
}

/// The registers that are live at the bounds of each block.
pub(super) struct Liveness {
    pub at_start: Vec<RegisterSet>,
    pub at_end: Vec<RegisterSet>,
}

impl Liveness {
    /// Liveness over the blocks in `order`; the others cannot be reached.
    pub fn new(code: &[Instruction], graph: &ControlFlow, order: &[usize], registers: usize) -> Self {
        let none = vec![RegisterSet::new(registers); graph.len()];
        let (mut read_first, mut written) = (none.clone(), none.clone());
        for &block in order {
            for instruction in &code[graph.range(block)] {
                reads(instruction).for_each(|register| {
                    if !written[block].contains(register) {
                        read_first[block].insert(register);
                    }
                });
                // a guarded instruction may leave the old value
                if instruction.guard == NONE {
                    writes(instruction).for_each(|register| written[block].insert(register));
                }
            }
        }
        let (mut at_start, mut at_end) = (read_first.clone(), none);
        let mut changed = true;
        while changed {
            changed = false;
            for &block in order.iter().rev() {
                for word in 0..registers.div_ceil(64) {
                    let live = graph.successors[block].iter().fold(0, |live, next| live | at_start[*next].0[word]);
                    at_end[block].0[word] = live;
                    let start = read_first[block].0[word] | live & !written[block].0[word];
                    changed |= start != at_start[block].0[word];
                    at_start[block].0[word] = start;
                }
            }
        }
        Self { at_start, at_end }
    }
}
