//! Every committed input, every seed and thousands of mutations through every target.

use ratplus_fuzz::{Mutator, TARGETS, Target};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Mutations a target; those with slower readers have fewer.
fn mutations(name: &str) -> usize {
    match name {
        "index" | "config" | "tokenizer" => 4_000,
        _ => 20_000,
    }
}

fn run(target: &Target, input: &[u8], what: &str) {
    let result = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    assert!(
        result.is_ok(),
        "{}: {what}, {} bytes: {}",
        target.name,
        input.len(),
        input.escape_ascii()
    );
}

fn replay(name: &str) {
    let target = Target::find(name).expect("a target of that name");
    let committed = target.committed();
    let mut inputs: Vec<Vec<u8>> = (target.seeds)();
    let seeds = inputs.len();
    for (index, seed) in inputs.iter().enumerate() {
        run(&target, seed, &format!("seed {index}"));
    }
    for (path, bytes) in &committed {
        run(&target, bytes, &path.display().to_string());
        inputs.push(bytes.clone());
    }
    let mut mutator = Mutator::new(6, target.words);
    for count in 0..mutations(name) {
        let input = &inputs[count % inputs.len()];
        let other = &inputs[(count / inputs.len()) % inputs.len()];
        let input = mutator.mutate(input, other);
        run(&target, &input, &format!("mutation {count}"));
    }
    println!(
        "{name}: {seeds} seeds, {} committed inputs, {} mutations",
        committed.len(),
        mutations(name)
    );
}

macro_rules! replays {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn every_target_is_replayed() {
            let replayed = [$(stringify!($name)),*];
            assert_eq!(TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), replayed);
        }
    };
}

replays!(
    pth,
    pickle,
    zip,
    safetensors,
    index,
    config,
    manifest,
    onnx,
    tokenizer,
    golden,
    request
);
