//! The CUDA scan on the emulator: every method over the property cases of the CPU kernels.

use super::machine::Machine;
use super::scan::replay;
use crate::cuda::ScanMethod;
use half::{bf16, f16};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn any_chunking_agrees_with_the_model(
        seed: u64, batch in 1usize..4, channels in 1usize..150, limit in 0.1..60f64,
    ) {
        replay::<f32>(Machine::GPU, seed, batch, channels, 4, 1..40, limit);
        replay::<f16>(Machine::GPU, seed, batch, channels, 4, 1..40, limit);
        replay::<bf16>(Machine::GPU, seed, batch, channels, 4, 1..40, limit);
    }

    #[test]
    fn tiles_agree_with_the_model(
        seed: u64, batch in 1usize..3, lanes in 1usize..20, limit in 0.1..60f64, most in 2usize..1500,
    ) {
        for method in [ScanMethod::ThreeLaunches, ScanMethod::SinglePass, ScanMethod::Serial] {
            let machine = Machine::scanning(method);
            replay::<f32>(machine, seed, batch, 4 * lanes, 2, 1..most, limit);
            replay::<bf16>(machine, seed, batch, 8 * lanes, 2, 1..most, limit);
        }
    }
}

#[test]
fn long_chains_of_tiles() {
    // 21 tiles in 3 groups, and a chunk that ends at a group's end.
    for (tokens, channels) in [(2600, 72), (2048, 64)] {
        for method in [ScanMethod::ThreeLaunches, ScanMethod::SinglePass] {
            let machine = Machine::scanning(method);
            replay::<bf16>(machine, 1, 1, channels, 1, tokens..tokens + 1, 4.0);
            replay::<f16>(machine, 2, 2, channels, 1, tokens..tokens + 1, 0.5);
        }
    }
}
