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
