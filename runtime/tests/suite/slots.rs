//! What a slot meets is its own matter: damaged rows, other sequences, and a thread that flushes
//! subnormals.

use crate::common::{Fixture, Options, VOCAB, backends, open, tokens, write_package};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ratplus_graphs::model::Weight;
use ratplus_graphs::package::{Fallback, WEIGHTS_FILE};
use ratplus_graphs::tolerance::F32_LOGIT;
use ratplus_runtime::backend::{BackendKind, Session};
use ratplus_runtime::package::{OpenOptions, Package};
use ratplus_tests::mxcsr::Control;
use ratplus_tests::times;

const BATCH: usize = 3;

/// What the embedding rows of the vocabulary's last tokens are filled with.
const ROWS: [f32; 4] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40];

/// Tokens whose rows hold nothing out of the ordinary.
const CLEAN: u32 = (VOCAB - ROWS.len()) as u32;

/// Tokens that are no numbers.
const POISON: [u32; 3] = [CLEAN, CLEAN + 1, CLEAN + 2];

/// The token whose row is subnormal.
const TINY: u32 = CLEAN + 3;

fn package() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        batch: BATCH,
        chooses: true,
        ..Options::default()
    };
    let manifest = write_package(dir.path(), options, 1);
    // The embedding comes first in the file.
    assert_eq!(Weight::all(&manifest.model)[0], Weight::Embedding);
    let path = dir.path().join(WEIGHTS_FILE);
    let mut weights = std::fs::read(&path).unwrap();
    let row = manifest.model.d_model * 4;
    for (value, token) in ROWS.into_iter().zip(CLEAN..) {
        let bytes: Vec<u8> = value.to_le_bytes().repeat(manifest.model.d_model);
        weights[token as usize * row..][..row].copy_from_slice(&bytes);
    }
    std::fs::write(path, weights).unwrap();
    let mut unchecked = OpenOptions::default();
    unchecked.skip_checksum = true;
    let package = Package::open_with(dir.path(), &unchecked).unwrap();
    Fixture::new(dir, package)
}

fn clean_tokens(seed: u64, count: usize) -> Vec<u32> {
    tokens(seed, count)
        .into_iter()
        .map(|token| token % CLEAN)
        .collect()
}

/// Bits of a slot's logits, or the step and slot that have none.
type SlotResult = Result<Vec<u32>, (usize, usize)>;

/// Starts `slots` over and feeds one sequence to each, chunk by chunk: every slot's result after every
/// chunk, `None` where it idles.
fn feed(
    session: &mut Session,
    sequences: &[Vec<u32>; BATCH],
    chunks: &[(usize, [usize; BATCH])],
) -> Vec<[Option<SlotResult>; BATCH]> {
    (0..BATCH).for_each(|slot| session.reset(slot));
    let mut results = Vec::new();
    for &(engine_len, counts) in chunks {
        let mut ids = vec![0; BATCH * engine_len];
        for slot in 0..BATCH {
            let next = &sequences[slot][session.past_length(slot)..][..counts[slot]];
            for (id, &token) in ids[slot * engine_len..].iter_mut().zip(next) {
                *id = token.into();
            }
        }
        let step = session
            .run(engine_len, &ids, &counts.map(|count| count as i64))
            .unwrap();
        results.push(std::array::from_fn(|slot| {
            let result = step.checked_logits(slot)?;
            let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect();
            Some(result.map(bits).map_err(|error| {
                let text = error.to_string();
                let place = format!("non-finite logits at step {}, slot {slot}: ", error.step);
                assert!(text.starts_with(&place), "{text}");
                (error.step, error.slot)
            }))
        }));
    }
    results
}

const CHUNKS: [(usize, [usize; BATCH]); 4] =
    [(16, [16, 11, 13]), (4, [4, 0, 2]), (1, [1; 3]), (1, [1; 3])];

#[test]
fn a_damaged_sequence_fails_alone_and_its_slot_is_as_good_as_new() {
    let fixture = package();
    let sequences: [_; BATCH] = std::array::from_fn(|slot| clean_tokens(slot as u64, 22));
    for kind in backends(Fallback::Function) {
        let clean = feed(&mut open(&fixture, kind), &sequences, &CHUNKS);
        assert!(clean.iter().flatten().flatten().all(Result::is_ok));
        let mut session = open(&fixture, kind);
        for own in 0..BATCH {
            for (token, chunk) in POISON.into_iter().zip([0, 1, 2]) {
                // The first token of a chunk; the second slot idles in one.
                let before = |chunk: usize| -> usize {
                    CHUNKS[..chunk].iter().map(|(_, counts)| counts[own]).sum()
                };
                let mut damaged = sequences.clone();
                damaged[own][before(chunk)] = token;
                let results = feed(&mut session, &damaged, &CHUNKS);
                for (index, (found, clean)) in results.iter().zip(&clean).enumerate() {
                    for slot in 0..BATCH {
                        let place = format!("{kind} chunk {index} slot {slot}, {token} in {own}");
                        let failed = before(index + 1) > before(chunk);
                        if slot == own && failed && clean[slot].is_some() {
                            let step = before(index + 1);
                            assert_eq!(found[slot], Some(Err((step, slot))), "{place}");
                        } else {
                            assert_eq!(found[slot], clean[slot], "{place}");
                        }
                    }
                }
                // What the slot left behind is nobody's.
                let again = feed(&mut session, &sequences, &CHUNKS);
                assert_eq!(again, clean, "{kind}: after {token} in slot {own}");
            }
        }
    }
}

#[test]
fn fillings_of_the_other_slots_change_no_byte() {
    let fixture = package();
    let own_tokens = clean_tokens(9, 8);
    for kind in backends(Fallback::Function) {
        // The kernels' own tests have a thousand for each instruction set.
        let trials = match kind {
            BackendKind::OrtCpu => times(1000),
            _ => 60,
        };
        let mut session = open(&fixture, kind);
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut expected: [Option<Vec<SlotResult>>; BATCH] = Default::default();
        for trial in 0..trials {
            let own = trial % BATCH;
            let mut sequences: [Vec<u32>; BATCH] = std::array::from_fn(|_| {
                let count = 22;
                (0..count).map(|_| rng.random_range(0..CLEAN)).collect()
            });
            // Each other slot in turn meets what is no number.
            let poisoned = (own + 1 + trial / BATCH % (BATCH - 1)) % BATCH;
            if trial % 4 == 3 {
                let at = rng.random_range(0..6);
                sequences[poisoned][at] = POISON[trial / 4 % POISON.len()];
            }
            sequences[own] = own_tokens.clone();
            let mut counts = |most: usize, own_count: usize| -> [usize; BATCH] {
                std::array::from_fn(|slot| match slot == own {
                    true => own_count,
                    false => rng.random_range(0..=most),
                })
            };
            let chunks = [(4, counts(4, 3)), (1, counts(1, 1)), (4, counts(4, 4))];
            let results: Vec<SlotResult> = feed(&mut session, &sequences, &chunks)
                .into_iter()
                .map(|mut slots| slots[own].take().unwrap())
                .collect();
            assert!(results.iter().all(Result::is_ok), "{kind} {trial}");
            let first = expected[own].get_or_insert_with(|| results.clone());
            assert_eq!(first, &results, "{kind}: filling {trial} of slot {own}");
        }
        println!("{kind}: {trials} fillings");
        assert!(expected.iter().all(Option::is_some));
    }
}

#[test]
fn a_thread_that_flushes_subnormals_gives_the_same_and_goes_on_flushing() {
    let fixture = package();
    let mut sequences: [_; BATCH] = std::array::from_fn(|slot| clean_tokens(slot as u64, 22));
    for sequence in &mut sequences {
        sequence[2] = TINY;
        sequence[17] = TINY;
    }
    for kind in backends(Fallback::Function) {
        // One thread: the one that calls.
        let mut session = open(&fixture, kind);
        let [exact, flushed] = [Control::Exact, Control::Flushing].map(|control| {
            let mut logits = Vec::new();
            if Control::ALL.contains(&control) {
                control.run(|| {
                    for result in feed(&mut session, &sequences, &CHUNKS).iter().flatten() {
                        let row = result.as_ref().map(|row| row.as_ref().unwrap());
                        logits.extend(row.into_iter().flatten().copied().map(f32::from_bits));
                    }
                });
            }
            logits
        });
        if flushed.is_empty() {
            println!("SKIPPED {kind} with subnormals flushed: this processor has no MXCSR");
            continue;
        }
        let largest = exact.iter().fold(0f32, |most, x| most.max(x.abs()));
        let limit = F32_LOGIT * f64::from(largest);
        for (a, b) in exact.iter().zip(&flushed) {
            assert!(f64::from((a - b).abs()) <= limit, "{kind}: {a} {b}");
        }
        println!("{kind}: {} logits with subnormals flushed", exact.len());
        assert_eq!(exact.len(), 11 * VOCAB);
    }
}
