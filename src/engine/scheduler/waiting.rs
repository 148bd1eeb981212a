//! The sequences that wait for a row, and whose turn it is: adapters take turns, so that none starves another.
//!
//! Sequences with the same adapters, at whatever weights, wait in one queue, the oldest first; those of the base are a queue
//! too. The queues take turns: the one whose turn it is starts one sequence and goes behind the others, and a queue that comes
//! into being takes its place behind those that there are. So before a sequence with p - 1 older ones in its queue starts, any
//! other queue starts at most p, however many wait in it. Weights don't count, or a caller could take as many turns as it
//! writes weights.
//!
//! A sequence that was preempted has had its turn: such ones start again before all others, the oldest first.
//!
//! Every operation takes time logarithmic in the number of sequences that wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::adapter::batch::SlotId;
use crate::engine::sequence::Sequence;

/// The slots of a sequence's adapters, sorted, each once. Its leases keep the slots from being used for other adapters.
type Adapters = Arc<[SlotId]>;

/// Sequences that wait.
#[derive(Default)]
pub(super) struct WaitingList {
    /// By the number of their job, so in the order of submission.
    sequences: BTreeMap<u64, Sequence>,
    /// The jobs whose sequences were preempted.
    preempted: BTreeSet<u64>,
    turns: Turns,
}

impl WaitingList {
    /// Number of sequences.
    pub(super) fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Adds a sequence that has not run.
    pub(super) fn push(&mut self, sequence: Sequence) {
        self.turns.push(sequence.adapters(), sequence.job.number());
        self.sequences.insert(sequence.job.number(), sequence);
    }

    /// Adds a sequence that has run, and precedes those that have not.
    pub(super) fn push_preempted(&mut self, sequence: Sequence) {
        self.preempted.insert(sequence.job.number());
        self.sequences.insert(sequence.job.number(), sequence);
    }

    /// The sequence that [`WaitingList::pop`] removes.
    pub(super) fn next_mut(&mut self) -> Option<&mut Sequence> {
        let job = self.preempted.first().copied().or_else(|| self.turns.next())?;
        self.sequences.get_mut(&job)
    }

    /// Removes the sequence that starts next. The queue that it was in goes behind the others.
    pub(super) fn pop(&mut self) -> Option<Sequence> {
        let job = self.preempted.pop_first().or_else(|| self.turns.take())?;
        self.sequences.remove(&job)
    }

    /// Removes the sequence of a job, if it is here. Its queue keeps its place.
    pub(super) fn remove(&mut self, job: u64) -> Option<Sequence> {
        let sequence = self.sequences.remove(&job)?;
        if !self.preempted.remove(&job) {
            self.turns.remove(sequence.adapters(), job);
        }
        Some(sequence)
    }

    /// Removes all, the oldest first.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Sequence> + use<> {
        std::mem::take(self).sequences.into_values()
    }
}

/// Whose turn it is: job numbers in one queue for each set of adapters.
#[derive(Default)]
struct Turns {
    /// None is empty.
    queues: HashMap<Adapters, Queue>,
    /// The queues by the number of their next turn.
    order: BTreeMap<u64, Adapters>,
    /// Number of the turn after all of `order`.
    end: u64,
}

struct Queue {
    turn: u64,
    jobs: BTreeSet<u64>,
}

impl Turns {
    fn push(&mut self, adapters: &Adapters, job: u64) {
        if let Some(queue) = self.queues.get_mut(adapters) {
            queue.jobs.insert(job);
            return;
        }
        self.queues.insert(Arc::clone(adapters), Queue { turn: self.end, jobs: BTreeSet::from([job]) });
        self.go_last(Arc::clone(adapters));
    }

    /// The job that [`Turns::take`] removes.
    fn next(&self) -> Option<u64> {
        let (_, adapters) = self.order.first_key_value()?;
        self.queues.get(adapters)?.jobs.first().copied()
    }

    /// Removes the oldest job of the queue whose turn it is.
    fn take(&mut self) -> Option<u64> {
        let (_, adapters) = self.order.pop_first()?;
        let queue = self.queues.get_mut(&adapters)?;
        let job = queue.jobs.pop_first();
        if queue.jobs.is_empty() {
            self.queues.remove(&adapters);
        } else {
            queue.turn = self.end;
            self.go_last(adapters);
        }
        job
    }

    fn remove(&mut self, adapters: &Adapters, job: u64) {
        let Some(queue) = self.queues.get_mut(adapters) else { return };
        queue.jobs.remove(&job);
        if queue.jobs.is_empty() {
            self.order.remove(&queue.turn);
            self.queues.remove(adapters);
        }
    }

    fn go_last(&mut self, adapters: Adapters) {
        self.order.insert(self.end, adapters);
        self.end += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn adapters(slots: &[u32]) -> Adapters {
        slots.iter().map(|&slot| SlotId(slot)).collect()
    }

    /// Takes all jobs, of which each was pushed with the adapter given for its number.
    fn taken(turns: &mut Turns) -> Vec<u64> {
        std::iter::from_fn(|| {
            let next = turns.next();
            assert_eq!(next, turns.take());
            next
        })
        .collect()
    }

    #[test]
    fn adapters_take_turns_and_the_oldest_of_each_is_first() {
        let mut turns = Turns::default();
        for (job, slots) in [&[][..], &[], &[], &[7], &[7], &[1, 7], &[]].into_iter().enumerate() {
            turns.push(&adapters(slots), job as u64);
        }
        assert_eq!(taken(&mut turns), [0, 3, 5, 1, 4, 2, 6]);
        assert!(turns.queues.is_empty() && turns.order.is_empty());
    }

    #[test]
    fn a_queue_that_becomes_empty_begins_again_behind_the_others() {
        let mut turns = Turns::default();
        let [a, b] = [adapters(&[1]), adapters(&[2])];
        turns.push(&a, 0);
        turns.push(&b, 1);
        assert_eq!(turns.take(), Some(0));
        turns.push(&b, 2);
        turns.push(&a, 3);
        assert_eq!(taken(&mut turns), [1, 3, 2]);
        turns.push(&a, 4);
        turns.push(&b, 5);
        turns.remove(&a, 4);
        turns.push(&a, 6);
        assert_eq!(taken(&mut turns), [5, 6]);
    }

    #[derive(Clone, Debug)]
    enum Act {
        Push(u32),
        Take,
        /// Removes the job at this place among those that wait, modulo their number.
        Remove(usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (0u32..5).prop_map(Act::Push),
            3 => Just(Act::Take),
            1 => (0usize..64).prop_map(Act::Remove),
        ]
    }

    proptest! {
        /// The bound of the module's documentation, whatever is pushed and removed in between.
        #[test]
        fn before_the_pth_of_a_queue_any_other_starts_at_most_p(acts in prop::collection::vec(act(), 1..200)) {
            let mut turns = Turns::default();
            // Job, its adapter, its place in its queue when it was pushed, what each adapter has started since.
            let mut waiting: Vec<(u64, u32, usize, [usize; 5])> = Vec::new();
            for (job, act) in acts.into_iter().enumerate() {
                match act {
                    Act::Push(adapter) => {
                        turns.push(&adapters(&[adapter]), job as u64);
                        let place = 1 + waiting.iter().filter(|other| other.1 == adapter).count();
                        waiting.push((job as u64, adapter, place, [0; 5]));
                    }
                    Act::Remove(_) if waiting.is_empty() => {}
                    Act::Remove(index) => {
                        let (job, adapter, ..) = waiting.remove(index % waiting.len());
                        turns.remove(&adapters(&[adapter]), job);
                    }
                    Act::Take => {
                        let found = turns.take();
                        prop_assert_eq!(found.is_none(), waiting.is_empty());
                        let Some(found) = found else { continue };
                        let index = waiting.iter().position(|(job, ..)| *job == found).expect("it waits");
                        let (job, adapter, ..) = waiting.remove(index);
                        prop_assert!(waiting.iter().all(|other| other.1 != adapter || other.0 > job), "oldest first");
                        for (_, own, place, started) in &mut waiting {
                            started[adapter as usize] += 1;
                            prop_assert!(adapter == *own || started[adapter as usize] <= *place);
                        }
                    }
                }
                let jobs: usize = turns.queues.values().map(|queue| queue.jobs.len()).sum();
                prop_assert_eq!((jobs, turns.order.len()), (waiting.len(), turns.queues.len()));
            }
        }
    }
}
