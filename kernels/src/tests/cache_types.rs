//! Caches of another type than the activations.

use super::attention::pattern;
use super::{Real, assert_bits, isas, random, rng};
use crate::attention::AttentionParams;
use crate::{Isa, Serial};
use half::{bf16, f16};
use ratplus_graphs::cache::CacheLayout;
use ratplus_graphs::pattern::Pattern;

/// With `T` and `C` chosen apart: an f32 call whose keys and values were rounded to `C` before gives
/// the same bits, where rotations are by nothing.
fn a_cache_of_its_own<T: Real, C: Real>(isa: Isa) {
    let (tokens, max, dim) = (150, 160, 34);
    let patterns = vec![
        Pattern::DENSE,
        pattern(16, 0, 4),
        pattern(4, 70, 2),
        pattern(-1, 5, 3),
    ];
    let layout = CacheLayout::new(&patterns, max);
    let (width, rows) = (patterns.len() * dim, layout.rows() * dim);
    let tables = [vec![1f32; max * dim / 2], vec![0f32; max * dim / 2]];
    let mut rng = rng(12);
    let inputs: [Vec<T>; 3] = [(); 3].map(|()| random(&mut rng, tokens * width, 2.0));
    let rounded = |x: &T| C::of(x.real()).real() as f32;
    let wide = [
        inputs[0].iter().map(|x| x.real() as f32).collect(),
        inputs[1].iter().map(rounded).collect::<Vec<_>>(),
        inputs[2].iter().map(rounded).collect(),
    ];
    for length in [150, 70, 9, 3, 1] {
        let mut narrow_cache = [(); 2].map(|()| vec![C::poison(); rows]);
        let mut wide_cache = [(); 2].map(|()| vec![f32::poison(); rows]);
        let mut outputs = (
            vec![T::poison(); tokens * width],
            vec![f32::NAN; tokens * width],
        );
        for first in (0..tokens).step_by(length) {
            let chunk = first * width..(first + length).min(tokens) * width;
            attend_plainly(
                isa,
                (&layout, &tables, first),
                inputs.each_ref().map(|x| &x[chunk.clone()]),
                &mut narrow_cache,
                &mut outputs.0[chunk.clone()],
            );
            attend_plainly(
                isa,
                (&layout, &tables, first),
                wide.each_ref().map(|x| &x[chunk.clone()]),
                &mut wide_cache,
                &mut outputs.1[chunk],
            );
        }
        let place = format!("{isa:?} {} {} chunks of {length}", T::TYPE, C::TYPE);
        let expected: Vec<T> = outputs.1.iter().map(|&x| T::of(x.into())).collect();
        assert_bits(&outputs.0, &expected, &place);
        for (narrow, wide) in narrow_cache.iter().zip(&wide_cache) {
            let written = narrow.iter().zip(wide).filter(|(_, wide)| !wide.is_nan());
            let (narrow, wide): (Vec<_>, Vec<_>) =
                written.map(|(&c, &x)| (c, C::of(x.into()))).unzip();
            assert_bits(&narrow, &wide, &place);
            assert!(!narrow.is_empty());
        }
    }
}

/// One chunk of one sequence, its cache in place.
fn attend_plainly<T: Real, C: Real>(
    isa: Isa,
    (layout, tables, past): (&CacheLayout, &[Vec<f32>; 2], usize),
    [query, key, value]: [&[T]; 3],
    cache: &mut [Vec<C>; 2],
    output: &mut [T],
) {
    let head_dim = cache[0].len() / layout.rows();
    let seq_len = query.len() / (layout.heads().len() * head_dim);
    let [cache_key, cache_value] = cache;
    let params = AttentionParams {
        layout,
        num_heads: layout.heads().len(),
        scale: 0.3,
        batch: 1,
        seq_len,
        head_dim,
        query: query.as_ptr(),
        key: key.as_ptr(),
        value: value.as_ptr(),
        past_key: cache_key.as_mut_ptr().cast_const(),
        past_value: cache_value.as_mut_ptr().cast_const(),
        past_length: &(past as i64),
        seq_length: &(seq_len as i64),
        cos: tables[0].as_ptr(),
        sin: tables[1].as_ptr(),
        output: output.as_mut_ptr(),
        present_key: cache_key.as_mut_ptr(),
        present_value: cache_value.as_mut_ptr(),
        workspace: std::ptr::null_mut(),
    };
    // SAFETY: every buffer has its tensor's size, and this machine has `isa`.
    unsafe { crate::dilated_attention_on(isa, &params, &Serial) }.unwrap();
}

#[test]
fn the_cache_has_a_type_of_its_own() {
    for isa in isas() {
        a_cache_of_its_own::<f32, bf16>(isa);
        a_cache_of_its_own::<f32, f16>(isa);
        a_cache_of_its_own::<bf16, f32>(isa);
        a_cache_of_its_own::<bf16, f16>(isa);
        a_cache_of_its_own::<f16, f32>(isa);
        a_cache_of_its_own::<f16, bf16>(isa);
    }
}
