//! The driver's functions do what the real ones do.

#![allow(unsafe_code)]
#![cfg(target_os = "linux")]

mod common;

use common::{Buffer, Device, INVALID_VALUE, SUCCESS, call, emulator};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;

const INVALID_CONTEXT: c_int = 201;
const INVALID_HANDLE: c_int = 400;
const NOT_FOUND: c_int = 500;
const ILLEGAL_ADDRESS: c_int = 700;

#[repr(C)]
struct Geometry {
    output: u64,
    host: u64,
}

fn attribute(attribute: c_int) -> c_int {
    let mut value = 0;
    assert_eq!(
        call!(cuDeviceGetAttribute(&mut value => &mut c_int, attribute => c_int, 0 => c_int)),
        SUCCESS
    );
    value
}

#[test]
fn the_device() {
    let (mut count, mut version) = (0, 0);
    assert_eq!(call!(cuInit(0 => c_uint)), SUCCESS);
    assert_eq!(
        call!(cuDriverGetVersion(&mut version => &mut c_int)),
        SUCCESS
    );
    assert_eq!(call!(cuDeviceGetCount(&mut count => &mut c_int)), SUCCESS);
    assert_eq!((count, version), (1, 13000));
    let mut name = [0 as c_char; 64];
    assert_eq!(
        call!(cuDeviceGetName(name.as_mut_ptr() => *mut c_char, 64 => c_int, 0 => c_int)),
        SUCCESS
    );
    // SAFETY: the function ends the name with a zero.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    assert_eq!(name, c"ratplus emulator");
    // Compute capability and multiprocessors can be set.
    assert_eq!([75, 76, 16].map(attribute), [9, 0, 4]);
    emulator().set_device((8, 6), 30);
    assert_eq!([75, 76, 16].map(attribute), [8, 6, 30]);
    let other = std::thread::spawn(|| attribute(16));
    assert_eq!(other.join().unwrap(), 4);
    // Warp, shared memory by default and at most, address space.
    assert_eq!(
        [10, 8, 97, 41, 19].map(attribute),
        [32, 49152, 232_448, 1, 1]
    );
    let mut text: *const c_char = std::ptr::null();
    assert_eq!(
        call!(cuGetErrorName(INVALID_VALUE => c_int, &mut text => &mut *const c_char)),
        SUCCESS
    );
    // SAFETY: the name is a literal.
    assert_eq!(unsafe { CStr::from_ptr(text) }, c"CUDA_ERROR_INVALID_VALUE");
}

/// NVRTC reads a table's size, its first word, before any entry.
#[test]
fn tables_of_undocumented_functions_are_empty() {
    let mut table: *const u64 = std::ptr::null();
    let id = [0_u8; 16];
    assert_eq!(
        call!(cuGetExportTable(&mut table => &mut *const u64, &id => &[u8; 16])),
        SUCCESS
    );
    // SAFETY: a table has at least its size.
    assert_eq!(unsafe { table.read() }, 8);
}

#[test]
fn a_context_is_needed() {
    let mut address = 0;
    assert_eq!(call!(cuInit(0 => c_uint)), SUCCESS);
    let allocate = |address: &mut u64| call!(cuMemAlloc_v2(address => &mut u64, 16 => usize));
    assert_eq!(allocate(&mut address), INVALID_CONTEXT);
    let device = Device::new();
    assert_eq!(allocate(&mut address), SUCCESS);
    let mut context = null_mut();
    assert_eq!(
        call!(cuCtxPopCurrent_v2(&mut context => &mut *mut c_void)),
        SUCCESS
    );
    assert_eq!(call!(cuMemFree_v2(address => u64)), INVALID_CONTEXT);
    assert_eq!(call!(cuCtxPushCurrent_v2(context => *mut c_void)), SUCCESS);
    assert_eq!(call!(cuMemFree_v2(address => u64)), SUCCESS);
    drop(device);
}

#[test]
fn functions_come_from_modules() {
    let device = Device::new();
    let function = device.function("test_sum").unwrap();
    assert_eq!(device.function("test_sum").unwrap(), function);
    assert_eq!(device.function("test_nothing"), Err(NOT_FOUND));
    let attribute = |which| {
        let mut value = 0;
        assert_eq!(
            call!(cuFuncGetAttribute(&mut value => &mut c_int, which => c_int, function => *mut c_void)),
            SUCCESS
        );
        value
    };
    assert_eq!([0, 8].map(attribute), [1024, 49152]);
    let blocks = |threads: c_int, shared: usize| {
        let mut blocks = -1;
        assert_eq!(
            call!(cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks => &mut c_int,
                function => *mut c_void,
                threads => c_int,
                shared => usize,
            )),
            SUCCESS
        );
        blocks
    };
    assert_eq!(
        [
            blocks(1024, 0),
            blocks(100, 0),
            blocks(32, 0),
            blocks(32, 40000),
            blocks(32, 50000)
        ],
        [2, 16, 32, 5, 0]
    );
    assert!(emulator().kernels().contains(&"test_sum".into()));
    let sum = emulator().kernel("test_sum").unwrap();
    assert_eq!(
        sum.source,
        std::path::Path::new("kernels/emulator/tests/exchange.cu")
    );
    assert_eq!(
        (sum.params_bytes, sum.max_threads, sum.min_blocks),
        (24, 1024, 1)
    );
    assert_eq!(emulator().kernel("test_nothing"), None);
    assert_eq!(emulator().params_bytes("test_nothing"), None);
    assert_eq!(emulator().launches("test_nothing"), None);
    // A function goes with its module.
    drop(device);
    let device = Device::new();
    let mut value = 0;
    assert_eq!(
        call!(cuFuncGetAttribute(&mut value => &mut c_int, 0 => c_int, function => *mut c_void)),
        INVALID_HANDLE
    );
    drop(device);
}

#[test]
fn launches_are_checked() {
    let device = Device::new();
    let output = Buffer::<u32>::new(64 * 6);
    let host = Buffer::<u64>::new(1);
    let params = Geometry {
        output: output.address,
        host: host.address,
    };
    let launch = |grid, threads, shared| {
        device.launch_on(null_mut(), "test_geometry", grid, threads, shared, &params)
    };
    assert_eq!(launch((1, 1, 1), 64, 49152), SUCCESS);
    assert_eq!(host.read(), [0x1234_5678_9abc_def0]);
    for (grid, threads, shared, words) in [
        ((0, 1, 1), 32, 0, "0 x 1 x 1 blocks"),
        ((1, 65536, 1), 32, 0, "1 x 65536 x 1 blocks"),
        ((1, 1, 1), 0, 0, "a block of 0"),
        ((1, 1, 1), 65, 0, "it takes up to 64"),
        ((1, 1, 1), 32, 49153, "it may have 49152"),
    ] {
        assert_eq!(launch(grid, threads, shared), INVALID_VALUE);
        let error = emulator().last_error();
        assert!(
            error.contains("test_geometry") && error.contains(words),
            "{error}"
        );
    }
    let function = device.function("test_geometry").unwrap();
    let set = |bytes: c_int| call!(cuFuncSetAttribute(function => *mut c_void, 8 => c_int, bytes => c_int));
    assert_eq!(set(232_449), INVALID_VALUE);
    assert_eq!(set(232_448), SUCCESS);
    assert_eq!(launch((1, 1, 1), 64, 232_448), SUCCESS);
}

#[test]
fn memory() {
    let _device = Device::new();
    let bytes: Vec<u8> = (0..100).collect();
    let (first, second) = (Buffer::from(&bytes), Buffer::<u8>::new(100));
    assert_eq!(second.read(), [0xff; 100]);
    let stream = null_mut::<c_void>();
    let copy = |to: u64, from: u64, count: usize| call!(cuMemcpyDtoDAsync_v2(to => u64, from => u64, count => usize, stream => *mut c_void));
    assert_eq!(copy(second.address + 20, first.address + 30, 70), SUCCESS);
    assert_eq!(second.read()[20..90], bytes[30..]);
    assert_eq!(copy(second.address + 31, first.address, 70), INVALID_VALUE);
    assert_eq!(
        call!(cuMemsetD8Async(
            second.address => u64,
            7 => u8,
            20 => usize,
            stream => *mut c_void,
        )),
        SUCCESS
    );
    assert_eq!(
        call!(cuMemsetD32Async(
            second.address + 20 => u64,
            0x0102_0304 => c_uint,
            20 => usize,
            stream => *mut c_void,
        )),
        SUCCESS
    );
    let read = second.read();
    assert_eq!(read[..20], [7; 20]);
    assert_eq!(read[20..], [4, 3, 2, 1].repeat(20));
    let mut kind = 0;
    assert_eq!(
        call!(cuPointerGetAttribute(
            &mut kind => &mut c_uint,
            2 => c_int,
            first.address + 99 => u64,
        )),
        SUCCESS
    );
    assert_eq!(kind, 2);
    let pointer = bytes.as_ptr() as u64;
    assert_eq!(
        call!(cuPointerGetAttribute(&mut kind => &mut c_uint, 2 => c_int, pointer => u64)),
        INVALID_VALUE
    );

    // What was written beside an allocation shows when it is freed.
    let mut address = 0;
    for offset in [100_i64, -1] {
        assert_eq!(
            call!(cuMemAlloc_v2(&mut address => &mut u64, 100 => usize)),
            SUCCESS
        );
        assert_eq!(address % 16, 0);
        let beside = address.wrapping_add_signed(offset) as *mut u8;
        // SAFETY: the emulator keeps bytes around an allocation that fills no page.
        unsafe { beside.write(1) };
        assert_eq!(call!(cuMemFree_v2(address => u64)), ILLEGAL_ADDRESS);
        assert!(
            emulator()
                .last_error()
                .contains(&format!("byte {offset} of"))
        );
        assert_eq!(call!(cuMemFree_v2(address => u64)), INVALID_VALUE);
    }
    assert_eq!(
        call!(cuMemAlloc_v2(&mut address => &mut u64, 0 => usize)),
        INVALID_VALUE
    );
}
