//! Where floating point ends: saturated gates, rows without keys, scores that are no numbers,
//! subnormals, and slots that hold any of them. Every comparison is counted, and the count asserted.

mod gates;
mod rows;
mod slots;

use super::{Real, Threads};
use crate::tests::machine::{Machine, Way};
use crate::{ParallelFor, Serial};
use ratplus_tests::mxcsr::Control;
use std::fmt::Debug;

/// A pool whose calling thread and tasks run under a control, and have to leave it as it is.
struct Guarded<P>(P, Control);

impl<P: ParallelFor + Sync> ParallelFor for Guarded<P> {
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.0.run(tasks, &|index| self.1.run(|| task(index)));
    }

    fn threads(&self) -> usize {
        self.0.threads()
    }
}

/// Every CPU instruction set.
fn cpus() -> Vec<Machine> {
    Machine::cpus()
}

/// One thread, and two, whose control has to stay `control`.
fn guarded(control: Control) -> [Way; 2] {
    [
        Way::Pool(Box::new(Guarded(Serial, control))),
        Way::Pool(Box::new(Guarded(Threads(2), control))),
    ]
}

/// Says how many numbers of `what` were compared, which are at least `least`.
fn report(what: &str, machine: impl Debug, points: usize, least: usize) {
    println!("{what} on {machine:?}: {points} points");
    assert!(
        points >= least,
        "{what} on {machine:?}: expected {least} points, found {points}"
    );
}

/// Compares `got` with the model's `want`: within `tolerance` where that is finite; a result that
/// is none is not made a number.
fn compare<T: Real>(got: T, want: f64, tolerance: f64, place: impl FnOnce() -> String) {
    let got = got.real();
    let right = if want.is_finite() {
        (got - want).abs() <= tolerance
    } else {
        !got.is_finite()
    };
    assert!(right, "{}: {got:e} is not {want:e}", place());
}
