//! `Linear`.
//!
//! Rows are rounded and laid out once ([`rows`]); then every task computes some columns of all of them
//! ([`columns`]), from a matrix that is read where it is stored ([`matrix`]): by vectors, or by tiles.

mod columns;
mod few;
mod finish;
#[cfg(target_arch = "x86_64")]
mod lanes;
pub(crate) mod matrix;
mod rows;
#[cfg(target_arch = "x86_64")]
mod tiles;

use crate::element::{Element, with_element};
use crate::isa::{Isa, kernel};
use crate::operator::{CpuKernel, Processor};
use crate::parallel::ParallelFor;
use crate::scratch::with_scratch;
use columns::columns_body;
use matrix::Form;
use ratplus_graphs::ops::linear::{Inputs, Outputs};
use ratplus_graphs::ops::{Axis, ElementType, Inferred, LengthError, Linear};
use rows::rows_body;
use std::slice;

/// The tensors of one `Linear` call, dense and row-major; null where the node is without one. `B` is
/// [`LinearParams::batch`], `L` [`LinearParams::seq_len`], `K` and `N` are the operator's features.
#[derive(Clone, Copy, Debug)]
pub struct LinearParams<'a, T> {
    /// Sizes, the matrix's type, and what surrounds the product.
    pub operator: &'a Linear,
    /// Independent sequences.
    pub batch: usize,
    /// Tokens of this chunk.
    pub seq_len: usize,
    /// `[B, L, K]`
    pub input: *const T,
    /// `[N, K]`, or blocks.
    pub weight: *const u8,
    /// `[B]`
    pub seq_length: *const i64,
    /// `[N * blocks]`
    pub scales: *const f32,
    /// One a block, in as many bits as an integer.
    pub zero_points: *const u8,
    /// `[K]`
    pub norm: *const T,
    /// `[B, L, K]`
    pub gate: *const T,
    /// `[B, L, N]`
    pub residual: *const T,
    /// `[B, L, N]`: the result. Rows at or past `seq_length` are zero, or NaN where `seq_length` is not
    /// 0 to `L` or the input's row starts with NaN.
    pub output: *mut T,
}

// SAFETY: plain addresses; who dereferences them answers for the threads.
unsafe impl<T> Sync for LinearParams<'_, T> {}

/// Bytes of memory that a call needs beside its tensors.
pub fn linear_workspace_bytes(operator: &Linear, batch: usize, seq_len: usize) -> usize {
    let rows = batch * seq_len;
    let list = (rows * size_of::<u32>()).next_multiple_of(LINE);
    list + rows * Form::longest_stride(operator) * size_of::<f32>()
}

/// Bytes of a line of the caches.
const LINE: usize = 64;

/// Computes the product of every row below `seq_length` with the matrix's rows; see
/// [`Linear`](ratplus_graphs::ops::linear).
///
/// # Safety
/// Every pointer is aligned and valid for its tensor (a matrix of blocks needs no alignment, one of
/// floats its type's), and `workspace`, aligned to 64, for [`linear_workspace_bytes`]. The output and
/// the workspace overlap neither one another nor any input.
pub unsafe fn linear<T: Element>(
    params: &LinearParams<'_, T>,
    workspace: *mut u8,
    pool: &dyn ParallelFor,
) {
    // SAFETY: forwarded; the machine has its own best instruction set.
    unsafe { linear_on(Isa::best(), params, workspace, pool) }
}

/// [`linear`] with a chosen instruction set.
///
/// # Safety
/// As [`linear`], and `isa` is one of [`Isa::available`].
pub unsafe fn linear_on<T: Element>(
    isa: Isa,
    params: &LinearParams<'_, T>,
    workspace: *mut u8,
    pool: &dyn ParallelFor,
) {
    let form = Form::of::<T>(isa, params.operator);
    // SAFETY: forwarded.
    unsafe { linear_as(isa, form, params, workspace, pool) }
}

/// [`linear_on`] with a chosen form.
///
/// # Safety
/// As [`linear_on`], and the machine, the matrix and `T` have the form.
pub(crate) unsafe fn linear_as<T: Element>(
    isa: Isa,
    form: Form,
    params: &LinearParams<'_, T>,
    workspace: *mut u8,
    pool: &dyn ParallelFor,
) {
    let most = params.batch * params.seq_len;
    // SAFETY: the caller vouches for `[B]` and for the workspace.
    let (lengths, list) = unsafe {
        (
            slice::from_raw_parts(params.seq_length, params.batch),
            slice::from_raw_parts_mut(workspace.cast::<u32>(), most),
        )
    };
    // Rows that are computed, then those that are not.
    let (mut valid, mut unused) = (0, most);
    for (slot, &length) in lengths.iter().enumerate() {
        for token in 0..params.seq_len {
            let row = (slot * params.seq_len + token) as u32;
            if (token as i64) < length && length <= params.seq_len as i64 {
                list[valid] = row;
                valid += 1;
            } else {
                unused -= 1;
                list[unused] = row;
            }
        }
    }
    let offset = (most * size_of::<u32>()).next_multiple_of(LINE);
    let call = Call {
        params,
        form,
        stride: form.stride(params.operator),
        rows: &list[..valid],
        unused: &list[valid..],
        // SAFETY: within the workspace.
        x: unsafe { workspace.add(offset) }.cast(),
    };
    // SAFETY: every task writes rows and columns of its own, within the tensors that the caller
    // vouches for.
    unsafe {
        let floats = rows::scratch_floats(&call);
        let lay = |index| with_scratch(floats, |scratch| lay_out(isa, &call, index, scratch));
        // A few rows are laid out sooner than another thread wakes up.
        match (valid, valid.div_ceil(rows::together(&call))) {
            (0..4, groups) => (0..groups).for_each(lay),
            (_, groups) => pool.run(groups, &lay),
        }
        let width = columns::width(&call, pool.threads());
        let tasks = params.operator.out_features.div_ceil(width);
        pool.run(tasks, &|task| {
            let first = task * width;
            let last = (first + width).min(params.operator.out_features);
            let floats = columns::scratch_floats(&call, last - first);
            with_scratch(floats, |scratch| multiply(isa, &call, first, last, scratch));
        });
    }
}

/// One call, as its tasks see it.
struct Call<'a, T> {
    params: &'a LinearParams<'a, T>,
    form: Form,
    /// From row to row of `x`, in f32.
    stride: usize,
    /// Rows of the input that are computed.
    rows: &'a [u32],
    /// Rows of the output that are not.
    unused: &'a [u32],
    /// `[rows, stride]`: the rows as [`Form`] says; by tiles in groups of `[depth, group]`.
    x: *mut f32,
}

// SAFETY: plain addresses; who dereferences them answers for the threads.
unsafe impl<T> Sync for Call<'_, T> {}

kernel! {
    /// Lays out one of the call's rows, or a group of them.
    fn lay_out<T>(call: &Call<'_, T>, index: usize, scratch: *mut f32) = rows_body
}

kernel! {
    /// Computes the columns from `first` to before `last` of all rows.
    fn multiply<T>(call: &Call<'_, T>, first: usize, last: usize, scratch: *mut f32) = columns_body
}

/// Sizes and types of one node.
#[derive(Clone, Debug)]
pub struct LinearPlan {
    operator: Linear,
    element: ElementType,
    batch: usize,
    seq_len: usize,
}

impl CpuKernel for Linear {
    type Plan = LinearPlan;

    fn plan(&self, node: &Inferred) -> LinearPlan {
        LinearPlan {
            operator: self.clone(),
            element: node.element,
            batch: node.dims[Axis::Batch],
            seq_len: node.dims[Axis::SeqLen],
        }
    }

    /// None for a few rows: those of a decode step are laid out in memory that the thread keeps.
    fn workspace_bytes(plan: &LinearPlan) -> usize {
        match plan.batch * plan.seq_len {
            0..=columns::FEW => 0,
            _ => linear_workspace_bytes(&plan.operator, plan.batch, plan.seq_len),
        }
    }

    unsafe fn run(
        plan: &LinearPlan,
        inputs: &Inputs<*const u8>,
        outputs: &Outputs<*mut u8>,
        workspace: *mut u8,
        on: Processor<'_>,
    ) -> Result<(), LengthError> {
        let run = |workspace: *mut u8| {
            with_element!(plan.element, T => {
                let params = LinearParams::<T> {
                    operator: &plan.operator,
                    batch: plan.batch,
                    seq_len: plan.seq_len,
                    input: inputs.input.cast(),
                    weight: inputs.weight,
                    seq_length: inputs.seq_length.cast(),
                    scales: inputs.scales.cast(),
                    zero_points: inputs.zero_points,
                    norm: inputs.norm.cast(),
                    gate: inputs.gate.cast(),
                    residual: inputs.residual.cast(),
                    output: outputs.output.cast(),
                };
                // SAFETY: forwarded.
                unsafe { linear_on(on.isa, &params, workspace, on.threads) }
            })
        };
        if Self::workspace_bytes(plan) > 0 {
            run(workspace);
        } else {
            let bytes = linear_workspace_bytes(&plan.operator, plan.batch, plan.seq_len);
            with_scratch(bytes.div_ceil(size_of::<f32>()), |own| run(own.cast()));
        }
        Ok(())
    }
}
