//! Deterministic mutations, for tests that have no coverage to follow.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Changes inputs at random; the same seed makes the same changes.
pub struct Mutator {
    rng: ChaCha8Rng,
    words: &'static [&'static [u8]],
}

impl Mutator {
    /// Mutations that also write `words`.
    pub fn new(seed: u64, words: &'static [&'static [u8]]) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            words,
        }
    }

    /// A changed copy of `input`; `other` is what pieces are taken from.
    pub fn mutate(&mut self, input: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..self.rng.random_range(1..=4) {
            self.step(&mut bytes, other);
        }
        bytes
    }

    fn step(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let at = self.rng.random_range(0..=bytes.len());
        let len = self.rng.random_range(0..=16.min(bytes.len() - at));
        match self.rng.random_range(0..8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.rng.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = self.rng.random(),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..at + len)),
            4 => {
                let piece = bytes[at..at + len].to_vec();
                bytes.splice(at..at, piece);
            }
            5 if !self.words.is_empty() => {
                let word = self.words[self.rng.random_range(0..self.words.len())];
                bytes.splice(at..at + len, word.iter().copied());
            }
            // A length or an offset: small, or at an edge.
            6 if at + 8 <= bytes.len() => {
                let edges = [0, 1, 0xff, 0xffff_ffff, u64::MAX, 1 << 63, 1 << 31];
                let value = edges[self.rng.random_range(0..edges.len())];
                let width = [1, 2, 4, 8][self.rng.random_range(0..4)];
                bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
            _ if !other.is_empty() => {
                let from = self.rng.random_range(0..other.len());
                let len = self.rng.random_range(0..=64.min(other.len() - from));
                let until = bytes.len().min(at + len);
                bytes.splice(at..until, other[from..from + len].iter().copied());
            }
            _ => {}
        }
    }
}
