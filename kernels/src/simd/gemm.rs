//! Small dense products on packed f32.

use super::Simd;

/// `c = a b`, or `c = scale c + a b` with one factor per row.
pub struct Gemm {
    /// Rows of `a` and `c`.
    pub rows: usize,
    /// Columns of `b` and `c`, a multiple of the vector length.
    pub cols: usize,
    /// Columns of `a`, rows of `b`.
    pub depth: usize,
    /// `[rows, depth]`, rows `a_stride` apart.
    pub a: *const f32,
    /// Row stride of `a`.
    pub a_stride: usize,
    /// `[depth, cols]`, rows `b_stride` apart.
    pub b: *const f32,
    /// Row stride of `b`.
    pub b_stride: usize,
    /// `[rows, cols]`, rows `c_stride` apart.
    pub c: *mut f32,
    /// Row stride of `c`.
    pub c_stride: usize,
    /// `[rows]`, or null to overwrite `c`.
    pub scale: *const f32,
}

/// Computes `MR` rows and `NR` vectors of columns in registers.
#[inline(always)]
unsafe fn block<S: Simd, const MR: usize, const NR: usize>(g: &Gemm, row: usize, col: usize) {
    // SAFETY: the block lies within the matrices, as the caller sees to.
    unsafe {
        let mut acc = [[S::splat(0.0); NR]; MR];
        let mut b = g.b.add(col);
        let a = g.a.add(row * g.a_stride);
        for k in 0..g.depth {
            let mut vectors = [S::splat(0.0); NR];
            for (n, vector) in vectors.iter_mut().enumerate() {
                *vector = S::load(b.add(n * S::LANES));
            }
            for (m, sums) in acc.iter_mut().enumerate() {
                let factor = S::splat(*a.add(m * g.a_stride + k));
                for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                    *sum = S::mul_add(factor, vector, *sum);
                }
            }
            b = b.add(g.b_stride);
        }
        for (m, sums) in acc.iter().enumerate() {
            let c = g.c.add((row + m) * g.c_stride + col);
            for (n, &sum) in sums.iter().enumerate() {
                let c = c.add(n * S::LANES);
                let sum = if g.scale.is_null() {
                    sum
                } else {
                    S::mul_add(S::load(c), S::splat(*g.scale.add(row + m)), sum)
                };
                S::store(c, sum);
            }
        }
    }
}

/// All rows of `NR` vectors of columns, `MR` at a time.
#[inline(always)]
unsafe fn panel<S: Simd, const MR: usize, const NR: usize>(g: &Gemm, col: usize) {
    // SAFETY: rows stay below `g.rows`.
    unsafe {
        let mut row = 0;
        while row + MR <= g.rows {
            block::<S, MR, NR>(g, row, col);
            row += MR;
        }
        match g.rows - row {
            1 => block::<S, 1, NR>(g, row, col),
            2 => block::<S, 2, NR>(g, row, col),
            3 => block::<S, 3, NR>(g, row, col),
            4 => block::<S, 4, NR>(g, row, col),
            5 => block::<S, 5, NR>(g, row, col),
            _ => {}
        }
    }
}

/// Runs `g` in register blocks of `MR <= 6` rows and `NR` vectors.
///
/// # Safety
/// The matrices are readable and `c` is writable and apart from them; the machine has `S`.
#[inline(always)]
pub(super) unsafe fn run<S: Simd, const MR: usize, const NR: usize>(g: &Gemm) {
    // SAFETY: columns stay below `g.cols`, a multiple of `LANES`.
    unsafe {
        let mut col = 0;
        while col + NR * S::LANES <= g.cols {
            panel::<S, MR, NR>(g, col);
            col += NR * S::LANES;
        }
        while col < g.cols {
            panel::<S, MR, 1>(g, col);
            col += S::LANES;
        }
    }
}
