//! `ld` and `st`.
#![allow(unsafe_code, reason = "memory by pointers that have been checked")]

use super::access::{AccessKind, resolve};
use super::atomics::{observe, publish};
use super::settings::RaceChecks;
use super::traffic::Direction;
use super::warp::{Lanes, WarpContext};
use crate::instruction::{Access, CONSTANT, Handler, Instruction, Modifiers, StateSpace};
use crate::memory::all_bytes;
use crate::report::FaultKind;

/// The handler of loads of elements of 1, 2, 4 or 8 bytes.
pub fn load(bytes: u32) -> Handler {
    match bytes {
        1 => load_elements::<1>,
        2 => load_elements::<2>,
        4 => load_elements::<4>,
        _ => load_elements::<8>,
    }
}

/// The handler of stores of elements of 1, 2, 4 or 8 bytes.
pub fn store(bytes: u32) -> Handler {
    match bytes {
        1 => store_elements::<1>,
        2 => store_elements::<2>,
        4 => store_elements::<4>,
        _ => store_elements::<8>,
    }
}

/// Elements of up to four vector components, by component and lane.
type Elements = [[u64; 32]; 4];

fn access_of(context: &WarpContext, instruction: &Instruction, addresses: &[u64; 32]) -> Access {
    let Modifiers::Access(access) = instruction.modifiers else { unreachable!("not a load or store") };
    // Generic addresses of a warp nearly always belong to one state space. Where they do not, each is resolved again.
    let first = addresses[context.mask.trailing_zeros() as usize];
    let (space, _) = resolve(access.space, first);
    if access.space == StateSpace::Generic && space == StateSpace::Global {
        let is_global = |lane| resolve(access.space, addresses[lane as usize]).0 == StateSpace::Global;
        if Lanes(context.mask).all(is_global) {
            return Access { space, ..access };
        }
    }
    access
}

#[inline(always)]
fn load_elements<const BYTES: usize>(context: &mut WarpContext, instruction: &Instruction) {
    let addresses = context.addresses(instruction);
    let access = access_of(context, instruction, &addresses);
    let count = usize::from(access.elements);
    let bytes = (count * BYTES) as u32;
    let mut elements: Elements = [[0; 32]; 4];
    let kind = if access.strong { AccessKind::StrongRead } else { AccessKind::Read };
    if access.space == StateSpace::Param && instruction.sources[0] & CONSTANT != 0 {
        // One address for all lanes.
        let lane = context.mask.trailing_zeros();
        let Some(pointer) = context.access(access.space, addresses[0], bytes, kind, lane) else { return };
        for (component, values) in elements.iter_mut().enumerate().take(count) {
            *values = [read::<BYTES>(pointer, component); 32];
        }
        return set_elements::<BYTES>(context, instruction, &access, &elements);
    }
    context.count_access(access.space, &addresses, bytes, Direction::Load);
    if !load_consecutive::<BYTES>(context, &access, &addresses, &mut elements) {
        for lane in Lanes(context.mask) {
            let address = addresses[lane as usize];
            let Some(pointer) = context.access(access.space, address, bytes, kind, lane) else { return };
            for (component, values) in elements.iter_mut().enumerate().take(count) {
                values[lane as usize] = read::<BYTES>(pointer, component);
            }
            if access.strong && access.space == StateSpace::Global {
                observe(context, address, access.acquire);
            }
        }
    } else if context.fault.is_some() {
        return;
    }
    set_elements::<BYTES>(context, instruction, &access, &elements);
}

/// The usual load, of a whole warp from consecutive global addresses, is checked at once. False: it is another one, or something
/// is wrong with it. True also if a race has been found.
#[inline(always)]
fn load_consecutive<const BYTES: usize>(
    context: &mut WarpContext,
    access: &Access,
    addresses: &[u64; 32],
    elements: &mut Elements,
) -> bool {
    let count = usize::from(access.elements);
    let bytes = (count * BYTES) as u64;
    let start = addresses[0];
    if access.space != StateSpace::Global || access.strong || context.mask != u32::MAX || start & (bytes - 1) != 0 {
        return false;
    }
    let mut difference = 0;
    for (lane, &address) in addresses.iter().enumerate() {
        difference |= address ^ start.wrapping_add(lane as u64 * bytes);
    }
    let memory = &mut *context.launch.memory;
    let needs_written = context.launch.settings.check_unwritten;
    if difference != 0 || !memory.covers(start) || !all_bytes(memory.states(start, 32 * bytes), needs_written) {
        return false;
    }
    for (lane, data) in memory.bytes_mut(start, 32 * bytes).chunks_exact(bytes as usize).enumerate() {
        for (component, values) in elements.iter_mut().enumerate().take(count) {
            values[lane] = read::<BYTES>(data.as_ptr(), component);
        }
    }
    if context.launch.settings.race_checks == RaceChecks::SharedAndGlobal {
        for (lane, &address) in (0..).zip(addresses) {
            let result = context.remember(StateSpace::Global, address, bytes as u32, AccessKind::Read, lane);
            if let Err((at, conflict)) = result {
                context.report_race(StateSpace::Global, at, AccessKind::Read, lane, conflict);
                return true;
            }
        }
    }
    true
}

/// An element behind a pointer that has been checked for all components.
#[inline(always)]
fn read<const BYTES: usize>(pointer: *const u8, component: usize) -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: `WarpContext::access` has allowed the access to all components.
    let source = unsafe { std::slice::from_raw_parts(pointer.add(component * BYTES), BYTES) };
    bytes[..BYTES].copy_from_slice(source);
    u64::from_le_bytes(bytes)
}

#[inline(always)]
fn set_elements<const BYTES: usize>(
    context: &mut WarpContext,
    instruction: &Instruction,
    access: &Access,
    elements: &Elements,
) {
    // Sign extension: up to the top bit and back.
    let shift = 64 - 8 * BYTES;
    for (&destination, values) in instruction.destinations.iter().zip(elements).take(usize::from(access.elements)) {
        let extend = |value: u64| if access.signed { ((value << shift) as i64 >> shift) as u64 } else { value };
        if access.wide {
            context.set_values(destination, &values.map(extend));
        } else {
            context.set_values(destination, &values.map(|value| extend(value) as u32));
        }
    }
}

#[inline(always)]
fn store_elements<const BYTES: usize>(context: &mut WarpContext, instruction: &Instruction) {
    let addresses = context.addresses(instruction);
    let access = access_of(context, instruction, &addresses);
    let count = usize::from(access.elements);
    let bytes = (count * BYTES) as u32;
    let kind = if access.strong { AccessKind::StrongWrite } else { AccessKind::Write };
    if access.space == StateSpace::Const {
        return context.fail(
            FaultKind::IllegalAddress,
            context.mask.trailing_zeros(),
            "store to constant memory".into(),
        );
    }
    context.count_access(access.space, &addresses, bytes, Direction::Store);
    let mut elements: Elements = [[0; 32]; 4];
    for (values, &source) in elements.iter_mut().zip(&instruction.sources[1..=count]) {
        *values = if BYTES == 8 { context.values::<u64>(source) } else { context.values::<u32>(source).map(u64::from) };
    }
    for lane in Lanes(context.mask) {
        let (space, address) = resolve(access.space, addresses[lane as usize]);
        let Some(pointer) = context.locate(space, address, bytes, kind, lane) else { return };
        // SAFETY: `locate` has allowed the access.
        let target = unsafe { std::slice::from_raw_parts_mut(pointer, bytes as usize) };
        let mut value = [0; 32];
        for (component, values) in elements.iter().enumerate().take(count) {
            value[component * BYTES..][..BYTES].copy_from_slice(&values[lane as usize].to_le_bytes()[..BYTES]);
        }
        if let Err((at, conflict)) = context.remember(space, address, bytes, kind, lane) {
            // Threads that store what is there already do no harm.
            if access.strong || *target != value[..bytes as usize] {
                return context.report_race(space, at, kind, lane, conflict);
            }
        }
        target.copy_from_slice(&value[..bytes as usize]);
        if access.strong && space == StateSpace::Global {
            publish(context, address, access.release, true);
        }
    }
}
