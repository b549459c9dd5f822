//! Tiles of bf16 as Intel's manual describes them, for machines without, and the processor's beside them.

use super::isas;
use crate::Isa;
use crate::simd::amx::{Registers, Tiles};
use half::bf16;

/// Rows of every tile.
const ROWS: usize = 16;

/// The instructions in plain loops; a shape that the processor refuses is a panic.
pub(crate) struct Manual {
    /// f32 in a row of each tile.
    columns: [usize; 8],
    tiles: [[[u32; 16]; ROWS]; 8],
}

impl Registers for Manual {
    unsafe fn new(columns: usize) -> Self {
        assert!((1..=16).contains(&columns));
        Self {
            columns: [columns, columns, columns, columns, 16, 16, columns, columns],
            tiles: [[[0x7fc0_0000; 16]; ROWS]; 8],
        }
    }

    unsafe fn zero<const TILE: usize>(&mut self) {
        self.tiles[TILE] = [[0; 16]; ROWS];
    }

    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize) {
        for (n, row) in self.tiles[TILE].iter_mut().enumerate() {
            *row = [0; 16];
            let bytes = 4 * self.columns[TILE];
            // SAFETY: the caller's contract; `row` has 64 bytes.
            unsafe {
                let from = from.add(n * stride);
                std::ptr::copy_nonoverlapping(from, row.as_mut_ptr().cast(), bytes);
            }
        }
    }

    unsafe fn store<const TILE: usize>(&mut self, to: *mut u8, stride: usize) {
        for (n, row) in self.tiles[TILE].iter().enumerate() {
            let bytes = 4 * self.columns[TILE];
            // SAFETY: the caller's contract.
            unsafe {
                std::ptr::copy_nonoverlapping(row.as_ptr().cast(), to.add(n * stride), bytes);
            }
        }
    }

    unsafe fn dot<const SUM: usize, const LEFT: usize, const RIGHT: usize>(&mut self) {
        assert!(SUM != LEFT && SUM != RIGHT && LEFT != RIGHT);
        assert_eq!(self.columns[SUM], self.columns[RIGHT]);
        assert_eq!(self.columns[LEFT], ROWS);
        let (left, right) = (self.tiles[LEFT], self.tiles[RIGHT]);
        for (row, sums) in left.iter().zip(&mut self.tiles[SUM]) {
            for (n, sum) in sums.iter_mut().take(self.columns[SUM]).enumerate() {
                // The even elements, the odd ones, then both.
                let [mut even, mut odd] = [0.0; 2];
                for (pair, others) in row.iter().zip(&right) {
                    even = multiply_add(low(*pair), low(others[n]), even);
                    odd = multiply_add(high(*pair), high(others[n]), odd);
                }
                let both = flushed(flushed(even) + flushed(odd));
                *sum = flushed(flushed(f32::from_bits(*sum)) + both).to_bits();
            }
        }
    }
}

fn low(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

fn high(pair: u32) -> f32 {
    f32::from_bits(pair & 0xffff_0000)
}

/// What is below the normal numbers counts as zero.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() {
        0f32.copysign(x)
    } else {
        x
    }
}

fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    flushed(flushed(a).mul_add(flushed(b), flushed(c)))
}

/// Two steps of all the instructions, each tile as wide as `columns`: the four sums.
fn product<R: Registers>(columns: usize, left: &[bf16], right: &[bf16]) -> Vec<f32> {
    let mut sums = vec![f32::NAN; 4 * ROWS * 20];
    let row = 4 * columns;
    // SAFETY: two steps of two operands of 16 rows each; sums have rows of 20.
    unsafe {
        let mut tiles = R::new(columns);
        tiles.zero::<0>();
        tiles.zero::<1>();
        tiles.zero::<2>();
        tiles.zero::<3>();
        for step in 0..2 {
            let left = left.as_ptr().add(step * 32).cast::<u8>();
            let right = right.as_ptr().add(step * 16 * 2 * columns).cast::<u8>();
            tiles.load::<4>(left, 128);
            tiles.load::<5>(left.add(ROWS * 128), 128);
            tiles.load::<6>(right, row);
            tiles.load::<7>(right.add(2 * ROWS * row), row);
            tiles.dot::<0, 4, 6>();
            tiles.dot::<1, 4, 7>();
            tiles.dot::<2, 5, 6>();
            tiles.dot::<3, 5, 7>();
            // By way of memory, as sums go from one part of the depth to the next.
            let to: *mut u8 = sums.as_mut_ptr().cast();
            tiles.store::<0>(to, 80);
            tiles.store::<1>(to.add(ROWS * 80), 80);
            tiles.store::<2>(to.add(2 * ROWS * 80), 80);
            tiles.store::<3>(to.add(3 * ROWS * 80), 80);
            tiles.load::<3>(to.add(3 * ROWS * 80), 80);
            tiles.load::<2>(to.add(2 * ROWS * 80), 80);
            tiles.load::<1>(to.add(ROWS * 80), 80);
            tiles.load::<0>(to, 80);
        }
    }
    sums
}

/// Whole numbers, so that sums are exact in any order.
#[test]
fn tiles_multiply_as_the_manual_says() {
    let value = |i: usize| bf16::from_f32((i * 7 % 11) as f32 - 5.0);
    let left: Vec<_> = (0..2 * ROWS * 64).map(value).collect();
    for columns in [1, 2, 4, 8, 16] {
        let right: Vec<_> = (0..4 * ROWS * 2 * columns)
            .map(|i| value(3 * i + 1))
            .collect();
        let mut want = vec![f32::NAN; 4 * ROWS * 20];
        for (tile, sums) in want.chunks_mut(ROWS * 20).enumerate() {
            for (at, sum) in sums.iter_mut().enumerate() {
                let (row, column) = (tile / 2 * ROWS + at / 20, at % 20);
                if column < columns {
                    let product = |k: usize| {
                        let pair = tile % 2 * 2 * ROWS + k / 2;
                        let other = right[pair * 2 * columns + 2 * column + k % 2];
                        left[row * 64 + k].to_f32() * other.to_f32()
                    };
                    *sum = (0..64).map(product).sum();
                }
            }
        }
        let same = |sums: Vec<f32>| {
            let equal = |(a, b): (&f32, &f32)| a == b || a.is_nan() && b.is_nan();
            sums.iter().zip(&want).all(equal)
        };
        assert!(same(product::<Manual>(columns, &left, &right)), "{columns}");
        // What this machine lacks is said there.
        if isas().contains(&Isa::Amx) {
            assert!(same(product::<Tiles>(columns, &left, &right)), "{columns}");
        } else {
            println!(
                "skipped {columns} columns of the processor's tiles: it has none, the manual's ran"
            );
        }
    }
}

#[test]
fn small_numbers_are_flushed() {
    let tiny = bf16::from_bits(1);
    let left = vec![tiny; 2 * ROWS * 64];
    let right = vec![bf16::from_f32(1.0); 4 * ROWS * 2];
    let sums = product::<Manual>(1, &left, &right);
    assert!(sums.iter().step_by(20).all(|sum| *sum == 0.0));
}
