//! Loads, stores, atomics, fences and asynchronous copies.
use super::instructions::state_space;
use super::{Lowering, Result};
use crate::data_type::{DataType, Width};
use crate::execution;
use crate::instruction::{
    Access, AtomicOperation, AtomicType, Class, Handler, Instruction, Kind, Modifiers, NONE, StateSpace,
};
use crate::parser::syntax::{InstructionText, Opcode, Operand};

/// Modifiers of `ld` and `st` without effect on results, besides those of the L1 and L2 caches.
const CACHE_OPERATORS: [&str; 13] =
    ["weak", "nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "cta", "cluster", "gpu", "sys"];

/// Elements per lane of a load or store; none if the opcode has a modifier that is not supported.
fn vector_elements(opcode: &Opcode) -> Option<u8> {
    let mut elements = 1;
    let (_, modifiers) = opcode.modifiers.split_last()?;
    for modifier in modifiers {
        match modifier.as_str() {
            "v2" => elements = 2,
            "v4" => elements = 4,
            "global" | "shared" | "shared::cta" | "local" | "param" | "param::entry" | "param::func" | "const" => {}
            "volatile" | "relaxed" | "acquire" | "release" => {}
            name if name.starts_with("L1::") || name.starts_with("L2::") || CACHE_OPERATORS.contains(&name) => {}
            _ => return None,
        }
    }
    Some(elements)
}

fn access(opcode: &Opcode, space: StateSpace, elements: u8) -> Access {
    let has = |modifier| opcode.has(modifier);
    let acq_rel = has("acq_rel");
    Access {
        space,
        elements,
        signed: false,
        wide: false,
        strong: acq_rel || ["volatile", "relaxed", "acquire", "release"].into_iter().any(has),
        acquire: acq_rel || has("acquire"),
        release: acq_rel || has("release"),
    }
}

fn class_of(space: StateSpace, store: bool) -> Class {
    match (space, store) {
        (StateSpace::Global | StateSpace::Generic, false) => Class::LoadGlobal,
        (StateSpace::Global | StateSpace::Generic, true) => Class::StoreGlobal,
        (StateSpace::Shared, false) => Class::LoadShared,
        (StateSpace::Shared, true) => Class::StoreShared,
        _ => Class::OtherMemory,
    }
}

/// The operands of a vector, or the single operand.
pub(super) fn elements_of(operand: &Operand) -> &[Operand] {
    match operand {
        Operand::Vector(elements) => elements,
        single => std::slice::from_ref(single),
    }
}

impl Lowering<'_> {
    pub(super) fn lower_load(&mut self, text: &InstructionText) -> Result<bool> {
        let Some(data_type) = text.opcode.data_type() else { return Ok(false) };
        let Some(elements) = vector_elements(&text.opcode) else { return Ok(false) };
        // a third operand is a cache policy
        let [destinations, address, ..] = text.operands.as_slice() else { return Ok(false) };
        let destinations = elements_of(destinations);
        if destinations.len() != usize::from(elements) {
            return self.error(format!("{} registers for a vector of {elements}", destinations.len()));
        }
        let address = self.address(address, state_space(&text.opcode))?;
        let handler = execution::load(data_type.bytes());
        let mut instruction = self.memory_instruction(handler, &address, class_of(address.space, false));
        let mut access = access(&text.opcode, address.space, elements);
        access.signed = data_type.is_signed();
        for (slot, operand) in instruction.destinations.iter_mut().zip(destinations) {
            if matches!(operand, Operand::Symbol(name) if name == "_") {
                continue;
            }
            let (register, width) = self.data_register(operand)?;
            if data_type.bytes() == 8 && width == Width::Bits32 {
                return self.error(format!("{operand:?} is too narrow for {data_type:?}"));
            }
            access.wide = width == Width::Bits64;
            *slot = register;
        }
        instruction.modifiers = Modifiers::Access(access);
        self.emit(instruction);
        Ok(true)
    }

    pub(super) fn lower_store(&mut self, text: &InstructionText) -> Result<bool> {
        let Some(data_type) = text.opcode.data_type() else { return Ok(false) };
        let Some(elements) = vector_elements(&text.opcode) else { return Ok(false) };
        let [address, sources, ..] = text.operands.as_slice() else { return Ok(false) };
        let sources = elements_of(sources);
        if sources.len() != usize::from(elements) {
            return self.error(format!("{} registers for a vector of {elements}", sources.len()));
        }
        let address = self.address(address, state_space(&text.opcode))?;
        let sources =
            sources.iter().map(|source| self.source(source, data_type.width())).collect::<Result<Vec<_>>>()?;
        let handler = execution::store(data_type.bytes());
        let mut instruction = self.memory_instruction(handler, &address, class_of(address.space, true));
        instruction.sources[1..=sources.len()].copy_from_slice(&sources);
        instruction.modifiers = Modifiers::Access(access(&text.opcode, address.space, elements));
        self.emit(instruction);
        Ok(true)
    }

    pub(super) fn lower_atomic(&mut self, text: &InstructionText) -> Result<bool> {
        let Some(data_type) = text.opcode.data_type() else { return Ok(false) };
        let Some((operation, element)) = atomic_operation(&text.opcode, data_type) else { return Ok(false) };
        let (destination, operands) = match (text.opcode.name.as_str(), text.operands.as_slice()) {
            ("atom", [destination, operands @ ..]) => (Some(destination), operands),
            (_, operands) => (None, operands),
        };
        let [address, b, c @ ..] = operands else { return Ok(false) };
        let address = self.address(address, state_space(&text.opcode))?;
        let b = self.source(b, data_type.width())?;
        let c = match (operation, c) {
            (AtomicOperation::CompareAndSwap, [c]) => self.source(c, data_type.width())?,
            (_, []) => NONE,
            _ => return Ok(false),
        };
        let destination = match destination {
            Some(operand) => Some(self.destination(operand, data_type.width())?),
            None => None,
        };
        let mut instruction = self.memory_instruction(execution::atomic, &address, Class::Atomic);
        instruction.destinations[0] = destination.as_ref().map_or(NONE, |destination| destination.register);
        instruction.sources[1..3].copy_from_slice(&[b, c]);
        let access = access(&text.opcode, address.space, 1);
        instruction.modifiers = Modifiers::Atomic { access, operation, element };
        self.emit(instruction);
        if let Some(destination) = destination {
            self.complete(destination, false);
        }
        Ok(true)
    }

    pub(super) fn lower_fence(&mut self, text: &InstructionText) -> Result<bool> {
        let mut beyond_block = false;
        for modifier in &text.opcode.modifiers {
            match modifier.as_str() {
                "gl" | "gpu" | "sys" => beyond_block = true,
                "cta" | "sc" | "acq_rel" => {}
                _ => return Ok(false),
            }
        }
        let mut instruction = self.instruction(execution::fence, Kind::Arithmetic, Class::Fence);
        instruction.modifiers = Modifiers::Fence { beyond_block };
        self.emit(instruction);
        Ok(true)
    }

    pub(super) fn lower_async_copy(&mut self, text: &InstructionText) -> Result<bool> {
        let modifiers = text.opcode.modifiers.iter().map(String::as_str).collect::<Vec<_>>();
        match (modifiers.as_slice(), text.operands.as_slice()) {
            (["async", "commit_group"], []) => {
                let instruction = self.instruction(execution::commit_group, Kind::MayFault, Class::AsyncCopy);
                self.emit(instruction);
                Ok(true)
            }
            (["async", "wait_group"], [Operand::Integer(groups)]) => self.wait_group(*groups as i64),
            (["async", "wait_all"], []) => self.wait_group(-1),
            (["async", cache @ ("ca" | "cg"), "shared" | "shared::cta", "global", hints @ ..], _)
                if hints.iter().all(|hint| hint.starts_with("L2::")) =>
            {
                let policies = usize::from(hints.contains(&"L2::cache_hint"));
                let [operands @ .., _] = text.operands.as_slice() else { return Ok(false) };
                let operands = if policies == 1 { operands } else { text.operands.as_slice() };
                self.copy_to_shared(*cache == "cg", operands)
            }
            _ => Ok(false),
        }
    }

    /// Waits until at most that many groups are in flight; -1 is for all copies, committed or not.
    fn wait_group(&mut self, groups: i64) -> Result<bool> {
        let mut instruction = self.instruction(execution::wait_group, Kind::MayFault, Class::AsyncCopy);
        instruction.immediate = groups;
        self.emit(instruction);
        Ok(true)
    }

    /// `[destination], [source], size[, source size | ignore predicate]`
    fn copy_to_shared(&mut self, bypasses_l1: bool, operands: &[Operand]) -> Result<bool> {
        let [destination, source, Operand::Integer(bytes), rest @ ..] = operands else { return Ok(false) };
        if !matches!((bypasses_l1, bytes), (false, 4 | 8 | 16) | (true, 16)) {
            return self.error("the size of cp.async is 4, 8 or 16 bytes, with .cg 16");
        }
        let destination = self.address(destination, StateSpace::Shared)?;
        let source = self.address(source, StateSpace::Global)?;
        let mut source_bytes = self.constant(*bytes as u64, Width::Bits32);
        let mut ignored = NONE;
        match rest {
            [] => {}
            [predicate] if self.is_predicate(predicate) => ignored = self.predicate_source(predicate)?,
            [operand] => source_bytes = self.source(operand, Width::Bits32)?,
            _ => return Ok(false),
        }
        let destination_offset = self.constant(destination.offset as u64, Width::Bits64);
        let mut instruction = self.memory_instruction(execution::copy_async, &source, Class::AsyncCopy);
        instruction.sources[1..5].copy_from_slice(&[destination.base, source_bytes, destination_offset, ignored]);
        instruction.modifiers = Modifiers::CopyBytes(*bytes as u8);
        self.emit(instruction);
        Ok(true)
    }

    /// An instruction whose first source is the base of an address.
    pub(super) fn memory_instruction(
        &self,
        handler: Handler,
        address: &super::operands::Address,
        class: Class,
    ) -> Instruction {
        let mut instruction = self.instruction(handler, Kind::MayFault, class);
        instruction.sources[0] = address.base;
        instruction.immediate = address.offset;
        instruction
    }
}

fn atomic_operation(opcode: &Opcode, data_type: DataType) -> Option<(AtomicOperation, AtomicType)> {
    let element = match data_type {
        DataType::U32 | DataType::B32 => AtomicType::U32,
        DataType::S32 => AtomicType::S32,
        DataType::U64 | DataType::B64 => AtomicType::U64,
        DataType::S64 => AtomicType::S64,
        DataType::F32 => AtomicType::F32,
        DataType::F64 => AtomicType::F64,
        _ => return None,
    };
    let mut operation = None;
    let (_, modifiers) = opcode.modifiers.split_last()?;
    for modifier in modifiers {
        operation = Some(match modifier.as_str() {
            "add" => AtomicOperation::Add,
            "min" => AtomicOperation::Min,
            "max" => AtomicOperation::Max,
            "and" => AtomicOperation::And,
            "or" => AtomicOperation::Or,
            "xor" => AtomicOperation::Xor,
            "exch" => AtomicOperation::Exchange,
            "cas" => AtomicOperation::CompareAndSwap,
            "inc" => AtomicOperation::Increment,
            "dec" => AtomicOperation::Decrement,
            "relaxed" | "acquire" | "release" | "acq_rel" | "cta" | "gpu" | "sys" | "global" | "shared"
            | "shared::cta" => continue,
            _ => return None,
        });
    }
    let operation = operation?;
    let float = data_type.is_float();
    let fits = match operation {
        AtomicOperation::Add | AtomicOperation::Exchange => true,
        AtomicOperation::Increment | AtomicOperation::Decrement => element == AtomicType::U32,
        _ => !float,
    };
    fits.then_some((operation, element))
}
