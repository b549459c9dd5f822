//! Kernels that are wrong fail their launch and are told why, in every order.

#![allow(unsafe_code)]
#![cfg(target_os = "linux")]

mod common;

use common::{
    Buffer, Device, ILLEGAL_ADDRESS, LAUNCH_FAILED, MISALIGNED_ADDRESS, SUCCESS, emulator,
};
use ratplus_cuda_emulator::Order;

#[repr(C)]
struct Mistake {
    memory: u64,
    mistake: i32,
}

const THREADS: u32 = 64;
const SHARED_BYTES: u32 = 256;

const DIVISION_BY_ZERO: i32 = 21;

/// The mistakes of `mistakes.cu`: number, result, words of the message.
const MISTAKES: &[(i32, i32, &[&str])] = &[
    (
        1,
        LAUNCH_FAILED,
        &[
            "no thread can go on",
            "threads 0 to 62 wait in block_barrier",
            "threads 63 to 63 have exited",
        ],
    ),
    (
        2,
        LAUNCH_FAILED,
        &[
            "diverges",
            "thread 63 is at this block_barrier",
            "mistakes.cu:",
        ],
    ),
    (
        3,
        LAUNCH_FAILED,
        &[
            "threads 32 to 62 wait in warp_barrier",
            "threads 63 to 63 wait in block_barrier",
        ],
    ),
    (
        4,
        LAUNCH_FAILED,
        &["the warp of threads 32 to 63 diverges", "is in shuffle"],
    ),
    (
        5,
        LAUNCH_FAILED,
        &["wait in warp_barrier", "wait in block_barrier"],
    ),
    (
        6,
        LAUNCH_FAILED,
        &[
            "threads 63 to 63 wait in spin_pause",
            "threads 0 to 62 wait in block_barrier",
        ],
    ),
    (7, LAUNCH_FAILED, &["thread 63", "without spin_pause"]),
    (
        8,
        MISALIGNED_ADDRESS,
        &["no multiple of 16", "mistakes.cu:"],
    ),
    (
        9,
        MISALIGNED_ADDRESS,
        &["no multiple of 16", "mistakes.cu:"],
    ),
    (10, MISALIGNED_ADDRESS, &["copy_async16", "multiples of 16"]),
    (
        11,
        MISALIGNED_ADDRESS,
        &["load_blocks", "byte 4 of shared memory"],
    ),
    (
        12,
        LAUNCH_FAILED,
        &["before it waited for its copy_async16"],
    ),
    (
        13,
        LAUNCH_FAILED,
        &["before it waited for its copy_async16"],
    ),
    (
        14,
        ILLEGAL_ADDRESS,
        &["copy_async16 to byte 256 of a shared memory of 256"],
    ),
    (
        15,
        ILLEGAL_ADDRESS,
        &["load_blocks_transposed of a row at byte 256"],
    ),
    (
        16,
        ILLEGAL_ADDRESS,
        &["accesses byte 1024 of a shared memory of 256"],
    ),
    (
        17,
        ILLEGAL_ADDRESS,
        &["byte 256 of a block's shared memory was written"],
    ),
    (
        18,
        ILLEGAL_ADDRESS,
        &["byte -1 of a block's shared memory was written"],
    ),
    (
        19,
        ILLEGAL_ADDRESS,
        &[
            "accesses byte 256 of an allocation of 256 bytes",
            "addr2line",
        ],
    ),
    (
        20,
        ILLEGAL_ADDRESS,
        &["accesses address 0x0, which is in no allocation"],
    ),
    (
        DIVISION_BY_ZERO,
        LAUNCH_FAILED,
        &["divides an integer by zero"],
    ),
    (22, ILLEGAL_ADDRESS, &["the end of the stack of thread"]),
    (23, ILLEGAL_ADDRESS, &["accesses address 0x0"]),
];

#[test]
fn mistakes_fail_their_launch() {
    let device = Device::new();
    let run = |mistake| {
        let memory = Buffer::from(&[0_u32; 64]);
        let params = Mistake {
            memory: memory.address,
            mistake,
        };
        device.launch("test_mistake", 3, THREADS, SHARED_BYTES, &params)
    };
    for order in [
        Order::Forward,
        Order::Reverse,
        Order::Random(1),
        Order::Random(2),
    ] {
        for resident in [1, 3] {
            emulator().configure(order, resident);
            for (mistake, result, words) in MISTAKES {
                if *mistake == DIVISION_BY_ZERO && !cfg!(target_arch = "x86_64") {
                    println!("division by zero: this processor does not trap");
                    continue;
                }
                // The engine is as good as new after each.
                assert_eq!(run(0), SUCCESS, "{order:?}, before mistake {mistake}");
                assert_eq!(run(*mistake), *result, "{order:?}, mistake {mistake}");
                let error = emulator().last_error();
                for word in ["kernel test_mistake"].iter().chain(*words) {
                    assert!(
                        error.contains(word),
                        "{order:?}, mistake {mistake}: no {word:?} in {error}"
                    );
                }
            }
        }
    }
}

#[repr(C)]
struct Chain {
    input: u64,
    output: u64,
    flags: u64,
    sums: u64,
    by_index: i32,
}

/// Blocks that wait by their index need an order that nobody promised.
#[test]
fn waiting_by_block_index_is_a_deadlock() {
    let device = Device::new();
    let threads = 64;
    let input = Buffer::from(&vec![1.0_f32; 4 * threads]);
    let run = |order, resident| {
        emulator().configure(order, resident);
        let output = Buffer::<f32>::new(4 * threads);
        let flags = Buffer::from(&[0_u32; 6]);
        let sums = Buffer::<f32>::new(4);
        let params = Chain {
            input: input.address,
            output: output.address,
            flags: flags.address,
            sums: sums.address,
            by_index: 1,
        };
        device.launch("test_chain", 4, threads as u32, 8, &params)
    };
    assert_eq!(run(Order::Forward, 1), SUCCESS);
    assert_eq!(run(Order::Reverse, 4), SUCCESS);
    assert_eq!(run(Order::Reverse, 3), LAUNCH_FAILED);
    let error = emulator().last_error();
    assert!(
        error.contains("block (1, 0, 0)") && error.contains("wait in spin_pause"),
        "{error}"
    );
}

/// Threads of the process launch at a time, each with its own settings and errors.
#[test]
fn launches_from_several_threads() {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let device = Device::new();
                emulator().configure(Order::Random(thread), 1 + thread as u32);
                let memory = Buffer::from(&[0_u32; 64]);
                for round in 0..50 {
                    let mistake = i32::from(round % 2 == 0) * (16 + thread as i32);
                    let params = Mistake {
                        memory: memory.address,
                        mistake,
                    };
                    let result = device.launch("test_mistake", 2, THREADS, SHARED_BYTES, &params);
                    let expected = if mistake == 0 {
                        SUCCESS
                    } else {
                        ILLEGAL_ADDRESS
                    };
                    assert_eq!(result, expected);
                    let words = [
                        "byte 1024",
                        "byte 256 of a block",
                        "byte -1",
                        "byte 256 of an",
                    ];
                    assert!(emulator().last_error().contains(words[thread as usize]));
                }
                assert_eq!(emulator().launches("test_mistake"), Some(50));
            });
        }
    });
    assert!(emulator().launches_of_process("test_mistake").unwrap() >= 200);
}
