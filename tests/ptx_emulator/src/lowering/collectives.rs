//! Barriers, shuffles, votes and reductions.
use super::{Lowering, Result};
use crate::data_type::Width;
use crate::execution;
use crate::instruction::{BarrierKind, Class, Kind, Modifiers, NONE, Reduction, ShuffleMode, VoteMode};
use crate::parser::syntax::{InstructionText, Operand};

impl Lowering<'_> {
    /// `shfl.sync.mode.b32 d[|p], a, b, c, member mask`
    pub(super) fn lower_shuffle(&mut self, text: &InstructionText) -> Result<bool> {
        let mode = match text.opcode.modifiers.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["sync", "up", "b32"] => ShuffleMode::Up,
            ["sync", "down", "b32"] => ShuffleMode::Down,
            ["sync", "bfly", "b32"] => ShuffleMode::Butterfly,
            ["sync", "idx", "b32"] => ShuffleMode::Index,
            _ => return Ok(false),
        };
        let [destinations, sources @ ..] = text.operands.as_slice() else { return Ok(false) };
        let (destination, predicate) = match destinations {
            Operand::Pair(destination, predicate) => (&**destination, self.predicate_destination(predicate)?),
            single => (single, None),
        };
        let sources = sources.iter().map(|source| self.source(source, Width::Bits32)).collect::<Result<Vec<_>>>()?;
        let &[a, b, c, members] = sources.as_slice() else { return Ok(false) };
        let destination = self.destination(destination, Width::Bits32)?;
        let mut instruction = self.instruction(execution::shuffle, Kind::MayFault, Class::Collective);
        instruction.destinations[0] = destination.register;
        instruction.destinations[1] = predicate.unwrap_or(NONE);
        instruction.sources[..4].copy_from_slice(&[a, b, c, members]);
        instruction.modifiers = Modifiers::Shuffle(mode);
        self.emit(instruction);
        self.complete(destination, false);
        Ok(true)
    }

    /// `vote.sync.mode.pred p, a, member mask` and `vote.sync.ballot.b32 d, a, member mask`
    pub(super) fn lower_vote(&mut self, text: &InstructionText) -> Result<bool> {
        let mode = match text.opcode.modifiers.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["sync", "all", "pred"] => VoteMode::All,
            ["sync", "any", "pred"] => VoteMode::Any,
            ["sync", "uni", "pred"] => VoteMode::Uniform,
            ["sync", "ballot", "b32"] => VoteMode::Ballot,
            _ => return Ok(false),
        };
        let [destination, predicate, members] = text.operands.as_slice() else { return Ok(false) };
        let sources = [self.predicate_source(predicate)?, self.source(members, Width::Bits32)?];
        let mut instruction = self.instruction(execution::vote, Kind::MayFault, Class::Collective);
        instruction.sources[..2].copy_from_slice(&sources);
        instruction.modifiers = Modifiers::Vote(mode);
        if mode == VoteMode::Ballot {
            let destination = self.destination(destination, Width::Bits32)?;
            instruction.destinations[0] = destination.register;
            self.emit(instruction);
            self.complete(destination, false);
        } else {
            let Some(register) = self.predicate_destination(destination)? else { return Ok(false) };
            instruction.destinations[0] = register;
            self.emit(instruction);
        }
        Ok(true)
    }

    /// `redux.sync.operation.type d, a, member mask`
    pub(super) fn lower_reduction(&mut self, text: &InstructionText) -> Result<bool> {
        let reduction = match text.opcode.modifiers.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["sync", "add", "u32" | "s32"] => Reduction::Add,
            ["sync", "min", "u32"] => Reduction::MinU32,
            ["sync", "max", "u32"] => Reduction::MaxU32,
            ["sync", "min", "s32"] => Reduction::MinS32,
            ["sync", "max", "s32"] => Reduction::MaxS32,
            ["sync", "and", "b32"] => Reduction::And,
            ["sync", "or", "b32"] => Reduction::Or,
            ["sync", "xor", "b32"] => Reduction::Xor,
            _ => return Ok(false),
        };
        let [destination, source, members] = text.operands.as_slice() else { return Ok(false) };
        let sources = [self.source(source, Width::Bits32)?, self.source(members, Width::Bits32)?];
        let destination = self.destination(destination, Width::Bits32)?;
        let mut instruction = self.instruction(execution::reduce_warp, Kind::MayFault, Class::Collective);
        instruction.destinations[0] = destination.register;
        instruction.sources[..2].copy_from_slice(&sources);
        instruction.modifiers = Modifiers::Reduction(reduction);
        self.emit(instruction);
        self.complete(destination, false);
        Ok(true)
    }

    pub(super) fn lower_active_mask(&mut self, text: &InstructionText) -> Result<bool> {
        let [destination] = text.operands.as_slice() else { return Ok(false) };
        let destination = self.destination(destination, Width::Bits32)?;
        let mut instruction = self.instruction(execution::active_mask, Kind::Arithmetic, Class::Collective);
        instruction.destinations[0] = destination.register;
        self.emit(instruction);
        self.complete(destination, false);
        Ok(true)
    }

    /// `bar` and `barrier`, of the block or of the warp.
    pub(super) fn lower_barrier(&mut self, text: &InstructionText) -> Result<bool> {
        let modifiers = text.opcode.modifiers.iter().map(String::as_str);
        // block barriers are those of the default kind; that all threads of a warp arrive is checked for each
        let modifiers = modifiers.filter(|modifier| !matches!(*modifier, "cta" | "aligned")).collect::<Vec<_>>();
        let kind = match modifiers.as_slice() {
            ["warp", "sync"] => return self.lower_warp_barrier(text),
            ["sync"] => BarrierKind::Sync,
            ["arrive"] => BarrierKind::Arrive,
            ["red", "popc", "u32"] => BarrierKind::CountTrue,
            ["red", "and", "pred"] => BarrierKind::All,
            ["red", "or", "pred"] => BarrierKind::Any,
            _ => return Ok(false),
        };
        let is_reduction = modifiers[0] == "red";
        let (destination, operands) = match text.operands.as_slice() {
            [destination, rest @ ..] if is_reduction => (Some(destination), rest),
            operands => (None, operands),
        };
        let (predicate, operands) = match operands {
            [rest @ .., predicate] if is_reduction => (Some(predicate), rest),
            operands => (None, operands),
        };
        let (barrier, threads) = match operands {
            [barrier] => (barrier, None),
            [barrier, threads] => (barrier, Some(threads)),
            _ => return Ok(false),
        };
        let mut instruction = self.instruction(execution::no_operation, Kind::Barrier, Class::Barrier);
        instruction.modifiers = Modifiers::Barrier(kind);
        instruction.sources[0] = self.source(barrier, Width::Bits32)?;
        if let Some(threads) = threads {
            instruction.sources[1] = self.source(threads, Width::Bits32)?;
        }
        if let Some(predicate) = predicate {
            instruction.sources[2] = self.predicate_source(predicate)?;
        }
        let Some(destination) = destination else {
            self.emit(instruction);
            return Ok(true);
        };
        if kind == BarrierKind::CountTrue {
            let destination = self.destination(destination, Width::Bits32)?;
            instruction.destinations[0] = destination.register;
            self.emit(instruction);
            self.complete(destination, false);
        } else {
            let Some(register) = self.predicate_destination(destination)? else { return Ok(false) };
            instruction.destinations[0] = register;
            self.emit(instruction);
        }
        Ok(true)
    }

    /// `bar.warp.sync member mask`
    fn lower_warp_barrier(&mut self, text: &InstructionText) -> Result<bool> {
        let [members] = text.operands.as_slice() else { return Ok(false) };
        let members = self.source(members, Width::Bits32)?;
        let mut instruction = self.instruction(execution::sync_warp, Kind::MayFault, Class::Barrier);
        instruction.sources[0] = members;
        self.emit(instruction);
        Ok(true)
    }
}
