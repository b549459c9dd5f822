//! Integers on AVX-512: sixteen columns in the lanes of a vector.
//!
//! A block's integers are multiplied exactly: as f32; as bf16, of which an element of a row is one or the sum
//! of two; or as bytes, with rows that are rounded to bytes. The sum of a block is multiplied
//! by its scales once. A sum has one order, whatever the number of rows.

mod columns;
mod dot;
mod rows;

use super::{Call, columns::Part};
use crate::element::Element;
use crate::isa::Isa;
use crate::simd::prefetch;
use columns::{Clamped, Columns, Matrix, Places, Whole};
use dot::{Bf16, Bytes, Dot, Floats};
use ratplus_graphs::ops::{ElementType, Linear, linear::WeightType};
use ratplus_graphs::precision::Activations;
pub(super) use rows::{RowLayout, lay_out};
use std::arch::x86_64::*;

/// Columns in a vector.
const LANES: usize = 16;
/// Columns of a panel.
const COLUMNS: usize = 2 * LANES;
/// Bytes of a matrix row that are rearranged at a time.
const UNIT: usize = 16;
/// Rows for which a panel is not worth its while.
const FEW: usize = 8;
/// Rows of a register block with a panel.
const ROWS: usize = 6;
/// Elements of a row that are laid out at a time: whole blocks.
pub(super) const DEPTH: usize = 512;
/// Blocks whose scales are rearranged at a time.
const QUAD: usize = 4;

/// f32 of scratch for a panel: its integers, scales and what zero points add.
pub(super) const PANEL_FLOATS: usize = COLUMNS * (DEPTH / 2 + 2 * MOST_BLOCKS);
/// Blocks of a panel.
const MOST_BLOCKS: usize = DEPTH / 16;

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Product {
    /// f32.
    Floats,
    /// bf16, of so many for an element of a row.
    Bf16 {
        /// 1 or 2.
        pieces: usize,
    },
    /// Bytes, with rows that are rounded to bytes.
    Bytes,
}

/// Whether there are dot products of bytes.
fn has_bytes() -> bool {
    std::arch::is_x86_feature_detected!("avx512vnni")
}

/// How integers are multiplied here; none where another form is as good.
pub(super) fn chosen<T: Element>(isa: Isa, operator: &Linear) -> Option<Product> {
    let WeightType::Blocks { bits, block_size } = operator.weight else {
        return None;
    };
    // A block is whole units, and there is a vector of columns.
    let whole = (block_size * bits as usize / 8).is_multiple_of(UNIT);
    if !whole || operator.out_features < LANES {
        return None;
    }
    let bytes = operator.activations == Activations::Int8 && has_bytes();
    match (isa, T::TYPE) {
        (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, _) if bytes => Some(Product::Bytes),
        (Isa::Avx512Bf16, ElementType::BF16) => Some(Product::Bf16 { pieces: 1 }),
        // Its 11 bits are those of two.
        (Isa::Avx512Bf16, ElementType::F16) => Some(Product::Bf16 { pieces: 2 }),
        (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, _) => Some(Product::Floats),
        _ => None,
    }
}

/// The sums of a part, as its functions see it.
struct Task {
    /// First column.
    column: usize,
    /// How many.
    columns: usize,
    /// How many rows.
    rows: usize,
    /// Laid out rows.
    x: *const f32,
    /// From row to row.
    x_stride: usize,
    /// `[rows, columns]`, with room for whole panels.
    c: *mut f32,
    /// Row stride of `c`.
    c_stride: usize,
    /// What a row is made of.
    layout: RowLayout,
    /// [`PANEL_FLOATS`].
    panel: *mut f32,
}

/// Computes the part's sums.
///
/// # Safety
/// The part lies within the matrices, of which all rows are laid out for `product`, and there are
/// [`PANEL_FLOATS`] of scratch; the machine has what `product` needs.
pub(super) unsafe fn sums<T>(call: &Call<'_, T>, product: Product, part: &Part, panel: *mut f32) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    unsafe fn of_bf16<const PIECES: usize, const BITS: usize>(matrix: &Matrix, task: &Task) {
        // SAFETY: forwarded.
        unsafe { all::<Bf16<PIECES, BITS>>(matrix, task) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn of_bytes<const BITS: usize>(matrix: &Matrix, task: &Task) {
        // SAFETY: forwarded.
        unsafe { all::<Bytes<BITS>>(matrix, task) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn of_floats<const BITS: usize>(matrix: &Matrix, task: &Task) {
        // SAFETY: forwarded.
        unsafe { all::<Floats<BITS>>(matrix, task) }
    }
    let matrix = Matrix::new(call.params);
    let task = Task {
        column: part.columns.start,
        columns: part.columns.len(),
        rows: part.rows.len(),
        x: call.x.wrapping_add(part.rows.start * call.stride),
        x_stride: call.stride,
        c: part.to,
        c_stride: part.stride,
        layout: RowLayout::new(product, call.params.operator),
        panel,
    };
    // SAFETY: forwarded.
    unsafe {
        match (product, matrix.bits) {
            (Product::Bf16 { pieces: 1 }, 4) => of_bf16::<1, 4>(&matrix, &task),
            (Product::Bf16 { pieces: 1 }, _) => of_bf16::<1, 8>(&matrix, &task),
            (Product::Bf16 { .. }, 4) => of_bf16::<2, 4>(&matrix, &task),
            (Product::Bf16 { .. }, _) => of_bf16::<2, 8>(&matrix, &task),
            (Product::Floats, 4) => of_floats::<4>(&matrix, &task),
            (Product::Floats, _) => of_floats::<8>(&matrix, &task),
            (Product::Bytes, 4) => of_bytes::<4>(&matrix, &task),
            (Product::Bytes, _) => of_bytes::<8>(&matrix, &task),
        }
    }
}

/// A row's `u32` in every lane.
#[inline(always)]
unsafe fn broadcast(from: *const f32) -> __m512i {
    // SAFETY: the caller's contract.
    unsafe { _mm512_set1_epi32(from.cast::<i32>().read()) }
}

/// `total` and a block's sum times its scales.
#[inline(always)]
unsafe fn scaled<D: Dot>(
    total: __m512,
    sums: [__m512i; 2],
    (scale, shift): (__m512, Option<__m512>),
    (x, layout, block): (*const f32, &RowLayout, usize),
) -> __m512 {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sum = D::sum(sums[0], sums[1]);
        if let Some(shift) = shift {
            let of_row = _mm512_set1_ps(*x.add(layout.sums() + block));
            sum = _mm512_fmadd_ps(shift, of_row, sum);
        }
        let scale = match D::BYTES {
            true => _mm512_mul_ps(scale, _mm512_set1_ps(*x.add(layout.scales() + block))),
            false => scale,
        };
        _mm512_fmadd_ps(sum, scale, total)
    }
}

/// What a block's sum starts from.
#[inline(always)]
unsafe fn start<D: Dot>(x: *const f32, layout: &RowLayout, block: usize) -> __m512i {
    // SAFETY: the caller's contract.
    unsafe {
        match D::BYTES {
            true => broadcast(x.add(layout.starts() + block)),
            false => _mm512_setzero_si512(),
        }
    }
}

/// # Safety
/// As [`sums`].
#[inline(always)]
unsafe fn all<D: Dot>(matrix: &Matrix, task: &Task) {
    // SAFETY: forwarded.
    unsafe {
        match task.rows {
            0 => {}
            1 => few::<D, 1>(matrix, task),
            2 => few::<D, 2>(matrix, task),
            3 => few::<D, 3>(matrix, task),
            4 => few::<D, 4>(matrix, task),
            5 => few::<D, 5>(matrix, task),
            6 => few::<D, 6>(matrix, task),
            7 => few::<D, 7>(matrix, task),
            FEW => few::<D, FEW>(matrix, task),
            _ => many::<D>(matrix, task),
        }
    }
}

/// `MR` rows: integers are unpacked in registers.
#[inline(always)]
unsafe fn few<D: Dot, const MR: usize>(matrix: &Matrix, task: &Task) {
    let (layout, shifted) = (&task.layout, !matrix.points.is_null());
    let row_bytes = matrix.blocks * matrix.block_bytes;
    // SAFETY: the caller's contract.
    unsafe {
        let zero = _mm512_setzero_si512();
        for column in (0..task.columns).step_by(LANES) {
            let there = LANES.min(task.columns - column);
            // The last ones of a matrix come with some before them.
            let before = LANES - there;
            let places = Whole(task.column + column - before);
            let columns = Columns { matrix, places };
            // The next columns are fetched while these are computed.
            let next = task.column + column + LANES;
            let next_weights = matrix.weight.wrapping_add(next * row_bytes);
            let next_scales = matrix.scales.wrapping_add(next * matrix.blocks);
            let mut totals = [_mm512_setzero_ps(); MR];
            for quad in (0..matrix.blocks).step_by(QUAD) {
                let blocks = QUAD.min(matrix.blocks - quad);
                prefetch(next_scales.wrapping_add(quad * LANES), 4 * QUAD * LANES);
                let scales = columns.scales(quad, blocks);
                let shifts = match shifted {
                    true => columns.shifts(quad, D::ZERO),
                    false => [_mm512_setzero_ps(); QUAD],
                };
                for block in quad..quad + blocks {
                    let mut sums = [[zero; 2]; MR];
                    for (m, sums) in sums.iter_mut().enumerate() {
                        sums[0] = start::<D>(task.x.add(m * task.x_stride), layout, block);
                    }
                    for unit in 0..matrix.units() {
                        let at = block * matrix.block_bytes + unit * UNIT;
                        prefetch(next_weights.wrapping_add(at * LANES), UNIT * LANES);
                        let stored = columns.unit(at);
                        for (j, stored) in stored.into_iter().enumerate() {
                            let w = D::unpack(stored);
                            for (i, &w) in w.iter().enumerate().take(D::STEPS) {
                                let step = j * D::STEPS + i;
                                let k = at / 4 * D::STEPS + step;
                                for (m, sums) in sums.iter_mut().enumerate() {
                                    for piece in 0..D::PIECES {
                                        let x = task.x.add(m * task.x_stride);
                                        let x = broadcast(x.add(piece * layout.depth + k));
                                        let sum = &mut sums[step % 2];
                                        *sum = D::dot(*sum, w, x);
                                    }
                                }
                            }
                        }
                    }
                    let shift = shifted.then(|| shifts[block - quad]);
                    for (m, (total, sums)) in totals.iter_mut().zip(sums).enumerate() {
                        let x = task.x.add(m * task.x_stride);
                        let by = (scales[block - quad], shift);
                        *total = scaled::<D>(*total, sums, by, (x, layout, block));
                    }
                }
            }
            for (m, total) in totals.into_iter().enumerate() {
                let mut lanes = [0.0; LANES];
                _mm512_storeu_ps(lanes.as_mut_ptr(), total);
                let c = task.c.add(m * task.c_stride + column);
                std::ptr::copy_nonoverlapping(lanes.as_ptr().add(before), c, there);
            }
        }
    }
}

/// Any number of rows: integers are unpacked once, into a panel.
#[inline(always)]
unsafe fn many<D: Dot>(matrix: &Matrix, task: &Task) {
    let u32s = matrix.block_bytes / 4 * D::STEPS;
    let elements = matrix.block_bytes * 8 / matrix.bits;
    let most = D::DEPTH / elements;
    // SAFETY: the caller's contract; the panel has room for so many blocks.
    unsafe {
        for column in (0..task.columns).step_by(COLUMNS) {
            for first in (0..matrix.blocks).step_by(most) {
                let last = (first + most).min(matrix.blocks);
                let scales = task.panel;
                let shifts = scales.add(COLUMNS * (last - first));
                let weights = shifts.add(COLUMNS * (last - first));
                let panel = Panel {
                    blocks: (first, last),
                    u32s,
                    weights,
                    scales,
                    shifts: (!matrix.points.is_null()).then_some(shifts.cast_const()),
                    c: task.c.add(column),
                };
                for half in 0..2 {
                    let at = column + half * LANES;
                    let from = task.column + at.min(task.columns - 1);
                    let there = task.columns.saturating_sub(at).clamp(1, LANES);
                    let places = Clamped { first: from, there };
                    pack::<D>(&Columns { matrix, places }, &panel, half);
                }
                let mut row = 0;
                while row < task.rows {
                    let left = task.rows - row;
                    // Two blocks of like size where one would be small.
                    let block = match left < 2 * ROWS {
                        true if left > ROWS => left.div_ceil(2),
                        _ => left.min(ROWS),
                    };
                    match block {
                        ROWS => rows::<D, ROWS>(task, &panel, row),
                        5 => rows::<D, 5>(task, &panel, row),
                        4 => rows::<D, 4>(task, &panel, row),
                        3 => rows::<D, 3>(task, &panel, row),
                        2 => rows::<D, 2>(task, &panel, row),
                        _ => rows::<D, 1>(task, &panel, row),
                    }
                    row += block;
                }
            }
        }
    }
}

/// Some blocks of [`COLUMNS`] columns, unpacked.
struct Panel {
    /// First, and the one after the last.
    blocks: (usize, usize),
    /// `u32` of a block and column.
    u32s: usize,
    /// `[blocks, u32s, COLUMNS]`
    weights: *mut f32,
    /// `[blocks, COLUMNS]`
    scales: *mut f32,
    /// `[blocks, COLUMNS]`
    shifts: Option<*const f32>,
    /// `[rows, COLUMNS]`: the sums.
    c: *mut f32,
}

/// Unpacks half of a panel's columns.
#[inline(always)]
unsafe fn pack<D: Dot>(columns: &Columns<'_, impl Places>, panel: &Panel, half: usize) {
    let matrix = columns.matrix;
    let (first, last) = panel.blocks;
    // SAFETY: the caller's contract.
    unsafe {
        for quad in (first..last).step_by(QUAD) {
            let blocks = QUAD.min(last - quad);
            let to = (quad - first) * COLUMNS + half * LANES;
            let scales = columns.scales(quad, blocks);
            for (place, scale) in scales.into_iter().enumerate().take(blocks) {
                _mm512_storeu_ps(panel.scales.add(to + place * COLUMNS), scale);
            }
            if let Some(shifts) = panel.shifts {
                // First blocks of panels need not be multiples of a quad.
                let aligned = quad / QUAD * QUAD;
                let all = [aligned, aligned + QUAD].map(|block| match block < matrix.blocks {
                    true => columns.shifts(block, D::ZERO),
                    false => [_mm512_setzero_ps(); QUAD],
                });
                for place in 0..blocks {
                    let at = quad - aligned + place;
                    let to = shifts.cast_mut().add(to + place * COLUMNS);
                    _mm512_storeu_ps(to, all[at / QUAD][at % QUAD]);
                }
            }
        }
        let mut to = panel.weights.add(half * LANES);
        for at in (first * matrix.block_bytes..last * matrix.block_bytes).step_by(UNIT) {
            for stored in columns.unit(at) {
                for w in D::unpack(stored).into_iter().take(D::STEPS) {
                    _mm512_storeu_si512(to.cast(), w);
                    to = to.add(COLUMNS);
                }
            }
        }
    }
}

/// `MR` rows of a panel, from `row` on.
#[inline(always)]
unsafe fn rows<D: Dot, const MR: usize>(task: &Task, panel: &Panel, row: usize) {
    let layout = &task.layout;
    let (first, last) = panel.blocks;
    // SAFETY: the caller's contract.
    unsafe {
        let x = task.x.add(row * task.x_stride);
        let c = panel.c.add(row * task.c_stride);
        for block in first..last {
            let weights = panel.weights.add((block - first) * panel.u32s * COLUMNS);
            let mut sums = [[[_mm512_setzero_si512(); 2]; 2]; MR];
            for (m, sums) in sums.iter_mut().enumerate() {
                let start = start::<D>(x.add(m * task.x_stride), layout, block);
                (sums[0][0], sums[1][0]) = (start, start);
            }
            let mut k = 0;
            while k < panel.u32s {
                for parity in 0..2 {
                    let chain = if D::BYTES { 0 } else { parity };
                    let w = weights.add((k + parity) * COLUMNS);
                    let w = [
                        _mm512_loadu_si512(w.cast()),
                        _mm512_loadu_si512(w.add(LANES).cast()),
                    ];
                    for (m, sums) in sums.iter_mut().enumerate() {
                        for piece in 0..D::PIECES {
                            let at = piece * layout.depth + block * panel.u32s + k + parity;
                            let x = broadcast(x.add(m * task.x_stride + at));
                            for (sums, &w) in sums.iter_mut().zip(&w) {
                                sums[chain] = D::dot(sums[chain], w, x);
                            }
                        }
                    }
                }
                k += 2;
            }
            for (m, sums) in sums.into_iter().enumerate() {
                for (half, sums) in sums.into_iter().enumerate() {
                    let at = (block - first) * COLUMNS + half * LANES;
                    let scale = _mm512_loadu_ps(panel.scales.add(at));
                    let shift = panel.shifts.map(|it| _mm512_loadu_ps(it.add(at)));
                    let c = c.add(m * task.c_stride + half * LANES);
                    let total = match block {
                        0 => _mm512_setzero_ps(),
                        _ => _mm512_loadu_ps(c),
                    };
                    let x = x.add(m * task.x_stride);
                    let total = scaled::<D>(total, sums, (scale, shift), (x, layout, block));
                    _mm512_storeu_ps(c, total);
                }
            }
        }
    }
}
