//! Choices of blocks that are given, so that an implementation can be judged by what it made of its own.

use std::cell::RefCell;
use std::rc::Rc;

/// Which blocks queries see whole.
pub trait Choices {
    /// Those before its own that the query at `position` of `slot` sees in query head `head`, in the `nth`
    /// [`BlockTopKAttention`](ratplus_graphs::ops::BlockTopKAttention) that runs.
    fn chosen(&self, nth: usize, slot: usize, position: usize, head: usize) -> &[u32];
}

thread_local! {
    /// What is given, and how many operators have taken theirs.
    static GIVEN: RefCell<Option<(Rc<dyn Choices>, usize)>> = const { RefCell::new(None) };
}

/// Runs `work`, in which operators on this thread take `choices` in place of their own.
pub fn with_choices<R>(choices: Rc<dyn Choices>, work: impl FnOnce() -> R) -> R {
    /// Puts back what was given before, of a panic too.
    struct Restore(Option<(Rc<dyn Choices>, usize)>);
    impl Drop for Restore {
        fn drop(&mut self) {
            GIVEN.set(self.0.take());
        }
    }
    let _restore = Restore(GIVEN.replace(Some((choices, 0))));
    work()
}

/// What the operator that runs now is given, and the how manieth it is.
pub(crate) fn next() -> Option<(Rc<dyn Choices>, usize)> {
    GIVEN.with_borrow_mut(|given| {
        let (choices, count) = given.as_mut()?;
        *count += 1;
        Some((Rc::clone(choices), *count - 1))
    })
}
