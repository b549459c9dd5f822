//! No input takes memory that its length does not justify.

use ratplus_exporter::checkpoint::testing::allocation::{Counting, peak};
use ratplus_fuzz::{Mutator, TARGETS, Target};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that a target may take whatever its input, and for each byte of it. Several times what
/// was seen: libraries change.
fn bound(target: &Target, len: usize) -> usize {
    let (fixed, each) = match target.name {
        // The archive around the pickle, and elements in the types they are compared in.
        "pth" | "pickle" | "safetensors" => (1 << 20, 400),
        // Shards and weights beside the file.
        "index" | "config" => (1 << 20, 400),
        // Regular expressions are compiled into tables of some megabytes; a text may grow.
        "tokenizer" => (64 << 20, 4000),
        _ => (256 << 10, 200),
    };
    fixed + each * len
}

#[test]
fn memory_is_in_proportion_to_the_input() {
    for target in TARGETS {
        let mut inputs: Vec<Vec<u8>> = (target.seeds)();
        inputs.extend(target.committed().into_iter().map(|(_, bytes)| bytes));
        // What is made once, before it is counted.
        inputs.iter().for_each(|input| (target.run)(input));
        let mut mutator = Mutator::new(7, target.words);
        for count in 0..1000 {
            let input = &inputs[count % inputs.len()];
            inputs.push(mutator.mutate(input, &inputs[count * 7 % inputs.len()]));
        }
        let mut largest = (0, 0);
        for input in &inputs {
            let ((), taken) = peak(|| (target.run)(input));
            assert!(
                taken <= bound(target, input.len()),
                "{}: {taken} bytes of memory for {}: {}",
                target.name,
                input.len(),
                input.escape_ascii()
            );
            largest = largest.max((taken, input.len()));
        }
        println!(
            "{}: {} inputs, at most {} bytes of memory (for {} bytes)",
            target.name,
            inputs.len(),
            largest.0,
            largest.1
        );
    }
}
