//! Candidates in order.

/// So many candidates and fewer are compared with one another.
const FEW: usize = 512;

/// Digits of a radix sort, and how many there are of each.
const DIGITS: u32 = 3;
const DIGIT_BITS: u32 = 11;

/// A token and its logit.
type Candidate = (f32, u32);

/// Leaves the `count` candidates with the largest logits, largest first and equal ones by token; they come by
/// token. `scratch` is kept from one call to the next, so that nothing is allocated.
pub(super) fn keep_largest(
    candidates: &mut Vec<Candidate>,
    scratch: &mut Vec<Candidate>,
    count: usize,
) {
    if count.min(candidates.len()) < FEW {
        let order = |a: &Candidate, b: &Candidate| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if count < candidates.len() {
            candidates.select_nth_unstable_by(count.saturating_sub(1), order);
            candidates.truncate(count);
        }
        candidates.sort_unstable_by(order);
        return;
    }
    // Stable, so that equal ones stay by token.
    let digit = |logit: f32, place: u32| {
        let mask = (1 << DIGIT_BITS) - 1;
        (descending(logit) >> (place * DIGIT_BITS) & mask) as usize
    };
    let mut places = [[0u32; 1 << DIGIT_BITS]; DIGITS as usize];
    for &(logit, _) in candidates.iter() {
        for (place, counts) in (0..).zip(&mut places) {
            counts[digit(logit, place)] += 1;
        }
    }
    scratch.resize(candidates.len(), (0.0, 0));
    for (place, counts) in (0..).zip(&mut places) {
        let mut next = 0;
        for count in counts.iter_mut() {
            (*count, next) = (next, next + *count);
        }
        for &candidate in candidates.iter() {
            let at = &mut counts[digit(candidate.0, place)];
            scratch[*at as usize] = candidate;
            *at += 1;
        }
        std::mem::swap(candidates, scratch);
    }
    candidates.truncate(count);
}

/// A number that is smaller where `logit` is larger, as `f32::total_cmp` orders.
fn descending(logit: f32) -> u32 {
    let bits = logit.to_bits();
    // Of two negative numbers, the one with the larger magnitude is smaller.
    if logit.is_sign_negative() {
        bits
    } else {
        !bits & (u32::MAX >> 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// As comparing all of them orders them, in lists of both kinds.
        #[test]
        fn the_largest_come_first(
            few in prop::collection::vec(prop_oneof![
                -5i8..5, Just(0), Just(i8::MIN), Just(i8::MAX),
            ], 1..60),
            repeat in 1usize..40, count in prop_oneof![0usize..100, 400usize..3000],
            scale in prop_oneof![Just(0.25f32), Just(f32::MIN_POSITIVE), Just(f32::MAX / 128.0), Just(-0.0)],
        ) {
            let logits = (0..repeat).flat_map(|_| &few).map(|&value| f32::from(value) * scale);
            let mut candidates: Vec<_> = logits.zip(0u32..).collect();
            let mut expected = candidates.clone();
            expected.sort_by(|a, b| b.0.total_cmp(&a.0));
            expected.truncate(count);
            let mut scratch = vec![(7.0, 7)];
            keep_largest(&mut candidates, &mut scratch, count);
            let bits = |list: Vec<Candidate>| -> Vec<(u32, u32)> {
                list.into_iter().map(|(logit, token)| (logit.to_bits(), token)).collect()
            };
            prop_assert_eq!(bits(candidates), bits(expected));
        }
    }
}
