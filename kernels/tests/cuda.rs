//! Devices, memory, streams, graphs and kernels by name, over the emulated driver.

#![allow(unsafe_code)]
#![cfg(feature = "cuda")]

use ratplus_cuda_emulator as emulator;
use ratplus_kernels::cuda::{self, CudaError, Device, DeviceError, KernelParams, Stream};
use std::sync::Mutex;

/// The emulated device, current on this thread.
fn device() -> &'static Device {
    emulator::load().unwrap();
    // Where nothing is embedded, what `cargo xtask setup` installs compiles the kernels.
    let program = std::env::current_exe().unwrap();
    for folder in program.ancestors() {
        cuda::add_search_folder(folder.join("cuda/nvidia/cu13/lib"));
    }
    Device::open(0).unwrap()
}

#[test]
fn a_context_is_one_device() {
    let device = device();
    assert!(std::ptr::eq(device, Device::open(0).unwrap()));
    assert!(std::ptr::eq(device, Device::current().unwrap()));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(Device::current().unwrap_err(), CudaError::NoContext);
            device.make_current().unwrap();
            assert!(std::ptr::eq(device, Device::current().unwrap()));
        });
    });
    let limits = device.limits();
    assert_eq!(*limits, Device::describe(0).unwrap());
    assert!(limits.compute_capability >= (8, 0));
    assert!(limits.multiprocessors > 0 && limits.l2_bytes > 0 && limits.total_memory > 0);
    // What a block gets without asking.
    assert!(limits.shared_memory_per_block > 48 << 10);
    assert!(!limits.name.is_empty());
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    device();
    let count = Device::count().unwrap();
    for ordinal in [-1, count] {
        let error = Device::open(ordinal).unwrap_err();
        assert_eq!(error, CudaError::NoDevice { ordinal, count });
        assert!(error.to_string().contains("nvidia-smi"), "{error}");
    }
}

#[test]
fn memory_goes_there_and_back() {
    let device = device();
    let bytes: Vec<u8> = (0..1000).map(|index| (index % 251) as u8).collect();
    let memory = device.allocate(bytes.len()).unwrap();
    assert_eq!(memory.bytes(), bytes.len());
    assert!(memory.address().is_multiple_of(16));
    memory.upload(&bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    memory.download(&mut back).unwrap();
    assert_eq!(back, bytes);

    let error = memory.upload(&vec![0; 1001]).unwrap_err();
    assert!(matches!(error, CudaError::Unsupported { .. }), "{error}");
    assert!(memory.download(&mut vec![0; 1001]).is_err());
    device.allocate(0).unwrap().upload(&[]).unwrap();
}

#[test]
fn work_in_a_stream_is_ordered() {
    let device = device();
    let (stream, start, end) = (
        device.stream().unwrap(),
        device.event().unwrap(),
        device.event().unwrap(),
    );
    let mut host = device.allocate_pinned(64).unwrap();
    host.as_mut_slice().fill(7);
    let [first, second] = [(); 2].map(|()| device.allocate(64).unwrap());
    stream.record(&start).unwrap();
    // SAFETY: all memory is 64 bytes and outlives the wait below.
    unsafe {
        let s = stream.stream();
        device
            .upload_async(first.address(), host.as_ptr(), 64, s)
            .unwrap();
        device
            .memset_zero_async(first.address() + 16, 16, s)
            .unwrap();
        device
            .copy_device_async(second.address(), first.address(), 64, s)
            .unwrap();
        device
            .download_async(host.as_ptr(), second.address(), 64, s)
            .unwrap();
        device.memset_zero_async(0, 0, s).unwrap();
    }
    stream.record(&end).unwrap();
    stream.synchronize().unwrap();
    end.synchronize().unwrap();
    assert!(start.elapsed(&end).unwrap() >= 0.0);
    let expected = [[7; 16], [0; 16], [7; 16], [7; 16]].concat();
    assert_eq!(host.as_slice(), expected);
}

#[test]
fn recorded_work_runs_when_launched() {
    let device = device();
    let stream = device.stream().unwrap();
    let memory = device.allocate(8).unwrap();
    memory.upload(&[1; 8]).unwrap();
    let read = || {
        let mut bytes = [0; 8];
        memory.download(&mut bytes).unwrap();
        bytes
    };
    let capture = stream.capture().unwrap();
    // SAFETY: the memory outlives the graph.
    unsafe {
        device
            .memset_zero_async(memory.address(), 4, stream.stream())
            .unwrap()
    };
    let mut graph = capture.end().unwrap();
    assert_eq!(read(), [1; 8]);
    for _ in 0..2 {
        // SAFETY: the recorded memory is live until the end of the test.
        unsafe { graph.launch(stream.stream()).unwrap() };
        stream.synchronize().unwrap();
        assert_eq!(read(), [0, 0, 0, 0, 1, 1, 1, 1]);
        memory.upload(&[1; 8]).unwrap();
    }
    // A recording that is given up leaves a stream that works.
    drop(stream.capture().unwrap());
    // SAFETY: eight bytes that are ours, and no other work is under way.
    unsafe {
        device
            .memset_zero_async(memory.address(), 8, stream.stream())
            .unwrap()
    };
    stream.synchronize().unwrap();
    assert_eq!(read(), [0; 8]);
}

#[test]
fn memory_is_freed() {
    // More than all that other tests hold at the same time.
    const LARGE: usize = 1 << 28;
    let held = || emulator::load().unwrap().allocated_bytes() >= LARGE as u64;
    let device = device();
    let memory = device.allocate(LARGE).unwrap();
    assert!(held());
    drop(memory);
    assert!(!held());
    let memory = device.allocate_pinned(LARGE).unwrap();
    assert!(held());
    drop(memory);
    assert!(!held());
}

#[test]
fn errors_of_kernels_come_out_once() {
    let device = device();
    let flag = device.error_flag();
    let leave = |word: u64| {
        let word = word.to_ne_bytes();
        // SAFETY: the flag is eight bytes, and the copy is waited for.
        unsafe {
            device
                .upload_async(flag.device_address(), word.as_ptr(), 8, Stream::DEFAULT)
                .unwrap();
            device.synchronize_stream(Stream::DEFAULT).unwrap();
        }
    };
    assert_eq!(flag.take(), None);
    leave(1 << 63 | 5 << 32 | 3);
    assert_eq!(flag.take(), Some(DeviceError { node: 5, slot: 3 }));
    assert_eq!(flag.take(), None);
    leave(1 << 63);
    assert_eq!(flag.take(), Some(DeviceError { node: 0, slot: 0 }));
    leave(u64::MAX);
    let node = u32::MAX >> 1;
    let slot = u32::MAX;
    assert_eq!(flag.take(), Some(DeviceError { node, slot }));
}

/// Names of all kernels but those that need another device.
fn kernels(device: &Device) -> Vec<&'static str> {
    let hopper = device.limits().compute_capability == (9, 0);
    let kernels = emulator::load().unwrap().kernels().into_iter();
    let names = kernels.map(|name| &*name.leak());
    names
        .filter(|name| hopper || !name.contains("_hopper_"))
        .collect()
}

#[test]
fn every_kernel_has_a_unit() {
    let device = device();
    let kernels = kernels(device);
    assert!(kernels.len() > 20, "{kernels:?}");
    for kernel in kernels {
        device
            .function(kernel)
            .unwrap_or_else(|error| panic!("{error}"));
        device.function(kernel).unwrap();
    }
    assert!(
        device
            .log()
            .iter()
            .any(|line| line.starts_with("recurrence_scan.cu: ")),
        "{:?}",
        device.log()
    );
}

#[test]
fn kernels_that_are_not_there_are_errors() {
    let device = device();
    let kernel = "ratplus_no_such_kernel";
    let error = device.function(kernel).unwrap_err();
    assert_eq!(error, CudaError::KernelUnknown { kernel });
    let kernel = "ratplus_recurrence_scan_no_such_kernel";
    let error = device.function(kernel).unwrap_err();
    let unit = "recurrence_scan.cu";
    assert_eq!(error, CudaError::KernelMissing { unit, kernel });
}

#[test]
fn a_refused_launch_names_the_kernel() {
    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Params([u64; 64]);
    // SAFETY: as large as the parameters of the kernel, which does not run.
    unsafe impl KernelParams for Params {}

    let device = device();
    let mut kernels = kernels(device).into_iter();
    let kernel = kernels.find(|name| name.starts_with("ratplus_recurrence_scan_"));
    let kernel = kernel.unwrap();
    let function = device.function(kernel).unwrap();
    // SAFETY: no device has blocks of so many threads: nothing runs.
    let error = unsafe {
        device.launch(
            function,
            [1, 2, 3],
            1 << 20,
            16,
            &Params([0; 64]),
            Stream::DEFAULT,
        )
    };
    let text = error.unwrap_err().to_string();
    for part in [
        kernel,
        "[1, 2, 3]",
        "1048576 threads",
        "16 bytes",
        "CUDA_ERROR",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn threads_load_kernels_at_once() {
    static LOADED: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let device = device();
    let kernels = kernels(device);
    std::thread::scope(|scope| {
        for start in 0..4 {
            let (before, after) = kernels.split_at(start * kernels.len() / 4);
            scope.spawn(move || {
                for kernel in after.iter().chain(before) {
                    device.function(kernel).unwrap();
                    LOADED.lock().unwrap().push((*kernel).to_owned());
                }
            });
        }
    });
    assert_eq!(LOADED.lock().unwrap().len(), 4 * kernels.len());
    // A unit is loaded once, whoever comes first.
    let log = device.log();
    let scans = log
        .iter()
        .filter(|line| line.starts_with("recurrence_scan.cu: "));
    assert_eq!(scans.count(), 1, "{log:?}");
}
