//! A damaged package: every flipped bit, every length.

use crate::common::{Options, spec, write_spec};
use crate::hostile::refused;
use ratplus_graphs::model::storage;
use ratplus_graphs::package::{Fallback, MANIFEST_FILE, Manifest, WEIGHTS_FILE};
use ratplus_graphs::pattern::Pattern;
use ratplus_graphs::spec::{LayerPatterns, ModelSpec};
use ratplus_runtime::package::Package;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// As few bytes as a package can have.
fn tiny() -> ModelSpec {
    ModelSpec {
        vocab_size: 3,
        d_model: 2,
        num_layers: 1,
        d_head: 2,
        d_ffn: 2,
        recurrence: false,
        patterns: vec![LayerPatterns::Uniform(Pattern::DENSE)],
        ..spec()
    }
}

/// Copies of the tiny package, one a thread, and what was done to them.
fn damage(file: &str, manifest: &Manifest, from: &Path) -> usize {
    let good = fs::read(from.join(file)).unwrap();
    let bits = bits(file, manifest, good.len());
    let workers = 2;
    let one = |worker: usize| {
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        for name in manifest
            .files
            .keys()
            .map(String::as_str)
            .chain([MANIFEST_FILE])
        {
            fs::copy(from.join(name), dir.path().join(name)).unwrap();
        }
        let path = dir.path().join(file);
        let handle = fs::OpenOptions::new().write(true).open(&path).unwrap();
        let mut cases = 0;
        for &(at, bit) in bits.iter().skip(worker).step_by(workers) {
            handle
                .write_all_at(&[good[at] ^ 1 << bit], at as u64)
                .unwrap();
            let error = refused(dir.path());
            assert!(
                error.to_string().contains(file),
                "byte {at}, bit {bit}: {error}"
            );
            handle.write_all_at(&good[at..=at], at as u64).unwrap();
            cases += 1;
        }
        let coarse = if file == WEIGHTS_FILE { 16 } else { 1 };
        let lengths = (0..good.len()).step_by(coarse).rev();
        for len in lengths.skip(worker).step_by(workers) {
            handle.set_len(len as u64).unwrap();
            let error = refused(dir.path());
            assert!(error.to_string().contains(file), "cut to {len}: {error}");
            cases += 1;
        }
        fs::write(&path, &good).unwrap();
        Package::open(dir.path()).unwrap();
        cases
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|worker| scope.spawn(move || one(worker)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    })
}

/// Every bit of a file; of the weights' padding, a page after every tensor, one bit in every
/// eighth byte.
fn bits(file: &str, manifest: &Manifest, len: usize) -> Vec<(usize, u8)> {
    let (tensors, _) = storage(&manifest.model, &manifest.shape(), &manifest.precision);
    let held = |at: usize| {
        tensors.iter().any(|stored| {
            let start = stored.offset as usize;
            (start..start + stored.tensor.bytes()).contains(&at)
        })
    };
    (0..len)
        .flat_map(|at| {
            let bits = if file != WEIGHTS_FILE || held(at) {
                0..8
            } else if at % 8 == 0 {
                let bit = (at / 8 % 8) as u8;
                bit..bit + 1
            } else {
                0..0
            };
            bits.map(move |bit| (at, bit))
        })
        .collect()
}

#[test]
fn no_flipped_bit_and_no_truncation_of_a_package_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        fallback: Fallback::None,
        batch: 1,
        lengths: &[1],
        ..Options::default()
    };
    let manifest = write_spec(dir.path(), options, 1, tiny(), 2);
    Package::open(dir.path()).unwrap();
    let mut cases = 0;
    for file in manifest
        .files
        .keys()
        .map(String::as_str)
        .chain([MANIFEST_FILE])
    {
        let count = damage(file, &manifest, dir.path());
        println!("{file}: {count} damaged copies, all refused");
        cases += count;
    }
    println!("damaged packages: {cases}, 0 accepted");
    assert!(cases >= 36_000, "{cases}");
}
