//! `cp.async`, its groups and waits.
use super::access::AccessKind;
use super::settings::{AsyncCopies, RaceChecks};
use super::warp::{Lanes, WarpContext, moment};
use crate::instruction::{Instruction, Modifiers, NONE, StateSpace};
use crate::memory::{SHARED_BASE, State, all_bytes};
use crate::report::FaultKind;

/// A copy from global to shared memory that has not been waited for.
#[derive(Clone, Copy)]
pub(crate) struct AsyncCopy {
    lane: u32,
    /// How many groups the lane had committed before.
    group: u32,
    /// Offset in shared memory.
    destination: usize,
    bytes: usize,
    source: u64,
    /// Bytes that are read; the rest of the destination becomes zero.
    pub(crate) source_bytes: u32,
}

impl AsyncCopy {
    fn finish(&self, context: &mut WarpContext) {
        let target = context.block.shared.bytes_mut(self.destination, self.bytes);
        target.fill(0);
        if self.source_bytes > 0 {
            let source = context.launch.memory.bytes_mut(self.source, u64::from(self.source_bytes));
            target[..self.source_bytes as usize].copy_from_slice(source);
        }
    }
}

/// `cp.async`
pub fn copy_async(context: &mut WarpContext, instruction: &Instruction) {
    let Modifiers::CopyBytes(bytes) = instruction.modifiers else { unreachable!("not cp.async") };
    let bytes = u32::from(bytes);
    let [_, destination, source_bytes, offset, ignored, ..] = instruction.sources;
    let sources = context.addresses(instruction);
    let offset = context.values::<u64>(offset)[0];
    let destinations = context.values::<u64>(destination).map(|address| address.wrapping_add(offset));
    let ignored = if ignored == NONE { 0 } else { context.predicate(ignored) };
    let mut source_bytes = context.values::<u32>(source_bytes);
    for lane in Lanes(context.mask & ignored) {
        source_bytes[lane as usize] = 0;
    }
    context.count_async_copy(&sources, &source_bytes);
    for lane in Lanes(context.mask) {
        let at = lane as usize;
        if !start_copy(context, lane, bytes, (destinations[at], sources[at]), source_bytes[at]) {
            return;
        }
    }
}

/// Checks and begins the copy of a lane. False: the fault is set.
fn start_copy(
    context: &mut WarpContext,
    lane: u32,
    bytes: u32,
    (destination, source): (u64, u64),
    source_bytes: u32,
) -> bool {
    if source_bytes > bytes {
        let message = format!("cp.async: {source_bytes} source bytes are more than the {bytes} that are copied");
        context.fail(FaultKind::IllegalInstruction, lane, message);
        return false;
    }
    if context.access(StateSpace::Shared, destination, bytes, AccessKind::Write, lane).is_none() {
        return false;
    }
    if source & u64::from(bytes - 1) != 0 {
        return context.report_global::<()>(source, bytes, AccessKind::Read, lane).is_some();
    }
    let (memory, needs_written) = (&*context.launch.memory, context.launch.settings.check_unwritten);
    let is_readable =
        || memory.covers(source) && all_bytes(memory.states(source, u64::from(source_bytes)), needs_written);
    if source_bytes > 0 && !is_readable() {
        return context.report_global::<()>(source, source_bytes, AccessKind::Read, lane).is_some();
    }
    let whole = source_bytes & !3;
    for (start, len) in [(source, whole), (source + u64::from(whole), source_bytes - whole)] {
        for (at, len) in if len == 3 { [(start, 2), (start + 2, 1)] } else { [(start, len), (start, 0)] } {
            if len == 0 {
                continue;
            }
            let result = context.remember(StateSpace::Global, at, len, AccessKind::Read, lane);
            if let Err((at, conflict)) = result {
                context.report_race(StateSpace::Global, at, AccessKind::Read, lane, conflict);
                return false;
            }
        }
    }
    let copy = AsyncCopy {
        lane,
        group: context.warp.committed_groups[lane as usize],
        destination: (destination - u64::from(SHARED_BASE)) as usize,
        bytes: bytes as usize,
        source,
        source_bytes,
    };
    match context.launch.settings.async_copies {
        AsyncCopies::Eager => copy.finish(context),
        AsyncCopies::Lazy => context.block.shared.poison(copy.destination, copy.bytes),
    }
    context.block.shared.mark(copy.destination, copy.bytes, State::InFlight);
    context.warp.copies.push(copy);
    true
}

/// `cp.async.commit_group`
pub fn commit_group(context: &mut WarpContext, _: &Instruction) {
    for lane in Lanes(context.mask) {
        context.warp.committed_groups[lane as usize] += 1;
    }
}

/// `cp.async.wait_group`: all but the immediate's number of groups have arrived. Negative: `cp.async.wait_all`.
pub fn wait_group(context: &mut WarpContext, instruction: &Instruction) {
    let pending = instruction.immediate;
    let mut copies = std::mem::take(&mut context.warp.copies);
    copies.retain(|copy| {
        let committed = i64::from(context.warp.committed_groups[copy.lane as usize]);
        let is_done = pending < 0 || i64::from(copy.group) < committed - pending;
        if context.mask >> copy.lane & 1 == 0 || !is_done {
            return true;
        }
        if context.launch.settings.async_copies == AsyncCopies::Lazy {
            copy.finish(context);
        }
        context.block.shared.mark(copy.destination, copy.bytes, State::Written);
        if context.launch.settings.race_checks != RaceChecks::Off {
            // The write happened at some time up to now.
            let me = moment(context.block.linear, &context.block.clocks, context.warp, copy.lane).me;
            let shared = &mut context.block.shared;
            let epoch = shared.epoch;
            for word in copy.destination / 4..(copy.destination + copy.bytes) / 4 {
                shared.cell(word).extend_write(epoch, me);
            }
        }
        false
    });
    context.warp.copies = copies;
}
