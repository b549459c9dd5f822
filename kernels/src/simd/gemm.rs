//! Small dense products of rows as they lie in memory with packed columns.

use super::Simd;

/// `c = a b`, added to what [`Into`] says.
pub struct Gemm {
    /// Rows of `a` and `c`.
    pub rows: usize,
    /// Columns of `b` and `c`, in vectors.
    pub vectors: usize,
    /// Columns of `a`, rows of `b`.
    pub depth: usize,
    /// `[rows, depth]`, or `[depth, rows]` where `transposed`.
    pub a: *const f32,
    /// Stride of `a`'s outer dimension.
    pub a_stride: usize,
    /// Whether `a` is stored as its transpose.
    pub transposed: bool,
    /// `[depth, cols]`
    pub b: *const f32,
    /// Row stride of `b`.
    pub b_stride: usize,
    /// `[rows, cols]`
    pub c: *mut f32,
    /// Row stride of `c`.
    pub c_stride: usize,
    /// What becomes of `c`'s old values.
    pub into: Into,
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Into {
    /// Nothing.
    Zeros,
    /// The old values.
    Sums,
    /// The old values, each row times one of `[rows]`.
    Scaled(*const f32),
}

/// What a product of two operands is.
pub(super) trait Multiply<S: Simd> {
    /// `a * b + c`
    unsafe fn mul_add(a: S::V, b: S::V, c: S::V) -> S::V;
}

impl<S: Simd> Multiply<S> for S {
    #[inline(always)]
    unsafe fn mul_add(a: S::V, b: S::V, c: S::V) -> S::V {
        // SAFETY: forwarded.
        unsafe { S::mul_add(a, b, c) }
    }
}

/// Computes `MR` rows and `NR` vectors of columns in registers.
#[inline(always)]
unsafe fn block<
    S: Simd,
    M: Multiply<S>,
    const TRANSPOSED: bool,
    const MR: usize,
    const NR: usize,
>(
    g: &Gemm,
    row: usize,
    col: usize,
) {
    // SAFETY: the block lies within the matrices, as the caller sees to.
    unsafe {
        let mut acc = [[S::splat(0.0); NR]; MR];
        let mut b = g.b.add(col);
        let (mut a, step) = if TRANSPOSED {
            (g.a.add(row), g.a_stride)
        } else {
            (g.a.add(row * g.a_stride), 1)
        };
        for _ in 0..g.depth {
            let mut vectors = [S::splat(0.0); NR];
            for (n, vector) in vectors.iter_mut().enumerate() {
                *vector = S::load(b.add(n * S::LANES));
            }
            for (m, sums) in acc.iter_mut().enumerate() {
                let at = if TRANSPOSED { m } else { m * g.a_stride };
                let factor = S::splat(*a.add(at));
                for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                    *sum = M::mul_add(factor, vector, *sum);
                }
            }
            a = a.add(step);
            b = b.add(g.b_stride);
        }
        for (m, sums) in acc.iter().enumerate() {
            let c = g.c.add((row + m) * g.c_stride + col);
            for (n, &sum) in sums.iter().enumerate() {
                let c = c.add(n * S::LANES);
                let sum = match g.into {
                    Into::Zeros => sum,
                    Into::Sums => S::add(S::load(c), sum),
                    Into::Scaled(factors) => {
                        let factor = S::splat(*factors.add(row + m));
                        S::add(S::mul(S::load(c), factor), sum)
                    }
                };
                S::store(c, sum);
            }
        }
    }
}

/// All rows of `NR` vectors of columns, `MR` at a time.
#[inline(always)]
unsafe fn rows<
    S: Simd,
    M: Multiply<S>,
    const TRANSPOSED: bool,
    const MR: usize,
    const NR: usize,
>(
    g: &Gemm,
    col: usize,
) {
    // SAFETY: rows stay below `g.rows`.
    unsafe {
        let mut row = 0;
        while row + MR <= g.rows {
            block::<S, M, TRANSPOSED, MR, NR>(g, row, col);
            row += MR;
        }
        while row + 4 <= g.rows {
            block::<S, M, TRANSPOSED, 4, NR>(g, row, col);
            row += 4;
        }
        while row < g.rows {
            block::<S, M, TRANSPOSED, 1, NR>(g, row, col);
            row += 1;
        }
    }
}

/// All columns: `MR` rows and `NR` vectors at a time, then `SINGLE` rows and one.
#[inline(always)]
unsafe fn cols<
    S: Simd,
    M: Multiply<S>,
    const TRANSPOSED: bool,
    const MR: usize,
    const NR: usize,
    const SINGLE: usize,
>(
    g: &Gemm,
) {
    // SAFETY: columns stay below `g.vectors` whole vectors.
    unsafe {
        let mut vector = 0;
        while vector + NR <= g.vectors {
            rows::<S, M, TRANSPOSED, MR, NR>(g, vector * S::LANES);
            vector += NR;
        }
        while vector < g.vectors {
            rows::<S, M, TRANSPOSED, SINGLE, 1>(g, vector * S::LANES);
            vector += 1;
        }
    }
}

/// Runs `g` in register blocks.
///
/// # Safety
/// The matrices are readable and `c` is writable and apart from them; the machine has `S`.
#[inline(always)]
pub(super) unsafe fn run<
    S: Simd,
    M: Multiply<S>,
    const MR: usize,
    const NR: usize,
    const SINGLE: usize,
>(
    g: &Gemm,
) {
    // SAFETY: forwarded.
    unsafe {
        if g.transposed {
            cols::<S, M, true, MR, NR, SINGLE>(g);
        } else {
            cols::<S, M, false, MR, NR, SINGLE>(g);
        }
    }
}
