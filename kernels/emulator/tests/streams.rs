//! Streams, captures, graphs and events.

#![allow(unsafe_code)]
#![cfg(target_os = "linux")]

mod common;

use common::{Buffer, Device, INVALID_VALUE, SUCCESS, call, emulator};
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;

const INVALID_HANDLE: c_int = 400;
const CAPTURE_UNSUPPORTED: c_int = 900;
const CAPTURE_INVALIDATED: c_int = 901;
const CAPTURE_UNMATCHED: c_int = 903;
const CAPTURE_IMPLICIT: c_int = 906;
const CAPTURED_EVENT: c_int = 907;

#[repr(C)]
struct Geometry {
    output: u64,
    host: u64,
}

/// A stream that goes with its owner.
struct Stream(*mut c_void);

impl Stream {
    fn new(flags: c_uint) -> Self {
        let mut stream = null_mut();
        assert_eq!(
            call!(cuStreamCreate(&mut stream => &mut *mut c_void, flags => c_uint)),
            SUCCESS
        );
        Self(stream)
    }

    fn begin(&self, mode: c_int) -> c_int {
        call!(cuStreamBeginCapture_v2(self.0 => *mut c_void, mode => c_int))
    }

    fn end(&self) -> Result<*mut c_void, c_int> {
        let mut graph = null_mut();
        match call!(cuStreamEndCapture(self.0 => *mut c_void, &mut graph => &mut *mut c_void)) {
            SUCCESS => Ok(graph),
            error => Err(error),
        }
    }

    fn status(&self) -> c_int {
        let mut status = -1;
        assert_eq!(
            call!(cuStreamIsCapturing(self.0 => *mut c_void, &mut status => &mut c_int)),
            SUCCESS
        );
        status
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        assert_eq!(call!(cuStreamDestroy_v2(self.0 => *mut c_void)), SUCCESS);
    }
}

#[test]
fn captures_run_when_their_graph_does() {
    let device = Device::new();
    let stream = Stream::new(1);
    let output = Buffer::<u32>::new(64 * 6);
    let copied = Buffer::<u32>::new(64 * 6);
    let host = Buffer::<u64>::new(1);
    let launches = emulator().launches("test_geometry").unwrap();
    assert_eq!(stream.status(), 0);
    assert_eq!(stream.begin(0), SUCCESS);
    assert_eq!(stream.begin(0), INVALID_VALUE);
    assert_eq!(stream.status(), 1);
    {
        // Gone before the graph runs.
        let params = Geometry {
            output: output.address,
            host: host.address,
        };
        let name = "test_geometry";
        assert_eq!(
            device.launch_on(stream.0, name, (1, 1, 1), 64, 0, &params),
            SUCCESS
        );
    }
    let bytes = 64 * 6 * 4;
    assert_eq!(
        call!(cuMemcpyDtoDAsync_v2(
            copied.address => u64,
            output.address => u64,
            bytes => usize,
            stream.0 => *mut c_void,
        )),
        SUCCESS
    );
    assert_eq!(
        call!(cuMemsetD32Async(
            output.address => u64,
            9 => c_uint,
            64 * 6 => usize,
            stream.0 => *mut c_void,
        )),
        SUCCESS
    );
    let graph = stream.end().unwrap();
    assert_eq!(stream.status(), 0);
    assert_eq!(emulator().launches("test_geometry"), Some(launches));
    assert_eq!(output.read(), [u32::MAX; 64 * 6]);

    let mut executable = null_mut();
    assert_eq!(
        call!(cuGraphInstantiateWithFlags(
            &mut executable => &mut *mut c_void,
            graph => *mut c_void,
            0 => u64,
        )),
        SUCCESS
    );
    assert_eq!(call!(cuGraphDestroy(graph => *mut c_void)), SUCCESS);
    let launch = || call!(cuGraphLaunch(executable => *mut c_void, stream.0 => *mut c_void));
    for round in 1..=2 {
        assert_eq!(launch(), SUCCESS);
        assert_eq!(call!(cuStreamSynchronize(stream.0 => *mut c_void)), SUCCESS);
        assert_eq!(emulator().launches("test_geometry"), Some(launches + round));
        assert_eq!(output.read(), [9; 64 * 6]);
        assert_eq!(copied.read()[6..12], [0, 0, 0, 1, 64, 1]);
        assert_eq!(host.read(), [0x1234_5678_9abc_def0]);
    }
    assert_eq!(
        call!(cuGraphExecDestroy(executable => *mut c_void)),
        SUCCESS
    );
    assert_eq!(launch(), INVALID_VALUE);
    assert_eq!(stream.end(), Err(CAPTURE_UNMATCHED));
}

#[test]
fn captures_forbid_what_waits() {
    let device = Device::new();
    let stream = Stream::new(1);
    let memory = Buffer::<u32>::new(4);
    let mut address = 0;
    let mut module = null_mut();
    let mut values = [0_u32; 4];
    let forbidden: [(&str, &mut dyn FnMut() -> c_int); 6] = [
        (
            "cuMemAlloc",
            &mut (|| call!(cuMemAlloc_v2(&mut address => &mut u64, 16 => usize))),
        ),
        (
            "cuMemFree",
            &mut (|| call!(cuMemFree_v2(memory.address => u64))),
        ),
        (
            "cuModuleLoadData",
            &mut (|| {
                call!(cuModuleLoadData(
                    &mut module => &mut *mut c_void,
                    c"image".as_ptr() => *const c_char,
                ))
            }),
        ),
        ("cuCtxSynchronize", &mut (|| call!(cuCtxSynchronize()))),
        (
            "cuStreamSynchronize",
            &mut (|| call!(cuStreamSynchronize(stream.0 => *mut c_void))),
        ),
        (
            "cuMemcpyDtoH",
            &mut (|| {
                call!(cuMemcpyDtoH_v2(
                    values.as_mut_ptr() => *mut u32,
                    memory.address => u64,
                    16 => usize,
                ))
            }),
        ),
    ];
    for (name, call) in forbidden {
        assert_eq!(stream.begin(1), SUCCESS);
        assert_eq!(call(), CAPTURE_UNSUPPORTED, "{name}");
        assert_eq!(stream.status(), 2, "{name}");
        assert_eq!(stream.end(), Err(CAPTURE_INVALIDATED), "{name}");
    }
    // A relaxed capture forbids none but its own stream's wait.
    assert_eq!(stream.begin(2), SUCCESS);
    assert_eq!(memory.read(), [u32::MAX; 4]);
    let graph = stream.end().unwrap();
    assert_eq!(call!(cuGraphDestroy(graph => *mut c_void)), SUCCESS);

    // The null stream waits for blocking streams.
    let blocking = Stream::new(0);
    let fill = || {
        call!(cuMemsetD8Async(
            memory.address => u64,
            1 => u8,
            16 => usize,
            null_mut() => *mut c_void,
        ))
    };
    assert_eq!(stream.begin(1), SUCCESS);
    assert_eq!(fill(), SUCCESS);
    let graph = stream.end().unwrap();
    assert_eq!(call!(cuGraphDestroy(graph => *mut c_void)), SUCCESS);
    assert_eq!(blocking.begin(1), SUCCESS);
    assert_eq!(fill(), CAPTURE_IMPLICIT);
    assert_eq!(blocking.end(), Err(CAPTURE_INVALIDATED));
    drop((stream, blocking, memory));
    drop(device);
}

#[test]
fn streams_join_captures_through_events() {
    let _device = Device::new();
    let (first, second) = (Stream::new(1), Stream::new(1));
    let memory = Buffer::from(&[0_u32; 4]);
    let mut event = null_mut();
    assert_eq!(
        call!(cuEventCreate(&mut event => &mut *mut c_void, 2 => c_uint)),
        SUCCESS
    );
    let record =
        |stream: &Stream| call!(cuEventRecord(event => *mut c_void, stream.0 => *mut c_void));
    let wait = |stream: &Stream| call!(cuStreamWaitEvent(stream.0 => *mut c_void, event => *mut c_void, 0 => c_uint));
    assert_eq!(first.begin(1), SUCCESS);
    assert_eq!(record(&first), SUCCESS);
    assert_eq!(
        call!(cuEventSynchronize(event => *mut c_void)),
        CAPTURED_EVENT
    );
    assert_eq!(wait(&second), SUCCESS);
    assert_eq!(second.status(), 1);
    assert_eq!(
        call!(cuMemsetD8Async(
            memory.address => u64,
            3 => u8,
            16 => usize,
            second.0 => *mut c_void,
        )),
        SUCCESS
    );
    assert_eq!(record(&second), SUCCESS);
    assert_eq!(wait(&first), SUCCESS);
    assert_eq!(second.end(), Err(CAPTURE_UNMATCHED));
    let graph = first.end().unwrap();
    assert_eq!(second.status(), 0);
    assert_eq!(memory.read(), [0; 4]);
    let mut executable = null_mut();
    assert_eq!(
        call!(cuGraphInstantiateWithFlags(
            &mut executable => &mut *mut c_void,
            graph => *mut c_void,
            0 => u64,
        )),
        SUCCESS
    );
    assert_eq!(
        call!(cuGraphLaunch(executable => *mut c_void, first.0 => *mut c_void)),
        SUCCESS
    );
    assert_eq!(memory.read(), [0x0303_0303; 4]);
    assert_eq!(
        call!(cuGraphExecDestroy(executable => *mut c_void)),
        SUCCESS
    );
    assert_eq!(call!(cuGraphDestroy(graph => *mut c_void)), SUCCESS);
    assert_eq!(call!(cuEventDestroy_v2(event => *mut c_void)), SUCCESS);
}

#[test]
fn events_measure_time() {
    let _device = Device::new();
    let stream = Stream::new(0);
    let event = |flags: c_uint| {
        let mut event = null_mut();
        assert_eq!(
            call!(cuEventCreate(&mut event => &mut *mut c_void, flags => c_uint)),
            SUCCESS
        );
        event
    };
    let (start, end, untimed) = (event(0), event(0), event(2));
    let record = |event| call!(cuEventRecord(event => *mut c_void, stream.0 => *mut c_void));
    let mut elapsed = -1.0_f32;
    let mut measure = |start, end| {
        let result = call!(cuEventElapsedTime_v2(
            &mut elapsed => &mut f32,
            start => *mut c_void,
            end => *mut c_void,
        ));
        (result, elapsed)
    };
    assert_eq!(measure(start, end).0, INVALID_HANDLE);
    assert_eq!(record(start), SUCCESS);
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(record(end), SUCCESS);
    assert_eq!(record(untimed), SUCCESS);
    let (result, milliseconds) = measure(start, end);
    assert_eq!(result, SUCCESS);
    assert!((5.0..5000.0).contains(&milliseconds), "{milliseconds}");
    assert_eq!(measure(start, untimed).0, INVALID_HANDLE);
    for event in [start, end, untimed] {
        assert_eq!(call!(cuEventSynchronize(event => *mut c_void)), SUCCESS);
        assert_eq!(call!(cuEventDestroy_v2(event => *mut c_void)), SUCCESS);
        assert_eq!(record(event), INVALID_HANDLE);
    }
}
