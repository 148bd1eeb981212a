//! What is ordered before what, by vector clocks.
//!
//! Each warp has a clock, which advances where the warp synchronizes, and knows up to which clock the accesses of other warps are
//! ordered before its own. Barriers make warps of a block know what the others know. Between blocks, knowledge passes through
//! atomics and other strong accesses, and only if the one side has executed a fence before and the other executes one after.
use std::collections::HashMap;
use std::rc::Rc;

use crate::memory::Accessor;

/// The clocks of a block's warps as each warp knows them.
#[derive(Default)]
pub(crate) struct Clocks {
    warps: usize,
    /// `[warps, warps]`: what a row's warp knows of each warp; its own clock on the diagonal.
    known: Vec<u32>,
}

impl Clocks {
    pub(crate) fn reset(&mut self, warps: usize) {
        self.warps = warps;
        self.known.clear();
        self.known.resize(warps * warps, 0);
        (0..warps).for_each(|warp| self.advance(warp));
    }

    #[inline(always)]
    pub(crate) fn known_to(&self, warp: usize) -> &[u32] {
        &self.known[warp * self.warps..][..self.warps]
    }

    #[inline(always)]
    pub(crate) fn now(&self, warp: usize) -> u32 {
        self.known[warp * self.warps + warp]
    }

    /// What the warp does from now on is not covered by what others have learned from it.
    pub(crate) fn advance(&mut self, warp: usize) {
        self.known[warp * self.warps + warp] += 1;
    }

    /// The warp learns what `other` says.
    pub(crate) fn learn(&mut self, warp: usize, other: &[u32]) {
        join(&mut self.known[warp * self.warps..][..self.warps], other);
    }
}

/// Raises clocks to those of `other`.
pub(crate) fn join(clocks: &mut [u32], other: &[u32]) {
    for (clock, other) in clocks.iter_mut().zip(other) {
        *clock = (*clock).max(*other);
    }
}

/// Up to which clocks the accesses of blocks are known, by block.
#[derive(Clone, Default)]
pub(crate) struct Knowledge(HashMap<u32, Rc<[u32]>>);

impl Knowledge {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn of(&self, block: u32) -> Option<&[u32]> {
        self.0.get(&block).map(|clocks| &**clocks)
    }

    pub(crate) fn insert(&mut self, block: u32, clocks: &[u32]) {
        self.0.insert(block, clocks.into());
    }

    pub(crate) fn remove(&mut self, block: u32) -> Option<Rc<[u32]>> {
        self.0.remove(&block)
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds what `other` knows.
    pub(crate) fn merge(&mut self, other: &Knowledge) {
        for (&block, clocks) in &other.0 {
            let mine = self.0.entry(block).or_insert_with(|| Rc::clone(clocks));
            if !Rc::ptr_eq(mine, clocks) && mine.iter().zip(&**clocks).any(|(mine, other)| mine < other) {
                let mut joined = mine.to_vec();
                join(&mut joined, clocks);
                *mine = joined.into();
            }
        }
    }
}

/// What passes between a warp and other blocks.
#[derive(Default)]
pub(crate) struct Causality {
    /// Accesses of other blocks that are ordered before the warp's.
    pub(crate) known: Knowledge,
    /// What strong accesses have found out; known after the next fence.
    pub(crate) observed: Knowledge,
    /// What was known at the last fence: strong accesses pass it on.
    pub(crate) fenced: Knowledge,
}

impl Causality {
    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty() && self.observed.is_empty() && self.fenced.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        [&mut self.known, &mut self.observed, &mut self.fenced].into_iter().for_each(Knowledge::clear);
    }

    /// What two warps know together, after a barrier. A fence before the barrier counts for both, as does one after it.
    pub(crate) fn merge(&mut self, other: &Causality) {
        self.known.merge(&other.known);
        self.observed.merge(&other.observed);
        self.fenced.merge(&other.fenced);
    }
}

/// A thread's present, with what it knows.
pub(crate) struct Moment<'a> {
    pub(crate) me: Accessor,
    pub(crate) clocks: &'a [u32],
    pub(crate) known: &'a Knowledge,
}

impl Moment<'_> {
    /// Whether an access is ordered before this moment. `several_lanes`: other lanes of the accessor's warp took part, too.
    #[inline(always)]
    pub(crate) fn is_after(&self, access: Accessor, several_lanes: bool) -> bool {
        let warp = access.warp() as usize;
        if access.block != self.me.block {
            return !self.known.is_empty()
                && self.known.of(access.block).is_some_and(|clocks| access.clock() <= clocks[warp]);
        }
        if access.warp() == self.me.warp() {
            access.clock() < self.clocks[warp] || access.thread() == self.me.thread() && !several_lanes
        } else {
            access.clock() <= self.clocks[warp]
        }
    }
}
