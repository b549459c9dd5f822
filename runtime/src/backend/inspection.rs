//! What programs that judge and measure a session see of it, and change in it, besides what programs
//! that run it do.

use super::{BackendError, OperatorTime, Session, Step};
use std::borrow::Cow;

#[cfg(feature = "tract")]
pub use ratplus_tract::{Choices, with_choices};

/// Which blocks queries see whole: see the feature `tract`, without which nothing takes them.
#[cfg(not(feature = "tract"))]
pub trait Choices {
    /// Those before its own that the query at `position` of `slot` sees in query head `head`, in the `nth`
    /// layer that chooses.
    fn chosen(&self, nth: usize, slot: usize, position: usize, head: usize) -> &[u32];
}

/// Runs `work`: there is no reference to take `choices`.
#[cfg(not(feature = "tract"))]
pub fn with_choices<R>(_: std::rc::Rc<dyn Choices>, work: impl FnOnce() -> R) -> R {
    work()
}

/// Asked for as a session is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Intermediate tensors that every step also returns, by their names in the graph
    /// ([`ratplus_graphs::model::taps`] lists them).
    pub extra_outputs: Vec<String>,
    /// Times every operator of every run until [`end_profile`], which slows them. Which implementations
    /// ran is then not looked at. ONNX Runtime on the CPU only.
    pub profile: bool,
    /// tract only: what it rounds.
    pub exactness: Exactness,
}

/// What the reference rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exactness {
    /// As the package says.
    #[default]
    AsStored,
    /// Nothing but the weights that are stored: no rounding to f16 or bf16 between operators.
    WithoutRounding,
    /// That, and every weight that is stored in f16, bf16 or integers is moved by up to half a step of
    /// its type, at random from this seed. What comes of it shows what rounding the weights costs.
    NoisyWeights(u64),
}

/// An extra output in f32, and its shape; `None` where it was not asked for.
pub fn extra_output<'a>(step: &Step<'a>, name: &str) -> Option<(Vec<usize>, Cow<'a, [f32]>)> {
    let (session, engine) = (step.session, step.engine);
    let taps = &session.engines[engine].taps;
    let index = taps.iter().position(|(tap, _)| tap == name)?;
    let values = session.driver.tap(engine, index)?;
    Some((taps[index].1.shape.clone(), values))
}

/// Has `slot` count `length` tokens as seen, whatever its caches hold. What it computes then means
/// nothing, and takes as long.
pub fn assume_past(session: &mut Session, slot: usize, length: usize) {
    session.past_length[slot] = length as i64;
}

/// Has every `n`-th step from now on fail once it has run, as a backend's error does; 0 for none.
pub fn fail_every(session: &mut Session, n: u64) {
    session.fails = (n > 0).then_some((n, 0));
}

/// The error of a step that is to fail.
pub(super) fn injected(fails: &mut Option<(u64, u64)>) -> Result<(), BackendError> {
    let Some((every, steps)) = fails else {
        return Ok(());
    };
    *steps += 1;
    match *steps % *every {
        0 => Err(BackendError::Run {
            file: "step".into(),
            message: "it was to fail".into(),
        }),
        _ => Ok(()),
    }
}

/// Has the caches' memory be there before it is written: what was never written is read from one page
/// of zeros. Some backends write theirs, or have them on a GPU.
pub fn make_resident(session: &mut Session) {
    session.driver.make_resident();
}

/// Ends a session opened with [`Inspection::profile`]: what the operators of each opened engine took,
/// the most first; none where the engine did not run.
///
/// # Errors
/// The profile cannot be written or read.
pub fn end_profile(session: Session) -> Result<Vec<(String, Vec<OperatorTime>)>, BackendError> {
    session.driver.end_profile()
}
