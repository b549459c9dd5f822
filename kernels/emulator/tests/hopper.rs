//! What only sm_90a has.

#![allow(unsafe_code)]
#![cfg(target_os = "linux")]

mod common;

use common::{Buffer, Device, LAUNCH_FAILED, SUCCESS, call, emulator, in_every_order};
use half::{bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::ffi::{c_int, c_void};

#[repr(C)]
struct Warpgroup {
    a: u64,
    b: u64,
    v: u64,
    output: u64,
    mistake: i32,
}

const WIDTH: usize = 128;

fn products(name: &str, bits: impl Fn(f32) -> u16, value: impl Fn(u16) -> f32) {
    let device = Device::new();
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut random = |count: usize| -> Vec<u16> {
        (0..count)
            .map(|_| bits(rng.random_range(-2.0..2.0)))
            .collect()
    };
    let (a, b, v) = (random(64 * 64), random(WIDTH * 64), random(64 * WIDTH));
    let mut expected = vec![0.0; 2 * 64 * WIDTH];
    let (first, second) = expected.split_at_mut(64 * WIDTH);
    for row in 0..64 {
        for column in 0..WIDTH {
            for k in 0..64 {
                let left = value(a[row * 64 + k]);
                first[row * WIDTH + column] += left * value(b[column * 64 + k]);
                second[row * WIDTH + column] += left * value(v[k * WIDTH + column]);
            }
        }
    }
    let shared = (64 + WIDTH + 2 * 64) * 128;
    let function = device.function(name).unwrap();
    assert_eq!(
        call!(cuFuncSetAttribute(
            function => *mut c_void,
            8 => c_int,
            shared as c_int => c_int,
        )),
        SUCCESS
    );
    let (a, b, v) = (Buffer::from(&a), Buffer::from(&b), Buffer::from(&v));
    let output = Buffer::<f32>::new(expected.len());
    let run = |mistake| {
        let params = Warpgroup {
            a: a.address,
            b: b.address,
            v: v.address,
            output: output.address,
            mistake,
        };
        device.launch(name, 1, 128, shared as u32, &params)
    };
    in_every_order(|| {
        assert_eq!(run(0), SUCCESS);
        assert_eq!(output.read(), expected);
        assert_eq!(run(1), LAUNCH_FAILED);
        assert!(
            emulator()
                .last_error()
                .contains("before it waited for its products")
        );
        // What was not waited for is not there.
        assert!(output.read()[64 * WIDTH..].iter().any(|x| x.is_nan()));
    });
}

#[test]
fn warpgroup_products() {
    products(
        "test_warpgroup_bf16",
        |v| bf16::from_f32(v).to_bits(),
        |b| bf16::from_bits(b).to_f32(),
    );
    products(
        "test_warpgroup_f16",
        |v| f16::from_f32(v).to_bits(),
        |b| f16::from_bits(b).to_f32(),
    );
}

#[repr(C)]
struct Handover {
    input: u64,
    output: u64,
    rounds: i32,
    mistake: i32,
}

#[test]
fn warpgroups_hand_over_through_barriers() {
    let device = Device::new();
    let rounds = 7;
    let values: Vec<u32> = (0..128 * rounds as u32).collect();
    let expected: Vec<u32> = values
        .chunks(128)
        .flat_map(|c| c.iter().rev().copied())
        .collect();
    let input = Buffer::from(&values);
    let run = |mistake| {
        let output = Buffer::<u32>::new(values.len());
        let params = Handover {
            input: input.address,
            output: output.address,
            rounds,
            mistake,
        };
        let result = device.launch("test_handover", 2, 256, 1056, &params);
        result == SUCCESS && output.read() == expected
    };
    in_every_order(|| assert!(run(0)));
    for mistake in [1, 2] {
        let (mut right, mut all) = (0, 0);
        in_every_order(|| {
            right += u32::from(run(mistake));
            all += 1;
        });
        assert!(right < all, "mistake {mistake} showed in no order");
    }
}

#[repr(C)]
struct Pipeline {
    input: u64,
    output: u64,
    rounds: i32,
    plant: i32,
}

/// What `Plant` of hopper.cu names from 1 on, and words of the refusal.
const PLANTS: [&str; 12] = [
    "wrote without a fence_for_products",
    "wrote without a fence_for_products|no barrier told it of the fence",
    "without products_begin",
    "barrier 1 is another's already",
    "which nobody wrote|no barrier told it of the fence|wrote without a fence",
    "a product under way reads|waited for its product|more arrivals|shared memory changed|no thread can go on",
    "a product under way reads|waited for its product",
    "a product under way reads|waited for its product",
    "the fragment of a product changed",
    "shared memory changed before the product",
    "no thread can go on",
    "barrier 0: expected one from 1",
];

#[test]
fn what_a_card_would_pass_over_is_refused() {
    let device = Device::new();
    let rounds = 5;
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let values: Vec<u16> = (0..rounds * 64 * 64)
        .map(|_| bf16::from_f32(rng.random_range(-2.0..2.0)).to_bits())
        .collect();
    let value = |at: usize| bf16::from_bits(values[at]).to_f32();
    let mut expected = vec![0.0; 64 * 64];
    for tile in 0..rounds {
        for (at, sum) in expected.iter_mut().enumerate() {
            let (row, column) = (at / 64, at % 64);
            for k in 0..64 {
                *sum += value(row * 64 + k) * value((tile * 64 + column) * 64 + k);
            }
            for k in 0..16 {
                *sum += value((tile * 64 + k) * 64 + column);
            }
        }
    }
    let input = Buffer::from(&values);
    let output = Buffer::<f32>::new(2 * 64 * 64);
    let shared = 3 * 64 * 64 * 2 + 4 * 8;
    let run = |plant| {
        let params = Pipeline {
            input: input.address,
            output: output.address,
            rounds: rounds as i32,
            plant,
        };
        device.launch("test_pipeline", 2, 384, shared, &params)
    };
    in_every_order(|| {
        assert_eq!(run(0), SUCCESS, "{}", emulator().last_error());
        let got = output.read();
        for (at, got) in got.iter().enumerate() {
            let want = expected[at % expected.len()];
            assert!((got - want).abs() <= 1e-3, "{at}: {got} is not {want}");
        }
        for (plant, words) in (1..).zip(PLANTS) {
            assert_eq!(run(plant), LAUNCH_FAILED, "{plant}: {words}");
            let said = emulator().last_error();
            let found = words.split('|').any(|words| said.contains(words));
            assert!(found, "{plant}: expected `{words}`, found `{said}`");
        }
    });
}
