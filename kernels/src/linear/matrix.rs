//! The matrix: how its rows are stored, and what they are multiplied as.

use super::LinearParams;
#[cfg(target_arch = "x86_64")]
use super::lanes::{self, Product, RowLayout};
#[cfg(target_arch = "x86_64")]
use super::tiles;
use crate::element::{Element, sealed::Convert};
use crate::isa::Isa;
use crate::simd::Simd;
use half::{bf16, f16};
use ratplus_graphs::ops::{ElementType, Linear, linear::WeightType};

/// What operands are multiplied as. Depths count f32, of which one holds a pair of bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As f32.
    Floats,
    /// As bf16, where both operands are.
    Pairs,
    /// As bf16 by tiles.
    #[cfg(target_arch = "x86_64")]
    Tiles(Unit),
    /// Integers, sixteen columns a vector.
    #[cfg(target_arch = "x86_64")]
    Lanes(Product),
}

/// What multiplies tiles.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// The processor.
    Amx,
    /// Intel's manual in plain loops.
    #[cfg(test)]
    Manual,
}

/// Whether there are dot products of bf16 that are faster than f32's.
fn multiplies_bf16(isa: Isa) -> bool {
    #[cfg(target_arch = "x86_64")]
    return isa == Isa::Avx512Bf16;
    #[cfg(not(target_arch = "x86_64"))]
    return isa != Isa::Portable;
}

/// Rows end in zeros up to a multiple of so many f32, whole vectors in every instruction set.
const PADDING: usize = 32;

impl Form {
    pub fn of<T: Element>(isa: Isa, operator: &Linear) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(product) = lanes::chosen::<T>(isa, operator) {
            return Self::Lanes(product);
        }
        let of_bf16 = WeightType::Float(ElementType::BF16);
        let both = T::TYPE == ElementType::BF16 && operator.weight == of_bf16;
        match both {
            #[cfg(target_arch = "x86_64")]
            true if isa == Isa::Amx => Self::Tiles(Unit::Amx),
            true if multiplies_bf16(isa) => Self::Pairs,
            _ => Self::Floats,
        }
    }

    /// Elements that one f32 of a row holds.
    fn elements(self) -> usize {
        match self {
            Self::Floats => 1,
            #[cfg(target_arch = "x86_64")]
            Self::Lanes(_) => 1,
            _ => 2,
        }
    }

    /// f32 that rows are padded to a multiple of.
    fn padding(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Tiles(_) => tiles::STEP,
            _ => PADDING,
        }
    }

    /// f32 of a row.
    pub fn depth(self, operator: &Linear) -> usize {
        let columns = match operator.weight {
            WeightType::Float(_) => operator.in_features,
            WeightType::Blocks { block_size, .. } => operator.blocks() * block_size,
        };
        columns
            .div_ceil(self.elements())
            .next_multiple_of(self.padding())
    }

    /// The longest stride that any form has.
    pub fn longest_stride(operator: &Linear) -> usize {
        #[cfg(target_arch = "x86_64")]
        let others = Self::Lanes(Product::Bf16 { pieces: 2 }).stride(operator);
        #[cfg(not(target_arch = "x86_64"))]
        let others = 0;
        Self::Floats.stride(operator).max(others)
    }

    /// From row to row: rows a multiple of a page apart would share the places of the first cache.
    pub fn stride(self, operator: &Linear) -> usize {
        let floats = match self {
            #[cfg(target_arch = "x86_64")]
            Self::Lanes(product) => {
                let row = RowLayout::new(product, operator);
                row.floats().next_multiple_of(PADDING)
            }
            _ => self.depth(operator),
        };
        floats + 16
    }

    /// The matrix as it is stored, where that is what is multiplied: its address and row stride.
    pub fn direct<T>(self, params: &LinearParams<'_, T>) -> Option<(*const f32, usize)> {
        let operator = params.operator;
        let columns = operator.in_features;
        let same = match self {
            Self::Floats => operator.weight == WeightType::Float(ElementType::F32),
            Self::Pairs => true,
            #[cfg(target_arch = "x86_64")]
            Self::Tiles(_) | Self::Lanes(_) => false,
        };
        let depth = columns / self.elements();
        (same && depth * self.elements() == columns && depth.is_multiple_of(PADDING))
            .then(|| (params.weight.cast(), depth))
    }
}

/// Whether blocks of four bits are unpacked in the order in which vectors unpack them; else in order.
/// Rows of the input have the same order.
pub(super) fn is_interleaved<S: Simd>(operator: &Linear) -> bool {
    matches!(operator.weight, WeightType::Blocks { bits: 4, block_size }
        if block_size.is_multiple_of(2 * S::LANES))
}

/// Writes `count` f32 of the matrix's row `row` from `first` on, zeros past its end.
///
/// # Safety
/// The row is the matrix's; `first` is a multiple of every block size; `to` has room; the machine has
/// `S`.
#[inline(always)]
pub(super) unsafe fn unpack<S: Simd, T>(
    params: &LinearParams<'_, T>,
    form: Form,
    row: usize,
    first: usize,
    count: usize,
    to: *mut f32,
) {
    let columns = params.operator.in_features;
    // SAFETY: forwarded.
    unsafe {
        match (params.operator.weight, form) {
            (WeightType::Float(_), form) if form != Form::Floats => {
                let from = params.weight.cast::<bf16>().add(row * columns + 2 * first);
                let there = (columns - (2 * first).min(columns)).min(2 * count);
                let to = to.cast::<bf16>();
                std::ptr::copy_nonoverlapping(from, to, there);
                std::ptr::write_bytes(to.add(there), 0, 2 * count - there);
            }
            (WeightType::Float(dtype), _) => {
                let there = (columns - first.min(columns)).min(count);
                let at = row * columns + first;
                match dtype {
                    ElementType::F16 => {
                        widen::<S, f16>(params.weight.cast::<f16>().add(at), there, to)
                    }
                    ElementType::BF16 => {
                        widen::<S, bf16>(params.weight.cast::<bf16>().add(at), there, to);
                    }
                    _ => widen::<S, f32>(params.weight.cast::<f32>().add(at), there, to),
                }
                std::ptr::write_bytes(to.add(there), 0, count - there);
            }
            (WeightType::Blocks { bits, block_size }, _) => {
                let blocks = params.operator.blocks();
                let (start, end) = (first / block_size, (first + count) / block_size);
                let end = end.min(blocks);
                for block in start..end {
                    let at = row * blocks + block;
                    let to = to.add((block - start) * block_size);
                    let scale = *params.scales.add(at);
                    let zero = zero_point(params.zero_points, bits, [row, block, blocks]);
                    let from = params.weight.add(at * block_size * bits as usize / 8);
                    match bits {
                        8 => bytes::<S>(from, block_size, zero, scale, to),
                        _ if block_size.is_multiple_of(2 * S::LANES) => {
                            nibbles::<S>(from, block_size, zero, scale, to);
                        }
                        _ => nibbles_in_order(from, block_size, zero, scale, to),
                    }
                }
                let there = end.saturating_sub(start) * block_size;
                std::ptr::write_bytes(to.add(there), 0, count - there);
            }
        }
    }
}

/// `count` elements as f32.
#[inline(always)]
unsafe fn widen<S: Simd, W: Element>(from: *const W, count: usize, to: *mut f32) {
    let mut k = 0;
    // SAFETY: the caller's contract.
    unsafe {
        while k + S::LANES <= count {
            S::store(to.add(k), W::load::<S>(from.add(k)));
            k += S::LANES;
        }
        if k < count {
            let rest = W::load_partial::<S>(from.add(k), count - k);
            f32::store_partial::<S>(to.add(k), rest, count - k);
        }
    }
}

/// The zero point of a block: the middle of the range where there are none.
#[inline(always)]
pub(super) unsafe fn zero_point(
    points: *const u8,
    bits: u32,
    [row, block, blocks]: [usize; 3],
) -> f32 {
    if points.is_null() {
        return (1u32 << (bits - 1)) as f32;
    }
    // SAFETY: the caller's contract: every row starts a byte.
    unsafe {
        match bits {
            8 => f32::from(*points.add(row * blocks + block)),
            _ => {
                let byte = *points.add(row * blocks.div_ceil(2) + block / 2);
                f32::from(byte >> (4 * (block % 2)) & 15)
            }
        }
    }
}

/// `scale (q - zero)` of a block of bytes.
#[inline(always)]
unsafe fn bytes<S: Simd>(from: *const u8, count: usize, zero: f32, scale: f32, to: *mut f32) {
    // SAFETY: the caller's contract; blocks are whole vectors.
    unsafe {
        let (zero, scale) = (S::splat(zero), S::splat(scale));
        for k in (0..count).step_by(S::LANES) {
            let q = S::load_u8(from.add(k));
            S::store(to.add(k), S::mul(S::sub(q, zero), scale));
        }
    }
}

/// `scale (q - zero)` of a block of four bits: of each vector of bytes the lower bits, then the upper
/// ones.
#[inline(always)]
unsafe fn nibbles<S: Simd>(from: *const u8, count: usize, zero: f32, scale: f32, to: *mut f32) {
    // SAFETY: the caller's contract; blocks are whole pairs of vectors.
    unsafe {
        let (zero, scale) = (S::splat(zero), S::splat(scale));
        for k in (0..count).step_by(2 * S::LANES) {
            let [low, high] = S::load_u4(from.add(k / 2), zero, scale);
            S::store(to.add(k), low);
            S::store(to.add(k + S::LANES), high);
        }
    }
}

/// [`nibbles`] in order.
#[inline(always)]
unsafe fn nibbles_in_order(from: *const u8, count: usize, zero: f32, scale: f32, to: *mut f32) {
    for k in 0..count {
        // SAFETY: the caller's contract.
        unsafe {
            let q = *from.add(k / 2) >> (4 * (k % 2)) & 15;
            *to.add(k) = (f32::from(q) - zero) * scale;
        }
    }
}
