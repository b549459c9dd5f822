//! This machine's threads.

use ratplus_kernels::ParallelFor;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// As many threads as the machine has, each taking one task after another.
pub struct Threads;

impl ParallelFor for Threads {
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..self.threads().min(tasks) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= tasks {
                            break;
                        }
                        task(index);
                    }
                });
            }
        });
    }

    fn threads(&self) -> usize {
        std::thread::available_parallelism().map_or(1, Into::into)
    }
}

/// The results of all tasks, in order.
pub fn map<T: Send>(tasks: usize, task: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let results: Vec<Mutex<Option<T>>> = (0..tasks).map(|_| Mutex::new(None)).collect();
    Threads.run(tasks, &|index| {
        let result = task(index);
        if let Ok(mut slot) = results[index].lock() {
            *slot = Some(result);
        }
    });
    let taken = results
        .into_iter()
        .filter_map(|slot| slot.into_inner().ok().flatten());
    taken.collect()
}
