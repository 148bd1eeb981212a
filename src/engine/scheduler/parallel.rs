//! The sequences of a step on several threads: choosing a token from a large vocabulary takes a fraction of a millisecond.

use std::thread;

use parking_lot::Mutex;

/// Work that is worth a thread: starting one takes some ten microseconds.
const NANOSECONDS_PER_THREAD: usize = 150_000;

/// More share too little work, and each keeps scratch memory of the size of a vocabulary.
const MOST_THREADS: usize = 8;

/// Most threads to use, if an engine is asked to compute with so many.
pub(super) fn most_threads(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)).min(MOST_THREADS)
}

/// Number of threads, with that of the caller, for work that takes so long on one.
pub(super) fn threads_for(nanoseconds: usize, most: usize) -> usize {
    (nanoseconds / NANOSECONDS_PER_THREAD).clamp(1, most.max(1))
}

/// Calls `f` with each task and the scratch memory of one thread, of which there is one per item of `scratch`. Those of
/// `own_tasks` are left to the caller's thread.
///
/// Which thread takes a task changes nothing but time. A panic in `f` goes on in the caller.
pub(super) fn for_each<T: Send, S: Send>(
    own_tasks: Vec<T>,
    tasks: Vec<T>,
    scratch: &mut [S],
    f: impl Fn(&mut S, T) + Sync,
) {
    let Some((own, others)) = scratch.split_first_mut() else { return };
    let queue = Mutex::new(tasks.into_iter());
    let next = || queue.lock().next();
    thread::scope(|scope| {
        for scratch in others {
            let (f, next) = (&f, &next);
            let work = move || {
                while let Some(task) = next() {
                    f(scratch, task);
                }
            };
            // Without another thread, the caller does it all.
            let _ = thread::Builder::new().name("exlora-sample".to_owned()).spawn_scoped(scope, work);
        }
        own_tasks.into_iter().for_each(|task| f(own, task));
        while let Some(task) = next() {
            f(own, task);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::thread::ThreadId;

    use super::*;

    #[test]
    fn every_task_is_done_once_and_own_ones_by_the_caller() {
        for threads in 1..5 {
            let mut done = vec![0; 40];
            let done_by: Mutex<Vec<(usize, ThreadId)>> = Mutex::default();
            let (own, rest): (Vec<_>, Vec<_>) = done.iter_mut().enumerate().partition(|(index, _)| index % 4 == 0);
            let mut scratch = vec![0; threads];
            for_each(own, rest, &mut scratch, |scratch, (index, task)| {
                *task += 1;
                *scratch += 1;
                done_by.lock().push((index, thread::current().id()));
            });
            assert_eq!((done, scratch.iter().sum::<i32>()), (vec![1; 40], 40));
            let done_by = done_by.into_inner();
            assert!(done_by.iter().all(|&(index, by)| index % 4 != 0 || by == thread::current().id()));
            assert!(done_by.iter().map(|(_, by)| format!("{by:?}")).collect::<BTreeSet<_>>().len() <= threads);
        }
    }

    #[test]
    fn little_work_stays_on_one_thread() {
        assert_eq!((threads_for(0, 8), threads_for(149_999, 8), threads_for(310_000, 8)), (1, 1, 2));
        assert_eq!((threads_for(usize::MAX, 8), threads_for(usize::MAX, 0)), (8, 1));
    }
}
