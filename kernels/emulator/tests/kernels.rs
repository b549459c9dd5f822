//! Kernels that are right give the right results in every order.

#![allow(unsafe_code)]
#![cfg(target_os = "linux")]

mod common;

use common::{Buffer, Device, SUCCESS, call, emulator, in_every_order};
use half::{bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::ffi::c_uint;
use std::ptr::null_mut;

#[repr(C)]
struct Sum {
    input: u64,
    output: u64,
    shuffled: u64,
}

#[test]
fn sums_and_shuffles() {
    let device = Device::new();
    let (blocks, threads) = (5, 256);
    let values: Vec<f32> = (0..blocks * threads).map(|i| (i % 97) as f32).collect();
    let input = Buffer::from(&values);
    in_every_order(|| {
        let output = Buffer::<f32>::new(blocks);
        let shuffled = Buffer::<f32>::new(4 * values.len());
        let params = Sum {
            input: input.address,
            output: output.address,
            shuffled: shuffled.address,
        };
        let shared = 4 * threads as u32;
        let before = emulator().launches("test_sum").unwrap();
        assert_eq!(
            device.launch("test_sum", blocks as u32, threads as u32, shared, &params),
            SUCCESS
        );
        assert_eq!(emulator().launches("test_sum"), Some(before + 1));
        let sums: Vec<f32> = values.chunks(threads).map(|c| c.iter().sum()).collect();
        assert_eq!(output.read(), sums);
        for (at, got) in shuffled.read().chunks(4).enumerate() {
            let thread = at % threads;
            let (warp, lane) = (thread / 32 * 32, thread % 32);
            let expected = [
                warp + (lane ^ 5),
                warp + if lane < 3 { lane } else { lane - 3 },
                warp + (lane + 7) % 32,
                warp + 31 - lane,
            ];
            assert_eq!(got, expected.map(|thread| thread as f32));
        }
    });
}

#[repr(C)]
struct Chain {
    input: u64,
    output: u64,
    flags: u64,
    sums: u64,
    by_index: i32,
}

#[test]
fn blocks_wait_for_blocks() {
    let device = Device::new();
    let (blocks, threads) = (9, 64);
    let values: Vec<f32> = (0..blocks * threads).map(|i| (i % 13) as f32).collect();
    let input = Buffer::from(&values);
    let mut sum = 0.0;
    let expected: Vec<f32> = values
        .iter()
        .map(|v| {
            sum += v;
            sum
        })
        .collect();
    in_every_order(|| {
        let output = Buffer::<f32>::new(values.len());
        let flags = Buffer::from(&vec![0_u32; blocks + 2]);
        let sums = Buffer::<f32>::new(blocks);
        let params = Chain {
            input: input.address,
            output: output.address,
            flags: flags.address,
            sums: sums.address,
            by_index: 0,
        };
        let (blocks, threads) = (blocks as u32, threads as u32);
        assert_eq!(
            device.launch("test_chain", blocks, threads, 8, &params),
            SUCCESS
        );
        assert_eq!(output.read(), expected);
    });
}

#[repr(C)]
struct Geometry {
    output: u64,
    host: u64,
}

#[test]
fn blocks_know_where_they_are() {
    let device = Device::new();
    let (grid, threads) = ((2, 3, 4), 33);
    let mut host: *mut u64 = null_mut();
    let mut mapped = 0;
    assert_eq!(
        call!(cuMemHostAlloc(&mut host => &mut *mut u64, 8 => usize, 2 => c_uint)),
        SUCCESS
    );
    assert_eq!(
        call!(cuMemHostGetDevicePointer_v2(&mut mapped => &mut u64, host => *mut u64, 0 => c_uint)),
        SUCCESS
    );
    in_every_order(|| {
        let output = Buffer::<u32>::new(24 * threads * 6);
        let params = Geometry {
            output: output.address,
            host: mapped,
        };
        // SAFETY: eight bytes of this thread.
        unsafe { host.write(0) };
        let null = null_mut();
        assert_eq!(
            device.launch_on(null, "test_geometry", grid, threads as u32, 0, &params),
            SUCCESS
        );
        for (at, got) in output.read().chunks(6).enumerate() {
            let (block, thread) = ((at / threads) as u32, (at % threads) as u32);
            assert_eq!(got, [block % 2, block / 2 % 3, block / 6, 2, 33, thread]);
        }
        // SAFETY: the eight bytes of `host`, which the kernel has written: the launch is over.
        assert_eq!(unsafe { host.read() }, 0x1234_5678_9abc_def0);
    });
    assert_eq!(call!(cuMemFreeHost(host => *mut u64)), SUCCESS);
}

#[repr(C)]
struct Convert {
    input: u64,
    output: u64,
    count: i32,
}

#[test]
fn conversions_round_like_the_gpu() {
    let device = Device::new();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    // Every f16, what lies half way to the next and beside that; any bits.
    let mut values: Vec<u32> = (0..=u16::MAX)
        .flat_map(|bits| {
            let exact = f16::from_bits(bits).to_f32().to_bits();
            [0, 0xfff, 0x1000, 0x1001].map(|rest| exact.wrapping_add(rest))
        })
        .collect();
    values.extend((0..100_000).map(|_| rng.random::<u32>()));
    // The subnormals of f16, half way and beside.
    for multiple in 0..2050_u32 {
        let half = (multiple as f32 * 2.0_f32.powi(-25)).to_bits();
        values.extend([half.wrapping_sub(1), half, half + 1]);
    }
    let input = Buffer::from(&values);
    let output = Buffer::<u32>::new(3 * values.len());
    let params = Convert {
        input: input.address,
        output: output.address,
        count: values.len() as i32,
    };
    assert_eq!(device.launch("test_convert", 1, 32, 0, &params), SUCCESS);
    for (bits, got) in values.iter().zip(output.read().chunks(3)) {
        let value = f32::from_bits(*bits);
        let (short, half) = if value.is_nan() {
            (0x7fff, 0x7fff)
        } else {
            (
                bf16::from_f32(value).to_bits(),
                f16::from_f32(value).to_bits(),
            )
        };
        let twice = |bits: u16| u32::from(bits) << 16 | u32::from(bits);
        let wide = if value.is_nan() {
            0x7fff_ffff
        } else {
            f16::from_bits(half).to_f32().to_bits()
        };
        assert_eq!(
            got,
            [twice(short), twice(half), wide],
            "{value:e} ({bits:#010x})"
        );
    }
}

#[repr(C)]
struct Arithmetic {
    input: u64,
    output: u64,
    count: i32,
}

#[test]
fn arithmetic() {
    let device = Device::new();
    let inf = f32::INFINITY;
    // x, a, b; 2^x, a / b, 3 a + b
    let cases: [([f32; 3], [f32; 3]); 7] = [
        ([0.0, 1.0, 4.0], [1.0, 0.25, 7.0]),
        ([-126.0, -1.0, 0.0], [f32::MIN_POSITIVE, -inf, -3.0]),
        // No subnormal result.
        ([-126.5, 1.0, 1e38], [0.0, 0.0, 1e38]),
        ([-inf, inf, 1.0], [0.0, inf, inf]),
        ([128.0, 5.0, inf], [inf, 0.0, inf]),
        ([10.5, 1.0, 8e37], [2.0_f32.powf(10.5), 1.0 / 8e37, 8e37]),
        // One rounding: 3 a is not an f32.
        (
            [1.0, 1.0 + f32::EPSILON, -3.0],
            [2.0, -(1.0 + f32::EPSILON) / 3.0, 3.0 * f32::EPSILON],
        ),
    ];
    let input: Vec<f32> = cases.iter().flat_map(|(input, _)| *input).collect();
    let input = Buffer::from(&input);
    let output = Buffer::<f32>::new(3 * cases.len());
    let params = Arithmetic {
        input: input.address,
        output: output.address,
        count: cases.len() as i32,
    };
    assert_eq!(device.launch("test_arithmetic", 1, 32, 0, &params), SUCCESS);
    for ((case, expected), got) in cases.iter().zip(output.read().chunks(3)) {
        assert_eq!(got, expected, "{case:?}");
    }
}

#[repr(C)]
struct Product {
    a: u64,
    b: u64,
    c: u64,
    b_transposed: i32,
}

fn product(name: &str, bits: impl Fn(f32) -> u16, value: impl Fn(u16) -> f32) {
    let device = Device::new();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut random = |count: usize| -> Vec<u16> {
        (0..count)
            .map(|_| bits(rng.random_range(-2.0..2.0)))
            .collect()
    };
    let (a, b, c) = (random(256), random(128), random(128));
    let c: Vec<f32> = c.into_iter().map(&value).collect();
    let transposed: Vec<u16> = (0..128).map(|i| b[i % 16 * 8 + i / 16]).collect();
    let mut expected = c.clone();
    for (i, sum) in expected.iter_mut().enumerate() {
        for k in 0..16 {
            *sum += value(a[i / 8 * 16 + k]) * value(b[k * 8 + i % 8]);
        }
    }
    in_every_order(|| {
        for (b_transposed, b) in [(0, &b), (1, &transposed)] {
            let (a, b, c) = (Buffer::from(&a), Buffer::from(b), Buffer::from(&c));
            let params = Product {
                a: a.address,
                b: b.address,
                c: c.address,
                b_transposed,
            };
            assert_eq!(device.launch(name, 1, 32, 768, &params), SUCCESS);
            assert_eq!(c.read(), expected);
        }
    });
}

#[test]
fn matrix_products() {
    product(
        "test_product_bf16",
        |v| bf16::from_f32(v).to_bits(),
        |b| bf16::from_bits(b).to_f32(),
    );
    product(
        "test_product_f16",
        |v| f16::from_f32(v).to_bits(),
        |b| f16::from_bits(b).to_f32(),
    );
}

#[repr(C)]
struct Copies {
    input: u64,
    output: u64,
    stages: i32,
    length: i32,
    mistake: i32,
}

#[test]
fn asynchronous_copies() {
    let device = Device::new();
    let (threads, stages) = (128, 5);
    let length = 4 * threads * stages - 40;
    let mut values: Vec<f32> = (0..length).map(|i| i as f32).collect();
    let input = Buffer::from(&values);
    values.resize(4 * threads * stages, 0.0);
    let run = |mistake| {
        let output = Buffer::<f32>::new(values.len());
        let params = Copies {
            input: input.address,
            output: output.address,
            stages: stages as i32,
            length: length as i32,
            mistake,
        };
        let shared = 32 * threads as u32;
        assert_eq!(
            device.launch("test_copy", 1, threads as u32, shared, &params),
            SUCCESS
        );
        output.read() == values
    };
    in_every_order(|| assert!(run(0)));
    // A missing barrier shows in some order.
    for mistake in [1, 2] {
        let mut right = 0;
        in_every_order(|| right += u32::from(run(mistake)));
        assert!(right < 32, "mistake {mistake} showed in no order");
    }
}
