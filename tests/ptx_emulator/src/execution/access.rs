//! The checks of each access to memory: bounds, alignment, memory never written, races.
use super::settings::RaceChecks;
use super::warp::{WarpContext, moment};
use crate::instruction::StateSpace;
use crate::memory::{Accessor, Conflict, IN_FLIGHT, SHARED_BASE, State, all_bytes, describe_shared, resolve_generic};
use crate::report::FaultKind;

/// What is done to memory. Strong accesses do not race with each other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccessKind {
    Read,
    Write,
    Atomic,
    StrongRead,
    StrongWrite,
}

impl AccessKind {
    #[inline(always)]
    fn reads(self) -> bool {
        matches!(self, AccessKind::Read | AccessKind::StrongRead | AccessKind::Atomic)
    }

    #[inline(always)]
    fn writes(self) -> bool {
        matches!(self, AccessKind::Write | AccessKind::StrongWrite | AccessKind::Atomic)
    }

    #[inline(always)]
    fn is_strong(self) -> bool {
        matches!(self, AccessKind::StrongRead | AccessKind::StrongWrite | AccessKind::Atomic)
    }

    fn name(self) -> &'static str {
        match self {
            AccessKind::Read | AccessKind::StrongRead => "read",
            AccessKind::Write | AccessKind::StrongWrite => "write",
            AccessKind::Atomic => "atomic",
        }
    }
}

/// Which bytes of a word an access of `bytes` bytes touches, a bit each.
#[inline(always)]
pub(crate) fn bytes_of_word(address: u64, bytes: u32) -> u8 {
    if bytes >= 4 { 0b1111 } else { ((1 << bytes) - 1) << (address & 3) }
}

impl WarpContext<'_, '_> {
    /// Checks the access of a lane to `bytes` bytes and remembers it. `None`: the fault is set.
    #[inline(always)]
    pub(crate) fn access(
        &mut self,
        space: StateSpace,
        address: u64,
        bytes: u32,
        kind: AccessKind,
        lane: u32,
    ) -> Option<*mut u8> {
        let (space, address) = resolve(space, address);
        let pointer = self.locate(space, address, bytes, kind, lane)?;
        if let Err((at, conflict)) = self.remember(space, address, bytes, kind, lane) {
            self.report_race(space, at, kind, lane, conflict);
            return None;
        }
        Some(pointer)
    }

    /// All checks but those for races. `None`: the fault is set.
    #[inline(always)]
    pub(crate) fn locate(
        &mut self,
        space: StateSpace,
        address: u64,
        bytes: u32,
        kind: AccessKind,
        lane: u32,
    ) -> Option<*mut u8> {
        let is_aligned = address & u64::from(bytes - 1) == 0;
        let needs_written = kind.reads() && self.launch.settings.check_unwritten;
        match space {
            StateSpace::Global | StateSpace::Const | StateSpace::Generic => {
                let (memory, len) = (&mut *self.launch.memory, u64::from(bytes));
                if !is_aligned || !memory.covers(address) || !all_bytes(memory.states(address, len), needs_written) {
                    return self.report_global(address, bytes, kind, lane);
                }
                if kind.writes() {
                    memory.mark_written(address, len);
                }
                Some(memory.bytes_mut(address, len).as_mut_ptr())
            }
            StateSpace::Shared => {
                let (shared, len) = (&mut self.block.shared, bytes as usize);
                let offset = shared.offset(address, bytes).filter(|_| is_aligned);
                let Some(offset) = offset.filter(|&offset| all_bytes(shared.states(offset, len), needs_written)) else {
                    return self.report_shared(address, bytes, kind, lane);
                };
                if kind.writes() {
                    shared.mark(offset, len, State::Written);
                }
                Some(shared.bytes_mut(offset, len).as_mut_ptr())
            }
            StateSpace::Local => {
                let per_lane = u64::from(self.launch.kernel.local_bytes);
                if !is_aligned || address.checked_add(u64::from(bytes)).is_none_or(|end| end > per_lane) {
                    let message = format!(
                        "out-of-bounds or misaligned local {} of {bytes} bytes at offset {address:#x}: a thread has {per_lane} bytes",
                        kind.name()
                    );
                    self.fail(FaultKind::IllegalAddress, lane, message);
                    return None;
                }
                let offset = (u64::from(lane) * per_lane + address) as usize;
                Some(self.warp.local[offset..offset + bytes as usize].as_mut_ptr())
            }
            StateSpace::Param => {
                let parameters = self.launch.parameters;
                let end = address.checked_add(u64::from(bytes)).filter(|&end| end <= parameters.len() as u64);
                if kind.writes() || end.is_none() {
                    let (name, len) = (kind.name(), parameters.len());
                    let message = format!("illegal parameter {name} of {bytes} bytes at offset {address} of {len}");
                    self.fail(FaultKind::IllegalAddress, lane, message);
                    return None;
                }
                Some(parameters[address as usize..].as_ptr().cast_mut())
            }
        }
    }

    /// Remembers an access that [`WarpContext::locate`] has allowed. The error is the address and kind of a conflict.
    #[inline(always)]
    pub(crate) fn remember(
        &mut self,
        space: StateSpace,
        address: u64,
        bytes: u32,
        kind: AccessKind,
        lane: u32,
    ) -> Result<(), (u64, Conflict)> {
        let checks = self.launch.settings.race_checks;
        let is_remembered = match space {
            StateSpace::Shared => checks != RaceChecks::Off,
            StateSpace::Global | StateSpace::Generic => checks == RaceChecks::SharedAndGlobal,
            StateSpace::Local | StateSpace::Param | StateSpace::Const => false,
        };
        if !is_remembered {
            return Ok(());
        }
        let mask = bytes_of_word(address, bytes);
        for word in address / 4..=(address + u64::from(bytes) - 1) / 4 {
            let moment = moment(self.block.linear, &self.block.clocks, self.warp, lane);
            let (cell, epoch) = if space == StateSpace::Shared {
                let epoch = self.block.shared.epoch;
                (self.block.shared.cell((word - u64::from(SHARED_BASE / 4)) as usize), epoch)
            } else {
                let epoch = self.launch.memory.launch();
                (self.launch.memory.cell(word * 4), epoch)
            };
            let is_before = |access, several_lanes| moment.is_after(access, several_lanes);
            let result = if kind.writes() {
                cell.write(epoch, moment.me, mask, kind.is_strong(), is_before)
            } else {
                cell.read(epoch, moment.me, mask, kind.is_strong(), is_before)
            };
            result.map_err(|conflict| (word * 4, conflict))?;
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn report_global<T>(&mut self, address: u64, bytes: u32, kind: AccessKind, lane: u32) -> Option<T> {
        let memory = &*self.launch.memory;
        let access = format!("global {} of {bytes} bytes at {address:#x}", kind.name());
        let range = address..address.saturating_add(u64::from(bytes));
        let is_outside = |&at: &u64| !memory.covers(at) || memory.states(at, 1)[0] & State::Unwritten as u8 == 0;
        let (fault, message) = if bytes.is_power_of_two() && address & u64::from(bytes - 1) != 0 {
            (FaultKind::MisalignedAddress, format!("misaligned {access}: {}", memory.describe(address)))
        } else if let Some(at) = range.clone().find(is_outside) {
            let place = match resolve_generic(address).0 {
                StateSpace::Global => memory.describe(at),
                _ => "the address belongs to another state space".into(),
            };
            (FaultKind::IllegalAddress, format!("out-of-bounds {access}: {place}"))
        } else {
            let at = memory.first_unwritten(address, u64::from(bytes)).unwrap_or(address);
            (FaultKind::LaunchFailed, format!("uninitialized {access}: nobody has written {}", memory.describe(at)))
        };
        self.fail(fault, lane, message);
        None
    }

    #[cold]
    #[inline(never)]
    fn report_shared<T>(&mut self, address: u64, bytes: u32, kind: AccessKind, lane: u32) -> Option<T> {
        let shared = &self.block.shared;
        let dynamic_bytes = self.launch.configuration.dynamic_shared_bytes;
        let describe = |address| describe_shared(self.launch.kernel, dynamic_bytes, address);
        let access = format!("shared {} of {bytes} bytes at {address:#x}", kind.name());
        let states = (address..address.saturating_add(u64::from(bytes)))
            .map(|at| (at, shared.offset(at, 1).map_or(0, |offset| shared.states(offset, 1)[0])));
        let (fault, message) = if address & u64::from(bytes - 1) != 0 {
            (FaultKind::MisalignedAddress, format!("misaligned {access}: {}", describe(address)))
        } else if let Some((at, _)) = states.clone().find(|&(_, state)| state == State::Unaddressable as u8) {
            (FaultKind::IllegalAddress, format!("out-of-bounds {access}: {}", describe(at)))
        } else if let Some((at, _)) = states.clone().find(|&(_, state)| state & IN_FLIGHT != 0) {
            let message = format!("{access} while a cp.async into {} is in flight: a wait is missing", describe(at));
            (FaultKind::LaunchFailed, message)
        } else {
            let at = states.clone().find(|&(_, state)| state == State::Unwritten as u8).map_or(address, |(at, _)| at);
            (FaultKind::LaunchFailed, format!("uninitialized {access}: nobody has written {}", describe(at)))
        };
        self.fail(fault, lane, message);
        None
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn report_race(
        &mut self,
        space: StateSpace,
        address: u64,
        kind: AccessKind,
        lane: u32,
        conflict: Conflict,
    ) {
        let (did, other) = match conflict {
            Conflict::Written(other) => ("written", other),
            Conflict::Read(other) => ("read", other),
        };
        let place = if space == StateSpace::Shared {
            let dynamic_bytes = self.launch.configuration.dynamic_shared_bytes;
            format!("shared memory, {}", describe_shared(self.launch.kernel, dynamic_bytes, address))
        } else {
            format!("global memory, {}", self.launch.memory.describe(address))
        };
        let name = kind.name();
        let message =
            format!("race on {place}: this {name} touches what was {did} by {}", self.describe_accessor(other));
        self.fail(FaultKind::LaunchFailed, lane, message);
    }

    /// Another thread, and what would have ordered its access before the present one.
    fn describe_accessor(&self, other: Accessor) -> String {
        let thread = other.thread();
        let name = format!("thread {thread} (warp {} lane {})", thread / 32, thread % 32);
        if other.block == self.block.linear {
            return format!("{name} of this block, with no barrier in between");
        }
        let [x, y, z] = self.launch.configuration.block_index(other.block);
        let missing = if self.warp.causality.observed.of(other.block).is_some() {
            "an atomic has observed that block, but no fence comes after it"
        } else {
            "with nothing that orders the two: no fence and atomic there, or no atomic and fence here"
        };
        format!("{name} of block ({x},{y},{z}), {missing}")
    }
}

/// The state space that an address belongs to, and the address in it.
#[inline(always)]
pub(crate) fn resolve(space: StateSpace, address: u64) -> (StateSpace, u64) {
    if space == StateSpace::Generic { resolve_generic(address) } else { (space, address) }
}
