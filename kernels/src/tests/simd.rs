// `kernel!` bodies have an element type, needed or not.
#![allow(clippy::extra_unused_type_parameters)]

use super::isas;
use crate::Isa;
use crate::element::Element;
use crate::isa::kernel;
use crate::simd::{Gemm, Into, Simd, exp2, reduce_add_all};
use half::{bf16, f16};

/// More lanes than any instruction set has, for whole vectors of every length.
const CHUNK: usize = 16;

kernel! {
    fn exp2_of<T>(x: &[f32], out: &mut [f32]) = exp2_body
}

#[inline(always)]
unsafe fn exp2_body<S: Simd, T: Element>(x: &[f32], out: &mut [f32]) {
    assert!(x.len() == out.len() && x.len().is_multiple_of(CHUNK));
    for i in (0..x.len()).step_by(S::LANES) {
        // SAFETY: whole vectors.
        unsafe {
            S::store(
                out.as_mut_ptr().add(i),
                exp2::<S>(S::load(x.as_ptr().add(i))),
            )
        };
    }
}

#[test]
fn exp2_is_accurate_and_vanishes() {
    let mut x: Vec<f32> = (0..160_000)
        .map(|i| i as f32 * -126.0 / 160_000.0)
        .collect();
    x[0] = -0.0;
    for isa in isas() {
        let mut out = vec![0.0; x.len()];
        // SAFETY: this machine has `isa`.
        unsafe { exp2_of::<f32>(isa, &x, &mut out) };
        for (x, out) in x.iter().zip(&out) {
            let want = f64::from(*x).exp2();
            let error = (f64::from(*out) / want - 1.0).abs();
            assert!(error < 1.8e-7, "{isa:?}: 2^{x} is {want}, not {out}");
        }
        let mut special = [-127.0f32; CHUNK];
        special[0] = f32::NEG_INFINITY;
        special[1] = f32::NAN;
        special[2] = f32::MIN;
        special[3] = 0.0;
        let mut out = [1.0; CHUNK];
        // SAFETY: this machine has `isa`.
        unsafe { exp2_of::<f32>(isa, &special, &mut out) };
        assert!(out[1].is_nan(), "{isa:?}");
        assert_eq!(
            (out[0], out[2], out[3], out[4]),
            (0.0, 0.0, 1.0, 0.0),
            "{isa:?}"
        );
    }
}

kernel! {
    fn sums_of<T>(x: &[[f32; CHUNK]], sums: &mut Vec<[f32; 2]>, lanes: &mut usize) = sums_body
}

#[inline(always)]
unsafe fn sums_body<S: Simd, T: Element>(
    x: &[[f32; CHUNK]],
    sums: &mut Vec<[f32; 2]>,
    lanes: &mut usize,
) {
    *lanes = S::LANES;
    // SAFETY: the machine has `S`.
    unsafe {
        sums_together::<S, 1, 1>(x, sums);
        sums_together::<S, 3, 1>(x, sums);
        sums_together::<S, 4, 1>(x, sums);
        sums_together::<S, 6, 1>(x, sums);
        sums_together::<S, 2, 6>(x, sums);
        sums_together::<S, 3, 3>(x, sums);
        sums_together::<S, 4, 4>(x, sums);
    }
}

/// Adds the sums of the first lanes of as many vectors, together and alone.
#[inline(always)]
unsafe fn sums_together<S: Simd, const N: usize, const M: usize>(
    x: &[[f32; CHUNK]],
    sums: &mut Vec<[f32; 2]>,
) {
    assert!(x.len() >= N * M);
    // SAFETY: whole vectors.
    unsafe {
        let mut lanes = [[S::splat(0.0); N]; M];
        for (lanes, x) in lanes.as_flattened_mut().iter_mut().zip(x) {
            *lanes = S::load(x.as_ptr());
        }
        let together = reduce_add_all::<S, N, M>(lanes);
        for (&lanes, &sum) in lanes.as_flattened().iter().zip(together.as_flattened()) {
            let [[alone]] = reduce_add_all::<S, 1, 1>([[lanes]]);
            sums.push([sum, alone]);
        }
    }
}

#[test]
fn sums_of_lanes_do_not_depend_on_how_many_there_are() {
    // Of many sizes, so that no two orders have the same bits.
    let number = |i: usize| {
        let bits = (i as u32 + 1).wrapping_mul(0x9e37_79b9);
        (bits >> 8) as f32 * (f32::from(bits as u8 % 8) - 3.5).exp2()
    };
    let x: Vec<[f32; CHUNK]> = (0..16)
        .map(|n| std::array::from_fn(|i| number(n * CHUNK + i)))
        .collect();
    for isa in isas() {
        let (mut sums, mut lanes) = (vec![], 0);
        // SAFETY: this machine has `isa`.
        unsafe { sums_of::<f32>(isa, &x, &mut sums, &mut lanes) };
        let counts = [1, 3, 4, 6, 12, 9, 16];
        let each = counts.into_iter().flat_map(|count| &x[..count]);
        assert_eq!(sums.len(), counts.iter().sum::<usize>());
        for (x, [together, alone]) in each.zip(sums) {
            let want: f64 = x[..lanes].iter().copied().map(f64::from).sum();
            assert_eq!(together.to_bits(), alone.to_bits(), "{isa:?}: {want}");
            let error = (f64::from(together) / want - 1.0).abs();
            assert!(error < 1e-6, "{isa:?}: {want}, not {together}");
        }
    }
}

kernel! {
    fn narrow<T>(x: &[f32], out: &mut [T], back: &mut [f32]) = narrow_body
}

#[inline(always)]
unsafe fn narrow_body<S: Simd, T: Element>(x: &[f32], out: &mut [T], back: &mut [f32]) {
    assert!(x.len() == out.len() && x.len() == back.len() && x.len().is_multiple_of(CHUNK));
    for i in (0..x.len()).step_by(S::LANES) {
        // SAFETY: whole vectors.
        unsafe {
            T::store::<S>(out.as_mut_ptr().add(i), S::load(x.as_ptr().add(i)));
            S::store(back.as_mut_ptr().add(i), T::load::<S>(out.as_ptr().add(i)));
        }
    }
}

#[test]
fn conversions_are_those_of_the_half_crate() {
    // Every f16 and bf16, the halfway points between them and their neighbours.
    let mut x = vec![];
    for bits in 0..=u16::MAX {
        let (a, b) = (
            f16::from_bits(bits).to_f32(),
            bf16::from_bits(bits).to_f32(),
        );
        let next = f16::from_bits(bits.wrapping_add(1)).to_f32();
        let middle = (a + next) / 2.0;
        let tie = f32::from_bits((u32::from(bits) << 16) | 0x8000);
        x.extend([a, b, middle, middle.next_up(), middle.next_down()]);
        x.extend([tie, tie.next_up(), tie.next_down()]);
    }
    assert!(x.len().is_multiple_of(CHUNK));
    let same = |a: u16, b: u16, nan: bool| a == b || nan;
    for isa in isas() {
        let mut back = vec![0.0; x.len()];
        let mut half = vec![f16::ZERO; x.len()];
        // SAFETY: this machine has `isa`.
        unsafe { narrow(isa, &x, &mut half, &mut back) };
        for ((&x, h), &back) in x.iter().zip(&half).zip(&back) {
            let nan = x.is_nan() && h.is_nan() && back.is_nan();
            assert!(
                same(h.to_bits(), f16::from_f32(x).to_bits(), nan),
                "{isa:?} {x} {h}"
            );
            assert!(nan || back == h.to_f32(), "{isa:?} {x} {back}");
        }
        let mut narrowed = vec![bf16::ZERO; x.len()];
        // SAFETY: this machine has `isa`.
        unsafe { narrow(isa, &x, &mut narrowed, &mut back) };
        for ((&x, h), &back) in x.iter().zip(&narrowed).zip(&back) {
            let nan = x.is_nan() && h.is_nan() && back.is_nan();
            assert!(
                same(h.to_bits(), bf16::from_f32(x).to_bits(), nan),
                "{isa:?} {x} {h}"
            );
            assert!(nan || back == h.to_f32(), "{isa:?} {x} {back}");
        }
    }
}

kernel! {
    fn transpose<T>(x: &[f32; 80], out: &mut [f32; 72]) = transpose_body
}

#[inline(always)]
unsafe fn transpose_body<S: Simd, T: Element>(x: &[f32; 80], out: &mut [f32; 72]) {
    // SAFETY: 8 rows of 10, 8 rows of 9.
    unsafe { S::transpose8(x.as_ptr(), 10, out.as_mut_ptr(), 9) }
}

kernel! {
    fn multiply<T>(gemm: &Gemm) = multiply_body
}

#[inline(always)]
unsafe fn multiply_body<S: Simd, T: Element>(gemm: &Gemm) {
    // SAFETY: forwarded.
    unsafe { S::gemm(gemm) }
}

#[test]
fn blocks_transpose() {
    let x: [f32; 80] = std::array::from_fn(|i| i as f32);
    for isa in isas() {
        let mut out = [0.0; 72];
        // SAFETY: this machine has `isa`.
        unsafe { transpose::<f32>(isa, &x, &mut out) };
        for i in 0..8 {
            for j in 0..8 {
                assert_eq!(out[j * 9 + i], x[i * 10 + j], "{isa:?}");
            }
        }
    }
}

#[test]
fn products_of_every_block_size() {
    for isa in isas() {
        for rows in 1..20 {
            for cols in (16..160).step_by(16) {
                for (depth, scaled) in [(1, false), (5, true), (8, false)] {
                    for transposed in [false, true] {
                        product(isa, [rows, cols, depth], scaled, transposed);
                    }
                }
            }
        }
    }
}

/// One product of small integers, whose sums are exact in any order.
fn product(isa: Isa, [rows, cols, depth]: [usize; 3], scaled: bool, transposed: bool) {
    let value = |i: usize| (i * 7 % 11) as f32 - 5.0;
    let (outer, inner) = if transposed {
        (depth, rows)
    } else {
        (rows, depth)
    };
    let a: Vec<f32> = (0..outer * (inner + 1)).map(value).collect();
    let b: Vec<f32> = (0..depth * (cols + 3)).map(value).collect();
    let before: Vec<f32> = (0..rows * (cols + 2)).map(value).collect();
    let scale: Vec<f32> = (0..rows).map(value).collect();
    let mut c = before.clone();
    // SAFETY: this machine has `isa`; the buffers have these sizes, and columns are a multiple of
    // every vector.
    unsafe {
        let gemm = Gemm {
            rows,
            vectors: cols / lanes(isa),
            depth,
            a: a.as_ptr(),
            a_stride: inner + 1,
            transposed,
            b: b.as_ptr(),
            b_stride: cols + 3,
            c: c.as_mut_ptr(),
            c_stride: cols + 2,
            into: if scaled {
                Into::Scaled(scale.as_ptr())
            } else {
                Into::Zeros
            },
        };
        multiply::<f32>(isa, &gemm);
    }
    let factor = |i: usize, k: usize| {
        let (outer, inner_at) = if transposed { (k, i) } else { (i, k) };
        a[outer * (inner + 1) + inner_at]
    };
    for i in 0..rows {
        for j in 0..cols + 2 {
            let old = before[i * (cols + 2) + j];
            let sum: f32 = (0..depth)
                .map(|k| factor(i, k) * b[(k * (cols + 3) + j).min(b.len() - 1)])
                .sum();
            let want = match (j < cols, scaled) {
                (false, _) => old,
                (true, true) => scale[i] * old + sum,
                (true, false) => sum,
            };
            assert_eq!(
                c[i * (cols + 2) + j],
                want,
                "{isa:?} {rows} {cols} {depth} {transposed}"
            );
        }
    }
}

/// f32 in a vector of `isa`.
fn lanes(isa: Isa) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 => crate::simd::Avx512::LANES,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => crate::simd::Avx2::LANES,
        Isa::Portable => crate::simd::Portable::LANES,
    }
}
