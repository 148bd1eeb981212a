//! `atom`, `red` and fences, and what they order.
#![allow(unsafe_code, reason = "memory by pointers that have been checked")]

use super::access::{AccessKind, resolve};
use super::ordering::Knowledge;
use super::settings::Order;
use super::traffic::Direction;
use super::warp::WarpContext;
use crate::instruction::{AtomicOperation, AtomicType, Instruction, Modifiers, NONE, StateSpace};

/// The value that an atomic operation leaves in memory.
fn result(operation: AtomicOperation, element: AtomicType, old: u64, b: u64, c: u64) -> u64 {
    use AtomicOperation::*;
    use AtomicType::*;
    match (operation, element) {
        (And, _) => old & b,
        (Or, _) => old | b,
        (Xor, _) => old ^ b,
        (Exchange, _) => b,
        (CompareAndSwap, _) => {
            if old == b {
                c
            } else {
                old
            }
        }
        (Increment, _) => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        (Decrement, _) => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        (Add, U32 | S32) => u64::from((old as u32).wrapping_add(b as u32)),
        (Add, U64 | S64) => old.wrapping_add(b),
        (Add, F32) => u64::from((f32::from_bits(old as u32) + f32::from_bits(b as u32)).to_bits()),
        (Add, F64) => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (Min, U32 | U64) => old.min(b),
        (Max, U32 | U64) => old.max(b),
        (Min, S32) => u64::from((old as i32).min(b as i32) as u32),
        (Max, S32) => u64::from((old as i32).max(b as i32) as u32),
        (Min, S64) => (old as i64).min(b as i64) as u64,
        (Max, S64) => (old as i64).max(b as i64) as u64,
        (Min | Max, F32 | F64) => unreachable!("refused when the kernel is loaded"),
    }
}

/// `atom` and `red`
pub fn atomic(context: &mut WarpContext, instruction: &Instruction) {
    let Modifiers::Atomic { access, operation, element } = instruction.modifiers else { unreachable!("not an atomic") };
    let addresses = context.addresses(instruction);
    let bytes = element.bytes();
    context.count_access(access.space, &addresses, bytes, Direction::Load);
    context.count_access(access.space, &addresses, bytes, Direction::Store);
    let operand = |context: &WarpContext, slot| match slot {
        NONE => [0; 32],
        _ if bytes == 8 => context.values::<u64>(slot),
        _ => context.values::<u32>(slot).map(u64::from),
    };
    let (b, c) = (operand(context, instruction.sources[1]), operand(context, instruction.sources[2]));
    let mut old_values = [0; 32];
    let is_reverse = context.launch.settings.order == Order::Reverse;
    for turn in 0..32 {
        let lane = if is_reverse { 31 - turn } else { turn };
        if context.mask >> lane & 1 == 0 {
            continue;
        }
        let (at, (space, address)) = (lane as usize, resolve(access.space, addresses[lane as usize]));
        let Some(pointer) = context.access(space, address, bytes, AccessKind::Atomic, lane) else { return };
        if bytes == 8 {
            let value = pointer.cast::<u64>();
            // SAFETY: `access` has allowed the access, alignment included.
            unsafe {
                old_values[at] = *value;
                *value = result(operation, element, old_values[at], b[at], c[at]);
            }
        } else {
            let value = pointer.cast::<u32>();
            // SAFETY: as above.
            unsafe {
                old_values[at] = u64::from(*value);
                *value = result(operation, element, old_values[at], b[at], c[at]) as u32;
            }
        }
        if space == StateSpace::Global {
            observe(context, address, access.acquire);
            publish(context, address, access.release, false);
        }
    }
    if bytes == 8 {
        context.set_values(instruction.destinations[0], &old_values);
    } else {
        context.set_values(instruction.destinations[0], &old_values.map(|value| value as u32));
    }
}

/// `membar`, `fence`
pub fn fence(context: &mut WarpContext, instruction: &Instruction) {
    if instruction.modifiers == (Modifiers::Fence { beyond_block: true }) {
        let observed = std::mem::take(&mut context.warp.causality.observed);
        learn(context, &observed);
        context.warp.causality.fenced = current_knowledge(context);
    }
}

/// A strong access finds out what has been published at the address: known at once if it acquires, else after a fence.
pub(crate) fn observe(context: &mut WarpContext, address: u64, acquires: bool) {
    if context.launch.published.is_empty() {
        return;
    }
    let Some(published) = context.launch.published.get(&address) else { return };
    if acquires {
        let published = published.clone();
        learn(context, &published);
    } else {
        context.warp.causality.observed.merge(published);
    }
}

/// A strong access passes on what was known at the last fence, or now if it releases. `replaces`: what the address had before
/// is overwritten, as by a store.
pub(crate) fn publish(context: &mut WarpContext, address: u64, releases: bool, replaces: bool) {
    if releases {
        context.warp.causality.fenced = current_knowledge(context);
    }
    let fenced = &context.warp.causality.fenced;
    if replaces {
        context.launch.published.insert(address, fenced.clone());
    } else if !fenced.is_empty() {
        context.launch.published.entry(address).or_default().merge(fenced);
    }
}

fn learn(context: &mut WarpContext, other: &Knowledge) {
    let known = &mut context.warp.causality.known;
    known.merge(other);
    if let Some(clocks) = known.remove(context.block.linear) {
        context.block.clocks.learn(context.warp.index as usize, &clocks);
    }
}

/// All that the warp knows, itself included. What it does from now on is not part of it.
fn current_knowledge(context: &mut WarpContext) -> Knowledge {
    let index = context.warp.index as usize;
    let mut knowledge = context.warp.causality.known.clone();
    knowledge.insert(context.block.linear, context.block.clocks.known_to(index));
    context.block.clocks.advance(index);
    knowledge
}
