//! Branches, and the graph of basic blocks that they make.
use std::ops::Range;

use super::scopes::Symbol;
use super::{Lowering, Result};
use crate::data_type::Width;
use crate::execution;
use crate::instruction::{Class, Instruction, Kind, NONE};
use crate::parser::syntax::{InstructionText, Operand};

impl Lowering<'_> {
    /// A branch to a label, guarded as the current statement is.
    pub(super) fn branch(&self, label: u32) -> Instruction {
        let mut instruction = self.instruction(execution::no_operation, Kind::Branch, Class::Control);
        instruction.immediate = i64::from(label);
        instruction
    }

    pub(super) fn lower_branch(&mut self, text: &InstructionText) -> Result<bool> {
        let [Operand::Symbol(name)] = text.operands.as_slice() else { return Ok(false) };
        let branch = self.branch(self.label(name)?);
        self.emit(branch);
        Ok(true)
    }

    /// `brx.idx index, table`
    pub(super) fn lower_indexed_branch(&mut self, text: &InstructionText) -> Result<bool> {
        let [index, Operand::Symbol(name)] = text.operands.as_slice() else { return Ok(false) };
        let Some(Symbol::BranchTable(table)) = self.find(name) else {
            return self.error(format!("'{name}' is not a branch table"));
        };
        let index = self.source(index, Width::Bits32)?;
        let mut instruction = self.instruction(execution::no_operation, Kind::IndexedBranch, Class::Control);
        instruction.sources[0] = index;
        instruction.immediate = i64::from(table);
        self.emit(instruction);
        Ok(true)
    }

    pub(super) fn lower_return(&mut self) -> Result<bool> {
        match self.return_labels.last() {
            Some(label) => {
                let branch = self.branch(*label);
                self.emit(branch);
            }
            None => self.lower_exit(),
        }
        Ok(true)
    }

    pub(super) fn lower_exit(&mut self) {
        let instruction = self.instruction(execution::no_operation, Kind::Exit, Class::Control);
        self.emit(instruction);
    }

    /// The exit at the end of a kernel, which the text may leave out.
    pub(super) fn exit(&mut self) {
        self.current.guard = NONE;
        self.current.opcode = "exit".into();
        self.lower_exit();
    }
}

/// The basic blocks of a kernel in the order of the text.
pub(super) struct ControlFlow {
    /// Position of each block's first instruction, and the length of the code.
    bounds: Vec<usize>,
    /// Blocks that may come after each block.
    pub successors: Vec<Vec<usize>>,
    /// The block that each block falls through to.
    pub falls_through: Vec<Option<usize>>,
}

impl ControlFlow {
    pub fn new(lowering: &Lowering<'_>) -> Result<Self> {
        let code = &lowering.code;
        let mut bounds = vec![0, code.len()];
        bounds.extend(lowering.labels.iter().flatten());
        let is_jump =
            |instruction: &Instruction| matches!(instruction.kind, Kind::Branch | Kind::IndexedBranch | Kind::Exit);
        bounds.extend((0..code.len()).filter(|position| is_jump(&code[*position])).map(|position| position + 1));
        bounds.sort_unstable();
        bounds.dedup();
        let mut graph = Self { bounds, successors: vec![], falls_through: vec![] };
        for block in 0..graph.bounds.len() - 1 {
            let last = &code[graph.range(block).end - 1];
            let targets = match last.kind {
                Kind::Branch => vec![last.immediate as u32],
                Kind::IndexedBranch => lowering.branch_tables[last.immediate as usize].clone(),
                _ => vec![],
            };
            let mut successors = vec![];
            for label in targets {
                successors.push(
                    graph
                        .block_of_label(lowering, label)
                        .ok_or_else(|| format!("PTX line {}: a branch to a label that is not there", last.line))?,
                );
            }
            let continues = !is_jump(last) || last.guard != NONE;
            let falls_through = (continues && block + 2 < graph.bounds.len()).then_some(block + 1);
            successors.extend(falls_through);
            graph.successors.push(successors);
            graph.falls_through.push(falls_through);
        }
        Ok(graph)
    }

    /// Positions of a block's instructions.
    pub fn range(&self, block: usize) -> Range<usize> {
        self.bounds[block]..self.bounds[block + 1]
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    /// The block that starts at a label.
    pub fn block_of_label(&self, lowering: &Lowering<'_>, label: u32) -> Option<usize> {
        let position = (*lowering.labels.get(label as usize)?)?;
        self.bounds[..self.len()].binary_search(&position).ok()
    }
}
