//! Divergence of a warp: which lanes execute what next.
//!
//! The lanes with the smallest program counter run first, and lanes that meet go on together. As lowering puts every loop before
//! what follows it, lanes meet again as early as they can.

/// The lanes of a warp that have not exited, by program counter.
#[derive(Default)]
pub(crate) struct Divergence {
    /// Program counter of the active lanes.
    pub(crate) pc: u32,
    /// The active lanes.
    pub(crate) active: u32,
    /// Program counters and lanes of the others.
    waiting: Vec<(u32, u32)>,
    /// The smallest program counter of those that wait.
    next: u32,
}

impl Divergence {
    /// All `lanes` at the first instruction.
    pub(crate) fn start(&mut self, lanes: u32) {
        (self.pc, self.active, self.next) = (0, lanes, u32::MAX);
        self.waiting.clear();
    }

    /// Lets the lanes with the smallest program counter run, together with those that wait there.
    #[inline(always)]
    pub(crate) fn settle(&mut self) {
        if self.pc >= self.next {
            self.switch();
        }
    }

    #[inline(never)]
    fn switch(&mut self) {
        if self.pc > self.next {
            self.waiting.push((self.pc, self.active));
            (self.pc, self.active) = (self.next, 0);
        }
        let (pc, active) = (self.pc, &mut self.active);
        self.waiting.retain(|&(at, lanes)| {
            if at == pc {
                *active |= lanes;
            }
            at != pc
        });
        self.find_next();
    }

    fn find_next(&mut self) {
        self.next = self.waiting.iter().map(|&(pc, _)| pc).min().unwrap_or(u32::MAX);
    }

    /// The active lanes among `taken` go to `target`, the others on.
    #[inline(always)]
    pub(crate) fn branch(&mut self, taken: u32, target: u32) {
        if taken == self.active {
            self.pc = target;
            return;
        }
        if taken != 0 {
            self.part(taken, target);
        }
        self.pc += 1;
    }

    /// Takes `lanes` from the active ones, to continue at `pc`.
    pub(crate) fn part(&mut self, lanes: u32, pc: u32) {
        self.active &= !lanes;
        self.waiting.push((pc, lanes));
        self.next = self.next.min(pc);
    }

    /// If no lane is active, those with the smallest program counter become it; false if there are none.
    pub(crate) fn resume(&mut self) -> bool {
        if self.active == 0 {
            if self.waiting.is_empty() {
                return false;
            }
            self.pc = self.next;
            self.switch();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_behind_run_first_and_meet_the_others() {
        let mut lanes = Divergence::default();
        lanes.start(0b1111);
        lanes.pc = 4;
        lanes.branch(0b0011, 9);
        assert_eq!((lanes.pc, lanes.active), (5, 0b1100));
        lanes.branch(0b1000, 2);
        lanes.settle();
        assert_eq!((lanes.pc, lanes.active), (2, 0b1000));
        lanes.pc = 6;
        lanes.settle();
        assert_eq!((lanes.pc, lanes.active), (6, 0b1100));
        lanes.pc = 9;
        lanes.settle();
        assert_eq!((lanes.pc, lanes.active), (9, 0b1111));
    }

    #[test]
    fn waiting_lanes_run_after_the_active_ones_have_exited() {
        let mut lanes = Divergence::default();
        lanes.start(0b11);
        lanes.part(0b01, 7);
        lanes.active = 0;
        assert!(lanes.resume());
        assert_eq!((lanes.pc, lanes.active), (7, 0b01));
        lanes.active = 0;
        assert!(!lanes.resume());
    }
}
