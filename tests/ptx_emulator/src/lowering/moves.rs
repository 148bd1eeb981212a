//! `mov`, `cvta` and `isspacep`.
use super::instructions::state_space;
use super::{Lowering, RegisterClass, Result};
use crate::arithmetic::{moves, select};
use crate::data_type::{DataType, Width};
use crate::execution;
use crate::instruction::{Class, Kind, Modifiers};
use crate::parser::syntax::{InstructionText, Opcode, Operand};

impl Lowering<'_> {
    pub(super) fn lower_mov(&mut self, text: &InstructionText) -> Result<bool> {
        let Some(data_type) = text.opcode.data_type() else { return Ok(false) };
        let [destination, source] = text.operands.as_slice() else { return Ok(false) };
        match (destination, source) {
            _ if data_type == DataType::Pred => {
                let Some(register) = self.predicate_destination(destination)? else { return Ok(false) };
                let predicate = self.predicate_source(source)?;
                self.arithmetic(moves::copy_predicate(), Class::Move, register, &[predicate]);
                Ok(true)
            }
            (Operand::Vector(_), Operand::Vector(_)) => Ok(false),
            (Operand::Vector(parts), whole) => self.unpack(data_type, parts, whole),
            (whole, Operand::Vector(parts)) => self.pack(data_type, whole, parts),
            _ => {
                let width = data_type.width();
                let source = self.source(source, width)?;
                let destination = self.destination(destination, width)?;
                self.arithmetic(moves::copy(width), Class::Move, destination.register, &[source]);
                self.complete(destination, false);
                Ok(true)
            }
        }
    }

    fn unpack(&mut self, data_type: DataType, parts: &[Operand], whole: &Operand) -> Result<bool> {
        let bits = data_type.bytes() * 8 / parts.len() as u32;
        let Some(handlers) = moves::unpack(data_type.width(), bits) else { return Ok(false) };
        let whole = self.source(whole, data_type.width())?;
        // all parts are read before a destination is written, which may be the source
        let mut read = vec![];
        for (index, part) in parts.iter().enumerate() {
            let register = self.new_register(RegisterClass::Bits32);
            let mut instruction = self.instruction(handlers.of(self.instruction_set), Kind::Arithmetic, Class::Move);
            instruction.destinations[0] = register;
            instruction.sources[0] = whole;
            instruction.immediate = i64::from(index as u32 * bits);
            self.emit(instruction);
            read.push((register, part));
        }
        for (register, part) in read {
            let destination = self.destination(part, Width::Bits32)?;
            self.arithmetic(moves::copy(Width::Bits32), Class::Move, destination.register, &[register]);
            self.complete(destination, false);
        }
        Ok(true)
    }

    fn pack(&mut self, data_type: DataType, whole: &Operand, parts: &[Operand]) -> Result<bool> {
        let bits = data_type.bytes() * 8 / parts.len() as u32;
        let Some(handlers) = moves::pack(data_type.bytes() * 8, bits) else { return Ok(false) };
        let sources = parts.iter().map(|part| self.source(part, Width::Bits32)).collect::<Result<Vec<_>>>()?;
        let destination = self.destination(whole, data_type.width())?;
        self.arithmetic(handlers, Class::Move, destination.register, &sources);
        self.complete(destination, false);
        Ok(true)
    }

    /// An address of a state space to a generic one, or with `.to` the other way.
    pub(super) fn lower_cvta(&mut self, text: &InstructionText) -> Result<bool> {
        let [destination, source] = text.operands.as_slice() else { return Ok(false) };
        let source = self.source(source, Width::Bits64)?;
        let destination = self.destination(destination, Width::Bits64)?;
        let window = execution::window(state_space(&text.opcode));
        if window == 0 {
            self.arithmetic(moves::copy(Width::Bits64), Class::Move, destination.register, &[source]);
        } else {
            let difference = if text.opcode.has("to") { window.wrapping_neg() } else { window };
            let difference = self.constant(difference, Width::Bits64);
            let Some(add) = select(&Opcode::new("add.u64")) else { return Ok(false) };
            self.arithmetic(add.handlers, Class::Integer, destination.register, &[source, difference]);
        }
        self.complete(destination, false);
        Ok(true)
    }

    pub(super) fn lower_isspacep(&mut self, text: &InstructionText) -> Result<bool> {
        let [destination, source] = text.operands.as_slice() else { return Ok(false) };
        let Some(destination) = self.predicate_destination(destination)? else { return Ok(false) };
        let source = self.source(source, Width::Bits64)?;
        let mut instruction = self.instruction(execution::is_in_space, Kind::Arithmetic, Class::Integer);
        instruction.destinations[0] = destination;
        instruction.sources[0] = source;
        instruction.modifiers = Modifiers::Space(state_space(&text.opcode));
        self.emit(instruction);
        Ok(true)
    }
}
