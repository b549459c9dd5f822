//! How the kernels use the caller's threads.

/// Runs independent tasks on threads that the implementer owns.
pub trait ParallelFor {
    /// Runs `task(0)` to `task(tasks - 1)`, in any order and possibly at once; returns when all
    /// are done, with their writes visible to the caller.
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync));

    /// How many tasks can run at once, about. Kernels may use it to choose the size of tasks
    /// where that cannot change results.
    fn threads(&self) -> usize {
        8
    }
}

/// Runs every task on the calling thread, in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl ParallelFor for Serial {
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        for index in 0..tasks {
            task(index);
        }
    }

    fn threads(&self) -> usize {
        1
    }
}
