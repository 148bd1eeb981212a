//! Lane-wise arithmetic.
use super::{Lowering, Result};
use crate::arithmetic::{self, Handlers, moves};
use crate::data_type::Width;
use crate::instruction::{Class, Kind, NONE};
use crate::parser::syntax::{InstructionText, Operand};

impl Lowering<'_> {
    /// Emits an instruction that works lane by lane and cannot fault.
    pub(super) fn arithmetic(&mut self, handlers: Handlers, class: Class, destination: u32, sources: &[u32]) {
        let mut instruction = self.instruction(handlers.of(self.instruction_set), Kind::Arithmetic, class);
        instruction.destinations[0] = destination;
        instruction.sources[..sources.len()].copy_from_slice(sources);
        self.emit(instruction);
    }

    /// Instructions with one destination whose sources are registers and constants.
    pub(super) fn lower_arithmetic(&mut self, text: &InstructionText) -> Result<bool> {
        let Some(operation) = arithmetic::select(&text.opcode) else { return Ok(false) };
        let [destination, sources @ ..] = text.operands.as_slice() else { return Ok(false) };
        if sources.len() != operation.sources.len() {
            return Ok(false);
        }
        let mut slots = [NONE; 10];
        for (slot, (operand, width)) in slots.iter_mut().zip(sources.iter().zip(&operation.sources)) {
            *slot = self.source(operand, *width)?;
        }
        let destination = self.destination(destination, operation.destination)?;
        let handler = operation.handlers.of(self.instruction_set);
        let mut instruction = self.instruction(handler, Kind::Arithmetic, operation.class);
        instruction.destinations[0] = destination.register;
        instruction.sources = slots;
        instruction.modifiers = operation.modifiers;
        self.emit(instruction);
        self.complete(destination, operation.signed);
        Ok(true)
    }

    /// `lop3.b32`
    pub(super) fn lower_lop3(&mut self, text: &InstructionText) -> Result<bool> {
        let [destination, a, b, c, Operand::Integer(table)] = text.operands.as_slice() else { return Ok(false) };
        let Ok(table) = u8::try_from(*table) else { return self.error("the table of lop3 is out of range") };
        let sources = [self.source(a, Width::Bits32)?, self.source(b, Width::Bits32)?, self.source(c, Width::Bits32)?];
        let destination = self.destination(destination, Width::Bits32)?;
        let handler = arithmetic::bits::lop3(table).of(self.instruction_set);
        let mut instruction = self.instruction(handler, Kind::Arithmetic, Class::Integer);
        instruction.destinations[0] = destination.register;
        instruction.sources[..3].copy_from_slice(&sources);
        instruction.immediate = i64::from(table);
        self.emit(instruction);
        self.complete(destination, false);
        Ok(true)
    }

    /// The policies of `createpolicy` have no effect; the register gets a value.
    pub(super) fn lower_create_policy(&mut self, text: &InstructionText) -> Result<bool> {
        let [destination, ..] = text.operands.as_slice() else { return Ok(false) };
        let destination = self.destination(destination, Width::Bits64)?;
        let zero = self.constant(0, Width::Bits64);
        self.arithmetic(moves::copy(Width::Bits64), Class::Move, destination.register, &[zero]);
        self.complete(destination, false);
        Ok(true)
    }
}
