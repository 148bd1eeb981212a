//! Exchanges within a warp: shuffles, votes, reductions, `bar.warp.sync`.
use super::warp::{Lanes, WarpContext};
use crate::instruction::{Instruction, Modifiers, Reduction, ShuffleMode, VoteMode};
use crate::report::FaultKind;

impl WarpContext<'_, '_> {
    /// The member mask of each lane, if each executing lane is in its mask and all lanes of the masks are here.
    fn members(&mut self, slot: u32, name: &str) -> Option<[u32; 32]> {
        let members = self.values::<u32>(slot);
        for lane in Lanes(self.mask) {
            let mask = members[lane as usize];
            let absent = mask & self.warp.live & !self.mask;
            let message = if mask >> lane & 1 == 0 {
                format!("{name}: the executing lane is not in its member mask {mask:#010x}")
            } else if absent != 0 {
                let active = self.mask;
                format!(
                    "divergent {name}: the mask {mask:#010x} names lanes {absent:#010x}, which do not execute it (active {active:#010x})"
                )
            } else {
                continue;
            };
            self.fail(FaultKind::LaunchFailed, lane, message);
            return None;
        }
        Some(members)
    }

    /// Whether all lanes execute an instruction that demands it. False: the fault is set.
    pub(crate) fn is_whole(&mut self, name: &str) -> bool {
        if self.mask != u32::MAX {
            let message = format!("divergent {name}: all 32 lanes must execute it, active are {:#010x}", self.mask);
            self.fail(FaultKind::LaunchFailed, self.mask.trailing_zeros(), message);
        }
        self.mask == u32::MAX
    }
}

/// `shfl.sync`
pub fn shuffle(context: &mut WarpContext, instruction: &Instruction) {
    let Modifiers::Shuffle(mode) = instruction.modifiers else { unreachable!("not a shuffle") };
    let [a, b, c, members, ..] = instruction.sources;
    if context.members(members, "shfl.sync").is_none() {
        return;
    }
    let (a, b, c) = (context.values::<u32>(a), context.values::<u32>(b), context.values::<u32>(c));
    let mut values = [0; 32];
    let mut in_range = 0;
    for lane in Lanes(context.mask) {
        let at = lane as usize;
        let (b, clamp, segment) = (b[at] & 31, c[at] & 31, c[at] >> 8 & 31);
        let (first, last) = (lane & segment, lane & segment | clamp & !segment);
        // `up` counts from the end that clamp gives, which is the first lane of the segment.
        let (source, is_inside) = match mode {
            ShuffleMode::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= last as i32),
            ShuffleMode::Down => (lane + b, lane + b <= last),
            ShuffleMode::Butterfly => (lane ^ b, lane ^ b <= last),
            ShuffleMode::Index => (first | b & !segment, first | b & !segment <= last),
        };
        let source = if is_inside { source & 31 } else { lane };
        if context.mask >> source & 1 == 0 {
            let active = context.mask;
            let message =
                format!("shfl.sync reads from lane {source}, which does not take part (active {active:#010x})");
            return context.fail(FaultKind::LaunchFailed, lane, message);
        }
        values[at] = a[source as usize];
        in_range |= u32::from(is_inside) << lane;
    }
    context.set_values(instruction.destinations[0], &values);
    context.set_predicate(instruction.destinations[1], in_range);
}

/// `vote.sync`
pub fn vote(context: &mut WarpContext, instruction: &Instruction) {
    let Modifiers::Vote(mode) = instruction.modifiers else { unreachable!("not a vote") };
    let Some(members) = context.members(instruction.sources[1], "vote.sync") else { return };
    let predicate = context.predicate(instruction.sources[0]);
    let group = members.map(|mask| mask & context.mask);
    let ballot = group.map(|group| predicate & group);
    if mode == VoteMode::Ballot {
        return context.set_values(instruction.destinations[0], &ballot);
    }
    let mut result = 0;
    for (lane, (group, ballot)) in group.into_iter().zip(ballot).enumerate() {
        let (all, any) = (ballot == group, ballot != 0);
        let value = match mode {
            VoteMode::All => all,
            VoteMode::Any => any,
            VoteMode::Uniform | VoteMode::Ballot => all || !any,
        };
        result |= u32::from(value) << lane;
    }
    context.set_predicate(instruction.destinations[0], result);
}

/// `redux.sync`
pub fn reduce_warp(context: &mut WarpContext, instruction: &Instruction) {
    let Modifiers::Reduction(reduction) = instruction.modifiers else { unreachable!("not a reduction") };
    let Some(members) = context.members(instruction.sources[1], "redux.sync") else { return };
    let values = context.values::<u32>(instruction.sources[0]);
    let combine = |x: u32, y: u32| match reduction {
        Reduction::Add => x.wrapping_add(y),
        Reduction::MinU32 => x.min(y),
        Reduction::MaxU32 => x.max(y),
        Reduction::MinS32 => (x as i32).min(y as i32) as u32,
        Reduction::MaxS32 => (x as i32).max(y as i32) as u32,
        Reduction::And => x & y,
        Reduction::Or => x | y,
        Reduction::Xor => x ^ y,
    };
    let reduce = |members: u32| {
        Lanes(members & context.mask).map(|lane| values[lane as usize]).reduce(combine).unwrap_or_default()
    };
    context.set_values(instruction.destinations[0], &members.map(reduce));
}

/// `activemask`
pub fn active_mask(context: &mut WarpContext, instruction: &Instruction) {
    context.set_values(instruction.destinations[0], &[context.mask; 32]);
}

/// `bar.warp.sync`: orders the accesses of the warp's lanes.
pub fn sync_warp(context: &mut WarpContext, instruction: &Instruction) {
    if context.members(instruction.sources[0], "bar.warp.sync").is_some() {
        context.block.clocks.advance(context.warp.index as usize);
    }
}
