//! Which instruction is lowered where.
use super::{Lowering, Result};
use crate::data_type::DataType;
use crate::execution;
use crate::instruction::{Class, Kind, StateSpace};
use crate::parser::syntax::{InstructionText, Opcode};

impl Lowering<'_> {
    /// Lowers an instruction; false if it is not supported.
    pub(super) fn lower_instruction(&mut self, text: &InstructionText) -> Result<bool> {
        match text.opcode.name.as_str() {
            "bra" => self.lower_branch(text),
            "brx" => self.lower_indexed_branch(text),
            "ret" => self.lower_return(),
            "exit" => {
                self.lower_exit();
                Ok(true)
            }
            "call" => self.lower_call(text),
            "trap" | "brkpt" => {
                let instruction = self.instruction(execution::trap, Kind::MayFault, Class::Control);
                self.emit(instruction);
                Ok(true)
            }
            "mov" => self.lower_mov(text),
            "cvta" => self.lower_cvta(text),
            "isspacep" => self.lower_isspacep(text),
            "createpolicy" => self.lower_create_policy(text),
            "selp" => self.lower_selp(text),
            "setp" => self.lower_setp(text),
            "set" => self.lower_set(text),
            "testp" => self.lower_testp(text),
            "and" | "or" | "xor" | "not" if text.opcode.data_type() == Some(DataType::Pred) => {
                self.lower_predicate_logic(text)
            }
            "lop3" => self.lower_lop3(text),
            "ld" | "ldu" => self.lower_load(text),
            "st" => self.lower_store(text),
            "atom" | "red" => self.lower_atomic(text),
            "membar" | "fence" => self.lower_fence(text),
            "prefetch" | "prefetchu" => {
                // no effect on results
                Ok(true)
            }
            "cp" => self.lower_async_copy(text),
            "bar" | "barrier" => self.lower_barrier(text),
            "shfl" => self.lower_shuffle(text),
            "vote" => self.lower_vote(text),
            "redux" => self.lower_reduction(text),
            "activemask" => self.lower_active_mask(text),
            "ldmatrix" => self.lower_ldmatrix(text),
            "mma" => self.lower_mma(text),
            _ => self.lower_arithmetic(text),
        }
    }
}

/// The state space that an opcode names, generic if it names none.
pub(super) fn state_space(opcode: &Opcode) -> StateSpace {
    let named = opcode.modifiers.iter().find_map(|modifier| {
        Some(match modifier.split("::").next()? {
            "global" => StateSpace::Global,
            "shared" => StateSpace::Shared,
            "local" => StateSpace::Local,
            "param" => StateSpace::Param,
            "const" => StateSpace::Const,
            _ => return None,
        })
    });
    named.unwrap_or(StateSpace::Generic)
}
