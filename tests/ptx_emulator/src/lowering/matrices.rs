//! `ldmatrix` and `mma`.
use super::instructions::state_space;
use super::memory::elements_of;
use super::{Lowering, Result};
use crate::data_type::Width;
use crate::execution;
use crate::instruction::{Class, Kind, MmaElement, Modifiers};
use crate::parser::syntax::InstructionText;

impl Lowering<'_> {
    /// `ldmatrix.sync.aligned.m8n8.count[.trans][.shared].b16 registers, [row address]`
    pub(super) fn lower_ldmatrix(&mut self, text: &InstructionText) -> Result<bool> {
        let modifiers = text.opcode.modifiers.iter().map(String::as_str).collect::<Vec<_>>();
        let ["sync", "aligned", "m8n8", count, rest @ .., "b16"] = modifiers.as_slice() else { return Ok(false) };
        let matrices = match *count {
            "x1" => 1,
            "x2" => 2,
            "x4" => 4,
            _ => return Ok(false),
        };
        if rest.iter().any(|modifier| !matches!(*modifier, "trans" | "shared" | "shared::cta")) {
            return Ok(false);
        }
        let [destinations, address] = text.operands.as_slice() else { return Ok(false) };
        let destinations = elements_of(destinations);
        if destinations.len() != usize::from(matrices) {
            return self.error(format!("{} registers for {matrices} matrices", destinations.len()));
        }
        let address = self.address(address, state_space(&text.opcode))?;
        let mut instruction = self.memory_instruction(execution::ldmatrix, &address, Class::LoadShared);
        for (slot, operand) in instruction.destinations.iter_mut().zip(destinations) {
            *slot = self.register_32(operand)?;
        }
        let transposed = rest.contains(&"trans");
        instruction.modifiers = Modifiers::Ldmatrix { space: address.space, matrices, transposed };
        self.emit(instruction);
        Ok(true)
    }

    /// `mma.sync.aligned.shape.row.col.type.type.type.type d, a, b, c`
    pub(super) fn lower_mma(&mut self, text: &InstructionText) -> Result<bool> {
        let modifiers = text.opcode.modifiers.iter().map(String::as_str).collect::<Vec<_>>();
        let ["sync", "aligned", shape, "row", "col", result, a, b, addend] = modifiers.as_slice() else {
            return Ok(false);
        };
        let element = match (*a, *b) {
            ("f16", "f16") => MmaElement::F16,
            ("bf16", "bf16") => MmaElement::Bf16,
            _ => return Ok(false),
        };
        let k = match *shape {
            "m16n8k8" => 8,
            "m16n8k16" => 16,
            _ => return Ok(false),
        };
        let is_f16 = |name| match name {
            "f16" if element == MmaElement::F16 => Some(true),
            "f32" => Some(false),
            _ => None,
        };
        let (Some(f16_result), Some(f16_addend)) = (is_f16(*result), is_f16(*addend)) else { return Ok(false) };
        let [d, a, b, c] = text.operands.as_slice() else { return Ok(false) };
        let (d, a, b, c) = (elements_of(d), elements_of(a), elements_of(b), elements_of(c));
        let accumulators = |is_f16| if is_f16 { 2 } else { 4 };
        let expected = [accumulators(f16_result), k / 4, k / 8, accumulators(f16_addend)];
        if [d.len(), a.len(), b.len(), c.len()] != expected {
            return self.error(format!("the fragments of this mma have {expected:?} registers"));
        }
        let mut instruction =
            self.instruction(execution::mma(element).of(self.instruction_set), Kind::MayFault, Class::Tensor);
        for (slot, operand) in instruction.sources.iter_mut().zip(a.iter().chain(b).chain(c)) {
            *slot = self.source(operand, Width::Bits32)?;
        }
        for (slot, operand) in instruction.destinations.iter_mut().zip(d) {
            *slot = self.register_32(operand)?;
        }
        instruction.modifiers = Modifiers::Mma { element, k: k as u8, f16_addend, f16_result };
        self.emit(instruction);
        Ok(true)
    }

    /// The register of a 32-bit destination.
    fn register_32(&self, operand: &crate::parser::syntax::Operand) -> Result<u32> {
        match self.data_register(operand)? {
            (register, Width::Bits32) => Ok(register),
            _ => self.error(format!("{operand:?} does not have 32 bits")),
        }
    }
}
