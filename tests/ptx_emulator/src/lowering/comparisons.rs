//! Comparisons, predicates and selections.
use super::{Lowering, RegisterClass, Result};
use crate::arithmetic::{compare, moves};
use crate::data_type::{DataType, Width};
use crate::instruction::{Class, Kind, Modifiers, PredicateOperation};
use crate::parser::syntax::{InstructionText, Operand};

impl Lowering<'_> {
    pub(super) fn lower_selp(&mut self, text: &InstructionText) -> Result<bool> {
        let Some(data_type) = text.opcode.data_type() else { return Ok(false) };
        let [destination, a, b, predicate] = text.operands.as_slice() else { return Ok(false) };
        let width = data_type.width();
        let sources = [self.source(a, width)?, self.source(b, width)?, self.predicate_source(predicate)?];
        let destination = self.destination(destination, width)?;
        self.arithmetic(moves::select(width), Class::Move, destination.register, &sources);
        self.complete(destination, false);
        Ok(true)
    }

    /// `setp.comparison[.operation][.ftz].type p[|q], a, b[, c]`
    pub(super) fn lower_setp(&mut self, text: &InstructionText) -> Result<bool> {
        let [comparison, rest @ .., _] = text.opcode.modifiers.as_slice() else { return Ok(false) };
        let Some(data_type) = text.opcode.data_type() else { return Ok(false) };
        let rest = rest.iter().map(String::as_str).filter(|modifier| *modifier != "ftz").collect::<Vec<_>>();
        let Some(handlers) = compare::select(comparison, data_type, text.opcode.has("ftz")) else { return Ok(false) };
        let (destinations, a, b, combined) = match text.operands.as_slice() {
            [destinations, a, b] => (destinations, a, b, None),
            [destinations, a, b, c] => (destinations, a, b, Some(c)),
            _ => return Ok(false),
        };
        let class = match data_type {
            _ if data_type.is_half() => Class::Half,
            _ if data_type.is_float() => Class::Float,
            _ => Class::Integer,
        };
        let (a, b) = (self.source(a, data_type.width())?, self.source(b, data_type.width())?);
        let mut instruction = self.instruction(handlers.of(self.instruction_set), Kind::Arithmetic, class);
        instruction.sources[..2].copy_from_slice(&[a, b]);
        match (rest.as_slice(), combined) {
            ([], None) => {}
            ([operation], Some(predicate)) => {
                instruction.modifiers = Modifiers::Combine(match *operation {
                    "and" => PredicateOperation::And,
                    "or" => PredicateOperation::Or,
                    "xor" => PredicateOperation::Xor,
                    _ => return Ok(false),
                });
                instruction.sources[2] = self.predicate_source(predicate)?;
            }
            _ => return Ok(false),
        }
        let (first, second) = match destinations {
            Operand::Pair(first, second) => (&**first, Some(&**second)),
            single => (single, None),
        };
        for (slot, operand) in instruction.destinations.iter_mut().zip([Some(first), second]) {
            if let Some(register) = operand.map(|operand| self.predicate_destination(operand)).transpose()?.flatten() {
                *slot = register;
            }
        }
        self.emit(instruction);
        Ok(true)
    }

    /// `set.comparison[.ftz].type.type d, a, b`: all bits, or 1.0, where the comparison is true.
    pub(super) fn lower_set(&mut self, text: &InstructionText) -> Result<bool> {
        let Some((result_type, data_type)) = text.opcode.data_types() else { return Ok(false) };
        let [comparison, rest @ .., _, _] = text.opcode.modifiers.as_slice() else { return Ok(false) };
        if rest.iter().any(|modifier| modifier != "ftz") {
            return Ok(false);
        }
        let Some(handlers) = compare::select(comparison, data_type, text.opcode.has("ftz")) else { return Ok(false) };
        let [destination, a, b] = text.operands.as_slice() else { return Ok(false) };
        let one = match result_type {
            DataType::F32 => 0x3f80_0000,
            DataType::F16 | DataType::F16x2 => 0x3c00,
            DataType::Bf16 | DataType::Bf16x2 => 0x3f80,
            DataType::U16 | DataType::S16 => 0xffff,
            // two comparisons fill two halves
            DataType::U32 | DataType::S32 if data_type.is_packed() => 0xffff,
            DataType::U32 | DataType::S32 => 0xffff_ffff,
            _ => return Ok(false),
        };
        let (a, b) = (self.source(a, data_type.width())?, self.source(b, data_type.width())?);
        let predicates = [self.new_register(RegisterClass::Predicate), self.new_register(RegisterClass::Predicate)];
        let mut instruction = self.instruction(handlers.of(self.instruction_set), Kind::Arithmetic, Class::Integer);
        instruction.sources[..2].copy_from_slice(&[a, b]);
        instruction.destinations[..2].copy_from_slice(&predicates);
        self.emit(instruction);
        let (one, zero) = (self.constant(one, Width::Bits32), self.constant(0, Width::Bits32));
        let destination = self.destination(destination, Width::Bits32)?;
        let select = moves::select(Width::Bits32);
        if data_type.is_packed() {
            let halves = [self.new_register(RegisterClass::Bits32), self.new_register(RegisterClass::Bits32)];
            for (half, predicate) in halves.into_iter().zip(predicates) {
                self.arithmetic(select, Class::Move, half, &[one, zero, predicate]);
            }
            let Some(pack) = moves::pack(32, 16) else { return Ok(false) };
            self.arithmetic(pack, Class::Move, destination.register, &halves);
        } else {
            self.arithmetic(select, Class::Move, destination.register, &[one, zero, predicates[0]]);
        }
        self.complete(destination, false);
        Ok(true)
    }

    pub(super) fn lower_testp(&mut self, text: &InstructionText) -> Result<bool> {
        let [property, _] = text.opcode.modifiers.as_slice() else { return Ok(false) };
        let Some(data_type) = text.opcode.data_type() else { return Ok(false) };
        let Some(handlers) = compare::test_property(property, data_type) else { return Ok(false) };
        let [destination, source] = text.operands.as_slice() else { return Ok(false) };
        let source = self.source(source, data_type.width())?;
        let Some(destination) = self.predicate_destination(destination)? else { return Ok(false) };
        self.arithmetic(handlers, Class::Float, destination, &[source]);
        Ok(true)
    }

    pub(super) fn lower_predicate_logic(&mut self, text: &InstructionText) -> Result<bool> {
        let [destination, sources @ ..] = text.operands.as_slice() else { return Ok(false) };
        let Some(destination) = self.predicate_destination(destination)? else { return Ok(false) };
        let sources = sources.iter().map(|source| self.predicate_source(source)).collect::<Result<Vec<_>>>()?;
        let Some(handlers) = moves::predicate_logic(&text.opcode.name, sources.len()) else { return Ok(false) };
        self.arithmetic(handlers, Class::Integer, destination, &sources);
        Ok(true)
    }
}
