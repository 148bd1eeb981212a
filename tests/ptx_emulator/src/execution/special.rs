//! Special registers, state-space tests, traps.
use super::warp::{Lanes, WarpContext};
use crate::instruction::{Instruction, Modifiers, SpecialRegister};
use crate::memory::resolve_generic;
use crate::report::FaultKind;

/// Streaming multiprocessors, as kernels see them.
const MULTIPROCESSORS: u32 = 108;

/// Does nothing.
pub fn no_operation(_: &mut WarpContext, _: &Instruction) {}

/// `mov` from a special register.
pub fn special_register(context: &mut WarpContext, instruction: &Instruction) {
    let Modifiers::SpecialRegister(register) = instruction.modifiers else { unreachable!("not a special register") };
    let destination = instruction.destinations[0];
    let (launch, block, warp) = (&*context.launch, &*context.block, &*context.warp);
    let all = |value: u32| [value; 32];
    let by_lane = |value: fn(u32) -> u32| std::array::from_fn(|lane| value(lane as u32));
    let clock = launch.counters.warp_instructions + warp.instructions;
    let configuration = &launch.configuration;
    let values = match register {
        SpecialRegister::Tid(dimension) => warp.thread_index[dimension as usize],
        SpecialRegister::Ntid(dimension) => all(configuration.block[dimension as usize]),
        SpecialRegister::Ctaid(dimension) => all(block.index[dimension as usize]),
        SpecialRegister::Nctaid(dimension) => all(configuration.grid[dimension as usize]),
        SpecialRegister::LaneId => by_lane(|lane| lane),
        SpecialRegister::WarpId => all(warp.index),
        SpecialRegister::WarpCount => all(configuration.block.iter().product::<u32>().div_ceil(32)),
        SpecialRegister::SmId => all(block.linear % MULTIPROCESSORS),
        SpecialRegister::SmCount => all(MULTIPROCESSORS),
        SpecialRegister::Clock => all(clock as u32),
        SpecialRegister::LaneMaskEq => by_lane(|lane| 1 << lane),
        SpecialRegister::LaneMaskLe => by_lane(|lane| u32::MAX >> (31 - lane)),
        SpecialRegister::LaneMaskLt => by_lane(|lane| (1 << lane) - 1),
        SpecialRegister::LaneMaskGe => by_lane(|lane| u32::MAX << lane),
        SpecialRegister::LaneMaskGt => by_lane(|lane| !(u32::MAX >> (31 - lane))),
        SpecialRegister::DynamicSharedBytes => all(configuration.dynamic_shared_bytes),
        SpecialRegister::TotalSharedBytes => {
            all(configuration.dynamic_shared_bytes + launch.kernel.static_shared_bytes)
        }
        SpecialRegister::GridId => {
            let launch = u64::from(launch.memory.launch());
            return context.set_values(destination, &[launch; 32]);
        }
        SpecialRegister::Clock64 => return context.set_values(destination, &[clock; 32]),
    };
    context.set_values(destination, &values);
}

/// `isspacep`
pub fn is_in_space(context: &mut WarpContext, instruction: &Instruction) {
    let Modifiers::Space(space) = instruction.modifiers else { unreachable!("not isspacep") };
    let addresses = context.values::<u64>(instruction.sources[0]);
    let is_inside = |&lane: &u32| resolve_generic(addresses[lane as usize]).0 == space;
    let inside = Lanes(context.mask).filter(is_inside).fold(0, |mask, lane| mask | 1 << lane);
    context.set_predicate(instruction.destinations[0], inside);
}

/// `trap`
pub fn trap(context: &mut WarpContext, _: &Instruction) {
    context.fail(FaultKind::LaunchFailed, context.mask.trailing_zeros(), "trap executed".into());
}

/// A failed `assert` of device code.
pub fn assert_failed(context: &mut WarpContext, _: &Instruction) {
    context.fail(FaultKind::Assert, context.mask.trailing_zeros(), "device-side assert".into());
}
